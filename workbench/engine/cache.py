"""A folder of built engines, found again by what went into them.

A key is a hash of everything that shapes a plan: the ONNX bytes, the flavour and its version, options, profiles and
GPU. An entry is a folder that appears whole, by one rename. Delete the cache folder whenever you like.
"""

import contextlib
import json
import mmap
import shutil
import tempfile
import warnings
import zlib
from pathlib import Path

from workbench.core.errors import EngineLoadError
from workbench.core.files import cache_folder, parse_json
from workbench.engine.plan import Plan, PlanManifest

_PLAN, _RECORD = "engine.plan", "entry.json"


def read_entry(key: str) -> Plan | None:
    """Return a cached plan, or None; a damaged entry is removed.

    Its bytes are a read-only map of the file, compared with their checksum: 30 ms for 100 MB, a third of reading them.
    """
    folder = cache_folder() / key
    try:
        if not folder.exists():
            return None
        record = parse_json((folder / _RECORD).read_bytes())
        with (folder / _PLAN).open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if zlib.crc32(data) != record["crc32"]:
            raise ValueError("the plan's bytes have changed")
        return Plan(data, PlanManifest.from_json(json.dumps(record["manifest"])))
    except (OSError, ValueError, KeyError, TypeError, EngineLoadError):
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
            try:
                entry.rename(root / key)
            except OSError:
                if not (root / key).is_dir():  # else another build of the same engine was first: it is as good
                    raise
    except OSError as error:
        warnings.warn(f"the engine is built but not cached in {root}: {error.strerror or error}", stacklevel=3)


def timing_cache_path(flavour: str, version: str, gpu_name: str) -> Path:
    """Return where the builder keeps what it timed on one kind of GPU, with one version; its folder exists."""
    name = "-".join("".join(letter if letter.isalnum() else "_" for letter in part) for part in (version, gpu_name))
    path = cache_folder() / "timing" / f"{flavour}-{name}.cache"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path
