"""Change TensorFlow graphs at their inputs: where they are fed, in which layout and size."""

from collections.abc import Iterable, Sequence
from typing import Any

from workbench.environment import load_tensorflow
from workbench.errors import ModelError
from workbench.export.tf1_graph import GraphView, node_name


def cut_at(graph_def: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """Return a copy of a graph in which every input is a placeholder.

    Args:
        graph_def: a TensorFlow GraphDef.
        inputs: nodes to feed, also others than placeholders, such as a queue that training read from.
        outputs: nodes that depend on them.
    Raises:
        ModelError: no output depends on an input.
    """
    tf = load_tensorflow().compat.v1
    view = GraphView(graph_def)
    cut = type(graph_def)()
    cut.CopyFrom(graph_def)
    for name in inputs:
        if view.nodes[name].op == "Placeholder":
            continue
        with tf.Graph().as_default():
            tensor = tf.import_graph_def(view.subgraph([name]), return_elements=[f"{name}:0"], name="")[0]
        _feed_at(cut, name, tensor.shape.as_proto(), tensor.dtype.as_datatype_enum)
    unused = set(inputs) - GraphView(cut).upstream(outputs)
    if unused:
        raise ModelError(
            f"the input {unused.pop()} does not lead to {', '.join(outputs)}; name another input or output"
        )
    return cut


def _feed_at(graph_def: Any, name: str, shape: Any, dtype: int) -> None:
    """Turn a node into a placeholder, in place, so that its first output can be fed.

    Args:
        graph_def: a TensorFlow GraphDef.
        name: the node, such as a queue that training read from.
        shape: a TensorShapeProto.
        dtype: the DataType of the tensor.
    """
    node = next(node for node in graph_def.node if node.name == name)
    node.Clear()
    node.name, node.op = name, "Placeholder"
    node.attr["dtype"].type = dtype
    node.attr["shape"].shape.CopyFrom(shape)


def take_channels_first(graph_def: Any, names: Iterable[str]) -> None:
    """Let picture inputs be (N, C, H, W): each becomes a placeholder of that layout and a Transpose, in place.

    The converter moves the Transpose into the network, where it meets the convolutions' own and both vanish.

    Args:
        graph_def: a frozen GraphDef whose placeholders `names` are (N, H, W, C).
        names: placeholders.
    Raises:
        ModelError: an input that does not have four axes.
    """
    nodes = {node.name: node for node in graph_def.node}
    for name in names:
        old = nodes[name].attr["shape"].shape
        if len(old.dim) != 4:
            raise ModelError(
                f"the input {name} has {len(old.dim)} axes, expected (N, H, W, C); leave its layout as it is"
            )
        sizes, dtype = [dim.size for dim in old.dim], nodes[name].attr["dtype"].type
        for node in graph_def.node:
            for index, given in enumerate(node.input):
                if node_name(given) == name:
                    node.input[index] = f"{name}/channels_last"
        shape = type(old)()
        for axis in (0, 3, 1, 2):
            shape.dim.add().size = sizes[axis]
        _feed_at(graph_def, name, shape, dtype)
        _add_transpose(graph_def, name, dtype)


def fix_size(graph_def: Any, names: Iterable[str], spatial: tuple[int, int]) -> None:
    """Give the open height and width of picture inputs a size, in place.

    Args:
        graph_def: a frozen GraphDef.
        names: placeholders.
        spatial: (height, width) in pixels.
    Raises:
        ModelError: no input leaves its height and width open.
    """
    nodes = {node.name: node for node in graph_def.node}
    shapes = [nodes[name].attr["shape"].shape for name in names]
    pairs = [[dim for dim in shape.dim[1:] if dim.size < 0] for shape in shapes if len(shape.dim) == 4]
    if not any(len(pair) == 2 for pair in pairs):
        sizes = ", ".join(
            f"{name} {[dim.size for dim in shape.dim]}" for name, shape in zip(names, shapes, strict=True)
        )
        raise ModelError(f"got spatial={spatial}, but the graph's sizes are fixed ({sizes}); leave spatial out")
    for pair in pairs:
        for dim, size in zip(pair, spatial, strict=True):
            dim.size = size


def _add_transpose(graph_def: Any, name: str, dtype: int) -> None:
    order = graph_def.node.add(name=f"{name}/order", op="Const")
    order.attr["dtype"].type = order.attr["value"].tensor.dtype = 3  # DT_INT32
    order.attr["value"].tensor.tensor_shape.dim.add().size = 4
    order.attr["value"].tensor.int_val.extend((0, 2, 3, 1))
    turn = graph_def.node.add(name=f"{name}/channels_last", op="Transpose", input=[name, order.name])
    turn.attr["T"].type, turn.attr["Tperm"].type = dtype, 3
