"""The semantic segmentation network of the tutorial: FCN-8s on a VGG16 encoder, channel-first at the edges."""

import os
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.models.weights import load_weights

STRIDE = 32
CLASSES = 20
DEMONSTRATION_WIDTH = 0.25
DEMONSTRATION_FC_WIDTH = 256
DEMONSTRATION_WEIGHTS = Path(__file__).resolve().parents[2] / "data" / "fcn_vgg16_street_scenes.npz"

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def padded_size(height: int, width: int) -> tuple[int, int]:
    """Return the smallest height and width, in pixels, that hold the image and divide by the network's stride.

    >>> padded_size(360, 480)
    (384, 480)
    """
    return -(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE


def build(
    keras: Any,
    *,
    input_size: tuple[int, int] = (512, 1024),
    width: float = 1.0,
    fc_width: int = 4096,
    classes: int = CLASSES,
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> Any:
    """Build FCN-8s: 3 x H x W image in, `classes` x H x W logits out.

    The network computes in NHWC, where Keras is fast on a CPU; a Permute after the input and
    one before the output give it the tutorial's NCHW interface. Both cancel when it becomes ONNX.

    Args:
        keras: the Keras module to build with (`keras` or `tf_keras`).
        input_size: image height and width in pixels, each divisible by 32.
        width: multiplier on VGG16's channels; 1.0 is the original network (134.5 M parameters).
        fc_width: channels of fc6 and fc7; 4096 in the original.
        classes: output channels; 20 are Cityscapes' 19 classes and void.
        batch_norm: add a batch normalisation after each convolution, for training only.
        dropout: dropout rate before the score layer, for training only.
    Returns:
        A Keras model, input `input` (batch, 3, H, W) float32, RGB with `CITYSCAPES_MEAN` subtracted;
        output `output` (batch, classes, H, W) float32 logits.
    Raises:
        InputError: H or W does not divide by 32; the message names the padded size.
    Source:
        Long, Shelhamer, Darrell: Fully convolutional networks for semantic segmentation, CVPR 2015.
        Simonyan, Zisserman: Very deep convolutional networks, ICLR 2015 (configuration D).
    """
    _check_size(input_size)
    layers = keras.layers
    image = keras.Input((3, *input_size), name="input")
    x = layers.Permute((2, 3, 1), name="to_nhwc")(image)
    pools = []
    for block, (channels, repeats) in enumerate(_BLOCKS, start=1):
        for index in range(1, repeats + 1):
            x = _convolution(layers, x, int(channels * width), 3, f"block{block}_conv{index}", batch_norm)
        x = layers.MaxPooling2D(2, name=f"block{block}_pool")(x)
        pools.append(x)
    x = _convolution(layers, x, fc_width, 7, "fc6", batch_norm)
    x = _convolution(layers, x, fc_width, 1, "fc7", batch_norm)
    if dropout:
        x = layers.Dropout(dropout, name="dropout")(x)
    logits = _decode(layers, x, pools[3], pools[2], classes)
    return keras.Model(image, layers.Permute((3, 1, 2), name="output")(logits), name="fcn_vgg16")


def demonstration_model(
    keras: Any,
    input_size: tuple[int, int] = (512, 1024),
    weights: str | os.PathLike[str] = DEMONSTRATION_WEIGHTS,
) -> Any:
    """Build the narrow network (width 0.25) with the committed weights trained on generated street scenes.

    Args:
        keras: the Keras module to build with.
        input_size: image height and width in pixels, each divisible by 32.
        weights: an `.npz` file of the same network.
    Returns:
        The model of `build`, ready to run.
    Raises:
        ModelError: the weights are missing, damaged or of another network.
    """
    model = build(keras, input_size=input_size, width=DEMONSTRATION_WIDTH, fc_width=DEMONSTRATION_FC_WIDTH)
    load_weights(model, weights)
    return model


def _decode(layers: Any, x: Any, pool4: Any, pool3: Any, classes: int) -> Any:
    """Score three depths and add them on the way up: strides 32, 16 and 8."""
    x = layers.Conv2D(classes, 1, name="score_fc7")(x)
    x = layers.Conv2DTranspose(classes, 4, 2, "same", name="upscore2")(x)
    x = layers.Add(name="fuse_pool4")([x, layers.Conv2D(classes, 1, name="score_pool4")(pool4)])
    x = layers.Conv2DTranspose(classes, 4, 2, "same", name="upscore4")(x)
    x = layers.Add(name="fuse_pool3")([x, layers.Conv2D(classes, 1, name="score_pool3")(pool3)])
    return layers.Conv2DTranspose(classes, 16, 8, "same", name="upscore8")(x)


def _convolution(layers: Any, x: Any, channels: int, kernel: int, name: str, batch_norm: bool) -> Any:
    if not batch_norm:
        return layers.Conv2D(channels, kernel, padding="same", activation="relu", name=name)(x)
    x = layers.Conv2D(channels, kernel, padding="same", name=name)(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.Activation("relu", name=f"{name}_relu")(x)


def _check_size(input_size: tuple[int, int]) -> None:
    height, width = input_size
    if height < STRIDE or width < STRIDE or height % STRIDE or width % STRIDE:
        good = padded_size(max(height, 1), max(width, 1))
        raise InputError(
            f"got an input of {height} x {width} pixels (height x width), but both must divide by {STRIDE}; "
            f"pad or rescale the image to {good[0]} x {good[1]}"
        )
