"""The child process of a conversion: reads an order from standard input, writes a checked ONNX file.

`python -m workbench.export.tf2onnx_child` takes one line of JSON: the files of the graph and its weights, the names of
its ends, the opset, and the file to write.
"""

import gc
import os
import sys
from pathlib import Path
from typing import Any

import onnx

from workbench.environment import load_tensorflow
from workbench.export.conversion_process import say, serve_order
from workbench.export.fast_tf2onnx import graph_to_onnx
from workbench.export.freezing import first_line
from workbench.export.graph_weights import LARGE_GRAPH_BYTES, read_weights
from workbench.export.onnx_file import check
from workbench.export.onnx_names import name_batch
from workbench.export.onnx_rewrites import make_resize_exact
from workbench.export.pad_pool import keep_zero_padding
from workbench.export.resize import give_exact_sizes


def convert(order: dict[str, Any]) -> None:
    """Convert one frozen graph; prints a line per step."""

    def read() -> tuple[Any, dict[str, bytes]]:
        graph_def = load_tensorflow().compat.v1.GraphDef()
        graph_def.ParseFromString(Path(order["graph"]).read_bytes())
        return graph_def, read_weights(Path(order["weights"]), order["index"])

    say("step", "convert to ONNX")
    model = graph_to_onnx(read, order["inputs"], order["outputs"], order["opset"], folded=order["folded"])
    repair(model)
    say("step", "write the file")
    save(model, order["onnx"])
    say("step", "check the graph")
    check(order["onnx"])


def repair(model: onnx.ModelProto) -> None:
    """Name the batch, and mend what tf2onnx writes in a way that a runtime refuses or gets wrong, in place."""
    name_batch(model)
    make_resize_exact(model)
    give_exact_sizes(model)
    keep_zero_padding(model)


def save(model: onnx.ModelProto, path: str) -> None:
    """Write a model; weights of more than 1 GiB go to a second file, for ONNX's own file ends at 2 GB."""
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) < LARGE_GRAPH_BYTES:
        onnx.save(model, path)
        return
    onnx.save(model, path, save_as_external_data=True, location=f"{Path(path).name}.data", convert_attribute=False)


def main() -> int:
    """Convert what standard input orders; the last line of standard error is the reason of a failure."""
    # TensorFlow loads Keras and Matplotlib behind it; a conversion needs neither.
    sys.modules.update({"keras.src": None, "tf_keras.src": None})  # type: ignore[dict-item]
    gc.disable()
    return serve_order(convert, lambda error: f"tf2onnx cannot convert this graph: {first_line(error)}", _start)


def _start() -> None:
    say("step", "start TensorFlow")
    load_tensorflow()


if __name__ == "__main__":
    STATUS = main()
    sys.stderr.flush()
    os._exit(STATUS)  # to take TensorFlow down in order takes longer than many a conversion
