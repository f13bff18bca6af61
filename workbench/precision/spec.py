"""Which precision is asked for, what was measured for it, and what the change did to a network."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.core.errors import InputError
from workbench.core.report import Report, Table, count
from workbench.onnx_graph.cost import amount
from workbench.precision.calibration import Calibration
from workbench.precision.ranges import Ranges

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8")
"""What an engine can be asked for. `"fp32"` is float32 without TF32; the others beside `"tf32"` are in the file."""
TYPE_OF = {"fp16": "float16", "bf16": "bfloat16", "int8": "int8", "fp8": "float8_e4m3fn"}
"""The type that a file holds for each precision that is written into it."""
EIGHT_BITS = ("int8", "fp8")
HEADINGS = ("kept in float32", "operator", "why")


@dataclass(frozen=True)
class PrecisionReport(Report):
    """What was converted, what was kept, and what it saves.

    Attributes:
        precision: such as `"int8"`.
        converted: how many nodes compute in it.
        kept: name, operator and reason of each node that could not, or was not to be, converted.
        qdq_pairs: pairs of QuantizeLinear and DequantizeLinear in the file, those of weights included: a weight that
            is stored in 8 bits needs the second half only.
        weights_bytes_before, weights_bytes_after: size of the weights in the source and in the result.
    """

    precision: str
    converted: int
    kept: tuple[tuple[str, str, str], ...]
    qdq_pairs: int
    weights_bytes_before: int
    weights_bytes_after: int

    @property
    def verdict(self) -> str:
        """One line."""
        pairs = f", {count(self.qdq_pairs, 'Q/DQ pair')}" if self.qdq_pairs else ""
        sizes = f"{amount(self.weights_bytes_before, 'B')} to {amount(self.weights_bytes_after, 'B')}"
        nodes = f"{count(self.converted, 'node')} converted, {len(self.kept)} kept"
        return f"{self.precision}: {nodes}{pairs}, weights {sizes}"

    def _tables(self) -> list[Table]:
        return [Table(HEADINGS, list(self.kept))] if self.kept else []


@dataclass(frozen=True)
class PrecisionSpec:
    """The precision that an engine shall have, and what was measured for it."""

    precision: str  # one of `PRECISIONS`
    keep: tuple[str, ...] = ()  # names of ONNX nodes that stay in float32
    calibration: Calibration | None = field(default=None, repr=False)  # the scales for 8 bits
    ranges: Ranges | None = field(default=None, repr=False)  # for `"fp16"`: what is beyond 65504 stays in float32

    @property
    def digest(self) -> str:
        """Hash of what was measured; empty where nothing was."""
        if self.calibration is not None:
            return self.calibration.digest
        return hashlib.sha256(self.ranges.to_json().encode()).hexdigest() if self.ranges is not None else ""


def check_spec(precision: str, keep: Sequence[str] = (), calibration: Any = None, images: Any = None) -> None:
    """Refuse an unknown precision, and names, pictures or scales for one that has no use for them."""
    if precision not in PRECISIONS:
        raise InputError(f"got precision={precision!r}, expected one of {', '.join(PRECISIONS)}")
    if isinstance(keep, str):
        raise InputError(f"got keep={keep!r}, expected a list of node names such as [{keep!r}]")
    if keep and precision not in TYPE_OF:
        raise InputError(f"got keep={list(keep)} for {precision}, which converts nothing; leave it out")
    if calibration is not None and precision not in EIGHT_BITS:
        raise InputError(f"got a calibration for {precision}; only {' and '.join(EIGHT_BITS)} take one: leave it out")
    if images is not None and precision not in (*EIGHT_BITS, "fp16"):
        raise InputError(f"got images or feeds for {precision}, which needs no measured ranges; leave them out")
