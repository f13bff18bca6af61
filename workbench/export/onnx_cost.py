"""Floating-point operations of ONNX nodes: two for each multiplication that is followed by an addition."""

import math
from collections.abc import Callable, Mapping

import onnx

from workbench.export.graph_edit import STANDARD, attribute, fixed_shape

Shape = tuple[int, ...]
Values = Mapping[str, onnx.TypeProto.Tensor]

RECURRENT_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
WITHOUT_FORMULA = frozenset(
    {"Einsum", "Attention", "DeformConv", "DFT", "STFT", "Loop", "Scan", "If", "RotaryEmbedding", "LinearAttention"}
)
"""Operators that may be most of the work and are not counted here."""


def flops_of(node: onnx.NodeProto, values: Values) -> int | None:
    """Count the floating-point operations of one node.

    Convolutions, matrix products and recurrent layers are counted, two operations for a multiplication and its
    addition; everything else is 0, because it is a few operations for each number that is moved anyway.

    Args:
        node: a node of ONNX's own domain, or of another.
        values: element type and shape of every tensor, with the batch to count for.
    Returns:
        The count; None where a shape is open, or there is no formula here.

    Source: the definitions of Conv, ConvTranspose, MatMul, Gemm, LSTM, GRU and RNN in the ONNX operator list.
    """
    if node.domain not in STANDARD or node.op_type in WITHOUT_FORMULA:
        return None
    formula = _FORMULAS.get(node.op_type)
    if formula is None:
        return 0
    first, second = (fixed_shape(values.get(name)) for name in node.input[:2])
    result = fixed_shape(values.get(next(filter(None, node.output), "")))
    if first is None or second is None or result is None:
        return None
    return 2 * formula(node, first, second, result)


def _conv(node: onnx.NodeProto, x: Shape, weight: Shape, y: Shape) -> int:
    """Each output number is a sum over the kernel and the input channels of its group: weight is (out, in / g, ...)."""
    return math.prod(y) * math.prod(weight[1:])


def _conv_transpose(node: onnx.NodeProto, x: Shape, weight: Shape, y: Shape) -> int:
    """Each input number goes through the kernel to the output channels of its group: weight is (in, out / g, ...)."""
    return math.prod(x) * math.prod(weight[1:])


def _matmul(node: onnx.NodeProto, a: Shape, b: Shape, y: Shape) -> int:
    """Each output number is a sum over the last axis of the first factor."""
    return math.prod(y) * a[-1]


def _gemm(node: onnx.NodeProto, a: Shape, b: Shape, y: Shape) -> int:
    return math.prod(y) * a[0 if attribute(node, "transA", 0) else 1]


def _recurrent(node: onnx.NodeProto, x: Shape, weight: Shape, y: Shape) -> int:
    """At each step and for each gate, the input and the state before go through a matrix each."""
    steps_and_batch, directions, hidden = x[0] * x[1], weight[0], weight[1] // RECURRENT_GATES[node.op_type]
    return steps_and_batch * directions * weight[1] * (x[2] + hidden)


_FORMULAS: dict[str, Callable[[onnx.NodeProto, Shape, Shape, Shape], int]] = {
    "Conv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "Gemm": _gemm,
    **dict.fromkeys(RECURRENT_GATES, _recurrent),
}
