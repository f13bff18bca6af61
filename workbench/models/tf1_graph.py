"""Look into TensorFlow graphs: what leads where, which nodes are outputs, and is it made for training?"""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.core.errors import ModelError
from workbench.core.packages import load_tensorflow
from workbench.core.report import count

VARIABLES = ("Variable", "VariableV2", "VarHandleOp")
_PLACEHOLDERS = ("Placeholder", "PlaceholderWithDefault")
_SOURCES = (*_PLACEHOLDERS, "IteratorGetNext")
_BATCH_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
_RANDOM = re.compile(r"(Stateless)?(Random|Truncated|Parameterized|Multinomial)|Dropout$")
_LOSS = re.compile(r"CrossEntropyWithLogits|^L2Loss$|^CTCLoss")
_UPDATE = re.compile(r"^(Resource)?(Sparse)?Apply|^Assign|Summary|^Save|^Restore|^Assert$|^Print|Queue|^NoOp$")
_GRADIENTS = re.compile(r"(^|/)gradients(_\d+)?/")
_ASIDE = ("Shape", "ArgMax", "Assert", "InTopK", "InTopKV2", "TopKV2")
_FLOATS = (1, 2, 14, 19)  # DT_FLOAT, DT_DOUBLE, DT_BFLOAT16, DT_HALF
_INTEGERS = (3, 4, 5, 6, 9)  # DT_INT32, UINT8, INT16, INT8, INT64
_BOOL = 10
_REBUILD = (
    "build it again with is_training=False and a placeholder as input, restore the same checkpoint with "
    "tf.train.Saver().restore(...), save it with .save(...), then convert that"
)
_REBUILD_INCEPTION = (
    "build it for use: workbench.models.inception_v3.rebuild(checkpoint, folder), then convert what that writes"
)


@dataclass(frozen=True)
class OutputProposal:
    """A node that may be an output: its name, what it computes, how many variables lead to it, and why, in words."""

    name: str
    operator: str
    weights: int
    reason: str


class GraphView:
    """A GraphDef, which is not modified, seen as nodes and edges."""

    def __init__(self, graph_def: Any) -> None:
        self.graph_def = graph_def
        self.nodes = {node.name: node for node in graph_def.node}
        self.sources = {name: [node_name(given) for given in node.input] for name, node in self.nodes.items()}
        self.readers: dict[str, list[str]] = {name: [] for name in self.nodes}
        for name, node in self.nodes.items():
            for given in node.input:
                if not given.startswith("^"):  # an order of execution carries no data
                    self.readers.setdefault(node_name(given), []).append(name)

    def upstream(self, names: Iterable[str]) -> set[str]:
        """Return the named nodes and everything they are computed from."""
        return _closure(names, self.sources)

    def downstream(self, names: Iterable[str]) -> set[str]:
        """Return the named nodes and everything that is computed from them."""
        return _closure(names, self.readers)

    def subgraph(self, names: Iterable[str]) -> Any:
        """Return a new GraphDef of the nodes that lead to the named ones, on no particular device."""
        kept = self.upstream(names)
        small = type(self.graph_def)()
        small.versions.CopyFrom(self.graph_def.versions)
        small.library.CopyFrom(self.graph_def.library)
        for node in self.graph_def.node:
            if node.name in kept:
                copy = small.node.add()
                copy.CopyFrom(node)
                copy.device = ""
                copy.attr.pop("_class", None)  # it may name a node that is left out
        return small


@contextlib.contextmanager
def without_deprecations() -> Iterator[None]:
    """Hold back what TensorFlow says about each old function that old networks call."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def node_name(tensor: str) -> str:
    """Return the node of a tensor name: `a/b` for `^a/b:0`."""
    return tensor.lstrip("^").split(":")[0]


def propose_outputs(graph_def: Any) -> tuple[OutputProposal, ...]:
    """Rank the nodes that may be the output of a network, the most likely first; none where no input leads to any.

    Values that go into a softmax or a loss come before the softmax itself: a comparison of two forms of a network needs
    logits. More weights lead to a main output than to an auxiliary one. The graph may hold training and saving, too.
    """
    view = GraphView(graph_def)
    forward = _forward(view)
    found: dict[str, str] = {}
    for name, node in view.nodes.items():
        if (node.op in ("Softmax", "LogSoftmax") and name in forward) or _LOSS.search(node.op):
            logits = view.sources[name][0]
            while logits in view.nodes and view.nodes[logits].op in ("Reshape", "Identity"):
                logits = view.sources[logits][0]  # where the values were computed
            if logits in forward:
                found.setdefault(logits, f"its values go into {name} ({node.op}), so they are logits")
    for name in view.nodes:
        if name in forward and _is_end(view, name):
            found.setdefault(name, "no other part of the network reads it")
    proposals = []
    for name, reason in found.items():
        weights = sum(view.nodes[above].op in VARIABLES for above in view.upstream([name]) if above in view.nodes)
        proposals.append(OutputProposal(name, view.nodes[name].op, weights, reason))
    return tuple(sorted(proposals, key=lambda one: (-one.weights, "logits" not in one.reason)))


def find_inputs(graph_def: Any, outputs: Iterable[str]) -> tuple[str, ...]:
    """Return the placeholders that lead to the outputs, but for the switches between training and use."""
    needed = GraphView(graph_def).upstream(outputs)
    found = (node for node in graph_def.node if node.name in needed and node.op in _PLACEHOLDERS)
    return tuple(node.name for node in found if _dtype(node) != _BOOL)


def refuse_training(graph_def: Any, outputs: Iterable[str], source: Any) -> None:
    """Refuse a graph, that of `source`, whose `outputs` are random or depend on the rest of the batch: ModelError."""
    view = GraphView(graph_def)
    needed = view.upstream(outputs)
    nodes = list(_with_functions(graph_def, [view.nodes[name] for name in view.nodes if name in needed]))
    norms = [node.name for node in nodes if node.op in _BATCH_NORMS and node.attr["is_training"].b]
    kinds = {
        "random numbers, such as dropout": [node.name for node in nodes if _RANDOM.match(node.op)],
        "the statistics of the batch": norms + [node.name for node in nodes if _averages_the_batch(view, node)],
        "a switch between training and use": [n.name for n in nodes if n.op in _PLACEHOLDERS and _dtype(n) == _BOOL],
    }
    facts = [f"{count(len(names), 'node')} with {kind} ({names[0]})" for kind, names in kinds.items() if names]
    if facts:
        way = _REBUILD_INCEPTION if any(name.startswith("InceptionV3/") for name in needed) else _REBUILD
        raise ModelError(
            f"{source} is a graph made for training: it has {' and '.join(facts)}, so its answers would not be those "
            f"of the trained network; {way}"
        )


def _closure(names: Iterable[str], edges: dict[str, list[str]]) -> set[str]:
    seen: set[str] = set()
    pending = [node_name(name) for name in names]
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            pending += edges.get(name, ())
    return seen


def _forward(view: GraphView) -> set[str]:
    """The nodes that carry the network's own values: computed from data, but not from labels, losses or gradients."""
    data = [node for node in view.nodes.values() if node.op in _SOURCES or "Dequeue" in node.op]
    others = [node.name for node in view.nodes.values() if _LOSS.search(node.op) or node.op.startswith("Restore")]
    pictures = [node.name for node in data if not _is_label(node)]
    forward = view.downstream(pictures) - view.downstream([*(n.name for n in data if _is_label(n)), *others])
    return {
        name
        for name in forward & view.nodes.keys()
        if not _GRADIENTS.search(name) and not _UPDATE.search(view.nodes[name].op)
    }


def _is_label(node: Any) -> bool:
    """Whole numbers with at most two axes: classes, not pictures."""
    shape = node.attr["shape"].shape
    return _dtype(node) in _INTEGERS and not shape.unknown_rank and len(shape.dim) <= 2


def _is_end(view: GraphView, name: str) -> bool:
    node = view.nodes[name]
    if node.op in _SOURCES or "Dequeue" in node.op or node.op in VARIABLES or _dtype(node) not in _FLOATS:
        return False
    readers = {view.nodes[reader].op for reader in view.readers[name]}
    return not any(operator not in _ASIDE and "Summary" not in operator for operator in readers)


def _dtype(node: Any) -> int:
    """The DataType of a node's first output, as far as its attributes tell; 0 where they do not."""
    for key in ("dtype", "T", "DstT"):
        if key in node.attr:
            return int(node.attr[key].type)
    listed = node.attr["component_types"].list.type or node.attr["output_types"].list.type
    return int(listed[0]) if listed else 0


def _averages_the_batch(view: GraphView, node: Any) -> bool:
    """Whether a node is the variance of an unfused batch normalisation in training: a mean over the first axis, too."""
    if node.op != "Mean" or len(node.input) < 2:
        return False
    source, axes = (view.nodes.get(node_name(given)) for given in node.input[:2])
    if source is None or axes is None or source.op != "SquaredDifference" or axes.op != "Const":
        return False
    return 0 in load_tensorflow().make_ndarray(axes.attr["value"].tensor)


def _with_functions(graph_def: Any, nodes: list[Any]) -> Iterator[Any]:
    """The nodes, and those of every function that they call."""
    library = {function.signature.name: function for function in graph_def.library.function}
    pending = list(nodes)
    seen: set[str] = set()
    while pending:
        node = pending.pop(0)
        yield node
        called = {value.func.name for value in node.attr.values() if value.HasField("func")}
        called |= {function.name for value in node.attr.values() for function in value.list.func}
        for name in (called & library.keys()) - seen:
            seen.add(name)
            pending += library[name].node_def


def cut_at(graph_def: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """Return a copy in which every input is a placeholder, also a queue; ModelError where no output depends on one."""
    tf = load_tensorflow().compat.v1
    view = GraphView(graph_def)
    cut = type(graph_def)()
    cut.CopyFrom(graph_def)
    for name in inputs:
        if view.nodes[name].op == "Placeholder":
            continue
        with tf.Graph().as_default():
            tensor = tf.import_graph_def(view.subgraph([name]), return_elements=[f"{name}:0"], name="")[0]
        node = next(node for node in cut.node if node.name == name)
        node.Clear()
        node.name, node.op = name, "Placeholder"
        node.attr["dtype"].type = tensor.dtype.as_datatype_enum
        node.attr["shape"].shape.CopyFrom(tensor.shape.as_proto())
    unused = set(inputs) - GraphView(cut).upstream(outputs)
    if unused:
        raise ModelError(
            f"the input {unused.pop()} does not lead to {', '.join(outputs)}; name another input or output"
        )
    return cut


def take_channels_first(graph_def: Any, names: Iterable[str]) -> None:
    """Let picture inputs be (N, C, H, W): a placeholder of that layout and a Transpose for each, in place.

    The converter moves the Transpose into the network, where it meets the convolutions' own and both vanish. ModelError
    for an input without four axes.
    """
    tf = load_tensorflow().compat.v1
    nodes = {node.name: node for node in graph_def.node}
    for name in names:
        dims = nodes[name].attr["shape"].shape.dim
        if len(dims) != 4:
            raise ModelError(f"the input {name} has {len(dims)} axes, expected (N, H, W, C); leave its layout as it is")
        for node in graph_def.node:
            for index, given in enumerate(node.input):
                if node_name(given) == name:
                    node.input[index] = f"{name}/channels_last"
        with tf.Graph().as_default() as graph:
            shape = [None if dims[axis].size < 0 else dims[axis].size for axis in (0, 3, 1, 2)]
            pictures = tf.placeholder(nodes[name].attr["dtype"].type, shape, name=name)
            tf.transpose(pictures, (0, 2, 3, 1), name=f"{name}/channels_last")
        graph_def.node.remove(nodes[name])
        graph_def.node.extend(graph.as_graph_def().node)


def fix_size(graph_def: Any, names: Iterable[str], spatial: tuple[int, int]) -> None:
    """Give the open height and width of picture inputs a size in pixels, in place; ModelError where none is open."""
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
