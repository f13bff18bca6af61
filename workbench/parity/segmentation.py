"""Compare label maps with each other and with the truth: agreement, mIoU and its change, image by image."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.core.contract import RunnerInfo
from workbench.core.errors import InputError
from workbench.core.report import Cells, Report, Status, Table, count, percent
from workbench.core.shifts import best_shift
from workbench.pictures.cityscapes import CITYSCAPES, VOID, Palette, class_iou, confusion_matrix, mean_iou

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGE_HEADINGS = (
    "image, worst first", "pixels that differ", "mIoU of both", "reference", "candidate", "change", "shift",
)  # fmt: skip
CLASS_HEADINGS = ("class", "true pixels", "IoU of both", "reference", "candidate", "change")
SHOWN_IMAGES = 5


@dataclass(frozen=True)
class SegmentationLimits:
    """How far a candidate's label maps may be from the reference's, in shares of 0..1; InputError for others.

    A street scene displaced by one pixel keeps 98.8 % of its classes (notebook 02) and loses 0.021 of mIoU, swapped
    colours 0.27; rounding in float32 changes fewer than 1 pixel in 1000, and mIoU by less than 0.0001.
    """

    agreement: float = 0.999  # share of all pixels with the same class
    worst_image: float = 0.99  # the same in each image, so that one broken image cannot hide among thousands
    miou_loss: float = 0.005  # how much mIoU against the truth may fall

    def __post_init__(self) -> None:
        if not all(0 <= value <= 1 for value in dataclasses.astuple(self)):
            raise InputError(f"got {self}, expected shares of 0 to 1")


@dataclass(frozen=True)
class ClassScore:
    """How one class fared over all images: its IoU, NaN where it does not occur."""

    name: str
    pixels: int  # scored ones of the truth that are of this class
    between: float  # IoU of the candidate with the reference
    reference: float  # against the truth, as for the candidate
    candidate: float

    @property
    def change(self) -> float:
        """The candidate's IoU less the reference's."""
        return self.candidate - self.reference


@dataclass(frozen=True)
class ImageScore(ClassScore):
    """How one image fared: mIoU in place of IoU, void counted as a class between the two; NaN without a truth."""

    differing: int = 0  # how many of all its `pixels` have another class in the candidate
    shift: tuple[int, int] | None = None  # (rows, columns) by which the candidate's labels are displaced

    @property
    def agreement(self) -> float:
        """Share of pixels with the same class, 0..1."""
        return 1 - self.differing / max(1, self.pixels)


@dataclass(frozen=True, eq=False)
class SegmentationReport(Report):
    """The verdict on a candidate's label maps, and the numbers behind it.

    Attributes:
        status: "pass"; "fail"; or "inconclusive": the reference paints one class only.
        images: one entry for each, worst first: most differing pixels, then largest loss of mIoU.
        classes: one entry for each class that occurs, in the palette's order.
        agreement: share of all pixels with the same class.
        between: mIoU of the candidate with the reference.
        reference_miou, candidate_miou: against the truth, over the `truths` images that have one; NaN if none has.
        shift: (rows, columns) by which every image that differs is displaced, or None.
        problems: why it fails; empty if it does not.
        reference_confusion, candidate_confusion: (N, N + 1) int64, see `confusion_matrix`.
    """

    reference_name: str
    candidate_name: str
    status: Status
    verdict: str
    images: tuple[ImageScore, ...]
    classes: tuple[ClassScore, ...]
    agreement: float
    between: float
    reference_miou: float
    candidate_miou: float
    truths: int
    shift: tuple[int, int] | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    limits: SegmentationLimits
    reference_confusion: NDArray[np.int64] = field(repr=False)
    candidate_confusion: NDArray[np.int64] = field(repr=False)

    @property
    def change(self) -> float:
        """The candidate's mIoU less the reference's; NaN without a truth."""
        return self.candidate_miou - self.reference_miou

    def figure(self, *runners: RunnerInfo) -> "Figure":
        """Draw the IoU of each class for both runners, and what the change costs, the largest loss first.

        `runners` are both `info`s; then no other name can get into the figure. InputError where no image has a truth.
        """
        from workbench.core.drawing import refuse_false_names, title_of
        from workbench.parity.segmentation_figures import change_figure

        names = (self.reference_name, self.candidate_name)
        if runners and tuple(map(title_of, runners)) != names:
            got = " and ".join(map(title_of, runners))
            raise InputError(f"got {got}, expected the report's {names[0]} and {names[1]}")
        scores = sorted((one for one in self.classes if not np.isnan(one.change)), key=lambda one: one.change)
        if not scores:
            raise InputError("got a report without a truth, expected one; pass the truth to compare_segmentation")
        caption = f"mIoU {self.reference_miou:.4f} and {self.candidate_miou:.4f} ({self.change:+.4f}) "
        caption += f"on {self.truths} images with a truth."
        figure = change_figure([(one.name, one.reference, one.candidate) for one in scores], names, caption)
        return refuse_false_names(figure, runners) if runners else figure

    def _content(self) -> dict[str, Any]:
        content = super()._content() | {"change": self.change}
        content |= {key: value.tolist() for key, value in content.items() if isinstance(value, np.ndarray)}
        content["images"] = [dataclasses.asdict(one) | {"agreement": one.agreement} for one in self.images]
        content["classes"] = [dataclasses.asdict(one) | {"change": one.change} for one in self.classes]
        return content

    def _tables(self) -> Iterator[Table]:
        rows: list[Cells] = []
        for image in self.images[:SHOWN_IMAGES]:
            differing = f"{image.differing} of {image.pixels} ({100 - 100 * image.agreement:.3g} %)"
            rows.append((image.name, differing, *_score_cells(image), str(image.shift or "-")))
        yield Table(IMAGE_HEADINGS, rows)
        yield Table(CLASS_HEADINGS, [(one.name, str(one.pixels), *_score_cells(one)) for one in self.classes])

    def _remarks(self) -> Iterator[str]:
        allowed = self.limits
        images = f"{count(len(self.images), 'image')}, {self.truths} with a truth"
        yield f"Reference: {self.reference_name}. Candidate: {self.candidate_name}. {images}."
        yield (
            "IoU of both: the candidate against the reference; the other columns: either against the truth. "
            f"Allowed: agreement {percent(allowed.agreement)}, in each image {percent(allowed.worst_image)}, "
            f"mIoU lower by {allowed.miou_loss:g}."
        )
        if len(self.images) > SHOWN_IMAGES:
            yield f"{count(len(self.images) - SHOWN_IMAGES, 'more image')} agree better than these."
        yield from (f"Problem: {text}." for text in self.problems)
        yield from (f"Note: {text}" for text in self.notes)


def _score_cells(entry: ImageScore | ClassScore) -> Cells:
    scores = ((entry.between, ".4f"), (entry.reference, ".4f"), (entry.candidate, ".4f"), (entry.change, "+.4f"))
    return tuple("-" if math.isnan(value) else format(value, style) for value, style in scores)


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
    """Mark the pixels, (H, W) bool, at which two maps of train ids differ; `classes` and 255 are both void.

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
    name: str, truth: ArrayLike | None, reference: NDArray[np.uint8], candidate: NDArray[np.uint8],
    between: NDArray[np.int64], against: NDArray[np.int64],
) -> ImageScore:  # fmt: skip
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
    shift = best_shift(reference, candidate, lambda a, b: float(np.count_nonzero(a != b))) if differing else None
    return ImageScore(name, reference.size, mean_iou(joint), *scores, differing, shift)


def _conclude(
    images: list[ImageScore], between: NDArray[np.int64], against: NDArray[np.int64], names: tuple[str, str],
    palette: Palette, limits: SegmentationLimits,
) -> SegmentationReport:  # fmt: skip
    ordered = sorted(images, key=lambda image: (image.agreement, 0.0 if math.isnan(image.change) else image.change))
    agreement = 1 - sum(image.differing for image in images) / max(1, sum(image.pixels for image in images))
    scores = (mean_iou(against[0]), mean_iou(against[1]))
    truths = sum(not math.isnan(image.reference) for image in images)
    problems = tuple(_find_problems(ordered, agreement, scores, limits))
    shifts = {image.shift for image in images if image.differing}  # one that all of them share is the cause
    shift = shifts.pop() if problems and len(shifts) == 1 else None
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
