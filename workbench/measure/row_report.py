"""Read rows of experiments: a table, what no other row beats in two columns, and two runs held against each other."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.core.errors import InputError
from workbench.core.report import Cells, count, html_table, text_table
from workbench.measure.latency import format_ms
from workbench.measure.rows import Row

AXES = {
    "latency_ms": "milliseconds per call, median",
    "ms_per_image": "milliseconds per picture, median",
    "images_per_s": "pictures per second",
    "error": "relative L2 error against float32",
    "memory_mib": "memory, MiB",
    "file_mib": "size of the file, MiB",
}
"""Columns that rows can be held against each other by; more is better of pictures per second only."""

ROUNDING = 1e-6
"""Errors up to this are float32's own rounding, which no choice should rest on."""

_HEADINGS = (
    "point", "computed by", "arithmetic", "ms, median", "pictures/s", "error", "memory, MiB", "file, MiB",
    "why it failed",
)  # fmt: skip

SAME_ERROR = 1.5
"""Errors whose ratio is no more than this are the same: batches and kernels round in another order."""


def value_of(row: Row, column: str) -> float | None:
    """A figure of a row.

    Raises:
        InputError: no such column in `AXES`.
    """
    if column not in AXES:
        raise InputError(f"got the column {column!r}, expected one of {', '.join(AXES)}")
    return getattr(row, column)


def pareto(rows: Sequence[Row], x: str = "latency_ms", y: str = "error") -> list[Row]:
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
    networks = {(row.network, row.height, row.width) for row in rows}
    if len(networks) > 1:
        raise InputError(f"got rows of {len(networks)} networks or sizes, expected one; choose rows of one first")
    known = [(cost(row, x), cost(row, y), row) for row in plottable(rows, x, y)]
    best: list[tuple[float, float, Row]] = []
    for entry in sorted(known, key=lambda entry: entry[:2]):
        if not best or entry[1] < best[-1][1]:
            best.append(entry)
    return [row for _, _, row in best]


def plottable(rows: Sequence[Row], x: str, y: str) -> list[Row]:
    """The rows that did not fail and have both columns."""
    return [row for row in rows if row.ok and value_of(row, x) is not None and value_of(row, y) is not None]


def cost(row: Row, column: str) -> float:
    """A figure such that less is better; errors no larger than `ROUNDING` are equal."""
    value = value_of(row, column) or 0.0
    if column == "error":
        return max(value, ROUNDING)
    return -value if column == "images_per_s" else value


@dataclass(frozen=True)
class RunComparison:
    """Two runs of the same points, such as of two versions or two machines.

    Attributes:
        pairs: (row of the first run, row of the second) of each point that both have.
        only_first: points that the second run lacks.
        only_second: points that the first run lacks.
    """

    pairs: tuple[tuple[Row, Row], ...]
    only_first: tuple[Row, ...]
    only_second: tuple[Row, ...]

    @property
    def slower(self) -> tuple[tuple[Row, Row], ...]:
        """The pairs whose second row is slower, beyond the scatter of both."""
        return tuple(pair for pair in self.pairs if _changed_time(*pair) > 0)

    @property
    def changed_answers(self) -> tuple[tuple[Row, Row], ...]:
        """The pairs of which one failed, or whose errors or networks differ."""
        return tuple(pair for pair in self.pairs if _changed_answers(*pair))

    def to_text(self) -> str:
        """Write what differs between the runs, then a line for each point."""
        lines = [*self._headlines(), "", *text_table(self._headings(), self._cells())]
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        heads = "".join(f"<div>{html.escape(line)}</div>" for line in self._headlines())
        return f'<div style="color:inherit">{heads}{html_table(self._headings(), self._cells())}</div>'

    def _headlines(self) -> list[str]:
        lines = [
            f"{count(len(self.pairs), 'point')} in both runs: {len(self.slower)} slower, "
            f"{sum(_changed_time(*pair) < 0 for pair in self.pairs)} faster, "
            f"{len(self.changed_answers)} with other answers"
        ]
        for which in ("machine", "versions"):
            first, second = ({getattr(pair[side], which) for pair in self.pairs} for side in (0, 1))
            if first != second:
                lines.append(f"{which}: {' and '.join(sorted(first))} -> {' and '.join(sorted(second))}")
        for name, rows in (("first", self.only_first), ("second", self.only_second)):
            lines += [f"only in the {name} run: {row.title}" for row in rows]
        return lines

    def _headings(self) -> Cells:
        return ("point", "ms, first", "ms, second", "ratio", "error, first", "error, second", "what changed")

    def _cells(self) -> list[Cells]:
        return [
            (
                first.title, _ms(first), _ms(second), _ratio(first, second), _error(first), _error(second),
                _words(first, second),
            )
            for first, second in self.pairs
        ]  # fmt: skip


def compare_runs(first: Sequence[Row], second: Sequence[Row]) -> RunComparison:
    """Hold two runs against each other, point by point.

    A time has changed only if each run's median lies outside what the other run saw between its fastest call and its
    95th percentile: less is scatter.

    Args:
        first: rows of one run; of several of one point the last counts.
        second: those of the other.
    Raises:
        InputError: the runs have no point in common.
    """
    left, right = {row.point: row for row in first}, {row.point: row for row in second}
    pairs = tuple((row, right[point]) for point, row in left.items() if point in right)
    if not pairs:
        raise InputError(
            f"got runs of {len(left)} and {len(right)} points with none in common, expected the same networks, "
            "precisions, backends, batches and sizes in both"
        )
    only_first = tuple(row for point, row in left.items() if point not in right)
    return RunComparison(pairs, only_first, tuple(row for point, row in right.items() if point not in left))


@dataclass(frozen=True)
class RowTable:
    """Rows for people: failed ones with their reason, recorded ones marked.

    Attributes:
        rows: what is shown.
    """

    rows: Sequence[Row]

    def to_text(self) -> str:
        """Write aligned columns."""
        return "\n".join(text_table(_HEADINGS, [_row_cells(row) for row in self.rows]))

    def _repr_html_(self) -> str:
        return html_table(_HEADINGS, [_row_cells(row) for row in self.rows])


def _row_cells(row: Row) -> Cells:
    numbers = (row.images_per_s, row.memory_mib, row.file_mib)
    speed, memory, size = ("-" if number is None else f"{number:.4g}" for number in numbers)
    return (row.title, row.where, row.arithmetic or "-", _ms(row), speed, _error(row), memory, size, row.reason)


def _changed_time(first: Row, second: Row) -> int:
    """1 if the second is slower beyond the scatter, -1 if it is faster, else 0."""
    times = (first.latency_ms, first.minimum_ms, first.p95_ms, second.latency_ms, second.minimum_ms, second.p95_ms)
    if None in times or not (first.ok and second.ok):
        return 0
    median, least, most, other_median, other_least, other_most = (time or 0.0 for time in times)
    if other_median > most and median < other_least:
        return 1
    return -1 if other_median < least and median > other_most else 0


def _changed_answers(first: Row, second: Row) -> str:
    if first.ok != second.ok:
        return "fails now" if first.ok else "failed before"
    if first.network_sha256 != second.network_sha256:
        return "another network of this name"
    if first.error is None or second.error is None:
        return ""
    small, large = sorted((first.error, second.error))
    return "the error" if large > SAME_ERROR * max(small, ROUNDING) else ""


def _words(first: Row, second: Row) -> str:
    time = {1: "slower", -1: "faster", 0: ""}[_changed_time(first, second)]
    return ", ".join(filter(None, [time, _changed_answers(first, second)]))


def _ms(row: Row) -> str:
    return "-" if row.latency_ms is None else format_ms(row.latency_ms)


def _error(row: Row) -> str:
    return "failed" if not row.ok else "-" if row.error is None else f"{row.error:.1e}"


def _ratio(first: Row, second: Row) -> str:
    if first.latency_ms is None or second.latency_ms is None:
        return "-"
    return f"{second.latency_ms / first.latency_ms:.2f}"
