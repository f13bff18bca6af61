"""Convert a frozen graph with tf2onnx, in a fraction of the time and memory that its public functions take.

They copy the whole graph before each of their 24 passes and write all weights anew after it. This way does neither. It
uses names of tf2onnx 1.17 that are not public, so where one of them is gone, or the quick way fails, the public
functions convert, and a note says so.
"""

import gc
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from workbench.core.errors import ExportError, first_line
from workbench.core.packages import load_tensorflow
from workbench.core.process import send, serve
from workbench.export.tf2onnx_process import LARGE_GRAPH_BYTES, read_weights
from workbench.models.freezing import node_place
from workbench.onnx_graph.edit import STANDARD, all_nodes, attribute, graphs, set_attribute
from workbench.onnx_graph.file import check, name_batch
from workbench.onnx_graph.rewrites import (
    give_exact_sizes,
    keep_zero_padding,
    make_resize_exact,
    pair_integers,
)

_SLOWER = "so its public functions convert: the same graph, slower, with more memory"
_QUANTISED = (
    "Keras quantised {} layers to 8 bits; the ONNX file has the same whole numbers between pairs of QuantizeLinear and "
    "DequantizeLinear by 1, with the scales that Keras finds anew for each row around them"
)

ReadGraph = Callable[[], tuple[Any, dict[str, bytes]]]


def graph_to_onnx(
    read: ReadGraph, inputs: Sequence[str], outputs: Sequence[str], opset: int, *, folded: bool = True
) -> onnx.ModelProto:
    """Convert a graph: quickly where tf2onnx is inside as it was, else with its public function, saying so.

    `read` returns a GraphDef that may be modified, and the contents of its empty constants by node name; it is called
    again if the quick way fails. `folded` is False where TensorFlow's graph optimiser was not there to fold it.
    """
    tensors = [f"{name}:0" for name in (*inputs, *outputs)]
    options: dict[str, Any] = {"input_names": tensors[: len(inputs)], "output_names": tensors[len(inputs) :]}
    options |= {"tensors_to_rename": dict(zip(tensors, (*inputs, *outputs), strict=True)), "opset": opset}
    options["custom_rewriter"] = [_select_by_where]
    reason = "tf2onnx or TensorFlow has changed inside"
    try:
        if not folded:
            raise AttributeError("TensorFlow's graph optimiser is not there")
        convert = fast_conversion()
        reason = "the quick way through tf2onnx failed"
        return convert(*read(), **options)
    except Exception as error:
        send("note", text=f"{reason} ({first_line(error)}), {_SLOWER}")
    from tf2onnx.convert import from_graph_def

    graph_def, weights = read()
    for node in graph_def.node:
        if node.name in weights:
            node.attr["value"].tensor.tensor_content = weights[node.name]
    return from_graph_def(graph_def, name="model", **options)[0]


def fast_conversion() -> Callable[..., onnx.ModelProto]:
    """Return the quick conversion; ImportError or AttributeError where what it uses has another name."""
    from tf2onnx.optimizer import optimize_graph
    from tf2onnx.optimizer.optimizer_base import GraphOptimizerBase
    from tf2onnx.tf_utils import compress_graph_def
    from tf2onnx.tfonnx import process_tf_graph

    for function, argument in ((process_tf_graph, "const_node_values"), (optimize_graph, "catch_errors")):
        if argument not in inspect.signature(function).parameters:
            raise AttributeError(f"{argument} of {function.__name__} is not there")
    _ = GraphOptimizerBase.optimize, GraphOptimizerBase._optimize

    def convert(graph_def: Any, weights: dict[str, bytes], **options: Any) -> onnx.ModelProto:
        tf = load_tensorflow()
        contents = {**compress_graph_def(graph_def), **weights}
        weights.clear()
        with tf.device("/cpu:0"), tf.Graph().as_default() as graph:
            tf.import_graph_def(graph_def, name="")
            converted = process_tf_graph(graph, const_node_values=contents, continue_on_error=True, **options)
        contents.clear()
        _give_scalars_an_axis(converted)
        original, GraphOptimizerBase.optimize = GraphOptimizerBase.optimize, _optimize
        try:
            return optimize_graph(converted, catch_errors=False).make_model("workbench")
        finally:
            GraphOptimizerBase.optimize = original

    return convert


def _optimize(optimizer: Any, graph: Any, iteration: int) -> Any:
    """Run one pass; tf2onnx's own version of this also writes all weights anew."""
    optimizer.opt_iteration = iteration
    graph = optimizer._optimize(graph)
    graph.delete_unused_nodes(graph.outputs)
    return graph


def _select_by_where(graph: Any, nodes: Any) -> Any:
    """Let tf2onnx write Where for each choice between numbers: its sum of products makes infinities NaN."""
    for node in nodes:
        if node.type in ("Select", "SelectV2"):
            node.set_attr("handles_nan", True)
    return nodes


def _give_scalars_an_axis(graph: Any) -> None:
    """Turn each number that is added to a tensor into an array of one: tf2onnx 1.17 fails on a Conv plus a scalar.

    Its public functions then drop the pass that removes Transposes, as for each hard swish of MobileNetV3.
    """
    for node in [node for node in graph.get_nodes() if node.type == "Add"]:
        other = node.inputs[1]
        if other is None or not other.is_const() or not graph.get_shape(node.output[0]):
            continue
        value = other.get_tensor_value(as_list=False)
        if np.shape(value) == ():
            constant = graph.make_const(f"{node.name}_one_number", np.reshape(value, (1,)))
            graph.replace_input(node, node.input[1], constant.output[0], 1)


def convert(order: dict[str, Any]) -> None:
    """Convert one frozen graph; tells the parent of each step."""

    def read() -> tuple[Any, dict[str, bytes]]:
        graph_def = load_tensorflow().compat.v1.GraphDef()
        graph_def.ParseFromString(Path(order["graph"]).read_bytes())
        return graph_def, read_weights(Path(order["weights"]), order["index"])

    send("step", text="convert to ONNX")
    model = graph_to_onnx(read, order["inputs"], order["outputs"], order["opset"], folded=order["folded"])
    refuse_unknown(model, order["layer_of"])
    repair(model)
    send("step", text="write the file")
    path = Path(order["onnx"])  # large weights go to a second file, for ONNX's own ends at 2 GB
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) >= LARGE_GRAPH_BYTES
    onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data", convert_attribute=False)
    send("step", text="check the graph")
    check(path)


def refuse_unknown(model: onnx.ModelProto, layer_of: Mapping[str, str]) -> None:
    """Refuse operators of TensorFlow that tf2onnx has left as they are: ExportError names the layers they belong to."""
    unknown: dict[str, list[str]] = {}
    for node in all_nodes(model.graph):
        if node.domain in STANDARD and not onnx.defs.has(node.op_type):
            operators = unknown.setdefault(node_place(node.name, layer_of), [])
            operators += [node.op_type] if node.op_type not in operators else []
    if unknown:
        found = "; ".join(f"{place} ({', '.join(operators)})" for place, operators in unknown.items())
        raise ExportError(
            f"tf2onnx has no ONNX form for {found}; use another layer there, or compute that part outside the network"
        )


def repair(model: onnx.ModelProto) -> None:
    """Name the batch, and mend what tf2onnx writes in a way that a runtime refuses or gets wrong, in place."""
    for mend in (name_batch, pad_after_transposed, make_resize_exact, give_exact_sizes, keep_zero_padding):
        mend(model)
    if count := pair_integers(model):
        send("note", text=_QUANTISED.format(count))


def pad_after_transposed(model: onnx.ModelProto) -> None:
    """Write the negative pads of a ConvTranspose as `output_padding`, in place.

    They are the zeros that TensorFlow puts behind the last kernel, fewer than the stride, as `output_padding` must be.
    """
    for node in (node for graph in graphs(model.graph) for node in graph.node if node.op_type == "ConvTranspose"):
        pads = np.reshape(attribute(node, "pads", ()), (2, -1))
        if (pads < 0).any():
            missing = np.maximum(-pads.sum(axis=0), 0)
            set_attribute(node, "pads", np.where(missing, 0, pads).ravel().tolist())
            set_attribute(node, "output_padding", missing.tolist())


def main() -> int:
    """Convert what standard input orders; see `workbench.core.process`."""
    # TensorFlow loads Keras and Matplotlib behind it; a conversion needs neither.
    sys.modules.update({"keras.src": None, "tf_keras.src": None})  # type: ignore[dict-item]
    gc.disable()
    return serve(convert, lambda error: f"tf2onnx cannot convert this graph: {first_line(error)}", load_tensorflow)


if __name__ == "__main__":
    STATUS = main()
    sys.stderr.flush()
    os._exit(STATUS)  # to take TensorFlow down in order takes longer than many a conversion
