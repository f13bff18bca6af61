"""Look inside a running network: its operators in order, and any tensor between them."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from workbench.core.contract import RunnerInfo, ordered_feed
from workbench.core.errors import InputError
from workbench.core.packages import load_tensorflow, require_backend
from workbench.models.files import open_model
from workbench.models.freezing import FrozenGraph, tensor_names
from workbench.onnx_graph.edit import fixed_shape, inferred_values, inner_graphs, light_copy, reads
from workbench.onnx_graph.file import check, read
from workbench.onnx_graph.session import open_with_outputs, run_session
from workbench.runners.backends import backend_for
from workbench.runners.keras_runner import describe

FREE_OPERATORS = ("Shape", "ShapeN", "Size", "Rank", "ReadVariableOp", "Const", "Constant")
"""Operators whose answer does not depend on the values that are fed."""


@dataclass(frozen=True)
class Node:
    """One operator of a graph: its kind, the tensors it reads that depend on the feed, and those it writes.

    Of each constant it reads, `weights` has the shape. The `:0` of TensorFlow and tf2onnx is dropped.
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
        inputs, outputs: the tensors that are fed, and the network's answers, as in `nodes`.
        names: those of the inputs and then of the outputs, as people and other forms of the network know them.
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


def _depending_nodes(
    rows: Iterable[tuple[str, Sequence[str], Sequence[str]]],
    inputs: Sequence[str],
    weight_shape: Callable[[str], tuple[int, ...]],
) -> tuple[Node, ...]:
    """Keep the operators whose answers depend on the feed; the others are weights and shapes in the making.

    `rows` are operator, inputs and outputs of each node, in an order in which they can run.
    """
    depending, nodes = set(inputs), []
    for operator, given, writes in rows:
        data = tuple(name for name in given if name in depending)
        if data and operator not in FREE_OPERATORS:
            weights = tuple(weight_shape(name) for name in given if name and name not in depending)
            nodes.append(Node(operator, data, tuple(name for name in writes if name), weights))
            depending.update(writes)
    return tuple(nodes)


def plain(name: str) -> str:
    """A tensor's name without the `:0` that TensorFlow and tf2onnx put behind a node's first output."""
    return name.removesuffix(":0")


def full(name: str) -> str:
    """The inverse of `plain` for TensorFlow."""
    return name if ":" in name else f"{name}:0"


def open_probe(network: Any, feed: Mapping[str, np.ndarray]) -> GraphProbe:
    """Open a network for looking inside while it runs on `feed`: arrays by name, or in the order of the inputs.

    It is an `.onnx` file or what `open_model` opens. InputError for an engine, whose tensors cannot be fetched, for a
    PyTorch program, and for a feed of another number of inputs.
    """
    backend = backend_for(network)
    if backend == "tensorrt":
        raise InputError(
            f"{network} is an engine, which keeps its tensors inside; give the ONNX file it was built from"
        )
    if backend == "torch":
        raise InputError("a PyTorch program is not looked into here; compare the ONNX files that were made from it")
    return _OnnxProbe(network, feed) if backend == "onnxruntime" else _TensorFlowProbe(open_model(network), feed)


class _TensorFlowProbe(GraphProbe):
    """A Keras model, traced in inference mode with its own variables, or a frozen graph."""

    def __init__(self, model: Any, feed: Mapping[str, np.ndarray]) -> None:
        self._tf = tf = load_tensorflow()
        tf.config.experimental.enable_tensor_float_32_execution(False)
        frozen = isinstance(model, FrozenGraph)
        inputs, outputs = (model.inputs, model.outputs) if frozen else tensor_names(model)
        arrays = ordered_feed(inputs, feed)
        # an open batch, as when the model is exported: Keras chooses other operators for a batch that is known
        opened = [array.shape if frozen or not array.ndim else (None, *array.shape[1:]) for array in arrays]
        specs = [tf.TensorSpec(shape, array.dtype) for shape, array in zip(opened, arrays, strict=True)]
        self._batch = max((array.shape[0] for array in arrays if array.ndim), default=1)
        self._graph = tf.compat.v1.wrap_function(_function_of(tf, model), specs)
        self._feed = [tf.convert_to_tensor(array) for array in arrays]
        self.info = describe(model)
        self.inputs = tuple(_names(self._graph.inputs[: len(arrays)]))
        self.outputs = tuple(_names(tf.nest.flatten(self._graph.outputs)))
        self.names = (*inputs, *outputs)
        self.layers = () if frozen else tuple(dict.fromkeys(layer_names(model)))
        operations = self._graph.graph.get_operations()
        rows = [(operation.type, _names(operation.inputs), _names(operation.outputs)) for operation in operations]
        self.nodes = _depending_nodes(rows, self.inputs, self._weight_shape)

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        shape = self._graph.graph.get_tensor_by_name(full(tensor)).shape
        if shape.rank and shape[0] is None:
            shape = self._tf.TensorShape([self._batch, *shape[1:]])
        return tuple(shape) if shape.is_fully_defined() else None

    def fetch(self, tensors: Sequence[str]) -> dict[str, np.ndarray]:
        """See `GraphProbe.fetch`; only what these tensors need is computed."""
        wanted = [self._graph.graph.get_tensor_by_name(full(name)) for name in tensors]
        run = self._graph.prune(self._graph.inputs[: len(self._feed)], wanted)
        return {name: value.numpy() for name, value in zip(tensors, run(*self._feed), strict=True)}

    def _weight_shape(self, name: str) -> tuple[int, ...]:
        shape = self._graph.graph.get_tensor_by_name(full(name)).shape
        return tuple(shape) if shape.is_fully_defined() else ()


class _OnnxProbe(GraphProbe):
    """An ONNX file in ONNX Runtime; asked-for tensors become the outputs of a copy in memory."""

    def __init__(self, path: str | os.PathLike[str], feed: Mapping[str, np.ndarray]) -> None:
        known = [spec.name for spec in check(path).inputs]
        self._path, self._model = Path(path), read(path)
        graph = self._model.graph
        self._feed = dict(zip(known, ordered_feed(known, feed), strict=True))
        tensors = (*known, *(name for node in graph.node for name in node.output))
        self._full_names = {plain(name): name for name in tensors}
        self._values = _inferred(self._model, self._feed)
        self.info = RunnerInfo("onnxruntime", require_backend("onnxruntime", "dev").__version__, "CPU")
        self.inputs = tuple(plain(name) for name in known)
        self.outputs = tuple(plain(value.name) for value in graph.output)
        self.names = (*self.inputs, *self.outputs)
        weights = {plain(tensor.name): tuple(tensor.dims) for tensor in graph.initializer}
        rows = [(node.op_type, list(map(plain, _given(node))), list(map(plain, node.output))) for node in graph.node]
        self.nodes = _depending_nodes(rows, self.inputs, lambda name: weights.get(name, ()))

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        return fixed_shape(self._values.get(self._full_names[tensor]))

    def fetch(self, tensors: Sequence[str]) -> dict[str, np.ndarray]:
        values = dict(self._feed)
        asked = [name for name in map(self._full_names.__getitem__, tensors) if name not in values]
        if asked:
            session = open_with_outputs(self._model, self._path, asked)
            values |= run_session(session, self._feed, f"show the tensors inside {self._path}")
        return {name: values[self._full_names[name]] for name in tensors}


def _given(node: onnx.NodeProto) -> Iterable[str]:
    """What a node reads, and what the graphs inside it read of the graph around them."""
    inner = {name for part in inner_graphs(node) for one in part.node for name in reads(one)}
    return [*node.input, *sorted(inner.difference(node.input))]


def _function_of(tf: Any, model: Any) -> Any:
    def call_keras(*tensors: Any) -> Any:
        return tf.nest.flatten(model(tensors[0] if len(tensors) == 1 else list(tensors), training=False))

    def import_frozen(*tensors: Any) -> Any:
        fed = {f"{name}:0": tensor for name, tensor in zip(model.inputs, tensors, strict=True)}
        ends = [f"{name}:0" for name in model.outputs]
        return tf.graph_util.import_graph_def(model.graph_def, input_map=fed, return_elements=ends, name="")

    return import_frozen if isinstance(model, FrozenGraph) else call_keras


def _names(tensors: Iterable[Any]) -> list[str]:
    return [plain(tensor.name) for tensor in tensors]


def layer_names(model: Any) -> Iterable[str]:
    """The names of a Keras model's layers, those of the models inside it too; none for anything else."""
    for layer in getattr(model, "layers", ()):
        yield from layer_names(layer)
        yield layer.name


def _inferred(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> dict[str, onnx.TypeProto.Tensor]:
    light = light_copy(model)
    del light.graph.value_info[:]
    for value in light.graph.input:
        if value.name in feed:
            kind = onnx.helper.np_dtype_to_tensor_dtype(feed[value.name].dtype)
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, feed[value.name].shape))
    return inferred_values(light)
