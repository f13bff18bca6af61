"""TensorFlow 1 checkpoints (`.meta`, `.index`, `.data`) to frozen graphs and ONNX, without the code that made them.

Everything happens in graphs and sessions of its own, so Keras 3 and eager TensorFlow go on undisturbed beside it.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from workbench.environment import load_tensorflow
from workbench.errors import ModelError
from workbench.export.checkpoint_files import require_checkpoint
from workbench.export.keras_model import OPSET, FrozenGraph, frozen_to_onnx
from workbench.export.tf1_edit import cut_at, fix_size, take_channels_first
from workbench.export.tf1_graph import (
    VARIABLES,
    GraphView,
    OutputProposal,
    find_inputs,
    node_name,
    propose_outputs,
    refuse_training,
    without_deprecations,
)
from workbench.optional import require_backend

PathLike = str | os.PathLike[str]


def checkpoint_to_onnx(
    path: PathLike,
    onnx_path: PathLike,
    *,
    outputs: Sequence[str] | None = None,
    inputs: Sequence[str] | None = None,
    spatial: tuple[int, int] | None = None,
    inputs_as_nchw: bool = False,
    opset: int = OPSET,
    progress: bool = True,
) -> Path:
    """Convert a TensorFlow 1 checkpoint to ONNX.

    Args:
        path: as for `open_checkpoint`.
        onnx_path: the `.onnx` file to write, whole or not at all.
        outputs: as for `open_checkpoint`.
        inputs: as for `open_checkpoint`.
        spatial: (height, width) in pixels for a graph that leaves them open.
        inputs_as_nchw: let picture inputs be (N, C, H, W) although the network was built for (N, H, W, C).
        opset: ONNX operator set.
        progress: show a bar.
    Returns:
        `onnx_path`; its inputs and outputs have the names of the TensorFlow nodes.
    Raises:
        ModelError: as for `open_checkpoint`.
        ExportError: an operator cannot be converted; the message names it.
        OutputError: the file cannot be written.
    """
    frozen = open_checkpoint(path, outputs, inputs)
    if spatial:
        fix_size(frozen.graph_def, frozen.inputs, spatial)
    if inputs_as_nchw:
        take_channels_first(frozen.graph_def, frozen.inputs)
    with tqdm(total=4, unit="step", leave=False, disable=not progress) as bar:
        return frozen_to_onnx(frozen, onnx_path, opset=opset, bar=bar)


def open_checkpoint(
    path: PathLike, outputs: Sequence[str] | None = None, inputs: Sequence[str] | None = None
) -> FrozenGraph:
    """Restore a TensorFlow 1 checkpoint and freeze what leads to its outputs.

    Args:
        path: the prefix (`model.ckpt`), one of its files, or a folder with one checkpoint in it.
        outputs: names of nodes, such as `["InceptionV3/Logits/SpatialSqueeze"]`; the most likely one when None,
            with a warning that names it and the others.
        inputs: names of the nodes to feed, also others than placeholders; the placeholders that lead to the
            outputs when None.
    Returns:
        The graph without variables, and the names of its ends.
    Raises:
        ModelError: a file is missing or damaged, weights and graph do not belong together, there is no such node,
            or the graph was made for training.
    """
    prefix = require_checkpoint(path)
    return _open_meta_graph(_read_meta(prefix), prefix, prefix, outputs, inputs)


def open_saved_graph(
    folder: PathLike, outputs: Sequence[str] | None = None, inputs: Sequence[str] | None = None
) -> FrozenGraph:
    """Freeze the graph of a SavedModel without its signatures, such as TensorFlow 1 wrote it.

    Args:
        folder: the folder with `saved_model.pb` in it.
        outputs: as for `open_checkpoint`.
        inputs: as for `open_checkpoint`.
    Raises:
        ModelError: as for `open_checkpoint`.
    """
    folder = Path(folder)
    module = require_backend("tensorflow.core.protobuf.saved_model_pb2", "keras")
    saved = module.SavedModel()
    try:
        saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    except Exception as error:  # protobuf's DecodeError is not public
        raise ModelError(f"{folder} is a damaged SavedModel ({_first_line(error)}); export it again") from error
    graphs = sorted(saved.meta_graphs, key=lambda one: "serve" not in one.meta_info_def.tags)
    if not graphs:
        raise ModelError(f"the SavedModel {folder} holds no graph; export it again")
    return _open_meta_graph(graphs[0], folder / "variables" / "variables", folder, outputs, inputs)


def list_outputs(path: PathLike) -> tuple[OutputProposal, ...]:
    """Rank the nodes of a checkpoint's graph that may be its output, the most likely first.

    Args:
        path: as for `open_checkpoint`.
    Raises:
        ModelError: a file is missing, or the graph is damaged.
    """
    return propose_outputs(_read_meta(require_checkpoint(path)).graph_def)


def _open_meta_graph(
    meta: Any, prefix: Path, source: Path, outputs: Sequence[str] | None, inputs: Sequence[str] | None
) -> FrozenGraph:
    """Freeze a MetaGraphDef with the weights at `prefix`; `source` is what the reader called it."""
    tf = load_tensorflow().compat.v1
    outputs, inputs = _choose_ends(meta.graph_def, outputs, inputs, source)
    graph_def = cut_at(meta.graph_def, inputs, outputs)
    refuse_training(graph_def, outputs, source)
    return FrozenGraph(_restore_and_freeze(tf, graph_def, meta.saver_def, outputs, prefix), inputs, outputs)


def _read_meta(prefix: Path) -> Any:
    path = prefix.with_name(prefix.name + ".meta")
    meta = load_tensorflow().compat.v1.MetaGraphDef()
    try:
        meta.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError is not public
        raise ModelError(f"{path} is not a MetaGraphDef, or was cut short; copy the checkpoint again") from error
    if not meta.graph_def.node:
        raise ModelError(f"{path} holds no graph; save the checkpoint again with tf.train.Saver().save(...)")
    return meta


def _choose_ends(
    graph_def: Any, outputs: Sequence[str] | None, inputs: Sequence[str] | None, source: Any
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the outputs and inputs asked for, or the most likely ones."""
    outputs = _clean(outputs, graph_def, source) if outputs else (_likeliest_output(graph_def, source),)
    if inputs:
        return outputs, _clean(inputs, graph_def, source)
    found = find_inputs(graph_def, outputs)
    if not found:
        raise ModelError(
            f"{source}: no placeholder leads to {', '.join(outputs)}; name the node where pictures go in, "
            "with inputs=[...] or --inputs"
        )
    return outputs, found


def _likeliest_output(graph_def: Any, source: Any) -> str:
    proposals = propose_outputs(graph_def)
    if not proposals:
        raise ModelError(f"{source} computes nothing from an input; name the output with outputs=[...] or --outputs")
    best, *others = proposals
    also = f" Others: {', '.join(other.name for other in others[:4])}." if others else ""
    warnings.warn(
        f"no output was named, so {best.name} is taken: {best.reason}, and {best.weights} weights lead to it.{also} "
        "Name another with outputs=[...] or --outputs.",
        stacklevel=5,
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


def _restore_and_freeze(tf: Any, graph_def: Any, saver: Any, outputs: Sequence[str], prefix: Path) -> Any:
    """Import only what leads to the outputs and what restores the weights, run the latter, then freeze."""
    view = GraphView(graph_def)
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
        try:
            tf.import_graph_def(view.subgraph([*outputs, *restore, *(r for r in reads if r in view.nodes)]), name="")
        except Exception as error:
            raise ModelError(
                f"TensorFlow {tf.__version__} cannot read the graph of {prefix}: {_first_line(error)}"
            ) from error
        if variables:
            _require_same_variables(tf, view, saver, prefix)
            _restore(tf, session, saver, prefix)
        used = GraphView(graph.as_graph_def()).subgraph(outputs)
        with without_deprecations():
            return module.convert_variables_to_constants_from_session_graph(session, used, list(outputs))


def _restore(tf: Any, session: Any, saver: Any, prefix: Path) -> None:
    try:
        session.run(node_name(saver.restore_op_name), {saver.filename_tensor_name: str(prefix)})
    except tf.errors.OpError as error:
        raise ModelError(
            f"the weights of {prefix} are damaged or of another graph ({_first_line(error)}); copy all its files again"
        ) from error


def _require_same_variables(tf: Any, view: GraphView, saver: Any, prefix: Path) -> None:
    """Compare the names and shapes that the graph restores with those in the weights' index."""
    try:
        stored = tf.train.load_checkpoint(str(prefix)).get_variable_to_shape_map()
    except Exception as error:
        raise ModelError(f"the index of {prefix} is damaged ({_first_line(error)}); copy it again") from error
    wanted: list[str] = []
    for name in view.upstream([saver.restore_op_name]):
        node = view.nodes.get(name)
        if node is not None and node.op == "RestoreV2":
            names = view.nodes[node_name(node.input[1])].attr["value"].tensor
            wanted += [name.decode() for name in tf.make_ndarray(names).ravel()]
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


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
