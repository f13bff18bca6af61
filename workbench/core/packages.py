"""The one door to heavy, optional packages."""

import contextlib
import importlib
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType

from workbench.core.errors import BackendUnavailableError


def require_backend(name: str, extra: str) -> ModuleType:
    """Import an optional package, or say in a BackendUnavailableError which extra of this project installs it."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # native code was being loaded, and says that it failed
            raise error.__cause__ from None
        raise BackendUnavailableError(
            f"{name} cannot be imported ({error}); in the project's folder run: pip install -e '.[{extra}]'"
        ) from error


def load_keras() -> ModuleType:
    """Import Keras 3 on TensorFlow; BackendUnavailableError where one is missing, or Keras is on another framework."""
    load_tensorflow()
    _take_tensorflow()
    keras = require_backend("keras", "keras")
    backend = keras.config.backend()
    if backend != "tensorflow":
        raise BackendUnavailableError(
            f"Keras was imported with KERAS_BACKEND={backend}, and models are opened and converted through TensorFlow; "
            "set KERAS_BACKEND=tensorflow and restart Python (the kernel)"
        )
    return keras


def load_tf_keras() -> ModuleType:
    """Import tf_keras, the Keras 2 of older models, which lives beside Keras 3 in one process."""
    load_tensorflow()
    return require_backend("tf_keras", "classic")


def load_tensorflow() -> ModuleType:
    """Import TensorFlow without its start-up messages, or say that it is not installed.

    GPU memory is taken as it is needed, not all at once, so that TensorRT can live beside it.
    """
    if "tensorflow" in sys.modules:
        return require_backend("tensorflow", "keras")
    _take_tensorflow()  # TensorFlow imports Keras
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _quiet_stderr():
        tensorflow = require_backend("tensorflow", "keras")
        for device in tensorflow.config.list_physical_devices("GPU"):
            with contextlib.suppress(RuntimeError):  # someone used the GPU before us: their setting stands
                tensorflow.config.experimental.set_memory_growth(device, True)
    return tensorflow


def _take_tensorflow() -> None:
    """Let Keras, where it is not imported yet, compute with TensorFlow, whatever the environment or its file says."""
    if "keras" in sys.modules:
        return
    wanted = os.environ.get("KERAS_BACKEND") or "tensorflow"
    os.environ["KERAS_BACKEND"] = "tensorflow"
    if wanted != "tensorflow":
        warnings.warn(
            f"KERAS_BACKEND={wanted} stands in the environment, and models are opened and converted through "
            "TensorFlow, so this process takes KERAS_BACKEND=tensorflow",
            stacklevel=3,
        )


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
