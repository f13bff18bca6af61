"""Small networks, each with one thing that exporters get wrong or refuse."""

import contextlib

import keras
import numpy as np
import pytest
from conversions import randomise
from networks import random_input

from workbench.core.packages import load_tensorflow

layers = keras.layers


def resizing(kind, size, **options):
    """Convolutions around a Resizing of an 8 x 12 picture; weights at random, so that each pixel counts."""
    image = keras.Input((8, 12, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    x = layers.Resizing(*size, interpolation=kind, name="shrink", **options)(x)
    return randomise(keras.Model(image, layers.Conv2D(2, 3, padding="same")(x)))


def argmax(operation=keras.ops.argmax):
    """Class numbers as the answer, computed by an operation that is no layer."""
    image = keras.Input((8, 12, 3))
    return randomise(keras.Model(image, operation(layers.Conv2D(4, 3, name="scores")(image), axis=-1)))


def dicts():
    """Dicts in and out, in another order than the layers were made; inputs with names of their own."""
    right, left = keras.Input((8,), name="right"), keras.Input((8,), name="left")
    dog = layers.Dense(3, name="first")(right)
    cat = layers.Dense(2, name="second")(layers.Concatenate()([left, right]))
    return randomise(keras.Model({"right": right, "left": left}, {"dog": dog, "cat": cat}))


@contextlib.contextmanager
def policy(name):
    """Build layers in a mixed precision; afterwards it is float32 again."""
    keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy("float32")


def mixed(name, last="float32"):
    """A small residual classifier under a policy of mixed precision; its last layer computes in `last`."""
    with policy(name):
        image = keras.Input((8, 12, 3))
        x = layers.Conv2D(4, 3, padding="same", activation="relu")(image)
        x = layers.BatchNormalization(name="norm")(x)
        x = layers.Add()([x, layers.Conv2D(4, 1)(x)])
        x = layers.GlobalAveragePooling2D(name="pool")(x)
        return randomise(keras.Model(image, layers.Dense(5, dtype=last, name="end")(x)))


def mixed_upsampling(name):
    """What TensorFlow computes in float32 inside of a mixed policy: resizes, a softmax and the cells of loops."""
    with policy(name):
        image = keras.Input((6, 8, 3))
        x = layers.UpSampling2D(2, interpolation="bilinear")(layers.Conv2D(4, 3, activation="gelu")(image))
        x = layers.Resizing(5, 7, interpolation="area")(layers.LayerNormalization()(x))
        x = layers.GRU(5)(layers.LSTM(4, return_sequences=True)(layers.Reshape((-1, 4))(x)))
        return randomise(keras.Model(image, layers.Dense(6, activation="softmax", dtype="float32")(x)))


def quantised(kind="int8"):
    """Dense layers on rows of numbers, quantised by Keras."""
    rows = keras.Input((6, 16))
    x = layers.EinsumDense("abc,cd->abd", output_shape=(None, 24), bias_axes="d", activation="relu")(rows)
    model = randomise(keras.Model(rows, layers.Dense(5)(layers.Dense(12, activation="gelu")(x))))
    model.quantize(kind)
    return model


def words():
    """Whole numbers in: an embedding and a Dense."""
    tokens = keras.Input((6,), dtype="int32")
    return randomise(keras.Model(tokens, layers.Dense(3)(layers.Flatten()(layers.Embedding(9, 4)(tokens)))))


def quantised_words():
    """The same, quantised by Keras."""
    model = words()
    model.quantize("int8")
    return model


def feed(model, batch=2):
    """Random inputs in the order of `named_tensors`; whole numbers below 9."""
    tensors = sorted(model.inputs, key=lambda tensor: tensor.name)
    shapes = [(batch, *tensor.shape[1:]) for tensor in tensors]
    numbers = np.random.default_rng(1)
    return [
        random_input(shape, index) if "float" in tensor.dtype else numbers.integers(0, 9, shape, dtype=tensor.dtype)
        for index, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True))
    ]


def require_bfloat16():
    """Skip where TensorFlow has no convolution of bfloat16 for this processor: without AVX-512 oneDNN has none."""
    tf = load_tensorflow()
    try:
        tf.nn.conv2d(tf.zeros((1, 8, 8, 3), tf.bfloat16), tf.zeros((3, 3, 3, 4), tf.bfloat16), 1, "SAME")
    except tf.errors.OpError:
        pytest.skip("TensorFlow does not compute bfloat16 on this processor")
