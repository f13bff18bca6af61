"""Draw rows of a sweep and times of runners; a recording is labelled as one wherever a figure shows it."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from workbench.core.contract import RunnerInfo
from workbench.core.drawing import (
    BLUE,
    DPI,
    ORANGE,
    SKY,
    TEXT_PT,
    TITLE_PT,
    WIDTH_IN,
    NotebookFigure,
    add_caption,
    fit_pt,
    label_axes,
    refuse_false_names,
    title_of,
)
from workbench.core.errors import InputError
from workbench.core.report import count
from workbench.measure.latency import COMPUTE, LatencyRow, LatencyTable, format_ms
from workbench.measure.row import AXES, ERRORS, ROUNDING, Row, pareto, plottable
from workbench.precision.spec import PRECISIONS

# Okabe and Ito's colours, and markers that differ as well, so that the figures read in grey. "Color Universal Design".
_COLORS = dict(zip(PRECISIONS, ("0.25", ORANGE, BLUE, "#56B4E9", "#009E73", "#CC79A7"), strict=True))
_MARKERS = dict(zip(PRECISIONS, "osDP^v", strict=True))
_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")
_WIDE = 20
"""An axis whose largest value is this many times the smallest is logarithmic."""
_BELOW, _ABOVE = 3.0, 1.5
"""Limits that `precision_figure` shows where a row loses too much, and where none does."""


def pareto_figure(rows: Sequence[Row], x: str = "ms_per_image", y: str = "relative_l2") -> Figure:
    """Draw rows of one network in two columns, with a line through those that no other row beats.

    Hollow points were not computed in the precision's own arithmetic. One point of each precision on the front has its
    name. The arguments are those of `workbench.measure.row.pareto`.

    Raises:
        InputError: no row has both columns, or rows of several networks or sizes.
    """
    shown, best = plottable(rows, x, y), plottable(pareto(rows, x, y), x, y)
    if not shown:
        raise InputError(f"got {len(rows)} rows of which none has {x} and {y}; measure some first")
    figure = NotebookFigure(figsize=(WIDTH_IN, 4.8), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([entry[0] for entry in best], [entry[1] for entry in best], color="0.6", linewidth=1, zorder=1)
    for one, other, row in shown:
        _draw_point(axes, row, (one, other))
    several = len({row.where for _, _, row in shown}) > 1
    named = {(entry[2].precision, entry[2].where): entry for entry in best}  # one precision's points lie close together
    for place, (one, other, row) in enumerate(named.values()):
        name = f", {row.runner.split(' (')[0]}" if several else ""
        axes.annotate(f"{row.precision}, batch {row.batch}{name}", (one, other), (7, -15 if place % 2 else 7),
                      textcoords="offset points", fontsize=TEXT_PT)  # fmt: skip
    for place, (side, column) in enumerate((("x", x), ("y", y))):
        _scale(axes, side, column, [entry[:2][place] for entry in shown])
    axes.margins(0.12)
    label_axes(axes, _label(x), _label(y))
    drawn = [row for _, _, row in shown]
    return _finish(figure, drawn, _network(drawn[0]), _pareto_caption(drawn, x, y))


def throughput_figure(rows: Sequence[Row]) -> Figure:
    """Draw pictures per second over the batch, a line for each precision, a panel for each network.

    Raises:
        InputError: no row has a time.
    """
    shown = [row for _, _, row in plottable(rows, "images_per_s", "latency_ms")]
    names = list(dict.fromkeys(_network(row) for row in shown))
    if not names:
        raise InputError(f"got {len(rows)} rows of which none has a time; measure some first")
    sources = list(dict.fromkeys(_source(row) for row in shown))
    figure = NotebookFigure(figsize=(WIDTH_IN, 4.4), dpi=DPI, layout="constrained")
    for place, name in enumerate(names, 1):
        axes = figure.add_subplot(1, len(names), place)
        _draw_lines(axes, [row for row in shown if _network(row) == name], sources)
        axes.set_title(name, fontsize=fit_pt(name, WIDTH_IN / len(names) - 1), loc="left")
        label_axes(axes, "batch: pictures in a call", AXES["images_per_s"] if place == 1 else "")
    caption = "What to look for: where a line goes flat, a larger batch only makes each call wait longer. "
    lines = [
        Line2D([], [], color="0.25", linestyle=_DASHES[place % len(_DASHES)], label=source)
        for place, source in enumerate(sources)
        if len(sources) > 1
    ]
    return _finish(figure, shown, "Speed over batch", caption + _computed_by(shown), lines)


def _draw_lines(axes: Axes, rows: Sequence[Row], sources: Sequence[str]) -> None:
    """One line for each precision and source."""
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row.precision, _source(row)), []).append(row)
    for (precision, source), line in lines.items():
        line.sort(key=lambda row: row.batch)
        axes.plot([row.batch for row in line], [row.images_per_s or 0.0 for row in line], color=_COLORS[precision],
                  linewidth=1.2, linestyle=_DASHES[sources.index(source) % len(_DASHES)], zorder=1)  # fmt: skip
        for row in line:
            _draw_point(axes, row, (row.batch, row.images_per_s or 0.0))
    batches = sorted({row.batch for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_ylim(0, 1.08 * max(row.images_per_s or 0.0 for row in rows))


def _draw_point(axes: Axes, row: Row, at: tuple[float, float]) -> None:
    color = _COLORS[row.precision]
    axes.plot(*([place] for place in at), linestyle="", marker=_MARKERS[row.precision], color=color, markersize=7,
              markerfacecolor=color if row.real else "white", markeredgewidth=1.4)  # fmt: skip


def _scale(axes: Axes, side: str, column: str, values: Sequence[float]) -> None:
    """From 0, or logarithmic for errors and where the values differ much; exponents only for small numbers."""
    if min(values) <= 0 or (column not in ERRORS and max(values) < _WIDE * min(values)):
        axes.set(**{f"{side}lim": (min(0, 1.2 * min(values)), 1.2 * max(values) or 1)})
        return
    axes.set(**{f"{side}scale": "log"})
    if min(values) > 1e-3:
        (axes.xaxis if side == "x" else axes.yaxis).set_major_formatter(lambda value, _: f"{value:g}")


def _finish(figure: Figure, rows: Sequence[Row], title: str, caption: str, lines: Sequence[Line2D] = ()) -> Figure:
    """Title, legend and caption; a recording stands in the title."""
    recordings = sorted({row.recording for row in rows if row.recording})
    if recordings:
        title = f"{title} (recording: {', '.join(recordings)})"
    figure.suptitle(title, x=0.01, ha="left", fontsize=fit_pt(title, 0.6 * WIDTH_IN))
    used = [name for name in PRECISIONS if any(row.precision == name for row in rows)]
    handles = [Line2D([], [], linestyle="", marker=_MARKERS[name], color=_COLORS[name], label=name) for name in used]
    if not all(row.real for row in rows):
        handles.append(Line2D([], [], linestyle="", marker="o", color="0.25", markerfacecolor="white",
                              label="simulated"))  # fmt: skip
    figure.legend(handles=[*handles, *lines], loc="outside upper right", ncols=len(handles), fontsize=TEXT_PT,
                  frameon=False)  # fmt: skip
    add_caption(figure, caption)
    return refuse_false_names(figure, [RunnerInfo(row.backend.split("-")[0], "", "") for row in rows])


def _pareto_caption(rows: Sequence[Row], x: str, y: str) -> str:
    corner = f"{'upper' if y == 'images_per_s' else 'lower'} {'right' if x == 'images_per_s' else 'left'}"
    rounding = f" Errors below {ROUNDING:.0e}, float32's own rounding, are drawn there." if {x, y} & {*ERRORS} else ""
    return (
        f"What to look for: the {corner} corner is best. The line joins what no other point beats in both columns; "
        f"any other point is never the right choice.{rounding} {_computed_by(rows)}"
    )


def _computed_by(rows: Sequence[Row]) -> str:
    sources = dict.fromkeys(f"{_source(row)}, {row.date[:10]}" for row in rows)
    return f"Computed by {'; '.join(sources)}."


def _source(row: Row) -> str:
    """The runner and its machine; a recording says so."""
    return f"{row.where}, on {row.machine}"


def _network(row: Row) -> str:
    return row.network if row.height is None else f"{row.network}, {row.height} x {row.width} pixels"


def _label(column: str) -> str:
    return f"{AXES[column]} ({'more' if column == 'images_per_s' else 'less'} is better)"


def precision_figure(rows: Sequence[Row], limit: float = 0.01) -> Figure:
    """Draw each precision as a point: up is more accurate, left is smaller or faster.

    There is one panel for sizes, and one for times where two or more were measured. Hollow points are simulated;
    crosses lose more than the limit allows.

    Raises:
        InputError: nothing ran beside the reference, or rows of several networks, batches, sizes or backends.
    """
    ran = [row for row in rows if row.ran]
    if all(row.precision == "fp32" for row in ran):
        raise InputError("got a table in which only the reference ran, expected two precisions or more")
    if len({row.group for row in rows}) > 1:
        raise InputError("got rows of several networks, batches, sizes or backends, expected one; choose rows first")
    built = next((row.plan_note for row in ran if row.plan_mib is not None), "")
    panels = [("plan_mib", f"MiB of the plan, built by {built}") if built else ("file_mib", "MiB of the ONNX file")]
    if sum(row.latency_ms is not None for row in ran) > 1:
        panels.append(("latency_ms", AXES["latency_ms"]))
    figure = NotebookFigure(figsize=(WIDTH_IN, 3.8), dpi=DPI, layout="constrained")
    for place, (column, label) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        _draw_precisions(axes, ran, column, limit)
        label_axes(axes, f"{label}, less is better", f"change of {ran[-1].measure}, higher is better")
    mark = f" (recording: {ran[0].recording})" if ran[0].recording else ""
    title = f"{_network(ran[0])}, answers by {ran[0].runner}{mark}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=fit_pt(title, 0.45 * WIDTH_IN))
    figure.legend(handles=_precision_legend(), loc="outside upper right", ncols=3, fontsize=TEXT_PT, frameon=False)
    against = "the labels" if ran[-1].measure in ("mIoU", "top-1 accuracy") else "fp32"
    add_caption(
        figure,
        f"{count(ran[-1].images or 0, 'image')}, {ran[-1].measure} against {against}. The upper left corner is best; "
        "the dashed line is what may be lost at most; the thin line joins what nothing else beats in both.",
    )
    return figure


def _draw_precisions(axes: Axes, rows: Sequence[Row], column: str, limit: float) -> None:
    """One panel: accuracy against a size or a time; what loses too much is drawn no lower than a floor."""
    found = [(getattr(row, column), row) for row in rows]
    shown = sorted(((value, row) for value, row in found if value is not None), key=lambda entry: entry[0])
    deepest = _ABOVE if all(row.within(limit) for _, row in shown) else _BELOW
    floor = -deepest * max(limit, 1e-4)
    front = plottable(pareto(rows, column, "loss"), column, "loss")
    axes.plot([one for one, _, _ in front], [max(-loss, floor) for _, loss, _ in front], color="0.7", lw=1, zorder=1)
    axes.axhline(-limit, color="0.4", lw=1, ls="--")
    for place, (value, row) in enumerate(shown):
        loss = row.loss or 0.0
        height = floor if row.broken else max(floor, -loss)
        style = _STYLES["good" if row.within(limit) else "bad"] | ({} if row.real else {"markerfacecolor": "white"})
        axes.plot([value], [height], ls="", **style)
        lost = f": {-loss:+.3f}" if -loss < height else ""
        text = f"{row.precision}{': NaN or infinite' if row.broken else lost}"
        side = 1 if place % 2 else -1  # names stand above and below in turn, so that neighbours do not meet
        axes.annotate(text, (value, height), (6, 6 * side), textcoords="offset points", fontsize=TITLE_PT,
                      va="bottom" if side > 0 else "top")  # fmt: skip
    axes.set_ylim(1.2 * floor, max([-floor / 6, *(-1.25 * (row.loss or 0.0) for row in rows if not row.broken)]))
    axes.set_xlim(0, 1.25 * max(value for value, _ in shown))


_STYLES: dict[str, dict[str, Any]] = {
    "good": {"marker": "o", "color": BLUE, "markersize": 9, "markeredgewidth": 2},
    "bad": {"marker": "X", "color": ORANGE, "markersize": 11, "markeredgewidth": 1.5},
}


def _precision_legend() -> list[Line2D]:
    hollow = _STYLES["good"] | {"markerfacecolor": "white"}
    return [
        Line2D([], [], ls="", label="computed in this precision", **_STYLES["good"]),
        Line2D([], [], ls="", label="simulated here", **hollow),
        Line2D([], [], ls="", label="loses too much", **_STYLES["bad"]),
    ]


def latency_figure(table: LatencyTable) -> Figure:
    """Draw the median of each runner of `time_runners` as a bar from 0, with a whisker to the 95th percentile."""
    groups: dict[str, list[LatencyRow]] = {}
    for row in table.rows:
        title_of(row.info)
        groups.setdefault(row.name, []).append(row)
    figure = NotebookFigure(
        figsize=(WIDTH_IN, 1.5 + 0.36 * (len(table.rows) + len(groups))), dpi=DPI, layout="constrained"
    )
    axes = figure.add_subplot()
    position = 0.0
    for name, rows in groups.items():
        axes.text(0.004, position, name, transform=axes.get_yaxis_transform(), fontsize=TITLE_PT, va="center")
        for row in rows:
            position += 1
            note = "" if row.name == table.rows[0].name else f", {table.speedup(row):.2f}x as fast"
            _draw_latency(axes, position, row, note)
        position += 1.2
    axes.set_ylim(position - 0.5, -0.7)
    axes.set_xlim(0, 1.36 * max(row.timing.p95_ms for row in table.rows))
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("milliseconds per call, lower is better", fontsize=TEXT_PT)
    axes.tick_params(labelsize=TEXT_PT)
    _add_latency_legend(figure, {row.stage for row in table.rows})
    counts = sorted({row.timing.n for row in table.rows})
    calls = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    where = f"{table.machine_text()}, {table.date[:10]}"
    add_caption(figure, f"{calls} calls each, in turn; the first runner is the baseline. {where}.")
    return refuse_false_names(figure, [row.info for row in table.rows])


def _draw_latency(axes: Axes, position: float, row: LatencyRow, note: str) -> None:
    """Draw one bar from 0 to the median, a whisker to the 95th percentile, both figures and a note."""
    median, p95 = row.timing.median_ms, row.timing.p95_ms
    axes.barh(position, median, height=0.8, **_latency_style(row.stage))
    axes.plot([median, p95], [position, position], color="0.15", linewidth=1.2)
    axes.plot([p95, p95], [position - 0.2, position + 0.2], color="0.15", linewidth=1.2)
    label = f"{format_ms(median)} ms (p95 {format_ms(p95)}){note}"
    axes.annotate(label, (p95, position), (6, 0), textcoords="offset points", va="center", fontsize=TEXT_PT)


def _latency_style(stage: str) -> dict[str, Any]:
    if stage == COMPUTE:
        return {"facecolor": BLUE, "edgecolor": BLUE}
    return {"facecolor": SKY, "edgecolor": BLUE, "hatch": "///"}


def _add_latency_legend(figure: Figure, stages: set[str]) -> None:
    handles: list[Patch | Line2D] = [
        Patch(**_latency_style(stage), label=f"{stage}, median") for stage in sorted(stages)
    ]
    handles.append(Line2D([], [], color="0.15", linewidth=1.2, label="to the 95th percentile"))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), fontsize=TEXT_PT, frameon=False)
