"""Read a folder of the Cityscapes data set, and score predictions as its own evaluation does.

The data set is not part of this project: it is free for research after registration, and its
terms do not allow anyone else to hand it on.
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
from workbench.pictures.cityscapes import CITYSCAPES, VOID, confusion_matrix, ids_to_train_ids
from workbench.pictures.images import list_images, load_image

SPLITS = ("train", "val", "test")
VARIABLE = "CITYSCAPES_DATASET"
"""The environment variable that holds the folder, the one that cityscapesScripts reads."""

_IMAGES, _LABELS = "leftImg8bit", "gtFine"
_IMAGE_SUFFIX, _LABEL_SUFFIX = "_leftImg8bit.png", "_gtFine_labelIds.png"
_HOW_TO_GET = (
    "register at https://www.cityscapes-dataset.com/register (free for research), then run "
    "`csDownload leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip` and unpack both into one folder"
)


@dataclass(frozen=True)
class Frame:
    """The two files of a frame.

    Attributes:
        name: `<city>_<sequence>_<frame>`, such as `frankfurt_000000_000294`.
        image: the photograph.
        labels: the picture of its ids.
    """

    name: str
    image: Path
    labels: Path


@dataclass(frozen=True, eq=False)
class Sample:
    """A frame that was read.

    Attributes:
        name: `<city>_<sequence>_<frame>`.
        image: (H, W, 3) uint8, RGB, 0..255; 1024 x 2048 pixels in Cityscapes.
        train_ids: (H, W) uint8, 0..18, and 255 where nothing is scored.
    """

    name: str
    image: NDArray[np.uint8]
    train_ids: NDArray[np.uint8]


class CityscapesDataset:
    """The frames of one split, sorted by name; a frame is read when it is asked for.

    Args:
        root: the folder that holds `leftImg8bit` and `gtFine`; that of $CITYSCAPES_DATASET when None.
        split: "train", "val", or "test", whose published labels are void everywhere.
    Raises:
        InputError: no such folder, a part of it is missing, or another split.

    Attributes:
        root: the folder.
        split: the split.
        frames: the files, one `Frame` for each photograph.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None, split: str = "val") -> None:
        if split not in SPLITS:
            raise InputError(f"got the split {split!r}, expected one of {', '.join(SPLITS)}")
        self.root, self.split = _find_root(root), split
        self.frames = _pair_files(self.root, split)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        frame = self.frames[index]
        image, train_ids = load_image(frame.image), load_train_ids(frame.labels)
        _check_same_size(frame.image, image.shape[:2], frame.labels, train_ids.shape)
        return Sample(frame.name, image, train_ids)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def load_train_ids(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read a label picture of Cityscapes' own ids as train ids.

    Args:
        path: a `*_labelIds.png` file.
    Returns:
        (H, W) uint8 train ids, 0..18, and 255 where the class is not scored.
    Raises:
        ImageError: the file is missing, damaged, or not one channel of 8 bits.
        InputError: it holds numbers that are no ids of Cityscapes.
    """
    return _train_ids(path, _load_ids(path))


def score_folder(dataset: CityscapesDataset, predictions: str | os.PathLike[str]) -> NDArray[np.int64]:
    """Count how often each class was predicted as each class, for a folder of predicted label pictures.

    The rules are those of cityscapesScripts' `evalPixelLevelSemanticLabeling`, so `class_iou` and
    `mean_iou` of the result are its IoU: pixels whose true class is not scored are left out, and a
    predicted id that is not scored is wrong wherever the truth is.

    Args:
        dataset: the truth; every frame must have its prediction.
        predictions: a folder, searched with its subfolders, of pictures of ids (not train ids)
            named `<city>_<sequence>_<frame>*.png`, each of its frame's size.
    Returns:
        (19, 20) int64, as `workbench.pictures.cityscapes.confusion_matrix` gives it.
    Raises:
        InputError: a prediction is missing or there are two, of another size, or holds other numbers.
        ImageError: a file cannot be read.
    """
    total = np.zeros((len(CITYSCAPES), len(CITYSCAPES) + 1), np.int64)
    for frame, path in _match_predictions(dataset, Path(predictions)):
        truth, ids = load_train_ids(frame.labels), _load_ids(path)
        _check_same_size(path, ids.shape, frame.labels, truth.shape)
        if (ids == VOID).any():
            raise InputError(f"{path} holds {VOID}, expected ids 0..33; are these train ids? Use train_ids_to_ids")
        total += confusion_matrix(truth, _train_ids(path, ids))
    return total


def _find_root(root: str | os.PathLike[str] | None) -> Path:
    given = root if root is not None else os.environ.get(VARIABLE)
    if not given:
        raise InputError(f"Cityscapes is not here: {VARIABLE} is not set; {_HOW_TO_GET}, and set {VARIABLE} to it")
    path = Path(given).expanduser()
    if not path.is_dir():
        source = "" if root is not None else f" (from {VARIABLE})"
        raise InputError(f"got {path}{source}, which is not a folder; give the one that holds {_IMAGES} and {_LABELS}")
    return path


def _pair_files(root: Path, split: str) -> tuple[Frame, ...]:
    images = _files_by_name(root / _IMAGES / split, _IMAGE_SUFFIX)
    labels = _files_by_name(root / _LABELS / split, _LABEL_SUFFIX)
    absent = [
        f"{folder}/{split}/<city>/*{suffix}"
        for folder, suffix, found in ((_IMAGES, _IMAGE_SUFFIX, images), (_LABELS, _LABEL_SUFFIX, labels))
        if not found
    ]
    if absent:
        raise InputError(f"{root} has no {' and no '.join(absent)}{_coarse(root, labels)}; {_HOW_TO_GET}")
    lonely = sorted(set(images) ^ set(labels))
    if lonely:
        raise InputError(
            f"in {root}, {len(lonely)} frames of {split} have a photograph or labels but not both, "
            f"the first is {lonely[0]}; unpack both archives again"
        )
    return tuple(Frame(name, images[name], labels[name]) for name in sorted(images))


def _files_by_name(folder: Path, suffix: str) -> dict[str, Path]:
    """The files of all cities, by frame; hidden ones, such as macOS leaves in archives, are left out."""
    found = (path for path in folder.glob(f"*/*{suffix}") if not path.name.startswith("."))
    return {path.name.removesuffix(suffix): path for path in found}


def _coarse(root: Path, labels: dict[str, Path]) -> str:
    if labels or not (root / "gtCoarse").is_dir():
        return ""
    return ", only gtCoarse, whose labels are too coarse to score with"


def _load_ids(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as picture:
            picture.load()
            if picture.mode not in ("L", "P"):
                raise ImageError(
                    f"{path} is a picture of mode {picture.mode}, expected one channel of 8 bits; "
                    "give the file of ids, not that of colours or instances"
                )
            return np.array(picture, np.uint8)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds of error on broken files
        raise ImageError(f"{path} is not a label picture that can be read ({error}); copy it again") from error


def _train_ids(path: str | os.PathLike[str], ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    try:
        return ids_to_train_ids(ids)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _check_same_size(path: Path, size: tuple[int, ...], other: Path, expected: tuple[int, ...]) -> None:
    if size != expected:
        got, wanted = (f"{rows} x {columns}" for rows, columns in (size, expected))
        raise InputError(f"{path} has {got} pixels (height x width), but {other} has {wanted}; they must be equal")


def _match_predictions(dataset: CityscapesDataset, folder: Path) -> list[tuple[Frame, Path]]:
    if not folder.is_dir():
        raise InputError(f"got {folder}, expected a folder of predicted label pictures; check the path")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.png")):
        found.setdefault("_".join(path.stem.split("_")[:3]), []).append(path)
    pairs = []
    for frame in dataset.frames:
        matches = found.get(frame.name, [])
        if len(matches) != 1:
            what = f"{len(matches)} predictions" if matches else "no prediction"
            raise InputError(f"{folder} has {what} for {frame.name}, expected one file {frame.name}*.png")
        pairs.append((frame, matches[0]))
    return pairs


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


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture, with its ground truth where there is one.

    Attributes:
        name: for reports and file names.
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) uint8 train ids, 255 is void; None where there is none.
    """

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None = None


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
