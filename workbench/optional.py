"""The one door to heavy, optional packages."""

import importlib
from types import ModuleType

from workbench.errors import BackendUnavailableError


def require_backend(name: str, extra: str) -> ModuleType:
    """Import an optional package, or say in one sentence how to install it.

    Args:
        name: the module to import, such as `"tensorflow"`.
        extra: the extra of this project that installs it, such as `"keras"`.
    Returns:
        The imported module.
    Raises:
        BackendUnavailableError: the module, or a library it needs, is not there.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(
            f"{name} cannot be imported ({error}); in the project's folder run: pip install -e '.[{extra}]'"
        ) from error
