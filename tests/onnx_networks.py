"""Small networks made with `onnx.helper` alone, so that a machine without Keras can test with them."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8


def save_network(path, nodes, inputs, outputs, initializers=None):
    """Write a checked network; `inputs` and `outputs` map names to (dtype, shape), a text in a shape is open."""
    graph = helper.make_graph(
        nodes,
        path.stem,
        [_value(name, *what) for name, what in inputs.items()],
        [_value(name, *what) for name, what in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (initializers or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def save_picture_network(path, batch="batch", size=(16, 24), channels=8):
    """Convolution, ReLU and a classifier: (batch, 3, height, width) float32 to (batch, 5) and (batch, channels)."""
    random = np.random.default_rng(7)
    weights = {
        "kernel": random.standard_normal((channels, 3, 3, 3)).astype(np.float32),
        "classes": random.standard_normal((channels, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("ReduceMean", ["active"], ["pooled"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["pooled", "classes"], ["output"]),
    ]
    inputs = {"input": ("float32", (batch, 3, *size))}
    outputs = {"output": ("float32", (batch, 5)), "pooled": ("float32", (batch, channels))}
    return save_network(path, nodes, inputs, outputs, weights)


def save_mixed_network(path, batch="batch"):
    """Three inputs and three outputs of different element sizes and ranks."""
    nodes = [
        helper.make_node("Sub", ["left", "right"], ["difference"]),
        helper.make_node("Cast", ["left"], ["small"], to=TensorProto.FLOAT16),
        helper.make_node("ReduceSum", ["flags", "axes"], ["counts"], keepdims=0),
    ]
    inputs = {
        "left": ("float32", (batch, 6)),
        "right": ("float32", (batch, 6)),
        "flags": ("int32", (batch, 2, 3)),
    }
    outputs = {
        "difference": ("float32", (batch, 6)),
        "small": ("float16", (batch, 6)),
        "counts": ("int32", (batch,)),
    }
    return save_network(path, nodes, inputs, outputs, {"axes": np.array([1, 2], np.int64)})


def save_identity_network(path, dtype, shape=("batch", 5)):
    """One tensor of any type, unchanged."""
    node = helper.make_node("Identity", ["input"], ["output"])
    return save_network(path, [node], {"input": (dtype, shape)}, {"output": (dtype, shape)})


def save_counting_network(path):
    """NonZero: the size of its output depends on values."""
    node = helper.make_node("NonZero", ["input"], ["output"])
    return save_network(path, [node], {"input": ("float32", ("batch", 5))}, {"output": ("int64", (2, "found"))})


def mixed_feed(batch, seed=0):
    """A feed for `save_mixed_network`."""
    random = np.random.default_rng(seed)
    return {
        "left": random.standard_normal((batch, 6)).astype(np.float32),
        "right": random.standard_normal((batch, 6)).astype(np.float32),
        "flags": random.integers(0, 9, (batch, 2, 3)).astype(np.int32),
    }


def picture(batch, seed=0, size=(16, 24)):
    """An input for `save_picture_network`."""
    return np.random.default_rng(seed).standard_normal((batch, 3, *size)).astype(np.float32)


def _value(name, dtype, shape):
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
