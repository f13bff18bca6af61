"""Run a half-float network on any machine: NumPy rounds every tensor, so that overflow shows where it happens."""

import html
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from workbench.core.contract import ordered_feed
from workbench.core.errors import ModelError
from workbench.core.files import atomic_path
from workbench.core.packages import require_backend
from workbench.core.report import Cells, count, html_table, text_table
from workbench.onnx_graph.edit import inferred_values, reads, use_counts
from workbench.onnx_graph.file import check
from workbench.onnx_graph.session import open_session, prepare_cuda
from workbench.precision.half import holds_half, to_fp16
from workbench.precision.half_graph import BFLOAT16, FLOAT16

HEADINGS = ("tensor", "operator", "largest before rounding", "Inf", "NaN")
SHOWN = 8
_DTYPES = {half.kind: half.dtype for half in (FLOAT16, BFLOAT16)}

Array = NDArray[Any]


@dataclass(frozen=True)
class RoundedTensor:
    """One half-float tensor of an emulated run.

    Attributes:
        name: of the tensor.
        node: name of the node that writes it.
        operator: of that node.
        largest: the largest finite magnitude before it was rounded.
        inf, nan: how many values are infinite or NaN after rounding.
        size: how many values it has.
    """

    name: str
    node: str
    operator: str
    largest: float
    inf: int
    nan: int
    size: int


@dataclass(frozen=True)
class EmulatedRun:
    """What a network answers when its tensors have 16 bits.

    Attributes:
        outputs: by name, in the types that the network declares.
        tensors: every tensor that was rounded, in the order of computation.
    """

    outputs: dict[str, Array]
    tensors: tuple[RoundedTensor, ...]

    @property
    def first_bad(self) -> RoundedTensor | None:
        """The first tensor with values that are not finite."""
        return next((entry for entry in self.tensors if entry.inf or entry.nan), None)

    @property
    def verdict(self) -> str:
        """One sentence."""
        bad, first = [entry for entry in self.tensors if entry.inf or entry.nan], self.first_bad
        if first is None:
            return f"All {count(len(self.tensors), 'rounded tensor')} are finite."
        return (
            f"{len(bad)} of {count(len(self.tensors), 'rounded tensor')} hold Inf or NaN; it starts at {first.name} "
            f"({first.operator}), with values up to {first.largest:,.0f}."
        )

    def to_text(self) -> str:
        """Write the verdict and the first tensors that are not finite."""
        rows = self._rows()
        return "\n".join([self.verdict, *(["", *text_table(HEADINGS, rows)] if rows else [])]) + "\n"

    def _repr_html_(self) -> str:
        rows = self._rows()
        table = html_table(HEADINGS, rows) if rows else ""
        return f'<div style="color:inherit"><b>{html.escape(self.verdict)}</b>{table}</div>'

    def _rows(self) -> list[Cells]:
        bad = [entry for entry in self.tensors if entry.inf or entry.nan]
        return [
            (entry.name, entry.operator, f"{entry.largest:,.4g}", f"{entry.inf:,}", f"{entry.nan:,}")
            for entry in bad[:SHOWN]
        ]


def emulate_float16(source: str | os.PathLike[str], feed: Mapping[str, Array]) -> EmulatedRun:
    """Run a network node by node, and round each result to the 16 bits that the network gives it.

    ONNX Runtime computes one node at a time in float32; NumPy casts what it writes. So the sums inside a node have
    32 bits, as in the tensor cores of a GPU, and each tensor between nodes has 16. Bodies of If and Loop run whole.

    Args:
        source: an `.onnx` file that `to_fp16` or `to_bf16` wrote; a float32 one is converted whole first, so that
            whatever overflows does.
        feed: one array for each input, by name, or in the order of the inputs.
    Returns:
        The outputs, and for each rounded tensor how many values are infinite or NaN.
    Raises:
        ModelError: not a valid ONNX model, or one that ONNX Runtime does not run.
        InputError: another number of inputs, or nothing that float16 could compute.
    """
    summary = check(source)
    names = [spec.name for spec in summary.inputs]
    given = dict(zip(names, ordered_feed(names, feed), strict=True))
    if holds_half(onnx.load(os.fspath(source), load_external_data=False)):
        return _run(onnx.load(os.fspath(source)), given)
    with tempfile.TemporaryDirectory(prefix="workbench-float16-") as folder:
        converted = Path(folder) / "float16.onnx"
        to_fp16(source, converted)
        return _run(onnx.load(converted), given)


def _run(model: onnx.ModelProto, feed: Mapping[str, Array]) -> EmulatedRun:
    graph, kinds = model.graph, {name: value.elem_type for name, value in inferred_values(model).items()}
    ends = [value.name for value in graph.output]
    left = use_counts(graph)
    values = dict(feed)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    rounded = []
    for node in graph.node:
        names = list(dict.fromkeys(reads(node)))
        read = {name: values[name] for name in names if name in values}
        read |= {name: _widened(numpy_helper.to_array(weights[name])) for name in names if name in weights}
        for name, array in _compute(model, node, read).items():
            dtype = _DTYPES.get(kinds.get(name, 0))
            values[name] = array
            if dtype is not None:
                values[name] = _round(array, dtype)
                rounded.append(_describe(name, node, array, values[name]))
        for name in reads(node):
            left[name] -= 1
            if not left[name]:
                values.pop(name, None)
    return EmulatedRun({name: values[name] for name in ends}, tuple(rounded))


def _compute(model: onnx.ModelProto, node: onnx.NodeProto, read: Mapping[str, Array]) -> dict[str, Array]:
    """Run one node in the types of the arrays; a Cast to 16 bits is the rounding, which comes afterwards."""
    if node.op_type == "Cast" and any(item.name == "to" and item.i in _DTYPES for item in node.attribute):
        return {node.output[0]: read[node.input[0]].astype(np.float32)}
    names = [name for name in node.output if name]
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in read.items()
    ]
    graph = helper.make_graph([node], "node", inputs, [onnx.ValueInfoProto(name=name) for name in names])
    alone = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        return dict(zip(names, open_session(alone, optimise="none").run(names, dict(read)), strict=True))
    except Exception as error:  # ONNX Runtime's own exceptions share no public base
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ModelError(f"ONNX Runtime cannot run {node.name} ({node.op_type}) alone: {reason}") from error


def _round(array: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(dtype).astype(np.float32)


def _widened(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype in tuple(_DTYPES.values()) else array


def _describe(name: str, node: onnx.NodeProto, exact: Array, rounded: Array) -> RoundedTensor:
    finite = exact[np.isfinite(exact)]
    return RoundedTensor(
        name=name,
        node=node.name,
        operator=node.op_type,
        largest=float(np.abs(finite).max(initial=0)),
        inf=int(np.isinf(rounded).sum()),
        nan=int(np.isnan(rounded).sum()),
        size=rounded.size,
    )


HALVES = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
"""The 16-bit types of ONNX that a CPU does not compute in."""

FLOAT8 = (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2)

_HEAVY = ("Conv", "Gemm", "MatMul")
_BETWEEN = ("Cast", "QuantizeLinear", "DequantizeLinear", "Identity", "Reorder", "Memcpy", "Transpose")
_NAMES = {"float": "float32", "uint8": "int8", "double": "float64"}


@dataclass(frozen=True)
class Arithmetic:
    """The types in which the heavy layers of a network were computed.

    Attributes:
        types: how many layers in each type, such as `{"float16": 20, "float32": 1}`.
        heavy: whether these are convolutions and products of matrices; else all layers, for there were none of those.
    """

    types: Mapping[str, int]
    heavy: bool = True

    def is_mostly(self, dtype: str) -> bool:
        """Whether more than half of the layers were computed in this type."""
        return self.count(dtype) * 2 > sum(self.types.values())

    def to_text(self, dtype: str) -> str:
        """Say in how many layers a type computed.

        >>> Arithmetic({"int8": 14, "float32": 7}).to_text("int8")
        'int8 in 14 of 21 heavy layers'
        """
        total, kind = sum(self.types.values()), "heavy layers" if self.heavy else "layers"
        return dtype if self.count(dtype) == total else f"{dtype} in {self.count(dtype)} of {total} {kind}"

    def count(self, dtype: str) -> int:
        """How many layers computed in this type, or in one whose name begins so."""
        return sum(number for name, number in self.types.items() if name.startswith(dtype))


def profile_types(path: str | os.PathLike[str], feed: Mapping[str, np.ndarray], *, device: str = "cpu") -> Arithmetic:
    """Run a network once under ONNX Runtime's profiler, and read which types its layers computed in.

    Args:
        path: the `.onnx` file.
        feed: one array for each input, by name.
        device: `"cpu"` or `"cuda"`.
    Raises:
        ModelError: ONNX Runtime does not run this network.
    """
    if device == "cuda":
        prepare_cuda(require_backend("onnxruntime", "dev"))
    with tempfile.TemporaryDirectory(prefix="workbench-profile-") as folder:
        session = open_session(path, f"run {path}", device=device, profile_prefix=str(Path(folder) / "run"))
        try:
            session.run(None, dict(feed))
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise ModelError(f"ONNX Runtime cannot run {path}: {str(error).splitlines()[0]}") from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    layers = list(_kernels(events))
    heavy = [dtype for operator, dtype in layers if any(word in operator for word in _HEAVY)]
    rest = [dtype for operator, dtype in layers if not operator.startswith(_BETWEEN)]
    return Arithmetic(Counter(heavy or rest), bool(heavy))


def _kernels(events: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The operator and the type of the first input of every kernel that ran."""
    for event in events:
        what = event.get("args", {})
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            for entry in what.get("input_type_shape", [])[:1]:
                dtype = next(iter(entry))
                yield what.get("op_name", ""), _NAMES.get(dtype, dtype)


def rounded_copy(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write a network whose results are those of smaller floats, on a machine that computes in float32.

    Every 16-bit tensor becomes a float32 one that is rounded to 16 bits and back after the node that makes it: a value
    beyond the range becomes infinite, as on a GPU. The sums inside a node stay float32, as in a GPU's tensor cores.
    Q/DQ pairs of float8 become casts, for ONNX Runtime would fuse the pairs to operators that it does not have.

    Args:
        source: an `.onnx` file with float16, bfloat16 or float8 tensors.
        out: the `.onnx` file to write, without external data.
    Returns:
        `out`.
    """
    model = onnx.load(os.fspath(source))
    known = onnx.shape_inference.infer_shapes(model, data_prop=False)
    _round_graph(model.graph, known.graph, {})
    with atomic_path(out) as temporary:
        onnx.save(model, os.fspath(temporary))
    return Path(out)


def _round_graph(graph: onnx.GraphProto, known: onnx.GraphProto, outer: Mapping[str, int]) -> None:
    """Rewrite one graph and the bodies inside it; `outer` holds the types of the tensors around it."""
    types = dict(outer) | _element_types(known)
    nodes = []
    for node, twin in zip(graph.node, known.node, strict=True):
        for attribute, same in zip(node.attribute, twin.attribute, strict=True):
            if attribute.type == onnx.AttributeProto.GRAPH:
                _round_graph(attribute.g, same.g, types)
            elif attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t)
            elif attribute.name in ("to", "dtype") and attribute.i in HALVES:
                attribute.i = TensorProto.FLOAT
        nodes += [*_without_pairs(node, types, graph), *_roundings(node, types)]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    for tensor in graph.initializer:
        _widen(tensor)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in HALVES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def _element_types(graph: onnx.GraphProto) -> dict[str, int]:
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _roundings(node: onnx.NodeProto, types: Mapping[str, int]) -> Iterator[onnx.NodeProto]:
    """Rename the 16-bit outputs of a node, and yield the casts that round them under their old names."""
    for place, name in enumerate(node.output):
        if types.get(name) in HALVES:
            node.output[place] = f"{name}/exact"
            yield helper.make_node("Cast", [f"{name}/exact"], [f"{name}/rounded"], to=types[name])
            yield helper.make_node("Cast", [f"{name}/rounded"], [name], to=TensorProto.FLOAT)


def _without_pairs(node: onnx.NodeProto, types: Mapping[str, int], graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield a node as it is, or the division, product and cast that one half of a float8 pair stands for."""
    name, middle = node.output[0] if node.output else "", f"{node.output[0]}/between" if node.output else ""
    if node.op_type == "QuantizeLinear" and types.get(node.input[-1]) in FLOAT8:
        yield helper.make_node("Div", list(node.input[:2]), [middle])
        yield helper.make_node("Cast", [middle], [name], to=types[node.input[-1]])
    elif node.op_type == "DequantizeLinear" and types.get(node.input[-1]) in FLOAT8:
        yield helper.make_node("Cast", [node.input[0]], [middle], to=TensorProto.FLOAT)
        yield helper.make_node("Mul", [middle, _column(node, graph)], [name])
    else:
        yield node


def _column(node: onnx.NodeProto, graph: onnx.GraphProto) -> str:
    """The name of a pair's scale, brought to the axis of the tensor that it scales."""
    known = {tensor.name: tensor for tensor in graph.initializer}
    scale, scaled = known.get(node.input[1]), known.get(node.input[0])
    if scale is None or scaled is None or len(scale.dims) != 1:
        return node.input[1]
    axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1) % len(scaled.dims)
    shape = [-1 if place == axis else 1 for place in range(len(scaled.dims))]
    name = f"{node.output[0]}/scale"
    graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(scale).reshape(shape), name))
    return name


def _widen(tensor: onnx.TensorProto) -> None:
    """Turn a 16-bit constant into float32; every value stays as it is."""
    if tensor.data_type in HALVES:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
