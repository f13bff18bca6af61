"""Names in an ONNX graph: of its inputs, its outputs and its batch."""

from collections.abc import Iterable, Sequence

import onnx


def name_batch(model: onnx.ModelProto, name: str = "batch") -> None:
    """Give an open first dimension of every input and output the same name, in place."""
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_param = name


def rename_ends(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give the inputs and outputs of a graph other names, in place.

    Args:
        model: the graph; its inputs and outputs stand in the order of the names.
        inputs: new names of its inputs.
        outputs: new names of its outputs.
    """
    ends = [*model.graph.input, *model.graph.output]
    renames = {end.name: name for end, name in zip(ends, (*inputs, *outputs), strict=True)}
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)} - set(renames)
    renames |= {name: f"{name}_inner" for name in set(renames.values()) & taken}
    for named in (*ends, *model.graph.initializer, *model.graph.value_info):
        named.name = renames.get(named.name, named.name)
    _rename_in(model.graph.node, renames)


def _rename_in(nodes: Iterable[onnx.NodeProto], renames: dict[str, str]) -> None:
    """Rename tensors, also in the bodies of loops, which see the names outside."""
    for node in nodes:
        node.input[:] = [renames.get(name, name) for name in node.input]
        node.output[:] = [renames.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                _rename_in(graph.node, renames)
