"""Floating-point operations of ONNX nodes: two for each multiplication that is followed by an addition."""

import html
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx
from onnx import inliner

from workbench.core.report import Cells, count, html_table, text_table
from workbench.onnx_graph.edit import (
    STANDARD,
    attribute,
    constants,
    fixed_shape,
    inferred_values,
    light_copy,
    real_inputs,
)
from workbench.onnx_graph.file import OnnxSummary, check, read
from workbench.onnx_graph.fold import fold_constants

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

LARGEST = 8
"""Layers that the report lists."""

PREFIXES = ("", "k", "M", "G", "T", "P")

HEADINGS = ("layer", "operator", "output", "cost", "parameters")


@dataclass(frozen=True)
class LayerCost:
    """One node that calculates or holds weights.

    Attributes:
        name: the node's, or that of what it writes where it has none.
        operator: such as `"Conv"`.
        output: shape of its first output; None for a dimension that is open.
        flops: floating-point operations; None where they cannot be counted.
        parameters: numbers in its weights.
    """

    name: str
    operator: str
    output: tuple[int | None, ...]
    flops: int | None
    parameters: int


@dataclass(frozen=True)
class OnnxInspection:
    """What an ONNX network holds and costs.

    Attributes:
        summary: inputs, outputs, operators, opset, and how many numbers the weights have.
        weight_bytes: size of the weights.
        batch: what an open batch counts as.
        flops: floating-point operations of one run; a lower bound where `uncounted` is not empty.
        uncounted: how many nodes of each operator could not be counted: no formula, or an open shape.
        layers: every node that calculates or holds weights, the most expensive first.
    """

    summary: OnnxSummary
    weight_bytes: int
    batch: int
    flops: int
    uncounted: dict[str, int]
    layers: tuple[LayerCost, ...]

    @property
    def operators(self) -> dict[str, int]:
        """How many nodes of each operator."""
        return self.summary.operators

    @property
    def parameters(self) -> int:
        """How many numbers the weights have."""
        return self.summary.parameters

    @property
    def transposes(self) -> int:
        """How many Transposes: each moves a whole tensor and calculates nothing."""
        return self.summary.operators.get("Transpose", 0)

    def to_text(self) -> str:
        """Write the summary, the cost and the largest layers."""
        return "\n".join([self.summary.to_text(), *self._cost(), "", *text_table(HEADINGS, self._rows())]) + "\n"

    def _repr_html_(self) -> str:
        lines = [*self.summary.to_text().splitlines(), *self._cost()]
        text = "".join(f"<div>{html.escape(line)}</div>" for line in lines)
        return f'<div style="color:inherit">{text}{html_table(HEADINGS, self._rows())}</div>'

    def _cost(self) -> list[str]:
        bound = "at least " if self.uncounted else ""
        missing = ", ".join(f"{number} {name}" for name, number in self.uncounted.items())
        return [
            f"size    {amount(self.weight_bytes, 'B')} of weights",
            f"cost    {bound}{amount(self.flops, 'FLOP')} for a batch of {self.batch}"
            + (f" (not counted: {missing})" if missing else ""),
            f"moves   {count(self.transposes, 'Transpose')}",
        ]

    def _rows(self) -> list[Cells]:
        return [
            (
                layer.name,
                layer.operator,
                " x ".join("?" if size is None else str(size) for size in layer.output),
                "?" if layer.flops is None else amount(layer.flops, "FLOP"),
                f"{layer.parameters:,}",
            )
            for layer in self.layers[:LARGEST]
        ]


def inspect(path: str | os.PathLike[str], *, batch: int = 1) -> OnnxInspection:
    """Tell what a network holds and what it costs to run.

    Args:
        path: the `.onnx` file; its weights may lie in other files, they are not read.
        batch: what an open first dimension of the inputs counts as.
    Returns:
        Inputs, outputs, operators, parameters, floating-point operations and the largest layers.
    Raises:
        ModelError: not a valid ONNX model.
    """
    summary = check(path)
    model = read(path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer} | constants(model.graph)
    flat = _inline(light_copy(model))
    _close_batch(flat, batch)
    while fold_constants(flat):  # sizes that are calculated, so that shapes after them are known
        pass
    values = inferred_values(flat)
    costs = [_layer(node, values, weights) for node in flat.graph.node]
    layers = [layer for layer in costs if layer.flops or layer.flops is None or layer.parameters]
    layers.sort(key=lambda layer: (layer.flops is None, layer.flops or 0, layer.parameters), reverse=True)
    uncounted = Counter(layer.operator for layer in costs if layer.flops is None)
    flops = sum(layer.flops or 0 for layer in costs)
    size = sum(_bytes(tensor) for tensor in weights.values())
    return OnnxInspection(summary, size, batch, flops, dict(uncounted.most_common()), tuple(layers))


def amount(number: int, unit: str) -> str:
    """Write a large number with three digits and a prefix of ten to the power of three.

    >>> amount(7_746_000_000, "FLOP"), amount(0, "B"), amount(999_999, "B")
    ('7.75 GFLOP', '0 B', '1 MB')
    """
    rounded = float(f"{number:.3g}")
    power = 0 if rounded < 1 else min(int(math.log10(rounded)) // 3, len(PREFIXES) - 1)
    return f"{rounded / 1000**power:.3g} {PREFIXES[power]}{unit}"


def _inline(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the model's own functions where they are called, as the nodes that they stand for."""
    return inliner.inline_local_functions(model) if model.functions else model


def _close_batch(model: onnx.ModelProto, batch: int) -> None:
    """Fix the open first dimension of the inputs, and every other of the same name, in place."""
    inputs = real_inputs(model.graph)
    firsts = [dim for value in inputs for dim in value.type.tensor_type.shape.dim[:1] if not dim.HasField("dim_value")]
    names = {dim.dim_param for dim in firsts} - {""}
    values = (*inputs, *model.graph.value_info, *model.graph.output)
    same = [dim for value in values for dim in value.type.tensor_type.shape.dim if dim.dim_param in names]
    for dim in (*firsts, *same):
        dim.dim_value = batch


def _layer(node: onnx.NodeProto, values: Values, weights: dict[str, onnx.TensorProto]) -> LayerCost:
    result = node.output[0]
    own = [weights[name] for name in dict.fromkeys(node.input) if name in weights]
    parameters = sum(math.prod(tensor.dims) for tensor in own) if node.op_type != "Constant" else 0
    return LayerCost(node.name or result, node.op_type, _shape(values.get(result)), flops_of(node, values), parameters)


def _shape(value: onnx.TypeProto.Tensor | None) -> tuple[int | None, ...]:
    if value is None:
        return ()
    return fixed_shape(value) or tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in value.shape.dim)


def _bytes(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
