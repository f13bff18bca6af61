"""Remove Transposes that undo each other from an ONNX network."""

import onnx

from workbench.export.graph_edit import (
    STANDARD,
    attribute,
    bypass,
    forget_shapes,
    producers,
    remove_nodes,
    set_attribute,
    tidy,
    use_counts,
)

# They move no element to another place, so a Transpose before them may as well come after.
ELEMENTWISE = frozenset(
    {"Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Selu", "Softplus", "Softsign", "HardSigmoid", "HardSwish", "Mish"}
    | {"Gelu", "Erf", "Exp", "Log", "Sqrt", "Abs", "Neg", "Floor", "Ceil", "Round", "Sign", "Cast", "Clip", "Identity"}
)


def cancel_transposes(model: onnx.ModelProto) -> int:
    """Remove Transposes that undo each other, in place; two in a row that do not become one.

    Elementwise operators between two Transposes do not part them.

    Returns:
        How many Transposes went.
    """
    before = _count(model)
    while _join_one(model.graph):
        pass
    tidy(model, _count(model) < before)
    return before - _count(model)


def _join_one(graph: onnx.GraphProto) -> bool:
    writers, used = producers(graph), use_counts(graph)
    for second in graph.node:
        if not _is_transpose(second):
            continue
        chain = _chain_before(second, writers, used)
        if chain is not None:
            _join(graph, chain, second, used)
            return True
    return False


def _chain_before(
    second: onnx.NodeProto, writers: dict[str, onnx.NodeProto], used: dict[str, int]
) -> list[onnx.NodeProto] | None:
    """The Transpose before `second` and the elementwise nodes between them, whose results nobody else reads."""
    chain: list[onnx.NodeProto] = []
    node = writers.get(second.input[0])
    while node is not None and node.op_type in ELEMENTWISE and node.domain in STANDARD and used[node.output[0]] == 1:
        chain.insert(0, node)
        node = writers.get(node.input[0])
    if node is None or not _is_transpose(node) or (chain and used[node.output[0]] != 1):
        return None
    return [node, *chain]


def _join(graph: onnx.GraphProto, chain: list[onnx.NodeProto], second: onnx.NodeProto, used: dict[str, int]) -> None:
    first, between = chain[0], chain[1:]
    order = [attribute(first, "perm")[axis] for axis in attribute(second, "perm")]
    unread = used[first.output[0]] == 1
    (between[0] if between else second).input[0] = first.input[0]
    if between:
        second.input[0] = between[-1].output[0]
        forget_shapes(graph, {node.output[0] for node in between})
    set_attribute(second, "perm", order)
    gone = [first] if unread else []
    if order == sorted(order) and bypass(graph, second):
        gone.append(second)
    remove_nodes(graph, gone)


def _is_transpose(node: onnx.NodeProto) -> bool:
    return node.op_type == "Transpose" and node.domain in STANDARD and attribute(node, "perm") is not None


def _count(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Transpose" for node in model.graph.node)
