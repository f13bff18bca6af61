"""What an ONNX network holds and what it costs: weights, and floating-point operations of each layer."""

import math
import os
from collections import Counter
from dataclasses import dataclass

import onnx
from onnx import inliner

from workbench.core.errors import InputError
from workbench.core.report import Report, Table, count
from workbench.onnx_graph import edit
from workbench.onnx_graph.edit import CustomNode, custom_nodes
from workbench.onnx_graph.file import OnnxSummary, check, read
from workbench.onnx_graph.fold import fold_constants

Shape = tuple[int, ...]

RECURRENT_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
COUNTED = {"Conv", "ConvInteger", "ConvTranspose", "MatMul", "MatMulInteger", "Gemm", *RECURRENT_GATES}
# They may be most of the work, and are not counted here.
WITHOUT_FORMULA = {"Einsum", "Attention", "DeformConv", "DFT", "STFT", "Loop", "Scan", "If", "RotaryEmbedding",
                   "LinearAttention"}  # fmt: skip
LARGEST_BATCH = 1 << 20
LARGEST = 8  # layers that the report lists
PREFIXES = ("", "k", "M", "G", "T", "P")
HEADINGS = ("layer", "operator", "output", "cost", "parameters")


def flops_of(node: onnx.NodeProto, values: edit.Values) -> int | None:
    """Count the floating-point operations of one node; None where a shape is open, or there is no formula here.

    Convolutions, matrix products and recurrent layers are counted, two operations for a multiplication and its
    addition; everything else is 0, because it is a few operations for each number that is moved anyway.
    Source: the definitions of Conv, ConvTranspose, MatMul, Gemm, LSTM, GRU and RNN in the ONNX operator list.
    """
    if node.domain not in edit.STANDARD or node.op_type in WITHOUT_FORMULA:
        return None
    if node.op_type not in COUNTED:
        return 0
    first, second = (edit.fixed_shape(values.get(name)) for name in node.input[:2])
    result = edit.fixed_shape(values.get(next(filter(None, node.output), "")))
    if first is None or second is None or result is None:
        return None
    try:
        return 2 * _products(node, first, second, result)
    except IndexError:  # shapes that the operator does not take
        return None


def _products(node: onnx.NodeProto, first: Shape, second: Shape, result: Shape) -> int:
    """How many multiplications a node of `COUNTED` does."""
    match node.op_type:
        case "Conv" | "ConvInteger":  # each output number: the kernel, and the input channels of its group
            return math.prod(result) * math.prod(second[1:])
        case "ConvTranspose":  # each input number: the kernel, and the output channels of its group
            return math.prod(first) * math.prod(second[1:])
        case "MatMul" | "MatMulInteger":
            return math.prod(result) * first[-1]
        case "Gemm":
            return math.prod(result) * first[0 if edit.attribute(node, "transA", 0) else 1]
    # at each step and for each gate, the input and the state before go through a matrix each
    steps_and_batch, directions, hidden = first[0] * first[1], second[0], second[1] // RECURRENT_GATES[node.op_type]
    return steps_and_batch * directions * second[1] * (first[2] + hidden)


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
class OnnxInspection(Report):
    """What an ONNX network holds and costs.

    Attributes:
        summary: inputs, outputs, operators, opset, and how many numbers the weights have.
        weight_bytes: size of the weights.
        batch: what an open batch counts as.
        flops: floating-point operations of one run; a lower bound where `uncounted` is not empty.
        uncounted: how many nodes of each operator could not be counted: no formula, or an open shape.
        layers: every node that calculates or holds weights, the most expensive first.
        custom: the nodes that are no operators of ONNX's own.
    """

    summary: OnnxSummary
    weight_bytes: int
    batch: int
    flops: int
    uncounted: dict[str, int]
    layers: tuple[LayerCost, ...]
    custom: tuple[CustomNode, ...] = ()

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

    @property
    def verdict(self) -> str:
        """What one run costs."""
        bound = "at least " if self.uncounted else ""
        missing = ", ".join(f"{number} {name}" for name, number in self.uncounted.items())
        text = f"cost    {bound}{amount(self.flops, 'FLOP')} for a batch of {self.batch}"
        return f"{text} (not counted: {missing})" if missing else text

    def _tables(self) -> list[Table]:
        rows = [
            (
                layer.name,
                layer.operator,
                " x ".join("?" if size is None else str(size) for size in layer.output),
                "?" if layer.flops is None else amount(layer.flops, "FLOP"),
                f"{layer.parameters:,}",
            )
            for layer in self.layers[:LARGEST]
        ]
        return [Table(HEADINGS, rows)]

    def _remarks(self) -> list[str]:
        size = f"size    {amount(self.weight_bytes, 'B')} of weights"
        custom = [f"custom  {node}: {_route(node)}" for node in self.custom]
        return [*self.summary.to_text().splitlines(), size, f"moves   {count(self.transposes, 'Transpose')}", *custom]


def inspect(path: str | os.PathLike[str], *, batch: int = 1) -> OnnxInspection:
    """Tell what a network holds and what it costs to run.

    Args:
        path: the `.onnx` file; its weights may lie in other files, they are not read.
        batch: what an open first dimension of the inputs counts as.
    Returns:
        Inputs, outputs, operators, parameters, floating-point operations and the largest layers.
    Raises:
        InputError: no batch that can be counted.
        ModelError: not a valid ONNX model.
    """
    if type(batch) is not int or not 1 <= batch <= LARGEST_BATCH:
        raise InputError(f"got batch={batch!r}, expected a whole number of 1 to {LARGEST_BATCH:,}")
    summary, model = check(path), read(path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer} | edit.constants(model.graph)
    flat = edit.light_copy(model)
    if model.functions:  # each call becomes the nodes that it stands for
        flat = inliner.inline_local_functions(flat)
    _close_batch(flat, batch)
    while fold_constants(flat):  # sizes that are calculated, so that shapes after them are known
        pass
    values = edit.inferred_values(flat)
    costs = [_layer(node, values, weights) for node in flat.graph.node]
    layers = [layer for layer in costs if layer.flops or layer.flops is None or layer.parameters]
    layers.sort(key=lambda layer: (layer.flops is None, layer.flops or 0, layer.parameters), reverse=True)
    uncounted = Counter(layer.operator for layer in costs if layer.flops is None)
    flops = sum(layer.flops or 0 for layer in costs)
    size = edit.weight_bytes(weights.values())
    return OnnxInspection(
        summary, size, batch, flops, dict(uncounted.most_common()), tuple(layers), tuple(custom_nodes(model))
    )


def _route(node: CustomNode) -> str:
    """Who computes a custom node, one clause."""
    if node.has_function:
        return "a function of the file; an operator or a plugin of that name may stand for it"
    return "no function: ONNX Runtime needs its own operator or register_operator, TensorRT a plugin"


def amount(number: int, unit: str) -> str:
    """Write a large number with three digits and a prefix of ten to the power of three.

    >>> amount(7_746_000_000, "FLOP"), amount(0, "B"), amount(999_999, "B")
    ('7.75 GFLOP', '0 B', '1 MB')
    """
    rounded = float(f"{number:.3g}")
    power = 0 if rounded < 1 else min(int(math.log10(rounded)) // 3, len(PREFIXES) - 1)
    return f"{rounded / 1000**power:.3g} {PREFIXES[power]}{unit}"


def _close_batch(model: onnx.ModelProto, batch: int) -> None:
    """Fix the open first dimension of the inputs, and every other of the same name, in place."""
    inputs = edit.real_inputs(model.graph)
    firsts = [dim for value in inputs for dim in value.type.tensor_type.shape.dim[:1] if not dim.HasField("dim_value")]
    names = {dim.dim_param for dim in firsts} - {""}
    values = (*inputs, *model.graph.value_info, *model.graph.output)
    same = [dim for value in values for dim in value.type.tensor_type.shape.dim if dim.dim_param in names]
    for dim in (*firsts, *same):
        dim.dim_value = batch


def _layer(node: onnx.NodeProto, values: edit.Values, weights: dict[str, onnx.TensorProto]) -> LayerCost:
    result = node.output[0]
    own = [weights[name] for name in dict.fromkeys(node.input) if name in weights]
    parameters = sum(math.prod(tensor.dims) for tensor in own) if node.op_type != "Constant" else 0
    shape = edit.dims(values[result]) if result in values else ()
    return LayerCost(node.name or result, node.op_type, shape, flops_of(node, values), parameters)
