"""Draw the error over the depth of a network, with the layer marked at which it jumps."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from workbench.divergence_report import Divergence, LayerError, short_error
from workbench.figure_parts import (
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
    refuse_false_names,
    title_of,
)

LOWEST = 1e-9
"""Errors of 0 are drawn here, at the foot of the axis."""


def divergence_figure(divergence: Divergence) -> Figure:
    """Draw the error of each compared tensor over its depth.

    Args:
        divergence: what `first_divergence` found.
    Returns:
        A figure, 10 inches wide: errors as shares of the range, on a logarithmic axis; the jump is marked and named,
        and values that are not finite lie on the upper edge.
    """
    figure = NotebookFigure(figsize=(WIDTH_IN, 4.4), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    entries = list(divergence.layers)
    top = _axis(axes, divergence)
    axes.plot([entry.depth for entry in entries], [_height(entry, top) for entry in entries], color="0.6", linewidth=1)
    for wrong in (False, True):
        _draw_points(axes, [entry for entry in entries if (entry.error > divergence.tolerance) == wrong], wrong, top)
    axes.axhline(divergence.tolerance, color="0.35", linewidth=1, linestyle=(0, (5, 3)))
    if divergence.layer is not None:
        _mark(axes, divergence.layer, divergence.pairs, top)
    title = f"Error of {title_of(divergence.candidate)} against {title_of(divergence.reference)}"
    axes.set_title(title, fontsize=fit_pt(title, WIDTH_IN - 1, TITLE_PT), loc="left")
    label_axes(
        axes, "depth: place of the tensor in the network, input to output", "largest error / range of the tensor"
    )
    _add_legend(figure, divergence)
    add_caption(figure, _caption(divergence))
    return refuse_false_names(figure, [divergence.reference, divergence.candidate])


def _axis(axes: Axes, divergence: Divergence) -> float:
    """Set the logarithmic axis and return the height at which values that are not finite are drawn."""
    finite = [entry.error for entry in divergence.layers if math.isfinite(entry.error)]
    top = 10 ** (math.ceil(math.log10(max([1.0, *finite]))) + 1)
    axes.set_yscale("log")
    axes.set_ylim(LOWEST / 2, top * 12)
    axes.set_xlim(-0.02 * divergence.pairs - 0.5, 1.02 * divergence.pairs)
    if any(math.isinf(entry.error) for entry in divergence.layers):
        axes.axhline(top, color="0.35", linewidth=0.8, linestyle=":")
        axes.annotate("not finite", (1, top), (-2, 5), axes.get_yaxis_transform(), "offset points",
                      ha="right", va="bottom", fontsize=TEXT_PT)  # fmt: skip
    return top


def _height(entry: LayerError, top: float) -> float:
    return top if math.isinf(entry.error) else max(entry.error, LOWEST)


def _draw_points(axes: Axes, entries: Sequence[LayerError], wrong: bool, top: float) -> None:
    """Blue dots for what is right, orange triangles with a dark edge for what is wrong; they differ in grey too."""
    style: dict[str, Any] = (
        {"marker": "^", "color": ORANGE, "s": 42} if wrong else {"marker": "o", "color": BLUE, "s": 26}
    )
    heights = [_height(entry, top) for entry in entries]
    axes.scatter([entry.depth for entry in entries], heights, edgecolors="0.1", linewidths=0.5, zorder=3, **style)


def _mark(axes: Axes, layer: LayerError, pairs: int, top: float) -> None:
    """Mark the jump by a line from the error before to the error after, and write the layer's name beside it."""
    axes.axvline(layer.depth, color="0.1", linewidth=1.2, zorder=2)
    on_the_left = layer.depth > 0.55 * max(pairs, 1)
    before = short_error(0.0 if math.isnan(layer.before) else layer.before)
    lines = [*textwrap.wrap(layer.layer, 44)[:3], f"{layer.operator}: {before} to {short_error(layer.error)}"]
    lines += textwrap.wrap(layer.remark, 44)[:3]
    axes.annotate(
        "\n".join(lines),
        (layer.depth, math.sqrt(LOWEST * 1e-5)),
        (-10 if on_the_left else 10, 0),
        textcoords="offset points",
        ha="right" if on_the_left else "left",
        va="center",
        fontsize=TEXT_PT + 1,
        bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": "0.1", "linewidth": 0.8},
        zorder=4,
    )


def _add_legend(figure: Figure, divergence: Divergence) -> None:
    def dot(marker: str, color: str, label: str) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, color=color, markeredgecolor="0.1", label=label)

    handles = [
        dot("o", BLUE, "as in the reference"),
        dot("^", ORANGE, "wrong"),
        Line2D([], [], color="0.35", linewidth=1, linestyle=(0, (5, 3)), label=f"allowed, {divergence.tolerance:.0e}"),
    ]
    if divergence.layer is not None:
        handles.append(Line2D([], [], color="0.1", linewidth=1.2, label="the layer at which the error jumps"))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), fontsize=TEXT_PT, frameon=False)


def _caption(divergence: Divergence) -> str:
    compared = f"{len(divergence.layers)} of {divergence.pairs} tensors were compared"
    look = {
        "none": "small errors from the first layer to the last",
        "jump": "the step: before it only rounding, after it every layer that depends on it is wrong",
        "growth": "a slope without a step: rounding that adds up",
        "hidden": "the outputs are wrong, and no layer before them could be compared",
    }[divergence.kind]
    return f"What to look for: {look}. {compared}; a bisection chose them. An error of 0 is drawn at {LOWEST:.0e}."
