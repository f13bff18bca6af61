"""The errors this package raises: each message says what was got, what was expected and what to do next."""


class WorkbenchError(Exception):
    """Base of every error that is the caller's to mend; the command line prints it as one sentence."""


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


class OutputError(WorkbenchError, OSError):
    """A result could not be written."""
