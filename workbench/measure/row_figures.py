"""Draw rows of experiments; a recording is labelled as one wherever a figure shows it."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from workbench.core.contract import RunnerInfo
from workbench.core.drawing import (
    BLUE,
    DPI,
    ORANGE,
    TEXT_PT,
    WIDTH_IN,
    NotebookFigure,
    add_caption,
    fit_pt,
    label_axes,
    refuse_false_names,
)
from workbench.core.errors import InputError
from workbench.measure.row_report import AXES, ROUNDING, pareto, plottable, value_of
from workbench.measure.rows import Row
from workbench.precision.spec import PRECISIONS

# Okabe and Ito's colours, and markers that differ as well, so that the figures read in grey. "Color Universal Design".
_COLORS = dict(zip(PRECISIONS, ("0.25", ORANGE, BLUE, "#56B4E9", "#009E73", "#CC79A7"), strict=True))
_MARKERS = dict(zip(PRECISIONS, "osDP^v", strict=True))
_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")
_WIDE = 20
"""An axis whose largest value is this many times the smallest is logarithmic."""


def pareto_figure(rows: Sequence[Row], x: str = "ms_per_image", y: str = "error") -> Figure:
    """Draw rows of one network in two columns, with a line through those that no other row beats.

    Args:
        rows: of one network at one size; see `pareto`.
        x: a column of `AXES`.
        y: another one.
    Returns:
        A figure, 10 inches wide. Hollow points were not computed in the precision's own arithmetic. One point of
        each precision on the front has its name.
    Raises:
        InputError: no row has both columns, or rows of several networks or sizes.
    """
    shown, best = plottable(rows, x, y), pareto(rows, x, y)
    if not shown:
        raise InputError(f"got {len(rows)} rows of which none has {x} and {y}; measure some first")
    figure = NotebookFigure(figsize=(WIDTH_IN, 4.8), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([_height(row, x) for row in best], [_height(row, y) for row in best], color="0.6", linewidth=1, zorder=1)
    for row in shown:
        _draw_point(axes, row, (_height(row, x), _height(row, y)))
    several = len({row.where for row in shown}) > 1
    named = {(row.precision, row.where): row for row in best}  # the points of one precision lie close together
    for place, row in enumerate(named.values()):
        name = f", {row.runner.split(' (')[0]}" if several else ""
        axes.annotate(f"{row.precision}, batch {row.batch}{name}", (_height(row, x), _height(row, y)),
                      (7, -15 if place % 2 else 7), textcoords="offset points", fontsize=TEXT_PT)  # fmt: skip
    for side, column in (("x", x), ("y", y)):
        _scale(axes, side, column, [_height(row, column) for row in shown])
    axes.margins(0.12)
    label_axes(axes, _label(x), _label(y))
    return _finish(figure, shown, _network(shown[0]), _pareto_caption(shown, x, y))


def throughput_figure(rows: Sequence[Row]) -> Figure:
    """Draw pictures per second over the batch, a line for each precision, a panel for each network.

    Args:
        rows: with times; those without are left out.
    Raises:
        InputError: no row has a time.
    """
    shown = plottable(rows, "images_per_s", "latency_ms")
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
    if column != "error" and max(values) < _WIDE * min(values):
        axes.set(**{f"{side}lim": (0, 1.2 * max(values))})
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
    rounding = f" Errors below {ROUNDING:.0e}, float32's own rounding, are drawn there." if "error" in (x, y) else ""
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


def _height(row: Row, column: str) -> float:
    value = value_of(row, column) or 0.0
    return max(value, ROUNDING) if column == "error" else value
