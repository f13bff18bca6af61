"""What a network is judged on, and how a candidate's answers compare with float32's and with the truth."""

import hashlib
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core.compare import ParityReport
from workbench.core.contract import TensorSpec
from workbench.core.errors import ImageError, InputError
from workbench.core.files import read_regular
from workbench.core.report import count
from workbench.core.tolerance import Tolerance
from workbench.pictures.cityscapes import CITYSCAPES, confusion_matrix, mean_iou
from workbench.pictures.feeds import PREPROCESSINGS, Feed, Known, load_arrays, make_feeds
from workbench.pictures.images import LARGEST_FILE, list_images
from workbench.pictures.labels import fit_labels, load_labels, pair_labels

Truth = NDArray[np.integer] | int
"""A label map (H, W) of train ids, or the number of a class."""

SHOWN_WORST = 5
LOOSE = Tolerance(1e9, 1e9, 0.0)
"""Errors are shown here, and judged by what they do to the answers."""


@dataclass(frozen=True)
class Pictures:
    """Named inputs, read again for each candidate, and what is true of them; all of it fits into JSON.

    Attributes:
        text: what they are, in words.
        feeds: name and file (.npz) of inputs that were given; None where they are made of pictures.
        images: the folder of pictures; built-in ones when None.
        preprocess: how pictures become inputs; empty for given ones.
        limit: how many are judged; all when None.
        labels: the number of a class, or the file of a label map, by the name of the picture; None without a truth.
    """

    text: str
    feeds: tuple[tuple[str, str], ...] | None
    images: str | None
    preprocess: str
    limit: int | None
    labels: Mapping[str, Any] | None

    def read(self, specs: Mapping[str, TensorSpec], known: Mapping[str, Known]) -> Iterator[tuple[str, Feed]]:
        """All inputs of a network by name, those that are judged first; what is `known` of them helps to make them."""
        if self.feeds is None:
            yield from make_feeds(specs, self.images, self.preprocess, known=known)
        for name, file in self.feeds or ():
            yield name, load_arrays(file)

    def judged(self, specs: Mapping[str, TensorSpec], known: Mapping[str, Known]) -> Iterator[tuple[str, Feed]]:
        """The inputs that are judged."""
        return itertools.islice(self.read(specs, known), self.limit)

    def truth(self, name: str) -> Truth | None:
        """The label map or the class of a picture; None where there is no truth."""
        found = (self.labels or {}).get(name)
        if not isinstance(found, str):
            return found
        return np.asarray(np.load(found)) if found.endswith(".npy") else load_labels(found)


def gather(
    folder: Path,
    feeds: Iterable[tuple[str, Feed]] | None = None,
    images: str | os.PathLike[str] | None = None,
    preprocess: str = "unit",
    labels: str | os.PathLike[str] | Mapping[str, Truth] | None = None,
    limit: int | None = None,
) -> Pictures:
    """Check what shall be judged on, and keep it where a child process finds it.

    The arguments are those of `workbench.measure.sweep.sweep`; the folder is for feeds and labels that are arrays.

    Raises:
        InputError: no feed, both feeds and images, labels and images that do not belong together.
    """
    if feeds is not None and images is not None:
        raise InputError("got feeds and images; give one of them")
    if preprocess not in PREPROCESSINGS:
        raise InputError(f"got preprocess={preprocess!r}, expected one of {', '.join(PREPROCESSINGS)}")
    kept, files = list(feeds or ()), list_images(images) if images is not None else []
    if feeds is not None and not kept:
        raise InputError("got no feed to judge on; give at least one (name, arrays) pair, or a folder of images")
    names = [name for name, _ in kept] or [path.name for path in files]
    paired = _pair(names, labels, folder)
    written = [(name, str(_write(folder / f"feed{number}.npz", feed))) for number, (name, feed) in enumerate(kept)]
    text = "built-in inputs" + ("" if limit is None else f", the first {limit}")
    if names:
        source = f"of {Path(images).name} " if images is not None else ""
        what = count(len(names[:limit]), "picture" if source else "feed")
        text = f"{what} {source}{_digest(files, [*written, *(paired or {}).items()])}"
    text += f", {preprocess}" if feeds is None else ""
    return Pictures(
        text + (", with labels" if labels is not None else ""), tuple(written) if feeds is not None else None,
        None if images is None else os.fspath(images), "" if feeds is not None else preprocess, limit, paired,
    )  # fmt: skip


def _write(path: Path, feed: Feed) -> Path:
    np.savez(path, **feed)  # type: ignore[arg-type]  # names of inputs are keyword arguments
    return path


def _digest(pictures: Iterable[Path], others: Iterable[tuple[str, Any]]) -> str:
    """Eight digits that change with the names and sizes of pictures, and with the content of feeds and labels."""
    digest = hashlib.sha256()
    for file in pictures:
        digest.update(f"{file.name} {file.stat().st_size} ".encode())
    for name, found in others:
        digest.update(
            f"{name} ".encode()
            + (read_regular(found, LARGEST_FILE, ImageError) if isinstance(found, str) else b"%d" % found)
        )
    return digest.hexdigest()[:8]


def _pair(
    names: list[str], labels: str | os.PathLike[str] | Mapping[str, Truth] | None, folder: Path
) -> dict[str, Any] | None:
    """The truth of each picture: the number of its class, or the file of its label map."""
    if labels is None:
        return None
    if not names:
        raise InputError("got labels without their pictures; give images (or feeds) as well")
    double = [name for name, many in itertools.groupby(sorted(names)) if len(list(many)) > 1]
    if double:
        raise InputError(f"got several feeds called {double[0]}, expected names that differ; labels are found by name")
    if not isinstance(labels, Mapping):
        return {name: str(path) for name, path in pair_labels(names, labels).items()}
    lonely = sorted(set(labels) ^ set(names))
    if lonely:
        what = "a label without its image" if lonely[0] in labels else "an image without its label"
        raise InputError(f"got {what}: {lonely[0]!r}; give one label for each image, by its name")
    paired: dict[str, Any] = {}
    for number, (name, truth) in enumerate(labels.items()):
        paired[name] = int(truth) if np.ndim(truth) == 0 else str(folder / f"label{number}.npy")
        if np.ndim(truth):
            np.save(paired[name], np.asarray(truth))
    return paired


@dataclass
class Accuracy:
    """How a candidate's answers compare with float32's and with the truth; filled picture by picture.

    Attributes:
        agreement: share of a picture's pixels (or 1 or 0 for its only class) that agree with float32, by picture.
        truths: pictures whose class was compared with the true one.
        correct: how many of those float32 and the candidate classify correctly.
        confusion: counts of float32 and of the candidate against the truth; None before the first label map.
        pixels: whether the answers are maps.
        images: how many pictures there were.
        values: how many numbers the candidate answered.
    """

    agreement: dict[str, float] = field(default_factory=dict)
    truths: int = 0
    correct: list[int] = field(default_factory=lambda: [0, 0])
    confusion: list[NDArray[np.int64]] | None = None
    pixels: bool = False
    images: int = 0
    values: int = 0

    def add(
        self, name: str, outputs: Mapping[str, NDArray], others: Mapping[str, NDArray], truth: Truth | None
    ) -> None:
        """Compare the classes of one picture, in the first output that has some."""
        self.images += 1
        self.values += sum(array.size for array in others.values())
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
        if not truth.ndim:
            self.truths += 1
            self.correct = [right + int(answer == truth) for right, answer in zip(self.correct, answers, strict=True)]
            return
        labels = fit_labels(truth.astype(np.uint8), answers[0].shape)
        counts = [confusion_matrix(labels, answer, classes) for answer in answers]
        held = self.confusion or [np.zeros_like(one) for one in counts]
        self.confusion = [one + other for one, other in zip(held, counts, strict=True)]

    def columns(self, report: ParityReport) -> dict[str, Any]:
        """The columns of a row that come from the answers; the report compares the numbers themselves."""
        compared = [one for one in report.outputs if not one.holds_integers]
        nan, inf = (sum(getattr(one, kind)[1] for one in report.outputs) for kind in ("nan", "inf"))
        columns: dict[str, Any] = {
            "images": self.images,
            "against": f"float32, {report.reference_name}",
            "nan": nan,
            "inf": inf,
            "max_error_of_range": _largest(one.max_relative_error for one in compared),
            "relative_l2": _largest(one.relative_l2 for one in compared),
        }
        if self.agreement:
            worst = sorted(self.agreement.items(), key=lambda entry: entry[1])[:SHOWN_WORST]
            mean, of = float(np.mean(list(self.agreement.values()))), "pixels" if self.pixels else "pictures"
            columns |= {"top1_agreement": mean, "agreement_of": of, "worst": worst}
        columns |= self._scores()
        mismatch = [f"output {one.name}: {one.problems[0]}" for one in compared if math.isnan(one.max_relative_error)]
        if nan or inf:
            reason = f"{nan + inf:,} of {self.values:,} answers are NaN or infinite"
            return columns | {"status": "failed", "reason": reason}
        return columns | ({"status": "failed", "reason": mismatch[0]} if mismatch else {})

    def _scores(self) -> dict[str, float]:
        if self.confusion is not None:
            name, (before, after) = "miou", [mean_iou(one) for one in self.confusion]
        elif self.truths:
            name, (before, after) = "accuracy", [right / self.truths for right in self.correct]
        else:
            return {}
        return {} if math.isnan(after) else {name: after, f"{name}_change": after - before}


def _largest(errors: Iterable[float]) -> float | None:
    """The largest error, with five digits; None where one is not finite."""
    largest = max(errors, default=0.0)
    return float(f"{largest:.5g}") if math.isfinite(largest) else None


def find_classes(output: NDArray) -> tuple[NDArray, int] | None:
    """The classes of the first picture of a batch, (H, W) or without axes, and how many of them are scored.

    The output is logits (N, C, H, W), (N, H, W, C) or (N, C), or label maps (N, H, W) of integers; None for any other.
    A single channel says yes above 0; Cityscapes' twentieth is void, and so is a label of 19.
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
