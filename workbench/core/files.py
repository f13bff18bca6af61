"""Write files whole or not at all."""

import contextlib
import errno
import os
import tempfile
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from workbench.core.errors import InputError, OutputError

_UMASK = threading.Lock()


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any error it is removed.

    It has the same suffix and a unique name: of two processes that write one target, the last to finish wins, whole.
    OutputError where the folder does not exist, cannot be written to, or the disk is full.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"got the directory {target} as an output file; give the path of a file")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise OutputError(_cannot_write(target, error)) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        if isinstance(error, OutputError) or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        raise OutputError(_cannot_write(target, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder (and its parents) for results and return it; OutputError where it cannot be, or is a file."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(_cannot_write(folder, error)) from error
    return folder


def _cannot_write(target: Path, error: OSError) -> str:
    if not target.parent.is_dir():
        return f"cannot write {target}: the folder {target.parent} does not exist; create it first"
    return f"cannot write {target}: {error.strerror or error}; free some space or choose another folder"


def _umask() -> int:
    with _UMASK:  # two threads here at once would leave 0 behind
        mask = os.umask(0)
        os.umask(mask)
    return mask


def cache_folder() -> Path:
    """Return the folder of cached engines: in `$WORKBENCH_CACHE`, else in the user's cache folder."""
    chosen = os.environ.get("WORKBENCH_CACHE")
    if chosen:
        return Path(chosen) / "engines"
    user = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    return Path(user or Path.home() / ".cache") / "workbench" / "engines"


def data_file(name: str) -> Path:
    """Find a file or folder of `data/`: the repository's where there is one, else the installed package's.

    The name is such as `"recordings/h200_precision.jsonl"`; the InputError where there is none names both places.
    """
    beside = Path(__file__).resolve().parents[2] / "data" / name
    if beside.exists():
        return beside
    try:
        installed = Path(str(resources.files("workbench.data"))) / name
    except ModuleNotFoundError:  # a plain copy of the package without its data
        installed = beside
    if not installed.exists():
        places = " and ".join(dict.fromkeys(str(place) for place in (beside, installed)))
        raise InputError(
            f"{name} is neither in the repository nor in the installed package (looked for {places}); "
            "install the whole project, or copy its folder data/ beside workbench/"
        )
    return installed
