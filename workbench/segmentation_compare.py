"""Compare label maps: do two runners paint the same picture, and does the candidate still fit the truth?

Logits show a fault earlier and better (`workbench.compare`); this is for engines that give label maps,
and for the question that logits do not answer: what a change costs each class.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.cityscapes import CITYSCAPES, VOID, Palette, class_iou, confusion_matrix, mean_iou
from workbench.errors import InputError
from workbench.output_sums import best_shift
from workbench.parity_report import Status, count, percent
from workbench.segmentation_report import ClassScore, ImageScore, SegmentationLimits, SegmentationReport

Answer = tuple[str, ArrayLike | None, ArrayLike, ArrayLike]
"""Name, truth (or None), the reference's labels, the candidate's labels; the maps are (H, W)."""

FLOAT32 = SegmentationLimits()
"""What is allowed where both sides calculate in float32."""


def compare_segmentation(
    answers: Iterable[Answer],
    *,
    reference_name: str,
    candidate_name: str,
    palette: Palette = CITYSCAPES,
    limits: SegmentationLimits = FLOAT32,
) -> SegmentationReport:
    """Compare two runners' label maps with each other and with the truth, one image at a time.

    Args:
        answers: (name, truth, reference, candidate) of each image: integer maps (H, W) of train ids. In the
            truth 255 is not scored; in the answers the number of classes, and 255, are void. The truth may be None.
        reference_name: `RunnerInfo.name` of the reference, for the report.
        candidate_name: the same of the candidate.
        palette: names of the classes.
        limits: what is allowed.
    Returns:
        The report; `passed` is True only if both give the same picture and the comparison can show it.
    Raises:
        InputError: no image, logits instead of labels, sizes that differ, or numbers that are no class.

    >>> truth = np.array([[0, 0, 1, 1], [0, 0, 1, 1]])
    >>> report = compare_segmentation(
    ...     [("street", truth, truth, 1 - truth)], reference_name="A", candidate_name="B"
    ... )
    >>> report.passed, report.agreement, report.reference_miou, report.candidate_miou
    (False, 0.0, 1.0, 0.0)
    """
    classes = len(palette)
    between = np.zeros((classes + 1, classes + 2), np.int64)  # void is the last of the rows and counts as a class
    against = np.zeros((2, classes, classes + 1), np.int64)
    images: list[ImageScore] = []
    for name, truth, reference, candidate in answers:
        one, other = _labels(reference, "reference", name, classes), _labels(candidate, "candidate", name, classes)
        images.append(_score_image(name, truth, one, other, between, against))
    if not images:
        raise InputError("got no label maps to compare; run at least one image through both runners")
    return _conclude(images, between, against, (reference_name, candidate_name), palette, limits)


def disagreement(reference: ArrayLike, candidate: ArrayLike, classes: int = len(CITYSCAPES)) -> NDArray[np.bool_]:
    """Mark the pixels to which two label maps give different classes; the two ways to write void are one.

    Args:
        reference: integer map (H, W) of train ids; `classes` and 255 are void.
        candidate: the same.
        classes: number of classes N.
    Returns:
        (H, W) bool.
    Raises:
        InputError: the shapes differ, no integers, or numbers that are no class.

    >>> disagreement([[0, 19, 255]], [[1, 255, 19]]).tolist()
    [[True, False, False]]
    """
    one = _labels(reference, "reference", "", classes)
    other = _labels(candidate, "candidate", "", classes)
    _check_same_size(one, other, "candidate", "")
    return one != other


def _labels(labels: ArrayLike, side: str, image: str, classes: int) -> NDArray[np.uint8]:
    """Check a label map, and write void as `classes`."""
    array, of = np.asarray(labels), f" of {image}" if image else ""
    if array.ndim != 2 or array.dtype.kind not in "iu":
        expected = "expected an (H, W) map of integers; for logits call argmax_classes first"
        raise InputError(f"got the {side}'s labels{of} as {array.dtype} {array.shape}, {expected}")
    wrong = (array != VOID) & ((array < 0) | (array > classes))
    if wrong.any():
        expected = f"0..{classes} or {VOID}; pass palette= for another data set, or use ids_to_train_ids"
        raise InputError(f"got {array[wrong][0]} in the {side}'s labels{of}, expected {expected}")
    return np.where(array == VOID, classes, array).astype(np.uint8)


def _check_same_size(reference: NDArray, other: NDArray, side: str, image: str) -> None:
    if other.shape != reference.shape:
        of = f" of {image}" if image else ""
        raise InputError(
            f"got the {side}{of} as {other.shape}, expected the reference's {reference.shape}; "
            "bring it to that size with rescale_image(order=0)"
        )


def _score_image(
    name: str,
    truth: ArrayLike | None,
    reference: NDArray[np.uint8],
    candidate: NDArray[np.uint8],
    between: NDArray[np.int64],
    against: NDArray[np.int64],
) -> ImageScore:
    """Score one image, and add its counts to both confusion matrices."""
    _check_same_size(reference, candidate, "candidate", name)
    joint = confusion_matrix(reference, candidate, classes=len(between))
    differing = int(np.count_nonzero(reference != candidate))
    between += joint
    scores = (math.nan, math.nan)
    if truth is not None:
        _check_same_size(reference, np.asarray(truth), "truth", name)
        own = [confusion_matrix(truth, labels, classes=len(between) - 1) for labels in (reference, candidate)]
        against += own
        scores = (mean_iou(own[0]), mean_iou(own[1]))
    shift = best_shift(reference, candidate, _count_different) if differing else None
    return ImageScore(name, reference.size, differing, mean_iou(joint), *scores, shift)


def _count_different(one: NDArray, other: NDArray) -> float:
    return float(np.count_nonzero(one != other))


def _conclude(
    images: list[ImageScore],
    between: NDArray[np.int64],
    against: NDArray[np.int64],
    names: tuple[str, str],
    palette: Palette,
    limits: SegmentationLimits,
) -> SegmentationReport:
    """Turn the counts into a verdict."""
    ordered = sorted(images, key=lambda image: (image.agreement, 0.0 if math.isnan(image.change) else image.change))
    agreement = 1 - sum(image.differing for image in images) / max(1, sum(image.pixels for image in images))
    scores = (mean_iou(against[0]), mean_iou(against[1]))
    truths = sum(not math.isnan(image.reference) for image in images)
    problems = tuple(_find_problems(ordered, agreement, scores, limits))
    shift = _common_shift(images) if problems else None
    painted = np.flatnonzero(between.sum(axis=1))
    status: Status = "fail" if problems else "pass" if painted.size > 1 else "inconclusive"
    classes = _score_classes(between, against, palette)
    return SegmentationReport(
        *names, status, _verdict(status, names, agreement, scores, problems, shift, len(images)), tuple(ordered),
        classes, agreement, mean_iou(between), *scores, truths, shift, problems,
        tuple(_notes(classes, len(images), truths)), limits, against[0], against[1],
    )  # fmt: skip


def _find_problems(
    worst_first: list[ImageScore], agreement: float, scores: tuple[float, float], limits: SegmentationLimits
) -> Iterator[str]:
    if agreement < limits.agreement:
        yield f"pixel agreement {percent(agreement)} (at least {percent(limits.agreement)} needed)"
    worst = worst_first[0]
    if worst.agreement < limits.worst_image:
        yield f"{worst.name} agrees in {percent(worst.agreement)} (at least {percent(limits.worst_image)} needed)"
    if scores[0] - scores[1] > limits.miou_loss:
        yield f"mIoU falls from {scores[0]:.3f} to {scores[1]:.3f} (at most {limits.miou_loss:g} allowed)"


def _common_shift(images: list[ImageScore]) -> tuple[int, int] | None:
    """The displacement that all images with differing pixels share."""
    found = {image.shift for image in images if image.differing}
    return found.pop() if len(found) == 1 else None


def _verdict(
    status: Status, names: tuple[str, str], agreement: float, scores: tuple[float, float],
    problems: tuple[str, ...], shift: tuple[int, int] | None, images: int,
) -> str:  # fmt: skip
    reference, candidate = names
    on = f"on {count(images, 'image')}"
    if status == "fail":
        cause = f"; shifted by {shift} pixels (rows, columns)" if shift else ""
        return f"FAIL: {candidate} paints another picture than {reference} {on}: {'; '.join(problems)}{cause}."
    if status == "inconclusive":
        return (
            f"INCONCLUSIVE: {candidate} agrees with {reference} {on}, but the reference paints one class only, "
            "so that most faults would not show; use other images."
        )
    text = f"PASS: {candidate} paints the same classes as {reference} {on}: pixel agreement {percent(agreement)}"
    if math.isnan(scores[0]):
        return f"{text}."
    return f"{text}, mIoU against the truth {scores[0]:.4f} and {scores[1]:.4f} ({scores[1] - scores[0]:+.4f})."


def _score_classes(between: NDArray[np.int64], against: NDArray[np.int64], palette: Palette) -> tuple[ClassScore, ...]:
    both, reference, candidate = class_iou(between), class_iou(against[0]), class_iou(against[1])
    pixels = against[0].sum(axis=1)
    scores = [
        ClassScore(name, int(pixels[k]), float(both[k]), float(reference[k]), float(candidate[k]))
        for k, name in enumerate(palette.names)
    ]
    return tuple(one for one in scores if not all(map(math.isnan, (one.between, one.reference, one.candidate))))


def _notes(classes: tuple[ClassScore, ...], images: int, truths: int) -> Iterator[str]:
    lost = [one.name for one in classes if one.reference > 0 and not one.candidate > 0]
    if lost:
        yield f"the candidate finds nothing of {', '.join(lost)}, which the reference does find."
    if not truths:
        yield "there is no truth: this says that the answers are the same, not that they are right."
    elif truths < images:
        yield f"mIoU is over the {count(truths, 'image')} that {'have' if truths > 1 else 'has'} a truth."
    if images == 1:
        yield "only one image was compared; several different ones show more."
