"""The values of an output by columns: quantities of different sizes, each judged by its own range."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEARLY_CONSTANT = 0.01
"""Errors of a column are never taken relative to less than this share of its largest value."""

FEW_COLUMNS = 8
"""As many numbers at the end of three axes are quantities of their own, such as the sides of a box and its score."""


@dataclass
class Columns:
    """Running sums over the values of each column of an output, or over all of them as one."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    absolute: NDArray[np.float64]  # sum of the errors, without sign
    n: int = 0  # values of one column

    @classmethod
    def empty(cls, number: int) -> "Columns":
        """Columns without values."""
        return cls(np.full(number, math.inf), np.full(number, -math.inf), np.zeros(number))

    def add(self, x: NDArray, error: NDArray, finite: NDArray) -> None:
        """Add the values and the errors, (columns, n) each, of one image where both are finite."""
        self.low = np.minimum(self.low, x.min(axis=1, where=finite, initial=math.inf))
        self.high = np.maximum(self.high, x.max(axis=1, where=finite, initial=-math.inf))
        self.absolute += np.abs(error).sum(axis=1, where=finite)
        self.n += x.shape[1]

    def as_one(self) -> "Columns":
        """All values as one column."""
        low, high = self.low.min(keepdims=True), self.high.max(keepdims=True)
        return Columns(low, high, self.absolute.sum(keepdims=True), self.n * len(self.low))

    def scales(self) -> NDArray[np.float64]:
        """What the errors of each column are divided by: its range or, for a constant, its size."""
        whole = self if len(self.low) == 1 else self.as_one()
        size, spread = np.maximum(abs(whole.low), abs(whole.high)), whole.high - whole.low
        known = np.isfinite(spread)
        one = np.where(known & ~is_constant(whole.low, whole.high), spread, np.where(known & (size > 0), size, 1.0))
        if len(self.low) == 1:
            return one
        size = np.where(np.isfinite(self.low), np.maximum(abs(self.low), abs(self.high)), 0.0)
        own = np.where(np.isfinite(self.low), self.high - self.low, 0.0)
        # The range of a column that hardly varies is rounding itself, of its own values or of the larger ones beside.
        return np.maximum(np.maximum(own, NEARLY_CONSTANT * size), np.finfo(np.float32).eps * 8 * one)


def is_constant(low: Any, high: Any) -> Any:
    """Whether a range is one number, up to the rounding of float32."""
    with np.errstate(invalid="ignore"):  # of no values
        return ~np.asarray(high - low > 1e-6 * np.maximum(abs(high), abs(low)))


def find_column_axis(shape: tuple[int, ...]) -> int | None:
    """The axis of one image's output along which quantities of different sizes stand, such as channels, or None."""
    if len(shape) == 3:
        return 0 if shape[0] <= shape[2] else 2
    if len(shape) != 2:
        return None
    if shape[1] <= FEW_COLUMNS:
        return 1
    return next((axis for axis in (1, 0) if 4 * shape[axis] <= shape[1 - axis]), None)
