"""Compute once what no input of an ONNX network can change, and let convolutions scale, shift and pad by themselves."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from workbench.onnx_graph import edit
from workbench.onnx_graph.session import open_session, run_session

LARGEST_CONSTANT = 1 << 20  # bytes up to which a folded result is kept although it is larger than what it is made of
_NEVER_FOLDED = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"}
    | {"QuantizeLinear", "DequantizeLinear"}  # builders read the precision from them
)
_NUMPY_TYPES = set(range(TensorProto.FLOAT, TensorProto.UINT64 + 1)) - {TensorProto.STRING}  # numbered in this order
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)

Arrays = dict[str, NDArray[Any]]
Known = dict[str, onnx.TensorProto]
Float64 = NDArray[np.float64]


def fold_constants(model: onnx.ModelProto) -> int:
    """Compute once what no input can change, in place: ONNX Runtime runs those nodes, their results become weights.

    A Shape whose answer is fixed counts too; what would grow above `LARGEST_CONSTANT` stays. Returns how many went.
    """
    graph, values = model.graph, edit.inferred_values(model)
    shapes = _fixed_shapes(graph, values)
    here = {tensor.name for tensor in graph.initializer if tensor.data_location != TensorProto.EXTERNAL}
    ready = here - {value.name for value in graph.input}
    nodes = []
    for node in graph.node:
        if _is_foldable(node, values) and (node.output[0] in shapes or ready.issuperset(filter(None, node.input))):
            nodes.append(node)
            ready.update(node.output)
    results = _evaluate(model, [node for node in nodes if node.output[0] not in shapes], shapes)
    folded = _not_growing(nodes, shapes | results, {tensor.name: tensor.ByteSize() for tensor in graph.initializer})
    done = [node for node in graph.node if set(node.output) & set(folded)]
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in folded.items())
    return edit.remove_nodes(model, done)


def _is_foldable(node: onnx.NodeProto, values: edit.Values) -> bool:
    has_graphs = any(True for _ in edit.inner_graphs(node))
    known = [values[name].elem_type for name in (*node.input, *node.output) if name in values]
    numbers = all(kind in _NUMPY_TYPES for kind in known if kind) and any(known)
    return node.domain in edit.STANDARD and node.op_type not in _NEVER_FOLDED and numbers and not has_graphs


def _fixed_shapes(graph: onnx.GraphProto, values: edit.Values) -> Arrays:
    """What each Shape node of a tensor with a fixed shape gives."""
    found = {}
    for node in graph.node:
        shape = edit.fixed_shape(values.get(node.input[0])) if edit.is_a(node, "Shape") else None
        if shape is not None:
            part = slice(edit.attribute(node, "start", 0), edit.attribute(node, "end"))
            found[node.output[0]] = np.array(shape[part], np.int64)
    return found


def _evaluate(model: onnx.ModelProto, nodes: list[onnx.NodeProto], given: Arrays) -> Arrays:
    """Every result of nodes that depend on weights and given arrays only."""
    read = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in read]
    weights += [numpy_helper.from_array(array, name) for name, array in given.items() if name in read]
    names = [name for node in nodes for name in node.output if name]
    if not names:
        return {}
    graph = helper.make_graph(nodes, "constants", [], [onnx.ValueInfoProto(name=name) for name in names], weights)
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return run_session(open_session(part, optimise="none"), {}, "compute its constants")


def _not_growing(nodes: list[onnx.NodeProto], results: Arrays, sizes: dict[str, int]) -> Arrays:
    """The results that are small, or no larger than what they are made of, and do not depend on others."""
    folded: Arrays = {}
    for node in nodes:
        given = [name for name in node.input if name and node.op_type != "Shape"]
        made = {name: results[name] for name in node.output if name}
        allowed = max(LARGEST_CONSTANT, sum(sizes.get(name, 0) for name in given))
        if node.op_type != "Constant" and sum(array.nbytes for array in made.values()) > allowed:
            continue
        if all(name in sizes for name in given):
            folded |= made
            sizes |= {name: array.nbytes for name, array in made.items()}
    return folded


def fold_scales(model: onnx.ModelProto) -> int:
    """Put each BatchNormalization, Mul or Add of one number per channel into the convolution before it, in place."""
    graph, known, fresh = model.graph, edit.constants(model.graph), edit.namer(model)
    writers, used = edit.producers(graph), edit.use_counts(graph)
    done = []
    for node in graph.node:
        data = ""  # the input that is no weight, of a node that scales or shifts
        if edit.is_a(node, "BatchNormalization"):
            data = node.input[0]
        elif edit.is_a(node, "Mul", "Add"):
            data = next((name for name in node.input if name not in known), "")
        conv = writers.get(data)
        if conv is None or used[conv.output[0]] != 1 or not edit.is_a(conv, "Conv", "ConvTranspose"):
            continue
        if not all(name in known and known[name].data_type in _FLOATS for name in conv.input[1:]):
            continue
        change = _scale_and_offset(node, conv, known)
        if change is not None:
            graph.initializer.extend(_rewrite(conv, *change, known, fresh))
            known.update({tensor.name: tensor for tensor in graph.initializer[-2:]})
            conv.output[0] = node.output[0]
            writers[conv.output[0]] = conv
            done.append(node)
    return edit.remove_nodes(model, done)


def fold_pads(model: onnx.ModelProto) -> int:
    """Let a Conv pad its input itself where a Pad by zeros stands before it, in place."""
    graph, known = model.graph, edit.constants(model.graph)
    writers, used = edit.producers(graph), edit.use_counts(graph)
    done = []
    for conv in graph.node:
        pad = writers.get(conv.input[0]) if edit.is_a(conv, "Conv") else None
        automatic = edit.attribute(conv, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
        if pad is None or used[pad.output[0]] != 1 or automatic:
            continue
        amounts = _zero_pads(pad, known)
        if amounts is not None:
            own = edit.attribute(conv, "pads") or [0] * len(amounts)
            edit.set_attribute(conv, "pads", [int(one + other) for one, other in zip(own, amounts, strict=True)])
            edit.set_attribute(conv, "auto_pad", None)
            conv.input[0] = pad.input[0]
            done.append(pad)
    edit.forget_shapes(graph, {pad.output[0] for pad in done})
    return edit.remove_nodes(model, done)


def _scale_and_offset(node: onnx.NodeProto, conv: onnx.NodeProto, known: Known) -> tuple[Float64, Float64] | None:
    """What a node multiplies each channel by and then adds to it; None where it does more than that.

    Source: y = scale * (x - mean) / sqrt(var + epsilon) + offset, BatchNormalization in the ONNX operator list.
    """
    shape = known[conv.input[1]].dims
    rank, channels = len(shape), shape[0] if conv.op_type == "Conv" else shape[1] * edit.attribute(conv, "group", 1)
    zeros, ones = np.zeros(channels), np.ones(channels)
    if node.op_type == "BatchNormalization":
        fixed = all(name in known for name in node.input[1:5])
        if not fixed or edit.attribute(node, "training_mode", 0) or any(node.output[1:]):
            return None
        scale, offset, mean, variance = (_float64(known[name]) for name in node.input[1:5])
        factor = scale / np.sqrt(variance + edit.attribute(node, "epsilon", 1e-5))
        return factor, offset - mean * factor
    array = next((_float64(known[name]) for name in node.input if name in known), None)
    if array is None or array.ndim > rank or array.size not in (1, channels):
        return None
    if array.size != 1 and (array.ndim < rank - 1 or array.shape[array.ndim - rank + 1] != channels):
        return None  # not along the channels
    vector = np.broadcast_to(array.ravel(), channels)
    return (vector, zeros) if node.op_type == "Mul" else (ones, vector)


def _rewrite(
    conv: onnx.NodeProto, factor: Float64, offset: Float64, known: Known, fresh: edit.Namer
) -> list[onnx.TensorProto]:
    """Give a convolution new weights, calculated in float64; returns them, weight and bias."""
    tensor, weight = known[conv.input[1]], _float64(known[conv.input[1]])
    bias = _float64(known[conv.input[2]]) if len(conv.input) > 2 else np.zeros_like(factor)
    groups = 1 if conv.op_type == "Conv" else edit.attribute(conv, "group", 1)
    # Conv has (out, in / groups, ...); ConvTranspose (in, out / groups, ...), the outputs of one group side by side.
    parts = weight.reshape(groups, -1, *weight.shape[1:])
    shape = (1, -1, 1) if conv.op_type == "Conv" else (groups, 1, -1)
    scaled = (parts * factor.reshape(*shape, *[1] * (weight.ndim - 2))).reshape(weight.shape)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    names = fresh(f"{conv.input[1]}_scaled"), fresh(f"{conv.input[1]}_bias")
    del conv.input[1:]
    conv.input.extend(names)
    arrays: tuple[Any, Any] = scaled, bias * factor + offset
    return [numpy_helper.from_array(array.astype(dtype), name) for array, name in zip(arrays, names, strict=True)]


def _zero_pads(pad: onnx.NodeProto, known: Known) -> list[int] | None:
    """The rows and columns of zeros before and after a picture; None where a node pads otherwise."""
    if not edit.is_a(pad, "Pad") or edit.attribute(pad, "mode", b"constant") != b"constant" or any(pad.input[3:]):
        return None
    if len(pad.input) < 2 or pad.input[1] not in known:
        return None
    if len(pad.input) > 2 and pad.input[2] and (pad.input[2] not in known or _float64(known[pad.input[2]]).any()):
        return None
    amounts = numpy_helper.to_array(known[pad.input[1]])
    before, after = amounts[: len(amounts) // 2], amounts[len(amounts) // 2 :]
    if (amounts < 0).any() or before[:2].any() or after[:2].any():
        return None
    return [*before[2:].tolist(), *after[2:].tolist()]


def _float64(tensor: onnx.TensorProto) -> Float64:
    return numpy_helper.to_array(tensor).astype(np.float64)
