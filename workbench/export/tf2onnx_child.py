"""The child process of a conversion: a frozen graph in, a checked ONNX file out.

`python -m workbench.export.tf2onnx_child graph.pb model.onnx inputs outputs opset`, names joined by commas.
"""

import sys

import onnx

from workbench.environment import load_tensorflow
from workbench.errors import WorkbenchError
from workbench.export.onnx_graph import check, make_resize_exact, name_batch


def convert(pb_path: str, onnx_path: str, inputs: list[str], outputs: list[str], opset: int) -> None:
    """Convert one frozen graph; prints a line per step."""
    _step("start TensorFlow")
    tf = load_tensorflow()
    from tf2onnx.convert import from_graph_def

    graph_def = tf.compat.v1.GraphDef()
    with open(pb_path, "rb") as file:
        graph_def.ParseFromString(file.read())
    _step("convert to ONNX")
    tensors = [f"{name}:0" for name in (*inputs, *outputs)]
    model, _ = from_graph_def(
        graph_def,
        name="model",
        input_names=tensors[: len(inputs)],
        output_names=tensors[len(inputs) :],
        opset=opset,
        tensors_to_rename=dict(zip(tensors, (*inputs, *outputs), strict=True)),
    )
    name_batch(model)
    make_resize_exact(model)
    _step("write the file")
    onnx.save(model, onnx_path)
    _step("check the graph")
    check(onnx_path)


def main(arguments: list[str]) -> int:
    """Run the conversion named on the command line; the last line of standard error is the reason of a failure."""
    pb_path, onnx_path, inputs, outputs, opset = arguments
    try:
        convert(pb_path, onnx_path, inputs.split(","), outputs.split(","), int(opset))
    except KeyboardInterrupt:
        return 130
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        print(
            f"error: tf2onnx cannot convert this graph: {(lines or [type(error).__name__])[0]}",
            file=sys.stderr,
        )
        return 1
    return 0


def _step(name: str) -> None:
    print(f"step: {name}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
