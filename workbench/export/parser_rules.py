"""What TensorRT's parser is known to refuse, for machines without TensorRT. These are rules, not the parser's word.

Each was seen to be refused by the parser of TensorRT-RTX 1.7.1; what no rule finds may be refused all the same.
"""

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from workbench.export.graph_edit import STANDARD, attribute, constants, real_inputs

REFUSED_OPERATORS = frozenset(
    {"Det", "Unique", "NonZero", "MaxUnpool", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Compress", "DFT"}
    | {"SequenceConstruct", "SequenceAt", "SplitToSequence", "ConcatFromSequence", "Optional", "OptionalGetElement"}
    | {"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "RoiAlign", "DeformConv", "StringNormalizer"}
)
REFUSED_TYPES = frozenset(
    {TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128, TensorProto.INT16, TensorProto.UINT16}
    | {TensorProto.UINT32, TensorProto.UINT64}
)
OTHER_DOMAINS = frozenset({"com.microsoft"})
"""Domains of which the parser takes some operators."""

LARGEST_RANK = 8


def refused_ends(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """The inputs and outputs whose type or rank TensorRT does not have.

    Yields:
        (name, what it is, such as `"int16"` or `"of 9 axes"`).
    """
    for value in (*real_inputs(model.graph), *model.graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type in REFUSED_TYPES:
            yield value.name, TensorProto.DataType.Name(tensor.elem_type).lower()
        elif len(tensor.shape.dim) > LARGEST_RANK:
            yield value.name, f"of {len(tensor.shape.dim)} axes"


def refused_node(node: onnx.NodeProto, known: dict[str, onnx.TensorProto]) -> str:
    """Why the parser is known to refuse a node, one clause; an empty text where no rule speaks against it."""
    if node.domain not in (*STANDARD, *OTHER_DOMAINS):
        return f"the domain {node.domain} is not ONNX's"
    if node.op_type in REFUSED_OPERATORS and node.domain in STANDARD:
        return "the parser does not have this operator"
    if node.op_type == "Resize":
        return _refused_resize(node)
    if node.op_type == "MaxPool" and (any(node.output[1:]) or set(attribute(node, "dilations", [1])) != {1}):
        return "indices and dilations of a MaxPool are refused"
    if node.op_type == "BatchNormalization" and (attribute(node, "training_mode", 0) or any(node.output[1:])):
        return "it is in training mode"
    mode = node.input[2] if node.op_type == "Dropout" and len(node.input) > 2 else ""
    if mode in known and onnx.numpy_helper.to_array(known[mode]).any():
        return "it is in training mode"
    return ""


def refused_nodes(model: onnx.ModelProto) -> Iterator[tuple[int, onnx.NodeProto, str]]:
    """Number, node and reason of every node that a rule speaks against."""
    known = constants(model.graph)
    functions = {(function.domain, function.name) for function in model.functions}
    for index, node in enumerate(model.graph.node):
        reason = "" if (node.domain, node.op_type) in functions else refused_node(node, known)
        if reason:
            yield index, node, reason


def _refused_resize(node: onnx.NodeProto) -> str:
    mode = attribute(node, "coordinate_transformation_mode", b"half_pixel")
    if attribute(node, "antialias", 0):
        return "it antialiases"
    if mode == b"tf_half_pixel_for_nn" and attribute(node, "nearest_mode") != b"round_prefer_floor":
        return "tf_half_pixel_for_nn is taken with round_prefer_floor only"
    return f"{mode.decode()} is refused" if mode in (b"tf_crop_and_resize", b"half_pixel_symmetric") else ""
