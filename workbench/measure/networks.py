"""The networks of a grid: brought into ONNX and into each precision once, with the pictures they are judged on."""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.contract import TensorSpec
from workbench.core.errors import InputError
from workbench.export.conversion import convert as convert_to_onnx
from workbench.measure.rows import network_digest
from workbench.onnx_graph.file import check
from workbench.pictures.feeds import Feed, channel_axis, make_feeds
from workbench.precision.spec import EIGHT_BITS

CALIBRATION_PICTURES, FEWEST = 100, 8

PathLike = str | os.PathLike[str]
Feeds = Callable[[], Iterator[tuple[str, Feed]]]


@dataclass
class Prepared:
    """A network of a grid.

    Attributes:
        path: the float32 `.onnx` file.
        framework: what Keras opens; None for a network that came as ONNX.
        digest: see `network_digest`.
        size: (height, width) of its pictures in pixels; two times None where it takes none.
        batch: the batch that it fixes; None where any will do.
        folder: for its files.
        pictures: file of the inputs that it is judged on.
        feeds: gives all pictures again, those that are judged first.
        judged: how many these are.
        preprocess: how the pictures became inputs.
        made: file and note of each precision that was needed so far.
    """

    path: Path
    framework: Any
    digest: str
    size: tuple[int | None, int | None]
    batch: int | None
    folder: Path
    pictures: Path
    feeds: Feeds
    judged: int
    preprocess: str
    made: dict[Any, tuple[Path, str]] = field(default_factory=dict)
    _calibration: Any = None
    _calibrated_on: str = ""

    def target(self, precision: str, backend: str, batch: int) -> tuple[Any, str]:
        """What the backend shall open, made when it is first asked for, and a note on it.

        Raises:
            WorkbenchError: the network cannot be had in this precision, or not for this backend.
        """
        if backend == "keras":
            return self._for_keras(precision), ""
        if precision == "tf32" and backend == "onnxruntime":
            raise InputError("TF32 is arithmetic of NVIDIA GPUs, and this row asks for a CPU")
        key = (precision, batch) if backend == "tensorrt" else precision
        if key not in self.made:
            self.made[key] = self._plan(precision, batch) if backend == "tensorrt" else self._convert(precision)
        return self.made[key]

    def _for_keras(self, precision: str) -> Any:
        if precision != "fp32":
            raise InputError(f"Keras is the float32 reference here, and this row asks for {precision}")
        if self.framework is None:
            raise InputError("Keras opens no ONNX file; give the Keras model instead")
        return self.framework

    def _convert(self, precision: str) -> tuple[Path, str]:
        from workbench.precision.convert import convert
        from workbench.precision.spec import Wanted

        out = self.folder / f"{precision}.onnx"
        if precision == "fp16":
            from workbench.precision.ranges import measure_ranges

            wanted = Wanted(precision, ranges=measure_ranges(self.path, self.feeds(), progress=False))
        else:
            wanted = Wanted(precision, calibration=self._scales() if precision in EIGHT_BITS else None)
        report = convert(self.path, out, wanted)
        if report is None:
            return self.path, ""
        note = f"{report.converted} nodes in {precision}, {len(report.kept)} in float32"
        return out, f"{note}; {self._calibrated_on}" if precision in EIGHT_BITS else note

    def _plan(self, precision: str, batch: int) -> tuple[Path, str]:
        from workbench.engine.build import build_engine, save_engine

        plan = build_engine(
            self.path,
            precision=precision,
            calibration=self._scales() if precision in EIGHT_BITS else None,
            profile=self._profile(batch),
            progress=False,
        )
        return save_engine(plan, self.folder / f"{precision}_{batch}.plan"), ""

    def _profile(self, batch: int) -> dict[str, Any]:
        shapes = {spec.name: spec.shape for spec in check(self.path).inputs if None in spec.shape}
        with np.load(self.pictures) as loaded:
            sizes = {name: (batch, *loaded[name].shape[1:]) for name in shapes}
        return {name: (size, size, size) for name, size in sizes.items()}

    def _scales(self) -> Any:
        """Calibrate on the pictures that are not judged; on all of them where these would be too few."""
        if self._calibration is None:
            from workbench.precision.calibration import calibrate

            samples = itertools.islice(self.feeds(), self.judged, self.judged + CALIBRATION_PICTURES)
            few = list(itertools.islice(samples, FEWEST))
            others = len(few) == FEWEST
            chosen = itertools.chain(few, samples) if others else self.feeds()
            self._calibration = calibrate(self.path, chosen, preprocess=self.preprocess, progress=False)
            which = "other pictures" if others else "pictures, the judged ones among them"
            self._calibrated_on = f"calibrated on {self._calibration.samples} {which}"
        return self._calibration


def prepare(
    source: Any, size: tuple[int, int] | None, folder: Path, images: PathLike | None, preprocess: str, pictures: int
) -> Prepared:
    """Bring a network into ONNX and make its inputs.

    Args:
        source: an `.onnx` file, or what `workbench.export.conversion` takes.
        size: (height, width) in pixels; None for the network's own.
        folder: for its files.
        images: a folder of pictures; built-in ones when None.
        preprocess: how pictures become inputs.
        pictures: how many to judge on.
    Raises:
        WorkbenchError: it cannot be opened or converted, or has another size.
    """
    path, framework = _open(source, size, folder)
    specs, fixed = _specs(path, size)
    feeds = lambda: make_feeds(specs, images, preprocess)  # noqa: E731
    judged = [feed for _, feed in itertools.islice(feeds(), pictures)]
    arrays = {name: np.concatenate([feed[name][:1] for feed in judged]) for name in specs}
    np.savez(folder / "pictures.npz", **arrays)  # type: ignore[arg-type]  # names of inputs are keyword arguments
    return Prepared(
        path, framework, network_digest(path), _picture_size(specs), fixed, folder, folder / "pictures.npz", feeds,
        len(judged), preprocess,
    )  # fmt: skip


def _open(source: Any, size: tuple[int, int] | None, folder: Path) -> tuple[Path, Any]:
    """The ONNX file of a source, and what Keras opens."""
    if isinstance(source, str | os.PathLike) and Path(source).suffix.lower() == ".onnx":
        return Path(source), None
    model, framework = source, source
    if source == "fcn_vgg16" and size is not None:
        from workbench.core.packages import load_keras
        from workbench.models import fcn_vgg16

        model = fcn_vgg16.demonstration_model(load_keras(), size)
    if not isinstance(model, str | os.PathLike):
        framework = folder / "model.keras"
        model.save(framework)
    path = folder / "fp32.onnx"
    convert_to_onnx(model, path, spatial=size, progress=False)
    return path, framework


def _specs(path: Path, size: tuple[int, int] | None) -> tuple[dict[str, TensorSpec], int | None]:
    """The inputs with the wanted size, and the batch that the network fixes."""
    specs, fixed = {}, None
    for spec in check(path).inputs:
        if not spec.shape:
            raise InputError(f"input {spec.name} is a single number without a batch; build it into the network")
        fixed = spec.shape[0] if spec.shape[0] is not None else fixed
        specs[spec.name] = replace(spec, shape=_sized(spec, size))
    if size is not None and not any(channel_axis(spec) is not None for spec in specs.values()):
        raise InputError(f"got the size {size[0]}x{size[1]} for a network that takes no pictures; leave sizes out")
    return specs, fixed


def _sized(spec: TensorSpec, size: tuple[int, int] | None) -> tuple[int | None, ...]:
    axis = channel_axis(spec)
    if axis is None or size is None:
        return spec.shape
    own = spec.shape[2:] if axis == 1 else spec.shape[1:3]
    if any(length not in (None, wanted) for length, wanted in zip(own, size, strict=True)):
        raise InputError(
            f"{spec.name} takes pictures of {own[0]}x{own[1]}, got the size {size[0]}x{size[1]}; convert the model for "
            "each size, and give it as a network of its own"
        )
    return (spec.shape[0], 3, *size) if axis == 1 else (spec.shape[0], *size, 3)


def _picture_size(specs: dict[str, TensorSpec]) -> tuple[int | None, int | None]:
    for spec in specs.values():
        axis = channel_axis(spec)
        if axis is not None:
            height, width = spec.shape[2:] if axis == 1 else spec.shape[1:3]
            return height, width
    return None, None
