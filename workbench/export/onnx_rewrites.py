"""Small rewrites of an ONNX network that keep its answers; each changes it in place and counts what it changed."""

import onnx
from onnx import numpy_helper

from workbench.export.graph_edit import (
    STANDARD,
    attribute,
    bypass,
    constants,
    inferred_values,
    reads,
    real_inputs,
    remove_nodes,
    tidy,
    use_counts,
)


def make_resize_exact(model: onnx.ModelProto) -> int:
    """Rewrite tf2onnx's nearest Resize to the same map in words that TensorRT accepts, in place.

    tf2onnx writes `tf_half_pixel_for_nn` with `floor`, which the TensorRT parser refuses; `half_pixel`
    with `round_prefer_ceil` picks the same source pixel at every scale.

    Returns:
        How many nodes were rewritten.
    """
    count = 0
    for node in model.graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        mode = attributes.get("coordinate_transformation_mode")
        if node.op_type == "Resize" and mode is not None and mode.s == b"tf_half_pixel_for_nn":
            mode.s, attributes["nearest_mode"].s = b"half_pixel", b"round_prefer_ceil"
            count += 1
    return count


def remove_no_ops(model: onnx.ModelProto) -> int:
    """Remove nodes that hand their input on unchanged, in place.

    Identity, Dropout of a network that is not training, Cast to the type that is there, Transpose that keeps the
    order, Concat of one tensor, Pad by nothing.

    Returns:
        How many nodes were removed.
    """
    graph, known, used = model.graph, constants(model.graph), use_counts(model.graph)
    types = {name: value.elem_type for name, value in inferred_values(model).items()}
    done = []
    for node in graph.node:
        others_read = any(used[name] for name in node.output[1:] if name)
        if _does_nothing(node, known, types) and not others_read and bypass(graph, node):
            done.append(node)
    remove_nodes(graph, done)
    tidy(model, bool(done))
    return len(done)


def remove_dead(model: onnx.ModelProto) -> int:
    """Remove nodes that no output depends on, and weights that nobody reads, in place.

    Returns:
        How many nodes and weights were removed.
    """
    graph, used = model.graph, use_counts(model.graph)
    dead = []
    for node in reversed(graph.node):  # whoever reads a node's result comes after it
        if not any(used[name] for name in node.output if name):
            dead.append(node)
            used.subtract(reads(node))
    remove_nodes(graph, dead)
    weights = len(graph.initializer)
    tidy(model)
    return len(dead) + weights - len(graph.initializer)


def name_open_batch(model: onnx.ModelProto, name: str = "batch") -> int:
    """Name the open first dimension of the inputs, and that of the outputs that follow it, in place.

    Nothing is done where the inputs have open first dimensions of different names, or of none: they may differ.

    Returns:
        How many inputs and outputs got the name.
    """
    dims = [dim for value in real_inputs(model.graph) for dim in value.type.tensor_type.shape.dim[:1]]
    dims = [dim for dim in dims if not dim.HasField("dim_value")]
    names = {dim.dim_param for dim in dims}
    if len(names) != 1 or (names == {""} and len(dims) > 1) or _has_dim(model.graph, name, names == {name}):
        return 0
    old = names.pop()
    for dim in dims:
        dim.dim_param = name
    renamed = 0 if old == name else len(dims)
    return renamed + _name_outputs(model, old, name)


def _does_nothing(node: onnx.NodeProto, known: dict[str, onnx.TensorProto], types: dict[str, int]) -> bool:
    if node.domain not in STANDARD:
        return False
    kind = node.op_type
    if kind == "Dropout":
        mode = node.input[2] if len(node.input) > 2 else ""
        return not mode or (mode in known and not numpy_helper.to_array(known[mode]).any())
    if kind == "Cast":
        return types.get(node.input[0]) == attribute(node, "to")
    if kind == "Transpose":
        order = attribute(node, "perm")
        return order is not None and list(order) == sorted(order)
    if kind == "Pad" and len(node.input) > 1:
        return node.input[1] in known and not numpy_helper.to_array(known[node.input[1]]).any()
    return kind == "Identity" or (kind == "Concat" and len(node.input) == 1)


def _has_dim(graph: onnx.GraphProto, name: str, expected: bool) -> bool:
    """Whether a dimension other than the one to name has that name already."""
    if expected:
        return False
    values = (*graph.input, *graph.output)
    return any(dim.dim_param == name for value in values for dim in value.type.tensor_type.shape.dim)


def _name_outputs(model: onnx.ModelProto, old: str, new: str) -> int:
    """Rename the dimension in outputs and notes; where an output has no name, shape inference says if it follows."""
    for value in (*model.graph.value_info, *model.graph.input):
        for dim in value.type.tensor_type.shape.dim:
            if old and dim.dim_param == old:
                dim.dim_param = new
    found, count = inferred_values(model), 0
    for value in model.graph.output:
        for dim, inferred in zip(value.type.tensor_type.shape.dim, found[value.name].shape.dim, strict=False):
            same = dim.dim_param == old if old else not dim.HasField("dim_value") and inferred.dim_param == new
            if same and dim.dim_param != new:
                dim.dim_param = new
                count += 1
    return count
