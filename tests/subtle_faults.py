"""Faults of a thousandth, planted in a healthy network one at a time: what a converter or a rewrite may get wrong."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from workbench.onnx_graph.edit import set_attribute

Rebuild = Callable[[], Any]
"""Builds the Keras model anew, for a fault that an exporter would have to make."""


def _heavy(model: onnx.ModelProto, place: int) -> list[onnx.TensorProto]:
    """The initializers at one place among the inputs of the convolutions and products of matrices, in order."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    names = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul", "LSTM", "GRU", "RNN"):
            names += node.input[place : place + 1]
        elif node.op_type == "Add" and place == 2:  # the sum behind a product of matrices is its bias
            names += node.input
    return [weights[name] for name in names if name in weights and len(weights[name].dims) >= 1]


def weight(model: onnx.ModelProto, _: Rebuild) -> onnx.ModelProto | None:
    """The weights of one output channel in the middle of the network are off by a thousandth."""
    tensors = [tensor for tensor in _heavy(model, 1) if len(tensor.dims) > 1]
    if not tensors:
        return None
    tensor = tensors[len(tensors) // 2]
    array = numpy_helper.to_array(tensor).copy()
    array[(0,) if array.ndim > 2 else (..., 0)] *= 1.001
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def bias(model: onnx.ModelProto, _: Rebuild) -> onnx.ModelProto | None:
    """One channel in the middle of the network loses its bias."""
    found = [(tensor, numpy_helper.to_array(tensor)) for tensor in _heavy(model, 2)]
    telling = [(tensor, array) for tensor, array in found if np.abs(array).max() > 1e-3]
    if not telling:
        return None
    tensor, array = telling[len(telling) // 2]
    array = array.copy()
    array.flat[np.argsort(np.abs(array).ravel())[array.size // 20]] = 0  # a small one
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def epsilon(_: onnx.ModelProto, rebuild: Rebuild) -> onnx.ModelProto | None:
    """One batch norm takes an epsilon of 1e-3 for 1e-5, or the other way round."""
    from conversions import convert_here

    model = rebuild()
    layers = [layer for layer in model.layers if type(layer).__name__ == "BatchNormalization"]
    if not layers or model.inputs[0].shape[1] is None:
        return None
    layer = layers[len(layers) // 2]
    layer.epsilon = 1e-5 if layer.epsilon > 1e-4 else 1e-3
    return convert_here(model)


def corners(model: onnx.ModelProto, _: Rebuild) -> onnx.ModelProto | None:
    """A bilinear Resize follows the other corner rule."""
    nodes = [node for node in model.graph.node if node.op_type == "Resize"]
    linear = [n for n in nodes if any(item.name == "mode" and item.s == b"linear" for item in n.attribute)]
    for node in linear[-1:]:
        set_attribute(node, "coordinate_transformation_mode", "align_corners")
    return model if linear else None


def gelu(model: onnx.ModelProto, _: Rebuild) -> onnx.ModelProto | None:
    """One GELU is computed in its tanh form."""
    places = [place for place, node in enumerate(model.graph.node) if node.op_type == "Erf"]
    if not places:
        return None
    node = model.graph.node[places[0]]
    x, y = node.input[0], node.output[0]
    # erf(z) in the tanh form of GELU, sqrt(2 / pi) (x + 0.044715 x^3) with x = sqrt(2) z
    first, third = np.sqrt(2 / np.pi) * np.sqrt(2), np.sqrt(2 / np.pi) * 0.044715 * np.sqrt(8)
    steps = [
        helper.make_node("Mul", [x, x], [f"{y}/square"]),
        helper.make_node("Mul", [f"{y}/square", f"{y}/third"], [f"{y}/scaled"]),
        helper.make_node("Add", [f"{y}/scaled", f"{y}/first"], [f"{y}/factor"]),
        helper.make_node("Mul", [x, f"{y}/factor"], [f"{y}/inner"]),
        helper.make_node("Tanh", [f"{y}/inner"], [y]),
    ]
    for name, value in (("first", first), ("third", third)):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(value), f"{y}/{name}"))
    nodes = list(model.graph.node)
    nodes[places[0] : places[0] + 1] = steps
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


FAULTS: dict[str, Callable[[onnx.ModelProto, Rebuild], onnx.ModelProto | None]] = {
    "weights of a channel off by 1e-3": weight,
    "bias of a channel dropped": bias,
    "epsilon of a batch norm": epsilon,
    "corner rule of a bilinear resize": corners,
    "tanh form of a GELU": gelu,
}
