"""A small Keras network with the two layers of `custom_layers`, and its ONNX file with and without custom nodes."""

import functools

import numpy as np
import onnx
from conversions import convert_here

from workbench.core.packages import load_keras
from workbench.onnx_graph.custom import mark_custom_layer

SIZE = (16, 24)


@functools.cache
def layers():
    """The Keras forms of hard_mish and warp."""
    keras = load_keras()
    ops = keras.ops

    class HardMish(keras.layers.Layer):
        def build(self, shape):
            self.gain = self.add_weight(name="gain", shape=(shape[-1],), initializer="ones")

        def call(self, x):
            return 0.5 * x * ops.clip(x + 2.0, 0.0, 2.0) * self.gain

    class Warp(keras.layers.Layer):
        def call(self, image, flow):
            height, width, channels = image.shape[1:]
            # reshaped first: else the exporter moves its Transposes past here, and the node reads N C H W
            flat, flow = ops.reshape(image, (-1, height * width, channels)), ops.reshape(flow, (-1, height * width, 2))
            place = np.indices((height, width), "float32").reshape(2, height * width)
            row = ops.clip(place[0] + flow[..., 0], 0, height - 1)
            column = ops.clip(place[1] + flow[..., 1], 0, width - 1)
            top, left = ops.floor(row), ops.floor(column)
            down, right = (row - top)[..., None], (column - left)[..., None]

            def at(rows, columns):
                index = ops.minimum(rows, height - 1) * width + ops.minimum(columns, width - 1)
                return ops.take_along_axis(flat, ops.cast(index, "int32")[..., None], axis=1)

            upper = at(top, left) * (1 - right) + at(top, left + 1) * right
            lower = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
            return ops.reshape(upper * (1 - down) + lower * down, (-1, height, width, channels))

        def compute_output_shape(self, image_shape, flow_shape):
            return image_shape

    return HardMish, Warp


@functools.cache
def custom_network():
    """A picture of 16 x 24 through both layers; `HardMish` once among convolutions and once after the `Warp`."""
    keras = load_keras()
    hard_mish_layer, warp_layer = layers()
    keras.utils.set_random_seed(6)
    picture = keras.Input((*SIZE, 3), name="picture")
    x = keras.layers.Conv2D(4, 3, padding="same", name="stem")(picture)
    x = hard_mish_layer(name="mish")(x)
    flow = keras.layers.Conv2D(2, 3, padding="same", name="flow")(x)
    x = hard_mish_layer(name="second")(warp_layer(name="warp")(x, flow))
    model = keras.Model(picture, keras.layers.Conv2D(5, 3, padding="same", name="head")(x), name="net")
    for name in ("mish", "second"):
        model.get_layer(name).gain.assign(np.linspace(0.5, 1.5, 4))
    return model


def mark_all(source, folder):
    """The file with a custom node for each of the three layers."""
    steps = [source, *(folder / f"marked_{index}.onnx" for index in range(3))]
    for index, (layer, name) in enumerate((("mish", "HardMish"), ("second", "HardMish"), ("warp", "Warp"))):
        mark_custom_layer(steps[index], steps[index + 1], layer=layer, name=name)
    return steps[-1]


def save_plain(folder):
    """The network as it is exported, in ordinary nodes."""
    onnx.save(convert_here(custom_network()), folder / "net.onnx")
    return folder / "net.onnx"


def save_bare(marked):
    """A marked file without its functions."""
    model = onnx.load(marked)
    del model.functions[:]
    onnx.save(model, marked.parent / "bare.onnx")
    return marked.parent / "bare.onnx"


def pictures(seed=0, batch=2):
    return np.random.default_rng(seed).standard_normal((batch, *SIZE, 3)).astype(np.float32)
