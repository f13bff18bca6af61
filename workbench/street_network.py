"""The network for street scenes in whatever form there is, and the way from a picture to its label map."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workbench import __version__
from workbench.cityscapes import CITYSCAPES, VOID, argmax_classes
from workbench.demo import STREET_SIZE, street_input
from workbench.engine_cache import cache_folder, external_files
from workbench.environment import load_keras
from workbench.errors import BackendUnavailableError, InputError, ModelError, OutputError
from workbench.files import make_folder
from workbench.models import fcn_vgg16
from workbench.runners import Runner, open_runner
from workbench.runners.onnxruntime_runner import OnnxRuntimeRunner


@contextlib.contextmanager
def open_street_network(
    weights: str | os.PathLike[str] = "street-scenes",
    model: str | os.PathLike[str] | None = None,
    backend: str = "auto",
    progress: bool = False,
    at_once: int = 1,
) -> Iterator[tuple[Runner, str]]:
    """Open the demonstration network, or another one for Cityscapes' classes.

    Args:
        weights: see `fcn_vgg16.weights_path`. The network is converted to ONNX once, which needs Keras, and kept
            in the cache.
        model: open this file instead, an `.onnx` or a `.plan`, which need no Keras, or a Keras model's.
        backend: see `open_runner`.
        progress: show a bar while the network is converted.
        at_once: how many threads will call an ONNX network; the processor's cores are shared among them.
    Yields:
        The runner, and a short name that only this network has.
    Raises:
        InputError: a network of other inputs or outputs.
        ModelError: the file, or the weights, cannot be opened.
        BackendUnavailableError: Keras, or the backend, is needed and missing.
    """
    file = fcn_vgg16.weights_path(weights) if model is None else _existing(Path(model))
    with tempfile.TemporaryDirectory() as spare:
        target = file if model is not None else _network(file, backend, Path(spare), progress)
        with _open(target, backend, at_once) as runner:
            _check_network(runner)
            yield runner, _digest(file)


def _open(target: Any, backend: str, at_once: int) -> Runner:
    """Open an ONNX file with its share of the cores: whole images side by side are faster than one on all cores."""
    is_onnx = isinstance(target, Path) and target.suffix.lower() == ".onnx"
    if at_once > 1 and is_onnx and backend in ("auto", "onnxruntime"):
        return OnnxRuntimeRunner(target, threads=max(1, _cores() // at_once))
    return open_runner(target, backend)


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _existing(model: Path) -> Path:
    if not model.exists():
        raise ModelError(f"{model} does not exist; give an .onnx file, a .plan or a Keras model")
    return model


def _network(weights: Path, backend: str, spare: Path, progress: bool) -> Any:
    """Return what `open_runner` opens: an ONNX file, or the Keras model for backend="keras"."""
    if backend == "tensorrt":
        raise InputError(
            "got backend='tensorrt' without a plan; run: workbench convert fcn_vgg16 x.onnx, then: "
            "workbench build x.onnx -o x.plan, and give it with --model x.plan (model= in Python)"
        )
    if backend == "keras":
        return fcn_vgg16.demonstration_model(load_keras(), STREET_SIZE, weights)
    return _converted(weights, spare, progress)


def _converted(weights: Path, spare: Path, progress: bool) -> Path:
    """Return the network as ONNX: from the cache, or converted into it, or into `spare` where there can be no cache."""
    try:
        folder = make_folder(cache_folder().with_name("networks"))
    except OutputError:
        folder = spare
    path = folder / f"fcn_vgg16-{_digest(weights)}-{STREET_SIZE[0]}x{STREET_SIZE[1]}-{__version__}.onnx"
    if not path.is_file():
        try:
            keras = load_keras()
        except BackendUnavailableError as error:
            raise BackendUnavailableError(
                f"{error}; or convert the network on another machine, workbench convert fcn_vgg16 x.onnx, "
                "and give it with --model x.onnx (model= in Python)"
            ) from error
        from workbench.export.keras_model import keras_to_onnx

        keras_to_onnx(fcn_vgg16.demonstration_model(keras, STREET_SIZE, weights), path, progress=progress)
    return path


def segment_image(
    runner: Runner, image: NDArray[np.uint8], lock: contextlib.AbstractContextManager[Any] | None = None
) -> NDArray[np.uint8]:
    """Go from a picture of any size to its label map of the same size.

    The picture is resized with Pillow's smoothing bilinear filter, 20 times faster than `rescale_image` and 0.4 of
    255 from it on average; labels are resized to the nearest.

    Args:
        runner: a network with logits, float32 (batch, 3, h, w) to (batch, 19 or 20, h, w), or with the
            pre-processing fused in, uint8 (batch, h, w, 3); its output may be a label map, (batch, h, w) integers.
        image: (H, W, 3) uint8 RGB.
        lock: held while the network runs.
    Returns:
        (H, W) uint8 train ids; 255 is void.
    Raises:
        ModelError: the logits are not all finite, or the labels are none of Cityscapes'.
    """
    (name, spec), *_ = runner.inputs.items()
    height, width = _network_size(runner)
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    small = np.asarray(picture)
    feed = small[None] if spec.dtype == "uint8" else street_input(small, (height, width))
    with lock or contextlib.nullcontext():
        output = next(iter(runner.infer({name: feed}).values()))[0]
    labels = Image.fromarray(_labels(output)).resize((image.shape[1], image.shape[0]), Image.Resampling.NEAREST)
    return np.asarray(labels)


def _digest(path: Path) -> str:
    """A short name for what computes: the start of the SHA-256 of all its files."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    files += external_files(path) if path.suffix.lower() == ".onnx" else []
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            whole.update(hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()[:16]


def _check_network(runner: Runner) -> None:
    takes, gives = list(runner.inputs.values()), list(runner.outputs.values())
    good = len(takes) == len(gives) == 1 and len(takes[0].shape) == 4
    if good:
        dtype, axes = takes[0].dtype, takes[0].shape
        good = (dtype == "uint8" and axes[3] == 3) or (dtype == "float32" and axes[1] == 3)
        logits = len(gives[0].shape) == 4 and gives[0].shape[1] in (len(CITYSCAPES), len(CITYSCAPES) + 1)
        good &= logits or (len(gives[0].shape) == 3 and np.dtype(gives[0].dtype).kind in "iu")
    if not good:
        raise InputError(
            f"got {runner!r}, expected a network for Cityscapes' classes: float32 (batch, 3, h, w) or uint8 "
            "(batch, h, w, 3) in, logits (batch, 19 or 20, h, w) or labels (batch, h, w) out; see fcn_vgg16"
        )


def _network_size(runner: Runner) -> tuple[int, int]:
    spec = next(iter(runner.inputs.values()))
    height, width = spec.shape[1:3] if spec.dtype == "uint8" else spec.shape[2:4]
    return height or STREET_SIZE[0], width or STREET_SIZE[1]


def _labels(output: np.ndarray) -> NDArray[np.uint8]:
    """Turn the logits or labels of one image into (h, w) train ids, void as 255."""
    if output.ndim == 3:
        if not np.isfinite(output).all():
            bad = int(output.size - np.isfinite(output).sum())
            raise ModelError(
                f"the network answered NaN or infinity in {bad} of {output.size} logits; nothing is painted"
            )
        output = argmax_classes(output)
    labels = np.where(output == len(CITYSCAPES), VOID, output)
    if ((labels != VOID) & ((labels < 0) | (labels > len(CITYSCAPES)))).any():
        raise ModelError(f"the network answered the label {labels[labels != VOID].max()}, expected 0..19 or 255")
    return labels.astype(np.uint8)
