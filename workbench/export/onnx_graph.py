"""Look into ONNX graphs and change them: the one door to reading, checking, mending and fusing."""

import onnx

from workbench.export.fuse import fuse_argmax, fuse_preprocessing
from workbench.export.onnx_file import OnnxSummary, check, read

__all__ = ["OnnxSummary", "check", "fuse_argmax", "fuse_preprocessing", "make_resize_exact", "name_batch", "read"]


def name_batch(model: onnx.ModelProto, name: str = "batch") -> None:
    """Give an open first dimension of every input and output the same name, in place."""
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_param = name


def make_resize_exact(model: onnx.ModelProto) -> int:
    """Rewrite tf2onnx's nearest Resize to the same map in words that TensorRT accepts, in place.

    tf2onnx writes `tf_half_pixel_for_nn` with `floor`, which the TensorRT parser refuses; `half_pixel`
    with `round_prefer_ceil` picks the same source pixel at every scale.

    Returns:
        How many nodes were rewritten.
    """
    count = 0
    for node in model.graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        mode = attributes.get("coordinate_transformation_mode")
        if node.op_type == "Resize" and mode is not None and mode.s == b"tf_half_pixel_for_nn":
            mode.s, attributes["nearest_mode"].s = b"half_pixel", b"round_prefer_ceil"
            count += 1
    return count
