"""What `verify_stages` found: which stage broke the network, and at which layer, as text, HTML and JSON."""

import dataclasses
import html
import json
from dataclasses import dataclass

from workbench.divergence_report import Divergence
from workbench.parity_report import COLORS, ParityReport, Status, finite_or_none, html_table, percent, text_table

HEADINGS = ("stage", "computed by", "compared with", "result", "max error", "agreement", "remark")


@dataclass(frozen=True)
class Stage:
    """One form of the network on its way to the engine.

    Attributes:
        name: such as `"raw ONNX"`.
        runner: the name of what computed it; empty if it did not run.
        skipped: why it did not run; empty if it did.
        failed: whether it could not be made at all, so that it is the stage at fault.
    """

    name: str
    runner: str = ""
    skipped: str = ""
    failed: bool = False


@dataclass(frozen=True)
class StagesReport:
    """The verdict on a chain of stages.

    Attributes:
        stages: every stage, those that did not run included, in order.
        reports: one report for each stage that ran but the first, against the stage that ran before it.
        status: `"pass"`, `"fail"` or `"inconclusive"`.
        stage_at_fault: the name of the first stage that breaks the network, or None.
        verdict: one sentence.
        divergence: where that stage leaves the one before it, if the two could be looked into.
        whole: the last stage that ran against the first, if every stage passed and there are more than two.
        notes: sentences on how far the evidence reaches.
    """

    stages: tuple[Stage, ...]
    reports: tuple[ParityReport, ...]
    status: Status
    stage_at_fault: str | None
    verdict: str
    divergence: Divergence | None = None
    whole: ParityReport | None = None
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True only if every stage that ran answers like the one before it, and the comparison shows it."""
        return self.status == "pass"

    def to_text(self) -> str:
        """Write the verdict, a table of the stages and what the layers showed."""
        if len(self.stages) == 2 and self.reports:
            body = self.reports[0].to_text().removeprefix(self.reports[0].verdict).strip("\n")
        else:
            body = "\n".join(text_table(HEADINGS, self._rows()))
        parts = [self.verdict, body, *self._details()]
        if self.divergence is not None:
            parts.append(self.divergence.to_text().rstrip("\n"))
        return "\n\n".join(part for part in parts if part) + "\n"

    def to_html(self) -> str:
        """Write the same as HTML that reads well in light and dark notebooks."""
        remarks = "".join(f'<div style="opacity:.8">{html.escape(text)}</div>' for text in self._details())
        inner = self.divergence.to_html() if self.divergence is not None else ""
        return (
            f'<div style="border-left:.35em solid {COLORS[self.status]};padding:.2em .8em;color:inherit">'
            f'<div style="font-weight:600;margin-bottom:.4em">{html.escape(self.verdict)}</div>'
            f"{html_table(HEADINGS, self._rows())}{remarks}{inner}</div>"
        )

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_json(self) -> str:
        """Write everything as strict JSON: numbers that are not finite become null."""
        content = {"passed": self.passed, **dataclasses.asdict(self)}
        return json.dumps(finite_or_none(content), indent=2, allow_nan=False) + "\n"

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        before, waiting = "", iter(self.reports)
        for stage in self.stages:
            if stage.skipped:
                rows.append((stage.name, "-", "-", "fail" if stage.failed else "not run", "-", "-", stage.skipped))
                continue
            report = next(waiting) if before else None
            rows.append((stage.name, stage.runner, before or "-", *_result(report)))
            before = stage.name
        return rows

    def _details(self) -> list[str]:
        lines = []
        if len(self.stages) > 2:
            failed = [report for report in self.reports if report.status != "pass"]
            lines += [report.verdict for report in failed]
            lines += [f"First to last: {self.whole.verdict}"] if self.whole is not None else []
        return lines + [f"Note: {note}" for note in self.notes]


def _result(report: ParityReport | None) -> tuple[str, str, str, str]:
    if report is None:
        return ("reference", "-", "-", "")
    error = max(output.max_relative_error for output in report.outputs)
    shares = [output.agreement for output in report.outputs if output.agreement is not None]
    return (report.status, f"{error:.1e}", percent(min(shares)) if shares else "-", "")
