"""What this machine has: a report for people, and a quiet TensorFlow that leaves GPU memory to others."""

import contextlib
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType

from workbench.errors import BackendUnavailableError
from workbench.optional import require_backend

PACKAGES = (
    "numpy",
    "pillow",
    "scikit-image",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "tensorflow",
    "keras",
    "tf2onnx",
    "tf_keras",
    "segmentation-models",
    "keras2onnx",
    "jupyterlab",
    "tensorrt",
    "tensorrt-rtx",
    "tensorrt-lean",
    "cuda-python",
    "pycuda",
    "onnxruntime-gpu",
    "torch",
)


def load_keras() -> ModuleType:
    """Import Keras 3 on TensorFlow without TensorFlow's start-up messages.

    GPU memory is taken as it is needed, not all at once, so that TensorRT can live beside it.

    Returns:
        The `keras` module.
    Raises:
        BackendUnavailableError: TensorFlow or Keras is not installed.
    """
    load_tensorflow()
    return require_backend("keras", "keras")


def load_tf_keras() -> ModuleType:
    """Import tf_keras, the Keras 2 of older models, without TensorFlow's start-up messages.

    Returns:
        The `tf_keras` module; it lives beside Keras 3 in one process.
    Raises:
        BackendUnavailableError: TensorFlow or tf_keras is not installed.
    """
    load_tensorflow()
    return require_backend("tf_keras", "classic")


def load_tensorflow() -> ModuleType:
    """Import TensorFlow without its start-up messages and with GPU memory growth.

    Raises:
        BackendUnavailableError: TensorFlow is not installed.
    """
    if "tensorflow" in sys.modules:
        return require_backend("tensorflow", "keras")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _quiet_stderr():
        tensorflow = require_backend("tensorflow", "keras")
        for device in tensorflow.config.list_physical_devices("GPU"):
            with contextlib.suppress(RuntimeError):  # someone used the GPU before us: their setting stands
                tensorflow.config.experimental.set_memory_growth(device, True)
    return tensorflow


def report() -> str:
    """Describe this machine in a few lines: Python, processor, and the version of each package.

    Returns:
        Lines of text.
    """
    lines = [
        f"{'Python':<20}{platform.python_version()} on {platform.system()} {platform.machine()}",
        f"{'processor':<20}{processor_name()}, {os.cpu_count()} logical cores",
    ]
    for package in PACKAGES:
        lines.append(f"{package:<20}{package_version(package) or 'not installed'}")
    return "\n".join([*lines, *engine_lines()])


def engine_lines() -> list[str]:
    """Describe what can build and run engines here: the NVIDIA driver and each TensorRT that can be imported."""
    from workbench import tensorrt_api

    driver = tensorrt_api.probe_driver()
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


def package_version(package: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor_name() -> str:
    """Return the processor's model name where the system tells it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def diagnose() -> list[str]:
    """Try what the demonstration needs, and any TensorRT; return one sentence for each thing that is missing."""
    from workbench import tensorrt_api

    problems = []
    for module, extra in (
        ("onnxruntime", "base"),
        ("tensorflow", "keras"),
        ("keras", "keras"),
        ("tf2onnx", "keras"),
    ):
        try:
            load_tensorflow() if module == "tensorflow" else require_backend(module, extra)
        except BackendUnavailableError as error:
            problems.append(str(error))
    return [*problems, *tensorrt_api.available_flavours()[1]]


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hold back what native code writes to standard error; show it if the import fails."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
