"""Find by how many pixels an answer is displaced."""

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

LARGEST_SHIFT = 3
"""Pixels, in both directions, in which a displaced output is looked for."""


def find_shift(reference: NDArray, candidate: NDArray, axis: int | None) -> tuple[int, int] | None:
    """Find the displacement of one image's output, in the channel with the largest spread."""
    if reference.ndim == 3 and axis is not None:
        one, other = np.moveaxis(reference, axis, 0), np.moveaxis(candidate, axis, 0)
        channel = int(np.argmax(one.std(axis=(1, 2), dtype=np.float64)))
        one, other = one[channel], other[channel]
    elif reference.ndim == 2 and axis is None:
        one, other = reference, candidate
    else:
        return None
    doubles = (one.astype(np.float64), other.astype(np.float64))
    return best_shift(*doubles, lambda one, other: float(np.square(other - one).sum()))


def best_shift(
    reference: NDArray, candidate: NDArray, error: Callable[[NDArray, NDArray], float]
) -> tuple[int, int] | None:
    """Find the displacement (rows, columns), up to `LARGEST_SHIFT`, that makes an error at least nine times smaller.

    A pixel (y, x) of the (H, W) reference is compared with (y + rows, x + columns) of the candidate; `error` says how
    far two arrays of one size are apart, such as a sum of squares or a count.
    """
    s = LARGEST_SHIFT
    rows, columns = reference.shape[0] - 2 * s, reference.shape[1] - 2 * s
    if rows < 2 or columns < 2:
        return None
    inner = reference[s : s + rows, s : s + columns]
    errors = {
        (y, x): error(inner, candidate[s + y : s + y + rows, s + x : s + x + columns])
        for y, x in itertools.product(range(-s, s + 1), repeat=2)
    }
    best = min(errors, key=lambda shift: (errors[shift], abs(shift[0]) + abs(shift[1])))
    return best if best != (0, 0) and 9 * errors[best] <= errors[0, 0] else None
