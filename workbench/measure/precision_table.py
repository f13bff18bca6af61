"""Accuracy beside speed for each precision of one network: the rows, the table and one sentence of advice."""

import html
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from workbench.core.report import Cells, count, finite_or_none, html_table, text_table
from workbench.measure.latency import Timing, format_ms
from workbench.onnx_graph.cost import amount

WORTH = 1.05
"""A precision is faster than another one only if it is by this factor; less is noise between two runs."""

SHOWN_WORST = 3


@dataclass(frozen=True)
class PrecisionRow:
    """How a network fares in one precision.

    Attributes:
        precision: such as `"fp16"`.
        skipped: why it did not run here; empty if it ran.
        computed_by: the runner's own name.
        arithmetic: what really computed, such as `"int8 in 14 of 21 heavy layers"`.
        real: whether that is the arithmetic of this precision; only then are time and memory given.
        error: largest error of a logit, as a share of the range of the reference's; infinite if values are not finite.
        relative_l2: L2 norm of the error by that of the reference.
        score: mIoU, top-1 accuracy or agreement, 0..1: whatever `PrecisionTable.measure` says; None if there is none.
        loss: how much worse than float32 that is, 0..1; negative where it is better.
        nan, inf: how many answers are NaN or infinite.
        worst: (image, how much of it agrees with float32), worst first.
        kept: name, operator and reason of each node that stays float32.
        qdq_pairs: number of QuantizeLinear and DequantizeLinear pairs.
        timing: of one call; None where the arithmetic is not real.
        memory_bytes: how much a process grows, at its peak, to open the network and run it once; None likewise.
        file_bytes: size of the ONNX file.
        plan_bytes: size of the engine; None where none was built.
        plan_note: why there is none.
    """

    precision: str
    skipped: str = ""
    computed_by: str = ""
    arithmetic: str = ""
    real: bool = False
    error: float = 0.0
    relative_l2: float = 0.0
    score: float | None = None
    loss: float = 0.0
    nan: int = 0
    inf: int = 0
    worst: tuple[tuple[str, float], ...] = ()
    kept: tuple[tuple[str, str, str], ...] = ()
    qdq_pairs: int = 0
    timing: Timing | None = None
    memory_bytes: int | None = None
    file_bytes: int = 0
    plan_bytes: int | None = None
    plan_note: str = ""

    @property
    def ran(self) -> bool:
        """Whether there are answers to judge."""
        return not self.skipped

    @property
    def broken(self) -> bool:
        """Whether the answers hold NaN or infinity."""
        return bool(self.nan or self.inf)


@dataclass(frozen=True)
class PrecisionTable:
    """What each precision costs in accuracy and gives in speed and size; the first row is float32, the reference.

    Attributes:
        network: name of the file.
        rows: one for each precision that was asked for, float32 first.
        measure: what `score` is, such as `"mIoU"` or `"pixel agreement"`.
        against: what it is measured against: `"the labels"`, or `"fp32"` where there are none.
        limit: how much of it may be lost.
        images: how many were judged.
        planner: name of what built the plans; empty if nothing did.
        notes: sentences on how far the evidence reaches.
        machine, versions, date: of this run.
    """

    network: str
    rows: tuple[PrecisionRow, ...]
    measure: str
    against: str
    limit: float
    images: int
    planner: str
    notes: tuple[str, ...]
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    date: str

    def __getitem__(self, precision: str) -> PrecisionRow:
        """Return the row of a precision; KeyError if it was not asked for."""
        for row in self.rows:
            if row.precision == precision:
                return row
        raise KeyError(precision)

    def within_limit(self, row: PrecisionRow) -> bool:
        """Whether a row ran, is finite, and loses no more than is allowed."""
        return row.ran and not row.broken and row.loss <= self.limit

    @property
    def judged(self) -> tuple[PrecisionRow, ...]:
        """The rows that ran, without the reference."""
        return tuple(row for row in self.rows[1:] if row.ran)

    @property
    def passed(self) -> bool:
        """True only if some precision was judged, and each that was loses no more than is allowed."""
        return bool(self.judged) and all(self.within_limit(row) for row in self.judged)

    @property
    def advice(self) -> str:
        """Which precision to take, and why, in one sentence."""
        from workbench.measure.precision_advice import advise

        return advise(self)

    def to_text(self) -> str:
        """Write the table; the first line is the advice."""
        return "\n".join([self.advice, "", *text_table(self._headings(), self._cells()), "", *self._remarks()]) + "\n"

    def to_html(self) -> str:
        """Write the table so that it reads well in light and dark notebooks."""
        remarks = "".join(f'<div style="opacity:.8">{html.escape(text)}</div>' for text in self._remarks())
        return (
            f'<div style="color:inherit"><div style="font-weight:600;margin-bottom:.4em">{html.escape(self.advice)}'
            f"</div>{html_table(self._headings(), self._cells())}{remarks}</div>"
        )

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_json(self) -> str:
        """Write everything as strict JSON: numbers that are not finite become null."""
        rows = [_row_dict(row) | {"within_limit": self.within_limit(row)} for row in self.rows]
        names = ("network", "measure", "against", "limit", "images", "planner", "notes", "date")
        content: dict[str, Any] = {name: getattr(self, name) for name in names}
        content |= {"machine": dict(self.machine), "versions": dict(self.versions)}
        content |= {"passed": self.passed, "advice": self.advice, "rows": rows}
        return json.dumps(finite_or_none(content), indent=2, allow_nan=False) + "\n"

    def _headings(self) -> Cells:
        plan = (f"plan, {self.planner}",) if self.planner else ()
        return (
            "precision", "what computed here", "largest error", self.measure, "change", "NaN, Inf", "ms, median",
            "memory", "ONNX file", *plan,
        )  # fmt: skip

    def _cells(self) -> list[Cells]:
        return [self._row_cells(row) for row in self.rows]

    def _row_cells(self, row: PrecisionRow) -> Cells:
        plan = () if not self.planner else ("-" if row.plan_bytes is None else amount(row.plan_bytes, "B"),)
        if not row.ran:
            return (row.precision, "did not run", *["-"] * 7, *plan)
        return (
            row.precision, row.arithmetic, f"{row.error:.1e}", "-" if row.score is None else f"{row.score:.4f}",
            _change(row, self), f"{row.nan}, {row.inf}", format_ms(row.timing.median_ms) if row.timing else "-",
            "-" if row.memory_bytes is None else amount(row.memory_bytes, "B"), amount(row.file_bytes, "B"), *plan,
        )  # fmt: skip

    def _remarks(self) -> Iterator[str]:
        yield (
            f"{self.network}, {count(self.images, 'image')}. Errors are shares of the range of float32's answers; "
            f"{self.measure} is against {self.against}, and may fall by {self.limit:g}."
        )
        yield from (f"{row.precision} did not run: {row.skipped.rstrip('.')}." for row in self.rows if not row.ran)
        unreal = [row.precision for row in self.judged if not row.real]
        if unreal:
            yield (
                f"This machine does not compute in {_listed(unreal)}: their errors are simulated, "
                "and they have neither time nor memory here."
            )
        for row in self.judged:
            if row.kept:
                names = ", ".join(name for name, *_ in row.kept[:SHOWN_WORST])
                more = f" and {len(row.kept) - SHOWN_WORST} more" if len(row.kept) > SHOWN_WORST else ""
                kept = count(len(row.kept), "node")
                yield f"{row.precision} keeps {kept} in float32: {names}{more} ({row.kept[0][2]})."
            if row.worst and row.worst[0][1] < 1:
                worst = ", ".join(f"{name} ({100 * share:.4g} %)" for name, share in row.worst[:SHOWN_WORST])
                yield f"{row.precision} agrees least with fp32 on {worst}."
            if row.plan_note:
                yield f"{row.precision} has no plan: {row.plan_note.rstrip('.')}."
        yield from self.notes
        yield f"{', '.join(self.machine.values())}, {self.date}."


def _listed(names: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _change(row: PrecisionRow, table: PrecisionTable) -> str:
    if row is table.rows[0] or row.score is None:
        return "-"
    return f"{-row.loss:+.4f}" + ("" if table.within_limit(row) else " too much")


def _row_dict(row: PrecisionRow) -> dict[str, Any]:
    content = {name: value for name, value in vars(row).items() if name != "timing"}
    timing = row.timing
    return content | {
        "median_ms": timing and timing.median_ms,
        "p95_ms": timing and timing.p95_ms,
        "samples_ms": timing and list(timing.samples_ms),
    }
