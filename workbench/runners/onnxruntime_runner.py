"""Run an ONNX file with ONNX Runtime, in full float32."""

import contextlib
import importlib.util
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import BackendUnavailableError, InputError, ModelError
from workbench.export.onnx_graph import check
from workbench.optional import require_backend
from workbench.runners.base import Runner, RunnerInfo
from workbench.tensorrt_api import require_gpu


class OnnxRuntimeRunner(Runner):
    """ONNX Runtime on the CPU, or on an NVIDIA GPU with TF32 off.

    Args:
        path: the `.onnx` file.
        threads: threads inside one operator; 0 lets ONNX Runtime decide.
        device: `"cpu"`, or `"cuda"`, which never falls back to the CPU as a whole.
    Raises:
        ModelError: the file is not a valid ONNX model, or ONNX Runtime cannot run it.
        BackendUnavailableError: `"cuda"` without the GPU build of ONNX Runtime, or without its libraries.
        DriverError: `"cuda"` without an NVIDIA driver or GPU.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 0, device: str = "cpu") -> None:
        if device not in ("cpu", "cuda"):
            raise InputError(f"got device={device!r}, expected 'cpu' or 'cuda'")
        summary = check(path)
        runtime = require_backend("onnxruntime", "dev")
        where = prepare_cuda(runtime) if device == "cuda" else "CPU"
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session: Any = runtime.InferenceSession(str(Path(path)), options, providers=providers(device))
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


def providers(device: str) -> list[Any]:
    """Return ONNX Runtime's providers for a device; float32 means float32, so TF32 is off on a GPU."""
    cpu = "CPUExecutionProvider"
    return [("CUDAExecutionProvider", {"use_tf32": "0"}), cpu] if device == "cuda" else [cpu]


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
