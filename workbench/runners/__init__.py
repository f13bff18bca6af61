"""Runners: one contract, whatever computes. `open_runner` picks one and says why."""

import os
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.runners.base import Runner, RunnerInfo, TensorSpec

__all__ = ["Runner", "RunnerInfo", "TensorSpec", "open_runner"]

BACKENDS = ("auto", "keras", "onnxruntime")


def open_runner(target: Any, backend: str = "auto") -> Runner:
    """Open a network for running; use it in a `with` block.

    Args:
        target: an `.onnx` file, a Keras file, a SavedModel folder, a `.pb`, a model name, or a Keras model.
        backend: `"auto"` (ONNX Runtime for `.onnx`, Keras or TensorFlow for the rest), `"onnxruntime"`, `"keras"`.
    Returns:
        The runner; its `reason` says why this backend was taken.
    Raises:
        InputError: no such backend, or one that cannot run this kind of file.
        BackendUnavailableError: the backend's package is missing.
        ModelError: the file cannot be opened.
    """
    if backend not in BACKENDS:
        raise InputError(f"got backend={backend!r}, expected one of {', '.join(BACKENDS)}")
    is_onnx = isinstance(target, (str, os.PathLike)) and Path(target).suffix.lower() == ".onnx"
    wanted = "onnxruntime" if is_onnx else "keras"
    if backend not in ("auto", wanted):
        kind = "an .onnx file" if is_onnx else "a Keras or TensorFlow model"
        raise InputError(f"got {kind} for backend={backend!r}; use backend={wanted!r}, or convert the model first")
    runner = _open_onnx(target) if is_onnx else _open_framework(target)
    runner.reason = f"{runner.info.name}: " + (
        "asked for by name"
        if backend != "auto"
        else "the backend for .onnx files on this machine"
        if is_onnx
        else "the framework that made the model"
    )
    return runner


def _open_onnx(target: str | os.PathLike[str]) -> Runner:
    from workbench.runners.onnxruntime_runner import OnnxRuntimeRunner

    return OnnxRuntimeRunner(target)


def _open_framework(target: Any) -> Runner:
    from workbench.export.keras_model import FrozenGraph
    from workbench.export.model_files import open_model
    from workbench.runners.keras_runner import FrozenGraphRunner, KerasRunner

    model = open_model(target)
    return FrozenGraphRunner(model) if isinstance(model, FrozenGraph) else KerasRunner(model)
