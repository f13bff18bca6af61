"""Zeros around a picture stay zeros before a maximum is taken, in ONNX Runtime's optimised graph too."""

import numpy as np
import onnx
import onnxruntime
import pytest
from conversions import convert_here, run_onnx
from onnx import TensorProto, helper, numpy_helper

from workbench.core.packages import load_keras
from workbench.onnx_graph.rewrites import keep_zero_padding


def padded_pool(value=0.0, maker="Neg", mode="constant", dtype=np.float32):
    """Negative numbers, a Pad by one pixel on each side and a maximum of 3 x 3: the border must be the padding."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    constants = [numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "pads")]
    if value is not None:
        constants.append(numpy_helper.from_array(np.array(value, dtype), "value"))
    nodes = [
        helper.make_node(maker, ["x"], ["before"]),
        helper.make_node("Pad", ["before", "pads", *(["value"] if value is not None else [])], ["p"], mode=mode),
        helper.make_node("MaxPool", ["p"], ["y"], kernel_shape=[3, 3], strides=[2, 2]),
    ]
    ends = [helper.make_tensor_value_info(name, kind, ["batch", 1, size, size]) for name, size in (("x", 6), ("y", 3))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("value", "dtype"), [(0.0, np.float32), (0.0, np.float64), (None, np.float32)])
def test_the_maximum_of_negative_numbers_and_a_zero_is_zero(value, dtype):
    model = padded_pool(value, dtype=dtype)
    assert keep_zero_padding(model) == 1
    onnx.checker.check_model(model)
    answer = run_onnx(model, np.ones((1, 1, 6, 6), dtype))
    # The windows start at rows and columns -1, 1 and 3: the first of each holds the padding.
    np.testing.assert_array_equal(answer[0, 0], [[0, 0, 0], [0, -1, -1], [0, -1, -1]])


def test_onnx_runtime_still_needs_this():
    """Fails on the day that ONNX Runtime is mended: then this module can go."""
    answer = run_onnx(padded_pool(), np.ones((1, 1, 6, 6), np.float32))
    np.testing.assert_array_equal(answer, -np.ones((1, 1, 3, 3)))


def test_every_runtime_gives_the_same_with_and_without_the_rewrite_when_nothing_is_optimised():
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    x = np.random.default_rng(0).standard_normal((2, 1, 6, 6)).astype(np.float32)
    before, after = padded_pool(), padded_pool()
    keep_zero_padding(after)
    answers = [
        onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]
        for model in (before, after)
    ]
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize("options", [{"value": 5.0}, {"maker": "Relu"}, {"mode": "edge"}])
def test_a_pad_that_cannot_go_wrong_stays_as_it_is(options):
    model = padded_pool(**options)
    before = model.SerializeToString()
    assert keep_zero_padding(model) == 0
    assert model.SerializeToString() == before


def test_a_value_that_others_use_stays():
    model = padded_pool()
    model.graph.node.append(helper.make_node("Identity", ["value"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, []))
    keep_zero_padding(model)
    assert "value" in [tensor.name for tensor in model.graph.initializer]
    assert keep_zero_padding(model) == 0
    onnx.checker.check_model(model)


def test_a_keras_network_with_zeros_around_negative_numbers_keeps_its_answer():
    keras = load_keras()
    image = keras.Input((6, 6, 2))
    x = keras.layers.MaxPooling2D(3, strides=2)(keras.layers.ZeroPadding2D(1)(image))
    model = keras.Model(image, x)
    picture = -np.abs(np.random.default_rng(1).standard_normal((2, 6, 6, 2))).astype(np.float32) - 0.1
    expected = np.asarray(model(picture))
    assert expected.min() < 0 == expected.max()
    np.testing.assert_array_equal(run_onnx(convert_here(model), picture), expected)
