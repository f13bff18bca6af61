"""Run a half-float network on any machine: NumPy rounds every tensor, so that overflow shows where it happens."""

import html
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from workbench.errors import ModelError
from workbench.export.graph_edit import inferred_values, reads, use_counts
from workbench.export.onnx_file import check
from workbench.export.onnx_proof import open_session
from workbench.graph_probe import ordered_feed
from workbench.parity_report import Cells, count, html_table, text_table
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
        return dict(zip(names, open_session(alone).run(names, dict(read)), strict=True))
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
