"""The one door to tensorrt, tensorrt_rtx and tensorrt_lean.

What a flavour can do is read from the features of its module, never from its version: RTX counts from 1.
The driver is asked before anything native that crashes without one.
"""

import importlib
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.core.contract import BACKEND_NAMES
from workbench.core.driver import Gpu, probe_driver, require_gpu
from workbench.core.errors import BackendUnavailableError, DriverError, InputError, first_line

if TYPE_CHECKING:
    import trt_types as trt  # the types of one flavour, from typings/; see tests/engine/test_tensorrt_stubs.py

FLAVOURS = ("tensorrt", "tensorrt_rtx", "tensorrt_lean")

_EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx", "tensorrt_lean": "lean"}
SOURCE_POSITION = re.compile(r"\s+In \w+ at /\S+?:\d+(?=\))")  # a place in TensorRT's own source
_DTYPES = {name: name.lower() for name in ("INT8", "INT32", "INT64", "UINT8", "BOOL", "INT4")}
_DTYPES |= {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
_DTYPES |= {"FP8": "float8_e4m3fn", "FP4": "float4_e2m1fn", "E8M0": "float8_e8m0fnu"}
_import_lock = threading.Lock()


@dataclass(frozen=True)
class Flavour:
    """One member of the TensorRT family that can be imported here, by its name of `FLAVOURS`."""

    name: str
    module: "trt.Module"
    version: str

    @property
    def title(self) -> str:
        """The name people see, such as `TensorRT-RTX 1.7.1.116`."""
        return f"{BACKEND_NAMES[self.name]} {self.version}"

    @property
    def can_build(self) -> bool:
        """Whether it has a builder and a parser; the lean runtime has not."""
        return hasattr(self.module, "Builder") and hasattr(self.module, "OnnxParser")

    @property
    def builds_ahead_of_time(self) -> bool:
        """Whether it builds for GPUs that are not here, on a machine without any."""
        return self.can_build and hasattr(self.module, "ComputeCapability")

    @property
    def targets(self) -> tuple[str, ...]:
        """GPU generations it builds for ahead of time, such as `"sm89"`; empty where it cannot."""
        if not self.builds_ahead_of_time:
            return ()
        return tuple(name.lower() for name in self.module.ComputeCapability.__members__ if name.startswith("SM"))


def open_flavour(name: str | None = None, *, for_building: bool = False) -> Flavour:
    """Import one of `FLAVOURS`, the first that can be imported when None; `for_building` asks for one with a builder.

    InputError for an unknown name; BackendUnavailableError where it, its libraries or its builder are not here.
    """
    if name is not None and name not in FLAVOURS:
        raise InputError(f"got the flavour {name!r}, expected one of {', '.join(FLAVOURS)}")
    reasons = []
    for candidate in (name,) if name else FLAVOURS:
        try:
            flavour = _import_flavour(candidate)
            if flavour.can_build or not for_building:
                return flavour
            help_text = _install("tensorrt_rtx")
            raise BackendUnavailableError(f"{flavour.title} has no builder; for one that has, {help_text}")
        except BackendUnavailableError as error:
            reasons.append(error)
    if len(reasons) == 1:
        raise reasons[0]
    head = f"no TensorRT flavour that can {'build' if for_building else 'run'} engines is here"
    broken = [str(reason) for reason in reasons if "not installed" not in str(reason)]
    if broken:
        raise BackendUnavailableError(f"{head}: {'; '.join(broken)}")
    raise BackendUnavailableError(
        f"{head}; {_install('tensorrt_rtx')} (builds anywhere, runs on RTX GPUs), or with '.[tensorrt]' (NVIDIA GPUs)"
    )


def available_flavours() -> tuple[list[Flavour], list[str]]:
    """Import every flavour there is; return those that work, and one sentence for each installed one that does not."""
    found, broken = [], []
    for name in FLAVOURS:
        try:
            found.append(_import_flavour(name))
        except BackendUnavailableError as error:
            if "not installed" not in str(error):
                broken.append(str(error))
    return found, broken


def unsupported_gpu(flavour: Flavour, gpu: Gpu) -> str:
    """Say in one sentence why a flavour cannot run on a GPU; an empty text where nothing speaks against it."""
    digits = [target.removeprefix("sm") for target in flavour.targets]
    known = sorted((int(number[:-1]), int(number[-1])) for number in digits)
    if not known or gpu.compute_capability in known or gpu.compute_capability > known[-1]:
        return ""
    listed = ", ".join(f"{major}.{minor}" for major, minor in known)
    return (
        f"{flavour.title} does not support this GPU ({gpu.name}, compute capability {gpu.capability}), "
        f"only {listed} and newer; for the full TensorRT, {_install('tensorrt')}"
    )


class CollectingLogger:
    """Keeps what TensorRT says; `make_logger` joins it with a flavour's own logger class.

    Its `lines` are (severity, text) in the order they came, such as `("ERROR", "...")`; verbose ones are not kept.
    """

    def __init__(
        self,
        drop_driver_noise: bool = False,
        sink: Callable[[str, str], None] | None = None,
        verbose: Callable[[str], None] | None = None,
    ) -> None:
        self.lines: list[tuple[str, str]] = []
        self._drop_driver_noise = drop_driver_noise
        self._sink = sink
        self._verbose = verbose

    def log(self, severity: Any, msg: str) -> None:
        """Keep one line; TensorRT swallows what is raised here, so nothing is."""
        name = getattr(severity, "name", str(severity))
        if name == "VERBOSE":
            if self._verbose is not None:
                self._verbose(msg)
            return
        # TensorRT-RTX says this about every build on a machine without a driver.
        noise = self._drop_driver_noise and "catchCudaError" in msg and "cudaError 35" in msg
        if not noise:
            self.lines.append((name, msg.strip()))
            if self._sink is not None:
                self._sink(name, msg.strip())

    @property
    def texts(self) -> tuple[str, ...]:
        """The lines as text, severity first."""
        return tuple(f"{severity}: {text}" for severity, text in self.lines)

    def reasons(self, count: int = 2) -> str:
        """The last errors in one line; an empty text where there was none."""
        return summarise_log(self.texts, count)


def make_logger(
    flavour: Flavour,
    sink: Callable[[str, str], None] | None = None,
    verbose: Callable[[str], None] | None = None,
) -> Any:
    """Make a `CollectingLogger` that is also the flavour's `ILogger`; keep it as long as what was made with it.

    `sink` is also called with severity and text of each line that is kept, `verbose` with each line that is not.
    """
    base: Any = flavour.module.ILogger

    class Logger(CollectingLogger, base):
        def __init__(self) -> None:
            base.__init__(self)  # the bindings do not take an object that they did not set up
            CollectingLogger.__init__(self, bool(probe_driver().problem), sink, verbose)

    return Logger()


def make_runtime(flavour: Flavour, logger: Any) -> "trt.Runtime":
    """Make the flavour's `Runtime`, after asking the driver, without which the lean one crashes: DriverError."""
    require_gpu()
    words, failure = "", None
    try:
        runtime = flavour.module.Runtime(logger)
        if runtime is not None:
            return runtime
    except (TypeError, RuntimeError) as error:  # pybind's word for a null pointer
        words, failure = first_line(error), error
    reason = logger.reasons() or words
    raise DriverError(f"{flavour.title} cannot start on this machine: {reason}; update the driver") from failure


def dtype_name(data_type: Any) -> str:
    """Return the NumPy name of a flavour's `DataType`, such as `"float32"`; InputError where NumPy has none."""
    name = getattr(data_type, "name", str(data_type))
    if name not in _DTYPES:
        raise InputError(f"the tensor type {name} has no NumPy name; expected one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def summarise_log(lines: Iterable[str], count: int = 2) -> str:
    """Return the last errors of a log in one line, without TensorRT's source positions.

    >>> summarise_log(["INFO: hello", "ERROR: IBuilder::build: Error Code 4: API Usage Error (no profile.)"])
    'API Usage Error (no profile.)'
    """
    found = []
    for line in lines:
        if line.startswith(("ERROR: ", "INTERNAL_ERROR: ")):
            text = SOURCE_POSITION.sub("", " ".join(line.partition(": ")[2].split()))
            # `IBuilder::build: Error Code 4: ` and the like is not for people
            _, mark, rest = text.partition("Error Code ")
            found.append((mark and rest.partition(": ")[2]) or text)
    return "; ".join(list(dict.fromkeys(found))[-count:])


def _import_flavour(name: str) -> Flavour:
    title, extra = BACKEND_NAMES[name], _install(name)
    # The lean bindings can be installed without the package that gives them their short name.
    for module_name in (name, f"{name}_bindings") if name == "tensorrt_lean" else (name,):
        try:
            with _import_lock:
                module: Any = importlib.import_module(module_name)
            return Flavour(name, module, str(getattr(module, "__version__", "unknown")))
        except (ImportError, OSError) as error:
            if not isinstance(error, ModuleNotFoundError) or error.name != module_name:
                raise BackendUnavailableError(
                    f"{title} is installed, but a library it needs cannot be loaded ({first_line(error)}); "
                    f"to install it again, {extra}"
                ) from error
    raise BackendUnavailableError(f"{title} is not installed; {extra}")


def _install(name: str) -> str:
    return f"in the project's folder run: pip install -e '.[{_EXTRAS[name]}]'"
