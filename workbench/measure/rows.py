"""Rows of experiments: one JSON line per measured point, each with the machine and the versions it came from."""

import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.errors import InputError, OutputError
from workbench.core.files import data_file
from workbench.core.packages import processor_name

RECORDINGS = "recordings"
"""Runs that were measured on other machines, as JSON lines, in `data/`."""

OK, FAILED = "ok", "failed"


@dataclass(frozen=True)
class Row:
    """One point of a grid: what ran where, how long it took, and how far its answers are from float32.

    Attributes:
        network: its name.
        network_sha256: see `network_digest`: another network of the same name is another measurement.
        precision: what was asked for, such as `"fp16"`.
        backend: what it was asked from, such as `"onnxruntime"` or `"onnxruntime-cuda"`.
        batch: pictures in a call.
        height: of the pictures in pixels; None for a network that takes none.
        width: the same across.
        machine: GPU if one computed, processor, cores and system.
        versions: of Python, NumPy, ONNX and the runner.
        date: when, in UTC, ISO 8601.
        status: `"ok"`, or `"failed"`: the figures are then None, or not to be used.
        reason: why it failed; empty otherwise.
        runner: the runner's own name.
        arithmetic: what the numbers really were while it computed.
        real: whether that is the arithmetic of the precision; if not, the times say nothing about it.
        timed: what a call was, such as "host arrays in and out".
        latency_ms: median time of a call.
        minimum_ms: the fastest call.
        p95_ms: 95 of 100 calls took no longer.
        runs: measured calls.
        images_per_s: pictures in a second at the median time.
        error: difference from float32's answers to the same pictures, L2 norms, relative.
        error_against: what gave those answers.
        memory_mib: what `memory_of` says, in MiB.
        memory_of: how memory was measured.
        file_mib: size of the file that ran, in MiB.
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
    error: float | None = None
    error_against: str = ""
    memory_mib: float | None = None
    memory_of: str = ""
    file_mib: float | None = None
    note: str = ""
    recording: str = ""

    def __post_init__(self) -> None:
        """Refuse a row that could be taken for one of TensorRT."""
        if "tensorrt" in self.runner.lower() and not self.backend.startswith("tensorrt"):
            raise InputError(f"got the runner {self.runner!r} for the backend {self.backend!r}, which is not TensorRT")

    @property
    def ok(self) -> bool:
        """Whether the figures count."""
        return self.status == OK

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
        """What makes a measurement a repetition of another one: the point, the network's bytes, machine, versions."""
        return (*self.point, self.network_sha256, self.machine, self.versions)

    @property
    def where(self) -> str:
        """What computed it, marked where that was another machine's run."""
        name = self.runner or self.backend
        return f"{name}, recording" if self.recording else name

    @property
    def title(self) -> str:
        """Network, size, batch, precision and backend in one phrase."""
        size = "" if self.height is None else f" {self.height}x{self.width}"
        return f"{self.network}{size}, batch {self.batch}, {self.precision}, {self.backend}"


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))


def append_row(path: str | os.PathLike[str], row: Row) -> None:
    """Add a row to a file of JSON lines; what an interrupted write left unfinished at its end is cut off first.

    Raises:
        OutputError: the file cannot be written.
        InputError: a figure is NaN or infinite, which JSON cannot hold.
    """
    try:
        line = json.dumps(dataclasses.asdict(row), allow_nan=False)
    except ValueError as error:
        raise InputError(f"{row.title}: got a figure that is not finite, expected numbers or None") from error
    try:
        with open(path, "a+b") as file:
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder"
        ) from error


def load_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Read the rows of a file; of several that repeat one measurement the last one counts.

    Args:
        path: JSON lines, as `append_row` writes them. An unfinished last line is left out.
    Returns:
        The rows, in the order in which their points first appear.
    Raises:
        InputError: there is no such file, or a line is not a row.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"got {path}, expected a file of rows that can be read ({error}); run a sweep first"
        ) from error
    rows: dict[tuple[Any, ...], Row] = {}
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        if line.strip():
            row = _parse(line, f"{path}, line {number}")
            rows[row.key] = row
    return list(rows.values())


def load_recording(name: str) -> list[Row]:
    """Read a run that was recorded on another machine; each row, and every figure of it, says so.

    Args:
        name: such as `"h200_precision"`, a file in `data/recordings`.
    Raises:
        InputError: there is no such recording.
    """
    folder = data_file(RECORDINGS)
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in folder.glob("*.jsonl"))) or "none is here"
        raise InputError(f"got the recording {name!r}, expected one of: {known}")
    return [dataclasses.replace(row, recording=name) for row in load_rows(path)]


def _parse(line: str, where: str) -> Row:
    try:
        columns = json.loads(line)
        row = Row(**columns)
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: got something that is not a row ({error}); delete the line") from error
    if row.status not in (OK, FAILED) or not isinstance(columns["batch"], int) or row.batch < 1:
        got = f"status {row.status!r} and batch {row.batch!r}"
        raise InputError(f"{where}: got {got}, expected 'ok' or 'failed', and 1 or more; delete the line")
    return row


def describe_machine(gpu: str = "") -> str:
    """The GPU that computes, if one does, the processor, the cores this process may use, and the system; no host name.

    Args:
        gpu: its name.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = [gpu, processor_name(), f"{cores} cores", f"{platform.system()} {platform.machine()}"]
    return ", ".join(part for part in parts if part)


def describe_versions(**others: str) -> str:
    """The versions of Python and NumPy, and those given, such as `onnx="1.23.2"`.

    >>> describe_versions(onnx="1.23.2").split(", ")[2]
    'onnx 1.23.2'
    """
    known = {"Python": platform.python_version(), "NumPy": np.__version__, **others}
    return ", ".join(f"{name} {version}" for name, version in known.items())


def network_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of what a network computes: its ends, operators and weights, whatever they are called.

    An exporter may name and order the same nodes in another way each time, so a hash of the file tells nothing.
    """
    import onnx

    graph = onnx.load(os.fspath(path)).graph
    constants = [entry.t for node in graph.node for entry in node.attribute if entry.HasField("t")]
    weights = sorted(_tensor_digest(tensor) for tensor in (*graph.initializer, *constants))
    ends = [str(value.type) for value in (*graph.input, *graph.output)]
    operators = sorted(node.op_type for node in graph.node)
    return hashlib.sha256(json.dumps([ends, operators, weights]).encode()).hexdigest()


def _tensor_digest(tensor: Any) -> str:
    from onnx import numpy_helper

    array = numpy_helper.to_array(tensor)
    return hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def time_columns(samples_ms: Sequence[float], batch: int) -> dict[str, Any]:
    """The columns of a row that come from the times of its calls.

    Args:
        samples_ms: one time per call, in milliseconds.
        batch: pictures in a call.

    >>> time_columns([1.0, 2.0, 6.0], batch=4)["images_per_s"]
    2000.0
    """
    median = float(np.median(samples_ms))
    return {
        "latency_ms": round(median, 5),
        "minimum_ms": round(min(samples_ms), 5),
        "p95_ms": round(float(np.percentile(samples_ms, 95)), 5),
        "runs": len(samples_ms),
        "images_per_s": round(batch * 1e3 / median, 3),
    }


def relative_l2(reference: Iterable[np.ndarray], candidate: Iterable[np.ndarray]) -> float:
    """Norm of the difference over the norm of the reference, over all arrays, one picture at a time.

    Args:
        reference: arrays whose axis 0 is the picture.
        candidate: as many, of the same shapes.
    Returns:
        0.0 where both are equal; infinity where a candidate has NaN or infinity.

    >>> relative_l2([np.array([[3.0, 4.0]])], [np.array([[3.0, 4.5]])])
    0.1
    """
    wrong = right = 0.0
    for first, second in zip(reference, candidate, strict=True):
        for one, other in zip(first, second, strict=True):
            difference = np.subtract(other, one, dtype=np.float64)
            wrong += float(np.vdot(difference, difference))
            right += float(np.square(one, dtype=np.float64).sum())
    if not np.isfinite(wrong):
        return float("inf")
    return float(np.sqrt(wrong / right)) if right else float(np.sqrt(wrong))
