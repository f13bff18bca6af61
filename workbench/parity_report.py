"""The result of a comparison: the verdict and its numbers, as text, HTML and JSON."""

import dataclasses
import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workbench.errors import InputError

Cells = tuple[str, ...]
Status = Literal["pass", "fail", "inconclusive"]
COLORS = {"pass": "#2e9e5b", "fail": "#d64545", "inconclusive": "#c98a1b"}
HEADINGS = (
    "output", "result", "shape", "range", "max error", "mean error", "relative L2", "cosine", "agreement",
    "NaN, Inf",
)  # fmt: skip


@dataclass(frozen=True)
class Tolerance:
    """How far a candidate may be from the reference; made for float32 on both sides.

    Attributes:
        max_relative_error: largest error of a single value, as a share of the reference's range.
            Float32 sums in another order give 1e-7 to 1e-5 in networks of 20 to 100 layers. Planted in a
            ResNet-50 with random weights, swapped channels, a lost mean and an input shifted by one pixel
            give 1e-1, 3e-1 and 9e-3. 1e-4 lies between.
        mean_relative_error: mean error, same unit. Rounding is rarely large, so its mean is far below its
            maximum; 1e-5 finds a small error that is everywhere, such as TF32 or float16 somewhere inside.
        agreement: share of images or pixels with the same answer, 0..1. Rounding only changes the answer
            where two classes are equally strong within 1e-5, less than 1 pixel in 1000.

    Raises:
        InputError: a number is negative or not finite, or `agreement` is above 1.
    """

    max_relative_error: float = 1e-4
    mean_relative_error: float = 1e-5
    agreement: float = 0.999

    def __post_init__(self) -> None:
        values = dataclasses.astuple(self)
        if not all(math.isfinite(value) and value >= 0 for value in values) or self.agreement > 1:
            raise InputError(f"got {self}, expected shares of 0 or more and an agreement of at most 1")


@dataclass(frozen=True)
class OutputParity:
    """How one output of the candidate compares with the reference's; errors are shares of the range.

    Attributes:
        name: name of the output in the reference (in the candidate, if only that has it).
        candidate_output: its name in the candidate; None if it has none.
        shape: shape over all images; None where the images differ.
        reference_range: largest minus smallest reference value.
        max_relative_error: largest absolute error / range (infinite if values are not finite).
        mean_relative_error: mean absolute error / range.
        relative_l2: L2 norm of the error / L2 norm of the reference.
        cosine: cosine of the angle between both outputs taken as vectors.
        agreement: share of equal answers, 0..1, or None; `agreement_of` says of what.
        top5_agreement: mean share of the five strongest classes that are the same, or None.
        nan, inf: counts in the reference and in the candidate.
        shift: (rows, columns) by which the candidate is displaced, or None.
        sensitivity: how much the reference varies between images (one image: between pixels), or None.
        worst: (image, max_relative_error), worst image first.
        problems: why this output fails; empty if it does not.
        cause: what the numbers say about the cause, or None.
        tells: False if the reference varies too little for a comparison to mean anything.
    """

    name: str
    candidate_output: str | None
    shape: tuple[int | None, ...]
    reference_range: float = math.nan
    max_relative_error: float = math.nan
    mean_relative_error: float = math.nan
    relative_l2: float = math.nan
    cosine: float = math.nan
    agreement: float | None = None
    agreement_of: str = ""
    top5_agreement: float | None = None
    nan: tuple[int, int] = (0, 0)
    inf: tuple[int, int] = (0, 0)
    shift: tuple[int, int] | None = None
    sensitivity: float | None = None
    worst: tuple[tuple[str, float], ...] = ()
    problems: tuple[str, ...] = ()
    cause: str | None = None
    tells: bool = True

    @property
    def holds_integers(self) -> bool:
        """Whether the values are labels, which are equal or not: only their agreement is judged."""
        return self.agreement_of == "value"

    @property
    def status(self) -> Status:
        """Whether this output passes, fails, or shows nothing."""
        if self.problems:
            return "fail"
        return "pass" if self.tells else "inconclusive"


@dataclass(frozen=True)
class ParityReport:
    """The verdict on a candidate, and the numbers behind it.

    Attributes:
        reference_name, candidate_name: the two runners, as they name themselves.
        status: "pass"; "fail"; or "inconclusive": the reference hardly varies, equal answers show nothing.
        verdict: one sentence.
        outputs: one entry for each output.
        images: how many images were compared.
        worst: (image, max_relative_error over all outputs), worst image first.
        notes: sentences on how far the evidence reaches.
        tolerance: what was allowed.
    """

    reference_name: str
    candidate_name: str
    status: Status
    verdict: str
    outputs: tuple[OutputParity, ...]
    images: int
    worst: tuple[tuple[str, float], ...]
    notes: tuple[str, ...]
    tolerance: Tolerance

    @property
    def passed(self) -> bool:
        """True only if the answers are the same and the comparison shows it."""
        return self.status == "pass"

    def to_text(self) -> str:
        """Write the report as an aligned table; the first line is the verdict."""
        table = text_table(HEADINGS, [_cells(output) for output in self.outputs])
        return "\n".join([self.verdict, "", *table, "", *self._remarks()]) + "\n"

    def to_html(self) -> str:
        """Write the report as a small table that reads well in light and dark notebooks."""
        table = html_table(HEADINGS, [_cells(output) for output in self.outputs])
        remarks = "".join(f'<div style="opacity:.8">{html.escape(text)}</div>' for text in self._remarks())
        return (
            f'<div style="border-left:.35em solid {COLORS[self.status]};padding:.2em .8em;color:inherit">'
            f'<div style="font-weight:600;margin-bottom:.4em">{html.escape(self.verdict)}</div>{table}{remarks}</div>'
        )

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_json(self) -> str:
        """Write the report as strict JSON: numbers that are not finite become null."""
        content = {"passed": self.passed, **dataclasses.asdict(self)}
        for entry, output in zip(content["outputs"], self.outputs, strict=True):
            entry["status"] = output.status
        return json.dumps(finite_or_none(content), indent=2, allow_nan=False) + "\n"

    def _remarks(self) -> list[str]:
        allowed = self.tolerance
        lines = [
            f"Reference: {self.reference_name}. Candidate: {self.candidate_name}. {count(self.images, 'image')}.",
            f"Errors are shares of the reference's range. Allowed: max {allowed.max_relative_error:.0e}, "
            f"mean {allowed.mean_relative_error:.0e}, agreement {percent(allowed.agreement)}.",
        ]
        if len(self.worst) > 1:
            worst = ", ".join(f"{name} ({error:.1e})" for name, error in self.worst[:3])
            lines.append(f"Worst: {worst}.")
        lines += [f"Output {output.name}: {problem}." for output in self.outputs for problem in output.problems]
        return lines + [f"Note: {note}" for note in self.notes]


def _cells(output: OutputParity) -> tuple[str, ...]:
    agreement = "-" if output.agreement is None else f"{percent(output.agreement)} {output.agreement_of}"
    if output.top5_agreement is not None:
        agreement += f", {percent(output.top5_agreement)} top-5"
    return (
        output.name,
        output.status,
        " x ".join("?" if length is None else str(length) for length in output.shape) or "scalar",
        _number(output.reference_range, ".4g"),
        _number(output.max_relative_error, ".1e"),
        _number(output.mean_relative_error, ".1e"),
        _number(output.relative_l2, ".1e"),
        _number(output.cosine, ".6f"),
        agreement,
        f"{sum(output.nan)}, {sum(output.inf)}",
    )


def _number(value: float, style: str) -> str:
    return "-" if math.isnan(value) else format(value, style)


def percent(share: float) -> str:
    """Write a share in percent, never rounded up to 100 %."""
    return "100 %" if share == 1 else f"{min(100 * share, 99.9999):.6g} %"


def count(number: int, noun: str) -> str:
    """Write a number and its noun, in the plural where needed."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def text_table(headings: Cells, rows: Sequence[Cells]) -> list[str]:
    """Align cells to columns: the headings, a line, then the rows."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = (headings, tuple("-" * width for width in widths), *rows)
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in lines]


def html_table(headings: Cells, rows: Sequence[Cells]) -> str:
    """Write cells as a table that reads well in light and dark notebooks."""
    line = "border-bottom:1px solid rgba(128,128,128,.35);padding:.25em .7em;text-align:left"

    def row(tag: str, cells: Cells) -> str:
        inner = "".join(f'<{tag} style="{line}">{html.escape(cell)}</{tag}>' for cell in cells)
        return f"<tr>{inner}</tr>"

    body = "".join(row("td", cells) for cells in rows)
    return (
        '<table style="border-collapse:collapse;color:inherit;background:transparent;font-size:90%">'
        f"<thead>{row('th', headings)}</thead><tbody>{body}</tbody></table>"
    )


def finite_or_none(value: Any) -> Any:
    """The same value for strict JSON, with None for numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite_or_none(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(entry) for entry in value]
    return value
