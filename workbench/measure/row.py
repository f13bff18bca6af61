"""A measured point: one line of JSON with the machine and the versions it came from, and what no other point beats."""

import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.errors import InputError, OutputError
from workbench.core.files import PathLike, check_place
from workbench.measure.latency import Timing, describe_machine

OK, FAILED = "ok", "failed"

LARGEST_FILE = 1 << 30
"""Bytes of a file of rows, a million of them."""

_START = b'{"network": "'

AXES = {
    "latency_ms": "milliseconds per call, median",
    "ms_per_image": "milliseconds per picture, median",
    "images_per_s": "pictures per second",
    "max_error_of_range": "largest error, share of the range of float32's answers",
    "relative_l2": "relative L2 error against float32",
    "loss": "share that is lost against float32",
    "memory_mib": "memory, MiB",
    "file_mib": "size of the ONNX file, MiB",
    "plan_mib": "size of the plan, MiB",
}
"""Columns that rows can be held against each other by; more is better of pictures per second only."""

ERRORS = ("max_error_of_range", "relative_l2")
ROUNDING = 1e-6
"""Errors up to this are float32's own rounding, which no choice should rest on."""


@dataclass(frozen=True)
class Row:
    """What ran where, how long it took, what it takes, and how far its answers are from float32's and the truth.

    What was not measured is None. Errors and agreements are of the pictures in `judged_on`.

    Attributes:
        network: its name.
        network_sha256: see `points.network_digest`: another network of the same name is another measurement.
        precision: what was asked for, such as `"fp16"`.
        backend: what it was asked from, such as `"onnxruntime"` or `"onnxruntime-cuda"`.
        batch: pictures in a call.
        height, width: of the pictures in pixels; None for a network that takes none.
        machine: GPU if one computed, processor, cores and system.
        versions: of Python, NumPy, ONNX and the runner.
        date: when, in UTC, ISO 8601.
        status: `"ok"`, or `"failed"`: the figures are then None, or not to be used.
        reason: why it failed; empty otherwise.
        runner: the runner's own name.
        arithmetic: what the numbers really were while it computed, such as `"int8 in 14 of 21 heavy layers"`.
        real: whether that is the arithmetic of the precision; if not, it is simulated, without time and memory.
        timed: what a call was, such as "arrays of the host in and out".
        latency_ms, minimum_ms, p95_ms: median time of a call, the fastest, and what 95 of 100 did not exceed.
        runs: measured calls.
        images_per_s: pictures in a second at the median time.
        judged_on: the pictures, their preprocessing, and whether there is a truth.
        images: how many were judged.
        calibration: digest of the scales that were given for 8 bits; empty where they were measured here.
        against: what gave the answers of float32.
        max_error_of_range: largest absolute error / range of float32's output (the largest over the outputs).
        relative_l2: L2 norm of the error / that of float32's output (the largest over the outputs).
        top1_agreement: share of what `agreement_of` says (`"pixels"` or `"pictures"`) that gets float32's class.
        miou, miou_change: against the labels, 0..1, and minus that of float32; where the labels are maps.
        accuracy, accuracy_change: likewise where the labels are the numbers of classes.
        nan, inf: how many answers are NaN or infinite.
        worst: (picture, share that agrees with float32), worst first.
        kept: name, operator and reason of each node that stays float32.
        qdq_pairs: pairs of QuantizeLinear and DequantizeLinear.
        memory_mib: what `memory_of` says, in MiB.
        file_mib: size of the file in this precision, external data included, in MiB.
        plan_mib: size of its engine in MiB.
        plan_note: what built the engine, or why there is none.
        note: what a reader should know besides.
        recording: name of the recording; empty for what was measured on this machine.
    """

    network: str
    network_sha256: str
    precision: str
    backend: str
    batch: int
    height: int | None
    width: int | None
    machine: str
    versions: str
    date: str
    status: str = OK
    reason: str = ""
    runner: str = ""
    arithmetic: str = ""
    real: bool = True
    timed: str = ""
    latency_ms: float | None = None
    minimum_ms: float | None = None
    p95_ms: float | None = None
    runs: int = 0
    images_per_s: float | None = None
    judged_on: str = ""
    images: int | None = None
    calibration: str = ""
    against: str = ""
    max_error_of_range: float | None = None
    relative_l2: float | None = None
    top1_agreement: float | None = None
    agreement_of: str = ""
    miou: float | None = None
    miou_change: float | None = None
    accuracy: float | None = None
    accuracy_change: float | None = None
    nan: int | None = None
    inf: int | None = None
    worst: tuple[tuple[str, float], ...] | None = None
    kept: tuple[tuple[str, str, str], ...] | None = None
    qdq_pairs: int | None = None
    memory_mib: float | None = None
    memory_of: str = ""
    file_mib: float | None = None
    plan_mib: float | None = None
    plan_note: str = ""
    note: str = ""
    recording: str = ""

    def __post_init__(self) -> None:
        if "tensorrt" in self.runner.lower() and not self.backend.startswith("tensorrt"):
            raise InputError(f"got the runner {self.runner!r} for the backend {self.backend!r}, which is not TensorRT")
        for name in ("worst", "kept"):  # JSON knows lists only
            entries = getattr(self, name)
            object.__setattr__(self, name, None if entries is None else tuple(map(tuple, entries)))

    @property
    def ok(self) -> bool:
        """Whether the figures count."""
        return self.status == OK

    @property
    def broken(self) -> bool:
        """Whether the answers hold NaN or infinity."""
        return bool(self.nan or self.inf)

    @property
    def ran(self) -> bool:
        """Whether there are answers to judge."""
        return self.ok or self.broken

    @property
    def measure(self) -> str:
        """What `score` is."""
        if self.miou is not None:
            return "mIoU"
        if self.accuracy is not None:
            return "top-1 accuracy"
        if self.top1_agreement is not None:
            return "pixel agreement" if self.agreement_of == "pixels" else "top-1 agreement"
        return "1 - relative L2"

    @property
    def score(self) -> float | None:
        """mIoU, top-1 accuracy, agreement or 1 - relative L2: the first of these that there is."""
        similar = None if self.relative_l2 is None else 1 - self.relative_l2
        scores = (self.miou, self.accuracy, self.top1_agreement, similar)
        return next((score for score in scores if score is not None), None)

    @property
    def loss(self) -> float | None:
        """How much less than float32's the score is; negative where it is better."""
        change = self.miou_change if self.miou is not None else self.accuracy_change
        if change is not None:
            return -change
        return self.relative_l2 if self.top1_agreement is None else 1 - self.top1_agreement

    def within(self, limit: float) -> bool:
        """Whether there are answers, all of them finite, that lose no more than a share."""
        return self.ok and not self.broken and self.loss is not None and self.loss <= limit

    @property
    def ms_per_image(self) -> float | None:
        """Median time of a call, divided by its pictures."""
        return None if self.latency_ms is None else self.latency_ms / self.batch

    @property
    def point(self) -> tuple[Any, ...]:
        """What was asked for; the same on every machine."""
        return (self.network, self.precision, self.backend, self.batch, self.height, self.width)

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes a measurement a repetition: point, network, pictures, scales, machine and versions."""
        asked = (self.network_sha256, self.judged_on, self.calibration)
        return (*self.point, *asked, self.machine, self.versions)

    @property
    def group(self) -> tuple[Any, ...]:
        """What is the same of rows that differ in precision only."""
        return (self.network, self.height, self.width, self.batch, self.backend)

    @property
    def where(self) -> str:
        """What computed it, marked where that was another machine's run."""
        name = self.runner or self.backend
        return f"{name}, recording" if self.recording else name

    @property
    def subject(self) -> str:
        """Network and size in one phrase."""
        return self.network if self.height is None else f"{self.network} {self.height}x{self.width}"

    @property
    def title(self) -> str:
        """Network, size, batch, precision and backend in one phrase."""
        return f"{self.subject}, batch {self.batch}, {self.precision}, {self.backend}"


def find_end(path: PathLike, content: bytes) -> int:
    """Where the whole lines of a file end; InputError where what follows is not the beginning of a row.

    Alone in a file, a beginning shorter than any row's may be somebody else's.
    """
    whole = content.rfind(b"\n") + 1
    end = content[whole:]
    if end and not end.startswith(_START[: len(end)] if whole else _START):
        raise InputError(f"got {path}, which does not end with a row of a sweep; give the file of one, or a new name")
    return whole


def append_row(path: PathLike, row: Row) -> None:
    """Add a row to a file of JSON lines; what an interrupted write left unfinished at its end is cut off first.

    Raises:
        OutputError: the file cannot be written.
        InputError: a figure is NaN or infinite, which JSON cannot hold; a file that does not end with a row.
    """
    try:
        line = json.dumps(dataclasses.asdict(row), allow_nan=False)
    except ValueError as error:
        raise InputError(f"{row.title}: got a figure that is not finite, expected numbers or None") from error
    try:
        check_place(Path(path))
        with open(path, "a+b") as file:
            file.seek(0)
            file.truncate(find_end(path, file.read(LARGEST_FILE)))
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder"
        ) from error


def machine_text(gpu: str = "") -> str:
    """The GPU that computes, if one does, the processor, the cores this process may use, and the system."""
    return ", ".join(filter(None, [gpu, *describe_machine().values()]))


def versions_text(**others: str | None) -> str:
    """The versions of Python and NumPy, and those given that are not None, such as `onnx="1.23.2"`.

    >>> versions_text(onnx="1.23.2", tensorrt=None).split(", ")[2:]
    ['onnx 1.23.2']
    """
    known = {"Python": platform.python_version(), "NumPy": np.__version__, **others}
    return ", ".join(f"{name} {version}" for name, version in known.items() if version)


def time_columns(samples_ms: Sequence[float], batch: int) -> dict[str, Any]:
    """The columns of a row that come from the times of its calls.

    Args:
        samples_ms: one time per call, in milliseconds.
        batch: pictures in a call.

    >>> time_columns([1.0, 2.0, 6.0], batch=4)["images_per_s"]
    2000.0
    """
    timing = Timing("call", tuple(samples_ms))
    return {
        "latency_ms": round(timing.median_ms, 5),
        "minimum_ms": round(timing.minimum_ms, 5),
        "p95_ms": round(timing.p95_ms, 5),
        "runs": timing.n,
        "images_per_s": round(batch * 1e3 / timing.median_ms, 3),
    }


def value_of(row: Row, column: str) -> float | None:
    """A figure of a row; an error is no less than `ROUNDING`.

    Raises:
        InputError: no such column in `AXES`.
    """
    if column not in AXES:
        raise InputError(f"got the column {column!r}, expected one of {', '.join(AXES)}")
    value = getattr(row, column)
    return max(value, ROUNDING) if column in ERRORS and value is not None else value


def plottable(rows: Sequence[Row], x: str, y: str) -> list[tuple[float, float, Row]]:
    """x, y and the row of those that did not fail and have both columns."""
    found = [(value_of(row, x), value_of(row, y), row) for row in rows if row.ok]
    return [(one, other, row) for one, other, row in found if one is not None and other is not None]


def pareto(rows: Sequence[Row], x: str = "latency_ms", y: str = "relative_l2") -> list[Row]:
    """The rows that no other row beats in one column without losing in the other.

    Args:
        rows: of one network at one size, for errors and times of others say nothing about it. Those that failed, or
            lack one of the columns, do not take part.
        x: a column of `AXES`.
        y: another one.
    Returns:
        The best rows, the best in `x` first.
    Raises:
        InputError: an unknown column, or rows of several networks or sizes.
    """
    networks = {row.subject for row in rows}
    if len(networks) > 1:
        raise InputError(f"got rows of {len(networks)} networks or sizes, expected one; choose rows of one first")
    signs = [-1 if column == "images_per_s" else 1 for column in (x, y)]
    known = [(signs[0] * one, signs[1] * other, row) for one, other, row in plottable(rows, x, y)]
    best: list[tuple[float, float, Row]] = []
    for entry in sorted(known, key=lambda entry: entry[:2]):
        if not best or entry[1] < best[-1][1]:
            best.append(entry)
    return [row for _, _, row in best]
