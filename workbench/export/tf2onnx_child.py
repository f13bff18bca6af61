"""The child process of a conversion: reads an order from standard input, writes a checked ONNX file.

`python -m workbench.export.tf2onnx_child` takes one line of JSON: the files of the graph and its weights, the names of
its ends, the opset, and the file to write.
"""

import gc
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from workbench.environment import load_tensorflow
from workbench.errors import WorkbenchError
from workbench.export.conversion_process import say
from workbench.export.freezing import first_line
from workbench.export.graph_weights import LARGE_GRAPH_BYTES, read_weights
from workbench.export.onnx_file import check
from workbench.export.onnx_names import name_batch
from workbench.export.onnx_rewrites import make_resize_exact
from workbench.export.resize import give_exact_sizes

_SLOWER = "tf2onnx has changed inside ({}), so its public functions convert: the same graph, slower, with more memory"


def convert(order: dict[str, Any]) -> None:
    """Convert one frozen graph; prints a line per step."""
    tf = load_tensorflow()
    graph_def = tf.compat.v1.GraphDef()
    graph_def.ParseFromString(Path(order["graph"]).read_bytes())
    weights = read_weights(Path(order["weights"]), order["index"])
    say("step", "convert to ONNX")
    model = graph_to_onnx(graph_def, weights, order["inputs"], order["outputs"], order["opset"], folded=order["folded"])
    del graph_def, weights
    name_batch(model)
    make_resize_exact(model)
    give_exact_sizes(model)
    say("step", "write the file")
    save(model, order["onnx"])
    say("step", "check the graph")
    check(order["onnx"])


def graph_to_onnx(
    graph_def: Any, weights: dict[str, bytes], inputs: list[str], outputs: list[str], opset: int, *, folded: bool = True
) -> onnx.ModelProto:
    """Convert a graph with tf2onnx: quickly where its insides are as they were, else with its public function.

    Args:
        graph_def: the graph, folded by `graph_weights.fold_constants`; modified.
        weights: contents of the constants that are empty in the graph, by node name.
        inputs: names of its inputs.
        outputs: names of its outputs.
        opset: ONNX operator set.
        folded: False where the graph could not be folded.
    """
    try:
        fast = _fast_conversion() if folded else _moved("TensorFlow's graph optimiser")
    except (ImportError, AttributeError) as error:
        say("note", _SLOWER.format(first_line(error)))
        for node in graph_def.node:
            if node.name in weights:
                node.attr["value"].tensor.tensor_content = weights[node.name]
        fast = _public_conversion
    tensors = [f"{name}:0" for name in (*inputs, *outputs)]
    ends = {"input_names": tensors[: len(inputs)], "output_names": tensors[len(inputs) :]}
    return fast(
        graph_def, weights, opset=opset, tensors_to_rename=dict(zip(tensors, (*inputs, *outputs), strict=True)), **ends
    )


def save(model: onnx.ModelProto, path: str) -> None:
    """Write a model; weights of more than 1 GiB go to a second file, for ONNX's own file ends at 2 GB."""
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) < LARGE_GRAPH_BYTES:
        onnx.save(model, path)
        return
    onnx.save(model, path, save_as_external_data=True, location=f"{Path(path).name}.data", convert_attribute=False)


def _fast_conversion() -> Callable[..., onnx.ModelProto]:
    """Return the fast conversion.

    Raises:
        ImportError, AttributeError: a function of tf2onnx that is not public, or its argument, has another name now.
    """
    from tf2onnx.optimizer import optimize_graph
    from tf2onnx.optimizer.optimizer_base import GraphOptimizerBase
    from tf2onnx.tf_utils import compress_graph_def
    from tf2onnx.tfonnx import process_tf_graph

    _require_argument(process_tf_graph, "const_node_values")
    _require_argument(optimize_graph, "catch_errors")
    for name in ("optimize", "_optimize"):
        getattr(GraphOptimizerBase, name)

    def run(graph_def: Any, weights: dict[str, bytes], **options: Any) -> onnx.ModelProto:
        tf = load_tensorflow()
        contents = {**compress_graph_def(graph_def), **weights}
        with tf.device("/cpu:0"), tf.Graph().as_default() as graph:
            tf.import_graph_def(graph_def, name="")
            converted = process_tf_graph(graph, const_node_values=contents, continue_on_error=True, **options)
        contents.clear()
        GraphOptimizerBase.optimize = _optimize
        return optimize_graph(converted, catch_errors=False).make_model("workbench")

    return run


def _optimize(optimizer: Any, graph: Any, iteration: int) -> Any:
    """Run one pass; tf2onnx's own version of this also writes all weights anew after each of its 24 passes."""
    optimizer.opt_iteration = iteration
    graph = optimizer._optimize(graph)
    graph.delete_unused_nodes(graph.outputs)
    return graph


def _public_conversion(graph_def: Any, weights: dict[str, bytes], **options: Any) -> onnx.ModelProto:
    from tf2onnx.convert import from_graph_def

    return from_graph_def(graph_def, name="model", **options)[0]


def _require_argument(function: Callable[..., Any], name: str) -> None:
    if name not in inspect.signature(function).parameters:
        _moved(f"{name} of {function.__name__}")


def _moved(name: str) -> Any:
    raise AttributeError(f"{name} is not there")


def main() -> int:
    """Convert what standard input orders; the last line of standard error is the reason of a failure."""
    # TensorFlow loads Keras and Matplotlib behind it; a conversion needs neither.
    sys.modules.update({"keras.src": None, "tf_keras.src": None})  # type: ignore[dict-item]
    gc.disable()
    try:
        say("step", "start TensorFlow")
        load_tensorflow()
        line = sys.stdin.readline()
        if line:
            convert(json.loads(line))
    except KeyboardInterrupt:
        return 130
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        print(f"error: tf2onnx cannot convert this graph: {first_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    STATUS = main()
    sys.stderr.flush()
    os._exit(STATUS)  # to take TensorFlow down in order takes longer than many a conversion
