"""Compute once what no input of an ONNX network can change."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from workbench.export.graph_edit import (
    STANDARD,
    attribute,
    fixed_shape,
    inferred_values,
    remove_nodes,
    tidy,
    use_counts,
)
from workbench.export.onnx_proof import open_session

LARGEST_CONSTANT = 1 << 20
"""Bytes up to which a folded result is kept although it is larger than what it was made of."""

_NEVER_FOLDED = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"}
    | {"QuantizeLinear", "DequantizeLinear"}  # builders read the precision from them
)
_NUMPY_TYPES = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BOOL, TensorProto.INT8, TensorProto.UINT8}
    | {TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32, TensorProto.UINT32, TensorProto.INT64}
    | {TensorProto.UINT64}
)

Arrays = dict[str, NDArray[Any]]


def fold_constants(model: onnx.ModelProto) -> int:
    """Compute once what no input can change, in place: ONNX Runtime runs those nodes, their results become weights.

    The Shape of a tensor whose shape is fixed counts as such. What would grow above `LARGEST_CONSTANT` stays.

    Returns:
        How many nodes were removed.
    """
    graph, values = model.graph, inferred_values(model)
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
    remove_nodes(graph, [node for node in graph.node if set(node.output) & set(folded)])
    read = use_counts(graph)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in folded.items() if read[name])
    tidy(model, bool(folded))
    return sum(bool(set(node.output) & set(folded)) for node in nodes)


def _is_foldable(node: onnx.NodeProto, values: dict[str, onnx.TypeProto.Tensor]) -> bool:
    has_graphs = any(item.HasField("g") or item.graphs for item in node.attribute)
    known = [values[name].elem_type for name in (*node.input, *node.output) if name in values]
    numbers = all(kind in _NUMPY_TYPES for kind in known if kind) and any(known)
    return node.domain in STANDARD and node.op_type not in _NEVER_FOLDED and numbers and not has_graphs


def _fixed_shapes(graph: onnx.GraphProto, values: dict[str, onnx.TypeProto.Tensor]) -> Arrays:
    """What each Shape node of a tensor with a fixed shape gives."""
    found = {}
    for node in graph.node:
        shape = fixed_shape(values.get(node.input[0])) if node.op_type == "Shape" and node.domain in STANDARD else None
        if shape is not None:
            found[node.output[0]] = np.array(shape[attribute(node, "start", 0) : attribute(node, "end")], np.int64)
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
    return dict(zip(names, open_session(part).run(names, {}), strict=True))


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
