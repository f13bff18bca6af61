"""The ONNX form of whatever `convert` takes, converted once and kept in the cache."""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from workbench import __version__
from workbench.core.errors import OutputError
from workbench.core.files import cache_folder, make_folder

_DIGEST = "digest.json"


@contextlib.contextmanager
def as_onnx(source: Any, *, spatial: tuple[int, int] | None = None, progress: bool = True) -> Iterator[Path]:
    """Yield the `.onnx` file of a network: the file itself, or what `convert`, whose errors it has, makes of it.

    That of a file is kept in the cache, by its content; that of a model or of its name lives as long as the block.
    `spatial` is (height, width) in pixels for a model that leaves them open.
    """
    named = isinstance(source, str | os.PathLike)
    if named and Path(source).suffix.lower() == ".onnx":
        yield Path(source)
        return
    from workbench.export.conversion import convert

    make = functools.partial(convert, source, spatial=spatial, progress=progress)
    if named and Path(source).exists():
        key = "-".join([content_digest(Path(source)), *map(str, spatial or ())])
        with cached(Path(source).stem, key, make) as path:
            yield path
    else:
        with tempfile.TemporaryDirectory(prefix="workbench-onnx-") as folder:
            path = Path(folder) / f"{Path(source).stem if named else 'model'}.onnx"
            make(path)
            yield path


@contextlib.contextmanager
def cached(name: str, key: str, make: Callable[[Path], object]) -> Iterator[Path]:
    """Yield `name`.onnx of the cache; it is made there first, or, where there can be no cache, for the block alone.

    An entry is a folder that appears whole, by one rename, with a digest of its files. One that does not fit its digest
    is made again, and a warning says so.
    """
    entry = cache_folder().with_name("networks") / f"{key}-{__version__}"
    if not _is_whole(entry, name):
        if os.path.lexists(entry):
            warnings.warn(f"the ONNX form of {name} in the cache was damaged, so it is converted again", stacklevel=5)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=_root(entry), ignore_cleanup_errors=True) as spare:
            made = Path(spare) / "entry"
            made.mkdir()
            make(made / f"{name}.onnx")
            if not _is_kept(made, entry, name):
                yield made / f"{name}.onnx"
                return
    yield entry / f"{name}.onnx"


def _root(entry: Path) -> Path | None:
    """The folder of the cache; None, for that of temporary files, where there can be none."""
    with contextlib.suppress(OutputError):
        if os.access(make_folder(entry.parent), os.W_OK):
            return entry.parent
    return None


def _is_whole(entry: Path, name: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return (entry / f"{name}.onnx").is_file() and (entry / _DIGEST).read_text("utf-8") == _digest_of(entry)
    return False


def _is_kept(made: Path, entry: Path, name: str) -> bool:
    """Put a new entry in the place of what was there; False where that cannot be."""
    try:
        (made / _DIGEST).write_text(_digest_of(made), "utf-8")
        shutil.rmtree(entry, ignore_errors=True)
        if entry.is_symlink() or entry.is_file():
            entry.unlink()
        made.rename(entry)
    except OSError:
        return _is_whole(entry, name)  # another process was first: its entry is as good
    return True


def _digest_of(entry: Path) -> str:
    """The digest of each file of an entry, by name."""
    files = sorted(file for file in entry.iterdir() if file.name != _DIGEST)
    return json.dumps({file.name: content_digest(file) for file in files})


def content_digest(path: Path) -> str:
    """The start of the SHA-256 of a file, of all files in a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            whole.update(hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()[:16]
