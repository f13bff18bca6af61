"""The ONNX form of whatever `convert` takes, converted once and kept in the cache."""

import contextlib
import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from workbench import __version__
from workbench.core.errors import OutputError
from workbench.core.files import cache_folder, make_folder


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
    """Yield `name`.onnx of the cache; it is made there first, or, where there can be no cache, for the block alone."""
    with tempfile.TemporaryDirectory(prefix="workbench-onnx-") as spare:
        try:
            folder = make_folder(cache_folder().with_name("networks") / f"{key}-{__version__}")
        except OutputError:
            folder = Path(spare)
        path = folder / f"{name}.onnx"
        if not path.is_file():
            make(path)
        yield path


def content_digest(path: Path) -> str:
    """The start of the SHA-256 of a file, of all files in a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            whole.update(hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()[:16]
