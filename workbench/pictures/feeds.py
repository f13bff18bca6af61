"""Inputs for a network of which only names, shapes and dtypes are known: pictures where it takes pictures."""

import math
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

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
_NUMBERS = np.typecodes["Float"] + np.typecodes["AllInteger"] + "?"  # no complex numbers, nor what only ml_dtypes has
LARGEST_BYTES = 4 << 30
"""Of an input that is made here, and of the arrays in a file: a batch of 256 pictures of 1024x1024 in float32 fits."""

_HOW_TO_WRITE = "write one for each feed, with np.savez(path, **{input name: array})"

Feed = dict[str, np.ndarray]
Known = np.ndarray | int
"""What an input has to hold: this array, or any integers of 0..N-1."""


def make_feeds(
    specs: Mapping[str, TensorSpec],
    images: str | os.PathLike[str] | None = None,
    preprocess: str = "unit",
    seed: int = 0,
    known: Mapping[str, Known] | None = None,
) -> Iterator[tuple[str, Feed]]:
    """Yield named inputs that a network can be judged on, one picture at a time.

    An input of three channels gets pictures (of the folder `images`, else scikit-image's photographs and
    two generated street scenes); every other input gets what is `known` of it, else seeded random numbers.

    Args:
        specs: the network's inputs, by name.
        images: a folder of pictures.
        preprocess: `"unit"` maps 0..255 to -1..1, `"raw"` leaves 0..255, `"cityscapes"` subtracts
            `CITYSCAPES_MEAN`, `"imagenet"` is the BGR form that ResNet-50 takes.
        seed: of the random numbers.
        known: what other inputs have to hold, as `workbench.onnx_graph.input_values` finds it.
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
            yield f"random {index}", random_feed(specs, generator, known)
        return
    for name, picture in _pictures(images):
        others = {key: spec for key, spec in specs.items() if channel_axis(spec) is None}
        made = random_feed(others, generator, known)
        yield (
            name,
            {
                key: made[key] if key in made else picture_array(picture, spec, preprocess)
                for key, spec in specs.items()
            },
        )


def read_feeds(path: str | os.PathLike[str]) -> list[tuple[str, Feed]]:
    """Read a feed from an .npz file, or one from each .npz file of a folder, in the order of their names.

    Args:
        path: the file or folder; `np.savez(path, **{name: array})` writes a file, with a name for each input.
    Returns:
        (name of the file without .npz, feed) pairs; the arrays are whole inputs, batch included.
    Raises:
        InputError: there is no such file, or none in the folder, or it holds something else than arrays.
    """
    path = Path(path)
    files = sorted(path.glob("*.npz")) if os.path.isdir(path) else [path]
    if not files:
        raise InputError(f"got the folder {path} without any .npz file; {_HOW_TO_WRITE}")
    return [(file.stem, load_arrays(file)) for file in files]


def load_arrays(path: str | os.PathLike[str]) -> Feed:
    """Read the arrays of an .npz file by name, text as objects; InputError where it is none, or holds pickled code."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise InputError(f"got {path}, expected a file; give an .npz file, or a folder of them")
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > LARGEST_BYTES:
            raise InputError(
                f"{path} unpacks to {unpacked:,} bytes, expected {LARGEST_BYTES:,} at most; split the feed"
            )
        with np.load(path) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
        return {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in arrays.items()}
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give an .npz file, or a folder of them") from error
    except Exception as error:  # NumPy, zip and zlib have one each for what may be wrong with a file
        raise InputError(f"{path} is not an .npz file of plain arrays; {_HOW_TO_WRITE}") from error


def checked_feeds(feeds: Iterable[Any]) -> list[tuple[str, Feed]]:
    """The feeds that a caller gave, as a list; InputError where one is no (name, arrays by input name) pair."""
    given = list(feeds)
    for feed in given:
        if not (isinstance(feed, tuple | list) and len(feed) == 2 and isinstance(feed[1], Mapping)):
            raise InputError(f"got {type(feed).__name__} as a feed, expected (name, {{input name: array}}) pairs")
    if not given:
        raise InputError("got no feed to judge on; give at least one (name, arrays) pair")
    return given


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
    _refuse_large(spec, spec.shape)
    chw = rescale_image(picture, (height, width, 3)).transpose(2, 0, 1)
    if preprocess == "unit":
        chw = chw / 127.5 - 1
    elif preprocess == "cityscapes":
        chw = sub_mean_chw(chw)
    elif preprocess == "imagenet":
        chw = sub_mean_chw(chw[::-1], IMAGENET_MEAN_BGR)
    array = chw if axis == 1 else chw.transpose(1, 2, 0)
    return np.ascontiguousarray(np.repeat(array[None], spec.shape[0] or 1, axis=0), dtype=spec.dtype)


def random_feed(
    specs: Mapping[str, TensorSpec], generator: np.random.Generator, known: Mapping[str, Known] | None = None
) -> Feed:
    """Make what is known of each input, else normal numbers, or 0 and 1 for integers.

    Open sizes are 1 (batch) or 16; InputError for an input of another type.
    """
    found = known or {}
    return {name: _random_array(spec, generator, found.get(name)) for name, spec in specs.items()}


def _random_array(spec: TensorSpec, generator: np.random.Generator, known: Known | None) -> np.ndarray:
    if isinstance(known, np.ndarray):
        return known
    if np.dtype(spec.dtype).char not in _NUMBERS:
        raise InputError(
            f"{spec.name} takes {spec.dtype}, for which no test input can be made; give some with --feeds FILE.npz "
            "(feeds= in Python), or let the network take float32"
        )
    shape = tuple((1 if axis == 0 else OPEN_SIZE) if size is None else size for axis, size in enumerate(spec.shape))
    _refuse_large(spec, shape)
    if spec.dtype.startswith("float") and known is None:
        return generator.standard_normal(shape).astype(spec.dtype)
    return generator.integers(0, known or 2, shape).astype(spec.dtype)


def _refuse_large(spec: TensorSpec, shape: tuple[int | None, ...]) -> None:
    """Refuse sizes of an input that no memory holds; they come from the network's file."""
    if math.prod(size or 1 for size in shape) * np.dtype(spec.dtype).itemsize > LARGEST_BYTES:
        raise InputError(
            f"{spec.name} takes {spec.describe()}, more than the {LARGEST_BYTES:,} bytes that are made up here; give "
            "some with --feeds FILE.npz (feeds= in Python), or export the network for a smaller size"
        )


def _pictures(folder: str | os.PathLike[str] | None) -> Iterator[tuple[str, np.ndarray]]:
    if folder is not None:
        for path in list_images(Path(folder)):
            yield path.name, load_image(path)
        return
    yield from photographs().items()
    for name in SCENES:
        yield f"street {name}", load_image(data_file(f"street_scenes/images/{name}.webp"))
