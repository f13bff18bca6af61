"""A layer that ONNX has no operator for: its nodes folded into one custom node and a function of the same name.

One file then serves every reader. Who has an operator or a plugin of that name may use it; who has none reads the
function, ordinary nodes that compute the same.
"""

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper, inliner

from workbench.core.errors import InputError, ModelError
from workbench.core.files import check_outputs
from workbench.core.report import Report, count
from workbench.onnx_graph import edit
from workbench.onnx_graph.file import load, write
from workbench.onnx_graph.proof import Feeds, Proof

_CAST_LIKE = 15  # the first opset that has it
_WEIGHT = "ReadVariableOp"  # in the names that TensorFlow gives to what it reads from variables
_SHOWN = 8


@dataclass(frozen=True)
class MarkedLayer(Report):
    """What `mark_custom_layer` did.

    Attributes:
        path: the file that was written.
        node: name of the custom node.
        operator: its operator, in the domain `workbench.custom`.
        inputs, outputs: the tensors that it reads and writes, in this order: what a plugin is given.
        folded: how many nodes it stands for.
    """

    path: Path
    node: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    folded: int

    @property
    def verdict(self) -> str:
        """One sentence."""
        return (
            f"{self.path.name}: {count(self.folded, 'node')} became one {self.operator} ({self.node}), proved with "
            "ONNX Runtime to give the same answers to the last bit."
        )

    def _remarks(self) -> list[str]:
        moved = "it writes several tensors: an exporter may have moved a part of the layer out, look at what it reads"
        ends = f"it reads {', '.join(self.inputs)} and writes {', '.join(self.outputs)}"
        return [ends, *([moved] if len(self.outputs) > 1 else [])]


def mark_custom_layer(
    onnx_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    *,
    layer: str,
    name: str,
    inputs: Sequence[str] | None = None,
    feeds: Feeds | None = None,
) -> MarkedLayer:
    """Fold the nodes that an exporter made of one layer into a custom node, and a function that computes the same.

    A second layer with the same `name` shares the function of the first, where that is proved to fit.

    Args:
        onnx_path: the `.onnx` file, not modified.
        out_path: the `.onnx` file to write, whole or not at all.
        layer: name of the layer, or its whole scope in the names of the nodes, such as `"functional_1/mish_1"`.
        name: the operator of the custom node, and of a plugin that may stand for it, such as `"HardMish"`.
        inputs: the tensors that the node shall read, in this order, by their names or those of the layers that make
            them; else the tensors that change with the input in the order in which they are used, which may change
            from one export to the next, then the layer's weights. Other constants go into the function.
        feeds: (name, feed) pairs to prove with, as for `fix`.
    Returns:
        The node, what it reads and writes, and how many nodes it stands for.
    Raises:
        InputError: no layer of that name or more than one, a layer whose inner tensors are read outside, or that
            holds a loop, a name that ONNX or another function has, or inputs that are not those of the layer.
        ModelError: not a valid ONNX model, or one that ONNX Runtime cannot run.
        OutputError: the file cannot be written.
    """
    if not edit.OPERATOR_NAME.fullmatch(name) or onnx.defs.has(name):
        raise InputError(f"got name={name!r}, expected letters and digits that are no operator of ONNX's own")
    check_outputs([out_path], [onnx_path])
    model = load(onnx_path)
    proof = Proof(model, feeds, None)
    marked = edit.copy_of(model)
    scope, inside, after = _find_layer(marked.graph, layer)
    reads, writes = _ends(marked.graph, scope, inside, inputs)
    shared = any((item.domain, item.name) == (edit.CUSTOM, name) for item in marked.functions)
    if not shared:
        marked.functions.append(_function(marked, name, inside, reads, writes))
    node = helper.make_node(name, reads, writes, name=f"{scope}/{name}", domain=edit.CUSTOM)
    _replace(marked, inside, after, node)
    problem = proof.judge(inliner.inline_local_functions(marked), exact=True)  # whatever operator is registered
    if problem and shared:
        raise InputError(f"the {name} that the file has already is another than {layer} ({problem}); give another name")
    if problem:
        raise ModelError(f"{layer} cannot become one node: {problem}; choose a layer around it")
    return MarkedLayer(write(marked, out_path), node.name, name, tuple(reads), tuple(writes), len(inside))


def _scope(name: str, layer: str) -> str:
    """The part of a node's name that is the scope of a layer; empty where the node is not of that layer.

    >>> _scope("functional_1/mish_1/mul", "mish"), _scope("a/b/c/mul", "a/b"), _scope("functional_1/mishap/mul", "mish")
    ('functional_1/mish_1', 'a/b', '')
    """
    if "/" in layer:
        scope = layer.rstrip("/")
        return scope if name.startswith(f"{scope}/") else ""
    parts = name.split("/")[:-1]
    own = re.compile(rf"{re.escape(layer)}(_\d+)?")  # Keras counts the calls
    found = next((place for place, part in enumerate(parts) if own.fullmatch(part)), None)
    return "" if found is None else "/".join(parts[: found + 1])


def _find_layer(graph: onnx.GraphProto, layer: str) -> tuple[str, list[onnx.NodeProto], list[onnx.NodeProto]]:
    """The scope of a layer, its nodes, and the nodes that come after it."""
    nodes = list(graph.node)
    scopes = list(dict.fromkeys(filter(None, (_scope(node.name, layer) for node in nodes))))
    if len(scopes) != 1:
        found = scopes or sorted({node.name.rpartition("/")[0] for node in nodes} - {""})
        listed = ", ".join(found[:_SHOWN]) + (" and more" if len(found) > _SHOWN else "")
        wrong = f"{len(scopes)} layers have: {listed}; give the whole scope of one"
        missing = f"no node's name has; expected one of {listed or 'none: the nodes have no names'}"
        raise InputError(f"got layer={layer!r}, which {wrong if scopes else missing}")
    inside = {place for place, node in enumerate(nodes) if _scope(node.name, layer)}
    after = _reachable(nodes, inside, forward=True)
    for place in sorted(after & _reachable(nodes, inside, forward=False)):
        if "/" in nodes[place].name:
            raise InputError(
                f"{nodes[place].name} lies between nodes of {scopes[0]}, but is not of that layer; choose a layer "
                "around both, or export the network without optimisation"
            )
        inside.add(place)  # what the exporter's optimiser put there
    for place in sorted(inside):
        if any(True for _ in edit.inner_graphs(nodes[place])):
            raise InputError(f"{nodes[place].name} of {layer} is a {nodes[place].op_type}, which no function can hold")
    return scopes[0], [nodes[place] for place in sorted(inside)], [nodes[place] for place in sorted(after - inside)]


def _reachable(nodes: Sequence[onnx.NodeProto], start: Collection[int], *, forward: bool) -> set[int]:
    """The places of the nodes that depend on some others, or that these depend on; the others are not among them."""
    found, tensors = set[int](), set[str]()
    for place in range(len(nodes)) if forward else reversed(range(len(nodes))):
        takes, gives = set(edit.reads(nodes[place])), set(nodes[place].output)
        linked = not tensors.isdisjoint(takes if forward else gives)
        if linked and place not in start:
            found.add(place)
        if linked or place in start:
            tensors |= gives if forward else takes
    return found


def _ends(
    graph: onnx.GraphProto, scope: str, inside: Sequence[onnx.NodeProto], wanted: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """The tensors that a layer reads and writes, in the order of the custom node's inputs and outputs."""
    own = {id(node) for node in inside}
    made = dict.fromkeys(name for node in inside for name in node.output if name)
    read = list(dict.fromkeys(name for node in inside for name in node.input if name and name not in made))
    used = {name for node in graph.node if id(node) not in own for name in edit.reads(node)}
    used |= {value.name for value in graph.output}
    writes = [name for name in made if name in used]
    again = [name for name in writes if any(name in node.input for node in inside)]
    if again or not writes:
        what = f"{again[0]} inside it is also read outside" if again else "nobody reads what it writes"
        raise InputError(f"{scope} cannot become one node: {what}; choose a layer around it, or another one")
    known = edit.constants(graph)
    flowing = [name for name in read if name not in known]
    weights = [name for name in read if name in known and _is_weight(graph, known[name], name)]
    if wanted is None:
        return [*flowing, *weights], writes
    named = [_named(item, read) for item in wanted]
    if not set(flowing) <= set(named) <= set(read) or len(set(named)) < len(named):
        listed = f"{', '.join(flowing)}, and constants of {', '.join(weights) or 'none'}"
        raise InputError(f"got inputs={list(wanted)}, expected in your order: {listed}")
    return named, writes


def _named(name: str, tensors: Sequence[str]) -> str:
    """The tensor of that name, or the only one that the layer of that name makes; the name itself where none is.

    >>> _named("smooth", ["picture", "net/smooth_1/convolution__33:0"])
    'net/smooth_1/convolution__33:0'
    """
    made = [tensor for tensor in tensors if _scope(tensor, name)]
    return made[0] if name not in tensors and len(made) == 1 else name


def _is_weight(graph: onnx.GraphProto, tensor: TensorProto, name: str) -> bool:
    """Whether a constant is one that training finds; where names do not tell, every one of several float numbers."""
    if any(_WEIGHT in item.name for item in graph.initializer):
        return _WEIGHT in name
    return tensor.data_type == TensorProto.FLOAT and any(size > 1 for size in tensor.dims)


def _function(
    model: onnx.ModelProto, name: str, inside: Sequence[onnx.NodeProto], reads: Sequence[str], writes: Sequence[str]
) -> onnx.FunctionProto:
    """The nodes of a layer as a function; its numbers get the type of what it reads, float16 in a float16 network."""
    fresh, plain = _plain_namer(), dict[str, str]()
    for tensor in (*reads, *(name for node in inside for name in (*node.input, *node.output))):
        plain.setdefault(tensor, fresh(tensor) if tensor else "")
    values, known = edit.inferred_values(model), edit.constants(model.graph)
    floats = (item for item in reads if item in values and values[item].elem_type == TensorProto.FLOAT)
    like = plain.get(next(floats, ""), "") if edit.opset(model) >= _CAST_LIKE else ""
    body = []
    for tensor in filter(lambda item: item in known and item not in reads, plain):
        typed = like and known[tensor].data_type == TensorProto.FLOAT
        number = fresh(f"{tensor}_number") if typed else plain[tensor]
        body.append(helper.make_node("Constant", [], [number], value=known[tensor]))
        if typed:
            body.append(helper.make_node("CastLike", [number, like], [plain[tensor]]))
    for node in inside:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:], copy.output[:] = [plain[item] for item in node.input], [plain[item] for item in node.output]
        if like and edit.is_a(node, "Cast") and edit.attribute(node, "to") == TensorProto.FLOAT:
            copy = helper.make_node("CastLike", [copy.input[0], like], copy.output, name=node.name)
        body.append(copy)
    ends = [plain[item] for item in reads], [plain[item] for item in writes]
    return helper.make_function(edit.CUSTOM, name, *ends, body, list(model.opset_import))


def _plain_namer() -> edit.Namer:
    """Make names of letters and digits, each once."""
    taken: set[str] = set()

    def fresh(name: str) -> str:
        plain = re.sub(r"\W+", "_", name).strip("_")
        while plain in taken or not plain:
            plain += "_"
        taken.add(plain)
        return plain

    return fresh


def _replace(
    model: onnx.ModelProto, inside: Sequence[onnx.NodeProto], after: Sequence[onnx.NodeProto], node: onnx.NodeProto
) -> None:
    """Put the custom node in the place of the nodes that it stands for, before all that comes after them."""
    moved = {id(item) for item in (*inside, *after)}
    order = [*(item for item in model.graph.node if id(item) not in moved), node, *after]
    held = [onnx.NodeProto.FromString(item.SerializeToString()) for item in order]
    del model.graph.node[:]
    model.graph.node.extend(held)
    if all(entry.domain != edit.CUSTOM for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(edit.CUSTOM, 1))
    model.ir_version = max(model.ir_version, 8)  # the first with functions
    edit.tidy(model)
