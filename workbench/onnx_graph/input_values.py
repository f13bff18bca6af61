"""Find numbers that an input can hold: indices of what a network looks up, and the sizes and axes it asks for."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

from workbench.onnx_graph.edit import Values, attribute, dims, inferred_values, is_a, real_inputs
from workbench.pictures.feeds import Known

_PASS_ON = ("Cast", "Identity", "Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_WHOLE = ("Div", "Mod")  # nothing whole can be divided by 0, as random numbers would have it
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
_REDUCE = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")


class _Node:
    """A node, with the shapes around it; KeyError or IndexError where one is not known."""

    def __init__(self, node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.node, self._shapes = node, shapes

    def given(self, place: int) -> tuple[int, ...]:
        """The shape of an input."""
        return self._shapes[self.node.input[place]]

    @property
    def outcome(self) -> tuple[int, ...]:
        """The shape of the first output."""
        return self._shapes[self.node.output[0]]

    def axis(self, default: int) -> int:
        """The attribute `axis`."""
        return int(attribute(self.node, "axis", default))

    def axes(self) -> list[int]:
        """The attribute `axes`, else all of them."""
        return list(attribute(self.node, "axes", range(len(self.given(0)))))

    def count(self, place: int) -> int:
        """How many numbers an input of one axis has."""
        return self.given(place)[0]

    def parts(self) -> list[int]:
        """How long each output is along the axis."""
        return [self._shapes[name][self.axis(0)] for name in self.node.output]

    def growth(self) -> list[float]:
        """How much longer each of the axes gets."""
        return [self.outcome[axis] / self.given(0)[axis] for axis in self.axes()]

    def first_axes(self) -> list[int]:
        """As many axes as the second input has numbers."""
        return list(range(self.count(1)))


def _indices(node: _Node) -> int:
    return node.given(0)[node.axis(0)]


def _paddings(node: _Node) -> list[int]:
    more = [after - before for before, after in zip(node.given(0), node.outcome, strict=True)]
    return [*[0] * len(more), *more]


_RULES: dict[tuple[str, int], Callable[[_Node], Any]] = {
    **{(name, 1): _indices for name in ("Gather", "GatherElements", "Scatter", "ScatterElements")},
    **{(name, 1): lambda node: min(node.given(0)) for name in ("GatherND", "ScatterND")},
    **{(f"Reduce{name}", 1): _Node.first_axes for name in _REDUCE},
    ("AffineGrid", 1): lambda node: [node.outcome[0], 1, *node.outcome[1:-1]],
    ("CenterCropPad", 1): lambda node: [node.outcome[axis] for axis in node.axes()],
    ("ConstantOfShape", 0): lambda node: node.outcome,
    ("CumProd", 1): lambda node: [0],
    ("CumSum", 1): lambda node: [0],
    ("Div", 1): lambda node: [1],
    ("Dropout", 1): lambda node: [0],
    ("Expand", 1): lambda node: node.outcome,
    ("MaxUnpool", 2): lambda node: node.outcome,
    ("Mod", 1): lambda node: [1],
    ("NonMaxSuppression", 2): lambda node: [1],
    ("NonMaxSuppression", 3): lambda node: [0.5],
    ("NonMaxSuppression", 4): lambda node: [0.5],
    ("OneHot", 1): lambda node: [node.outcome[node.axis(-1)]],
    ("Pad", 1): _paddings,
    ("Range", 2): lambda node: [1],
    ("Reshape", 1): lambda node: node.outcome,
    ("Resize", 2): _Node.growth,
    ("Resize", 3): lambda node: [node.outcome[axis] for axis in node.axes()],
    ("STFT", 1): lambda node: [1],
    ("STFT", 3): lambda node: [node.outcome[2]],
    ("Slice", 1): lambda node: [0],
    ("Slice", 2): lambda node: [node.outcome[axis] for axis in node.first_axes()],
    ("Slice", 3): _Node.first_axes,
    ("Slice", 4): lambda node: [1],
    ("Split", 1): _Node.parts,
    ("Squeeze", 1): lambda node: [axis for axis, size in enumerate(node.given(0)) if size == 1][: node.count(1)],
    ("Tile", 1): _Node.growth,
    ("TopK", 1): lambda node: [node.outcome[node.axis(-1)]],
    ("Unsqueeze", 1): _Node.first_axes,
    ("Upsample", 1): _Node.growth,
}
"""By operator and place of the input: how many things its indices choose from, or the numbers themselves."""


def input_values(model: onnx.ModelProto) -> dict[str, Known]:
    """Say what `make_feeds` can put into inputs for which random numbers would not do.

    Args:
        model: the network, its weights may be elsewhere.
    Returns:
        By name of the input: an int N where it has to hold integers of 0..N-1, because nodes look something up with
        it; an array of its shape and dtype where a node takes a shape, sizes, axes or the like from it, which follow
        from the shapes around that node. Inputs that nothing is known of are left out.
    """
    inputs = {value.name: value.type.tensor_type for value in real_inputs(model.graph)}
    readers = list(_readers(model.graph, inputs))
    if not readers:
        return {}
    shapes = {name: shape for name, value in inferred_values(model).items() if (shape := _closed(value)) is not None}
    found: dict[str, Known] = {}
    for name, node, place in readers:
        with contextlib.suppress(KeyError, IndexError, ValueError):  # a size is open, or has nothing to do with it
            value = _RULES[node.op_type, place](_Node(node, shapes))
            if isinstance(value, int):
                known = found.get(name, value)
                found[name] = min(known, value) if isinstance(known, int) else known
            elif node.input[place] == name:
                found[name] = _fitted(value, inputs[name], shapes[name])
    return found


def _readers(graph: onnx.GraphProto, inputs: Values) -> Iterator[tuple[str, onnx.NodeProto, int]]:
    """Name of an input, node and place, wherever an input, or what a few nodes make of it, meets a rule."""
    source = {name: name for name in inputs}
    for node in graph.node:
        for place, name in enumerate(node.input):
            known = name in source and is_a(node, node.op_type) and (node.op_type, place) in _RULES
            if known and not (node.op_type in _WHOLE and inputs[source[name]].elem_type in _FLOATS):
                yield source[name], node, place
        if is_a(node, *_PASS_ON) and node.input[0] in source:
            source[node.output[0]] = source[node.input[0]]


def _closed(value: onnx.TypeProto.Tensor) -> tuple[int, ...] | None:
    """The shape of a tensor in a batch of 1; None where any other size is open."""
    if not value.HasField("shape"):
        return None
    sizes = [1 if size is None and axis == 0 else size for axis, size in enumerate(dims(value))]
    return None if None in sizes else tuple(sizes)  # type: ignore[arg-type]


def _fitted(numbers: Any, value: onnx.TypeProto.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers in the type and shape of an input; ValueError where they do not fit."""
    dtype = helper.tensor_dtype_to_np_dtype(value.elem_type)
    return np.broadcast_to(np.squeeze(np.asarray(numbers, dtype)), shape).copy()
