"""Open files that hold a TensorFlow graph: frozen graphs, SavedModels and checkpoints."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.environment import load_tensorflow
from workbench.errors import ModelError
from workbench.export.checkpoint_files import find_checkpoint
from workbench.export.keras_model import FrozenGraph, freeze_function
from workbench.export.tf1_checkpoint import open_checkpoint, open_saved_graph
from workbench.export.tf1_edit import cut_at
from workbench.export.tf1_graph import VARIABLES, node_name, propose_outputs, refuse_training, without_deprecations
from workbench.optional import require_backend

GRAPH_SUFFIXES = (".pb", ".pbtxt")
_UFF_START = b"\x08\x01\x10\x01\x1a"  # version 1, core version 1, then the list of its operators' families
_UFF_FAMILY = b"tensorflow_extension"

Names = Sequence[str] | None


def open_graph(path: Path, inputs: Names = None, outputs: Names = None) -> FrozenGraph | None:
    """Open a frozen graph, a SavedModel or a checkpoint.

    Args:
        path: what the reader gave.
        inputs: names of the nodes to feed; found when None.
        outputs: names of the nodes that are answers; found when None.
    Returns:
        The frozen graph; None when the path is none of these.
    Raises:
        ModelError: it is one, but cannot be opened; or a UFF file, or a folder with no model in it.
    """
    suffix = path.suffix.lower()
    if suffix == ".uff" and path.is_file():
        raise ModelError(_uff(path))
    if (path / "saved_model.pb").is_file():
        return _read_saved_model(path, inputs, outputs)
    if find_checkpoint(path) is not None:
        return open_checkpoint(path, outputs, inputs)
    if path.is_dir():
        raise ModelError(
            f"got the directory {path}, which is not a SavedModel (no saved_model.pb in it) and holds no checkpoint "
            "(no .meta or .index file); give a model file"
        )
    if suffix in GRAPH_SUFFIXES and path.is_file() and path.stat().st_size:
        return read_frozen_graph(path, inputs, outputs)
    return None


def read_frozen_graph(path: str | os.PathLike[str], inputs: Names = None, outputs: Names = None) -> FrozenGraph:
    """Read a frozen GraphDef, binary or as text.

    Args:
        path: the `.pb` file.
        inputs: names of its inputs; the placeholders when None.
        outputs: names of its outputs; the nodes that nothing reads when None.
    Raises:
        ModelError: not a GraphDef, one with variables or made for training, or without the named nodes.
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size == 0:
        raise ModelError(f"{path} is missing, a directory or empty; give a frozen .pb graph")
    graph_def = _parse(path)
    _check_graph(path, graph_def)
    names = {node.name for node in graph_def.node}
    found = (node.name for node in graph_def.node if node.op == "Placeholder")
    inputs = tuple(node_name(name) for name in inputs or found)
    outputs = tuple(node_name(name) for name in outputs or _unread(graph_def))
    missing = [name for name in (*inputs, *outputs) if name not in names]
    if missing or not inputs or not outputs:
        raise ModelError(
            f"{path} has no node {', '.join(missing) or 'to feed'}; its ends are {', '.join(_ends(graph_def))}"
        )
    refuse_training(graph_def, outputs, path)
    placeholders = {node.name for node in graph_def.node if node.op == "Placeholder"}
    return FrozenGraph(
        graph_def if placeholders >= set(inputs) else cut_at(graph_def, inputs, outputs), inputs, outputs
    )


def _parse(path: Path) -> Any:
    """Read a GraphDef in its binary form, or as the text that `tf.io.write_graph` writes unless told otherwise."""
    content = path.read_bytes()
    if content.startswith(_UFF_START) and _UFF_FAMILY in content[:64]:
        raise ModelError(_uff(path))
    kind = load_tensorflow().compat.v1.GraphDef
    graph_def = kind()
    try:
        graph_def.ParseFromString(content)
        return graph_def
    except Exception as error:  # protobuf's DecodeError is not public
        if not content.lstrip().startswith((b"node", b"versions", b"library", b"#")):
            raise ModelError(f"{path} is not a binary GraphDef, or was cut short; freeze the model again") from error
    try:
        return require_backend("google.protobuf.text_format", "keras").Parse(content, kind())
    except Exception as error:  # ParseError, or bytes that are no text
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path} is a GraphDef in text that cannot be read ({reason}); write it again") from error


def _read_saved_model(path: Path, inputs: Names, outputs: Names) -> FrozenGraph:
    if inputs or outputs:
        return open_saved_graph(path, outputs, inputs)
    tf = load_tensorflow()
    try:
        with without_deprecations():
            module = tf.saved_model.load(str(path))
    except Exception as error:
        raise ModelError(f"{path} is a damaged SavedModel ({str(error).splitlines()[0]}); export it again") from error
    function = module.signatures.get("serving_default")
    if function is None:
        raise ModelError(_no_signature(path, list(module.signatures), module))
    names = tuple(function.structured_input_signature[1])
    answers = tuple(sorted(function.structured_outputs))
    single = ("input",) if len(names) == 1 else names
    frozen = freeze_function(function, single, ("output",) if len(answers) == 1 else answers)
    refuse_training(frozen.graph_def, frozen.outputs, path)
    return frozen


def _no_signature(path: Path, signatures: list[str], module: Any) -> str:
    """Say which signatures there are, and which nodes could be named instead."""
    graph = getattr(module, "graph", None)
    proposals = propose_outputs(graph.as_graph_def()) if graph is not None else ()
    has = f"only {', '.join(signatures)}" if signatures else "none at all"
    if proposals:
        return (
            f"the SavedModel {path} has no signature 'serving_default' ({has}); name its outputs with --outputs; "
            f"{proposals[0].name} is likely, for {proposals[0].reason}"
        )
    return f"the SavedModel {path} has no signature 'serving_default' ({has}); export it with model.export(...)"


def _uff(path: Path) -> str:
    return (
        f"{path} is a UFF file, which only TensorRT could read, and no version since 10; convert what it was made "
        "from, the frozen graph or the checkpoint: workbench convert model.pb model.onnx"
    )


def _check_graph(path: Path, graph_def: Any) -> None:
    if not graph_def.node:
        raise ModelError(
            f"{path} holds an empty graph (a SavedModel's saved_model.pb belongs in its folder); freeze the model again"
        )
    variables = [node.name for node in graph_def.node if node.op in VARIABLES]
    if variables:
        raise ModelError(
            f"{path} still has variables ({variables[0]}, ...); freeze it: keras_to_pb writes a frozen graph, and of a "
            "TensorFlow 1 checkpoint give the .meta file, with the weights beside it"
        )


def _ends(graph_def: Any) -> list[str]:
    return [node.name for node in graph_def.node if node.op == "Placeholder"] + _unread(graph_def)


def _unread(graph_def: Any) -> list[str]:
    read = {node_name(name) for node in graph_def.node for name in node.input}
    return [
        node.name
        for node in graph_def.node
        if node.name not in read and node.op not in ("NoOp", "Const", "Placeholder")
    ]
