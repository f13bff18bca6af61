"""The pictures on which every precision is judged, their truth, and the grade of a candidate."""

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core.compare import ParityReport, compare_batches
from workbench.core.contract import Runner, TensorSpec
from workbench.core.errors import InputError
from workbench.core.output_errors import Tolerance
from workbench.pictures.cityscapes import CITYSCAPES, confusion_matrix, mean_iou
from workbench.pictures.feeds import Feed, make_feeds
from workbench.pictures.images import list_images
from workbench.pictures.labels import fit_labels, load_labels, pair_labels

Truth = NDArray[np.integer] | int
"""A label map (H, W) of train ids, or the number of a class."""

SHOWN_WORST = 5
_LOOSE = Tolerance(1e9, 1e9, 0.0)  # errors are shown here, and judged by what they do to the answers


@dataclass
class Grade:
    """How a candidate's answers compare with float32's and with the truth; filled picture by picture.

    Attributes:
        agreement: share of a picture's pixels (or 1 or 0 for its only class) that agree with float32, by picture.
        truths: pictures that were compared with their truth.
        correct: how many of those float32 and the candidate classify correctly.
        confusion: counts of float32 and of the candidate against the truth; None before the first label map.
        pixels: whether the answers are maps.
        parity: errors of the numbers themselves.
    """

    agreement: dict[str, float] = field(default_factory=dict)
    truths: int = 0
    correct: list[int] = field(default_factory=lambda: [0, 0])
    confusion: list[NDArray[np.int64]] | None = None
    pixels: bool = False
    parity: ParityReport | None = None

    def add(
        self, name: str, outputs: Mapping[str, NDArray], others: Mapping[str, NDArray], truth: Truth | None
    ) -> None:
        """Compare the classes of one picture, in the first output that has some."""
        found = ((key, find_classes(outputs[key])) for key in outputs if key in others)
        key, found_here = next(((key, classes) for key, classes in found if classes is not None), ("", None))
        if found_here is None:
            return
        reference, number = found_here
        candidate = find_classes(others[key])
        if candidate is None or candidate[0].shape != reference.shape:
            return
        self.pixels = reference.ndim == 2
        self.agreement[name] = float(np.mean(reference == candidate[0]))
        if truth is not None:
            self._add_truth(name, [reference, candidate[0]], np.asarray(truth), number)

    def _add_truth(self, name: str, answers: list[NDArray], truth: NDArray, classes: int) -> None:
        if truth.ndim != answers[0].ndim:
            given, expected = ("a map", "the number of a class") if truth.ndim else ("one number", "a label map")
            raise InputError(f"got {given} as the label of {name}, expected {expected}; the network answers so")
        self.truths += 1
        if not truth.ndim:
            self.correct = [count + int(answer == truth) for count, answer in zip(self.correct, answers, strict=True)]
            return
        labels = fit_labels(truth.astype(np.uint8), answers[0].shape)
        counts = [confusion_matrix(labels, answer, classes) for answer in answers]
        held = self.confusion or [np.zeros_like(one) for one in counts]
        self.confusion = [one + other for one, other in zip(held, counts, strict=True)]

    def columns(self, has_labels: bool) -> dict[str, Any]:
        """The fields of `PrecisionRow` that come from the answers."""
        before, after = self._scores(has_labels)
        outputs = self.parity.outputs if self.parity else ()
        error = max((one.max_relative_error for one in outputs if not one.holds_integers), default=0.0)
        worst = sorted(self.agreement.items(), key=lambda entry: entry[1])[:SHOWN_WORST]
        return {
            "error": error,
            "relative_l2": self._relative_l2(),
            "score": after,
            "loss": before - after,
            "nan": sum(one.nan[1] for one in outputs),
            "inf": sum(one.inf[1] for one in outputs),
            "worst": tuple(worst),
        }

    def _scores(self, has_labels: bool) -> tuple[float, float]:
        """The measure for float32 and for the candidate."""
        if has_labels and self.confusion is not None:
            return mean_iou(self.confusion[0]), mean_iou(self.confusion[1])
        if has_labels and self.truths:
            return self.correct[0] / self.truths, self.correct[1] / self.truths
        if self.agreement:
            return 1.0, float(np.mean(list(self.agreement.values())))
        return 1.0, 1.0 - self._relative_l2()

    def _relative_l2(self) -> float:
        errors = [one.relative_l2 for one in self.parity.outputs if not one.holds_integers] if self.parity else []
        return max((error for error in errors if not math.isnan(error)), default=0.0)


class Exam:
    """Named inputs, read again for each candidate, and what is true of them.

    Args:
        specs: the network's inputs.
        feeds: (name, feed) pairs; they are kept in memory.
        images: a folder of pictures, read one at a time; built-in ones when both are None.
        preprocess: see `workbench.pictures.feeds.make_feeds`.
        labels: see `workbench.measure.precision_sweep.precision_sweep`.
    Raises:
        InputError: no feed, both feeds and images, labels and images that do not belong together.

    Attributes:
        preprocess: how pictures became inputs; empty for given feeds.
        count: number of pictures.
        has_labels: whether there is a truth.
        notes: sentences on how far the evidence reaches.
    """

    def __init__(
        self,
        specs: Sequence[TensorSpec],
        feeds: Iterable[tuple[str, Feed]] | None = None,
        images: str | os.PathLike[str] | None = None,
        preprocess: str = "unit",
        labels: str | os.PathLike[str] | Mapping[str, Truth] | None = None,
    ) -> None:
        if feeds is not None and images is not None:
            raise InputError("got feeds and images; give one of them")
        self._specs = {spec.name: spec for spec in specs}
        self._images, self.preprocess = images, "" if feeds is not None else preprocess
        self._kept: list[tuple[str, Feed]] | None = None
        if images is None:
            self._kept = list(make_feeds(self._specs, None, preprocess) if feeds is None else feeds)
        names = [name for name, _ in self._kept] if self._kept is not None else _image_names(images)
        if not names:
            raise InputError("got no feed to judge on; give at least one (name, arrays) pair, or a folder of images")
        self.count, self._labels = len(names), _pair(names, labels)
        self.has_labels = labels is not None
        self.notes = ("Only one image was judged; several different ones show more.",) if self.count == 1 else ()

    def __iter__(self) -> Iterator[tuple[str, Feed]]:
        if self._kept is not None:
            return iter(self._kept)
        return make_feeds(self._specs, self._images, self.preprocess)

    def judge(self, reference: Runner, candidate: Runner) -> Grade:
        """Run both on every picture, one at a time."""
        grade = Grade()

        def answers() -> Iterator[tuple[str, dict[str, NDArray], dict[str, NDArray]]]:
            for name, feed in self:
                one, other = reference.infer(feed), candidate.infer(feed)
                grade.add(name, one, other, self._truth(name))
                yield name, one, other

        grade.parity = compare_batches(
            answers(), reference_name=reference.info.name, candidate_name=candidate.info.name, tolerance=_LOOSE
        )
        return grade

    def measure(self, grade: Grade | None) -> tuple[str, str]:
        """What is measured, and against what."""
        if grade is None or not grade.agreement:
            return "1 - relative L2", "fp32"
        if self.has_labels:
            return ("mIoU" if grade.pixels else "top-1 accuracy"), "the labels"
        return ("pixel agreement" if grade.pixels else "top-1 agreement"), "fp32"

    def _truth(self, name: str) -> Truth | None:
        found = self._labels.get(name)
        return load_labels(found) if isinstance(found, Path) else found


def find_classes(output: NDArray) -> tuple[NDArray, int] | None:
    """Turn the output of the first picture of a batch into classes.

    Args:
        output: logits (N, C, H, W), (N, H, W, C) or (N, C), or label maps (N, H, W) of integers. A single channel says
            yes above 0; Cityscapes' twentieth is void, and so is a label of 19.
    Returns:
        The map (H, W) of classes, or the class as an array without axes, and the number of classes that are scored;
        None for any other output.
    """
    if output.ndim == 3 and output.dtype.kind in "iu":
        return output[0], len(CITYSCAPES)
    if output.dtype.kind != "f" or output.ndim not in (2, 4):
        return None
    axis = 1 if output.ndim == 2 or output.shape[1] <= output.shape[3] else 3
    channels, one = output.shape[axis], output[0]
    if channels == 1:
        return np.asarray(one.take(0, axis - 1) > 0).astype(np.int64), 2
    return np.asarray(one.argmax(axis - 1)), len(CITYSCAPES) if channels == len(CITYSCAPES) + 1 else channels


def _image_names(folder: str | os.PathLike[str] | None) -> list[str]:
    return [path.name for path in list_images(folder)] if folder is not None else []


def _pair(
    names: Sequence[str], labels: str | os.PathLike[str] | Mapping[str, Truth] | None
) -> Mapping[str, Path | Truth]:
    if labels is None:
        return {}
    double = [name for name, many in itertools.groupby(sorted(names)) if len(list(many)) > 1]
    if double:
        raise InputError(f"got several feeds called {double[0]}, expected names that differ; labels are found by name")
    if not isinstance(labels, Mapping):
        return pair_labels(names, labels)
    lonely = sorted(set(labels) ^ set(names))
    if lonely:
        what = "a label without its image" if lonely[0] in labels else "an image without its label"
        raise InputError(f"got {what}: {lonely[0]!r}; give one label for each image, by its name")
    return labels
