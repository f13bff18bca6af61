"""Which files a TensorFlow 1 checkpoint consists of, and which of them are missing; TensorFlow is not needed."""

import os
import re
from pathlib import Path

from workbench.errors import ModelError

_SHARD = re.compile(r"(?P<prefix>.+)\.data-\d{5}-of-(?P<count>\d{5})")
_STATE = re.compile(r'^model_checkpoint_path: "(?P<path>.+)"', re.MULTILINE)
_OBJECT_GRAPH = b"_CHECKPOINTABLE_OBJECT_GRAPH"  # the key that TensorFlow 2 writes first


def find_checkpoint(path: str | os.PathLike[str]) -> Path | None:
    """Find the prefix of the checkpoint that a path means, such as `model.ckpt` for `model.ckpt.meta`.

    Args:
        path: the prefix itself, one of its files (`.meta`, `.index`, `.data-00000-of-00001`), a single `.ckpt` file
            of the older format, or a folder that holds one checkpoint or says in `checkpoint` which is the latest.
    Returns:
        The prefix, whether or not all its files are there; None when the path does not look like a checkpoint.
    Raises:
        ModelError: a folder with several checkpoints and nothing that says which is meant.
    """
    path = Path(path)
    if path.is_dir():
        return _in_folder(path)
    shard = _SHARD.fullmatch(path.name)
    if shard:
        return path.with_name(shard["prefix"])
    if path.suffix in (".meta", ".index") and path.exists():
        return path.with_suffix("")
    known = path.is_file() and path.suffix == ".ckpt"
    return path if known or _present(path) else None


def require_checkpoint(path: str | os.PathLike[str], *, graph: bool = True) -> Path:
    """Find a checkpoint and refuse it, in one sentence, when a file of it is missing.

    Args:
        path: as for `find_checkpoint`.
        graph: whether its `.meta` file is needed.
    Returns:
        The prefix.
    Raises:
        ModelError: no checkpoint, or one without its graph, its index or some of its weights.
    """
    prefix = find_checkpoint(path)
    if prefix is None:
        raise ModelError(
            f"{path} is no TensorFlow 1 checkpoint; give its prefix, such as model.ckpt, or its .meta file, "
            "with the .index and .data files beside it"
        )
    if graph and not _beside(prefix, ".meta").is_file():
        raise ModelError(_no_graph(prefix))
    _require_weights(prefix)
    return prefix


def _in_folder(folder: Path) -> Path | None:
    state = folder / "checkpoint"
    match = _STATE.search(state.read_text("utf-8", errors="replace")) if state.is_file() else None
    if match:
        return folder / Path(match["path"]).name  # the folder may have been moved since
    prefixes = sorted({file.with_suffix("") for suffix in ("meta", "index") for file in folder.glob(f"*.{suffix}")})
    if len(prefixes) > 1:
        names = ", ".join(prefix.name for prefix in prefixes)
        raise ModelError(f"{folder} holds several checkpoints ({names}); give the path of one of them")
    return prefixes[0] if prefixes else None


def _require_weights(prefix: Path) -> None:
    if prefix.is_file():
        return  # the older format keeps all weights in one file
    if not _beside(prefix, ".index").is_file():
        raise ModelError(f"{prefix}.index is missing, which says where each weight is; copy it beside the other files")
    shards = [match for file in _present(prefix) if (match := _SHARD.fullmatch(file.name))]
    if not shards:
        raise ModelError(
            f"{prefix}.data-00000-of-... is missing, which holds the weights; copy it beside the other files"
        )
    count = int(shards[0]["count"])
    names = [f"{prefix}.data-{number:05d}-of-{count:05d}" for number in range(count)]
    missing = [name for name in names if not Path(name).is_file()]
    if missing:
        raise ModelError(
            f"{missing[0]} is missing, one of {count} files that hold the weights; copy it beside the others"
        )


def _no_graph(prefix: Path) -> str:
    index = _beside(prefix, ".index")
    if index.is_file() and _OBJECT_GRAPH in index.read_bytes():
        return (
            f"{prefix} is a TensorFlow 2 checkpoint, which holds weights without a network; build the model in code, "
            "call model.load_weights(...) and pass the model object, or give a .keras file"
        )
    return (
        f"{prefix}.meta is missing: the other files hold weights without a network; copy it beside them, or build "
        "the network again (for tf-slim's InceptionV3: workbench.models.inception_v3.rebuild(checkpoint, folder))"
    )


def _present(prefix: Path) -> list[Path]:
    """The files of a checkpoint that are there."""
    if not prefix.name or not prefix.parent.is_dir():
        return []
    found = [file for suffix in (".meta", ".index") if (file := _beside(prefix, suffix)).is_file()]
    return found + [
        file
        for file in sorted(prefix.parent.iterdir())
        if (match := _SHARD.fullmatch(file.name)) and match["prefix"] == prefix.name
    ]


def _beside(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)
