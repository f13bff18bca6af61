"""Run a network in 16 or 8 bits on any machine, and see which types a machine's own kernels compute in.

The emulator is a copy of the network in float32 in which casts round each tensor to the bits that the network gives it:
so overflow shows where it happens, on a machine that would compute in float32 and hide it.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from workbench.core.contract import ordered_feed
from workbench.core.errors import ModelError, first_line
from workbench.core.files import atomic_path, check_outputs
from workbench.core.packages import require_backend
from workbench.core.process import temporary_folder
from workbench.core.report import Report, Table, count
from workbench.onnx_graph.edit import Values, attribute, inferred_values, producers
from workbench.onnx_graph.file import check, read
from workbench.onnx_graph.session import FLOAT8, open_session, prepare_cuda, run_session
from workbench.precision.half import holds_half, to_fp16
from workbench.precision.half_graph import HALVES
from workbench.precision.observing import Tap, sized

HEADINGS = ("tensor", "operator", "largest before rounding", "Inf", "NaN")
SHOWN = 8
_EXACT = "/exact"
_HEAVY = ("Conv", "Gemm", "MatMul")
_BETWEEN = ("Cast", "QuantizeLinear", "DequantizeLinear", "Identity", "Reorder", "Memcpy", "Transpose")
_NAMES = {"float": "float32", "uint8": "int8", "double": "float64"}

Array = NDArray[Any]


@dataclass(frozen=True)
class RoundedTensor:
    """One half-float tensor of an emulated run: how many of its values are infinite or NaN after rounding."""

    name: str
    node: str  # name of what writes it
    operator: str
    largest: float  # finite magnitude before it was rounded
    inf: int
    nan: int
    size: int


@dataclass(frozen=True)
class EmulatedRun(Report):
    """What a network answers when its tensors have 16 bits.

    Attributes:
        outputs: by name; float32 where the network declares 16 bits.
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

    def _tables(self) -> list[Table]:
        rows = [
            (entry.name, entry.operator, f"{entry.largest:,.4g}", f"{entry.inf:,}", f"{entry.nan:,}")
            for entry in self.tensors
            if entry.inf or entry.nan
        ]
        return [Table(HEADINGS, rows[:SHOWN])] if rows else []

    def _content(self) -> dict[str, Any]:
        return {"verdict": self.verdict, "tensors": [asdict(entry) for entry in self.tensors]}


def emulate_float16(source: str | os.PathLike[str], feed: Mapping[str, Array]) -> EmulatedRun:
    """Run a network and round each result to the 16 bits that the network gives it.

    The sums inside a node have 32 bits, as in the tensor cores of a GPU, and each tensor between nodes has 16. What is
    inside the bodies of If and Loop is rounded too, and not listed.

    Args:
        source: an `.onnx` file that `to_fp16` or `to_bf16` wrote; a float32 one is converted whole first, so that
            whatever overflows does.
        feed: one array for each input, by name, or in the order of the inputs.
    Returns:
        The outputs, and for each rounded tensor how many values are infinite or NaN.
    Raises:
        ModelError: not a valid ONNX model, or one that ONNX Runtime does not run.
        InputError: another number of inputs, or nothing that float16 could compute.
        ExportError: a network of more than 2 GB in float32.
    """
    source = Path(source)
    names = [spec.name for spec in check(source).inputs]
    given = dict(zip(names, map(_widened, ordered_feed(names, feed)), strict=True))
    with temporary_folder() as folder:
        half = source if holds_half(read(source)) else folder / "float16.onnx"
        if half != source:
            to_fp16(source, half)
        model = _rounded(half)
    writers, sizes = producers(model.graph), inferred_values(sized(model, given))
    exact = [name for name in writers if name.endswith(_EXACT)]
    kinds = {node.input[0]: attribute(node, "to") for node in model.graph.node if node.op_type == "Cast"}
    ends = [value.name for value in model.graph.output]
    outputs, tensors = {}, []
    shown = {name: sizes.get(name, onnx.TypeProto.Tensor()) for name in (*exact, *ends)}
    for name, array in _open(model, source, shown).fetch(given):
        if name in ends:
            outputs[name] = array
        else:
            tensors.append(_describe(name.removesuffix(_EXACT), writers[name], array, HALVES[kinds[name]].dtype))
    return EmulatedRun({name: outputs[name] for name in ends}, tuple(tensors))


def _open(model: onnx.ModelProto, source: Path, tensors: Values) -> Tap:
    """Open the network, or name the node that ONNX Runtime cannot run."""
    try:
        return Tap(model, source, tensors, "none")
    except ModelError as error:
        reason = first_line(error.__cause__ or error)
        for node in model.graph.node:
            if f"{node.domain}:{node.op_type}(" in reason:  # other reasons name the node themselves
                raise ModelError(f"ONNX Runtime cannot run {node.name} ({node.op_type}): {reason}") from error
        raise


def _describe(name: str, node: onnx.NodeProto, exact: Array, dtype: np.dtype[Any]) -> RoundedTensor:
    largest = float(np.abs(exact[np.isfinite(exact)]).max(initial=0))
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = exact.astype(dtype)
    inf, nan = int(np.isinf(rounded).sum()), int(np.isnan(rounded).sum())
    return RoundedTensor(name, node.name, node.op_type, largest, inf, nan, exact.size)


def rounded_copy(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write a network whose results are those of smaller floats, on a machine that computes in float32.

    Every 16-bit tensor becomes a float32 one that is rounded to 16 bits and back after the node that makes it: a value
    beyond the range becomes infinite, as on a GPU. The sums inside a node stay float32, as in a GPU's tensor cores.
    Q/DQ pairs of float8 become casts, for ONNX Runtime would fuse the pairs to operators that it does not have.
    """
    check_outputs([out], [source])
    with atomic_path(out) as temporary:
        onnx.save(_rounded(source), temporary)
    return Path(out)


def _rounded(source: str | os.PathLike[str]) -> onnx.ModelProto:
    model = onnx.load(os.fspath(source))
    _round_graph(model.graph, onnx.shape_inference.infer_shapes(model).graph, {})
    return model


def _round_graph(graph: onnx.GraphProto, known: onnx.GraphProto, outer: Mapping[str, int]) -> None:
    """Rewrite one graph and the bodies inside it; `known` is the same with inferred types, `outer` has those around."""
    values = (*known.input, *known.output, *known.value_info)
    types = dict(outer) | {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in known.initializer}
    nodes = []
    for node, twin in zip(graph.node, known.node, strict=True):
        for item, same in zip(node.attribute, twin.attribute, strict=True):
            if item.type == onnx.AttributeProto.GRAPH:
                _round_graph(item.g, same.g, types)
            elif item.type == onnx.AttributeProto.TENSOR:
                _widen(item.t)
            elif item.name in ("to", "dtype") and item.i in HALVES:
                item.i = TensorProto.FLOAT
        nodes += [*_without_pairs(node, types, graph), *_roundings(node, types)]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    for tensor in graph.initializer:
        _widen(tensor)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in HALVES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def _roundings(node: onnx.NodeProto, types: Mapping[str, int]) -> Iterator[onnx.NodeProto]:
    """Rename the 16-bit outputs of a node, and yield the casts that round them under their old names."""
    for place, name in enumerate(node.output):
        if types.get(name) in HALVES:
            node.output[place] = f"{name}{_EXACT}"
            yield helper.make_node("Cast", [node.output[place]], [f"{name}/rounded"], to=types[name])
            yield helper.make_node("Cast", [f"{name}/rounded"], [name], to=TensorProto.FLOAT)


def _without_pairs(node: onnx.NodeProto, types: Mapping[str, int], graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield a node as it is, or the division, product and cast that one half of a float8 pair stands for."""
    name = node.output[0] if node.output else ""
    middle = f"{name}/between"
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
    axis = attribute(node, "axis", 1) % len(scaled.dims)
    shape = [-1 if place == axis else 1 for place in range(len(scaled.dims))]
    name = f"{node.output[0]}/scale"
    graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(scale).reshape(shape), name))
    return name


def _widen(tensor: onnx.TensorProto) -> None:
    """Turn a 16-bit constant into float32; every value stays as it is."""
    if tensor.data_type in HALVES:
        tensor.CopyFrom(numpy_helper.from_array(_widened(numpy_helper.to_array(tensor)), tensor.name))


def _widened(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype in {half.dtype for half in HALVES.values()} else array


@dataclass(frozen=True)
class KernelTypes:
    """The types in which the heavy layers of a network were computed."""

    types: Mapping[str, int]  # how many layers in each type, such as `{"float16": 20, "float32": 1}`
    heavy: bool = True  # they are convolutions and products of matrices; else all layers, for there were none of those

    def is_mostly(self, dtype: str) -> bool:
        """Whether more than half of the layers were computed in this type."""
        return self.count(dtype) * 2 > sum(self.types.values())

    def to_text(self, dtype: str) -> str:
        """Say in how many layers a type computed.

        >>> KernelTypes({"int8": 14, "float32": 7}).to_text("int8")
        'int8 in 14 of 21 heavy layers'
        """
        total, kind = sum(self.types.values()), "heavy layers" if self.heavy else "layers"
        return dtype if self.count(dtype) == total else f"{dtype} in {self.count(dtype)} of {total} {kind}"

    def count(self, dtype: str) -> int:
        """How many layers computed in this type, or in one whose name begins so."""
        return sum(number for name, number in self.types.items() if name.startswith(dtype))


def profile_types(path: str | os.PathLike[str], feed: Mapping[str, np.ndarray], *, device: str = "cpu") -> KernelTypes:
    """Run a network once under ONNX Runtime's profiler, on `"cpu"` or `"cuda"`: the types its layers computed in."""
    if device == "cuda":
        prepare_cuda(require_backend("onnxruntime", "dev"))
    with temporary_folder() as folder:
        session = open_session(path, f"run {path}", device=device, profile_prefix=str(folder / "run"))
        run_session(session, feed, f"run {path}")
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    layers = list(_kernels(events))
    heavy = [dtype for operator, dtype in layers if any(word in operator for word in _HEAVY)]
    rest = [dtype for operator, dtype in layers if not operator.startswith(_BETWEEN)]
    return KernelTypes(Counter(heavy or rest), bool(heavy))


def _kernels(events: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The operator and the type of the first input of every kernel that ran."""
    for event in events:
        what = event.get("args", {})
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            for entry in what.get("input_type_shape", [])[:1]:
                dtype = next(iter(entry))
                yield what.get("op_name", ""), _NAMES.get(dtype, dtype)
