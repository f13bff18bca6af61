"""Watch the tensors inside a network while samples run through it, and choose what 8 bits shall hold of each."""

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm.auto import tqdm

from workbench.core.contract import check_feed
from workbench.core.errors import InputError
from workbench.onnx_graph.edit import Values, constants, fixed_shape, inferred_values, light_copy, real_inputs
from workbench.onnx_graph.file import check
from workbench.onnx_graph.session import open_with_outputs, run_session
from workbench.pictures.feeds import Feed

METHODS = ("entropy", "percentile", "minmax")
PERCENTILE = 99.99  # of a tensor's values are kept by the method `"percentile"`

LARGEST_LOSS = 0.001
"""Share of a tensor's values that `"entropy"` cuts at most. Without a limit, one value that is very frequent (a plain
background) makes the divergence smallest just above it, and a fifth of the others is lost."""

BINS, LEVELS = 2048, 128  # of a histogram; magnitudes of a signed 8-bit number, 0 included
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add")  # their inputs can be quantised
BUDGET_BYTES = 1 << 30  # tensors that one run keeps at most; a network with more runs several times for each sample
UNKNOWN_BYTES = 64 << 20
_BLOCK = 1 << 18

Array = NDArray[Any]
Feeds = Iterable[Feed | tuple[str, Feed]]


class Histogram:
    """Counts of the magnitudes of a tensor's values, in bounded memory however many there are.

    >>> histogram = Histogram()
    >>> histogram.add(np.array([0.5, -1.0], np.float32)); histogram.add(np.array([3.0], np.float32))
    >>> histogram.limit, histogram.largest, int(histogram.counts.sum())
    (4.0, 3.0, 3)
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)  # bin k holds the magnitudes from k to k + 1 times `limit / BINS`
        self.limit = 0.0  # the end of the last bin; it doubles, two bins becoming one, when a larger value comes
        self.largest = 0.0  # magnitude so far

    def add(self, values: NDArray[np.floating]) -> None:
        """Count an array's magnitudes; it must be finite."""
        flat, largest = values.reshape(-1), largest_magnitude(values)
        self.largest, self.limit = max(self.largest, largest), self.limit or largest
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
        """The magnitude that shall become the largest 8-bit number; larger values are cut, as the method says."""
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

    For each cut the values beyond it move to the last bin that holds any, and 128 levels for all bins are compared with
    that by the Kullback-Leibler divergence. Source: Migacz, 8-bit inference with TensorRT, GTC 2017. As in NVIDIA's
    pytorch-quantization, bin 0 counts as much as bin 1: a ReLU's exact zeros, which every scale represents, are in it.
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
    spread = np.where(filled, (sums / np.maximum(np.bincount(level, filled, LEVELS), 1))[level], 0.0)
    if not spread.sum():
        return math.inf
    reference = kept.copy()
    reference[np.flatnonzero(filled)[-1]] += beyond
    reference, spread = reference / reference.sum(), spread / spread.sum()
    used = reference > 0
    return float(np.sum(reference[used] * np.log(reference[used] / spread[used])))


def observable(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """The float32 tensors that are no weights and that an operator of `OPERATORS` reads, in the order of the graph."""
    values, known = inferred_values(model), constants(model.graph)
    weights = {tensor.name for tensor in model.graph.initializer} | set(known)
    names = (name for node in model.graph.node if node.op_type in OPERATORS for name in node.input[:2])
    return {
        name: values[name]
        for name in dict.fromkeys(names)
        if name not in weights and name in values and values[name].elem_type == onnx.TensorProto.FLOAT
    }


def sized(model: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    """A copy without large weights whose inputs have the feed's shapes, so that the sizes of tensors are known."""
    light = light_copy(model)
    for value in real_inputs(light.graph):
        kind = onnx.helper.np_dtype_to_tensor_dtype(feed[value.name].dtype)
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, feed[value.name].shape))
    return light


def tensor_groups(tensors: Values) -> Iterator[list[str]]:
    """Split tensors so that each group fits into the budget; one that is larger stands alone."""
    group, used = list[str](), 0
    for name, value in tensors.items():
        shape = fixed_shape(value)
        size = UNKNOWN_BYTES if shape is None else math.prod(shape) * 4
        if group and used + size > BUDGET_BYTES:
            yield group
            group, used = [], 0
        group, used = [*group, name], used + size
    if group:
        yield group


class Tap:
    """The tensors of a network as outputs, those it is fed too, fetched in as many runs as the budget asks for.

    The model need not hold its external data; `source` is its file. Types and shapes of the tensors may be unknown.
    """

    def __init__(self, model: onnx.ModelProto, source: Path, tensors: Values, optimise: str = "all") -> None:
        fed = {value.name for value in real_inputs(model.graph)}
        self._given = [name for name in tensors if name in fed]
        inner = {name: value for name, value in tensors.items() if name not in fed}
        self._sessions = [open_with_outputs(model, source, names, optimise) for names in tensor_groups(inner)]

    def fetch(self, feed: Feed) -> Iterator[tuple[str, Any]]:
        """Run the network on one feed; yields each tensor under its name."""
        yield from ((name, feed[name]) for name in self._given)
        for session in self._sessions:
            yield from run_session(session, feed).items()


def checked_feeds(
    source: str | os.PathLike[str],
    feeds: Feeds,
    title: str,
    *,
    limit: int | None = None,
    empty: str = "got no feeds, expected one at least; give samples, such as make_feeds(specs) yields",
    progress: bool = True,
) -> Iterator[tuple[str, Feed]]:
    """Take named samples under a bar, one at a time; refuse one that the network does not take, and none at all."""
    if isinstance(feeds, Mapping | str | os.PathLike):
        raise InputError(
            f"got a {type(feeds).__name__} as the samples, expected several feeds; pass make_feeds(specs, folder) of "
            "workbench.pictures.feeds, or a list of dicts"
        )
    specs, total = {spec.name: spec for spec in check(source).inputs}, len(feeds) if isinstance(feeds, Sized) else None
    number = total if limit is None or total is None else min(limit, total)
    bar = tqdm(itertools.islice(feeds, limit), title, number, unit="sample", leave=False, disable=not progress)
    place = -1
    for place, item in enumerate(bar):
        name, feed = item if isinstance(item, tuple) else (f"sample {place}", item)
        check_feed(specs, feed)
        yield name, feed
    if place < 0:
        raise InputError(empty)
