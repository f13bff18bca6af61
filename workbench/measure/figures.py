"""Draw how long runners took."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from workbench.core.drawing import (
    BLUE,
    DPI,
    SKY,
    TEXT_PT,
    TITLE_PT,
    WIDTH_IN,
    NotebookFigure,
    add_caption,
    refuse_false_names,
    title_of,
)
from workbench.measure.latency import COMPUTE, LatencyRow, LatencyTable, format_ms


def latency_figure(table: LatencyTable) -> Figure:
    """Draw the median of each runner as a bar, with a whisker to the 95th percentile.

    Args:
        table: the timings of `workbench.measure.latency.compare_runners`.
    Returns:
        A figure with one group of bars for each runner, times in milliseconds from 0.
    """
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
