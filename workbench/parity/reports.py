"""What was found: the stage that broke the network (`StagesReport`), and the layer (`Divergence`)."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from workbench.core.compare import ParityReport, worst_output
from workbench.core.contract import RunnerInfo
from workbench.core.report import Cells, Report, Status, Table, count, percent
from workbench.parity.layer_errors import LayerError, short_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["none", "jump", "growth", "hidden"]
AROUND = 4
"""How many layers before and after the jump the table shows."""

NAMES_SHOWN = 12
STAGE_HEADINGS = ("stage", "computed by", "result", "max error", "rounding", "allowed", "note")
LAYER_HEADINGS = (
    "", "depth", "layer", "operator", "shape", "error before", "error", "range", "largest", "NaN, Inf", "remark",
)  # fmt: skip
LOOK = {
    "none": "small errors from the first layer to the last",
    "jump": "the step: before it only rounding, after it every layer that depends on it is wrong",
    "growth": "a slope without a step: rounding that adds up",
    "hidden": "the outputs are wrong, and no layer before them could be compared",
}


@dataclass(frozen=True)
class Divergence(Report):
    """Where two stages of a network begin to differ.

    Attributes:
        kind: `"none"` (they agree), `"jump"` (one layer breaks it), `"growth"` (no single layer does: rounding that
            adds up), `"hidden"` (the outputs differ, and every layer that could be compared agrees).
        layer: the layer whose error jumps; None unless `kind` is `"jump"`.
        layers: every tensor that was compared, in order of depth.
        pairs: how many tensors could be compared; after the bisection only some are.
        reference_only, candidate_only: layers of the reference, and operators of the candidate, without a counterpart.
        tolerance: the error from which a layer counts as wrong.
        runs, fetched_bytes: how often both were run, and the most that was held of both networks' tensors at a time.
    """

    reference: RunnerInfo
    candidate: RunnerInfo
    kind: Kind
    verdict: str
    layer: LayerError | None
    layers: tuple[LayerError, ...]
    pairs: int
    reference_only: tuple[str, ...]
    candidate_only: tuple[str, ...]
    tolerance: float
    runs: int
    fetched_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def status(self) -> Status:
        """Whether the two agree."""
        return "pass" if self.kind == "none" else "fail"

    def around(self) -> tuple[LayerError, ...]:
        """The compared layers next to the jump; without one, the layers with the largest errors."""
        if self.layer is None:
            worst = sorted(self.layers, key=lambda entry: -entry.max_error_of_range)[: 2 * AROUND]
            return tuple(sorted(worst, key=lambda entry: entry.depth))
        place = self.layers.index(self.layer)
        return self.layers[max(0, place - AROUND) : place + AROUND + 1]

    def figure(self) -> "Figure":
        """Draw the error of each compared tensor over its depth."""
        from workbench.parity.figures import depth_figure

        infos = (self.reference, self.candidate)
        return depth_figure(self.layers, self.layer, infos, self.pairs, self.tolerance, LOOK[self.kind])

    def _tables(self) -> list[Table]:
        return [Table(LAYER_HEADINGS, [self._cells(entry) for entry in self.around()])]

    def _cells(self, entry: LayerError) -> Cells:
        errors = map(short_error, (entry.max_error_of_range_before, entry.max_error_of_range))
        return (
            "->" if entry is self.layer else "", str(entry.depth), entry.layer, entry.operator,
            " x ".join(map(str, entry.shape)) or "scalar", *errors, f"{entry.reference_range:.3g}",
            f"{entry.largest[0]:.3g}", f"{sum(entry.nan)}, {sum(entry.inf)}", entry.remark,
        )  # fmt: skip

    def _remarks(self) -> Iterator[str]:
        yield (
            f"Reference: {self.reference.name}. Candidate: {self.candidate.name}. "
            f"{len(self.layers)} of {count(self.pairs, 'pair')} compared in {count(self.runs, 'run')} of each, "
            f"at most {self.fetched_bytes / 2**20:.3g} MiB of tensors at a time."
        )
        yield (
            f"Errors are shares of the range of the reference's tensor (at least 1 % of its largest value); "
            f"allowed: {self.tolerance:.0e}."
        )
        for names, where in ((self.reference_only, "reference"), (self.candidate_only, "candidate")):
            if names:
                shown, left = ", ".join(names[:NAMES_SHOWN]), len(names) - NAMES_SHOWN
                more = f" and {left} more" if left > 0 else ""
                yield f"Without a counterpart, only in the {where} ({len(names)}): {shown}{more}."
        yield from (f"Note: {note}" for note in self.notes)


@dataclass(frozen=True)
class Stage:
    """One stage of the network on its way to the engine."""

    name: str  # such as "raw ONNX"
    runner: str = ""  # the name of what computed it; empty if it did not run
    made: str = ""  # what came to be, such as "built, 12.1 MB"
    skipped: str = ""  # why it did not run
    failed: bool = False  # it could not be made at all: it is the stage at fault

    def cells(self, report: ParityReport | None) -> Cells:
        """The row of the stage, with the report on it and the stage before it."""
        if self.skipped:
            reason = f"{self.made}, not run: {self.skipped}" if self.made else self.skipped
            return (self.name, "-", "fail" if self.failed else "not run", "-", "-", "-", reason)
        *result, agreement = ("reference", "-", "-", "-", "") if report is None else _judged(report)
        return (self.name, self.runner or "-", *result, ", ".join(filter(None, (self.made, agreement))))


@dataclass(frozen=True)
class StagesReport(Report):
    """The verdict on a chain of stages.

    Attributes:
        stages: every stage, those that did not run included, in order.
        reports: one report for each stage that ran but the first, against the stage that ran before it.
        stage_at_fault: the name of the first stage that breaks the network, or None.
        divergence: where that stage leaves the one before it, if the two could be looked into.
        whole: the last stage that ran against the first, if every stage passed and there are more than two.
    """

    stages: tuple[Stage, ...]
    reports: tuple[ParityReport, ...]
    status: Status
    stage_at_fault: str | None
    verdict: str
    divergence: Divergence | None = None
    whole: ParityReport | None = None
    notes: tuple[str, ...] = ()

    def figure(self) -> "Figure":
        """Draw the layers of the stage at fault where they could be compared, else the error of each stage."""
        if self.divergence is not None:
            return self.divergence.figure()
        from workbench.parity.figures import errors_figure

        title = f"Each stage against the one before it, from {self.stages[0].name} on"
        return errors_figure(self._compared(), title)

    def _compared(self) -> dict[str, ParityReport]:
        """The report of each stage that was compared with the one before it, and that on the ends."""
        ran = [stage.name for stage in self.stages if not stage.skipped]
        reports = dict(zip(ran[1:], self.reports, strict=True))
        return reports if self.whole is None else {**reports, "first to last": self.whole}

    def _tables(self) -> Iterator[Table]:
        compared = self._compared()
        rows = [stage.cells(compared.get(stage.name)) for stage in self.stages]
        if self.whole is not None:
            rows.append(("first to last", "-", *_judged(self.whole)))
        yield Table(STAGE_HEADINGS, rows)
        for report in self._failed():
            yield from (replace(table, title=report.verdict) for table in report._tables())
        if self.divergence is not None:
            yield from (replace(table, title=self.divergence.verdict) for table in self.divergence._tables())

    def _remarks(self) -> Iterable[str]:
        for report in self.reports:
            allowed = report.tolerance.describe()
            yield f"Errors: the largest from the stage before, as a share of that one's range. Allowed: {allowed}."
        for report in self._failed():
            yield from report._remarks()
        for report in list(self._compared().values())[-1:]:
            if report.status != "fail" and len(report.worst) > 1:
                yield f"Worst: {', '.join(f'{name} ({error:.1e})' for name, error in report.worst[:3])}."
        yield from (f"Note: {note}" for report in self.reports for note in report.notes)
        yield from (f"Note: {note}" for note in self.notes)
        if self.divergence is not None:
            yield from self.divergence._remarks()

    def _failed(self) -> list[ParityReport]:
        return [report for report in self._compared().values() if report.status == "fail"]


def _judged(report: ParityReport) -> tuple[str, str, str, str, str]:
    """The word of the verdict, the largest error, beside what rounding does and what is allowed, and the agreement."""
    shares = [(output.agreement, output.agreement_of) for output in report.outputs if output.agreement is not None]
    agreement = "".join(f"{what} agreement {percent(share)}" for share, what in sorted(shares)[:1])
    worst = worst_output(report)
    numbers = (worst.max_relative_error, worst.noise, worst.allowed)
    error, noise, allowed = (short_error(math.nan if number is None else number) for number in numbers)
    return report.status, error, noise, allowed, agreement
