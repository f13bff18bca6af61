"""The semantic segmentation network of the tutorial: FCN-8s on a VGG16 encoder, channel-first at the edges."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import InputError, ModelError
from workbench.models.keras_hdf5 import HDF5_SUFFIXES, read_fcn_weights
from workbench.models.weights import assign_weights, read_weights

STRIDE = 32
CLASSES = 20
DEMONSTRATION_WIDTH = 0.25
DEMONSTRATION_FC_WIDTH = 256

_DATA = Path(__file__).resolve().parents[2] / "data"
DEMONSTRATION_WEIGHTS = _DATA / "fcn_vgg16_street_scenes.npz"
WEIGHTS = {"street-scenes": DEMONSTRATION_WEIGHTS, "camvid": _DATA / "fcn_vgg16_camvid.npz"}
"""Committed weights by name: trained on generated scenes only, and on CamVid's photographs."""

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


def weights_path(weights: str | os.PathLike[str] = "street-scenes") -> Path:
    """Find a weights file by name or path.

    Args:
        weights: "street-scenes", "camvid", or the path of an `.npz` or Keras HDF5 file.
    Returns:
        The path of a file that exists.
    Raises:
        ModelError: there is no such file.
    """
    name = os.fspath(weights)
    path = WEIGHTS.get(name, Path(name))
    if path.is_file():
        return path
    if name in WEIGHTS:
        raise ModelError(f"the weights {name!r} are not here: {path} is missing; data/README.md says how to make it")
    raise ModelError(f"got weights {name!r}, expected {', '.join(WEIGHTS)}, or the path of an .npz or .hdf5 file")


def demonstration_model(
    keras: Any,
    input_size: tuple[int, int] = (512, 1024),
    weights: str | os.PathLike[str] = "street-scenes",
) -> Any:
    """Build the network with trained weights, as wide as they are; those committed have width 0.25.

    Args:
        keras: the Keras module to build with.
        input_size: image height and width in pixels, each divisible by 32.
        weights: "street-scenes", "camvid", or the path of an `.npz` file of `save_weights`, or of a
            Keras HDF5 file, such as the tutorial's `semantic_segmentation.hdf5`:
            `workbench.models.keras_hdf5` has the mapping, which was never tried on that file itself.
    Returns:
        The model of `build`, ready to run.
    Raises:
        ModelError: the weights are missing, damaged or of another network.
        InputError: H or W does not divide by 32.
    """
    path = weights_path(weights)
    read = read_fcn_weights if path.suffix.lower() in HDF5_SUFFIXES else read_weights
    arrays = read(path)
    model = build(keras, input_size=input_size, **_widths(arrays, path))
    assign_weights(model, arrays, path)
    return model


def _widths(arrays: dict[str, np.ndarray], path: Path) -> dict[str, Any]:
    """Read off how wide `build` must make the network for these weights."""
    try:
        first, fc6, last = (arrays[f"{name}/kernel"].shape for name in ("block1_conv1", "fc6", "upscore8"))
        return {"width": first[3] / _BLOCKS[0][0], "fc_width": fc6[3], "classes": last[2]}
    except (KeyError, IndexError) as error:
        raise ModelError(f"{path} is for another network ({error} is odd); give weights of fcn_vgg16") from error


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
