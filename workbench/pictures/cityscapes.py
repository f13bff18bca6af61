"""Cityscapes' classes, their colours, and how well a label map fits the truth.

A *train id* is the number of an output channel: 0..18 are the classes that are learnt and
scored, 255 (and the 20th channel, 19) is void. Cityscapes' files use other numbers, *ids*.
"""

from dataclasses import dataclass

import numpy as np
from cityscapesscripts.helpers.labels import labels as _labels
from numpy.typing import ArrayLike, NDArray

from workbench.core.errors import InputError

VOID = 255
"""Train id of a pixel that belongs to no class and is not scored."""

BLOCK_PIXELS = 32768
"""Pixels that `argmax_classes` works on at a time: its running maximum stays in the processor's cache."""


@dataclass(frozen=True, eq=False)
class Palette:
    """Names and colours, RGB, of the N classes of a data set, in the order of the output channels; N is 1..254.

    The arrays are made read-only; InputError where names and colours do not match, or are not 8-bit RGB.
    """

    names: tuple[str, ...]
    colors: NDArray[np.uint8]  # (N, 3)
    void: NDArray[np.uint8] = (0, 0, 0)  # type: ignore[assignment]  # of what is no class; __post_init__ makes the array

    def __post_init__(self) -> None:
        colors, void = _frozen_rgb(self.colors, "colors"), _frozen_rgb(self.void, "void")
        if colors.shape != (len(self.names), 3) or not 1 <= len(self.names) <= 254 or void.shape != (3,):
            raise InputError(
                f"got {len(self.names)} names, colors {colors.shape} and void {void.shape}; "
                "expected N names (1 to 254), colors (N, 3) and void (3,)"
            )
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "colors", colors)
        object.__setattr__(self, "void", void)

    def __len__(self) -> int:
        return len(self.names)


def _frozen_rgb(values: ArrayLike, name: str) -> NDArray[np.uint8]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu" or (array.size and (array.min() < 0 or array.max() > 255)):
        raise InputError(f"{name} are not integers in 0..255; give red, green and blue as 8-bit integers")
    frozen = array.astype(np.uint8)
    frozen.flags.writeable = False
    return frozen


_train_labels = sorted((label for label in _labels if 0 <= label.trainId < VOID), key=lambda label: label.trainId)

CITYSCAPES = Palette(
    names=tuple(label.name for label in _train_labels),
    colors=np.array([label.color for label in _train_labels], np.uint8),
)
"""The 19 classes that Cityscapes scores. Source: the cityscapesscripts package."""


def color_map(output: ArrayLike, palette: Palette = CITYSCAPES) -> NDArray[np.uint8]:
    """Paint a segmentation result in the colours of its classes.

    Args:
        output: logits or probabilities (C, H, W) or (1, C, H, W), with C = N or N + 1 for a palette
            of N classes (the extra channel is void); or an (H, W) integer map of train ids, where
            N and 255 are void.
        palette: names and colours; Cityscapes' 19 classes unless given.
    Returns:
        (H, W, 3) uint8, RGB.
    Raises:
        InputError: another shape or dtype, or train ids that the palette does not have.
    Source: pixel for pixel the `color_map` loop of the original tutorial.

    >>> color_map(np.array([[0, 10, 255]]))[0].tolist()
    [[128, 64, 128], [70, 130, 180], [0, 0, 0]]
    """
    array = np.asarray(output)
    if array.ndim == 2:
        train_ids = _checked_train_ids(array, len(palette))
    else:
        train_ids = argmax_classes(_checked_logits(array, len(palette)))
    table = np.empty((256, 3), np.uint8)
    table[:] = palette.void
    table[: len(palette)] = palette.colors
    return np.take(table, train_ids, axis=0)


def argmax_classes(logits: ArrayLike) -> NDArray[np.uint8]:
    """Find the strongest channel of each pixel: `np.argmax(logits, axis=0)`, several times faster.

    On a tie the lowest channel wins, and a NaN counts as the strongest, both as in NumPy.

    Args:
        logits: (C, H, W) array of real numbers, C is 1..256.
    Returns:
        (H, W) uint8, the channel's number.
    Raises:
        InputError: not three axes, no channel, more than 256, or not real numbers.

    >>> argmax_classes(np.array([[[1.0, 5.0]], [[2.0, 5.0]]])).tolist()
    [[1, 0]]
    """
    array = np.asarray(logits)
    if array.ndim != 3 or not 1 <= array.shape[0] <= 256 or array.dtype.kind not in "iuf":
        raise InputError(f"expected (C, H, W) real numbers with C in 1..256, got {array.dtype} {array.shape}")
    result = np.zeros(array.shape[1:], np.uint8)
    rows = max(1, BLOCK_PIXELS // max(1, array.shape[2]))
    for start in range(0, array.shape[1], rows):
        block = slice(start, start + rows)
        _argmax_into(array[:, block], result[block])
    return result


def _argmax_into(logits: NDArray, result: NDArray[np.uint8]) -> None:
    """Write the argmax over axis 0 into `result`, which holds zeros, by a running maximum."""
    best = logits[0].copy()
    with np.errstate(invalid="ignore"):
        for channel in range(1, len(logits)):
            better = (logits[channel] > best).view(np.uint8)
            better *= np.uint8(channel)
            np.maximum(result, better, out=result)
            np.maximum(best, logits[channel], out=best)
    if np.isnan(best).any():
        result[...] = np.argmax(logits, axis=0)


def _checked_logits(array: NDArray, classes: int) -> NDArray:
    expected = f"({classes} or {classes + 1}, H, W) logits"
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 4:
        raise InputError(f"got a batch of shape {array.shape}, expected {expected}; pass output[0]")
    if array.ndim == 3 and array.shape[0] in (classes, classes + 1):
        return array
    fix = "pass palette= for another data set"
    if array.ndim == 3 and array.shape[2] in (classes, classes + 1):
        fix = "for (H, W, C) call output.transpose(2, 0, 1)"
    raise InputError(f"got shape {array.shape}, expected {expected} or an (H, W) map of train ids; {fix}")


def _checked_train_ids(array: NDArray, classes: int) -> NDArray[np.uint8]:
    if array.dtype.kind not in "iu":
        raise InputError(f"got an (H, W) map of {array.dtype}, expected integers; call .astype(np.uint8)")
    small = _as_uint8(array)
    if small is None or (small.size and (small + np.uint8(1)).max() > classes + 1):  # 255 + 1 wraps to 0
        wrong = _some(np.setdiff1d(array, [*range(classes + 1), VOID]))
        expected = f"0..{classes} or {VOID}"
        raise InputError(f"got train ids {wrong}, expected {expected}; pass palette= for another data set")
    return small


def train_ids_to_ids(train_ids: ArrayLike) -> NDArray[np.uint8]:
    """Convert train ids, 0..18 and 19 or 255 for void, to Cityscapes' own ids as its server and label files use them.

    uint8 of the same shape; void becomes 0, "unlabeled"; InputError for other numbers.

    >>> train_ids_to_ids([0, 13, 255]).tolist()
    [7, 26, 0]
    """
    return _look_up(train_ids, _TRAIN_ID_TO_ID, "train ids", "0..19 or 255")


def ids_to_train_ids(ids: ArrayLike) -> NDArray[np.uint8]:
    """Convert Cityscapes' own ids, 0..33 and -1 (255 in 8 bits) for licence plates, to train ids.

    uint8 of the same shape, 0..18, and 255 where the class is not scored; InputError for other numbers.

    >>> ids_to_train_ids([7, 26, 0, -1]).tolist()
    [0, 13, 255, 255]
    """
    array = np.asarray(ids)
    if array.dtype.kind == "i":
        array = np.where(array == -1, VOID, array)
    return _look_up(array, _ID_TO_TRAIN_ID, "ids", "-1..33")


def _make_tables() -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Make both lookup tables of 256 entries; -1 marks a number that stands for nothing."""
    to_id, to_train_id = np.full(256, -1, np.int16), np.full(256, -1, np.int16)
    for label in _labels:
        to_train_id[label.id % 256] = label.trainId if label.trainId >= 0 else VOID
    to_id[[label.trainId for label in _train_labels]] = [label.id for label in _train_labels]
    to_id[[len(_train_labels), VOID]] = 0
    return to_id, to_train_id


_TRAIN_ID_TO_ID, _ID_TO_TRAIN_ID = _make_tables()


def _look_up(numbers: ArrayLike, table: NDArray[np.int16], what: str, expected: str) -> NDArray[np.uint8]:
    array = np.asarray(numbers)
    if array.dtype.kind not in "iu":
        raise InputError(f"got {what} of dtype {array.dtype}, expected integers; call .astype(np.int32)")
    small = _as_uint8(array)
    found = None if small is None else table[small]
    if found is None or (found.size and found.min() < 0):
        wrong = np.setdiff1d(array, np.flatnonzero(table >= 0))
        raise InputError(f"got {what} {_some(wrong)}, expected {expected}; are they already converted?")
    return found.astype(np.uint8)


def confusion_matrix(truth: ArrayLike, prediction: ArrayLike, classes: int = 19) -> NDArray[np.int64]:
    """Count how often each true class was predicted as each class; matrices of many images may be added up.

    Args:
        truth: integer train ids of any shape, 0..classes-1; pixels of 255 are left out.
        prediction: integer train ids of the same shape.
        classes: number of classes N.
    Returns:
        (N, N + 1) int64: rows are the truth, columns the prediction; the last column counts
        predictions that are none of the N classes, such as void.
    Raises:
        InputError: the shapes differ, not integers, or other numbers in `truth`.

    >>> confusion_matrix([0, 1, 1, 255], [0, 1, 9, 0], classes=2).tolist()
    [[1, 0, 0], [0, 1, 1]]
    """
    true, predicted = np.asarray(truth), np.asarray(prediction)
    if true.shape != predicted.shape or true.dtype.kind not in "iu" or predicted.dtype.kind not in "iu":
        got = f"{true.dtype} {true.shape} and {predicted.dtype} {predicted.shape}"
        raise InputError(f"got {got}, expected integer maps of one shape; resize with rescale_image(order=0)")
    scored = true != VOID
    true, predicted = true[scored].astype(np.int64), predicted[scored].astype(np.int64)
    wrong = true[(true < 0) | (true >= classes)]
    if wrong.size:
        expected = f"0..{classes - 1} or {VOID}"
        raise InputError(f"got {_some(wrong)} in the truth, expected {expected}; use ids_to_train_ids")
    predicted[(predicted < 0) | (predicted >= classes)] = classes
    counts = np.bincount(true * (classes + 1) + predicted, minlength=classes * (classes + 1))
    return counts.reshape(classes, classes + 1).astype(np.int64, copy=False)


def class_iou(confusion: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of each class.

    Args:
        confusion: (N, N + 1) counts of `confusion_matrix`.
    Returns:
        (N,) float64, 0..1; NaN where a class is in neither the truth nor the prediction.
    Raises:
        InputError: another shape.
    Source: true positives / (true positives + false positives + false negatives), as Cityscapes scores.

    >>> class_iou([[3, 1, 0], [0, 4, 2]]).round(3).tolist()
    [0.75, 0.571]
    """
    counts = np.asarray(confusion)
    if counts.ndim != 2 or counts.shape[1] != counts.shape[0] + 1:
        raise InputError(f"expected (N, N + 1) counts, got {counts.shape}; make them with confusion_matrix")
    hits = np.diagonal(counts).astype(np.float64)
    union = counts.sum(axis=1) + counts[:, :-1].sum(axis=0) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def mean_iou(confusion: ArrayLike) -> float:
    """Mean of `class_iou` over the classes that occur; NaN when none does."""
    scores = class_iou(confusion)
    present = scores[~np.isnan(scores)]
    return float(present.mean()) if present.size else float("nan")


def _as_uint8(array: NDArray) -> NDArray[np.uint8] | None:
    """The same integers in 8 bits, or None when they do not fit."""
    if array.dtype != np.uint8 and array.size and (array.min() < 0 or array.max() > 255):
        return None
    return array.astype(np.uint8, copy=False)


def _some(numbers: NDArray) -> str:
    different = np.unique(numbers)
    shown = ", ".join(str(number) for number in different[:5])
    return shown if len(different) <= 5 else f"{shown} and {len(different) - 5} more"
