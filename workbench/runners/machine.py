"""What this machine has: a report for people, and what is missing."""

import os
import platform

from workbench.core.driver import probe_driver
from workbench.core.errors import BackendUnavailableError
from workbench.core.packages import load_tensorflow, package_version, processor_name, require_backend
from workbench.engine import tensorrt_api

PACKAGES = (
    "numpy", "pillow", "scikit-image", "matplotlib", "onnx", "onnxruntime", "tensorflow", "keras", "tf2onnx",
    "tf_keras", "segmentation-models", "keras2onnx", "jupyterlab", "tensorrt", "tensorrt-rtx", "tensorrt-lean",
    "cuda-python", "pycuda", "onnxruntime-gpu", "torch",
)  # fmt: skip


def environment() -> str:
    """Describe this machine in lines of text: Python, processor, the version of each package, GPU, and TensorRT."""
    lines = [
        f"{'Python':<20}{platform.python_version()} on {platform.system()} {platform.machine()}",
        f"{'processor':<20}{processor_name()}, {os.cpu_count()} logical cores",
    ]
    lines += [f"{package:<20}{package_version(package) or 'not installed'}" for package in PACKAGES]
    return "\n".join([*lines, *_engine_lines()])


def _engine_lines() -> list[str]:
    """Describe what can build and run engines here: the NVIDIA driver and each TensorRT that can be imported."""
    driver = probe_driver()
    lines = [f"{'NVIDIA driver':<20}{driver.problem or f'for CUDA {driver.cuda}'}"]
    lines += [f"{'GPU':<20}{gpu.name}, {gpu.memory_bytes >> 20} MiB, {gpu.capability}" for gpu in driver.gpus]
    flavours, broken = tensorrt_api.available_flavours()
    for flavour in flavours:
        if flavour.builds_ahead_of_time:
            use = f"builds here for {', '.join(flavour.targets)}"
        elif flavour.can_build:
            use = "builds on a GPU only" if driver.problem else "builds here"
        else:
            use = "runs plans, builds none"
        runs = "a GPU is needed to run" if driver.problem else tensorrt_api.unsupported_gpu(flavour, driver.gpus[0])
        lines.append(f"{'engines':<20}{flavour.title}: {use}; {runs or 'runs here'}")
    lines += [f"{'engines':<20}{sentence}" for sentence in broken]
    return lines if flavours or broken else [*lines, f"{'engines':<20}no TensorRT is installed"]


def diagnose() -> list[str]:
    """Try what the demonstration needs, and any TensorRT; return one sentence for each thing that is missing."""
    problems = []
    for module, extra in (("onnxruntime", "base"), ("tensorflow", "keras"), ("keras", "keras"), ("tf2onnx", "keras")):
        try:
            load_tensorflow() if module == "tensorflow" else require_backend(module, extra)
        except BackendUnavailableError as error:
            problems.append(str(error))
    return [*problems, *tensorrt_api.available_flavours()[1]]
