"""The picture of a precision sweep: accuracy against size and against time, the best corner at the top left."""

from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from workbench.core.drawing import (
    BLUE,
    DPI,
    ORANGE,
    TEXT_PT,
    TITLE_PT,
    WIDTH_IN,
    NotebookFigure,
    add_caption,
    fit_pt,
    label_axes,
)
from workbench.core.errors import InputError
from workbench.core.report import count
from workbench.measure.precision_table import PrecisionRow, PrecisionTable

_BELOW, _ABOVE = 3.0, 1.5  # limits shown where a row loses too much, and where none does


def sweep_figure(table: PrecisionTable) -> Figure:
    """Draw each precision as a point: up is more accurate, left is smaller or faster.

    Args:
        table: with at least two precisions that ran.
    Returns:
        A figure with one panel for sizes, and one for times where two or more were measured. Hollow points are
        simulated; crosses lose more than is allowed.
    Raises:
        InputError: nothing ran beside the reference.
    """
    if not table.judged:
        raise InputError("got a table in which only the reference ran, expected two precisions or more")
    panels = [(_size_label(table), _size_of(table))]
    if sum(row.timing is not None for row in table.rows) > 1:
        panels.append(("milliseconds per call, median", _median))
    figure = NotebookFigure(figsize=(WIDTH_IN, 3.8), dpi=DPI, layout="constrained")
    for place, (label, value) in enumerate(panels, 1):
        _draw_panel(figure.add_subplot(1, len(panels), place), table, label, value)
    title = f"{table.network}, answers by {table.rows[0].computed_by}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=fit_pt(title, 0.5 * WIDTH_IN))
    figure.legend(handles=_legend(), loc="outside upper right", ncols=3, fontsize=TEXT_PT, frameon=False)
    add_caption(
        figure,
        f"{count(table.images, 'image')}, {table.measure} against {table.against}. The upper left corner is best; the "
        "dashed line is what may be lost at most; the thin line joins what nothing else beats in both.",
    )
    return figure


def pareto_rows(table: PrecisionTable, value: Callable[[PrecisionRow], float | None]) -> list[PrecisionRow]:
    """The rows that no other row beats in both: in a value that shall be small, and in accuracy.

    Args:
        table: the sweep.
        value: gives the size or the time of a row; rows without it are left out.
    Returns:
        The rows, the smallest value first.
    """
    known = [row for row in table.rows if row.ran and not row.broken and value(row) is not None]
    known.sort(key=lambda row: (value(row) or 0.0, row.loss))
    best: list[PrecisionRow] = []
    for row in known:
        if not best or row.loss < best[-1].loss:
            best.append(row)
    return best


def _draw_panel(axes: Axes, table: PrecisionTable, label: str, value: Callable[[PrecisionRow], float | None]) -> None:
    rows = [row for row in table.rows if row.ran and value(row) is not None]
    deepest = _BELOW if any(not table.within_limit(row) for row in rows) else _ABOVE
    floor = -deepest * max(table.limit, 1e-4)
    top = max([-floor / 6, *(-1.25 * row.loss for row in rows if not row.broken)])
    front = pareto_rows(table, value)
    axes.plot(
        [value(row) or 0.0 for row in front], [max(-row.loss, floor) for row in front], color="0.7", lw=1, zorder=1
    )
    axes.axhline(-table.limit, color="0.4", lw=1, ls="--")
    for place, row in enumerate(sorted(rows, key=lambda row: value(row) or 0.0)):
        height = floor if row.broken else max(floor, -row.loss)
        _draw_row(axes, row, (value(row) or 0.0, height), 1 if place % 2 else -1, table)
    axes.set_ylim(1.2 * floor, top)
    axes.set_xlim(0, 1.25 * max(value(row) or 0.0 for row in rows))
    label_axes(axes, f"{label}, less is better", f"change of {table.measure}, higher is better")


def _draw_row(axes: Axes, row: PrecisionRow, at: tuple[float, float], side: int, table: PrecisionTable) -> None:
    """Draw the point, and its name above it (side 1) or below (-1), so that neighbours do not meet."""
    style = _STYLES["good" if table.within_limit(row) else "bad"] | ({} if row.real else {"markerfacecolor": "white"})
    axes.plot(*([place] for place in at), ls="", **style)
    text = row.precision
    if row.broken:
        text += ": NaN or infinite"
    elif -row.loss < at[1]:
        text += f": {-row.loss:+.3f}"
    align = "bottom" if side > 0 else "top"
    axes.annotate(text, at, (6, 6 * side), textcoords="offset points", fontsize=TITLE_PT, va=align)


_STYLES: dict[str, dict[str, Any]] = {
    "good": {"marker": "o", "color": BLUE, "markersize": 9, "markeredgewidth": 2},
    "bad": {"marker": "X", "color": ORANGE, "markersize": 11, "markeredgewidth": 1.5},
}


def _legend() -> list[Line2D]:
    hollow = _STYLES["good"] | {"markerfacecolor": "white"}
    return [
        Line2D([], [], ls="", label="computed in this precision", **_STYLES["good"]),
        Line2D([], [], ls="", label="simulated here", **hollow),
        Line2D([], [], ls="", label="loses too much", **_STYLES["bad"]),
    ]


def _size_of(table: PrecisionTable) -> Callable[[PrecisionRow], float | None]:
    if table.planner:
        return lambda row: None if row.plan_bytes is None else row.plan_bytes / 1e6
    return lambda row: row.file_bytes / 1e6


def _size_label(table: PrecisionTable) -> str:
    return f"MB of the plan, built by {table.planner}" if table.planner else "MB of the ONNX file"


def _median(row: PrecisionRow) -> float | None:
    return row.timing.median_ms if row.timing else None
