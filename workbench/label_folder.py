"""A folder of images and a folder of their label maps: one of each, or an error."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workbench.cityscapes_dataset import load_train_ids
from workbench.errors import ImageError, InputError
from workbench.images import list_images

CITYSCAPES_IMAGE, CITYSCAPES_LABELS = "_leftImg8bit", "_gtFine_labelIds"


def pair_labels(images: Iterable[str], folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Find the label map of each image: the file of the same name, whatever its suffix.

    Cityscapes' own names are understood too: `x_leftImg8bit.png` belongs to `x_gtFine_labelIds.png`, and where there
    are such files, the others of the folder are left out.

    Args:
        images: names of the image files.
        folder: the folder of label maps.
    Returns:
        The label map of each image, by the image's name.
    Raises:
        InputError: no such folder, an image without labels, labels without an image, or two of one name.
    """
    files = list_images(folder)
    files = [path for path in files if path.stem.endswith(CITYSCAPES_LABELS)] or files
    labels = _by_stem((path.name for path in files), CITYSCAPES_LABELS, folder)
    pictures = _by_stem(images, CITYSCAPES_IMAGE, "the images")
    blind, lonely = sorted(set(pictures) - set(labels)), sorted(set(labels) - set(pictures))
    if blind or lonely:
        told = [f"no labels for {_first(blind, pictures)}"] if blind else []
        told += [f"no image for {_first(lonely, labels)}"] if lonely else []
        raise InputError(f"{folder} has {', and there is '.join(told)}; give both folders the same names")
    return {pictures[stem]: Path(folder) / labels[stem] for stem in pictures}


def load_labels(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read a label map: of Cityscapes' ids if the file is named so, else of train ids.

    Args:
        path: a picture of one channel of 8 bits; 255 is void.
    Returns:
        (H, W) uint8 train ids.
    Raises:
        ImageError: the file cannot be read, or is no picture of one channel.
        InputError: it holds numbers that are no ids.
    """
    if Path(path).stem.endswith(CITYSCAPES_LABELS):
        return load_train_ids(path)
    try:
        with Image.open(path) as picture:
            mode, array = picture.mode, np.array(picture)
    except Exception as error:  # Pillow's decoders raise many kinds of error on broken files
        raise ImageError(f"{path} is not a label map that can be read ({error}); copy it again") from error
    if mode not in ("L", "P"):
        raise ImageError(f"{path} is a picture of mode {mode}, expected one channel of 8 bits with a class per pixel")
    return array.astype(np.uint8)


def fit_labels(labels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Bring a label map to a network's height and width; each pixel takes the nearest label."""
    if labels.shape == size:
        return labels
    return np.asarray(Image.fromarray(labels).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _by_stem(names: Iterable[str], suffix: str, where: str | os.PathLike[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        stem = Path(name).stem.removesuffix(suffix)
        if stem in found:
            raise InputError(f"{where} has both {found[stem]} and {name}, expected one file for {stem}; rename one")
        found[stem] = name
    return found


def _first(stems: list[str], names: dict[str, str]) -> str:
    more = f" and {len(stems) - 1} more" if len(stems) > 1 else ""
    return f"{names[stems[0]]}{more}"
