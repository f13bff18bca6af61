"""Small networks for the tests, built once."""

import functools

import numpy as np

from workbench.core.packages import load_keras


@functools.cache
def small_network():
    """A channel-first picture network with a dynamic batch: (3, 32, 64) in, (20, 32, 64) out, calibrated at random."""
    from workbench.models import fcn_vgg16

    keras = load_keras()
    keras.utils.set_random_seed(3)
    return fcn_vgg16.build(keras, input_size=(32, 64), width=0.0625, fc_width=16)


@functools.cache
def two_input_network():
    """Two vectors in, a sum and a product out."""
    keras = load_keras()
    keras.utils.set_random_seed(4)
    left, right = keras.Input((8,), name="left"), keras.Input((8,), name="right")
    total = keras.layers.Dense(4, name="total")(keras.layers.Add()([left, right]))
    product = keras.layers.Dense(3, name="product")(keras.layers.Multiply()([left, right]))
    return keras.Model([left, right], [total, product], name="two_inputs")


@functools.cache
def upsampling_network():
    """A network with an open height and width, and a Resize by an odd factor, where exporters go wrong."""
    keras = load_keras()
    keras.utils.set_random_seed(5)
    image = keras.Input((None, None, 3), name="image")
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(image)
    x = keras.layers.Resizing(45, 61, interpolation="nearest")(x)
    return keras.Model(image, keras.layers.Conv2D(2, 3, padding="same")(x), name="upsampling")


def random_input(shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)
