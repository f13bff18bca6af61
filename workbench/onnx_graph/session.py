"""Open ONNX Runtime: the one place that makes an `InferenceSession`."""

import contextlib
import importlib.util
import io
import os
from pathlib import Path
from typing import Any

import onnx

from workbench.core.driver import require_gpu
from workbench.core.errors import BackendUnavailableError, ExportError, ModelError
from workbench.core.packages import require_backend
from workbench.onnx_graph.edit import LARGEST_FILE
from workbench.onnx_graph.file import read


def open_session(model: onnx.ModelProto) -> Any:
    """Open a network in ONNX Runtime with its own optimisations off: each node runs as it is written.

    Raises:
        ExportError: a network of more than 2 GB.
        ModelError: ONNX Runtime cannot run it.
    """
    if model.ByteSize() > LARGEST_FILE:
        raise ExportError(f"the network has {model.ByteSize():,} bytes, more than the 2 GB that one file can hold")
    runtime = require_backend("onnxruntime", "dev")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no public base
        raise ModelError(
            f"ONNX Runtime cannot run the network, so no rewrite can be proved: {str(error).splitlines()[0]}"
        ) from error


FLOAT8 = frozenset({onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2})
"""At full optimisation ONNX Runtime 1.31 refuses these types or answers wrongly; at the basic one it is right."""


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
