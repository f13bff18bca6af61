"""Rows of a sweep: their table with one sentence of advice, their files, and two runs held against each other."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_type_hints, overload

from workbench.core.errors import BackendUnavailableError, InputError
from workbench.core.files import check_fields, data_file, parse_json, read_regular
from workbench.core.packages import require_backend
from workbench.core.report import Cells, Report, Status, Table, count
from workbench.measure.latency import format_ms
from workbench.measure.row import FAILED, LARGEST_FILE, OK, ROUNDING, find_end, pareto
from workbench.measure.row import Row as Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECORDINGS = "recordings"
"""Runs that were measured on other machines, as JSON lines, in `data/`."""

WORTH = 1.05
"""A precision is faster than another one only if it is by this factor; less is noise between two runs."""

SAME_ERROR = 1.5
"""Errors whose ratio is no more than this are the same: batches and kernels round in another order."""

SHOWN_WORST = 3


@dataclass(frozen=True)
class Rows(Report):
    """Measured points: failed ones with their reason, recorded ones marked.

    Attributes:
        rows: in the order of the points.
        limit: how much of a row's `measure` may be lost, 0..1.
    """

    rows: Sequence[Row]
    limit: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))

    @property
    def verdict(self) -> str:
        """Which precision to take and why, where there are several of one network; else how many were measured."""
        groups = self._groups()
        chosen = next((rows for rows in groups if len(rows) > 1 and rows[0].precision == "fp32"), [])
        if chosen and len({row.network for row in self.rows}) == 1:
            where = f"{chosen[0].subject}, batch {chosen[0].batch}, {chosen[0].backend}: " if len(groups) > 1 else ""
            return where + advise(chosen, self.limit)
        failed = sum(not row.ok for row in self.rows)
        return f"{count(len(self.rows), 'point')}{f', {failed} failed' if failed else ''}."

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, which: int | str) -> Row: ...
    @overload
    def __getitem__(self, which: slice) -> "Rows": ...
    def __getitem__(self, which: int | str | slice) -> "Row | Rows":
        """The row at a place, or the only row of a precision; KeyError where none has it, InputError where several."""
        if isinstance(which, slice):
            return Rows(self.rows[which], self.limit)
        if isinstance(which, int):
            return self.rows[which]
        found = [row for row in self.rows if row.precision == which]
        if len(found) > 1:
            raise InputError(f"got {which!r}, which {len(found)} rows have, expected one; take it from a list of rows")
        if not found:
            raise KeyError(which)
        return found[0]

    @property
    def judged(self) -> tuple[Row, ...]:
        """The rows that have answers, without those of float32."""
        return tuple(_judged(self.rows))

    @property
    def status(self) -> Status:
        """Whether each precision that was judged loses no more than is allowed; inconclusive where none was."""
        if not self.judged:
            return "inconclusive"
        return "pass" if all(row.within(self.limit) for row in self.judged) else "fail"

    def within_limit(self, row: Row) -> bool:
        """Whether a row has answers, all of them finite, and loses no more than is allowed."""
        return row.within(self.limit)

    def pareto(self, x: str = "latency_ms", y: str = "relative_l2") -> "Rows":
        """The rows that no other row beats in one column without losing in the other, the best in `x` first.

        Args:
            x: a column of `workbench.measure.row.AXES`.
            y: another one.
        Raises:
            InputError: an unknown column, or rows of several networks or sizes.
        """
        return Rows(pareto(self.rows, x, y), self.limit)

    def to_frame(self) -> Any:
        """A pandas DataFrame with a line for each row.

        Raises:
            BackendUnavailableError: pandas is not installed.
        """
        try:
            pandas = require_backend("pandas", "dev")
        except BackendUnavailableError as error:
            raise BackendUnavailableError(
                "to_frame() needs pandas, which is not here; run: pip install pandas"
            ) from error
        return pandas.DataFrame([dataclasses.asdict(row) for row in self.rows])

    def figure(self, kind: str = "auto", **columns: str) -> "Figure":
        """Draw the rows.

        Args:
            kind: `"precision"` (accuracy against size and time), `"pareto"` (two columns, `x` and `y`),
                `"throughput"` (pictures per second over the batch), or `"auto"`: precision where several were judged
                in one batch and backend, throughput where only batches differ, else pareto.
            columns: `x` and `y` of `"pareto"`.
        Raises:
            InputError: another kind, or rows that have nothing to draw.
        """
        from workbench.measure.figures import pareto_figure, precision_figure, throughput_figure

        if kind == "auto":
            batches, alone = {row.batch for row in self.rows}, len(self._groups()) == 1
            other = "throughput" if not self.judged and len(batches) > 1 and not columns else "pareto"
            kind = "precision" if alone and self.judged and not columns else other
        if kind == "precision":
            return precision_figure(self.rows, self.limit)
        if kind == "throughput":
            return throughput_figure(self.rows)
        if kind != "pareto":
            raise InputError(f"got the figure {kind!r}, expected auto, precision, pareto or throughput")
        return pareto_figure(self.rows, **columns)

    def _groups(self) -> list[list[Row]]:
        """The rows that differ in precision only, together, float32 first."""
        groups: dict[Any, list[Row]] = {}
        for row in sorted(self.rows, key=lambda row: row.precision != "fp32"):
            groups.setdefault(row.group, []).append(row)
        return list(groups.values())

    def _measure(self) -> str:
        """What the scores of all rows are; a neutral word where they differ."""
        names = {row.measure for row in self.judged or self.rows if row.ran}
        return names.pop() if len(names) == 1 else "score"

    def _tables(self) -> list[Table]:
        builders = list(dict.fromkeys(row.plan_note for row in self.rows if row.plan_mib is not None))
        plan = (f"plan, {' or '.join(builders)}, MiB",) if builders else ()
        headings = (
            "point", "computed by", "arithmetic", "max error of range", "relative L2", self._measure(), "change",
            "NaN, Inf", "ms, median", "pictures/s", "memory, MiB", "file, MiB", *plan,
        )  # fmt: skip
        return [Table(headings, [self._cells(row, bool(plan)) for row in self.rows])] if self.rows else []

    def _cells(self, row: Row, plan: bool) -> Cells:
        change = "-" if row.loss is None or row.precision == "fp32" else f"{0 - row.loss:+.4f}"
        if row.ran and row.precision != "fp32" and not self.within_limit(row):
            change += " too much"
        return (
            row.title, row.where, row.arithmetic or "-",
            _number(row.max_error_of_range, ".1e") if row.ran else "failed",
            _number(row.relative_l2, ".1e"), _number(row.score, ".4f"), change,
            "-" if row.nan is None else f"{row.nan}, {row.inf}", _ms(row), _number(row.images_per_s),
            _number(row.memory_mib), _number(row.file_mib), *((_number(row.plan_mib),) if plan else ()),
        )  # fmt: skip

    def _remarks(self) -> Iterator[str]:
        several = len(self._groups()) > 1
        name = {row: row.title if several else row.precision for row in self.rows}
        for row in self.rows:
            if row.ran and row.images is not None:
                against = "the labels" if row.miou is not None or row.accuracy is not None else "fp32"
                yield (
                    f"{row.network}, {count(row.images, 'image')}. Errors are against float32's answers; {row.measure} "
                    f"is against {against}, and may fall by {self.limit:g}."
                )
        yield from (f"{name[row]} did not run: {row.reason.rstrip('.')}." for row in self.rows if not row.ran)
        unreal = list(dict.fromkeys(row.precision for row in self.judged if not row.real))
        if unreal:
            listed = " or ".join(filter(None, [", ".join(unreal[:-1]), unreal[-1]]))
            yield (
                f"This machine does not compute in {listed}: their errors are simulated, and they have neither "
                "time nor memory here."
            )
        for row in self.judged:
            yield from _about(row, name[row])
        if any("the judged ones among them" in row.note for row in self.rows):
            yield "The 8-bit scales come from the very images that are judged; calibrate on others for a fair figure."
        if any(row.images == 1 for row in self.rows):
            yield "Only one image was judged; several different ones show more."
        yield from (f"{row.machine}, {row.date}." for row in self.rows[-1:])

    def _content(self) -> dict[str, Any]:
        rows = [dataclasses.asdict(row) | {"within_limit": self.within_limit(row)} for row in self.rows]
        return {"passed": self.passed, "verdict": self.verdict, "limit": self.limit, "rows": rows}


def _about(row: Row, name: str) -> Iterator[str]:
    """What a row keeps in float32, where its answers differ, and why it has no plan."""
    if row.kept:
        names = ", ".join(str(entry[0]) for entry in row.kept[:SHOWN_WORST])
        more = f" and {len(row.kept) - SHOWN_WORST} more" if len(row.kept) > SHOWN_WORST else ""
        yield f"{name} keeps {count(len(row.kept), 'node')} in float32: {names}{more} ({row.kept[0][2]})."
    if row.worst and row.worst[0][1] < 1:
        worst = ", ".join(f"{picture} ({100 * share:.4g} %)" for picture, share in row.worst[:SHOWN_WORST])
        yield f"{name} agrees least with fp32 on {worst}."
    if row.plan_note and row.plan_mib is None:
        yield f"{name} has no plan: {row.plan_note.rstrip('.')}."


def _judged(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.precision != "fp32" and (row.broken or (row.ok and row.loss is not None))]


def advise(rows: Sequence[Row], limit: float) -> str:
    """Say which precision of a group to take: the fastest that keeps its answers, where speed is real; else fp16."""
    base, judged = rows[0], _judged(rows)
    good, bad = ([row for row in judged if row.within(limit) is kept] for kept in (True, False))
    if not judged:
        return f"Nothing to advise: no precision but {base.precision} ran here."
    if not good:
        return f"Stay with {base.precision}: {'; '.join(f'{row.precision} {_verb(row, limit)}' for row in bad)}."
    fast = [row for row in good if row.latency_ms]
    choice = _by_speed(base, good, fast) if fast and base.latency_ms else _by_size(base, good)
    return f"{choice}{''.join(f'; not {row.precision}: it {_verb(row, limit)}' for row in bad)}."


def _by_speed(base: Row, good: Sequence[Row], fast: Sequence[Row]) -> str:
    """The fastest, if it is worth it, and the row that a reader would ask about next."""
    best = min(fast, key=_time)
    half = next((row for row in fast if row.precision == "fp16"), None)
    if half is not None and _time(half) < WORTH * _time(best):
        best = half  # as fast, and closer to float32
    if _time(base) < WORTH * _time(best):
        text = f"Stay with {base.precision} on this machine: {best.precision} takes {_times(best, base)}"
    else:
        faster = f"{_time(base) / _time(best):.1f} times as fast as {base.precision}"
        text = f"Take {best.precision}: it is {faster} ({_times(best, base)}), {_cost(best)}"
    eight = next((row for row in fast if row.precision == "int8"), None)
    if eight is not None and best is half and _time(eight) > WORTH * _time(half):
        return f"{text}; int8 is slower than fp16 here ({_times(eight, half)})"
    if best is not half and half is not None:
        text += f"; fp16 takes {_ms(half)} ms"
    elif half is None and any(row.precision == "fp16" for row in good):
        text += "; this machine has no float16 arithmetic, so compare it with fp16 on the GPU"
    return text


def _by_size(base: Row, good: Sequence[Row]) -> str:
    """Where no speed is known: float16 is the safe first step, whatever is smaller has to be measured."""
    best = next((row for row in good if row.precision == "fp16"), good[0])
    sizes = ""
    if best.plan_mib and base.plan_mib:
        sizes = f", and its plan takes {100 * best.plan_mib / base.plan_mib:.0f} % of {base.precision}'s"
    elif best.file_mib and base.file_mib and best.file_mib < base.file_mib:
        sizes = f", and its file shrinks from {base.file_mib:.3g} to {best.file_mib:.3g} MiB"
    text = f"Take {best.precision}: {_cost(best)}{sizes}; how fast it is, only the target machine can tell"
    other = next((row for row in good if row is not best and row.precision in ("int8", "fp8")), None)
    return text + (f", and whether {other.precision} ({_cost(other)}) gains more" if other is not None else "")


def _cost(row: Row) -> str:
    loss = row.loss or 0.0
    return f"{row.measure} {f'stays at {row.score:.4f}' if abs(loss) < 5e-5 else f'changes by {-loss:+.4f}'}"


def _verb(row: Row, limit: float) -> str:
    if row.broken:
        return f"answers {count((row.nan or 0) + (row.inf or 0), 'NaN or infinite value')}"
    return f"loses {row.loss or 0.0:.4f} of {row.measure} ({limit:g} allowed)"


def _time(row: Row) -> float:
    return row.latency_ms or float("inf")


def _times(one: Row, other: Row) -> str:
    return f"{_ms(one)} against {_ms(other)} ms"


def _ms(row: Row) -> str:
    return "-" if row.latency_ms is None else format_ms(row.latency_ms)


def _number(value: float | None, style: str = ".4g") -> str:
    return "-" if value is None else format(value, style)


def load_rows(path: str | os.PathLike[str]) -> Rows:
    """Read the rows of a file; of several that repeat one measurement the last one counts.

    Args:
        path: JSON lines, as `workbench.measure.row.append_row` writes them. An unfinished last line is left out.
    Returns:
        The rows, in the order in which their points first appear.
    Raises:
        InputError: there is no such file, or a line is not a row.
    """
    try:
        content = read_regular(path, LARGEST_FILE)
        text = content[: find_end(path, content)].decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"got {path}, expected a file of rows that can be read ({reason}); run a sweep first"
        ) from error
    rows: dict[tuple[Any, ...], Row] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            row = _parse(line, f"{path}, line {number}")
            rows[row.key] = row
    return Rows([*rows.values()])


def load_recording(name: str) -> Rows:
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
    return Rows([dataclasses.replace(row, recording=name) for row in load_rows(path)])


def _parse(line: str, where: str) -> Row:
    try:
        columns = parse_json(line)
        check_fields(get_type_hints(Row), columns)
        row = Row(**columns)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: got something that is not a row ({error}); delete the line") from error
    if row.status not in (OK, FAILED) or row.batch < 1:
        got = f"status {row.status!r} and batch {row.batch!r}"
        raise InputError(f"{where}: got {got}, expected 'ok' or 'failed', and 1 or more; delete the line")
    return row


@dataclass(frozen=True)
class RunComparison(Report):
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
    def verdict(self) -> str:
        """How many points are slower, faster, or answer differently."""
        return (
            f"{count(len(self.pairs), 'point')} in both runs: {len(self.slower)} slower, "
            f"{sum(_changed_time(*pair) < 0 for pair in self.pairs)} faster, "
            f"{len(self.changed_answers)} with other answers"
        )

    @property
    def slower(self) -> tuple[tuple[Row, Row], ...]:
        """The pairs whose second row is slower, beyond the scatter of both."""
        return tuple(pair for pair in self.pairs if _changed_time(*pair) > 0)

    @property
    def changed_answers(self) -> tuple[tuple[Row, Row], ...]:
        """The pairs of which one failed, or whose errors or networks differ."""
        return tuple(pair for pair in self.pairs if _changed_answers(*pair))

    def _tables(self) -> list[Table]:
        headings = ("point", "ms, first", "ms, second", "ratio", "L2, first", "L2, second", "what changed")
        return [Table(headings, [self._cells(*pair) for pair in self.pairs])]

    def _cells(self, first: Row, second: Row) -> Cells:
        ratio = "-" if not (first.latency_ms and second.latency_ms) else f"{second.latency_ms / first.latency_ms:.2f}"
        errors = (_number(row.relative_l2, ".1e") if row.ok else "failed" for row in (first, second))
        time = {1: "slower", -1: "faster", 0: ""}[_changed_time(first, second)]
        changed = ", ".join(filter(None, [time, _changed_answers(first, second)]))
        return (first.title, _ms(first), _ms(second), ratio, *errors, changed)

    def _remarks(self) -> Iterator[str]:
        for which in ("machine", "versions"):
            first, second = ({getattr(pair[side], which) for pair in self.pairs} for side in (0, 1))
            if first != second:
                yield f"{which}: {' and '.join(sorted(first))} -> {' and '.join(sorted(second))}"
        for name, rows in (("first", self.only_first), ("second", self.only_second)):
            yield from (f"only in the {name} run: {row.title}" for row in rows)


def compare_runs(first: Iterable[Row], second: Iterable[Row]) -> RunComparison:
    """Hold two runs against each other, point by point.

    A time has changed only if each run's median lies outside what the other run saw between its fastest call and its
    95th percentile: less is scatter.

    Args:
        first: rows of one run; of several of one point the last counts.
        second: those of the other.
    Raises:
        InputError: the runs have no point in common.
    """
    left: Mapping[Any, Row] = {row.point: row for row in first}
    right: Mapping[Any, Row] = {row.point: row for row in second}
    pairs = tuple((row, right[point]) for point, row in left.items() if point in right)
    if not pairs:
        raise InputError(
            f"got runs of {len(left)} and {len(right)} points with none in common, expected the same networks, "
            "precisions, backends, batches and sizes in both"
        )
    only_first = tuple(row for point, row in left.items() if point not in right)
    return RunComparison(pairs, only_first, tuple(row for point, row in right.items() if point not in left))


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
    if first.relative_l2 is None or second.relative_l2 is None:
        return ""
    small, large = sorted((first.relative_l2, second.relative_l2))
    return "the error" if large > SAME_ERROR * max(small, ROUNDING) else ""
