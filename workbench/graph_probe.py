"""Look inside a running network: its operators in order, and any tensor between them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.errors import InputError
from workbench.runners.base import RunnerInfo

FREE_OPERATORS = ("Shape", "ShapeN", "Size", "Rank", "ReadVariableOp", "Const", "Constant")
"""Operators whose answer does not depend on the values that are fed."""


@dataclass(frozen=True)
class Node:
    """One operator of a graph.

    Attributes:
        operator: its kind, such as `"Conv"`.
        inputs: the tensors it reads that depend on what is fed; weights and shapes are left out.
        outputs: the tensors it writes; TensorFlow's and tf2onnx's `:0` is dropped.
        weights: the shape of each constant it reads.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[tuple[int, ...], ...] = ()


class GraphProbe(ABC):
    """A network on one backend of which every tensor can be fetched.

    Attributes:
        info: what computes it.
        nodes: the operators that depend on the feed, each after those it reads from.
        inputs: the names of the tensors that are fed, as in `nodes`.
        outputs: the tensors that are the network's answers, as in `nodes`.
        names: the names of the inputs and then of the outputs, as people and other forms of the network know them.
        layers: the names of the Keras layers, where they are known.
    """

    info: RunnerInfo
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    names: tuple[str, ...]
    layers: tuple[str, ...] = ()

    @abstractmethod
    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """The shape of a tensor for this feed, or None where it is not known before the network runs."""

    @abstractmethod
    def fetch(self, tensors: Sequence[str]) -> dict[str, np.ndarray]:
        """Run the network on the feed and return these tensors, by name."""


def ordered_feed(names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Bring a feed into the order of a network's inputs: by name, or else by position.

    Raises:
        InputError: another number of inputs.
    """
    if set(names) == set(feed):
        return [feed[name] for name in names]
    if len(names) != len(feed):
        raise InputError(f"got {len(feed)} inputs ({', '.join(feed)}), expected {', '.join(names)}; feed these")
    return list(feed.values())


def depending_nodes(
    rows: Iterable[tuple[str, Sequence[str], Sequence[str]]],
    inputs: Sequence[str],
    weight_shape: Callable[[str], tuple[int, ...]],
) -> tuple[Node, ...]:
    """Keep the operators whose answers depend on the feed; the others are weights and shapes in the making.

    Args:
        rows: operator, inputs and outputs of each node, in an order in which they can run.
        inputs: the tensors that are fed.
        weight_shape: gives the shape of a tensor that is a constant.
    """
    depending, nodes = set(inputs), []
    for operator, reads, writes in rows:
        data = tuple(name for name in reads if name in depending)
        if data and operator not in FREE_OPERATORS:
            weights = tuple(weight_shape(name) for name in reads if name and name not in depending)
            nodes.append(Node(operator, data, tuple(name for name in writes if name), weights))
            depending.update(writes)
    return tuple(nodes)


def plain(name: str) -> str:
    """A tensor's name without the `:0` that TensorFlow and tf2onnx put behind a node's first output."""
    return name.removesuffix(":0")


def full(name: str) -> str:
    """The inverse of `plain` for TensorFlow."""
    return name if ":" in name else f"{name}:0"
