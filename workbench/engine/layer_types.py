"""Which types TensorRT gave the layers of a network, held against the precision that was asked for.

These are types, not kernels: a kernel is chosen on the GPU, when the engine is optimised for it.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.core.errors import EngineBuildError
from workbench.engine.tensorrt_api import dtype_name
from workbench.precision.spec import EIGHT_BITS, TYPE_OF

if TYPE_CHECKING:
    import trt_types as trt  # the types of one flavour, from typings/; see tests/engine/test_tensorrt_stubs.py
WEIGHTY = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
"""Kinds of layers that 8 bits are for: nearly all the arithmetic and all the large weights."""

_FLOATS = ("FLOAT", "HALF", "BF16", "FP8")
# They move or convert numbers: their type costs memory, but no accuracy.
_MOVES = {
    "ASSERTION", "CAST", "CONCATENATION", "CONDITION", "CONDITIONAL_INPUT", "CONDITIONAL_OUTPUT", "CONSTANT",
    "DEQUANTIZE", "FILL", "GATHER", "IDENTITY", "ITERATOR", "LOOP_OUTPUT", "ONE_HOT", "PADDING", "QUANTIZE",
    "RECURRENCE", "REVERSE_SEQUENCE", "SCATTER", "SELECT", "SHAPE", "SHUFFLE", "SLICE", "SQUEEZE", "TRIP_LIMIT",
    "UNSQUEEZE",
}  # fmt: skip
# A node in the body of another is told as `name | body | name of the other`.
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+?)(?: \||\])")
_SHOWN = 5


@dataclass(frozen=True)
class LayerType:
    """What a layer computes in, as the parsed network says."""

    node: str  # name of the ONNX node that it does
    kind: str  # such as "CONVOLUTION"
    dtype: str  # of what it gives, such as "float16"
    reads: str = ""  # what its numbers and weights are dequantised from, such as "int8"; empty where they are not
    near: tuple[str, ...] = ()  # its neighbours, of which it may be a part, where TensorRT does not name its node


def read_types(network: "trt.INetworkDefinition") -> list[LayerType]:
    """Read the type of every layer of a strongly typed, parsed network that computes with floating point numbers.

    Left out are layers that only move numbers, that compute shapes, or that are folded, all inputs being constants.
    """
    found = (network.get_layer(index) for index in range(network.num_layers))
    layers = [layer for layer in found if layer is not None]
    makers: dict[str, trt.ILayer] = {}
    users: dict[str, list[trt.ILayer]] = {}
    constants: set[str] = set()
    for layer in layers:
        inputs, outputs = _inputs(layer), _outputs(layer)
        makers |= {tensor.name: layer for tensor in outputs}
        for tensor in inputs:
            users.setdefault(tensor.name, []).append(layer)
        if layer.type.name == "CONSTANT" or (inputs and all(tensor.name in constants for tensor in inputs)):
            constants.update(tensor.name for tensor in outputs)

    def after(layer: "trt.ILayer") -> "list[trt.ILayer]":
        return [user for tensor in _outputs(layer) for user in users.get(tensor.name, ())]

    def before(layer: "trt.ILayer") -> "list[trt.ILayer]":
        return [makers[tensor.name] for tensor in _inputs(layer) if tensor.name in makers]

    types = []
    for layer in layers:
        floats = (tensor for tensor in _outputs(layer) if tensor.dtype.name in _FLOATS)
        given = [tensor for tensor in floats if tensor.is_execution_tensor or not tensor.is_shape_tensor]
        if layer.type.name not in _MOVES and given and given[0].name not in constants:
            near = () if node_of(layer) else (*_nearest(layer, after), *_nearest(layer, before))
            node = node_of(layer) or next(iter(near), layer.name)
            types.append(LayerType(node, layer.type.name, dtype_name(given[0].dtype), _reads(layer, makers), near))
    return types


def count_types(layers: Iterable[LayerType]) -> dict[str, dict[str, int]]:
    """Count the types of each kind of layer; a layer between 8-bit pairs counts as `"int8 to float32"`.

    >>> count_types([LayerType("a", "CONVOLUTION", "float16"), LayerType("b", "CONVOLUTION", "float16")])
    {'CONVOLUTION': {'float16': 2}}
    """
    table: dict[str, Counter[str]] = {}
    for layer in layers:
        table.setdefault(layer.kind, Counter())[f"{layer.reads} to {layer.dtype}" if layer.reads else layer.dtype] += 1
    return {kind: dict(counts.most_common()) for kind, counts in table.items()}


def check_types(layers: Sequence[LayerType], precision: str, kept: Collection[str] = (), *, whole: bool = True) -> None:
    """Refuse a network whose layers are not in the precision asked for; EngineBuildError names them.

    The nodes `kept` may be wider. For 8 bits and `whole`, every convolution and matrix product must lie between pairs;
    else one is enough: a file that came quantised may leave some out on purpose.
    """
    eight_bits, wanted = precision in EIGHT_BITS, TYPE_OF.get(precision, "float32")
    if eight_bits:
        layers = [layer for layer in layers if layer.kind in WEIGHTY]
        wrong = [layer for layer in layers if layer.reads != wanted]
    else:
        wrong = [layer for layer in layers if layer.dtype != wanted or layer.reads]
    if eight_bits and len(wrong) == len(layers):
        raise EngineBuildError(
            f"got precision={precision!r}, but TensorRT finds none of {len(layers)} convolutions and matrix products "
            f"between pairs of QuantizeLinear and DequantizeLinear in {wanted}; quantise with quantize_{precision}"
        )
    if eight_bits and not whole:
        return
    names = {name for entry in kept for name in (entry, f"node_of_{entry}")}  # TensorRT's name of a nameless node
    wrong = [layer for layer in wrong if names.isdisjoint((layer.node, *layer.near))]
    if wrong:
        raise EngineBuildError(_complaint(wrong, len(layers), precision))


def types_text(types: Mapping[str, Mapping[str, int]]) -> str:
    """Say which types the layers have, the most frequent first.

    >>> types_text({"CONVOLUTION": {"float16": 53}, "ACTIVATION": {"float16": 49, "float32": 1}})
    'float16 in 102 (53 convolution, 49 activation); float32 in 1 (1 activation)'
    """
    groups: dict[str, Counter[str]] = {}
    for kind, counts in types.items():
        for dtype, number in counts.items():
            groups.setdefault(dtype, Counter())[kind.lower()] += number
    return "; ".join(
        f"{dtype} in {counts.total()} ({', '.join(f'{number} {kind}' for kind, number in counts.most_common())})"
        for dtype, counts in sorted(groups.items(), key=lambda group: -group[1].total())
    )


def _complaint(wrong: Sequence[LayerType], of: int, precision: str) -> str:
    names = ", ".join(f"{layer.node} ({layer.kind.lower()}, {layer.reads or layer.dtype})" for layer in wrong[:_SHOWN])
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    if precision in TYPE_OF:
        advice = (
            "name those nodes in keep (--keep-nodes) if they shall stay as they are, or convert the float32 network"
        )
    else:
        types = {layer.reads or layer.dtype for layer in wrong}
        others = [repr(name) for name, dtype in TYPE_OF.items() if dtype in types]
        advice = f"the file says so: ask for precision={' or '.join(others)}, or give the float32 network"
    return (
        f"got precision={precision!r}, but TensorRT reads another type in {len(wrong)} of {of} layers: {names}{more}; "
        f"{advice}"
    )


def _outputs(layer: "trt.ILayer") -> "list[trt.ITensor]":
    found = (layer.get_output(index) for index in range(layer.num_outputs))
    return [tensor for tensor in found if tensor is not None]


def _inputs(layer: "trt.ILayer") -> "list[trt.ITensor]":
    found = (layer.get_input(index) for index in range(layer.num_inputs))
    return [tensor for tensor in found if tensor is not None]


def node_of(layer: "trt.ILayer") -> str:
    """The name of the ONNX node that a layer does; empty where TensorRT names none."""
    match = _NODE.search(layer.metadata)
    return match[1] if match else ""


def _nearest(layer: "trt.ILayer", beside: "Callable[[trt.ILayer], list[trt.ILayer]]") -> list[str]:
    """The nearest nodes in one direction."""
    seen, pending, nodes = {layer.name}, [layer], []
    while pending:
        for other in beside(pending.pop()):
            if other.name not in seen:
                seen.add(other.name)
                node = node_of(other)
                if node and other.type.name != "CAST":
                    nodes.append(node)
                else:
                    pending.append(other)
    return list(dict.fromkeys(nodes))


def _reads(layer: "trt.ILayer", makers: "Mapping[str, trt.ILayer]") -> str:
    """The 8-bit type behind the first two inputs of a layer, which are its numbers and its weights."""
    if layer.type.name not in WEIGHTY:
        return ""
    types = set()
    for tensor in _inputs(layer)[:2]:
        maker = makers.get(tensor.name)
        while maker is not None and maker.type.name in ("SHUFFLE", "IDENTITY"):
            above = maker.get_input(0)
            maker = makers.get(above.name) if above is not None else None
        source = maker.get_input(0) if maker is not None and maker.type.name == "DEQUANTIZE" else None
        types.add(dtype_name(source.dtype) if source is not None else "")
    return types.pop() if len(types) == 1 and layer.num_inputs > 1 else ""
