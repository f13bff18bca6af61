"""From the values that a tensor takes to the largest magnitude that its 8 bits shall hold."""

import math

import numpy as np
from numpy.typing import NDArray

METHODS = ("entropy", "percentile", "minmax")
PERCENTILE = 99.99
"""Percent of a tensor's values that the method `"percentile"` keeps."""

LARGEST_LOSS = 0.001
"""Share of a tensor's values that `"entropy"` cuts at most. Without a limit, one value that is very frequent (a plain
background) makes the divergence smallest just above it, and a fifth of the others is lost."""

BINS = 2048
LEVELS = 128
"""Magnitudes of a signed 8-bit number, 0 included."""

_BLOCK = 1 << 18


class Histogram:
    """Counts of the magnitudes of a tensor's values, in bounded memory however many there are.

    Attributes:
        counts: (2048,) int64; bin k holds the magnitudes from k to k + 1 times `limit / 2048`.
        limit: the end of the last bin; it doubles, two bins becoming one, when a larger value comes.
        largest: the largest magnitude so far.

    >>> histogram = Histogram()
    >>> histogram.add(np.array([0.5, -1.0], np.float32)); histogram.add(np.array([3.0], np.float32))
    >>> histogram.limit, histogram.largest, int(histogram.counts.sum())
    (4.0, 3.0, 3)
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.limit = 0.0
        self.largest = 0.0

    def add(self, values: NDArray[np.floating]) -> None:
        """Count an array's magnitudes; it must be finite."""
        flat = values.reshape(-1)
        largest = largest_magnitude(flat)
        self.largest = max(self.largest, largest)
        if not self.limit:
            self.limit = largest
        while largest > self.limit:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2, np.int64)])
            self.limit *= 2
        if not self.limit:
            self.counts[0] += flat.size
            return
        for start in range(0, flat.size, _BLOCK):  # small blocks stay in the processor's cache
            # float64, for the smallest float32 limits have no finite inverse in float32
            places = np.abs(flat[start : start + _BLOCK], dtype=np.float64) * (BINS / self.limit)
            found = np.minimum(places.astype(np.int32), BINS - 1)
            self.counts += np.bincount(found, minlength=BINS)

    def threshold(self, method: str) -> float:
        """The magnitude that shall become the largest 8-bit number; larger values are cut.

        Args:
            method: one of `METHODS`.
        """
        if method == "minmax" or not self.largest:
            return self.largest
        choose = entropy_bins if method == "entropy" else percentile_bins
        return min(choose(self.counts) * self.limit / BINS, self.largest)


def largest_magnitude(values: NDArray[np.floating]) -> float:
    """The largest magnitude in an array; NaN where a value is NaN."""
    return float(max(values.max(), -values.min())) if values.size else 0.0


def percentile_bins(counts: NDArray[np.int64], percentile: float = PERCENTILE) -> int:
    """How many bins hold this percentage of all values.

    >>> percentile_bins(np.array([50, 40, 9, 1]), 90)
    2
    """
    cumulative = np.cumsum(counts)
    return int(np.searchsorted(cumulative, math.ceil(cumulative[-1] * percentile / 100))) + 1


def entropy_bins(counts: NDArray[np.int64], stride: int = 4) -> int:
    """After how many bins to cut so that 128 levels tell most about the values.

    For each cut the values beyond it move to the last bin that holds any; that distribution is compared by the
    Kullback-Leibler divergence with the one that is left when 128 levels stand for all bins.

    Args:
        counts: of magnitudes, in bins of equal width.
        stride: bins from one cut that is tried to the next.
    Source:
        Migacz: 8-bit inference with TensorRT, GTC 2017. As in NVIDIA's pytorch-quantization, bin 0 counts as much as
        bin 1: after a ReLU it holds the exact zeros, which every scale represents.
    """
    bins = counts.astype(np.float64)
    bins[0] = bins[1]
    beyond = bins.sum() - np.cumsum(bins)
    cuts = np.arange(min(LEVELS, bins.size), bins.size + 1, stride)
    cuts = cuts[beyond[cuts - 1] <= LARGEST_LOSS * bins.sum()]
    divergences = [_divergence(bins[:cut], beyond[cut - 1]) for cut in cuts]
    return int(cuts[len(cuts) - 1 - int(np.argmin(divergences[::-1]))])


def _divergence(kept: NDArray[np.float64], beyond: float) -> float:
    """The Kullback-Leibler divergence of 128 levels from the bins that they stand for, in nats."""
    filled = kept > 0
    level = np.arange(kept.size) * LEVELS // kept.size
    sums = np.bincount(level, kept, LEVELS)
    filled_bins = np.bincount(level, filled, LEVELS)
    spread = np.where(filled, (sums / np.maximum(filled_bins, 1))[level], 0.0)
    if not spread.sum():
        return math.inf
    reference = kept.copy()
    reference[np.flatnonzero(filled)[-1]] += beyond
    reference, spread = reference / reference.sum(), spread / spread.sum()
    used = reference > 0
    return float(np.sum(reference[used] * np.log(reference[used] / spread[used])))
