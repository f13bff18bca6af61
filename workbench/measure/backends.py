"""What a sweep may ask a network from on this machine, and what builds engines here."""

from workbench.core.driver import probe_driver
from workbench.core.errors import BackendUnavailableError
from workbench.core.packages import package_version, require_backend
from workbench.engine.tensorrt_api import Flavour, available_flavours, unsupported_gpu
from workbench.measure.row import versions_text
from workbench.onnx_graph.session import prepare_cuda

DEVICES = {"onnxruntime": "cpu", "onnxruntime-cuda": "cuda", "keras": "cpu", "tensorrt": "cuda"}
"""The backends, and where each one's memory is measured."""


def best_backend() -> str:
    """TensorRT where it can run engines, else ONNX Runtime on the GPU, else on the CPU."""
    if find_builder(running=True):
        return "tensorrt"
    try:
        if probe_driver().gpus:
            prepare_cuda(require_backend("onnxruntime", "dev"))
            return "onnxruntime-cuda"
    except BackendUnavailableError:
        pass
    return "onnxruntime"


def find_builder(*, running: bool = False) -> Flavour | None:
    """What builds engines here, or None: one whose engines run here, else (not `running`) one that builds ahead."""
    builders = [flavour for flavour in available_flavours()[0] if flavour.can_build]
    gpus = probe_driver().gpus
    runs = [flavour for flavour in builders if gpus and not unsupported_gpu(flavour, gpus[0])]
    ahead = [] if running else [flavour for flavour in builders if flavour.builds_ahead_of_time]
    return next(iter([*runs, *ahead]), None)


def find_engines() -> Flavour:
    """What builds engines that run here; BackendUnavailableError where nothing does."""
    found = find_builder(running=True)
    if found is None:
        problem = probe_driver().problem or "none with a builder is installed"
        raise BackendUnavailableError(f"no TensorRT runs here ({problem}); use the backend onnxruntime")
    return found


def backend_versions(backend: str) -> str:
    """The versions of Python, NumPy and the packages that a backend takes."""
    packages = {"keras": ("tensorflow", "keras"), "tensorrt": ("onnx", "tensorrt", "tensorrt-rtx")}
    names = packages.get(backend, ("onnx", "onnxruntime", "onnxruntime-gpu"))
    return versions_text(**{name: package_version(name) for name in names})
