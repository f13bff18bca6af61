"""Open TensorFlow 1 checkpoints: find their files without TensorFlow, then restore the weights and freeze the graph."""

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.core.errors import ModelError, first_line
from workbench.core.packages import load_tensorflow, require_backend
from workbench.models.freezing import FrozenGraph
from workbench.models.tf1_graph import (
    VARIABLES,
    GraphView,
    OutputProposal,
    cut_at,
    find_inputs,
    node_name,
    propose_outputs,
    refuse_training,
    without_deprecations,
)
from workbench.models.untrusted_graph import RESTORING, check_graph

PathLike = str | os.PathLike[str]
Names = Sequence[str] | None

_SHARD = re.compile(r"(?P<prefix>.+)\.data-\d{5}-of-(?P<count>\d{5})")
_STATE = re.compile(r'^model_checkpoint_path: "(?P<path>.+)"', re.MULTILINE)
_OBJECT_GRAPH = b"_CHECKPOINTABLE_OBJECT_GRAPH"  # the key that TensorFlow 2 writes first


def find_checkpoint(path: PathLike) -> Path | None:
    """Find the prefix of the checkpoint that a path means, such as `model.ckpt`; None where it looks like none.

    That is the prefix itself, one of its files (`.meta`, `.index`, `.data-00000-of-00001`), a single `.ckpt` file of
    the older format, or a folder that holds one checkpoint or says in `checkpoint` which is the latest; ModelError for
    a folder with several and nothing that says which is meant. Files may be missing.
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


def require_checkpoint(path: PathLike, *, graph: bool = True) -> Path:
    """Find the prefix of a checkpoint, as `find_checkpoint` does; `graph` says whether its `.meta` file is needed.

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
    if not prefix.is_file():  # the older format keeps all weights in one file
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
    if not _beside(prefix, ".index").is_file():
        raise ModelError(f"{prefix}.index is missing, which says where each weight is; copy it beside the other files")
    count = next((int(match["count"]) for file in _present(prefix) if (match := _SHARD.fullmatch(file.name))), 0)
    if not count:
        raise ModelError(
            f"{prefix}.data-00000-of-... is missing, which holds the weights; copy it beside the other files"
        )
    for number in range(count):
        shard = _beside(prefix, f".data-{number:05d}-of-{count:05d}")
        if not shard.is_file():
            raise ModelError(
                f"{shard} is missing, one of {count} files that hold the weights; copy it beside the others"
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
    ends = (".meta", ".index")
    return [
        file
        for file in sorted(prefix.parent.iterdir())
        if file.name in {prefix.name + end for end in ends}
        or ((match := _SHARD.fullmatch(file.name)) and match["prefix"] == prefix.name)
    ]


def _beside(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def open_checkpoint(path: PathLike, outputs: Names = None, inputs: Names = None) -> FrozenGraph:
    """Restore a TensorFlow 1 checkpoint, found as by `find_checkpoint`, and freeze what leads to its outputs.

    `outputs` are names of nodes, such as `["InceptionV3/Logits/SpatialSqueeze"]`; when None the most likely one, with a
    warning that names it and the others. `inputs` are the nodes to feed, also others than placeholders; when None the
    placeholders that lead to the outputs. ModelError: a file is missing or damaged, weights and graph do not belong
    together, there is no such node, or the graph was made for training.
    """
    prefix = require_checkpoint(path)
    return _open_meta_graph(_read_meta(prefix), prefix, prefix, outputs, inputs)


def open_saved_graph(folder: PathLike, outputs: Names = None, inputs: Names = None) -> FrozenGraph:
    """Freeze the graph of a SavedModel without its signatures, as `open_checkpoint` does with a checkpoint's."""
    folder = Path(folder)
    return _open_meta_graph(read_saved_graph(folder), folder / "variables" / "variables", folder, outputs, inputs)


def read_saved_graph(folder: Path) -> Any:
    """Read the MetaGraphDef of a SavedModel, that for use where there are several; ModelError where it is damaged."""
    module = require_backend("tensorflow.core.protobuf.saved_model_pb2", "keras")
    saved = module.SavedModel()
    try:
        saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    except Exception as error:  # protobuf's DecodeError is not public
        raise ModelError(f"{folder} is a damaged SavedModel ({first_line(error)}); export it again") from error
    graphs = sorted(saved.meta_graphs, key=lambda one: "serve" not in one.meta_info_def.tags)
    if not graphs:
        raise ModelError(f"the SavedModel {folder} holds no graph; export it again")
    size = graphs[0].graph_def.ByteSize()
    graphs[0].graph_def.DiscardUnknownFields()  # which may hide attributes from Python, and not from TensorFlow
    if graphs[0].graph_def.ByteSize() != size:  # TensorFlow reads the file again, with them
        raise ModelError(f"the graph of {folder} is damaged, or has fields that this TensorFlow lacks; export it again")
    return graphs[0]


def list_outputs(path: PathLike) -> tuple[OutputProposal, ...]:
    """Rank the nodes of a checkpoint's graph that may be its output, the most likely first; ModelError without it."""
    return propose_outputs(_read_meta(require_checkpoint(path)).graph_def)


def _open_meta_graph(meta: Any, prefix: Path, source: Path, outputs: Names, inputs: Names) -> FrozenGraph:
    """Freeze a MetaGraphDef with the weights at `prefix`; `source` is what the reader called it."""
    graph_def = meta.graph_def
    outputs = _clean(outputs, graph_def, source) if outputs else (_likeliest_output(graph_def, source),)
    inputs = _clean(inputs, graph_def, source) if inputs else find_inputs(graph_def, outputs)
    if not inputs:
        raise ModelError(
            f"{source}: no placeholder leads to {', '.join(outputs)}; name the node where pictures go in, "
            "with inputs=[...] or --inputs"
        )
    check_graph(graph_def, source, inputs, runs=False)
    graph_def = cut_at(graph_def, inputs, outputs)
    refuse_training(graph_def, outputs, source)
    return FrozenGraph(_restore_and_freeze(graph_def, meta.saver_def, outputs, prefix), inputs, outputs)


def _read_meta(prefix: Path) -> Any:
    path = _beside(prefix, ".meta")
    meta = load_tensorflow().compat.v1.MetaGraphDef()
    try:
        meta.ParseFromString(path.read_bytes())
        meta.DiscardUnknownFields()  # which may hide attributes from Python, and not from TensorFlow
    except Exception as error:  # protobuf's DecodeError is not public
        raise ModelError(f"{path} is not a MetaGraphDef, or was cut short; copy the checkpoint again") from error
    if not meta.graph_def.node:
        raise ModelError(f"{path} holds no graph; save the checkpoint again with tf.train.Saver().save(...)")
    return meta


def _likeliest_output(graph_def: Any, source: Any) -> str:
    proposals = propose_outputs(graph_def)
    if not proposals:
        raise ModelError(f"{source} computes nothing from an input; name the output with outputs=[...] or --outputs")
    best, *others = proposals
    also = f" Others: {', '.join(other.name for other in others[:4])}." if others else ""
    warnings.warn(
        f"no output was named, so {best.name} is taken: {best.reason}, and {best.weights} weights lead to it.{also} "
        "Name another with outputs=[...] or --outputs.",
        stacklevel=4,
    )
    return best.name


def _clean(names: Sequence[str], graph_def: Any, source: Any) -> tuple[str, ...]:
    """Turn names of nodes or tensors into names of nodes that are there."""
    names = [names] if isinstance(names, str) else list(names)
    nodes = {node.name for node in graph_def.node}
    missing = [name for name in names if node_name(name) not in nodes]
    if missing:
        close = ", ".join(one.name for one in propose_outputs(graph_def)[:4])
        raise ModelError(f"{source} has no node {', '.join(missing)}; likely outputs are {close or 'none'}")
    later = [name for name in names if ":" in name and not name.endswith(":0")]
    if later:
        raise ModelError(
            f"got {later[0]}, expected the first output of a node; name the node that computes it from {later[0]}"
        )
    return tuple(node_name(name) for name in names)


def _restore_and_freeze(graph_def: Any, saver: Any, outputs: Sequence[str], prefix: Path) -> Any:
    """Import only what leads to the outputs and what restores the weights, run the latter, then freeze."""
    tf, view = load_tensorflow().compat.v1, GraphView(graph_def)
    variables = [name for name in view.upstream(outputs) if name in view.nodes and view.nodes[name].op in VARIABLES]
    if variables and not saver.restore_op_name:
        raise ModelError(
            f"the graph of {prefix} does not say how its weights are restored; save it again with "
            "tf.train.Saver().save(...)"
        )
    reads = [f"{name}/Read/ReadVariableOp" for name in variables]  # what TensorFlow freezes a variable by
    restore = [saver.restore_op_name, saver.filename_tensor_name] if variables else []
    module = require_backend("tensorflow.python.framework.convert_to_constants", "keras")
    with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
        used = view.subgraph([*outputs, *restore, *(read for read in reads if read in view.nodes)])
        check_graph(used, prefix, outputs)
        check_graph(used, prefix, also=RESTORING)
        try:
            tf.import_graph_def(used, name="")
        except Exception as error:
            raise ModelError(
                f"TensorFlow {tf.__version__} cannot read the graph of {prefix}: {first_line(error)}"
            ) from error
        if variables:
            _require_same_variables(tf, view, saver, prefix)
            _restore(tf, session, saver, prefix)
        used = GraphView(graph.as_graph_def()).subgraph(outputs)
        try:
            with without_deprecations():
                return module.convert_variables_to_constants_from_session_graph(session, used, list(outputs))
        except (KeyError, ValueError) as error:  # a variable without the node that reads it
            raise ModelError(f"the graph of {prefix} is damaged ({first_line(error)}); copy its files again") from error


def _restore(tf: Any, session: Any, saver: Any, prefix: Path) -> None:
    try:
        session.run(node_name(saver.restore_op_name), {saver.filename_tensor_name: str(prefix)})
    except (tf.errors.OpError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"the weights of {prefix} are damaged or of another graph ({first_line(error)}); copy all its files again"
        ) from error


def _require_same_variables(tf: Any, view: GraphView, saver: Any, prefix: Path) -> None:
    """Compare the names and shapes that the graph restores with those in the weights' index."""
    wanted: list[str] = []
    try:
        stored = tf.train.load_checkpoint(str(prefix)).get_variable_to_shape_map()
        for name in view.upstream([saver.restore_op_name]):
            node = view.nodes.get(name)
            if node is not None and node.op == "RestoreV2":
                names = view.nodes[node_name(node.input[1])].attr["value"].tensor
                wanted += [tf.compat.as_str_any(name) for name in tf.make_ndarray(names).ravel()]
    except Exception as error:
        raise ModelError(f"the index of {prefix} is damaged ({first_line(error)}); copy it again") from error
    missing = sorted(name for name in wanted if name not in stored)
    if missing:
        raise ModelError(
            f"graph and weights of {prefix} do not belong together: {len(missing)} of {len(wanted)} variables are not "
            f"among the weights ({', '.join(missing[:3])}); copy both from the same training run"
        )
    for name, node in view.nodes.items():
        shape = [dim.size for dim in node.attr["shape"].shape.dim]
        if node.op in VARIABLES and name in stored and -1 not in shape and shape != stored[name]:
            raise ModelError(
                f"graph and weights of {prefix} do not belong together: {name} is {shape} in the graph and "
                f"{stored[name]} among the weights; copy both from the same training run"
            )
