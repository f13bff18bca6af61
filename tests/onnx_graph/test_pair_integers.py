"""Integer products become products between pairs, but only where that keeps the answer."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from workbench.onnx_graph.rewrites import pair_integers


def network(last="Cast", rounds=True, zero=0):
    """Numbers rounded, or not, to 8 bits, times 8-bit weights; int32 products made floats, or given as they are."""
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(generator.integers(-127, 128, (300, 4), dtype=np.int8), "w"),
        numpy_helper.from_array(np.int8(zero), "zero"),
    ]
    nodes = [
        helper.make_node("Round" if rounds else "Neg", ["x"], ["r"]),
        helper.make_node("Cast", ["r"], ["q"], to=TensorProto.INT8),
        helper.make_node("MatMulInteger", ["q", "w", "zero", "zero"], ["p"]),
        helper.make_node(last, ["p"], ["y"], **({"to": TensorProto.FLOAT} if last == "Cast" else {})),
    ]
    kind = TensorProto.FLOAT if last == "Cast" else TensorProto.INT32
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 300])]
    graph = helper.make_graph(nodes, "g", ends, [helper.make_tensor_value_info("y", kind, ["batch", 4])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model):
    x = np.random.default_rng(1).uniform(-127, 127, (3, 300)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_the_products_of_whole_numbers_are_exact():
    model = network()
    expected = run(model)
    assert pair_integers(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == [
        "Round", "DequantizeLinear", "QuantizeLinear", "DequantizeLinear", "MatMul",
    ]  # fmt: skip
    np.testing.assert_array_equal(run(model), expected)
    assert pair_integers(model) == 0


@pytest.mark.parametrize("options", [{"rounds": False}, {"last": "Abs"}, {"zero": 3}], ids=str)
def test_what_would_change_the_answer_or_its_type_is_left_alone(options):
    model = network(**options)
    before = model.SerializeToString()
    assert pair_integers(model) == 0
    assert model.SerializeToString() == before
