"""What `first_divergence` found: the layer whose error jumps, the layers around it, as text, HTML and JSON."""

import dataclasses
import html
import itertools
import json
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workbench.core.compare import compare_outputs
from workbench.core.contract import RunnerInfo
from workbench.core.report import COLORS, count, finite_or_none, html_table, text_table
from workbench.parity.pairs import Pair

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


LAYOUTS = ((0, 1, 2, 3), (0, 3, 1, 2), (0, 2, 3, 1))
"""Orders of the four axes: the same, channels moved to the front, channels moved to the back."""

NEARLY_CONSTANT = 0.01
"""Errors are never taken relative to less than this share of a tensor's largest value."""

EXPLAINED = 0.02
"""A change explains an error if it takes away all but this share of it."""


def tensor_error(pair: Pair, depth: int, reference: NDArray, candidate: NDArray) -> LayerError | None:
    """Measure how far a candidate's tensor is from the reference's.

    Args:
        pair: what the two tensors are.
        depth: the place of the pair.
        reference: the reference's tensor.
        candidate: the candidate's, in the same or another layout.
    Returns:
        The error, or None where the two are not comparable: other sizes, or no numbers.
    """
    aligned = align(reference, candidate)
    if aligned is None or reference.dtype.kind not in "biuf" or not reference.size:
        return None
    left, right = _finite(reference), _finite(aligned)
    low, high = float(left.min()), float(left.max())
    error = largest_difference(left, right) / _scale(low, high)
    bad = [~np.isfinite(array) for array in (reference, aligned)] if reference.dtype.kind == "f" else []
    if bad and not np.array_equal(*bad):
        error = math.inf
    return LayerError(
        layer=pair.layer,
        operator=pair.operator,
        depth=depth,
        reference_tensor=pair.reference,
        candidate_tensor=pair.candidate,
        shape=tuple(reference.shape),
        error=error,
        reference_range=high - low,
        largest=(max(abs(low), abs(high)), float(np.abs(right).max())),
        nan=_counts(np.isnan, reference, aligned),
        inf=_counts(np.isinf, reference, aligned),
    )


def explain(reference: NDArray, candidate: NDArray) -> str:
    """Say what kind of error two tensors show, where one change takes nearly all of it away.

    Args:
        reference: the reference's tensor.
        candidate: the candidate's, in the same or another layout.
    Returns:
        A few words such as "shifted by (0, 1) pixels (rows, columns)"; empty if the numbers show nothing.
    """
    aligned = align(reference, candidate)
    if aligned is None or reference.dtype.kind != "f":
        return ""
    if not np.isfinite(aligned).all() and np.isfinite(reference).all():
        return _overflow(reference, aligned)
    if (swapped := _swapped_axis(reference, aligned)) is not None:
        return f"the order of axis {swapped} is reversed"
    if reference.ndim < 2:
        return ""
    named = ({"tensor": reference}, {"tensor": aligned})
    report = compare_outputs(*named, reference_name="reference", candidate_name="candidate")
    return report.outputs[0].cause or _offsets(reference, aligned)


def align(reference: NDArray, candidate: NDArray) -> NDArray | None:
    """Bring a candidate into the reference's layout: axes of length 1 do not count, channels may be first or last.

    Returns:
        A view in the reference's shape, the closest one where several layouts fit; None if none does.
    """
    views = []
    if candidate.ndim == 4:
        views = [candidate.transpose(order) for order in LAYOUTS]
    fitting = [view for view in (candidate, *views[1:]) if view.shape == reference.shape]
    if not fitting:
        squeezed = [view for view in (candidate, *views[1:]) if _lengths(view.shape) == _lengths(reference.shape)]
        fitting = [view.reshape(reference.shape) for view in squeezed[:1]]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    return min(fitting, key=lambda view: largest_difference(_finite(reference), _finite(view)))


def largest_difference(one: NDArray, other: NDArray) -> float:
    """The largest absolute difference, picture by picture, so that only one picture is held once more."""
    if not one.ndim:
        return float(abs(float(one) - float(other)))
    rows = zip(one, other, strict=True)
    return max((float(np.abs(_signed(a) - _signed(b)).max()) for a, b in rows), default=0.0)


def _signed(array: NDArray) -> NDArray:
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def _finite(array: NDArray) -> NDArray:
    """The array with 0 for what is not finite; the array itself where everything is."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return array
    return np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)


def _scale(low: float, high: float) -> float:
    """What errors are divided by: the range or, where that is small beside the values, a share of these.

    The sigmoids of a network with small weights are all 0.5 and a little: one rounding is much of their range.
    """
    return max(high - low, NEARLY_CONSTANT * max(abs(low), abs(high))) or 1.0


def _counts(test: np.ufunc, *arrays: NDArray) -> tuple[int, int]:
    first, second = (int(test(array).sum()) if array.dtype.kind == "f" else 0 for array in arrays)
    return first, second


def _overflow(reference: NDArray, candidate: NDArray) -> str:
    bad, peak = int((~np.isfinite(candidate)).sum()), float(np.abs(reference).max())
    text = f"{bad:,} values are not finite, the reference's largest is {peak:,.0f}"
    return text + (f", float16 ends at {FLOAT16_LARGEST:,.0f}: an overflow" if peak > FLOAT16_LARGEST else "")


def _swapped_axis(reference: NDArray, candidate: NDArray) -> int | None:
    """The axis along which the candidate is the reference read backwards."""
    before = largest_difference(reference, candidate)
    for axis in itertools.islice(range(reference.ndim), 1, None):
        flipped = np.flip(candidate, axis)
        if reference.shape[axis] > 1 and largest_difference(reference, flipped) < EXPLAINED * before:
            return axis
    return None


def _offsets(reference: NDArray, candidate: NDArray) -> str:
    """A constant that is missing in each channel, such as a mean that is not subtracted."""
    error = candidate.astype(np.float64) - reference
    for axis in (1, reference.ndim - 1):
        others = tuple(other for other in range(reference.ndim) if other != axis)
        means = error.mean(others, keepdims=True)
        if reference.shape[axis] > 1 and np.square(error - means).sum() < EXPLAINED**2 * np.square(error).sum():
            shown = ", ".join(f"{value:+.3g}" for value in means.ravel()[:4])
            return f"off by a constant in each channel: {shown}{', ...' if means.size > 4 else ''}"
    return ""


def _lengths(shape: tuple[int, ...]) -> list[int]:
    return [length for length in shape if length != 1]
