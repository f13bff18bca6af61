"""The errors this package raises: each message says what was got, what was expected and what to do next."""

from collections.abc import Iterable

LONGEST = 640
"""Letters of a sentence: names and other packages' messages in it may be of any length."""


class WorkbenchError(Exception):
    """Base of every error that is the caller's to mend; the command line prints it as one sentence.

    Its text is one line without control characters, and without the middle of what would be too long.
    """

    def __str__(self) -> str:
        text = "".join(letter if letter.isprintable() else " " for letter in super().__str__()).strip()
        return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 3 :]}"


class InputError(WorkbenchError, ValueError):
    """An argument or an array has the wrong shape, dtype, range or value."""


class FeedError(InputError):
    """A runner was fed a tensor that its network does not take."""


class ImageError(InputError):
    """A file is not an image that can be read."""


class ModelError(InputError):
    """A model file or model name cannot be opened as a network."""


class BackendUnavailableError(WorkbenchError, ImportError):
    """An optional package, library or driver is missing."""


class ExportError(WorkbenchError, RuntimeError):
    """A network could not be converted."""


class TimeLimitError(WorkbenchError, TimeoutError):
    """What was asked for took longer than its time limit, and was ended."""


class AnswersDifferError(ExportError):
    """What was written does not answer like its source."""


class OutputError(WorkbenchError, OSError):
    """A result could not be written."""


class EngineBuildError(WorkbenchError, RuntimeError):
    """TensorRT did not build an engine; `log` has the builder's own lines, oldest first."""

    def __init__(self, message: str, log: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.log = tuple(log)


class EngineLoadError(WorkbenchError, RuntimeError):
    """A plan does not load here: damaged, or built for another flavour, version or GPU."""


class DriverError(BackendUnavailableError):
    """TensorRT is installed, but this machine has no usable NVIDIA driver or GPU."""


class DeviceError(WorkbenchError, RuntimeError):
    """A call to the GPU failed: memory, a copy, a stream or the execution of an engine."""


def first_line(error: BaseException) -> str:
    """The first line of a message, or the error's name where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
