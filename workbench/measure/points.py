"""The networks of a sweep: brought into ONNX, into each precision and into engines, once and when first needed."""

import hashlib
import itertools
import json
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core.contract import TensorSpec, check_feed
from workbench.core.errors import InputError, WorkbenchError
from workbench.core.files import check_outputs, make_folder
from workbench.core.report import count
from workbench.export.cached import as_onnx
from workbench.measure.accuracy import Pictures
from workbench.measure.backends import find_builder, find_engines
from workbench.onnx_graph.file import check, external_files, read
from workbench.onnx_graph.input_values import input_values
from workbench.pictures.feeds import Feed, Known, channel_axis, load_arrays
from workbench.precision.convert import read_precision, to_precision
from workbench.precision.observing import observable
from workbench.precision.spec import EIGHT_BITS, PrecisionSpec

if TYPE_CHECKING:
    from workbench.engine.tensorrt_api import Flavour
    from workbench.precision.calibration import Calibration

CALIBRATION_PICTURES, FEWEST = 100, 8
FIRST_PICTURES = 4
"""A call that is timed takes these, again and again until the batch is full."""


@dataclass
class Network:
    """A network of a sweep at one size.

    Attributes:
        path: the float32 `.onnx` file.
        stem: what the names of its files begin with.
        framework: what Keras opens; None for a network that came as ONNX.
        digest: see `network_digest`.
        specs: its inputs, at the size.
        known: what inputs have to hold that are no pictures.
        batch: the batch that it fixes; None where any will do.
        folder: for the files that it is converted to.
        pictures: what it is judged on.
        given: scales for 8 bits; measured when they are needed where None.
        plans: whether engines are built for their size where they do not run.
    """

    path: Path
    stem: str
    framework: Any
    digest: str
    specs: dict[str, TensorSpec]
    known: dict[str, Known]
    batch: int | None
    folder: Path
    pictures: Pictures
    given: "Calibration | None"
    plans: bool
    _firsts: list[Feed] = field(default_factory=list)
    _made: dict[Any, tuple[Path, dict[str, Any]]] = field(default_factory=dict)
    _scales: "Calibration | None" = None
    _calibrated_on: str = ""

    @property
    def size(self) -> tuple[int | None, int | None]:
        """(height, width) of its pictures in pixels; two times None where it takes none."""
        for spec in self.specs.values():
            axis = channel_axis(spec)
            if axis is not None:
                height, width = spec.shape[2:] if axis == 1 else spec.shape[1:3]
                return height, width
        return None, None

    def target(self, precision: str, backend: str, batch: int) -> tuple[Any, dict[str, Any]]:
        """What the backend shall open, made when it is first asked for, and columns of the row."""
        if self.batch not in (None, batch):
            raise InputError(f"the network takes batches of {self.batch} only; export it with an open batch")
        if backend == "keras":
            return self._for_keras()
        if precision == "tf32" and backend == "onnxruntime":
            raise InputError("TF32 is arithmetic of NVIDIA GPUs, and this row asks for a CPU")
        engines = find_engines() if backend == "tensorrt" else None
        if precision not in self._made:
            self._made[precision] = self._convert(precision)
        path, columns = self._made[precision]
        builder = engines or (find_builder() if self.plans else None)
        if builder is None:
            return path, columns
        try:
            if (precision, batch) not in self._made:
                self._made[precision, batch] = self._build(precision, batch, builder)
        except WorkbenchError as error:
            if engines:
                raise
            return path, columns | {"plan_note": str(error)}
        plan, more = self._made[precision, batch]
        return plan if engines else path, columns | more

    def first_file(self, path: Path, *, whole: bool) -> Path:
        """Write the feed that is timed: the first one as it is, or the first pictures to make a batch of."""
        if not self._firsts:
            firsts = itertools.islice(self.pictures.judged(self.specs, self.known), FIRST_PICTURES)
            self._firsts = [feed for _, feed in firsts]
        arrays = self._firsts[0]
        if not whole:
            if not all(array.ndim for array in arrays.values()):
                raise InputError("an input is a single number without a batch; build it into the network")
            arrays = {name: np.concatenate([feed[name][:1] for feed in self._firsts]) for name in arrays}
        np.savez(path, **arrays)  # type: ignore[arg-type]  # names of inputs are keyword arguments
        return path

    def scales(self) -> "Calibration | None":
        """The scales for 8 bits, of the pictures that are not judged, or of all where these are too few.

        None where nothing can be quantised; InputError where they are of another network, or the pictures give none.
        """
        if self._scales is None and self.given is not None:
            self.given.check(self.path)
            self._scales = self.given
            self._calibrated_on = f"calibrated on {count(self.given.samples, 'given picture')}"
        if self._scales is None and observable(read(self.path)):
            from workbench.precision.calibration import calibrate

            limit = self.pictures.limit
            everything = self.pictures.read(self.specs, self.known)
            rest = itertools.islice(everything, limit or 0, (limit or 0) + CALIBRATION_PICTURES)
            few = list(itertools.islice(rest, FEWEST)) if limit is not None else []
            others = len(few) == FEWEST
            chosen = itertools.chain(few, rest) if others else self.pictures.read(self.specs, self.known)
            self._scales = calibrate(self.path, chosen, preprocess=self.pictures.preprocess or None, progress=False)
            which = "other pictures" if others else "pictures, the judged ones among them"
            self._calibrated_on = f"calibrated on {self._scales.samples} {which}"
        return self._scales

    def _for_keras(self) -> tuple[Any, dict[str, Any]]:
        if self.framework is None:
            raise InputError("Keras opens no ONNX file; give the Keras model instead")
        if not isinstance(self.framework, str | os.PathLike):
            model, self.framework = self.framework, self.folder / f"{self.stem}.keras"
            check_outputs([self.framework])
            model.save(self.framework)
        return self.framework, {"file_mib": _mebibytes(self.framework)}

    def _convert(self, precision: str) -> tuple[Path, dict[str, Any]]:
        """Write the network in its precision."""
        scales = self.scales() if precision in EIGHT_BITS else None
        if precision in EIGHT_BITS and scales is None:
            raise InputError("there is nothing to quantise: no convolution or product of matrices reads float32")
        ranges = None
        if precision == "fp16":
            from workbench.precision.ranges import measure_ranges

            ranges = measure_ranges(self.path, self.pictures.read(self.specs, self.known), progress=False)
        out = self.folder / f"{self.stem}_{precision}.onnx"
        report = to_precision(self.path, out, PrecisionSpec(precision, calibration=scales, ranges=ranges))
        if report is None:
            return self.path, {"file_mib": _mebibytes(self.path), "kept": (), "qdq_pairs": 0}
        note = f"{report.converted} nodes in {precision}, {len(report.kept)} in float32"
        return out, {
            "note": f"{note}; {self._calibrated_on}" if scales else note,
            "file_mib": _mebibytes(out), "kept": report.kept, "qdq_pairs": report.qdq_pairs,
        }  # fmt: skip

    def _build(self, precision: str, batch: int, builder: "Flavour") -> tuple[Path, dict[str, Any]]:
        """Build the engine of a network that is in this precision, in which some nodes may stay wider."""
        from workbench.engine.build import build_engine, save_engine

        path, columns = self._made[precision]
        own = {spec.name: spec.shape for spec in check(path).inputs if None in spec.shape}
        sizes = {name: tuple(batch if size is None else size for size in self.specs[name].shape) for name in own}
        keep = [name for name, *_ in columns["kept"]]
        plan = build_engine(
            path, precision=precision, flavour=builder.name, progress=False, keep=keep,
            profile={name: (size, size, size) for name, size in sizes.items()} or None,
        )  # fmt: skip
        saved = save_engine(plan, self.folder / f"{self.stem}_{precision}_{batch}.plan")
        return saved, {"plan_mib": _mebibytes(saved), "plan_note": builder.title}


def prepare(
    source: Any, size: tuple[int, int] | None, stem: str, folder: Path, pictures: Pictures,
    given: "Calibration | None", plans: bool,
) -> Network:  # fmt: skip
    """Bring a network into ONNX.

    The source is an `.onnx` file, or what `workbench.export.conversion` takes; the other arguments are as in `Network`.

    Raises:
        WorkbenchError: it cannot be opened or converted, is not in float32, or has another size.
    """
    path, framework = _open(source, size, folder / f"{stem}.onnx")
    found = read_precision(path)
    if found != "fp32":
        raise InputError(f"{path} is in {found} already, expected float32; give the file it was made from")
    specs = {spec.name: replace(spec, shape=_sized(spec, size)) for spec in check(path).inputs}
    if size is not None and not any(channel_axis(spec) is not None for spec in specs.values()):
        raise InputError(f"got the size {size[0]}x{size[1]} for a network that takes no pictures; leave sizes out")
    firsts = [spec.shape[0] for spec in specs.values() if spec.shape]
    fixed = firsts[0] if firsts and None not in firsts else None
    for _, file in pictures.feeds or ():
        check_feed(specs, load_arrays(file))
    known = input_values(read(path))
    return Network(path, stem, framework, network_digest(path), specs, known, fixed, folder, pictures, given, plans)


def _open(source: Any, size: tuple[int, int] | None, out: Path) -> tuple[Path, Any]:
    """The ONNX file of a source, and what Keras opens."""
    if isinstance(source, str | os.PathLike) and Path(source).suffix.lower() == ".onnx":
        return Path(source), None
    model = source
    if source == "fcn_vgg16" and size is not None:
        from workbench.core.packages import load_keras
        from workbench.models import fcn_vgg16

        model = fcn_vgg16.demonstration_model(load_keras(), size)
    with as_onnx(model, spatial=size, progress=False) as path:
        data = external_files(path)
        target = make_folder(out.with_suffix("")) / path.name if data else out
        copies = {path: target} | {file: target.with_name(file.name) for file in data}
        check_outputs(copies.values(), [source])
        for file, copy in copies.items():
            shutil.copyfile(file, copy)
    return target, model


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


def _mebibytes(target: str | os.PathLike[str]) -> float | None:
    """Size of a file (an ONNX file with its external data), or of a folder's files; None for a model's name."""
    path = Path(target)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    if path.suffix.lower() == ".onnx":
        files += external_files(path)
    return float(f"{sum(file.stat().st_size for file in files) / 2**20:.5g}") if files else None


def network_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of what a network computes: its ends, operators and weights, whatever they are called.

    An exporter may name and order the same nodes in another way each time, so a hash of the file tells nothing.
    """
    import onnx

    graph = onnx.load(os.fspath(path)).graph
    constants = [entry.t for node in graph.node for entry in node.attribute if entry.HasField("t")]
    weights = sorted(_tensor_digest(tensor) for tensor in (*graph.initializer, *constants))
    ends = [str(value.type) for value in (*graph.input, *graph.output)]
    operators = sorted(node.op_type for node in graph.node)
    return hashlib.sha256(json.dumps([ends, operators, weights]).encode()).hexdigest()


def _tensor_digest(tensor: Any) -> str:
    from onnx import numpy_helper

    array = numpy_helper.to_array(tensor)
    return hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()
