"""Carry a frozen graph's weights beside it: what handles the graph then no longer copies them at each step."""

import mmap
from pathlib import Path
from typing import Any

from workbench.environment import load_tensorflow
from workbench.export.freezing import FrozenGraph
from workbench.optional import require_backend

LARGE_GRAPH_BYTES = 1 << 30
_LARGE_WEIGHT_BYTES = 16 << 20
_SMALL_WEIGHT_BYTES = 1 << 16

Index = dict[str, tuple[int, int]]


def split_weights(graph_def: Any) -> tuple[Any, dict[str, bytes]]:
    """Take large constants out of a graph and leave placeholders of the same name, type and shape.

    Of a graph below 1 GiB only constants from 16 MiB on are taken, because TensorFlow folds batch normalisations
    into those that it can see; of a larger one all from 64 KiB on, because TensorFlow cannot pass on more than 2 GB.

    Args:
        graph_def: the frozen graph; not modified.
    Returns:
        A new GraphDef, and the bytes of each constant that was taken, by node name.
    """
    total = sum(len(_content(node)) for node in graph_def.node)
    limit = _LARGE_WEIGHT_BYTES if total < LARGE_GRAPH_BYTES else _SMALL_WEIGHT_BYTES
    light = load_tensorflow().compat.v1.GraphDef(versions=graph_def.versions, library=graph_def.library)
    weights = {}
    for node in graph_def.node:
        content = _content(node)
        if len(content) < limit:
            light.node.add().CopyFrom(node)
            continue
        weights[node.name] = content
        stand_in = light.node.add(name=node.name, op="Placeholder")
        stand_in.attr["dtype"].type = node.attr["dtype"].type
        stand_in.attr["shape"].shape.CopyFrom(node.attr["value"].tensor.tensor_shape)
    return light, weights


def join_weights(graph_def: Any, weights: dict[str, bytes]) -> None:
    """Turn the placeholders that `split_weights` left into constants again, in place.

    Args:
        graph_def: the graph.
        weights: the contents by node name; an empty content keeps the constant's type and shape only.
    """
    for node in graph_def.node:
        if node.name in weights and node.op == "Placeholder":
            shape, dtype = node.attr["shape"].shape, node.attr["dtype"].type
            tensor = node.attr["value"].tensor
            tensor.dtype = dtype
            tensor.tensor_shape.CopyFrom(shape)
            tensor.tensor_content = weights[node.name]
            node.op = "Const"
            del node.attr["shape"]


def fold_constants(frozen: FrozenGraph, graph_def: Any) -> Any:
    """Let TensorFlow calculate what is constant in a graph, with the settings of tf2onnx 1.17.

    Args:
        frozen: names the ends.
        graph_def: the graph to fold; not modified.
    Returns:
        The folded GraphDef.
    Raises:
        ImportError, AttributeError: TensorFlow's graph optimiser, which is not public, has moved.
    Source: tf2onnx.tf_loader.tf_optimize_grappler.
    """
    tf = load_tensorflow()
    optimizer = require_backend("tensorflow.python.grappler.tf_optimizer", "keras")
    config = tf.compat.v1.ConfigProto()
    config.graph_options.infer_shapes = True
    rewriting = config.graph_options.rewrite_options
    rewriting.optimizers[:] = ["constfold", "function", "dependency"]
    rewriting.experimental_disable_folding_quantization_emulation = True
    rewriting.function_optimization = rewriting.AGGRESSIVE  # takes apart the functions that XLA compiled before
    meta_graph = tf.compat.v1.MetaGraphDef()
    meta_graph.graph_def.CopyFrom(graph_def)
    ends = [f"{name}:0" for name in (*frozen.inputs, *frozen.outputs)]
    meta_graph.collection_def["train_op"].node_list.value.extend(ends)
    return optimizer.OptimizeGraph(config, meta_graph, verbose=False)


def write_weights(weights: dict[str, bytes], path: Path) -> Index:
    """Write contents one after another; return where each lies: (offset, length) in bytes."""
    index: Index = {}
    with open(path, "wb") as file:
        for name, content in weights.items():
            index[name] = (file.tell(), len(content))
            file.write(content)
    return index


def read_weights(path: Path, index: Index) -> dict[str, bytes]:
    """Read what `write_weights` wrote."""
    if not index:
        return {}
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return {name: mapped[offset : offset + length] for name, (offset, length) in index.items()}


def _content(node: Any) -> bytes:
    return node.attr["value"].tensor.tensor_content if node.op == "Const" else b""
