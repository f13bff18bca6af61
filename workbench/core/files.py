"""Write files whole or not at all and never over somebody else's; read only what is a file, of a size that fits."""

import contextlib
import contextvars
import errno
import hashlib
import json
import math
import mmap
import os
import re
import secrets
import stat
import threading
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import IO, Any

from workbench.core.errors import InputError, OutputError, WorkbenchError

PathLike = str | os.PathLike[str]

_UMASK = threading.Lock()
_OVERWRITE = contextvars.ContextVar("overwrite", default=False)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS, errno.ENAMETOOLONG)

# How a file of this package starts; the group is its kind.
_STARTS = re.compile(
    rb'\{\s*"format": "(workbench \w+)|(workbench demonstration)\n'
    rb"|\x89PNG.{,2000}?(Software\0workbench|Comment\0workbench segment)|\xff\xd8.{,2000}?(workbench segment): ",
    re.DOTALL,
)
# What is added to the formats that are messages of protobuf, whose end may be continued: an entry of ONNX's
# metadata_props, and a consumer that may not read the graph, of a number that TensorFlow never reaches.
_ENTRY = b"\x0a\x09workbench\x12\x07written"
_CONSUMER = b"\x1a\x05\x83\xee\xc9\xb9\x07"
# By suffix: the first byte of the format, what precedes the mark, and the mark.
_MARKS = {".onnx": (b"\x08", b"\x72\x14", _ENTRY), ".pb": (b"\x0a", b"\x22\x07", _CONSUMER)}


@contextlib.contextmanager
def atomic_path(path: PathLike, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any error it is removed.

    It has the same suffix and a unique name: of two processes that write one target, the last to finish wins, whole.
    An ONNX or `.pb` file gets a mark that it is ours. A file that is there is replaced where this package wrote it and
    it is of the same kind, or where `overwriting` or `replace` (for files that the user never names) allow it.
    OutputError where it is not, or where the folder does not exist, cannot be written to, or the disk is full.
    """
    target = Path(path)
    replace = replace or _OVERWRITE.get()
    with overwriting(replace):
        check_outputs([target])
    temporary = target.with_name(f".{target.stem[:40]}-{secrets.token_hex(8)}{target.suffix}")
    try:  # from before the file is there: Ctrl-C comes at any moment
        try:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except OSError as error:
            raise OutputError(_cannot_write(target, error)) from error
        yield temporary
        _mark(temporary)
        if not replace and _is_foreign(target, kind_of(temporary)):
            raise OutputError(_not_ours(target))
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        if isinstance(error, OutputError) or error.errno not in _FULL:
            raise
        raise OutputError(_cannot_write(target, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def overwriting(allowed: bool = True) -> Iterator[None]:
    """Let files that this package did not write be replaced too, in a `with` block; the inputs of a call never are.

    `allowed` is False to forbid it again inside.
    """
    token = _OVERWRITE.set(allowed)
    try:
        yield
    finally:
        _OVERWRITE.reset(token)


def may_overwrite() -> bool:
    """Whether this is in a block of `overwriting`."""
    return _OVERWRITE.get()


def check_outputs(outputs: Iterable[Any], inputs: Iterable[Any] = (), folders: Iterable[Any] = ()) -> None:
    """Refuse, before any work, what must not or cannot be written.

    Args:
        outputs: paths of the files that a call writes.
        inputs: paths of what it reads.
        folders: paths of the folders that it fills.
            What is no path, such as None or a model, is left out everywhere.
    Raises:
        OutputError: an output is an input or part of one, is named twice, was not written by this package, is a folder,
            device or pipe, or cannot be written; a folder of results is an input or holds one.
    """
    read, written = _paths(inputs), list[Path]()
    for target in _paths(outputs):
        check_place(target)
        for other in read:
            if _same(target, other) or _holds(other, target):
                raise OutputError(f"got {target} as an output, which is or belongs to the input {other}; {_CHOOSE}")
        if any(_same(target, other) for other in written):
            raise OutputError(f"got {target} for two outputs of one call; {_CHOOSE}")
        if not _OVERWRITE.get() and _is_foreign(target):
            raise OutputError(_not_ours(target))
        written.append(target)
    for folder in _paths(folders):
        for other in read:
            if _same(folder, other) or (other.is_file() and _same(folder, other.parent)):
                raise OutputError(
                    f"got the folder {folder} for results, which is or holds the input {other}; {_CHOOSE}"
                )


_CHOOSE = "choose another place for what is written"


def kind_of(path: PathLike) -> bytes:
    """What kind of result of this package a file is; empty where it was written by somebody else."""
    path = Path(path)
    with open_regular(path, 1 << 40, OutputError) as file:
        found = _STARTS.match(file.read(4096))
        if found:
            return found[found.lastindex or 0]
        if path.suffix.lower() in _MARKS:
            return _find_mark(file, path.suffix.lower())
        if path.suffix == ".data" and path.with_suffix("").is_file():  # weights of the ONNX file of that name
            return kind_of(path.with_suffix(""))
        beside = Path(f"{path}.json")
        if path.suffix.lower() in (".plan", ".engine") and beside.is_file() and kind_of(beside):
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            return b"plan" if digest.encode() in read_regular(beside, 1 << 26) else b""
    return b""


def _find_mark(file: IO[bytes], suffix: str) -> bytes:
    if not os.fstat(file.fileno()).st_size:
        return b""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        first, _, mark = _MARKS[suffix]
        return mark if content[:1] == first and content.rfind(mark) >= 0 else b""


def _mark(path: Path) -> None:
    """Say in a file that this package wrote it, where that is said in addition."""
    first, start, mark = _MARKS.get(path.suffix.lower(), (b"", b"", b""))
    if not mark or kind_of(path):
        return
    with path.open("r+b") as file:
        if file.read(1) == first:
            file.seek(0, os.SEEK_END)
            file.write(start + mark)


def _is_foreign(path: Path, kind: bytes | None = None) -> bool:
    """Whether a file is there, holds anything, and is not ours, or not of this kind."""
    try:
        if not path.stat().st_size:
            return False
        found = kind_of(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputError(_cannot_write(path, error)) from error
    return not found or found != (found if kind is None else kind)


def _not_ours(target: Path) -> str:
    return (
        f"{target} is there, and is no older result of this kind by this package; choose another name, or allow it "
        "with --overwrite (in Python: with wb.overwriting():)"
    )


def _paths(given: Iterable[Any]) -> list[Path]:
    return [Path(entry) for entry in given if isinstance(entry, str | os.PathLike)]


def check_place(target: Path) -> None:
    """OutputError where no file can be written: a folder, a device, no such folder, no permission, no such name."""
    try:
        status = target.stat()
    except (FileNotFoundError, NotADirectoryError):
        if target.is_symlink():
            raise OutputError(f"{target} is a link that leads nowhere; {_CHOOSE}") from None
    except (OSError, ValueError) as error:
        raise OutputError(_cannot_write(target, error)) from error
    else:
        if stat.S_ISDIR(status.st_mode):
            raise OutputError(f"got the directory {target} as an output file; give the path of a file")
        if not stat.S_ISREG(status.st_mode):
            raise OutputError(f"got the device or pipe {target} as an output file; give the path of a file")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(_cannot_write(target, PermissionError(errno.EACCES, os.strerror(errno.EACCES))))


def _same(one: Path, other: Path) -> bool:
    """Whether two paths name one file or folder, there or not yet."""
    with contextlib.suppress(OSError, ValueError):
        return os.path.realpath(one) == os.path.realpath(other) or one.samefile(other)
    return False


def _holds(read: Path, target: Path) -> bool:
    """Whether a file belongs to what is read: lies in its folder, or is its data (`m.onnx.data`, `m.ckpt.index`)."""
    with contextlib.suppress(OSError, ValueError):
        inside = read.is_dir() and target.resolve().is_relative_to(read.resolve())
        named = read.is_file() or Path(f"{read}.index").is_file()
        beside = named and target.name.startswith(read.name) and _same(target.parent, read.parent)
        return (inside or beside) and _is_foreign(target)
    return False


def check_suffix(path: PathLike, suffix: str, what: str) -> None:
    """InputError where the name of what will be written does not end so."""
    if Path(path).suffix.lower() != suffix:
        raise InputError(f"got {Path(path).name} for {what}, expected a name that ends in {suffix}")


@contextlib.contextmanager
def open_regular(path: PathLike, largest: int, error: type[WorkbenchError] = InputError) -> Iterator[IO[bytes]]:
    """Open a file to read its bytes, and never wait for a pipe.

    `error` where it is a folder, a pipe or a device, or has more than `largest` bytes; OSError where it does not open.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as broken:  # a zero byte, or letters that no name of this system can have
        raise error(f"got {os.fspath(path)!r}, which no file can be called ({broken}); check the path") from broken
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{os.fspath(path)} is a pipe or a device, expected a file; give the path of one")
        if status.st_size > largest:
            raise error(
                f"{os.fspath(path)} has {status.st_size:,} bytes, expected {largest:,} at most; is it the right file?"
            )
        yield file


def read_regular(path: PathLike, largest: int, error: type[WorkbenchError] = InputError) -> bytes:
    """Read the bytes of a file as `open_regular` opens it, also where it grows meanwhile."""
    with open_regular(path, largest, error) as file:
        return file.read(largest)


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """Read JSON; a ValueError for all that is none, with deep nesting and, if `finite`, NaN and infinity among it."""
    try:
        return json.loads(text, parse_constant=_refuse_constant if finite else None)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error


def _refuse_constant(word: str) -> float:
    raise ValueError(f"it holds {word}")


def check_fields(hints: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """TypeError for the first value that is not of its field's type, as JSON holds it; a float is finite."""
    for name, hint in hints.items():
        if name in values and not _fits(values[name], hint):
            raise TypeError(f"its {name} is {str(values[name])[:40]!r}")


def _fits(value: Any, hint: Any) -> bool:
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is tuple:
        every = parts[:1] * len(value) if isinstance(value, list | tuple) and parts[-1] is ... else parts
        good = isinstance(value, list | tuple) and len(every) == len(value)
        return good and all(map(_fits, value, every))
    if kind is not None:  # dict or Mapping
        return isinstance(value, dict) and all(_fits(entry, parts[1]) for entry in value.values())
    if hint is Any:
        return True
    if hint in (int, float):
        number = isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
        return number and abs(value) < math.inf
    return isinstance(value, hint)


def make_folder(path: PathLike) -> Path:
    """Create a folder (and its parents) for results and return it; OutputError where it cannot be, or is a file."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(_cannot_write(folder, error)) from error
    return folder


def _cannot_write(target: Path, error: Exception) -> str:
    number, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or error
    if number == errno.ENAMETOOLONG or isinstance(error, ValueError):
        return f"cannot write {str(target)[:80]!r}: {reason}; give another name"
    if not target.parent.is_dir():
        return f"cannot write {target}: the folder {target.parent} does not exist; create it first"
    return f"cannot write {target}: {reason}; free some space or choose another folder"


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
