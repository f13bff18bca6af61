"""What several tests of `workbench.engine` share: how they write a network, build it, and stand in for the child."""

import sys

import onnx
from onnx import helper, numpy_helper

from workbench.core import process
from workbench.engine.build import build_engine


def save_net(path, nodes, inputs, outputs, weights=(), *, opset=17, domains=()):
    """Write an ONNX file without checking it."""
    values = [[helper.make_tensor_value_info(*value) for value in group] for group in (inputs, outputs)]
    graph = helper.make_graph(nodes, "net", *values, [numpy_helper.from_array(array, name) for name, array in weights])
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def build(path, *arguments, **options):
    return build_engine(path, *arguments, **{"progress": False, "flavour": "tensorrt_rtx", **options})


def use_child(monkeypatch, code):
    """Run this Python instead of TensorRT's child; the order comes on its standard input."""
    monkeypatch.setattr(process, "command", lambda module: [sys.executable, "-c", code])
