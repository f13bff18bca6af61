"""FCN-8s on VGG16, the segmentation network of the tutorial, and its weights, also from a Keras 2 HDF5 file.

Such a file, like the tutorial's `semantic_segmentation.hdf5`, is read as arrays; no code in it runs. It may be
`channels_first`: Keras stores a kernel as (height, width, in, out), and a transposed one as (height, width, out, in),
for either layout of the image, so no number moves. Only names differ, and layers are told apart by their kernels:

| kernel in the file | layer here |
|---|---|
| 3 x 3, thirteen of them, in the file's order | `block1_conv1` ... `block5_conv3` (2, 2, 3, 3, 3) |
| 7 x 7 | `fc6` |
| 1 x 1, the first of four | `fc7` |
| 1 x 1, from as many channels as fc7, block 4 and block 3 give | `score_fc7`, `score_pool4`, `score_pool3` |
| 4 x 4 transposed, two of them | `upscore2`, `upscore4` |
| 16 x 16 transposed | `upscore8` |

A layer without a bias gets one of zeros. A softmax at the end of the file's network is left out: the output here is
logits, whose largest channel is the same. Where the file holds the network's description, its layers, strides, padding
and activations must be those of this network. The real file was never at hand: this mapping was tested on a
channels_first stand-in of the same structure (`tests/models/test_keras_hdf5.py`), not on the file itself.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.contract import Runner
from workbench.core.errors import InputError, ModelError
from workbench.core.files import data_file
from workbench.core.packages import require_backend
from workbench.models.untrusted import UNREADABLE, check_hdf5, read_json
from workbench.models.weights import assign_weights, read_weights
from workbench.pictures.cityscapes import argmax_classes
from workbench.pictures.images import rescale_image, sub_mean_chw

STRIDE = 32
CLASSES = 20
STREET_SIZE = (512, 1024)
DEMONSTRATION_WIDTH = 0.25
DEMONSTRATION_FC_WIDTH = 256

WEIGHTS = {"street-scenes": "fcn_vgg16_street_scenes.npz", "camvid": "fcn_vgg16_camvid.npz"}
"""Committed weights by name: trained on generated scenes only, and on CamVid's photographs."""

HDF5_SUFFIXES = (".h5", ".hdf5")

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_VGG_NAMES = [
    f"block{block}_conv{index}"
    for block, (_, repeats) in enumerate(_BLOCKS, start=1)
    for index in range(1, repeats + 1)
]
_EXPECTED = {3: len(_VGG_NAMES), 7: 1, 1: 4, 4: 2, 16: 1}
_CLASSES = {"Activation", "Add", "Conv2D", "Conv2DTranspose", "Dropout", "InputLayer", "MaxPooling2D"}
_CLASSES |= {"Permute", "ReLU", "Softmax", "SpatialDropout2D"}
_SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {  # the values that they may have, the usual one first
    "Conv2D": {"padding": ("same",), "strides": (1,), "dilation_rate": (1,), "activation": ("relu", "linear")},
    "Conv2DTranspose": {"padding": ("same",), "activation": ("linear", "softmax")},
    "MaxPooling2D": {"pool_size": (2,), "strides": (2,)},
    "Activation": {"activation": ("relu", "softmax", "linear")},
}
_NESTED = {"Functional", "Model", "Sequential"}

Layer = tuple[np.ndarray, np.ndarray | None]


def padded_size(height: int, width: int) -> tuple[int, int]:
    """Return the smallest (height, width) in pixels that hold the image and divide by the network's stride of 32.

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
    """Build FCN-8s with random weights: a 3 x H x W image in, `classes` x H x W logits out.

    `input` is (batch, 3, H, W) float32, RGB with `CITYSCAPES_MEAN` subtracted, and `output` (batch, classes, H, W)
    float32; InputError where H or W, in pixels, does not divide by 32. Inside it is NHWC, where Keras is fast on a CPU;
    the Permutes that give it the tutorial's NCHW interface cancel when it becomes ONNX. `width` multiplies VGG16's
    channels: 1.0 is the original (134.5 M parameters), as are 4096 channels (`fc_width`) of fc6 and fc7. The 20 classes
    are Cityscapes' 19 and void; `batch_norm` after each convolution and `dropout` (its rate) before the scores are for
    training only.

    Source: Long, Shelhamer, Darrell: Fully convolutional networks for semantic segmentation, CVPR 2015.
        Simonyan, Zisserman: Very deep convolutional networks, ICLR 2015 (configuration D).
    """
    good = padded_size(max(input_size[0], 1), max(input_size[1], 1))
    if good != tuple(input_size):
        raise InputError(
            f"got an input of {input_size[0]} x {input_size[1]} pixels (height x width), but both must divide by "
            f"{STRIDE}; pad or rescale the image to {good[0]} x {good[1]}"
        )
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
    x = layers.Conv2D(classes, 1, name="score_fc7")(x)
    for factor, pool in ((2, 4), (4, 3)):  # scores of three depths are added on the way up: strides 32, 16 and 8
        x = layers.Conv2DTranspose(classes, 4, 2, "same", name=f"upscore{factor}")(x)
        score = layers.Conv2D(classes, 1, name=f"score_pool{pool}")(pools[pool - 1])
        x = layers.Add(name=f"fuse_pool{pool}")([x, score])
    x = layers.Conv2DTranspose(classes, 16, 8, "same", name="upscore8")(x)
    return keras.Model(image, layers.Permute((3, 1, 2), name="output")(x), name="fcn_vgg16")


def weights_path(weights: str | os.PathLike[str] = "street-scenes") -> Path:
    """Find a weights file by its name of `WEIGHTS` or its path; ModelError, or InputError, where it is not here."""
    name = os.fspath(weights)
    if name in WEIGHTS:
        return data_file(WEIGHTS[name])
    if Path(name).is_file():
        return Path(name)
    raise ModelError(f"got weights {name!r}, expected {', '.join(WEIGHTS)}, or the path of an .npz or .hdf5 file")


def demonstration_model(
    keras: Any, input_size: tuple[int, int] = STREET_SIZE, weights: str | os.PathLike[str] = "street-scenes"
) -> Any:
    """Build the network with trained weights, as wide as they are; those committed have width 0.25.

    The weights are `"street-scenes"`, `"camvid"`, or the path of an `.npz` file of `save_weights` or of a Keras HDF5
    file, such as the tutorial's, on which the mapping above was never tried. ModelError where they are missing, damaged
    or of another network; InputError where a side of `input_size`, (height, width) in pixels, does not divide by 32.
    """
    path = weights_path(weights)
    arrays = (read_fcn_weights if path.suffix.lower() in HDF5_SUFFIXES else read_weights)(path)
    try:
        first, fc6, last = (arrays[f"{name}/kernel"].shape for name in ("block1_conv1", "fc6", "upscore8"))
        widths = {"width": first[3] / _BLOCKS[0][0], "fc_width": fc6[3], "classes": last[2]}
    except (KeyError, IndexError) as error:
        raise ModelError(f"{path} is for another network ({error} is odd); give weights of fcn_vgg16") from error
    model = build(keras, input_size=input_size, **widths)
    assign_weights(model, arrays, path)
    return model


def _convolution(layers: Any, x: Any, channels: int, kernel: int, name: str, batch_norm: bool) -> Any:
    if not batch_norm:
        return layers.Conv2D(channels, kernel, padding="same", activation="relu", name=name)(x)
    x = layers.Conv2D(channels, kernel, padding="same", name=name)(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.Activation("relu", name=f"{name}_relu")(x)


def segmentation_answer(runner: Runner, image: np.ndarray) -> np.ndarray:
    """Go from an (H, W, 3) uint8 RGB picture to its (h, w) uint8 train ids (19 is void), at the network's size.

    It is rescaled, the mean subtracted; the largest of the logits of an open network, channel-first, is the class.
    """
    size = (runner.inputs["input"].shape[2] or 0, runner.inputs["input"].shape[3] or 0)
    return argmax_classes(runner.infer({"input": street_input(image, size)})["output"][0])


def street_input(image: np.ndarray, size: tuple[int, int] = STREET_SIZE) -> np.ndarray:
    """Turn an (H, W, 3) uint8 RGB picture into (1, 3, h, w) float32 of that size in pixels, the mean subtracted."""
    resized = image if image.shape[:2] == size else rescale_image(image, (*size, 3))
    return np.ascontiguousarray(sub_mean_chw(resized.transpose(2, 0, 1))[None])


def read_fcn_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read FCN-8s from a Keras HDF5 file, whole model or weights only: float32 arrays, named as `build` names them.

    ModelError where the file is missing or damaged, or holds another network.
    """
    h5py = require_backend("h5py", "keras")
    if not Path(path).is_file():
        raise ModelError(f"the weights {path} do not exist; give the path of an .hdf5 file")
    check_hdf5(Path(path))
    try:
        with h5py.File(path, "r") as file:
            layers = _read_layers(file.get("model_weights", file))
            problem = _find_other_layer(file.attrs.get("model_config"))
    except (*UNREADABLE, AttributeError) as error:
        raise ModelError(f"{path} is not a Keras HDF5 file that can be read ({error}); copy it again") from error
    problem = problem or _find_other_kernels([kernel for kernel, _ in layers])
    if problem:
        raise ModelError(
            f"{path} is not the network of the tutorial: {problem}; "
            "load it with keras.saving.load_model and pass the model object"
        )
    arrays = {}
    for name, (kernel, bias) in _name_layers(path, layers):
        channels = kernel.shape[2] if name.startswith("upscore") else kernel.shape[3]
        arrays[f"{name}/kernel"] = kernel
        arrays[f"{name}/bias"] = np.zeros(channels, np.float32) if bias is None else bias
    return arrays


def _read_layers(group: Any) -> list[Layer]:
    """Read kernel and bias of each layer that has weights, in the file's order, also from nested models."""
    layers: list[Layer] = []
    for layer in group.attrs["layer_names"]:
        stored = group[layer]
        for weight in stored.attrs["weight_names"]:
            weight = weight.decode() if isinstance(weight, bytes) else weight
            array = np.asarray(stored[weight], np.float32)
            if weight.rsplit("/", 1)[-1].removesuffix(":0") == "bias" and layers and layers[-1][1] is None:
                layers[-1] = (layers[-1][0], array)
            else:
                layers.append((array, None))
    return layers


def _find_other_layer(config: bytes | str | None) -> str | None:
    """Say what in the network's description the network here does not have; None when all is well."""
    for layer in _described_layers(read_json(config)) if config is not None else ():
        kind, settings = layer["class_name"], layer["config"]
        if kind not in _CLASSES:
            return f"it has a layer {kind} ({settings.get('name')})"
        allowed = dict(_SETTINGS.get(kind, {}))
        if kind == "Conv2DTranspose":
            allowed["strides"] = (settings["kernel_size"][0] // 2,)
        for setting, good in allowed.items():
            got = settings.get(setting, good[0])
            got = got[0] if isinstance(got, list) and len(set(got)) == 1 else got
            if got not in good:
                return f"{settings.get('name')} has {setting} {got!r}, not {good[0]!r}"
    return None


def _described_layers(model: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for layer in model["config"] if isinstance(model["config"], list) else model["config"]["layers"]:
        yield from _described_layers(layer) if layer["class_name"] in _NESTED else (layer,)


def _find_other_kernels(kernels: list[np.ndarray]) -> str | None:
    """Say which kernels the network here does not have; None when the sizes are those of the table."""
    odd = [kernel.shape for kernel in kernels if kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1]]
    if odd:
        return f"it has weights of shape {odd[0]}, which no convolution here has"
    counts = Counter(kernel.shape[0] for kernel in kernels)
    if counts == _EXPECTED:
        return None
    got, expected = (", ".join(f"{n} of {k} x {k}" for k, n in sorted(c.items())) for c in (counts, _EXPECTED))
    return f"it has {got or 'no'} kernels, expected {expected}"


def _name_layers(path: str | os.PathLike[str], layers: list[Layer]) -> Iterator[tuple[str, Layer]]:
    """Give each layer its name here; `_find_other_kernels` has counted them."""
    sizes = {size: [layer for layer in layers if layer[0].shape[0] == size] for size in _EXPECTED}
    yield from zip(_VGG_NAMES, sizes[3], strict=True)
    yield "fc6", sizes[7][0]
    yield "fc7", sizes[1][0]
    scores = sizes[1][1:]
    for name, source in (("score_fc7", sizes[1][0]), ("score_pool4", sizes[3][9]), ("score_pool3", sizes[3][6])):
        channels = source[0].shape[-1]
        found = next((index for index, layer in enumerate(scores) if layer[0].shape[2] == channels), None)
        if found is None:
            raise ModelError(f"{path} has no 1 x 1 kernel from {channels} channels, which {name} needs")
        yield name, scores.pop(found)
    yield from zip(("upscore2", "upscore4"), sizes[4], strict=True)
    yield "upscore8", sizes[16][0]
