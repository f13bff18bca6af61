"""Draw what a network's tensors hold against what 16 and 8 bits can, and which layers rounding hurts most."""

import math
from collections.abc import Collection, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from workbench.core import drawing
from workbench.core.drawing import BLUE, ORANGE, TEXT_PT, TITLE_PT, add_caption, label_axes
from workbench.core.errors import InputError
from workbench.core.report import count
from workbench.precision.half_graph import FLOAT16
from workbench.precision.ranges import INT8_STEPS, Ranges, TensorRange
from workbench.precision.sensitivity import LayerSensitivity, Sensitivity, share_text

NORMAL, SMALLEST = 2.0**-14, 2.0**-24
"""The smallest float16 with all its digits, and the smallest above 0. Source: IEEE 754-2019, binary16."""
NAMES_SHOWN = 4
_FINE, _COARSE, _BEYOND = "#EAF5FC", "#F3F3F3", "#FBE9CC"


def range_figure(ranges: Ranges) -> Figure:
    """Draw the magnitudes in each tensor over its depth, on the span of float16.

    Args:
        ranges: what `measure_ranges` found.
    Returns:
        A figure, 10 inches wide: a thin line for the magnitudes, the thick part of it for those that int8 tells from
        0, a dot for the median; tensors that float16 cannot hold are orange triangles above its span.
    """
    shown = [entry for entry in ranges.tensors if entry.absmax > 0]
    if not shown:
        raise InputError("got ranges in which every tensor is 0, expected numbers; measure on other samples")
    figure = drawing.NotebookFigure(figsize=(drawing.WIDTH_IN, 4.8), dpi=drawing.DPI, layout="constrained")
    axes = figure.add_subplot()
    _draw_float16(axes, shown)
    for place, entry in enumerate(shown):
        _draw_tensor(axes, place, entry, len(shown))
    axes.set_title(f"Numbers in {count(len(shown), 'tensor')}, {count(ranges.samples, 'sample')}", loc="left",
                   fontsize=TITLE_PT)  # fmt: skip
    label_axes(axes, "depth: place of the tensor in the network, input to output", "magnitude of its values")
    handles = [
        Line2D([], [], color=BLUE, linewidth=1.2, label="its magnitudes"),
        Line2D([], [], color=BLUE, linewidth=6, label="those that int8 tells from 0"),
        Line2D([], [], linestyle="", marker="o", color="white", markeredgecolor="0.1", label="median"),
        Line2D([], [], linestyle="", marker="^", color=ORANGE, markeredgecolor="0.1", label="overflows in float16"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=4, fontsize=TEXT_PT, frameon=False)
    add_caption(figure, _range_caption(shown))
    return figure


def sensitivity_figure(measured: Sensitivity, keep: Collection[str] = ()) -> Figure:
    """Draw the error that each layer causes alone, and which layers stay in float32.

    Args:
        measured: what `sensitivity` found.
        keep: names of nodes, as `layers_to_keep` returns them.
    Returns:
        A figure, 10 inches wide, errors in percent of the answers; those that are not finite reach the upper edge.
    Raises:
        InputError: a name that no layer has.
    """
    unknown = [name for name in keep if name not in {layer.node for layer in measured.layers}]
    if unknown:
        raise InputError(f"got {unknown[0]!r} to keep, which no layer is called; pass what layers_to_keep returns")
    figure = drawing.NotebookFigure(figsize=(drawing.WIDTH_IN, 4.2), dpi=drawing.DPI, layout="constrained")
    axes = figure.add_subplot()
    finite = [layer.relative_l2 for layer in measured.layers if math.isfinite(layer.relative_l2)]
    top = 150 * max([*finite, 1e-6])
    for place, layer in enumerate(measured.layers):
        color, hatch = (ORANGE, "///") if layer.node in keep else (BLUE, "")
        height = min(100 * layer.relative_l2, top)
        axes.bar(place, height, 0.8, color=color, hatch=hatch, edgecolor="0.1", linewidth=0.5)
    axes.set_ylim(0, top)
    _name_worst(axes, measured.layers, top)
    axes.set_title(f"One layer at a time rounded to {measured.precision}", loc="left", fontsize=TITLE_PT)
    label_axes(axes, "layer, input to output", "error of the answers, % of their size")
    handles = [Patch(facecolor=BLUE, edgecolor="0.1", label=f"rounded to {measured.precision}")]
    if keep:
        handles.append(Patch(facecolor=ORANGE, edgecolor="0.1", hatch="///", label="stays in float32"))
    figure.legend(handles=handles, loc="outside upper left", ncols=2, fontsize=TEXT_PT, frameon=False)
    add_caption(figure, _sensitivity_caption(measured, keep))
    return figure


def _draw_float16(axes: Axes, shown: Sequence[TensorRange]) -> None:
    """The span of float16 as bands, and the limits of the axis around them."""
    top = max(1e7, 30 * max(entry.absmax for entry in shown))
    axes.set_yscale("log")
    axes.set_ylim(1e-9, top)
    axes.set_xlim(-0.02 * len(shown) - 0.6, 1.02 * len(shown))
    axes.axhspan(NORMAL, FLOAT16.largest, color=_FINE, zorder=0)
    axes.axhspan(SMALLEST, NORMAL, color=_COARSE, zorder=0)
    axes.axhspan(FLOAT16.largest, top, color=_BEYOND, zorder=0)
    axes.axhline(FLOAT16.largest, color="0.1", linewidth=1)
    axes.axhline(SMALLEST, color="0.1", linewidth=1, linestyle=":")
    notes = (
        (FLOAT16.largest * 1.5, "bottom", "infinite in float16, beyond 65,504"),
        (NORMAL / 1.5, "top", "float16 with fewer digits"),
        (SMALLEST / 1.5, "top", "0 in float16"),
    )
    for height, side, text in notes:
        axes.annotate(text, (0.995, height), xycoords=axes.get_yaxis_transform(), ha="right", va=side, fontsize=TEXT_PT)


def _draw_tensor(axes: Axes, place: int, entry: TensorRange, number: int) -> None:
    beyond = entry.absmax > FLOAT16.largest
    color, thick = (ORANGE if beyond else BLUE), min(6.0, 420 / number)
    low = max(min(entry.low, entry.absmax), 1e-9)
    axes.vlines(place, low, entry.absmax, color=color, linewidth=max(0.8, thick / 5), zorder=2)
    axes.vlines(place, max(entry.absmax / INT8_STEPS, 1e-9), entry.absmax, color=color, linewidth=thick, zorder=2)
    axes.plot(place, entry.median, "o", color="white", markeredgecolor="0.1", markersize=min(5.0, thick), zorder=3)
    if beyond:
        axes.plot(place, entry.absmax, "^", color=ORANGE, markeredgecolor="0.1", markersize=8, zorder=4)


def _range_caption(shown: Sequence[TensorRange]) -> str:
    beyond = [entry for entry in shown if entry.absmax > FLOAT16.largest]
    lost = max(shown, key=lambda entry: entry.int8_lost)
    found = "there are none"
    if beyond:
        found = f"{count(len(beyond), 'tensor')}, the first is {beyond[0].name} with {beyond[0].absmax:,.0f}"
    return (
        "What to look for: lines that leave the blue band upwards, for float16 makes those values infinite; here "
        f"{found}. What is below the thick part becomes 0 in int8, whose scale is set by the largest value: at most "
        f"{lost.int8_lost:.0%} of the values other than 0, in {lost.name}. A line starts where 1 % of them lie below."
    )


def _name_worst(axes: Axes, layers: Sequence[LayerSensitivity], top: float) -> None:
    worst = sorted(enumerate(layers), key=lambda pair: -pair[1].relative_l2)[:NAMES_SHOWN]
    lines = [f"{rank}. {layer.node}: {share_text(layer.relative_l2)}" for rank, (_, layer) in enumerate(worst, 1)]
    axes.annotate("\n".join(lines), (0.995, 0.98), xycoords="axes fraction", ha="right", va="top", fontsize=TEXT_PT)
    for rank, (place, layer) in enumerate(worst, 1):
        height = min(100 * layer.relative_l2, 0.93 * top)
        axes.annotate(str(rank), (place, height), (0, 3), textcoords="offset points", ha="center", fontsize=TEXT_PT)


def _sensitivity_caption(measured: Sensitivity, keep: Collection[str]) -> str:
    text = (
        "What to look for: the bars that stand out, layers that are worth keeping in float32. All but one layer are "
        f"float32 each time; rounded together, they should cost {share_text(measured.total_error())} of the answers"
    )
    kept = f", and {share_text(measured.total_error(keep))} with {count(len(keep), 'layer')} in float32" if keep else ""
    return f"{text}{kept}."
