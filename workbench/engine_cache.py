"""A folder of built engines, found again by what went into them.

A key is a hash of everything that shapes a plan: the ONNX bytes, the flavour and its version, options, profiles and
GPU. An entry is a folder that appears whole, by one rename. Delete the cache folder whenever you like.
"""

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.errors import EngineLoadError, ModelError, OutputError
from workbench.export import onnx_graph
from workbench.files import atomic_path
from workbench.plan import Plan, PlanManifest

_PLAN, _RECORD = "engine.plan", "entry.json"
_SETTLED_NS = 2_000_000_000  # FAT keeps times in steps of 2 s, the coarsest of the usual file systems


def cache_folder() -> Path:
    """Return the folder of cached engines: in `$WORKBENCH_CACHE`, else in the user's cache folder."""
    chosen = os.environ.get("WORKBENCH_CACHE")
    if chosen:
        return Path(chosen) / "engines"
    user = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    return Path(user or Path.home() / ".cache") / "workbench" / "engines"


def make_key(**parts: Any) -> str:
    """Return the key of everything that shapes a plan."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def known_digest(path: Path) -> str | None:
    """Return the hash that `take_digest` kept for an ONNX file, if no file of it has changed since.

    Hashing 100 MB takes 0.1 s, so a hash is kept beside the cache, with the device, inode, size and both times of
    every file. It is only kept where all of them were already two seconds old when it was taken: then no later write
    can leave them unchanged, for the change time cannot be set back. Windows has no change time: nothing is kept there.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(_note(path).read_text(encoding="utf-8"))
        if kept["files"] == [_signature(Path(name)) for name, *_ in kept["files"]]:
            return str(kept["digest"])
    return None


def take_digest(path: Path) -> str:
    """Hash an ONNX file and its external data, and keep the hash for `known_digest`.

    Args:
        path: a checked `.onnx` file.
    Returns:
        The file's SHA-256; with external data, the SHA-256 of all hashes.
    Raises:
        ModelError: it is not ONNX, or its external data is missing or outside its folder.
    """
    path = path.resolve()
    files = [path, *external_files(path)]
    before, now_ns = [_signature(file) for file in files], time.time_ns()
    hashes = [_hash_file(file) for file in files]
    digest = hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()
    settled = all(max(signature[-2:]) + _SETTLED_NS < now_ns for signature in before)
    if os.name != "nt" and settled and before == [_signature(file) for file in files]:
        with contextlib.suppress(OSError, OutputError):
            note = _note(path)
            note.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(note) as temporary:
                temporary.write_text(json.dumps({"digest": digest, "files": before}), encoding="utf-8")
    return digest


def external_files(path: Path) -> list[Path]:
    """Return the files that hold an ONNX model's external data, also that of constants and inner graphs.

    Raises:
        ModelError: one is missing, or lies outside the model's folder.
    """
    folder = path.resolve().parent
    entries = (entry for tensor in _tensors(onnx_graph.read(path).graph) for entry in tensor.external_data)
    files = []
    for location in sorted({entry.value for entry in entries if entry.key == "location"}):
        file = (folder / location).resolve()
        if not file.is_relative_to(folder):
            raise ModelError(f"{path} keeps weights in {location}, outside its own folder; move it beside the model")
        if not file.is_file():
            raise ModelError(f"{path} keeps weights in {location}, which is missing; copy it beside the model")
        files.append(file)
    return files


def read_entry(key: str) -> Plan | None:
    """Return a cached plan, or None; a damaged entry is removed.

    The plan's bytes are a read-only map of the cached file, compared with their checksum on every call: 30 ms for
    100 MB, a third of the time to read or to hash them. Entries are never written to, only replaced or removed.
    """
    folder = cache_folder() / key
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        with (folder / _PLAN).open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if zlib.crc32(data) != record["crc32"]:
            raise ValueError("the plan's bytes have changed")
        return Plan(data, PlanManifest.from_json(json.dumps(record["manifest"])))
    except FileNotFoundError:
        if not folder.exists():
            return None
    except (OSError, ValueError, KeyError, TypeError, EngineLoadError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    return None


def write_entry(key: str, plan: Plan) -> None:
    """Keep a plan; where that fails, say so in a warning, for the build itself is done."""
    root = cache_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=root, ignore_cleanup_errors=True) as name:
            entry = Path(name) / "entry"
            entry.mkdir()
            (entry / _PLAN).write_bytes(plan.data)
            record = {"crc32": zlib.crc32(plan.data), "manifest": json.loads(plan.manifest.to_json())}
            (entry / _RECORD).write_text(json.dumps(record), encoding="utf-8")
            with _unless_there(root / key):
                entry.rename(root / key)
    except OSError as error:
        warnings.warn(f"the engine is built but not cached in {root}: {error.strerror or error}", stacklevel=3)


def timing_cache_path(flavour: str, version: str, gpu_name: str) -> Path:
    """Return where the builder keeps what it timed on one kind of GPU, with one version; its folder exists."""
    name = "-".join("".join(letter if letter.isalnum() else "_" for letter in part) for part in (version, gpu_name))
    path = cache_folder() / "timing" / f"{flavour}-{name}.cache"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def _unless_there(target: Path) -> Iterator[None]:
    """Let another build of the same engine have been first: its entry is as good."""
    try:
        yield
    except OSError:
        if not target.is_dir():
            raise


def _note(path: Path) -> Path:
    return cache_folder() / "digests" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()}.json"


def _signature(file: Path) -> list[Any]:
    status = file.stat()
    return [str(file), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _hash_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor of a graph: weights, constants, and those of the graphs inside it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)
