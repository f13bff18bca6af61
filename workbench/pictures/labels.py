"""Folders of pictures with their label maps: any folder, Cityscapes' own, and the generated scenes of `data/`.

Cityscapes is not part of this project: it is free for research after registration, and its terms do not allow anyone
else to hand it on.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workbench.core.errors import ImageError, InputError
from workbench.core.files import data_file
from workbench.pictures.cityscapes import ids_to_train_ids
from workbench.pictures.images import list_images, load_image, open_picture

SPLITS = ("train", "val", "test")
VARIABLE = "CITYSCAPES_DATASET"
"""The environment variable that holds the folder, the one that cityscapesScripts reads."""

CITYSCAPES_IMAGE, CITYSCAPES_LABELS = "_leftImg8bit", "_gtFine_labelIds"
_IMAGES, _LABELS = "leftImg8bit", "gtFine"
_HOW_TO_GET = (
    "register at https://www.cityscapes-dataset.com/register (free for research), then run "
    "`csDownload leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip` and unpack both into one folder"
)


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture, with its ground truth where there is one."""

    name: str  # for reports and file names
    image: NDArray[np.uint8]  # (H, W, 3), RGB
    truth: NDArray[np.uint8] | None = None  # (H, W) train ids, 255 is void


def read_folder(images: str | os.PathLike[str], labels: str | os.PathLike[str] | None = None) -> Iterator[Picture]:
    """Read a folder of pictures one at a time, each with its label map where a folder of these is given.

    Args:
        images: the folder of pictures.
        labels: the folder of their label maps, see `pair_labels`.
    Yields:
        The pictures, sorted by the names of their files.
    Raises:
        InputError: no such folder, no picture in it, or pictures and labels that do not belong together.
        ImageError: a file cannot be read.
    """
    files = list_images(images)
    truths = pair_labels([file.name for file in files], labels) if labels is not None else {}
    for file in files:
        truth = truths.get(file.name)
        yield Picture(file.name, load_image(file), None if truth is None else load_labels(truth))


def street_scenes(names: Iterable[str]) -> list[Picture]:
    """Read some of the generated scenes of `data/street_scenes`, which no network here was trained on.

    Args:
        names: such as `"scene_1000025"`.
    Returns:
        512x1024 pictures with their exact ground truth, in the order of the names.
    """
    folder = data_file("street_scenes")
    pairs = [(folder / "images" / f"{name}.webp", folder / "labels" / f"{name}.png") for name in names]
    return [Picture(image.stem, load_image(image), load_labels(labels)) for image, labels in pairs]


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
    with open_picture(path) as picture:
        mode, array = picture.mode, np.array(picture)
    if mode not in ("L", "P"):
        raise ImageError(
            f"{path} is a picture of mode {mode}, expected one channel of 8 bits with a class per pixel; "
            "give the file of ids, not that of colours or instances"
        )
    array = array.astype(np.uint8)
    if not Path(path).stem.endswith(CITYSCAPES_LABELS):
        return array
    try:
        return ids_to_train_ids(array)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


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


class CityscapesDataset:
    """The frames of one split, sorted by name; a frame is read when it is asked for, as a `Picture`.

    Args:
        root: the folder that holds `leftImg8bit` and `gtFine`; that of $CITYSCAPES_DATASET when None.
        split: "train", "val", or "test", whose published labels are void everywhere.
    Raises:
        InputError: no such folder, a part of it is missing, or another split.

    Attributes:
        root: the folder.
        split: the split.
        frames: photograph and labels of each frame, by its name `<city>_<sequence>_<frame>`.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None, split: str = "val") -> None:
        if split not in SPLITS:
            raise InputError(f"got the split {split!r}, expected one of {', '.join(SPLITS)}")
        self.root, self.split = _find_root(root), split
        self.frames = _pair_files(self.root, split)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Picture:
        name, (photograph, labels) = list(self.frames.items())[index]
        image, truth = load_image(photograph), load_labels(labels)
        if image.shape[:2] != truth.shape:
            got, wanted = (f"{rows} x {columns}" for rows, columns in (image.shape[:2], truth.shape))
            raise InputError(
                f"{photograph} has {got} pixels (height x width), but {labels} has {wanted}; they must be equal"
            )
        return Picture(name, image, truth)

    def __iter__(self) -> Iterator[Picture]:
        return (self[index] for index in range(len(self)))


def _find_root(root: str | os.PathLike[str] | None) -> Path:
    given = root if root is not None else os.environ.get(VARIABLE)
    if not given:
        raise InputError(f"Cityscapes is not here: {VARIABLE} is not set; {_HOW_TO_GET}, and set {VARIABLE} to it")
    path = Path(given).expanduser()
    if not path.is_dir():
        source = "" if root is not None else f" (from {VARIABLE})"
        raise InputError(f"got {path}{source}, which is not a folder; give the one that holds {_IMAGES} and {_LABELS}")
    return path


def _pair_files(root: Path, split: str) -> dict[str, tuple[Path, Path]]:
    images = _files_by_name(root / _IMAGES / split, f"{CITYSCAPES_IMAGE}.png")
    labels = _files_by_name(root / _LABELS / split, f"{CITYSCAPES_LABELS}.png")
    absent = [
        f"{folder}/{split}/<city>/*{suffix}.png"
        for folder, suffix, found in ((_IMAGES, CITYSCAPES_IMAGE, images), (_LABELS, CITYSCAPES_LABELS, labels))
        if not found
    ]
    if absent:
        only = not labels and (root / "gtCoarse").is_dir()
        coarse = ", only gtCoarse, whose labels are too coarse to score with" if only else ""
        raise InputError(f"{root} has no {' and no '.join(absent)}{coarse}; {_HOW_TO_GET}")
    lonely = sorted(set(images) ^ set(labels))
    if lonely:
        raise InputError(
            f"in {root}, {len(lonely)} frames of {split} have a photograph or labels but not both, "
            f"the first is {lonely[0]}; unpack both archives again"
        )
    return {name: (images[name], labels[name]) for name in sorted(images)}


def _files_by_name(folder: Path, suffix: str) -> dict[str, Path]:
    """The files of all cities, by frame; hidden ones, such as macOS leaves in archives, are left out."""
    found = (path for path in folder.glob(f"*/*{suffix}") if not path.name.startswith("."))
    return {path.name.removesuffix(suffix): path for path in found}
