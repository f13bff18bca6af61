"""Give an ONNX Resize the exact size of its result where a float32 scale would miss it by one pixel.

tf2onnx writes a Resize from 7 to 31 pixels as the scale 31/7. In float32 that is a little less than 31/7, and ONNX
rounds the size down: 30 pixels. It happens to about every third pair of sizes, but never to a whole scale such as 2.
"""

from fractions import Fraction

import numpy as np
import onnx
from onnx import helper, numpy_helper

OLDEST_OPSET = 15
"""The first opset whose Shape can give a part of the shape."""

_LARGEST_SIDE = 4096


def give_exact_sizes(model: onnx.ModelProto) -> int:
    """Replace scales that lose a pixel by sizes, in place; the batch stays open.

    Args:
        model: a whole model.
    Returns:
        How many Resize nodes were changed. One whose input has an unknown height or width stays as it is, and
        so does every one in a model older than `OLDEST_OPSET`.
    Source: ONNX operator Resize: output size = floor(input size * scale).
    """
    if next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")) < OLDEST_OPSET:
        return 0
    changed = 0
    for node in [node for node in model.graph.node if node.op_type == "Resize" and len(node.input) == 3]:
        scales = _constant(model, node.input[2])
        if any(_is_too_small(scale) for scale in scales):
            changed += _use_sizes(model, node, scales)
    return changed


def _is_too_small(scale: np.float32) -> bool:
    """Whether a scale is a ratio of two sizes that float32 has rounded down."""
    ratio = Fraction(float(scale)).limit_denominator(_LARGEST_SIDE)
    return Fraction(float(scale)) < ratio and np.float32(float(ratio)) == scale


def _use_sizes(model: onnx.ModelProto, node: onnx.NodeProto, scales: np.ndarray) -> bool:
    """Read the sizes of the axes that keep theirs from the input, and write the others down."""
    kept = int(np.argmax(scales != 1))
    sides = _shape(model, node.input[0])[kept:]
    if len(sides) != len(scales) - kept or not all(sides):
        return False
    name, graph = f"{node.output[0]}_sizes", model.graph
    sizes = [round(side * float(scale)) for side, scale in zip(sides, scales[kept:], strict=True)]
    graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), f"{name}_new"))
    parts = [
        helper.make_node("Shape", [node.input[0]], [f"{name}_kept"], f"{name}_kept", start=0, end=kept),
        helper.make_node("Concat", [f"{name}_kept", f"{name}_new"], [name], name, axis=0),
    ]
    where = next(index for index, other in enumerate(graph.node) if other.output[0] == node.output[0])
    for part in reversed(parts):
        graph.node.insert(where, part)
    resize = graph.node[where + len(parts)]
    del resize.input[1:]
    resize.input.extend(["", "", name])
    return True


def _constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    found = next((tensor for tensor in model.graph.initializer if tensor.name == name), None)
    return numpy_helper.to_array(found) if found is not None else np.empty(0, np.float32)


def _shape(model: onnx.ModelProto, name: str) -> list[int]:
    """The shape of a tensor, 0 for an open dimension; inferred anew, because an earlier Resize may have changed."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    value = next((value for value in (*graph.value_info, *graph.input) if value.name == name), None)
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim] if value is not None else []
