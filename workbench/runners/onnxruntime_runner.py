"""Run an ONNX file with ONNX Runtime, in the types that the file names: its float32 is full float32, not TF32."""

import contextlib
import importlib.util
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from workbench.errors import BackendUnavailableError, InputError, ModelError
from workbench.export.onnx_graph import check, read
from workbench.optional import require_backend
from workbench.runners.base import Runner, RunnerInfo
from workbench.tensorrt_api import require_gpu

FLOAT8 = frozenset({onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2})
"""At full optimisation ONNX Runtime 1.31 refuses these types or answers wrongly; at the basic one it is right."""


class OnnxRuntimeRunner(Runner):
    """ONNX Runtime on the CPU, or on an NVIDIA GPU.

    Args:
        path: the `.onnx` file.
        threads: threads inside one operator; 0 lets ONNX Runtime decide.
        device: `"cpu"`, or `"cuda"`, which never falls back to the CPU as a whole.
        tf32: round the inputs of float32's heavy layers to TF32; `"cuda"` only.
    Raises:
        ModelError: the file is not a valid ONNX model, or ONNX Runtime cannot run it.
        BackendUnavailableError: `"cuda"` without the GPU build of ONNX Runtime, or without its libraries.
        DriverError: `"cuda"` without an NVIDIA driver or GPU.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, threads: int = 0, device: str = "cpu", tf32: bool = False
    ) -> None:
        if device not in ("cpu", "cuda") or (tf32 and device == "cpu"):
            raise InputError(f"got device={device!r} and tf32={tf32}, expected 'cpu', or 'cuda' with or without TF32")
        summary = check(path)
        runtime = require_backend("onnxruntime", "dev")
        where = prepare_cuda(runtime) if device == "cuda" else "CPU"
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        types = weight_types(path)
        if types & FLOAT8:
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        chosen = providers(device, tf32=tf32 or onnx.TensorProto.FLOAT16 in types)
        try:
            self._session: Any = runtime.InferenceSession(str(Path(path)), options, providers=chosen)
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise ModelError(f"ONNX Runtime cannot run {path}: {str(error).splitlines()[0]}") from error
        if device == "cuda" and "CUDAExecutionProvider" not in self._session.get_providers():
            raise BackendUnavailableError(
                "ONNX Runtime fell back to the CPU: the libraries of its CUDA provider do not load; install the CUDA "
                "and cuDNN that it was built for, with pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
        info = RunnerInfo("onnxruntime", runtime.__version__, where)
        super().__init__(info, {s.name: s for s in summary.inputs}, {s.name: s for s in summary.outputs})

    def _infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = list(self.outputs)
        return dict(zip(names, self._session.run(names, feed), strict=True))

    def _close(self) -> None:
        self._session = None


def weight_types(path: str | os.PathLike[str]) -> frozenset[int]:
    """Return the ONNX types of a network's weights."""
    return frozenset(tensor.data_type for tensor in read(path).graph.initializer)


def providers(device: str, *, tf32: bool = False) -> list[Any]:
    """Return ONNX Runtime's providers for a device.

    Float32 means float32, so TF32 is off on a GPU unless it is asked for. With it off, ONNX Runtime 1.31 keeps float16
    off the tensor cores too (20.6 instead of 2.6 ms for FCN-8s on an H200), so a network with float16 weights asks.
    """
    cpu = "CPUExecutionProvider"
    return [("CUDAExecutionProvider", {"use_tf32": str(int(tf32))}), cpu] if device == "cuda" else [cpu]


def prepare_cuda(runtime: Any) -> str:
    """Load the CUDA libraries that other packages brought, and return the name of the GPU for `RunnerInfo`.

    Args:
        runtime: the module `onnxruntime`.
    Raises:
        BackendUnavailableError: this ONNX Runtime is the build for the CPU.
        DriverError: no NVIDIA driver or GPU.
    """
    _load_cuda_libraries(runtime)
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        raise BackendUnavailableError(
            f"ONNX Runtime {runtime.__version__} is the build for the CPU; run: pip uninstall -y onnxruntime, then in "
            "the project's folder: pip install -e '.[cuda]'"
        )
    return require_gpu().name


def _load_cuda_libraries(runtime: Any) -> None:
    """Load CUDA and cuDNN from the packages that PyTorch or JAX brought, also where they lie in another folder."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it misses; the session then says it in an error
        for library in sorted(library for folder in folders for library in Path(folder).glob("cu*/lib")):
            runtime.preload_dlls(directory=str(library))
        runtime.preload_dlls()
