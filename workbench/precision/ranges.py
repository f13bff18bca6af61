"""Measure which numbers the tensors of a network hold, and which of them 16 or 8 bits cannot hold."""

import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self, get_type_hints

import numpy as np
import onnx
from numpy.typing import NDArray

from workbench.core.errors import InputError
from workbench.core.files import check_fields, parse_json
from workbench.core.report import Report, Table, count
from workbench.onnx_graph.edit import inferred_values, producers, reads, real_inputs
from workbench.onnx_graph.file import read, take_digest
from workbench.pictures.feeds import Feed
from workbench.precision.half_graph import BFLOAT16, FLOAT16, SHAPES
from workbench.precision.observing import Feeds, Tap, checked_feeds, sized

FORMATS = {half.name: half.largest for half in (FLOAT16, BFLOAT16)}
SMALLEST = 2.0**-25
"""A float16 has no number nearer to a value of less magnitude than 0. Source: IEEE 754-2019, binary16."""
INT8_STEPS = 254
"""A symmetric int8 number rounds magnitudes below the 254th part of the largest to 0: half a step of 127."""
SHOWN = 12
HEADINGS = ("tensor", "operator", "smallest", "largest", "median magnitude", "0 in float16", "0 in int8", "float16")
_BINS, _MANTISSA_BITS = 2048, 3
_BLOCK = 1 << 20


@dataclass(frozen=True)
class TensorRange:
    """The numbers that one float32 tensor held."""

    name: str
    node: str  # name of the node that writes it; empty for an input of the network, like the operator
    operator: str
    minimum: float  # of the finite values, like the maximum
    maximum: float
    low: float  # magnitude below which 1 % of the values other than 0 lie, to 1/8 octave
    median: float  # 50 %
    high: float  # 99.9 %
    zeros: float  # share of the values that are 0
    underflow: float  # share of the others that float16 makes 0
    int8_lost: float  # share of the others that int8 makes 0 when its 127 is the largest magnitude
    beyond: float  # share of all values that float16 makes infinite
    not_finite: int = 0  # how many values were NaN or infinite in float32 already

    @property
    def absmax(self) -> float:
        """The largest magnitude."""
        return max(abs(self.minimum), abs(self.maximum))


@dataclass(frozen=True)
class Ranges(Report):
    """What `measure_ranges` found.

    Attributes:
        network: SHA-256 of the ONNX file, external data included.
        samples: how many feeds were run.
        tensors: every float32 tensor that depends on the feed, in the order of the graph.
    """

    network: str
    samples: int
    tensors: tuple[TensorRange, ...]

    def overflows(self, name: str = "float16") -> dict[str, float]:
        """The tensors that hold larger numbers than a format of `FORMATS` has, with their largest magnitude."""
        if name not in FORMATS:
            raise InputError(f"got the format {name!r}, expected {' or '.join(map(repr, FORMATS))}")
        return {entry.name: entry.absmax for entry in self.tensors if entry.absmax > FORMATS[name]}

    def check(self, source: str | os.PathLike[str]) -> None:
        """Refuse another `.onnx` file than the one that was measured, or one that has changed, with an InputError."""
        network, name = take_digest(Path(source)), Path(source).name
        if network != self.network:
            raise InputError(
                f"got ranges of the network {self.network[:12]}, expected those of {name}, which is {network[:12]}; "
                f"measure this network: measure_ranges({name!r}, feeds)"
            )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; anything else is an InputError."""
        try:
            content = parse_json(text)
            known = [entry.name for entry in fields(TensorRange)]
            for item in content["tensors"]:
                check_fields(get_type_hints(TensorRange), item)
            tensors = tuple(TensorRange(**{name: item[name] for name in known}) for item in content["tensors"])
            return cls(str(content["network"]), int(content["samples"]), tensors)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"got text that holds no ranges ({error}); make it with measure_ranges(...)") from error

    @property
    def verdict(self) -> str:
        """One sentence."""
        beyond = self.overflows()
        start = f"{count(len(self.tensors), 'tensor')} on {count(self.samples, 'sample')}"
        if not beyond:
            largest = max(self.tensors, key=lambda entry: entry.absmax)
            return f"{start}: all fit into float16, the largest value is {largest.absmax:,.4g} in {largest.name}."
        first = next(entry for entry in self.tensors if entry.name in beyond)
        return (
            f"{start}: {len(beyond)} hold values that float16 makes infinite, the first is {first.name} "
            f"({first.operator or 'input'}) with {first.absmax:,.0f}; float16 ends at 65,504."
        )

    def _tables(self) -> list[Table]:
        rows = [
            (
                entry.name,
                entry.operator or "input",
                f"{entry.minimum:,.4g}",
                f"{entry.maximum:,.4g}",
                f"{entry.median:.2g}",
                f"{entry.underflow:.2%}",
                f"{entry.int8_lost:.2%}",
                "overflow" if entry.absmax > FLOAT16.largest else "fits",
            )
            for entry in sorted(self.tensors, key=lambda entry: -entry.absmax)[:SHOWN]
        ]
        return [Table(HEADINGS, rows)]


def measure_ranges(source: str | os.PathLike[str], feeds: Feeds, *, progress: bool = True) -> Ranges:
    """Run a network on samples and keep what numbers each of its float32 tensors held.

    The tensors are fetched in groups that fit into `observing.BUDGET_BYTES` and only counted, so memory does not grow
    with the samples. Tensors inside the bodies of If and Loop are not measured.

    Args:
        source: the `.onnx` file.
        feeds: the samples: feeds, or (name, feed) pairs as `workbench.pictures.feeds.make_feeds` yields them.
        progress: show a bar.
    Raises:
        ModelError: not a valid ONNX model, or one that ONNX Runtime does not run.
        InputError: no feeds, or a network without float32 tensors.
        FeedError: a feed that the network does not take.
    """
    model, tap, samples, counts = read(source), None, 0, dict[str, _Counts]()
    for _, feed in checked_feeds(source, feeds, "measure ranges", progress=progress):
        tap = tap or Tap(model, Path(source), _float_tensors(model, feed))
        for name, values in tap.fetch(feed):
            if isinstance(values, np.ndarray) and values.dtype == np.float32:
                counts.setdefault(name, _Counts()).add(values)
        samples += 1
    seen = {name: kept for name, kept in counts.items() if kept.bins.any() or kept.not_finite}
    if not seen:
        raise InputError("got a network without float32 tensors, expected one that computes in float32")
    writers = producers(model.graph)
    tensors = tuple(kept.to_range(name, writers.get(name)) for name, kept in seen.items())
    return Ranges(take_digest(Path(source)), samples, tensors)


def _float_tensors(model: onnx.ModelProto, feed: Feed) -> dict[str, onnx.TypeProto.Tensor]:
    """The tensors that depend on what is fed and may be float32, inputs first."""
    found, values = dict.fromkeys(value.name for value in real_inputs(model.graph)), inferred_values(sized(model, feed))
    for node in model.graph.node:
        if node.op_type not in SHAPES and not found.keys().isdisjoint(reads(node)):
            found.update(dict.fromkeys(filter(None, node.output)))
    tensors = {name: values.get(name, onnx.TypeProto.Tensor()) for name in found}
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.UNDEFINED)
    return {name: value for name, value in tensors.items() if value.elem_type in kinds}


class _Counts:
    """What is kept of one tensor; the bins are the exponent and the first bits of the mantissa of float32."""

    def __init__(self) -> None:
        self.bins = np.zeros(_BINS, np.int64)
        self.minimum, self.maximum = math.inf, -math.inf
        self.beyond = self.not_finite = 0

    def add(self, values: NDArray[np.float32]) -> None:
        flat = np.ascontiguousarray(values).reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            finite = block[np.isfinite(block)]
            self.not_finite += block.size - finite.size
            if finite.size:
                self.minimum, self.maximum = min(self.minimum, finite.min()), max(self.maximum, finite.max())
            magnitudes = finite.view(np.uint32) & np.uint32(0x7FFFFFFF)
            self.bins += np.bincount(magnitudes >> np.uint32(23 - _MANTISSA_BITS), minlength=_BINS)
            if max(-self.minimum, self.maximum) > FLOAT16.largest:
                with np.errstate(over="ignore"):
                    self.beyond += int(np.isinf(finite.astype(np.float16)).sum())

    def to_range(self, name: str, node: onnx.NodeProto | None) -> TensorRange:
        total, filled = int(self.bins.sum()), self.bins.copy()
        filled[0] = 0  # 0, and what is less than the smallest normal float32
        others = max(int(filled.sum()), 1)
        low, median, high = (_percentile(filled, share) for share in (0.01, 0.5, 0.999))
        largest = max(abs(self.minimum), abs(self.maximum)) if total else 0.0
        return TensorRange(
            name=name,
            node=(node.name or node.output[0]) if node else "",
            operator=node.op_type if node else "",
            minimum=float(self.minimum) if total else 0.0,
            maximum=float(self.maximum) if total else 0.0,
            low=low,
            median=median,
            high=min(high, float(largest)),
            zeros=float(self.bins[0] / max(total, 1)),
            underflow=float(filled[: _bin(SMALLEST)].sum() / others),
            int8_lost=float(filled[: _bin(largest / INT8_STEPS)].sum() / others),
            beyond=float(self.beyond / max(total, 1)),
            not_finite=self.not_finite,
        )


def _bin(magnitude: float) -> int:
    return int(np.float32(magnitude).view(np.uint32) >> (23 - _MANTISSA_BITS))


def _percentile(bins: NDArray[np.int64], share: float) -> float:
    """The upper end of the bin in which this share of all counted values is reached; 0 where nothing was counted."""
    total = int(bins.sum())
    if not total:
        return 0.0
    place = int(np.searchsorted(np.cumsum(bins), share * total))
    return float(np.uint32((place + 1) << (23 - _MANTISSA_BITS)).view(np.float32))
