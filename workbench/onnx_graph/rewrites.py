"""Small rewrites of an ONNX network that keep its answers; each changes it in place and counts what it changed.

Those that every network may need come first, then those for tf2onnx: Resize and padding that others read differently.
"""

from fractions import Fraction

import numpy as np
import onnx
from onnx import helper, numpy_helper

from workbench.onnx_graph import edit

ELEMENTWISE = frozenset(
    {"Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Selu", "Softplus", "Softsign", "HardSigmoid", "HardSwish", "Mish"}
    | {"Gelu", "Erf", "Exp", "Log", "Sqrt", "Abs", "Neg", "Floor", "Ceil", "Round", "Sign", "Cast", "Clip", "Identity"}
)
"""They move no element to another place, so a Transpose before them may as well come after."""
OLDEST_OPSET = 15  # the first whose Shape can give a part of the shape
_LARGEST_SIDE = 4096


def remove_no_ops(model: onnx.ModelProto) -> int:
    """Remove nodes that hand their input on unchanged, in place; returns how many.

    Identity, Dropout outside training, Cast to the type that is there, Transpose that keeps the order, Concat of one
    tensor, Pad by nothing.
    """
    graph, known, used = model.graph, edit.constants(model.graph), edit.use_counts(model.graph)
    types = {name: value.elem_type for name, value in edit.inferred_values(model).items()}
    done = []
    for node in graph.node:
        others_read = any(used[name] for name in node.output[1:] if name)
        if _does_nothing(node, known, types) and not others_read and edit.bypass(graph, node):
            done.append(node)
    return edit.remove_nodes(model, done)


def _does_nothing(node: onnx.NodeProto, known: dict[str, onnx.TensorProto], types: dict[str, int]) -> bool:
    if node.domain not in edit.STANDARD:
        return False
    kind = node.op_type
    if kind == "Dropout":
        mode = node.input[2] if len(node.input) > 2 else ""
        return not mode or (mode in known and not numpy_helper.to_array(known[mode]).any())
    if kind == "Cast":
        return types.get(node.input[0]) == edit.attribute(node, "to")
    if kind == "Transpose":
        order = edit.attribute(node, "perm")
        return order is not None and list(order) == sorted(order)
    if kind == "Pad" and len(node.input) > 1:
        return node.input[1] in known and not numpy_helper.to_array(known[node.input[1]]).any()
    return kind == "Identity" or (kind == "Concat" and len(node.input) == 1)


def remove_dead(model: onnx.ModelProto) -> int:
    """Remove nodes that no output depends on, and weights that nobody reads, in place; returns how many of both."""
    graph, used = model.graph, edit.use_counts(model.graph)
    dead = []
    for node in reversed(graph.node):  # whoever reads a node's result comes after it
        if not any(used[name] for name in node.output if name):
            dead.append(node)
            used.subtract(edit.reads(node))
    weights, gone = len(graph.initializer), edit.remove_nodes(model, dead)
    edit.tidy(model)  # also where no node is dead
    return gone + weights - len(graph.initializer)


def name_open_batch(model: onnx.ModelProto, name: str = "batch") -> int:
    """Name the open first dimension of the inputs, and of the outputs that follow it, in place; returns how many.

    Nothing is done where the inputs have open first dimensions of different names, or of none: they may differ.
    """
    graph = model.graph
    firsts = [dim for value in edit.real_inputs(graph) for dim in value.type.tensor_type.shape.dim[:1]]
    firsts = [dim for dim in firsts if not dim.HasField("dim_value")]
    names = {dim.dim_param for dim in firsts}
    others = {dim.dim_param for value in (*graph.input, *graph.output) for dim in value.type.tensor_type.shape.dim}
    if len(names) != 1 or (names == {""} and len(firsts) > 1) or (names != {name} and name in others):
        return 0
    old = names.pop()
    for dim in firsts:
        dim.dim_param = name
    return (0 if old == name else len(firsts)) + _name_outputs(model, old, name)


def _name_outputs(model: onnx.ModelProto, old: str, new: str) -> int:
    """Rename the dimension in outputs and notes; where an output has no name, shape inference says if it follows."""
    for value in (*model.graph.value_info, *model.graph.input):
        for dim in value.type.tensor_type.shape.dim:
            if old and dim.dim_param == old:
                dim.dim_param = new
    found, count = edit.inferred_values(model), 0
    for value in model.graph.output:
        for dim, inferred in zip(value.type.tensor_type.shape.dim, found[value.name].shape.dim, strict=False):
            same = dim.dim_param == old if old else not dim.HasField("dim_value") and inferred.dim_param == new
            if same and dim.dim_param != new:
                dim.dim_param = new
                count += 1
    return count


def cancel_transposes(model: onnx.ModelProto) -> int:
    """Remove Transposes that undo each other, in place; two in a row that do not become one. Returns how many went.

    Elementwise operators between two Transposes do not part them.
    """
    gone = 0
    while (chain := _next_chain(model.graph)) is not None:
        gone += _join(model, *chain)
    return gone


def _next_chain(graph: onnx.GraphProto) -> list[onnx.NodeProto] | None:
    """Two Transposes and, between them, elementwise nodes whose results nobody else reads; None where none is left."""
    writers, used = edit.producers(graph), edit.use_counts(graph)
    for second in filter(_is_transpose, graph.node):
        chain, node = [second], writers.get(second.input[0])
        while node is not None and edit.is_a(node, *ELEMENTWISE) and used[node.output[0]] == 1:
            chain.insert(0, node)
            node = writers.get(node.input[0])
        if node is not None and _is_transpose(node) and (len(chain) == 1 or used[node.output[0]] == 1):
            return [node, *chain]
    return None


def _join(model: onnx.ModelProto, first: onnx.NodeProto, *rest: onnx.NodeProto) -> int:
    """Let the last node of a chain move the elements as the first and the last did; returns how many are gone."""
    graph, between, second = model.graph, rest[:-1], rest[-1]
    order = [edit.attribute(first, "perm")[axis] for axis in edit.attribute(second, "perm")]
    gone = [first] if edit.use_counts(graph)[first.output[0]] == 1 else []
    rest[0].input[0] = first.input[0]
    edit.forget_shapes(graph, {node.output[0] for node in between})
    edit.set_attribute(second, "perm", order)
    if order == sorted(order) and edit.bypass(graph, second):
        gone.append(second)
    return edit.remove_nodes(model, gone)


def _is_transpose(node: onnx.NodeProto) -> bool:
    return edit.is_a(node, "Transpose") and edit.attribute(node, "perm") is not None


def make_resize_exact(model: onnx.ModelProto) -> int:
    """Rewrite tf2onnx's nearest Resize to the same map in words that TensorRT accepts, in place; returns how many.

    tf2onnx writes `tf_half_pixel_for_nn` with `floor`, which the TensorRT parser refuses; `half_pixel`
    with `round_prefer_ceil` picks the same source pixel at every scale.
    """
    style = "coordinate_transformation_mode"
    found = [node for node in model.graph.node if node.op_type == "Resize"]
    found = [node for node in found if edit.attribute(node, style) == b"tf_half_pixel_for_nn"]
    for node in found:
        edit.set_attribute(node, style, "half_pixel")
        edit.set_attribute(node, "nearest_mode", "round_prefer_ceil")
    return len(found)


def give_exact_sizes(model: onnx.ModelProto) -> int:
    """Replace scales that lose a pixel by sizes, in place; the batch stays open. Returns how many Resize nodes changed.

    One whose input has an unknown height or width stays as it is, and every one in a model before `OLDEST_OPSET`.
    Source: ONNX operator Resize: output size = floor(input size * scale).
    """
    if edit.opset(model) < OLDEST_OPSET:
        return 0
    changed, weights = 0, {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Resize" and len(node.input) == 3]:
        scales = numpy_helper.to_array(weights[node.input[2]]) if node.input[2] in weights else np.empty(0, np.float32)
        if any(map(_is_too_small, scales)):
            changed += _use_sizes(model, node, scales)
    return changed


def _is_too_small(scale: np.float32) -> bool:
    """Whether a scale is a ratio of two sizes that float32 has rounded down."""
    ratio = Fraction(float(scale)).limit_denominator(_LARGEST_SIDE)
    return Fraction(float(scale)) < ratio and np.float32(float(ratio)) == scale


def _use_sizes(model: onnx.ModelProto, node: onnx.NodeProto, scales: np.ndarray) -> bool:
    """Read the sizes of the axes that keep theirs from the input, and write the others down."""
    kept = int(np.argmax(scales != 1))
    inferred = edit.inferred_values(model)  # anew, because an earlier Resize may have changed
    sides = edit.dims(inferred[node.input[0]])[kept:] if node.input[0] in inferred else ()
    known = [side for side in sides if side]
    if len(known) != len(scales) - kept or len(known) != len(sides):
        return False
    name, graph = f"{node.output[0]}_sizes", model.graph
    sizes = [round(side * float(scale)) for side, scale in zip(known, scales[kept:], strict=True)]
    graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), f"{name}_new"))
    parts = [
        helper.make_node("Shape", [node.input[0]], [f"{name}_kept"], f"{name}_kept", start=0, end=kept),
        helper.make_node("Concat", [f"{name}_kept", f"{name}_new"], [name], name, axis=0),
    ]
    where = next(index for index, other in enumerate(graph.node) if other.output[0] == node.output[0])
    for part in reversed(parts):
        graph.node.insert(where, part)
    resize = graph.node[where + len(parts)]
    del resize.input[1:]
    resize.input.extend(["", "", name])
    return True


def keep_zero_padding(model: onnx.ModelProto) -> int:
    """Write the zeros of each Pad in front of a MaxPool as -0.0, in place, unless what is padded is never negative.

    Returns how many changed; Pad reads its zeros since opset 11.
    Source: microsoft/onnxruntime, pull request 18136 (pad_fusion.cc) and tests/onnx_graph/test_pad_pool.py.
    """
    graph, makers = model.graph, edit.producers(model.graph)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    pooled = {node.input[0] for node in graph.node if node.op_type == "MaxPool"}
    pads = [node for node in graph.node if node.op_type == "Pad" and node.output[0] in pooled and len(node.input) > 1]
    changed = 0
    for pad in pads:
        source, value = makers.get(pad.input[0]), pad.input[2] if len(pad.input) > 2 else ""
        if source is not None and source.op_type == "Relu":
            continue
        if edit.attribute(pad, "mode", b"constant") != b"constant" or (value and value not in weights):
            continue
        number = numpy_helper.to_array(weights[value]) if value else np.array(0, np.float32)
        if number.any() or np.signbit(number).any():
            continue
        name = f"{pad.output[0]}_negative_zero"
        graph.initializer.append(numpy_helper.from_array(np.array(-0.0, number.dtype), name))
        pad.input[:] = [*pad.input[:2], name, *pad.input[3:]]
        if value and not any(value in other.input for other in graph.node):
            graph.initializer.remove(weights[value])
        changed += 1
    return changed


def pair_integers(model: onnx.ModelProto) -> int:
    """Write integer arithmetic as pairs of QuantizeLinear and DequantizeLinear, in place; returns how many nodes.

    TensorRT takes no other: a MatMulInteger of numbers that were rounded in the network becomes a MatMul between pairs,
    and a Gather of 8-bit weights reads them dequantised, where whoever reads the result makes floats of it. The scale
    of all pairs is 1, so the whole numbers stay what they are.
    """
    graph, makers, fresh = model.graph, edit.producers(model.graph), edit.namer(model)
    found = _integer_nodes(graph, makers)
    for node in found:
        scale, zero, weight = (fresh(f"{node.output[0]}_{part}") for part in ("scale", "zero", "weight"))
        graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), scale))
        graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), zero))
        product = node.op_type == "MatMulInteger"
        parts = [helper.make_node("DequantizeLinear", [node.input[product], scale, zero], [weight], weight)]
        if product:
            floats, integers, numbers = (
                fresh(f"{node.output[0]}_{part}") for part in ("floats", "integers", "numbers")
            )
            rounded = makers[node.input[0]].input[0]
            parts += [
                helper.make_node("Cast", [rounded], [floats], floats, to=onnx.TensorProto.FLOAT),
                helper.make_node("QuantizeLinear", [floats, scale, zero], [integers], integers),
                helper.make_node("DequantizeLinear", [integers, scale, zero], [numbers], numbers),
            ]
            node.op_type, node.input[:] = "MatMul", [numbers]
        node.input[product:] = [weight, *node.input[1:]]
        edit.forget_shapes(graph, {node.output[0]})
        where = next(index for index, other in enumerate(graph.node) if other.output[0] == node.output[0])
        for part in reversed(parts):
            graph.node.insert(where, part)
    if found:
        remove_dead(model)
        remove_no_ops(model)
    return len(found)


def _integer_nodes(graph: onnx.GraphProto, makers: dict[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Every Gather of 8-bit weights and MatMulInteger of rounded numbers and weights around 0 that becomes floats."""
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    found = []
    for node in [node for node in graph.node if _only_cast(graph, node.output[0])]:
        if edit.is_a(node, "Gather") and node.input[0] in weights:
            found.append(node)
        elif edit.is_a(node, "MatMulInteger") and weights.keys() >= {*node.input[1:]}:
            zeros = [numpy_helper.to_array(weights[name]) for name in node.input[2:]]
            found += [node] if _is_rounded(makers.get(node.input[0]), makers) and not any(map(np.any, zeros)) else []
    return found


def _is_rounded(node: onnx.NodeProto | None, makers: dict[str, onnx.NodeProto]) -> bool:
    """Whether a node makes 8-bit integers of numbers that were rounded, and perhaps limited, right before."""
    if node is None or not edit.is_a(node, "Cast") or edit.attribute(node, "to") != onnx.TensorProto.INT8:
        return False
    above = makers.get(node.input[0])
    while above is not None and edit.is_a(above, "Min", "Max", "Clip", "Cast"):
        above = makers.get(above.input[0])
    return above is not None and edit.is_a(above, "Round")


def _only_cast(graph: onnx.GraphProto, name: str) -> bool:
    """Whether every reader of a tensor, which is no end of the graph, gives it another type."""
    readers = {node.op_type for node in graph.node if name in edit.reads(node)}
    return readers == {"Cast"} and name not in {value.name for value in graph.output}
