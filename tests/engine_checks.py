"""What several tests of `workbench.engine` share: how they write a network, build it, and stand in for the child."""

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from workbench.core import process
from workbench.engine.build import build_engine


def save_net(path, nodes, inputs, outputs, weights=(), *, opset=17, domains=()):
    """Write an ONNX file without checking it."""
    values = [[helper.make_tensor_value_info(*value) for value in group] for group in (inputs, outputs)]
    graph = helper.make_graph(nodes, "net", *values, [numpy_helper.from_array(array, name) for name, array in weights])
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def small_net(path, seed=0, batch="batch", depth=1):
    """A few convolutions: input (batch, 3, 16, 16), output (batch, 3, 16, 16)."""
    kernel = np.random.default_rng(seed).standard_normal((3, 3, 3, 3)).astype(np.float32)
    nodes, last = [], "input"
    for index in range(depth):
        name = "output" if index == depth - 1 else f"t{index}"
        nodes.append(helper.make_node("Conv", [last, "w"], [f"c{index}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [name]))
        last = name
    shape = [batch, 3, 16, 16]
    return save_net(
        path, nodes, [("input", TensorProto.FLOAT, shape)], [("output", TensorProto.FLOAT, shape)], [("w", kernel)]
    )


def build(path, *arguments, **options):
    return build_engine(path, *arguments, **{"progress": False, "flavour": "tensorrt_rtx", **options})


def use_child(monkeypatch, code):
    """Run this Python instead of TensorRT's child; the order comes on its standard input."""
    monkeypatch.setattr(process, "command", lambda module: [sys.executable, "-c", code])
