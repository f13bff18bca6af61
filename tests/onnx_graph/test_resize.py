"""Nearest and linear Resize against TensorFlow itself, at whole and at odd scales."""

import functools

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from workbench.core.packages import load_keras, load_tensorflow
from workbench.export.keras_model import keras_to_onnx
from workbench.onnx_graph.rewrites import give_exact_sizes, make_resize_exact

SIDES = st.integers(1, 96)


def resize_model(side, wanted, mode="nearest", opset=17):
    """A Resize as tf2onnx writes it: (batch, 1, side, 1) in, scaled to `wanted` rows by a float32 scale."""
    scales = numpy_helper.from_array(np.array([1, 1, wanted / side, 1], np.float32), "scales")
    style = {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": "floor"}
    style = style if mode == "nearest" else {"coordinate_transformation_mode": "half_pixel"}
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], "resize", mode=mode, **style)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1, rows, 1])
        for name, rows in (("x", side), ("y", None))
    ]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [scales])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


def column(side, batch=2):
    """Every row has its own number, so that the result says which row was taken."""
    return np.arange(batch * side, dtype=np.float32).reshape(batch, 1, side, 1)


def tensorflow_nearest(x, wanted):
    """The kernel behind UpSampling2D and Resizing(interpolation="nearest")."""
    operator = load_tensorflow().raw_ops.ResizeNearestNeighbor
    nhwc = operator(images=x.transpose(0, 2, 3, 1), size=[wanted, 1], half_pixel_centers=True)
    return nhwc.numpy().transpose(0, 3, 1, 2)


def mended(side, wanted):
    model = resize_model(side, wanted)
    assert make_resize_exact(model) == 1
    give_exact_sizes(model)
    onnx.checker.check_model(model, full_check=True)
    return model


@functools.cache
def borders(side, wanted):
    """Rows of the result whose centre lies exactly on the border of two source rows; integer arithmetic."""
    return np.array([(2 * row + 1) * side % (2 * wanted) == 0 for row in range(wanted)])


@given(SIDES, st.integers(1, 8))
def test_a_whole_factor_takes_the_same_pixels_as_tensorflow(side, factor):
    x = column(side)
    np.testing.assert_array_equal(run(mended(side, side * factor), x), tensorflow_nearest(x, side * factor))


@given(SIDES, SIDES)
def test_any_pair_of_sizes_takes_the_same_pixels_as_tensorflow_where_one_pixel_is_nearest(side, wanted):
    # on a border both neighbours are equally near, and float32 rounding decides, in TensorFlow too
    x = column(side)
    found, expected = run(mended(side, wanted), x), tensorflow_nearest(x, wanted)
    assert found.shape == expected.shape
    clear = ~borders(side, wanted)
    np.testing.assert_array_equal(found[:, :, clear], expected[:, :, clear])
    assert np.abs(found - expected).max() <= 1  # on a border: the one or the other neighbour


@pytest.mark.parametrize(("side", "wanted"), [(8, 4), (64, 32), (64, 16), (96, 12)])
def test_on_a_border_that_float32_holds_exactly_the_later_pixel_is_taken_as_in_tensorflow(side, wanted):
    assert borders(side, wanted).all()
    x = column(side)
    np.testing.assert_array_equal(run(mended(side, wanted), x), tensorflow_nearest(x, wanted))


@pytest.mark.parametrize(("side", "wanted"), [(7, 31), (11, 13)])
def test_without_the_sizes_a_row_is_lost(side, wanted):
    # what makes the module necessary: float32(31 / 7) * 7 is less than 31
    model = resize_model(side, wanted)
    make_resize_exact(model)
    assert run(model, column(side)).shape[2] == wanted - 1
    assert give_exact_sizes(model) == 1
    assert run(model, column(side)).shape[2] == wanted


@given(SIDES, SIDES)
def test_linear_resize_has_tensorflow_s_size_and_values(side, wanted):
    model = resize_model(side, wanted, mode="linear")
    give_exact_sizes(model)
    x = column(side, batch=1)
    tf = load_tensorflow()
    expected = tf.image.resize(x.transpose(0, 2, 3, 1), (wanted, 1), method="bilinear").numpy().transpose(0, 3, 1, 2)
    # values up to 95; the weights are differences of float32 coordinates up to 96: 96 * 2**-23 each, times a step of 1
    np.testing.assert_allclose(run(model, x), expected, atol=1e-4)


def test_whole_scales_and_old_opsets_are_left_alone():
    assert give_exact_sizes(resize_model(32, 64)) == 0
    assert give_exact_sizes(resize_model(32, 80)) == 0  # 2.5 has no rounding
    assert give_exact_sizes(resize_model(7, 31, opset=13)) == 0


def test_an_unknown_side_is_left_alone():
    model = resize_model(7, 31)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "rows"
    assert give_exact_sizes(model) == 0


def test_two_resizes_in_a_row_both_get_their_sizes():
    # the second one's input is only known after the first is mended: 7 to 31 to 53
    model = resize_model(7, 31)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 53 / 31, 1], np.float32), "more"))
    second = helper.make_node("Resize", ["y", "", "more"], ["z"], "second", mode="nearest")
    model.graph.node.append(second)
    model.graph.output[0].name = "z"
    assert give_exact_sizes(model) >= 1
    assert run(model, column(7)).shape == (2, 1, 53, 1)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_a_keras_resizing_by_an_odd_scale_converts_exactly(tmp_path, interpolation):
    keras = load_keras()
    image = keras.Input((7, 11, 3))
    output = keras.layers.Resizing(31, 13, interpolation=interpolation)(image)
    path = keras_to_onnx(keras.Model(image, output), tmp_path / "resize.onnx", progress=False)
    x = np.random.default_rng(0).random((2, 7, 11, 3), np.float32)
    expected = tf_resize(x, (31, 13), interpolation)
    found = onnxruntime.InferenceSession(path).run(None, {"input": x})[0]
    # nearest copies pixels; bilinear weighs values in 0..1 with float32 coordinates up to 31, so 31 * 2**-23 each
    np.testing.assert_allclose(found, expected, atol=0 if interpolation == "nearest" else 1e-5)


def tf_resize(x, size, interpolation):
    return load_tensorflow().image.resize(x, size, method=interpolation).numpy()
