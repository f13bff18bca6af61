"""Read and change an ONNX graph in place: who reads what, fresh names, types and sizes, graphs inside nodes."""

import contextlib
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper

from workbench.core.errors import ExportError

STANDARD = ("", "ai.onnx")  # names of the domain of ONNX's own operators
CUSTOM = "workbench.custom"  # the domain of custom nodes; TensorRT looks a plugin up by the operator alone
OPERATOR_NAME = re.compile(r"[A-Za-z]\w*")
LARGEST_FILE = (1 << 31) - 1  # bytes that one protobuf file can hold
LARGEST_SHAPE = 1024  # numbers that a weight may have and still be taken for a shape, an axis or a scale

_PLAIN = frozenset(getattr(onnx.AttributeProto, name) for name in ("FLOAT", "INT", "STRING", "FLOATS", "INTS"))

Namer = Callable[[str], str]
Values = Mapping[str, onnx.TypeProto.Tensor]  # element type and shape of tensors


def is_a(node: onnx.NodeProto, *operators: str) -> bool:
    """Whether a node is one of these operators of ONNX's own."""
    return node.op_type in operators and node.domain in STANDARD


def inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs right inside a node, such as the branches of an If."""
    for item in node.attribute:
        yield from (*([item.g] if item.HasField("g") else ()), *item.graphs)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every graph inside its nodes, however deep."""
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from graphs(inner)


def parts(model: onnx.ModelProto) -> Iterator[Any]:
    """Whatever in a model has nodes: its graph, its functions, and every graph inside their nodes."""
    for whole in (model.graph, *model.functions):
        yield from graphs(whole)


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The weights of a model and the numbers in its nodes' attributes, wherever they are."""
    for part in parts(model):
        yield from getattr(part, "initializer", ())
        sparse = [*getattr(part, "sparse_initializer", ())]
        items = [item for node in part.node for item in node.attribute if item.type not in _PLAIN]
        for item in items:
            yield from (*([item.t] if item.HasField("t") else ()), *item.tensors)
            sparse += [*([item.sparse_tensor] if item.HasField("sparse_tensor") else ()), *item.sparse_tensors]
        yield from (tensor for each in sparse for tensor in (each.values, each.indices))


def all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes of a graph and of the graphs inside them."""
    return [node for part in graphs(graph) for node in part.node]


@dataclass(frozen=True)
class CustomNode:
    """A node that is no operator of ONNX's own, and whether the file has a function for it."""

    name: str
    operator: str
    domain: str
    has_function: bool

    def __str__(self) -> str:
        return f"{self.name} ({self.domain}.{self.operator})"


def custom_nodes(model: onnx.ModelProto) -> list[CustomNode]:
    """The nodes of other domains than ONNX's own, in the graph and in the graphs inside its nodes."""
    functions = {(function.domain, function.name) for function in model.functions}
    found = []
    for node in all_nodes(model.graph):
        if node.domain not in STANDARD:
            name, known = node.name or next(iter(node.output), ""), (node.domain, node.op_type) in functions
            found.append(CustomNode(name, node.op_type, node.domain, known))
    return found


def opset(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model uses; 0 where it names none."""
    return next((entry.version for entry in model.opset_import if entry.domain in STANDARD), 0)


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model of its own with the same content."""
    fresh = onnx.ModelProto()
    fresh.CopyFrom(model)
    return fresh


def refuse_large(model: onnx.ModelProto) -> None:
    """Refuse a network that one file cannot hold, with an ExportError."""
    if model.ByteSize() > LARGEST_FILE:
        raise ExportError(f"the network has {model.ByteSize():,} bytes, more than the 2 GB that one file can hold")


def weight_bytes(tensors: Iterable[onnx.TensorProto]) -> int:
    """Size of weights, from their dimensions and types: their numbers may be in another file."""
    return sum(math.prod(item.dims) * helper.tensor_dtype_to_np_dtype(item.data_type).itemsize for item in tensors)


def namer(network: onnx.ModelProto) -> Namer:
    """Return a function that makes a name which no tensor and no node of the network has."""
    taken: set[str] = set()
    for graph in graphs(network.graph):
        taken |= {item.name for items in (graph.input, graph.initializer, graph.node) for item in items}
        taken |= {name for node in graph.node for name in (*node.input, *node.output)}

    def fresh(name: str) -> str:
        number, free = 1, name
        while free in taken:
            number, free = number + 1, f"{name}_{number + 1}"
        taken.add(free)
        return free

    return fresh


def name_nodes(model: onnx.ModelProto) -> None:
    """Name each node without a name after what it writes."""
    nodes, fresh = all_nodes(model.graph), namer(model)
    taken = {node.name for node in nodes}
    for node in nodes:
        if not node.name and any(node.output):
            first = next(filter(None, node.output))
            node.name = fresh(first) if first in taken else first


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors wherever a node reads or writes them; the ends of the network keep their names."""
    for inner in graphs(graph):
        for node in inner.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]


def real_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that are not weights."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """The node that writes each tensor."""
    return {name: node for node in graph.node for name in node.output if name}


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node reads, or that the graphs inside it read or give."""
    yield from filter(None, node.input)
    for inner in inner_graphs(node):
        yield from (name for part in inner.node for name in reads(part))
        yield from (value.name for value in inner.output)


def use_counts(graph: onnx.GraphProto) -> Counter[str]:
    """How often each tensor is read: by nodes, by the graphs inside them, and as an output of the network."""
    counts = Counter(name for node in graph.node for name in reads(node))
    counts.update(value.name for value in graph.output)
    return counts


def constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """The tensors that no feed can change: weights that are not inputs too, and the values of Constant nodes."""
    fed = {value.name for value in graph.input}
    found = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in fed}
    for node in graph.node:
        value = attribute(node, "value") if is_a(node, "Constant") else None
        if isinstance(value, onnx.TensorProto):
            found[node.output[0]] = value
    return found


def light_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model without the numbers of its large weights, which shapes do not depend on."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = model.graph
    light.graph.CopyFrom(onnx.GraphProto(name=graph.name, node=graph.node, input=graph.input, output=graph.output))
    light.graph.value_info.extend(graph.value_info)
    for tensor in graph.initializer:
        small = math.prod(tensor.dims) <= LARGEST_SHAPE and not tensor.external_data
        slim = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        slim.data_location = onnx.TensorProto.EXTERNAL  # its numbers are not here
        light.graph.initializer.append(tensor if small else slim)
    return light


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the contents of weights, with a note of every type and shape that ONNX's shape inference finds."""
    light = light_copy(model)
    with contextlib.suppress(onnx.shape_inference.InferenceError, ValueError):
        light = onnx.shape_inference.infer_shapes(light, data_prop=True)
    return light


def inferred_values(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """Element type and shape of every tensor that ONNX's shape inference finds, weights included."""
    graph = inferred(model).graph
    found = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)}
    for tensor in graph.initializer:
        found[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims).tensor_type
    return found


def dims(value: onnx.TypeProto.Tensor) -> tuple[int | None, ...]:
    """The shape of a tensor, None for an open dimension."""
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in value.shape.dim)


def fixed_shape(value: onnx.TypeProto.Tensor | None) -> tuple[int, ...] | None:
    """The shape where every dimension of it is known, else None."""
    if value is None or not value.HasField("shape"):
        return None
    sizes = [size for size in dims(value) if size is not None]
    return tuple(sizes) if len(sizes) == len(value.shape.dim) else None


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of an attribute, or the default; text comes as bytes."""
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    """Give an attribute a new value; None removes it."""
    _keep(node.attribute, lambda item: item.name != name)
    if value is not None:
        node.attribute.append(helper.make_attribute(name, value))


def remove_nodes(model: onnx.ModelProto, unwanted: Iterable[onnx.NodeProto]) -> int:
    """Remove these very nodes, and what only they needed, in place; returns how many."""
    held = list(unwanted)  # while they are held, the graph gives the same objects again
    gone = {id(node) for node in held}
    _keep(model.graph.node, lambda node: id(node) not in gone)
    if held:  # else the network stays as it is, to the last byte
        tidy(model)
    return len(held)


def forget_shapes(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Remove the notes on tensors whose shape has changed."""
    _keep(graph.value_info, lambda value: value.name not in names)


def bypass(graph: onnx.GraphProto, node: onnx.NodeProto) -> bool:
    """Let everyone who reads a node's first output read its first input instead; the node itself stays.

    False where that cannot be: both tensors are ends of the network, whose names must stay.
    """
    source, result = node.input[0], node.output[0]
    ends = {value.name for value in graph.output}
    if result not in ends:
        for inner in graphs(graph):
            for reader in inner.node:
                reader.input[:] = [source if name == result else name for name in reader.input]
            for value in inner.output:
                value.name = source if value.name == result else value.name
        return True
    if source in ends or source not in producers(graph):
        return False
    node.output[0] = ""
    rename(graph, {source: result})
    return True


def tidy(model: onnx.ModelProto) -> None:
    """Remove weights that nobody reads and notes on the shapes of tensors that are gone, in place."""
    graph, used = model.graph, use_counts(model.graph)
    fed, written = {value.name for value in graph.input}, set(producers(graph))
    _keep(graph.initializer, lambda tensor: used[tensor.name] > 0 or tensor.name in fed)
    _keep(graph.value_info, lambda value: value.name in written)


def _keep(items: Any, wanted: Callable[[Any], bool]) -> None:
    """Delete the others one by one: a new list would copy every weight."""
    for index in reversed(range(len(items))):
        if not wanted(items[index]):
            del items[index]
