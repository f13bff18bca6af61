"""Pair the tensors inside two graphs, and name the layers they belong to."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from workbench.parity.probes import GraphProbe, Node

Layers = Sequence[str] | Mapping[str, str]
"""The names of the Keras layers, or the layer of each tensor where that is known."""

_INNER_SCOPES = ("batchnorm", "moments", "resize")
LAYOUT = frozenset(("Identity", "Transpose", "Squeeze", "Unsqueeze", "ExpandDims", "StopGradient", "PreventGradient"))
"""Operators that move values and change none."""

_SCALING = ("BiasAdd", "Add", "AddV2", "Sub", "Mul", "Div", "RealDiv", "BatchNormalization")
AFFINE = frozenset((*_SCALING, "FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"))
"""Operators that exporters fold into the one before them, where all but one of their inputs are constants."""

KINDS = {
    "Conv2D": "Conv", "DepthwiseConv2dNative": "Conv", "Conv2DBackpropInput": "ConvTranspose", "Gemm": "MatMul",
    "FusedMatMul": "MatMul", "AddV2": "Add", "ConcatV2": "Concat", "ResizeNearestNeighbor": "Resize",
    "ResizeBilinear": "Resize", "Upsample": "Resize", "ReduceMean": "Mean", "GlobalAveragePool": "Mean",
    "AvgPool": "AveragePool", "PadV2": "Pad", "MirrorPad": "Pad", "Relu6": "Clip", "Maximum": "Max", "Minimum": "Min",
}  # fmt: skip
"""One name for what TensorFlow and ONNX call differently."""


def layer_namer(tensors: Iterable[str], layers: Layers) -> Callable[[Iterable[str]], list[str]]:
    """Return a function from some of a graph's `tensors` to their layers, each once; by scope where `layers` is empty.

    TensorFlow makes layer names unique by a number, so that `conv_1` may be the layer `conv_1` or the layer `conv`: the
    reading under which more of the layers are found is taken.
    """
    if isinstance(layers, Mapping):
        return lambda names: _look_up(list(names), layers)
    known, everything = frozenset(layers), list(tensors)

    def stem(part: str) -> str | None:
        stem, _, number = part.rpartition("_")
        return stem if number.isdigit() and stem in known else None

    readings: list[Callable[[str], str | None]] = [
        lambda part: part if part in known else stem(part),
        lambda part: stem(part) or (part if part in known else None),
    ]

    def find(tensor: str, read: Callable[[str], str | None]) -> str | None:
        parts = tensor.split(":")[0].split("/")
        return next((name for part in reversed(parts) if (name := read(part))), None)

    counts = [len({find(name, read) for name in everything}) for read in readings]
    read = readings[counts.index(max(counts))]
    return lambda names: list(dict.fromkeys(find(name, read) or scope_of(name) for name in names))


def _look_up(tensors: list[str], layers: Mapping[str, str]) -> list[str]:
    """The layers that are known of some tensors; a tensor with an exporter's own name says nothing beside them."""
    found = dict.fromkeys(layer for tensor in tensors if tensor in layers for layer in layers[tensor].split(" + "))
    return list(found or dict.fromkeys(map(scope_of, tensors)))


def scope_of(tensor: str) -> str:
    """Shorten a tensor's name to that of its layer, where the name has parts.

    >>> scope_of("resnet50/conv1_bn/batchnorm/mul_1"), scope_of("Resize__14")
    ('resnet50/conv1_bn', 'Resize__14')
    """
    parts = tensor.split(":")[0].split("/")
    parts = parts[:-1] or parts
    while len(parts) > 1 and parts[-1] in _INNER_SCOPES:
        parts = parts[:-1]
    return "/".join(parts)


@dataclass(frozen=True)
class Pair:
    """One tensor of the reference and that of the candidate which should hold the same, by their names."""

    layer: str  # or several joined by " + " where an exporter made one of them
    operator: str  # what computes it in the candidate
    reference: str
    candidate: str
    parents: tuple[int, ...]  # the places in `Pairing.pairs` of those it is computed from


@dataclass(frozen=True)
class Pairing:
    """Every pair, in the order in which the reference computes them, the inputs first."""

    pairs: tuple[Pair, ...]
    outputs: tuple[int, ...]  # their places
    reference_only: tuple[str, ...]  # layers without a counterpart
    candidate_only: tuple[str, ...]  # operators without one, `name (kind)`


def pair_tensors(reference: GraphProbe, candidate: GraphProbe, layers: Layers = ()) -> Pairing:
    """Pair the tensors of two graphs; every output is in a pair if both have as many.

    `layers` names those of the reference, whose own are taken where it is empty.
    """
    left, right = _Side(reference), _Side(candidate)
    matches = _by_name(left, right)
    matches |= dict(_ends(reference, candidate))
    for backward in (False, True, False):
        _by_place(left, right, matches, backward)
    return _assemble(left, right, matches, layer_namer(left.maker, layers or reference.layers))


class _Side:
    """One of the two graphs, with the ways along it."""

    def __init__(self, probe: GraphProbe) -> None:
        self.probe = probe
        self.maker: dict[str, Node] = {name: node for node in probe.nodes for name in node.outputs}
        self.readers: dict[str, list[Node]] = defaultdict(list)
        for node in probe.nodes:
            for name in dict.fromkeys(node.inputs):
                self.readers[name].append(node)
        self.order = {name: index for index, name in enumerate((*probe.inputs, *self.maker))}

    def follow(self, name: str, stops: set[str], affine: bool = True) -> str:
        """Go on along what exporters fold, or changes of layout only, to a branch, an end or before one of `stops`."""
        while len(self.readers[name]) == 1 and name not in self.probe.outputs:
            (node,) = self.readers[name]
            if not folds(node) or node.outputs[0] in stops or (node.operator in AFFINE and not affine):
                break
            name = node.outputs[0]
        return name

    def folds_into(self, name: str, stops: set[str]) -> tuple[str, bool] | None:
        """The next of `stops` if only something that exporters fold is between, and whether that changes values."""
        if len(self.readers[name]) != 1 or name in self.probe.outputs:
            return None
        (node,) = self.readers[name]
        return (node.outputs[0], node.operator in AFFINE) if folds(node) and node.outputs[0] in stops else None

    def span(self, name: str, stops: set[str]) -> list[str]:
        """The tensors that a tensor is computed from, itself included, back to `stops`, which are left out."""
        found, waiting = {name}, [name]
        while waiting:
            node = self.maker.get(waiting.pop())
            new = {read for read in (node.inputs if node else ()) if read not in stops and read not in found}
            found |= new
            waiting.extend(new)
        return sorted(found, key=self.order.__getitem__)

    def nearest(self, name: str, stops: set[str]) -> list[str]:
        """The members of `stops` that a tensor is computed from without another one between."""
        makers = (self.maker.get(inner) for inner in self.span(name, stops))
        return list(dict.fromkeys(read for node in makers if node for read in node.inputs if read in stops))


def folds(node: Node) -> bool:
    """Whether exporters fold an operator into the one before it: a change of layout, or constants only."""
    return len(node.inputs) == 1 and (node.operator in LAYOUT or (node.operator in AFFINE and bool(node.weights)))


def _by_name(left: _Side, right: _Side) -> dict[str, str]:
    """Reference tensor to candidate tensor of the same name; without the model's own name if that finds more."""
    exact = {name: name for name in left.maker if name in right.maker}

    def short(side: _Side) -> dict[str, str]:
        tails = Counter(name.partition("/")[2] for name in side.maker)
        pairs = ((name.partition("/")[2], name) for name in side.maker)
        return {tail: name for tail, name in pairs if tail and tails[tail] == 1}

    one, other = short(left), short(right)
    tails = {name: other[tail] for tail, name in one.items() if tail in other}
    return exact if len(exact) >= len(tails) else tails


def _ends(reference: GraphProbe, candidate: GraphProbe) -> Iterable[tuple[str, str]]:
    """Pair inputs and outputs: by the names people know them by, or else by position."""
    inputs = len(reference.inputs)
    theirs = dict(zip(candidate.names, (*candidate.inputs, *candidate.outputs), strict=True))
    for ours, others, names in (
        (reference.inputs, candidate.inputs, reference.names[:inputs]),
        (reference.outputs, candidate.outputs, reference.names[inputs:]),
    ):
        if all(theirs.get(name) in others for name in names):
            yield from ((tensor, theirs[name]) for tensor, name in zip(ours, names, strict=True))
        elif len(ours) == len(others):
            yield from zip(ours, others, strict=True)


Key = tuple[str, tuple[int, ...], tuple[tuple[int, ...], ...]]


def _by_place(left: _Side, right: _Side, matches: dict[str, str], backward: bool) -> None:
    """Add pairs of operators of one kind whose neighbours are paired, in place, until there are no more."""
    while True:
        waiting = [_keys(side, owners, backward) for side, owners in _owned(left, right, matches)]
        both = [key for key in waiting[0] if len(waiting[0][key]) == len(waiting[1].get(key, ()))]
        new = {a: b for key in both for a, b in zip(waiting[0][key], waiting[1][key], strict=True)}
        if not new:
            return
        matches |= new


def _owned(left: _Side, right: _Side, matches: dict[str, str]) -> list[tuple[_Side, dict[str, int]]]:
    """For each side, the number of the pair that a tensor belongs to, also along what folds."""
    sides = []
    for side, names in ((left, list(matches)), (right, list(matches.values()))):
        owners = {name: number for number, name in enumerate(names)}
        for name, number in list(owners.items()):
            last = side.follow(name, set(names))
            between = side.span(last, {name}) if last != name else []
            owners |= {tensor: number for tensor in between if tensor not in owners}
            for node in side.readers[last]:  # a change of layout that only some readers take
                if node.operator in LAYOUT:
                    owners.setdefault(node.outputs[0], number)
        sides.append((side, owners))
    return sides


def _keys(side: _Side, owners: dict[str, int], backward: bool) -> dict[Key, list[str]]:
    """The unpaired operators whose inputs (or readers) are all paired, by kind and by these pairs."""
    found: dict[Key, list[str]] = defaultdict(list)
    for node in side.probe.nodes:
        name = node.outputs[0]
        if name in owners or folds(node):
            continue
        readers = side.readers[side.follow(name, set())] if backward else ()
        around = [reader.outputs[0] for reader in readers] if backward else list(node.inputs)
        if around and all(other in owners for other in around):
            kind, pairs = KINDS.get(node.operator, node.operator), tuple(sorted(owners[other] for other in around))
            weights = tuple(sorted(tuple(sorted(shape)) for shape in node.weights if len(shape) > 1))
            found[kind, pairs, weights].append(name)
    return found


def _assemble(
    left: _Side, right: _Side, matches: dict[str, str], name_layers: Callable[[Iterable[str]], list[str]]
) -> Pairing:
    """Follow both sides of each match to what they hold together, and put them in order."""
    ones, others = set(matches), set(matches.values())
    ends = dict(_follow_both(left, right, one, other, (ones, others)) for one, other in matches.items())
    ends = {one: other for one, other in ends.items() if _same_step(left, right, one, other, (ones, others))}
    ordered = sorted(ends, key=left.order.__getitem__)
    places, stops = {name: place for place, name in enumerate(ordered)}, set(ordered)
    pairs, seen = [], set()
    for name in ordered:
        inner = [tensor for tensor in left.span(name, stops) if tensor in left.maker]
        parents = tuple(sorted(places[parent] for parent in left.nearest(name, stops)))
        layer = " + ".join(name_layers(inner)) if inner else _end_label("input", left.probe, name)
        if name in left.probe.outputs and all(folds(left.maker[tensor]) for tensor in inner):
            layer = _end_label("output", left.probe, name)
        pairs.append(Pair(layer, operator_of(right, ends[name], set(ends.values())), name, ends[name], parents))
        seen.update(inner)
    outputs = tuple(places[name] for name in left.probe.outputs if name in places)
    covered = set(name_layers(tensor for tensor in left.maker if tensor in seen))
    missing = [layer for layer in name_layers(left.maker) if layer not in covered]
    spans = {tensor for end in ends.values() for tensor in right.span(end, set(ends.values()) - {end})}
    alone = [f"{node.outputs[0]} ({node.operator})" for node in right.probe.nodes if node.outputs[0] not in spans]
    return Pairing(tuple(pairs), outputs, tuple(missing), tuple(alone))


def _follow_both(left: _Side, right: _Side, one: str, other: str, stops: tuple[set[str], set[str]]) -> tuple[str, str]:
    """Follow both sides of a match; not over an operation on one side that is the next match on the other side."""
    sides, names = (left, right), (one, other)
    short = [side.follow(name, stop, affine=False) for side, name, stop in zip(sides, names, stops, strict=True)]
    nexts = [side.folds_into(name, stop) for side, name, stop in zip(sides, short, stops, strict=True)]
    blocked = [step is not None and step[1] for step in nexts]
    if any(blocked) and not all(blocked):
        moved = right.follow(other, stops[1]) if blocked[0] else left.follow(one, stops[0])
        if moved != short[blocked[0]]:
            return short[0], short[1]
    return left.follow(one, stops[0]), right.follow(other, stops[1])


def _same_step(left: _Side, right: _Side, one: str, other: str, stops: tuple[set[str], set[str]]) -> bool:
    """Whether two ends hold the same: not where only one side has still to add or multiply before the next pair."""
    ours, theirs = left.folds_into(one, stops[0]), right.folds_into(other, stops[1])
    return ours is None or theirs is None or ours[1] == theirs[1]


def operator_of(side: _Side, name: str, stops: set[str]) -> str:
    """The operator behind a tensor that matters: the last one that is not folded into another."""
    inner = [side.maker[tensor] for tensor in side.span(name, stops - {name}) if tensor in side.maker]
    heavy = [node.operator for node in inner if not folds(node)]
    return (heavy or [node.operator for node in inner] or ["input"])[-1]


def _end_label(kind: str, probe: GraphProbe, tensor: str) -> str:
    """An input or output by the name that people know, such as "input left"."""
    ends = (*probe.inputs, *probe.outputs)
    name = probe.names[ends.index(tensor)] if tensor in ends else tensor
    return name if name.startswith(kind) else f"{kind} {name}"
