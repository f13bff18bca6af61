"""Measure how long runners take, in turn, so that a slow spell of the machine meets all of them."""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np

from workbench.core.contract import BACKEND_NAMES, Runner, RunnerInfo
from workbench.core.errors import InputError
from workbench.core.packages import processor_name
from workbench.core.report import Report, Table, count

COMPUTE = "compute"
"""Stage: `runner.infer` on arrays that are ready, until the answer is in host memory."""

END_TO_END = "end to end"
"""Stage: everything from the image to the answer a person sees."""

P99_SAMPLES = 500
"""A 99th percentile is not given from fewer samples: it would rest on fewer than five of them."""

Feed = Mapping[str, np.ndarray]
Clock = Callable[[], int]


@dataclass(frozen=True)
class Timing:
    """How long each call took.

    Attributes:
        name: what was called.
        samples_ms: one wall-clock time per call, in milliseconds, in the order of the calls.
    """

    name: str
    samples_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.samples_ms:
            raise InputError(f"got no samples for {self.name!r}, expected at least one; use runs=1 or more")

    @property
    def n(self) -> int:
        """Number of calls."""
        return len(self.samples_ms)

    @property
    def median_ms(self) -> float:
        """Half of the calls took no longer."""
        return float(np.median(self.samples_ms))

    @property
    def p95_ms(self) -> float:
        """95 of 100 calls took no longer (linear between neighbouring samples)."""
        return float(np.percentile(self.samples_ms, 95))

    @property
    def p99_ms(self) -> float | None:
        """99 of 100 calls took no longer; None when n < 500, for it would rest on fewer than five samples."""
        return float(np.percentile(self.samples_ms, 99)) if self.n >= P99_SAMPLES else None

    @property
    def minimum_ms(self) -> float:
        """The fastest call: the least disturbed one."""
        return min(self.samples_ms)


@dataclass(frozen=True)
class LatencyRow:
    """One runner in one stage.

    Attributes:
        info: what was measured.
        variant: what tells two runners of the same name apart, such as `"fp16"`; may be empty.
        stage: `COMPUTE` or `END_TO_END`.
        timing: the samples.
    """

    info: RunnerInfo
    variant: str
    stage: str
    timing: Timing

    def __post_init__(self) -> None:
        if "tensorrt" in self.variant.lower() and not self.info.is_tensorrt:
            raise InputError(
                f"got the note {self.variant!r} for {self.info.name}, expected no mention of TensorRT; "
                "it did not compute this"
            )

    @property
    def name(self) -> str:
        """The runner's own name, then the variant."""
        return f"{self.info.name}, {self.variant}" if self.variant else self.info.name


@dataclass(frozen=True)
class LatencyTable(Report):
    """Timings of several runners on one machine; the first runner is the baseline of each stage.

    Attributes:
        rows: stage by stage, the runners in the order they were given.
        machine: system, processor and number of cores.
        versions: of Python, NumPy and each backend.
        date: when, in UTC, ISO 8601.
    """

    rows: tuple[LatencyRow, ...]
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    date: str

    @property
    def verdict(self) -> str:
        """The fastest runner of the first stage."""
        first = [row for row in self.rows if row.stage == self.rows[0].stage]
        best = min(first, key=lambda row: row.timing.median_ms)
        than = f", {self.speedup(best):.2f} times as fast as {first[0].name}" if best is not first[0] else ""
        return f"{best.name}: {format_ms(best.timing.median_ms)} ms per call, {best.stage}{than}."

    def speedup(self, row: LatencyRow) -> float:
        """How many times as fast as the first runner in the same stage, by medians."""
        baseline = next(other for other in self.rows if other.stage == row.stage)
        return baseline.timing.median_ms / max(row.timing.median_ms, 1e-9)

    def machine_text(self) -> str:
        """Processor, cores and system in one phrase."""
        return ", ".join(self.machine.values())

    def _tables(self) -> list[Table]:
        headings = ("stage", "runner", "median ms", "p95 ms", "p99 ms", "min ms", "n", "times as fast")
        return [Table(headings, [self._cells(row) for row in self.rows])]

    def _remarks(self) -> list[str]:
        return [f"{self.machine_text()}, {self.date}"]

    def _content(self) -> dict[str, Any]:
        rows = [
            {"runner": row.name, "backend": row.info.backend, "stage": row.stage}
            | {name: getattr(row.timing, name) for name in ("median_ms", "p95_ms", "p99_ms", "minimum_ms", "n")}
            | {"times_as_fast": self.speedup(row), "samples_ms": row.timing.samples_ms}
            for row in self.rows
        ]
        return {"date": self.date, "machine": dict(self.machine), "versions": dict(self.versions), "rows": rows}

    def _cells(self, row: LatencyRow) -> tuple[str, ...]:
        timing = row.timing
        times = (timing.median_ms, timing.p95_ms, timing.p99_ms, timing.minimum_ms)
        cells = ("-" if time is None else format_ms(time) for time in times)
        return (row.stage, row.name, *cells, str(timing.n), f"{self.speedup(row):.2f}x")


def format_ms(milliseconds: float) -> str:
    """Write a time with three significant figures and no exponent.

    >>> format_ms(0.04321), format_ms(7.3), format_ms(1234.5)
    ('0.0432', '7.30', '1234')
    """
    magnitude = int(np.floor(np.log10(milliseconds))) if milliseconds > 0 else 0
    return f"{milliseconds:.{min(max(2 - magnitude, 0), 6)}f}"


def measure(
    function: Callable[[], Any],
    *,
    name: str = "call",
    warmup: int = 3,
    runs: int = 20,
    clock: Clock = time.perf_counter_ns,
) -> Timing:
    """Time a function; what it returns is let go outside the measured span.

    Args:
        function: called without arguments; it must have finished its work, on a GPU too, when it returns.
        name: what is called, for tables.
        warmup: calls before the first measured one, 0 or more.
        runs: measured calls, 1 or more.
        clock: gives nanoseconds.
    Raises:
        InputError: `warmup` or `runs` is too small.
    """
    _check_counts(warmup, runs)
    for _ in range(warmup):
        function()
    return Timing(name, tuple(_time_call(function, clock) for _ in range(runs)))


def time_runners(
    runners: Mapping[str, Runner] | Sequence[Runner],
    feed: Feed | Callable[[Runner], Feed],
    *,
    end_to_end: Callable[[Runner], Any] | None = None,
    warmup: int = 3,
    runs: int = 20,
    pause_s: float = 0.02,
    progress: Callable[[int, int], None] | None = None,
    clock: Clock = time.perf_counter_ns,
) -> LatencyTable:
    """Time several runners in interleaved rounds: A B C, A B C, and so on.

    Args:
        runners: open runners, the baseline first; a dict gives each a note that tells it apart, such as
            `{"fp32": a, "fp16": b}`. Tables and figures always show the runner's own name.
        feed: the prepared arrays of one call, or a function that makes them for a runner (not timed).
        end_to_end: goes from the image to the answer with the given runner; its times are kept apart.
        warmup: calls of each runner and stage before the first measured one.
        runs: measured rounds.
        pause_s: rest in seconds before each call, not timed: the threads of the runner before keep
            spinning for a while after its answer, and would slow this one down.
        progress: called with (rounds done, rounds in all) after each round, the warm-up included.
        clock: gives nanoseconds.
    Returns:
        The timings with machine, versions and date.
    Raises:
        InputError: no runner, two that cannot be told apart, or bad counts.
        FeedError: a runner does not take the feed.
    """
    _check_counts(warmup, runs)
    named = _name_runners(runners)
    calls: list[tuple[RunnerInfo, str, str, Callable[[], Any]]] = []
    for info, note, runner in named:
        calls.append((info, note, COMPUTE, partial(runner.infer, feed(runner) if callable(feed) else feed)))
    if end_to_end is not None:
        calls += [(info, note, END_TO_END, partial(end_to_end, runner)) for info, note, runner in named]
    samples: list[list[float]] = [[] for _ in calls]
    for done in range(warmup + runs):
        for (_, _, _, function), kept in zip(calls, samples, strict=True):
            time.sleep(pause_s)
            kept.append(_time_call(function, clock))
        if progress is not None:
            progress(done + 1, warmup + runs)
    rows = [
        LatencyRow(info, note, stage, Timing(f"{info.name}, {stage}", tuple(kept[warmup:])))
        for (info, note, stage, _), kept in zip(calls, samples, strict=True)
    ]
    versions = {"Python": platform.python_version(), "NumPy": np.__version__}
    versions |= {BACKEND_NAMES[info.backend]: info.version for info, _, _ in named}
    return LatencyTable(tuple(rows), describe_machine(), versions, now())


def _name_runners(runners: Mapping[str, Runner] | Sequence[Runner]) -> list[tuple[RunnerInfo, str, Runner]]:
    """Pair each runner with its note; a note that only repeats the runner's name is dropped."""
    items = runners.items() if isinstance(runners, Mapping) else [("", runner) for runner in runners]
    named = []
    for note, runner in items:
        known = (runner.info.backend, BACKEND_NAMES[runner.info.backend], runner.info.name)
        named.append((runner.info, "" if note in known else note, runner))
    labels = [(info.name, note) for info, note, _ in named]
    if not labels:
        raise InputError("got no runners to time, expected at least one")
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(
                f"got two runners named {label[0]}, expected names that differ; "
                'pass a dict with a note for each, such as {"fp32": a, "fp16": b}'
            )
    return named


def _time_call(function: Callable[[], Any], clock: Clock) -> float:
    """Milliseconds of one call; the result lives until the clock has been read."""
    start = clock()
    result = function()
    stop = clock()
    del result
    return (stop - start) / 1e6


def _check_counts(warmup: int, runs: int) -> None:
    if warmup < 0 or runs < 1:
        raise InputError(f"got warmup={warmup} and runs={runs}, expected warmup of 0 or more and runs of 1 or more")


def describe_machine() -> dict[str, str]:
    """Processor, the cores this process may use, and the system; no host name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    system = f"{platform.system()} {platform.machine()}"
    return {"processor": processor_name(), "cores": count(cores, "logical core"), "system": system}


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
