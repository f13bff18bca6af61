"""What a frozen model keeps: inference mode, the names of its ends, and sizes that fit."""

from types import SimpleNamespace

import numpy as np
import pytest

from workbench.core.errors import ExportError
from workbench.core.packages import load_keras, load_tensorflow
from workbench.models.freezing import fixed_shape, freeze, tensor_names


def run(frozen, feed):
    """TensorFlow's own answer of a frozen graph."""
    tf = load_tensorflow().compat.v1
    with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
        tf.import_graph_def(frozen.graph_def, name="")
        names = {f"{name}:0": array for name, array in feed.items()}
        return session.run([f"{name}:0" for name in frozen.outputs], names)


def test_a_model_is_frozen_for_use_without_dropout_and_with_the_learnt_averages():
    layers = load_keras().layers
    given = layers.Input((6,))
    model = load_keras().Model(given, layers.Dropout(0.5)(layers.BatchNormalization()(given)))
    scale, offset, mean, variance = (np.random.default_rng(0).random((4, 6)) + 0.5).astype(np.float32)
    model.set_weights([scale, offset, mean, variance])
    x = np.random.default_rng(1).standard_normal((3, 6)).astype(np.float32)
    expected = scale * (x - mean) / np.sqrt(variance + 1e-3) + offset  # Keras' epsilon
    # a handful of float32 operations on numbers around 1
    np.testing.assert_allclose(run(freeze(model), {"input": x})[0], expected, rtol=1e-5, atol=1e-6)


def test_a_tensor_that_a_layer_takes_from_around_it_becomes_a_constant():
    layers, numbers = load_keras().layers, np.random.default_rng(2).random(500, np.float32)
    around = load_tensorflow().constant(numbers)  # too large to be written into the graph when it is traced
    given = layers.Input((500,))
    model = load_keras().Model(given, layers.Lambda(lambda x: x * around)(given))
    x = np.ones((1, 500), np.float32)
    np.testing.assert_array_equal(run(freeze(model), {"input": x})[0], numbers[None])


@pytest.mark.parametrize(
    ("shape", "spatial", "expected"),
    [
        ((None, None, None, 3), (8, 9), [None, 8, 9, 3]),
        ((None, 3, None, None), (8, 9), [None, 3, 8, 9]),
        ((None, 8, 9, 3), (8, 9), [None, 8, 9, 3]),
        ((None, 3, 8, 9), (8, 9), [None, 3, 8, 9]),
        ((None, 3, 8, 9), None, [None, 3, 8, 9]),
        ((2, None), (8, 9), [2, None]),
    ],
)
def test_a_size_fills_what_a_picture_leaves_open(shape, spatial, expected):
    assert fixed_shape("x", shape, spatial) == expected


@pytest.mark.parametrize(
    ("shape", "spatial", "message"),
    [
        ((None, None, None, 3), None, "height and width are open; give spatial="),
        ((None, None, 9, 3), (8, 9), "both open or both fixed"),
        ((None, 8, 9, 3), (9, 8), r"is fixed to \(None, 8, 9, 3\), got spatial=\(9, 8\)"),
    ],
)
def test_a_size_that_does_not_fit_is_refused(shape, spatial, message):
    with pytest.raises(ExportError, match=message):
        fixed_shape("x", shape, spatial)


def test_several_ends_keep_their_names_in_letters_that_all_take_and_none_twice():
    names = ("left/picture:0", "left picture", "mask")
    inputs = [SimpleNamespace(name=name) for name in names]
    model = SimpleNamespace(inputs=inputs, output_names=["y"], outputs=[SimpleNamespace(name="y")])
    assert tensor_names(model) == (("left_picture", "left_picture_1", "mask"), ("output",))
