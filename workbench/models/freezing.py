"""Freeze Keras models and TensorFlow functions: variables become constants, the ends get clean names."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from workbench.core.errors import ExportError, first_line
from workbench.core.packages import load_keras, load_tensorflow, require_backend
from workbench.models.tf1_graph import GraphView, node_name


@dataclass(frozen=True)
class FrozenGraph:
    """A TensorFlow GraphDef without variables, and the names of the tensors that go in and out.

    `layer_of` has the Keras layer behind each part of a node's name that is one.
    """

    graph_def: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layer_of: dict[str, str] = field(default_factory=dict)


def node_place(name: str, layer_of: Mapping[str, str]) -> str:
    """Say in which Keras layer a node is, of `FrozenGraph.layer_of`; outside of all layers, its own name.

    >>> node_place("functional_1/shrink_1/resize/ResizeArea", {"shrink_1": "shrink"})
    "the layer 'shrink'"
    """
    found = ""
    for part in name.split("/")[:-1]:
        if found and part not in layer_of:
            break
        found = layer_of.get(part, "")
    return f"the layer {found!r}" if found else f"the operation {name!r}"


def tensor_names(model: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of `named_tensors`: of the inputs, and of the outputs."""
    inputs, outputs = named_tensors(model)
    return tuple(inputs), tuple(outputs)


def named_tensors(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a Keras model's input and output tensors by the names that they get in ONNX and in every runner.

    Those of a dict have its keys, in their order. Else a single one is `input` or `output`, and several keep the names
    of their Keras layers. ExportError where the model has none.
    """
    if not getattr(model, "inputs", None):
        name = getattr(model, "name", type(model).__name__)
        if type(model).__name__ == "Sequential":
            raise ExportError(f"the model {name!r} has no input shapes yet; call it once on a batch, then convert it")
        raise ExportError(
            f"the model {name!r} ({type(model).__name__}) does not say what it takes, called or not; wrap it: "
            "x = keras.Input((224, 224, 3)) with your shape, then convert keras.Model(x, model(x))"
        )
    outputs = list(getattr(model, "output_names", ())) or [tensor.name for tensor in model.outputs]
    given = _named(getattr(model, "input", None), model.inputs, [tensor.name for tensor in model.inputs], "input")
    answers = _named(getattr(model, "output", None), model.outputs, outputs, "output")
    # in ONNX all names are different
    return given, {f"{name}_output" if name in given else name: tensor for name, tensor in answers.items()}


def flat_call(model: Any) -> Callable[..., list[Any]]:
    """Return the forward pass of a Keras model as a function of its inputs that gives its outputs as a list.

    Both are in the order of `named_tensors`, also where the model takes or gives a dict.
    """
    tf = load_tensorflow()
    structure = getattr(model, "input", None)

    def forward(*tensors: Any) -> list[Any]:
        given = tensors[0] if len(tensors) == 1 else list(tensors)
        if isinstance(structure, Mapping):
            given = tf.nest.pack_sequence_as(structure, tensors)
        return list(tf.nest.flatten(model(given, training=False)))

    return forward


def is_tf_keras(model: Any) -> bool:
    """Tell whether tf_keras, the Keras 2 of older models, made this model."""
    return any(kind.__module__.split(".")[0] == "tf_keras" for kind in type(model).__mro__)


def freeze(model: Any, *, spatial: tuple[int, int] | None = None) -> FrozenGraph:
    """Turn a Keras 3 or tf_keras model into a GraphDef of constants; `spatial` (pixels) fills open heights and widths.

    ExportError: unknown input shapes, strings, or a forward pass that TensorFlow cannot trace.
    """
    if hasattr(model, "inputs") and not is_tf_keras(model):
        load_keras()
    tf = load_tensorflow()
    inputs, outputs = named_tensors(model)
    specs = [
        tf.TensorSpec(fixed_shape(name, tuple(tensor.shape), spatial), _number_type(name, tensor), name=name)
        for name, tensor in inputs.items()
    ]
    try:
        # the layers of tf_keras may hold a Python `if` on a tensor, which AutoGraph turns into a graph
        function = tf.function(flat_call(model), autograph=is_tf_keras(model)).get_concrete_function(*specs)
    except Exception as error:
        if "as a Python `bool`" in str(error) or "Iterating over a symbolic" in str(error):
            raise ExportError(
                f"a layer of {model.name!r} decides by the values of its input (a Python `if`, `while` or `for` on a "
                "tensor), which no graph holds; write it with keras.ops.where or keras.ops.cond"
            ) from error
        raise ExportError(f"TensorFlow cannot trace {model.name!r}: {first_line(error)}") from error
    frozen = freeze_function(function, tuple(inputs), tuple(outputs))
    return replace(frozen, layer_of=_layers_by_scope(model, frozen.graph_def))


def _layers_by_scope(model: Any, graph_def: Any) -> dict[str, str]:
    """Find the layer behind each part of the nodes' names; Keras 3 gives every one a number at its end."""
    layers = {layer.name for layer in model._flatten_layers(include_self=False)}
    found: dict[str, str] = {}
    for part in {part for node in graph_def.node for part in node.name.split("/")[:-1]}:
        names = [part, re.sub(r"_\d+$", "", part)]
        for name in names if is_tf_keras(model) else reversed(names):
            if name in layers:
                found.setdefault(part, name)
    return found


def freeze_function(function: Any, inputs: Sequence[str], outputs: Sequence[str]) -> FrozenGraph:
    """Replace a ConcreteFunction's variables by constants; the new names follow its placeholders and flat outputs."""
    graph_def = _with_constants(function)
    ends = [*function.inputs[: len(inputs)], *function.outputs]
    if graph_def is None:
        module = require_backend("tensorflow.python.framework.convert_to_constants", "keras")
        frozen = module.convert_variables_to_constants_v2(function, lower_control_flow=False, aggressive_inlining=True)
        graph_def, ends = frozen.graph.as_graph_def(add_shapes=True), [*frozen.inputs, *frozen.outputs]
    renames = dict(zip((node_name(tensor.name) for tensor in ends), (*inputs, *outputs), strict=True))
    for node in graph_def.node:
        node.name = renames.get(node.name, node.name)
        for index, name in enumerate(node.input):
            node.input[index] = renames.get(name, name)
    return FrozenGraph(graph_def, tuple(inputs), tuple(outputs))


def fixed_shape(name: str, shape: tuple[int | None, ...], spatial: tuple[int, int] | None) -> list[int | None]:
    """Keep the batch open, fill open heights and widths of a picture from `spatial`; ExportError if it does not fit."""
    batch, *rest = shape
    if len(shape) != 4:
        return [batch, *rest]
    unknown = [axis for axis, size in enumerate(rest) if size is None]
    if unknown and spatial is None:
        raise ExportError(f"{name} is {shape}: its height and width are open; give spatial=(height, width)")
    if len(unknown) not in (0, 2):
        raise ExportError(f"{name} is {shape}, expected an input whose height and width are both open or both fixed")
    for axis, size in zip(unknown, spatial or (), strict=False):
        rest[axis] = size
    if spatial and not unknown and list(spatial) not in (rest[:2], rest[1:]):
        raise ExportError(f"{name} is fixed to {shape}, got spatial={spatial}; build the model for that size instead")
    return [batch, *rest]


def _with_constants(function: Any) -> Any:
    """Write each variable's value where the graph reads it; None where the graph does more than read its variables.

    TensorFlow's own freezing copies all weights six times. It is still what takes apart loops and nested functions.
    """
    tf = load_tensorflow()
    graph = function.graph
    graph_def = graph.as_graph_def(add_shapes=True)
    needed = GraphView(graph_def).upstream(tensor.op.name for tensor in function.outputs)
    captured = {inner.op.name: outer for outer, inner in graph.captures}
    handles = {id(variable.handle): variable for variable in graph.variables}
    frozen = tf.compat.v1.GraphDef(versions={"producer": graph.graph_def_versions.producer})
    for node in graph_def.node:
        if node.name not in needed and node.op != "Placeholder":
            continue
        if any(value.HasField("func") or value.list.func for value in node.attr.values()):
            return None
        source = next((captured[node_name(name)] for name in node.input if node_name(name) in captured), None)
        if node.name in captured:
            if captured[node.name].dtype != tf.resource:
                _add_constant(frozen, node, captured[node.name].numpy())
        elif source is None or source.dtype != tf.resource:
            frozen.node.add().CopyFrom(node)
        elif node.op == "ReadVariableOp" and id(source) in handles:
            _add_constant(frozen, node, handles[id(source)].numpy())
        else:
            return None
    return frozen


def _add_constant(graph_def: Any, node: Any, value: Any) -> None:
    tf = load_tensorflow()
    constant = graph_def.node.add(name=node.name, op="Const")
    constant.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
    constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    if "_output_shapes" in node.attr:
        constant.attr["_output_shapes"].CopyFrom(node.attr["_output_shapes"])


def _number_type(name: str, tensor: Any) -> Any:
    dtype = getattr(tensor.dtype, "name", tensor.dtype)
    if dtype == "string":
        raise ExportError(
            f"the input {name!r} takes strings, expected numbers; take the layers that read text out of the model, "
            "run them before it, and convert the rest"
        )
    return tensor.dtype


def _named(structure: Any, tensors: Sequence[Any], names: list[str], single: str) -> dict[str, Any]:
    """Name tensors by the keys of the dict that holds them, in the order of `tf.nest.flatten`; else by `names`."""
    if isinstance(structure, Mapping):
        names, tensors = map(list, zip(*_leaves(structure), strict=True))
    elif len(names) == 1:
        names = [single]
    return dict(zip(_clean(names), tensors, strict=True))


def _leaves(structure: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield what is in dicts and lists, with the keys and numbers that lead there."""
    if not isinstance(structure, (Mapping, list, tuple)):
        yield "_".join(path), structure
        return
    pairs = sorted(structure.items()) if isinstance(structure, Mapping) else enumerate(structure)
    for key, value in pairs:
        yield from _leaves(value, (*path, str(key)))


def _clean(names: list[str]) -> tuple[str, ...]:
    """Make names that ONNX, TensorFlow and file systems all accept, without doubles."""
    cleaned: list[str] = []
    for name in names:
        name = re.sub(r"[^A-Za-z0-9_]", "_", name.split(":")[0])
        cleaned.append(name if name not in cleaned else f"{name}_{len(cleaned)}")
    return tuple(cleaned)
