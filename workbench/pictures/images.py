"""Read photographs and prepare them for a network."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from workbench.core.errors import ImageError, InputError, WorkbenchError, first_line
from workbench.core.files import open_regular

CITYSCAPES_MEAN = (71.60167789, 82.09696889, 72.30508881)
"""Mean red, green and blue of the Cityscapes training images, as used by the original tutorial."""

IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)
"""Mean blue, green and red of ImageNet, as `keras.applications.imagenet_utils` subtracts them."""

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


LARGEST_FILE = 1 << 30
"""Bytes of an image file; one of as many pixels as Pillow takes has less, whatever its format."""


def load_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read one image file as 8-bit RGB, the way it is meant to be seen.

    The EXIF orientation is applied. Grey, palette, CMYK and 16-bit images become 8-bit RGB;
    transparency is dropped; of an animation the first frame is read.

    Args:
        path: an image file of any kind that Pillow reads.
    Returns:
        (H, W, 3) uint8 array, RGB, 0..255, C-contiguous and yours to change.
    Raises:
        ImageError: the file is missing, empty, cut short, too large or no image; the message names it.
    """
    with open_picture(path) as picture:
        return np.array(_to_rgb(ImageOps.exif_transpose(picture), path))


@contextlib.contextmanager
def open_picture(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Open an image file for a block that decodes it; every fault there, of the file or of Pillow, is an ImageError."""
    try:
        _check_is_file(Path(path))
        with open_regular(path, LARGEST_FILE, ImageError) as file, Image.open(file) as picture:
            _check_pixel_count(picture, path)
            yield picture
    except WorkbenchError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is not an image that Pillow can read; expected {_suffixes()}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large(path)) from error
    except Exception as error:  # Pillow's decoders raise many kinds of error on broken files
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ImageError(f"{path} cannot be decoded ({reason}); is it complete? Copy it again") from error


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """List the image files of a folder, sorted by name; hidden files and subfolders are left out.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"got {path}, expected a folder of images that exists; check the path")
    try:
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and _is_visible_file(p))
    except OSError as error:
        raise InputError(f"the folder {path} cannot be read ({error.strerror}); check its permissions") from error
    if not found:
        raise InputError(f"no image in {path}; put files there that end in {_suffixes()}")
    return found


def rescale_image(image: ArrayLike, output_shape: tuple[int, ...], order: int = 1) -> NDArray[np.floating]:
    """Resize an image and keep its intensities, with smoothing when it shrinks.

    Args:
        image: (H, W) or (H, W, C) array of any real dtype. Not modified.
        output_shape: (rows, columns), or (rows, columns, channels).
        order: 0 nearest, 1 linear, 3 cubic interpolation. Use 0 for label maps.
    Returns:
        Array of `output_shape`, channels kept, in the units of `image`; float64, or float32 for float32.
    Raises:
        InputError: `image` is not an image, or `output_shape` is not positive.
    Source: the original tutorial's call of `skimage.transform.resize`.
    """
    import skimage.transform

    array = np.asarray(image)
    if array.ndim not in (2, 3) or array.size == 0:
        raise InputError(f"expected an (H, W) or (H, W, C) image, got {array.shape}; pass one image")
    if len(output_shape) not in (2, 3) or min(output_shape) < 1:
        raise InputError(f"expected output_shape (rows, columns) of at least 1, got {tuple(output_shape)}")
    return skimage.transform.resize(array, output_shape, order=order, preserve_range=True, mode="reflect")


def sub_mean_chw(image: ArrayLike, mean: ArrayLike = CITYSCAPES_MEAN) -> NDArray[np.float32]:
    """Subtract a per-channel mean from a channel-first image.

    Args:
        image: (3, H, W) array, RGB, 0..255 intensity. Not modified.
        mean: three numbers in the same channel order and units.
    Returns:
        (3, H, W) float32, same units, usually signed.
    Raises:
        InputError: `image` is not (3, H, W), or `mean` is not three numbers.
    Source: channel means of the Cityscapes training images used by the original network.

    >>> grey = np.full((3, 1, 2), 100, np.uint8)
    >>> sub_mean_chw(grey, mean=(90.0, 100.0, 110.0))[:, 0, 0].tolist()
    [10.0, 0.0, -10.0]
    """
    array, offset = np.asarray(image), np.asarray(mean, np.float32)
    if array.ndim != 3 or array.shape[0] != 3:
        fix = "for (H, W, 3) call image.transpose(2, 0, 1)" if array.ndim == 3 else "pass one RGB image"
        raise InputError(f"expected (3, H, W), got {array.shape}; {fix}")
    if offset.shape != (3,):
        raise InputError(f"expected a mean of three numbers, got {offset.shape}; pass (red, green, blue)")
    return array.astype(np.float32) - offset[:, None, None]


def _to_rgb(picture: Image.Image, path: str | os.PathLike[str]) -> Image.Image:
    """Convert any Pillow mode to 8-bit RGB; Pillow itself clips 16-bit grey at 255."""
    if not picture.mode.startswith(("I", "F")):
        return picture.convert("RGB")
    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{path} holds {values.dtype} values, expected 8 or 16 bits; save it with 8 bits")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        raise ImageError(f"{path} is a folder, expected an image file; list_images(folder) gives its files")
    if not path.exists():
        raise ImageError(f"{path} does not exist; check the path")
    if path.is_file() and path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes), expected an image; copy or save it again")


def _check_pixel_count(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    if Image.MAX_IMAGE_PIXELS is not None and picture.width * picture.height > Image.MAX_IMAGE_PIXELS:
        raise ImageError(_too_large(path))


def _too_large(path: str | os.PathLike[str]) -> str:
    limit = f"{Image.MAX_IMAGE_PIXELS} pixels, the limit against harmful files"
    return f"{path} has more than {limit}; shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS"


def _suffixes() -> str:
    return ", ".join(IMAGE_SUFFIXES)


def _is_visible_file(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def photographs() -> dict[str, np.ndarray]:
    """Return the colour photographs that come with scikit-image, by name: (H, W, 3) uint8 RGB."""
    import skimage.data

    return {name: getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
