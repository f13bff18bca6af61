"""Freeze Keras models and TensorFlow functions: variables become constants, the ends get clean names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.core.errors import ExportError
from workbench.core.packages import load_tensorflow, require_backend


@dataclass(frozen=True)
class FrozenGraph:
    """A TensorFlow GraphDef without variables, and the names of the tensors that go in and out."""

    graph_def: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def tensor_names(model: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names that a Keras model's inputs and outputs get in ONNX and in every runner.

    A single one is `input` or `output`; several keep the names of their Keras layers.

    Raises:
        ExportError: the model was never built, so it has no inputs.
    """
    if not getattr(model, "inputs", None):
        name = getattr(model, "name", type(model).__name__)
        if type(model).__name__ == "Sequential":
            raise ExportError(f"the model {name!r} has no input shapes yet; call it once on a batch, then convert it")
        raise ExportError(
            f"the model {name!r} ({type(model).__name__}) does not say what it takes, called or not; wrap it: "
            "x = keras.Input((224, 224, 3)) with your shape, then convert keras.Model(x, model(x))"
        )
    inputs = _clean([tensor.name for tensor in model.inputs], "input")
    return inputs, _clean(list(getattr(model, "output_names", ())) or [t.name for t in model.outputs], "output")


def is_tf_keras(model: Any) -> bool:
    """Tell whether tf_keras, the Keras 2 of older models, made this model."""
    return any(kind.__module__.split(".")[0] == "tf_keras" for kind in type(model).__mro__)


def freeze(model: Any, *, spatial: tuple[int, int] | None = None) -> FrozenGraph:
    """Turn a Keras model into a GraphDef whose weights are constants.

    Args:
        model: a Keras 3 or tf_keras model whose input shapes are known.
        spatial: (height, width) in pixels for a model that leaves them open.
    Raises:
        ExportError: unknown input shapes, strings, or a forward pass that TensorFlow cannot trace.
    """
    tf = load_tensorflow()
    inputs, outputs = tensor_names(model)
    specs = [
        tf.TensorSpec(fixed_shape(name, tuple(tensor.shape), spatial), _number_type(name, tensor), name=name)
        for name, tensor in zip(inputs, model.inputs, strict=True)
    ]

    def forward(*tensors: Any) -> Any:
        answer = model(tensors[0] if len(tensors) == 1 else list(tensors), training=False)
        return tf.nest.flatten(answer)

    try:
        # the layers of tf_keras may hold a Python `if` on a tensor, which AutoGraph turns into a graph
        function = tf.function(forward, autograph=is_tf_keras(model)).get_concrete_function(*specs)
    except Exception as error:
        raise ExportError(_cannot_trace(model.name, error)) from error
    return freeze_function(function, inputs, outputs)


def freeze_function(function: Any, inputs: Sequence[str], outputs: Sequence[str]) -> FrozenGraph:
    """Replace a concrete function's variables by constants and give its ends the names asked for.

    Args:
        function: a TensorFlow ConcreteFunction.
        inputs: new names, in the order of its placeholders.
        outputs: new names, in the order of its flat outputs.
    """
    graph_def = _with_constants(function)
    if graph_def is not None:
        ends = [*function.inputs[: len(inputs)], *function.outputs]
    else:
        module = require_backend("tensorflow.python.framework.convert_to_constants", "keras")
        frozen = module.convert_variables_to_constants_v2(function, lower_control_flow=False, aggressive_inlining=True)
        graph_def, ends = frozen.graph.as_graph_def(add_shapes=True), [*frozen.inputs, *frozen.outputs]
    old = [tensor.name.split(":")[0] for tensor in ends]
    renames = dict(zip(old, (*inputs, *outputs), strict=True))
    for node in graph_def.node:
        node.name = renames.get(node.name, node.name)
        for index, name in enumerate(node.input):
            node.input[index] = renames.get(name, name)
    return FrozenGraph(graph_def, tuple(inputs), tuple(outputs))


def fixed_shape(name: str, shape: tuple[int | None, ...], spatial: tuple[int, int] | None) -> list[int | None]:
    """Keep the batch open, fill open heights and widths of a picture from `spatial`.

    Raises:
        ExportError: a size is open and none is given, or the other way round.
    """
    batch, *rest = shape
    if len(shape) != 4:
        return [batch, *rest]
    unknown = [axis for axis, size in enumerate(rest) if size is None]
    if unknown and spatial is None:
        raise ExportError(f"{name} is {shape}: its height and width are open; give spatial=(height, width)")
    if len(unknown) > 2 or len(unknown) == 1:
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
    nodes = _needed_nodes(graph.as_graph_def(add_shapes=True), [tensor.op.name for tensor in function.outputs])
    captured = {inner.op.name: outer for outer, inner in graph.captures}
    handles = {id(variable.handle): variable for variable in graph.variables}
    frozen = tf.compat.v1.GraphDef(versions={"producer": graph.graph_def_versions.producer})
    for node in nodes:
        if any(value.HasField("func") or value.list.func for value in node.attr.values()):
            return None
        source = next((name for name in node.input if name.lstrip("^").split(":")[0] in captured), None)
        if node.name in captured and captured[node.name].dtype == tf.resource:
            continue
        if node.name in captured:
            _add_constant(frozen, node, captured[node.name].numpy())
        elif source is None or captured[source.lstrip("^").split(":")[0]].dtype != tf.resource:
            frozen.node.add().CopyFrom(node)
        elif node.op == "ReadVariableOp" and id(captured[source]) in handles:
            _add_constant(frozen, node, handles[id(captured[source])].numpy())
        else:
            return None
    return frozen


def _needed_nodes(graph_def: Any, outputs: list[str]) -> list[Any]:
    """Return the placeholders, and the nodes that the outputs are made from, in the graph's order."""
    nodes = {node.name: node for node in graph_def.node}
    needed, pending = set(), list(outputs)
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            pending += [source.lstrip("^").split(":")[0] for source in nodes[name].input]
    return [node for node in graph_def.node if node.name in needed or node.op == "Placeholder"]


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


def _cannot_trace(name: str, error: Exception) -> str:
    """Say why TensorFlow cannot trace a model, and what to do where that is known."""
    text = str(error)
    if "as a Python `bool`" in text or "Iterating over a symbolic" in text:
        return (
            f"a layer of {name!r} decides by the values of its input (a Python `if`, `while` or `for` on a tensor), "
            "which no graph holds; write it with keras.ops.where or keras.ops.cond"
        )
    return f"TensorFlow cannot trace {name!r}: {first_line(error)}"


def _clean(names: list[str], single: str) -> tuple[str, ...]:
    """Make names that ONNX, TensorFlow and file systems all accept, without doubles."""
    if len(names) == 1:
        return (single,)
    cleaned: list[str] = []
    for name in names:
        name = re.sub(r"[^A-Za-z0-9_]", "_", name.split(":")[0])
        cleaned.append(name if name not in cleaned else f"{name}_{len(cleaned)}")
    return tuple(cleaned)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that says something, or the error's type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
