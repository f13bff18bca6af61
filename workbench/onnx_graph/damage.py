"""What no whole ONNX file holds, and the checker of ONNX lets pass: refused before anything works with it."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx

from workbench.core.errors import ModelError
from workbench.onnx_graph.edit import inner_graphs, parts

LARGEST_GROWTH = 50
FEWEST_CALLS = 10_000
"""How many nodes the functions of a network may stand for: so many times those that are written, and at least so many.

ONNX Runtime writes each call out, so twenty functions that call the next one twice are a million nodes.
"""

LARGEST_COUNTED = 1 << 20  # bytes of a weight; to count them copies them, and ONNX Runtime counts those of larger ones

_TYPES = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}
_PACKED = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}  # bits of those that share a byte
_BITS = {
    kind: _PACKED.get(name) or 8 * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    for name, kind in onnx.TensorProto.DataType.items()
    if kind in _TYPES and name != "STRING"
}


def refuse_damaged(model: onnx.ModelProto, numbers: Iterable[onnx.TensorProto], path: Path) -> None:
    """Refuse names that are no text, unknown types, impossible sizes, and weights of another size: a ModelError."""
    for part in parts(model):
        is_graph = isinstance(part, onnx.GraphProto)
        values = [*part.input, *part.output] if is_graph else []
        names = [item.name for item in (part, *values, *part.node, *(part.initializer if is_graph else ()))]
        names += [text for node in part.node for text in (node.op_type, node.domain, *node.output)]
        if not all(isinstance(name, str) for name in names):
            broken = next(name for name in names if not isinstance(name, str))
            raise ModelError(f"{path} holds the name {broken!r}, which is no text; export the model again")
        for value in values:
            _check_type(value, path)
    for tensor in numbers:  # the model's `tensors`
        _check_tensor(tensor, path)


def _check_type(value: onnx.ValueInfoProto, path: Path) -> None:
    """A tensor of a known type and of possible sizes; what is no tensor is left to others."""
    if value.type.WhichOneof("value") != "tensor_type":
        return
    tensor = value.type.tensor_type
    if tensor.elem_type and tensor.elem_type not in _TYPES:
        raise ModelError(f"{path} gives {value.name} the element type {tensor.elem_type}, which ONNX does not have; "
                         "export the model again")  # fmt: skip
    for dim in tensor.shape.dim:
        if dim.dim_value < 0 or not isinstance(dim.dim_param, str):
            found = dim.dim_value or repr(dim.dim_param)
            raise ModelError(f"{path} gives {value.name} the size {found}, expected 0 or more; export the model again")


def _check_tensor(tensor: onnx.TensorProto, path: Path) -> None:
    """A tensor of a known type, with as many bytes as its sizes need."""
    kind = tensor.data_type
    if kind and kind not in _TYPES:
        raise ModelError(f"{path} gives {tensor.name} the element type {kind}, which ONNX does not have; "
                         "export the model again")  # fmt: skip
    if tensor.HasField("segment"):
        raise ModelError(f"{path} holds only a part of {tensor.name}, which no version of ONNX reads; export it again")
    needed = -(-math.prod(tensor.dims) * _BITS.get(kind, 0) // 8)
    counted = kind in _BITS and needed <= LARGEST_COUNTED and tensor.HasField("raw_data") and not tensor.external_data
    if counted and needed != len(tensor.raw_data):
        raise ModelError(
            f"{path} holds {len(tensor.raw_data)} bytes for {tensor.name}, whose sizes {list(tensor.dims)} need "
            f"{needed}; export the model again"
        )


def refuse_growth(model: onnx.ModelProto, path: Path) -> None:
    """Refuse functions that stand for far more nodes than are written; they must not call themselves (ONNX checks)."""
    if not model.functions:
        return
    functions = {(function.domain, function.name): function for function in model.functions}
    known: dict[tuple[str, str], int] = {}

    def size(whole: Any) -> int:
        return sum(1 + call(node) + sum(map(size, inner_graphs(node))) for node in whole.node)

    def call(node: Any) -> int:
        key = (node.domain, node.op_type)
        if key in functions and key not in known:
            known[key] = size(functions[key])
        return known.get(key, 0)

    written, stands_for = sum(len(part.node) for part in parts(model)), size(model.graph)
    if stands_for > max(FEWEST_CALLS, LARGEST_GROWTH * written):
        raise ModelError(
            f"{path} has functions whose {written} nodes stand for {stands_for:.3g}, more than this program opens; "
            "export it without functions"
        )
