"""The result of a comparison of label maps: the verdict, images and classes, as text, HTML and JSON."""

import dataclasses
import html
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError
from workbench.parity_report import COLORS, Cells, Status, count, finite_or_none, html_table, percent, text_table

IMAGE_HEADINGS = (
    "image, worst first", "pixels that differ", "mIoU of both", "reference", "candidate", "change", "shift",
)  # fmt: skip
CLASS_HEADINGS = ("class", "true pixels", "IoU of both", "reference", "candidate", "change")
SHOWN_IMAGES = 5


@dataclass(frozen=True)
class SegmentationLimits:
    """How far a candidate's label maps may be from the reference's.

    Attributes:
        agreement: share of all pixels with the same class. Rounding changes fewer than 1 pixel in 1000.
        worst_image: the same in each single image, so that one broken image cannot hide among thousands. A
            street scene that is displaced by one pixel keeps 98.8 % of its classes (notebook 02).
        miou_loss: how much mIoU against the truth may fall, 0..1. That displaced scene loses 0.021,
            swapped colours lose 0.27; rounding in float32 loses less than 0.0001.

    Raises:
        InputError: a number is outside 0..1.
    """

    agreement: float = 0.999
    worst_image: float = 0.99
    miou_loss: float = 0.005

    def __post_init__(self) -> None:
        if not all(0 <= value <= 1 for value in dataclasses.astuple(self)):
            raise InputError(f"got {self}, expected shares of 0 to 1")


@dataclass(frozen=True)
class ImageScore:
    """How one image fared; mIoU is NaN where there is no truth or nothing to score.

    Attributes:
        name: the image.
        pixels, differing: how many there are, and how many have another class in the candidate.
        between: mIoU of the candidate with the reference taken as truth, void counted as a class.
        reference, candidate: mIoU of either against the truth.
        shift: (rows, columns) by which the candidate's labels are displaced, or None.
    """

    name: str
    pixels: int
    differing: int
    between: float
    reference: float = math.nan
    candidate: float = math.nan
    shift: tuple[int, int] | None = None

    @property
    def agreement(self) -> float:
        """Share of pixels with the same class, 0..1."""
        return 1 - self.differing / max(1, self.pixels)

    @property
    def change(self) -> float:
        """The candidate's mIoU less the reference's."""
        return self.candidate - self.reference


@dataclass(frozen=True)
class ClassScore:
    """How one class fared over all images; NaN where a class does not occur.

    Attributes:
        name: the class.
        pixels: scored pixels of the truth that are of this class.
        between: IoU of the candidate with the reference.
        reference, candidate: IoU of either against the truth.
    """

    name: str
    pixels: int
    between: float
    reference: float
    candidate: float

    @property
    def change(self) -> float:
        """The candidate's IoU less the reference's."""
        return self.candidate - self.reference


@dataclass(frozen=True, eq=False)
class SegmentationReport:
    """The verdict on a candidate's label maps, and the numbers behind it.

    Attributes:
        reference_name, candidate_name: the two runners, as they name themselves.
        status: "pass"; "fail"; or "inconclusive": the reference paints one class only.
        verdict: one sentence.
        images: one entry for each, worst first: most differing pixels, then largest loss of mIoU.
        classes: one entry for each class that occurs, in the palette's order.
        agreement: share of all pixels with the same class.
        between: mIoU of the candidate with the reference.
        reference_miou, candidate_miou: against the truth, over all images that have one; NaN if none has.
        truths: how many images have a truth.
        shift: (rows, columns) by which every image that differs is displaced, or None.
        problems: why it fails; empty if it does not.
        notes: sentences on how far the evidence reaches.
        limits: what was allowed.
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
    def passed(self) -> bool:
        """True only if the answers are the same and the comparison shows it."""
        return self.status == "pass"

    @property
    def change(self) -> float:
        """The candidate's mIoU less the reference's; NaN without a truth."""
        return self.candidate_miou - self.reference_miou

    def to_text(self) -> str:
        """Write the report as two aligned tables; the first line is the verdict."""
        tables = (text_table(headings, rows) for headings, rows in self._tables())
        return "\n".join([self.verdict, "", *("\n".join([*table, ""]) for table in tables), *self._remarks()]) + "\n"

    def to_html(self) -> str:
        """Write the report as two small tables that read well in light and dark notebooks."""
        tables = "".join(html_table(headings, rows) for headings, rows in self._tables())
        remarks = "".join(f'<div style="opacity:.8">{html.escape(text)}</div>' for text in self._remarks())
        return (
            f'<div style="border-left:.35em solid {COLORS[self.status]};padding:.2em .8em;color:inherit">'
            f'<div style="font-weight:600;margin-bottom:.4em">{html.escape(self.verdict)}</div>{tables}{remarks}</div>'
        )

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_json(self) -> str:
        """Write the report as strict JSON: numbers that are not finite become null."""
        content: dict[str, Any] = {"passed": self.passed, "change": self.change}
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            content[entry.name] = value.tolist() if isinstance(value, np.ndarray) else value
        content["images"] = [dataclasses.asdict(one) | {"agreement": one.agreement} for one in self.images]
        content["classes"] = [dataclasses.asdict(one) | {"change": one.change} for one in self.classes]
        content["limits"] = dataclasses.asdict(self.limits)
        return json.dumps(finite_or_none(content), indent=2, allow_nan=False) + "\n"

    def _tables(self) -> Iterator[tuple[Cells, list[Cells]]]:
        yield IMAGE_HEADINGS, [_image_cells(image) for image in self.images[:SHOWN_IMAGES]]
        yield CLASS_HEADINGS, [_class_cells(one) for one in self.classes]

    def _remarks(self) -> list[str]:
        allowed = self.limits
        lines = [
            f"Reference: {self.reference_name}. Candidate: {self.candidate_name}. {count(len(self.images), 'image')}, "
            f"{self.truths} with a truth.",
            "IoU of both: the candidate against the reference; the other columns: either against the truth. "
            f"Allowed: agreement "
            f"{percent(allowed.agreement)}, in each image {percent(allowed.worst_image)}, "
            f"mIoU lower by {allowed.miou_loss:g}.",
        ]
        if len(self.images) > SHOWN_IMAGES:
            lines.append(f"{count(len(self.images) - SHOWN_IMAGES, 'more image')} agree better than these.")
        return [*lines, *(f"Problem: {text}." for text in self.problems), *(f"Note: {text}" for text in self.notes)]


def _image_cells(image: ImageScore) -> Cells:
    differing = f"{image.differing} of {image.pixels} ({100 - 100 * image.agreement:.3g} %)"
    shift = "-" if image.shift is None else str(image.shift)
    return (image.name, differing, *map(_score, (image.between, image.reference, image.candidate)),
            _score(image.change, "+.4f"), shift)  # fmt: skip


def _class_cells(one: ClassScore) -> Cells:
    scores = map(_score, (one.between, one.reference, one.candidate))
    return (one.name, str(one.pixels), *scores, _score(one.change, "+.4f"))


def _score(value: float, style: str = ".4f") -> str:
    return "-" if math.isnan(value) else format(value, style)
