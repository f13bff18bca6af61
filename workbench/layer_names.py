"""Name the layer that a tensor inside a graph belongs to."""

from collections.abc import Callable, Iterable, Mapping, Sequence

Layers = Sequence[str] | Mapping[str, str]
"""The names of the Keras layers, or the layer of each tensor where that is known."""

_INNER_SCOPES = ("batchnorm", "moments", "resize")


def layer_namer(tensors: Iterable[str], layers: Layers) -> Callable[[Iterable[str]], list[str]]:
    """Return a function from tensors to the layers they are of, each once, in order.

    TensorFlow makes layer names unique by a number, so that `conv_1` may be the layer `conv_1` or the layer `conv`;
    the reading under which more of the layers are found is taken.

    Args:
        tensors: every tensor of the graph.
        layers: the names of the Keras layers, or the layer by tensor; without them a tensor's scope stands for its
            layer.

    """
    if isinstance(layers, Mapping):
        return lambda names: _look_up(list(names), layers)
    known = frozenset(layers)
    readings: list[Callable[[str], str | None]] = [
        lambda part: part if part in known else _stem(part, known),
        lambda part: _stem(part, known) or (part if part in known else None),
    ]

    def find(tensor: str, read: Callable[[str], str | None]) -> str | None:
        parts = tensor.split(":")[0].split("/")
        return next((name for part in reversed(parts) if (name := read(part))), None)

    everything = list(tensors)
    counts = [len({find(name, read) for name in everything}) for read in readings]
    read = readings[counts.index(max(counts))]

    def name_layers(tensors: Iterable[str]) -> list[str]:
        return list(dict.fromkeys(find(tensor, read) or scope_of(tensor) for tensor in tensors))

    return name_layers


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


def _stem(part: str, known: frozenset[str]) -> str | None:
    stem, _, number = part.rpartition("_")
    return stem if number.isdigit() and stem in known else None
