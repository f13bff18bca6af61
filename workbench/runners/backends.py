"""Runners: one contract, whatever computes. `open_runner` picks one and says why."""

import os
from pathlib import Path
from typing import Any

from workbench.core.contract import Runner
from workbench.core.errors import InputError
from workbench.models.torch_file import TORCH_SUFFIXES, is_program, is_torch
from workbench.runners.torch_runner import TorchRunner

BACKENDS = ("auto", "keras", "onnxruntime", "reference", "tensorrt", "torch")
PLAN_SUFFIXES = (".plan", ".engine")

# For each backend: what it runs, and why it is taken when nobody asked for another.
_KINDS = {
    "onnxruntime": ("an .onnx file", "the backend for .onnx files on this machine"),
    "tensorrt": ("a TensorRT plan", "the runtime that the plan was built for"),
    "keras": ("a Keras or TensorFlow model", "the framework that made the model"),
    "torch": ("a PyTorch program", "the framework that made the model"),
}


def open_runner(target: Any, backend: str = "auto") -> Runner:
    """Open a network for running; use it in a `with` block.

    Args:
        target: an `.onnx` file, a TensorRT `.plan`, a Keras file, a SavedModel folder, a `.pb`, a PyTorch `.pt2`, a
            model name, a Keras model, or a program of `torch.export`. A `torch.nn.Module` needs an example as well:
            `TorchRunner(model, example)`.
        backend: `"auto"` (TensorRT for a plan, ONNX Runtime for `.onnx`, PyTorch for `.pt2`, Keras or TensorFlow for
            the rest), `"onnxruntime"`, `"reference"` (ONNX's own definition in NumPy, slow), `"tensorrt"`, `"keras"`,
            `"torch"`.
    Returns:
        The runner; its `reason` says why this backend was taken.
    Raises:
        InputError: no such backend, or one that cannot run this kind of file.
        BackendUnavailableError: the backend's package, or the GPU it needs, is missing.
        EngineLoadError: the plan is damaged, or was built for another machine.
        ModelError: the file cannot be opened.
    """
    if backend not in BACKENDS:
        raise InputError(f"got backend={backend!r}, expected one of {', '.join(BACKENDS)}")
    wanted = backend_for(target)
    kind, why = _KINDS[wanted]
    if backend == "reference" and wanted == "onnxruntime":
        wanted = backend
    if backend not in ("auto", wanted):
        raise InputError(f"got {kind} for backend={backend!r}; use backend={wanted!r}, or convert the model first")
    runner = _open(wanted, target)
    runner.reason = f"{runner.info.name}: {why if backend == 'auto' else 'asked for by name'}"
    return runner


def backend_for(target: Any) -> str:
    """Tell by the file's suffix, or by the kind of the object, which backend runs it."""
    suffix = Path(target).suffix.lower() if isinstance(target, str | os.PathLike) else ""
    if suffix in PLAN_SUFFIXES:
        return "tensorrt"
    if suffix in TORCH_SUFFIXES or is_torch(target):
        return "torch"
    return "onnxruntime" if suffix == ".onnx" else "keras"


def _open(backend: str, target: Any) -> Runner:
    """Import one backend and no other."""
    if backend == "onnxruntime":
        from workbench.runners.onnxruntime_runner import OnnxRuntimeRunner

        return OnnxRuntimeRunner(target)
    if backend == "reference":
        from workbench.runners.reference_runner import ReferenceRunner

        return ReferenceRunner(target)
    if backend == "tensorrt":
        from workbench.runners.tensorrt_runner import TensorRTRunner

        return TensorRTRunner(target)
    from workbench.models.files import open_model

    model = open_model(target)
    if backend == "torch":
        if not is_program(model):
            raise InputError("a PyTorch network does not say what it takes; open it with TorchRunner(model, example)")
        return TorchRunner(model)
    from workbench.models.freezing import FrozenGraph
    from workbench.runners.keras_runner import FrozenGraphRunner, KerasRunner

    return FrozenGraphRunner(model) if isinstance(model, FrozenGraph) else KerasRunner(model)
