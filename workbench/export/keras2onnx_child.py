"""The child process of a conversion with keras2onnx 1.7.0, the last one, of 2020.

`python -m workbench.export.keras2onnx_child` takes one line of JSON: the files of the model's configuration and
weights, the names its ends shall have, the opset, and the file to write.
"""

import sys
from typing import Any

import numpy as np
import onnx

from workbench.environment import load_tensorflow, load_tf_keras
from workbench.errors import ExportError, ModelError
from workbench.export.conversion_process import say, serve_order
from workbench.export.freezing import first_line
from workbench.export.keras2onnx_stack import import_keras2onnx
from workbench.export.onnx_file import check
from workbench.export.onnx_names import name_batch, rename_ends
from workbench.export.onnx_rewrites import make_resize_exact
from workbench.export.pad_pool import keep_zero_padding


def convert(order: dict[str, Any]) -> None:
    """Convert one model; prints a line per step."""
    say("step", "start TensorFlow and keras2onnx")
    tf, keras = load_tensorflow(), load_tf_keras()
    # keras2onnx reads the graph that TensorFlow 1 would have made
    tf.compat.v1.disable_eager_execution()
    keras2onnx = import_keras2onnx(keras)
    say("step", "rebuild the model")
    with open(order["config"], encoding="utf-8") as file:
        model = keras.models.model_from_json(file.read())
    with np.load(order["weights"], allow_pickle=False) as arrays:
        model.set_weights([arrays[str(index)] for index in range(len(arrays.files))])
    say("step", "convert to ONNX")
    converted = keras2onnx.convert_keras(model, model.name, target_opset=order["opset"])
    rename_ends(converted, order["inputs"], order["outputs"])
    name_batch(converted)
    make_resize_exact(converted)
    keep_zero_padding(converted)
    say("step", "write the file")
    onnx.save(converted, order["onnx"])
    say("step", "check the graph")
    try:
        check(order["onnx"])
    except ModelError as error:
        reason = first_line(error.__cause__ or error)
        raise ExportError(f"keras2onnx wrote a graph that is not valid ({reason}); use exporter='tf2onnx'") from error


def main() -> int:
    """Convert what standard input orders; the last line of standard error is the reason of a failure."""
    return serve_order(convert, _explain)


def _explain(error: Exception) -> str:
    reason = f"{type(error).__name__}: {first_line(error)}"
    return f"keras2onnx, archived in 2020, cannot convert this model ({reason}); use exporter='tf2onnx'"


if __name__ == "__main__":
    sys.exit(main())
