"""How far one tensor inside a network is from the reference's, and what its numbers say about the cause."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.core.compare import compare_outputs
from workbench.parity.pairs import Pair

FLOAT16_LARGEST = 65504.0
LAYOUTS = ((0, 1, 2, 3), (0, 3, 1, 2), (0, 2, 3, 1))
"""Orders of the four axes: the same, channels moved to the front, channels moved to the back."""

NEARLY_CONSTANT = 0.01
"""Errors are never taken relative to less than this share of a tensor's largest value."""

EXPLAINED = 0.02
"""A change explains an error if it takes away all but this share of it."""


@dataclass(frozen=True)
class LayerError:
    """How far one tensor inside the candidate is from the reference's."""

    layer: str  # or several joined by " + " where an exporter made one of them
    operator: str  # what computes it in the candidate
    depth: int  # its place among all pairs, in the order of computation
    reference_tensor: str
    candidate_tensor: str
    shape: tuple[int, ...]  # in the reference
    max_error_of_range: float  # a share of the range, or of 1 % of the largest value if more; inf where not finite
    reference_range: float  # largest minus smallest value
    largest: tuple[float, float]  # absolute finite value of the reference and of the candidate
    nan: tuple[int, int]  # counts in both, as for `inf`
    inf: tuple[int, int]
    max_error_of_range_before: float = math.nan  # the largest of what it is computed from; NaN where not compared
    remark: str = ""  # what the numbers say about the cause


def short_error(error: float) -> str:
    """Write an error in a table.

    >>> short_error(0.000123), short_error(math.inf), short_error(math.nan)
    ('1.2e-04', 'not finite', '-')
    """
    if math.isnan(error):
        return "-"
    return "not finite" if math.isinf(error) else f"{error:.1e}"


def tensor_error(pair: Pair, depth: int, reference: NDArray, candidate: NDArray) -> LayerError | None:
    """Measure how far a candidate's tensor, in any layout, is from the reference's; None for other sizes, or text."""
    aligned = align(reference, candidate)
    if aligned is None or reference.dtype.kind not in "biuf" or not reference.size:
        return None
    left, right = _finite(reference), _finite(aligned)
    low, high = float(left.min()), float(left.max())
    # The sigmoids of a network with small weights are all 0.5 and a little: one rounding is much of their range.
    scale = max(high - low, NEARLY_CONSTANT * max(abs(low), abs(high))) or 1.0
    error = largest_difference(left, right) / scale
    bad = [~np.isfinite(array) for array in (reference, aligned)] if reference.dtype.kind == "f" else []
    if bad and not np.array_equal(*bad):
        error = math.inf
    return LayerError(
        layer=pair.layer, operator=pair.operator, depth=depth, reference_tensor=pair.reference,
        candidate_tensor=pair.candidate, shape=tuple(reference.shape), max_error_of_range=error,
        reference_range=high - low, largest=(max(abs(low), abs(high)), float(np.abs(right).max())),
        nan=_counts(np.isnan, reference, aligned), inf=_counts(np.isinf, reference, aligned),
    )  # fmt: skip


def explain(reference: NDArray, candidate: NDArray) -> str:
    """Say, in a few words, which one change takes nearly all of the error of a tensor away; empty if none does."""
    aligned = align(reference, candidate)
    if aligned is None or reference.dtype.kind != "f":
        return ""
    if not np.isfinite(aligned).all() and np.isfinite(reference).all():
        bad, peak = int((~np.isfinite(aligned)).sum()), float(np.abs(reference).max())
        text = f"{bad:,} values are not finite, the reference's largest is {peak:,.0f}"
        return text + (f", float16 ends at {FLOAT16_LARGEST:,.0f}: an overflow" if peak > FLOAT16_LARGEST else "")
    before = largest_difference(reference, aligned)
    for axis in range(1, reference.ndim):
        flipped = np.flip(aligned, axis)
        if reference.shape[axis] > 1 and largest_difference(reference, flipped) < EXPLAINED * before:
            return f"the order of axis {axis} is reversed"
    if reference.ndim < 2:
        return ""
    named = ({"tensor": reference}, {"tensor": aligned})
    report = compare_outputs(*named, reference_name="reference", candidate_name="candidate")
    return report.outputs[0].cause or _offsets(reference, aligned)


def align(reference: NDArray, candidate: NDArray) -> NDArray | None:
    """Bring a candidate into the reference's layout: axes of length 1 do not count, channels may be first or last.

    A view in the reference's shape, the closest one where several layouts fit; None if none does.
    """
    views = [candidate.transpose(order) for order in LAYOUTS] if candidate.ndim == 4 else [candidate]
    fitting = [view for view in views if view.shape == reference.shape]
    if not fitting:
        lengths = [length for length in reference.shape if length != 1]
        squeezed = [view for view in views if [length for length in view.shape if length != 1] == lengths]
        fitting = [view.reshape(reference.shape) for view in squeezed[:1]]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    return min(fitting, key=lambda view: largest_difference(_finite(reference), _finite(view)))


def largest_difference(one: NDArray, other: NDArray) -> float:
    """The largest absolute difference, picture by picture, so that only one picture is held once more."""
    if not one.ndim:
        return float(abs(float(one) - float(other)))
    kind = np.float32 if one.dtype == other.dtype == np.float32 else np.float64
    rows = zip(one, other, strict=True)
    return max((float(np.abs(np.subtract(a, b, dtype=kind)).max()) for a, b in rows), default=0.0)


def _finite(array: NDArray) -> NDArray:
    """The array with 0 for what is not finite; the array itself where everything is."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return array
    return np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)


def _counts(test: np.ufunc, *arrays: NDArray) -> tuple[int, int]:
    first, second = (int(test(array).sum()) if array.dtype.kind == "f" else 0 for array in arrays)
    return first, second


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
