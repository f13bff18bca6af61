"""Rewrite one ONNX graph, and the graphs inside its nodes, to a half float: which nodes, and where a Cast goes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper

from workbench.onnx_graph.edit import CUSTOM, STANDARD, Namer, Values, attribute, constants, inner_graphs, is_a, reads

FLOAT = TensorProto.FLOAT
SHAPES = frozenset({"Shape", "Size"})  # operators whose answer does not depend on values
# operators that write another type when they read another, although their definition does not tie the two
_OWN_TYPES = frozenset({"Bernoulli", "BitCast", "EyeLike", "LinearAttention", "OptionalGetElement",
                        "RandomNormalLike", "RandomUniformLike"})  # fmt: skip
_VALUE_KINDS = {"value_float": FLOAT, "value_int": TensorProto.INT64, "value_string": TensorProto.STRING}
_VALUE_KINDS |= {f"{name}s": kind for name, kind in _VALUE_KINDS.items()}
_KINDS = {f"tensor({name.lower()})": kind for name, kind in TensorProto.DataType.items()}


@dataclass(frozen=True)
class Half:
    """A number format of 16 bits: what the user asks for, its name, number and NumPy type, its largest finite number.

    TensorRT has not the `refused` operators in this format: TensorRT-RTX 1.7.1 was seen to refuse them.
    """

    precision: str
    name: str
    kind: int
    dtype: np.dtype[Any]
    largest: float
    refused: frozenset[str] = frozenset()


FLOAT16 = Half("fp16", "float16", TensorProto.FLOAT16, np.dtype(np.float16), 65504.0)
_REFUSED = frozenset({"ConvTranspose", "GRU", "HardSwish", "LpNormalization", "Mish"})
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
BFLOAT16 = Half("bf16", "bfloat16", TensorProto.BFLOAT16, _BFLOAT16, float(ml_dtypes.finfo(_BFLOAT16).max), _REFUSED)
HALVES = {half.kind: half for half in (FLOAT16, BFLOAT16)}  # the 16-bit types of ONNX; a CPU does not compute in them


@dataclass
class Rules:
    """What decides about a node, and what was decided."""

    half: Half
    opset: int
    overflows: Mapping[str, float]  # the largest value of each tensor that the format cannot hold
    keep: frozenset[str]  # names of nodes or tensors, and operators
    custom: Mapping[str, Any] = field(default_factory=dict)  # the schemas of custom operators
    converted: int = 0
    kept: list[tuple[str, str, str]] = field(default_factory=list)  # name, operator and reason

    def reason_to_keep(self, node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> str:
        """Why a node stays float32, one clause; empty where nothing speaks against the half float."""
        if self.keep.intersection((node.name, node.op_type, *node.output)):
            return "you keep it"
        if node.op_type in self.half.refused:
            return f"TensorRT has no {self.half.name} {node.op_type}"
        largest = self.half.largest
        end = f"{self.half.name} ends at {f'{largest:,.0f}' if largest < 1e6 else f'{largest:.1e}'}"
        for name in filter(None, (*node.input, *node.output)):
            if name in self.overflows:
                verb = "reads" if name in node.input else "writes"
                return f"it {verb} values up to {self.overflows[name]:,.0f}, {end}"
            if name in weights and (problem := self._weight_problem(name, weights[name], end)):
                return problem
        return ""

    def _weight_problem(self, name: str, tensor: onnx.TensorProto, end: str) -> str:
        if tensor.data_type != FLOAT:
            return ""
        array = np.abs(numpy_helper.to_array(tensor))
        peak = float(array.max(initial=0, where=np.isfinite(array)))
        if peak > self.half.largest:
            return f"its constant {name} holds {peak:,.4g}, {end}"
        if peak > 0 and not array.astype(self.half.dtype).any():
            return f"its constant {name}, at most {peak:.1e}, would be 0 in {self.half.name}"
        return ""


class GraphConverter:
    """One graph on its way to a half float, changed in place; tensors keep their names, whatever type they get.

    The types of `inferred` are known; `fresh` makes a name that nothing has, and `outer` is the graph around this one.
    """

    def __init__(
        self, graph: onnx.GraphProto, rules: Rules, inferred: Values, fresh: Namer, outer: Self | None = None
    ) -> None:
        self.graph, self.rules, self.inferred, self.fresh = graph, rules, inferred, fresh
        self.weights: dict[str, onnx.TensorProto] = (dict(outer.weights) if outer else {}) | constants(graph)
        self.was: dict[str, int] = dict(outer.was) if outer else {}  # the type of each tensor in the source
        self.now: dict[str, int] = dict(outer.now) if outer else {}  # and in the result
        self.fed: set[str] = set(outer.fed) if outer else set()  # tensors that depend on what the network is fed
        self.casts: dict[tuple[str, int], str] = dict(outer.casts) if outer else {}
        self.nodes: list[onnx.NodeProto] = []
        self.ends = {value.name for value in graph.output}
        for value in graph.input:
            self._note(value.name, value.type.tensor_type.elem_type)
            self.fed.add(value.name)
        for tensor in graph.initializer:
            self._note(tensor.name, tensor.data_type)

    def convert(self) -> None:
        """Convert every node that can be, and put a Cast wherever two types meet."""
        for node in self.graph.node:
            depends = not self.fed.isdisjoint(reads(node))
            if depends and node.op_type not in SHAPES:
                self.fed.update(filter(None, node.output))
            self._convert_node(node, depends)
        for value in self.graph.output:  # one that the graph hands on from the graph around it
            value.name = self._as(value.name, self.was.get(value.name, 0))
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        for value in self.graph.value_info:
            tensor = value.type.tensor_type
            tensor.elem_type = self.now.get(value.name, tensor.elem_type)

    def _convert_node(self, node: onnx.NodeProto, depends: bool) -> None:
        known = node.domain in STANDARD and defs.has(node.op_type, self.rules.opset, "")
        own = self.rules.custom.get(node.op_type) if node.domain == CUSTOM else None
        schema = defs.get_schema(node.op_type, self.rules.opset, "") if known else own
        self._note_outputs(node, schema)
        if bodies := list(inner_graphs(node)):  # what enters and leaves them keeps its type
            self._as_before(node)
            for body in bodies:
                types = {value.name: value.type.tensor_type for value in (*body.value_info, *body.output)}
                GraphConverter(body, self.rules, types, self.fresh, self).convert()
        elif is_a(node, *SHAPES, "Cast"):
            self.nodes.append(node)  # it reads any type, and what it writes has its own
        elif self._may_convert(node, schema, depends):
            self._to_half(node, schema)
        else:
            self._as_before(node)

    def _may_convert(self, node: onnx.NodeProto, schema: Any, depends: bool) -> bool:
        """Decide, and note the reason where a node that computes in float32 stays so."""
        kinds = {self.was.get(name, 0) for name in (*node.input, *node.output) if name}
        if not kinds & {FLOAT, 0} or not any(node.input):
            return False
        if not depends:
            reason = "it calculates with shapes and constants, not with what is fed"
        elif schema is None:
            reason = "it is no operator of ONNX, so its types are not known"
        elif 0 in kinds:
            reason = "the type of what it reads or writes is not known"
        elif node.op_type in _OWN_TYPES:
            reason = "the type of what it writes depends on more than what it reads"
        elif not self._variables(node, schema) and node.domain == CUSTOM:
            reason = f"its function takes no {self.rules.half.name}"
        elif not self._variables(node, schema):
            reason = f"ONNX has no {self.rules.half.name} {node.op_type} in opset {self.rules.opset}"
        else:
            reason = self.rules.reason_to_keep(node, self.weights)
        if reason:
            self.rules.kept.append((node.name, node.op_type, reason))
        return not reason

    def _variables(self, node: onnx.NodeProto, schema: Any) -> set[str]:
        """The type variables of an operator that are float32 here and may be the half float."""
        half, formal = f"tensor({self.rules.half.name})", _formal(schema.inputs, len(node.input))
        takes = {item.type_param_str for item in schema.type_constraints if half in item.allowed_type_strs}
        read = zip(node.input, formal, strict=True)
        return takes & {variable for name, variable in read if self.was.get(name) == FLOAT}

    def _to_half(self, node: onnx.NodeProto, schema: Any) -> None:
        half, variables = self.rules.half, self._variables(node, schema)
        for index, variable in enumerate(_formal(schema.inputs, len(node.input))):
            name = node.input[index]
            node.input[index] = self._as(name, half.kind if variable in variables else self.was.get(name, 0))
        self.nodes.append(node)
        self.rules.converted += 1
        for index, variable in enumerate(_formal(schema.outputs, len(node.output))):
            name = node.output[index]
            if name and variable in variables:
                if name in self.ends:  # what leaves the graph keeps its name and its type
                    node.output[index] = inner = self.fresh(f"{name}_{half.name}")
                    self.now[inner], self.casts[name, half.kind] = half.kind, inner
                    self._append_cast(inner, name, FLOAT)
                else:
                    self.now[name] = half.kind

    def _as_before(self, node: onnx.NodeProto) -> None:
        """Give a node what it read in the source."""
        for index, name in enumerate(node.input):
            node.input[index] = self._as(name, self.was.get(name, 0))
        self.nodes.append(node)

    def _as(self, name: str, kind: int) -> str:
        """The name under which a tensor is to be had in this type; a Cast or a rounded weight is added if needed."""
        if not name or not kind or self.now.get(name, kind) == kind:
            return name
        if (name, kind) not in self.casts:
            half = self.rules.half
            other = self.fresh(f"{name}_{half.name if kind == half.kind else 'float32'}")
            self.casts[name, kind] = other
            if name in self.weights and kind == half.kind:
                array = numpy_helper.to_array(self.weights[name]).astype(half.dtype)
                self.graph.initializer.append(numpy_helper.from_array(array, other))
            else:
                self._append_cast(name, other, kind)
            self.now[other] = kind
        return self.casts[name, kind]

    def _append_cast(self, source: str, result: str, kind: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [result], name=self.fresh(f"{result}_cast"), to=kind))

    def _note(self, name: str, kind: int) -> None:
        self.was[name] = self.now[name] = kind

    def _note_outputs(self, node: onnx.NodeProto, schema: Any) -> None:
        """Keep the type that each output has in the source: as inferred, or as the operator's own rules say."""
        bound, formal = dict[str, int](), [""] * len(node.output)
        if schema is not None:
            bound, formal = self._bound(node, schema), _formal(schema.outputs, len(node.output))
        for name, variable in zip(node.output, formal, strict=True):
            known = self.inferred[name].elem_type if name in self.inferred else 0
            if name:
                self._note(name, known or _own_kind(node) or bound.get(variable, 0))

    def _bound(self, node: onnx.NodeProto, schema: Any) -> dict[str, int]:
        bound = dict(_KINDS)
        for item in schema.type_constraints:
            if len(item.allowed_type_strs) == 1:
                bound[item.type_param_str] = _KINDS.get(item.allowed_type_strs[0], 0)
        for name, variable in zip(node.input, _formal(schema.inputs, len(node.input)), strict=True):
            if name:
                bound.setdefault(variable, self.was.get(name, 0))
        return bound


def _formal(parameters: Any, number: int) -> list[str]:
    """The type variable of each of so many inputs or outputs; the last one of a variadic operator repeats."""
    names = [parameter.type_str if parameter.is_homogeneous else "" for parameter in parameters]
    return (names + names[-1:] * number)[:number]


def _own_kind(node: onnx.NodeProto) -> int:
    """The type that a node's own attributes give to what it writes."""
    if node.op_type == "Cast":
        return int(attribute(node, "to", 0))
    if node.op_type in ("Constant", "ConstantOfShape"):
        kinds = {item.name: _VALUE_KINDS.get(item.name, int(item.t.data_type)) for item in node.attribute}
        return next(iter(kinds.values()), FLOAT)
    return 0
