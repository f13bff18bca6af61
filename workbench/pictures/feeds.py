"""Inputs for a network of which only names, shapes and dtypes are known: pictures where it takes pictures."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from workbench.core.contract import TensorSpec
from workbench.core.errors import InputError
from workbench.core.files import data_file
from workbench.pictures.images import (
    IMAGENET_MEAN_BGR,
    list_images,
    load_image,
    photographs,
    rescale_image,
    sub_mean_chw,
)

PREPROCESSINGS = ("unit", "raw", "cityscapes", "imagenet")
SCENES = ("scene_1000025", "scene_1000014")
"""Two of the scenes in `data/street_scenes`: one in the sun, one at dusk."""

RANDOM_FEEDS, OPEN_SIZE = 4, 16

Feed = dict[str, np.ndarray]


def make_feeds(
    specs: Mapping[str, TensorSpec],
    images: str | os.PathLike[str] | None = None,
    preprocess: str = "unit",
    seed: int = 0,
) -> Iterator[tuple[str, Feed]]:
    """Yield named inputs that a network can be judged on, one picture at a time.

    An input of three channels gets pictures (of the folder `images`, else scikit-image's photographs and
    two generated street scenes); every other input gets seeded random numbers.

    Args:
        specs: the network's inputs, by name.
        images: a folder of pictures.
        preprocess: `"unit"` maps 0..255 to -1..1, `"raw"` leaves 0..255, `"cityscapes"` subtracts
            `CITYSCAPES_MEAN`, `"imagenet"` is the BGR form that ResNet-50 takes.
        seed: of the random numbers.
    Yields:
        (name of the picture, feed): arrays with a batch of 1, or of the size the network is fixed to.
    Raises:
        InputError: unknown preprocessing, or a folder of pictures for a network that takes none.
        ImageError: a file is not an image.
    """
    if preprocess not in PREPROCESSINGS:
        raise InputError(f"got preprocess={preprocess!r}, expected one of {', '.join(PREPROCESSINGS)}")
    takes_pictures = any(channel_axis(spec) is not None for spec in specs.values())
    if images is not None and not takes_pictures:
        shapes = ", ".join(f"{spec.name} {spec.describe()}" for spec in specs.values())
        raise InputError(f"got a folder of pictures, but the network takes {shapes}; leave --images out")
    generator = np.random.default_rng(seed)
    if not takes_pictures:
        for index in range(RANDOM_FEEDS):
            yield f"random {index}", {name: random_array(spec, generator) for name, spec in specs.items()}
        return
    for name, picture in _pictures(images):
        feed = {}
        for key, spec in specs.items():
            axis = channel_axis(spec)
            feed[key] = random_array(spec, generator) if axis is None else picture_array(picture, spec, preprocess)
        yield name, feed


def channel_axis(spec: TensorSpec) -> int | None:
    """Return the axis of the three colours of a picture input, or None when it takes no picture."""
    if len(spec.shape) != 4 or not spec.dtype.startswith(("float", "uint8")):
        return None
    return next((axis for axis in (1, 3) if spec.shape[axis] == 3), None)


def picture_array(picture: np.ndarray, spec: TensorSpec, preprocess: str) -> np.ndarray:
    """Bring an (H, W, 3) uint8 RGB picture to the size, layout, range and dtype of an input with three channels.

    (N, 3, h, w) or (N, h, w, 3), N is 1 unless the network fixes it; InputError where height or width are open.
    """
    axis = channel_axis(spec)
    height, width = spec.shape[2:] if axis == 1 else spec.shape[1:3]
    if height is None or width is None:
        raise InputError(f"{spec.name} is {spec.describe()}; convert the model with fixed height and width first")
    chw = rescale_image(picture, (height, width, 3)).transpose(2, 0, 1)
    if preprocess == "unit":
        chw = chw / 127.5 - 1
    elif preprocess == "cityscapes":
        chw = sub_mean_chw(chw)
    elif preprocess == "imagenet":
        chw = sub_mean_chw(chw[::-1], IMAGENET_MEAN_BGR)
    array = chw if axis == 1 else chw.transpose(1, 2, 0)
    return np.ascontiguousarray(np.repeat(array[None], spec.shape[0] or 1, axis=0), dtype=spec.dtype)


def random_array(spec: TensorSpec, generator: np.random.Generator) -> np.ndarray:
    """Draw normal numbers, or 0 and 1 for integers; open sizes are 1 (batch) or 16; InputError for another type."""
    shape = tuple((1 if axis == 0 else OPEN_SIZE) if size is None else size for axis, size in enumerate(spec.shape))
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if dtype.kind in "iub":
        return generator.integers(0, 2, shape).astype(dtype)
    raise InputError(
        f"{spec.name} takes {spec.dtype}, for which no test input can be made; give numbers to the network"
    )


def _pictures(folder: str | os.PathLike[str] | None) -> Iterator[tuple[str, np.ndarray]]:
    if folder is not None:
        for path in list_images(Path(folder)):
            yield path.name, load_image(path)
        return
    yield from photographs().items()
    for name in SCENES:
        yield f"street {name}", load_image(data_file(f"street_scenes/images/{name}.webp"))
