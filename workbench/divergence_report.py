"""What `first_divergence` found: the layer whose error jumps, the layers around it, as text, HTML and JSON."""

import dataclasses
import html
import json
import math
from dataclasses import dataclass
from typing import Literal

from workbench.parity_report import COLORS, count, finite_or_none, html_table, text_table
from workbench.runners.base import RunnerInfo

Kind = Literal["none", "jump", "growth", "hidden"]
AROUND = 4
"""How many layers before and after the jump the table shows."""

FLOAT16_LARGEST = 65504.0
HEADINGS = (
    "",
    "depth",
    "layer",
    "operator",
    "shape",
    "error before",
    "error",
    "range",
    "largest",
    "NaN, Inf",
    "remark",
)
NAMES_SHOWN = 12


@dataclass(frozen=True)
class LayerError:
    """How far one tensor inside the candidate is from the reference's.

    Attributes:
        layer: the layer, or several joined by " + " where an exporter made one of them.
        operator: what computes it in the candidate.
        depth: its place among all pairs, in the order of computation.
        reference_tensor: its name in the reference.
        candidate_tensor: its name in the candidate.
        shape: in the reference.
        error: largest absolute error as a share of the reference's range, or of 1 % of its largest value if that is
            more; infinite where values are not finite.
        before: the largest error among the tensors it is computed from; NaN where these were not compared.
        reference_range: largest minus smallest reference value.
        largest: largest absolute value in the reference and in the candidate, of those that are finite.
        nan, inf: counts in the reference and in the candidate.
        remark: what the numbers say about the cause; empty if nothing.
    """

    layer: str
    operator: str
    depth: int
    reference_tensor: str
    candidate_tensor: str
    shape: tuple[int, ...]
    error: float
    reference_range: float
    largest: tuple[float, float]
    nan: tuple[int, int]
    inf: tuple[int, int]
    before: float = math.nan
    remark: str = ""


@dataclass(frozen=True)
class Divergence:
    """Where two forms of a network begin to differ.

    Attributes:
        reference, candidate: what computed the two.
        kind: `"none"` (they agree), `"jump"` (one layer breaks it), `"growth"` (no single layer does: rounding that
            adds up), `"hidden"` (the outputs differ, and every layer that could be compared agrees).
        verdict: one sentence.
        layer: the layer whose error jumps; None unless `kind` is `"jump"`.
        layers: every tensor that was compared, in order of depth.
        pairs: how many tensors could be compared; after the bisection only some are.
        reference_only: layers of the reference without a counterpart.
        candidate_only: operators of the candidate without one.
        tolerance: the error from which a layer counts as wrong.
        runs: how often the two networks were run.
        fetched_bytes: the most that was held of both networks' tensors at a time.
        notes: sentences on how far the evidence reaches.
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
    def found(self) -> bool:
        """Whether one layer is at fault and named."""
        return self.layer is not None

    def around(self) -> tuple[LayerError, ...]:
        """The compared layers next to the jump; without one, the layers with the largest errors."""
        if self.layer is None:
            worst = sorted(self.layers, key=lambda entry: -entry.error)[: 2 * AROUND]
            return tuple(sorted(worst, key=lambda entry: entry.depth))
        place = self.layers.index(self.layer)
        return self.layers[max(0, place - AROUND) : place + AROUND + 1]

    def to_text(self) -> str:
        """Write the verdict, the table of the layers around the jump, and what could not be compared."""
        table = text_table(HEADINGS, [self._cells(entry) for entry in self.around()])
        return "\n".join([self.verdict, "", *table, "", *self._remarks()]) + "\n"

    def to_html(self) -> str:
        """Write the same as HTML that reads well in light and dark notebooks."""
        table = html_table(HEADINGS, [self._cells(entry) for entry in self.around()])
        remarks = "".join(f'<div style="opacity:.8">{html.escape(text)}</div>' for text in self._remarks())
        color = COLORS["pass" if self.kind == "none" else "fail"]
        return (
            f'<div style="border-left:.35em solid {color};padding:.2em .8em;color:inherit">'
            f'<div style="font-weight:600;margin-bottom:.4em">{html.escape(self.verdict)}</div>{table}{remarks}</div>'
        )

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_json(self) -> str:
        """Write everything as strict JSON: numbers that are not finite become null."""
        return json.dumps(finite_or_none(dataclasses.asdict(self)), indent=2, allow_nan=False) + "\n"

    def _cells(self, entry: LayerError) -> tuple[str, ...]:
        return (
            "->" if entry is self.layer else "",
            str(entry.depth),
            entry.layer,
            entry.operator,
            " x ".join(map(str, entry.shape)) or "scalar",
            short_error(entry.before),
            short_error(entry.error),
            f"{entry.reference_range:.3g}",
            f"{entry.largest[0]:.3g}",
            f"{sum(entry.nan)}, {sum(entry.inf)}",
            entry.remark,
        )

    def _remarks(self) -> list[str]:
        lines = [
            f"Reference: {self.reference.name}. Candidate: {self.candidate.name}. "
            f"{len(self.layers)} of {count(self.pairs, 'pair')} compared in {count(self.runs, 'run')} of each, "
            f"at most {self.fetched_bytes / 2**20:.3g} MiB of tensors at a time.",
            f"Errors are shares of the range of the reference's tensor (at least 1 % of its largest value); "
            f"allowed: {self.tolerance:.0e}.",
        ]
        for names, where in ((self.reference_only, "reference"), (self.candidate_only, "candidate")):
            if names:
                more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
                shown = ", ".join(names[:NAMES_SHOWN])
                lines.append(f"Without a counterpart, only in the {where} ({len(names)}): {shown}{more}.")
        return lines + [f"Note: {note}" for note in self.notes]


def short_error(error: float) -> str:
    """Write an error in a table.

    >>> short_error(0.000123), short_error(math.inf), short_error(math.nan)
    ('1.2e-04', 'not finite', '-')
    """
    if math.isnan(error):
        return "-"
    return "not finite" if math.isinf(error) else f"{error:.1e}"
