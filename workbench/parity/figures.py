"""Draw answers side by side, and how long they took; a panel is titled by the runner that computed it."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from workbench.core.compare import ParityReport, worst_output
from workbench.core.contract import RunnerInfo
from workbench.core.drawing import (
    BLUE,
    DIFFERENT,
    DPI,
    ORANGE,
    TEXT_PT,
    TITLE_PT,
    WIDTH_IN,
    Cell,
    NotebookFigure,
    Panel,
    add_caption,
    add_second_line,
    check_image,
    check_labels,
    draw_picture,
    fit_pt,
    format_share,
    grow,
    label_axes,
    refuse_false_names,
    swatch,
    title_of,
)
from workbench.core.errors import InputError
from workbench.parity.layer_errors import LayerError, short_error
from workbench.pictures.cityscapes import CITYSCAPES, VOID, Palette, color_map, confusion_matrix, mean_iou

WIDE_ASPECT = 1.6
"""Pictures at least this many times as wide as high get two columns, others three."""

LOWEST = 1e-9
"""Errors of 0 are drawn here, at the foot of the axis."""

ALLOWED: dict[str, Any] = {"color": "0.35", "linewidth": 1, "linestyle": (0, (5, 3))}


def new_page(height_in: float, width_in: float = WIDTH_IN) -> Figure:
    """Make an empty figure for a notebook."""
    return NotebookFigure(figsize=(width_in, height_in), dpi=DPI, layout="constrained")


def finish(figure: Figure, caption: str, infos: Sequence[RunnerInfo] | None = None) -> Figure:
    """Write what to look for; where the runners are known, refuse a figure that names one that took no part."""
    add_caption(figure, f"What to look for: {caption}")
    return figure if infos is None else refuse_false_names(figure, infos)


def title_miou(axes: Axes, truth: NDArray, labels: NDArray, palette: Palette, text: str) -> None:
    """Write an answer's mIoU under its title; `text` has a place for it."""
    add_second_line(axes, text.format(score=mean_iou(confusion_matrix(truth, labels, classes=len(palette)))))


def draw_masks(
    figure: Figure, cell: Cell, dimmed: NDArray[np.floating],
    masks: Sequence[tuple[NDArray[np.bool_], tuple[int, int, int]]], title: str, thick: float,
) -> Axes:  # fmt: skip
    """Paint masks, thickened by so many pixels of the page, over a dimmed picture (H, W), the last on top."""
    picture = np.repeat(dimmed[:, :, None], 3, axis=2).astype(np.uint8)
    for mask, color in masks:
        picture[grow(mask, round(thick * dimmed.shape[1] / (cell.width_in * DPI)))] = color
    for mask, color in masks:  # what was thickened must not hide its neighbour
        picture[mask] = color
    return draw_picture(figure, cell, picture, title)


def draw_legend(figure: Figure, cell: Cell, handles: Sequence[Any], **options: Any) -> None:
    """Fill a place with a legend."""
    axes = figure.add_subplot(cell.place)
    axes.set_axis_off()
    axes.legend(handles=handles, frameon=False, **options)


def side_by_side(
    image: NDArray[np.uint8],
    truth: NDArray[np.integer] | None,
    reference: Panel,
    candidate: Panel,
    palette: Palette = CITYSCAPES,
) -> Figure:
    """Show a street scene, its ground truth, both runners' answers and where these differ.

    Args:
        image: (H, W, 3) uint8, RGB.
        truth: (H, W) train ids, 255 is void; None for a picture without ground truth.
        reference: the answer to be kept, such as Keras's.
        candidate: the answer to be judged.
        palette: names and colours of the classes.
    Returns:
        A figure, 10 inches wide. A notebook shows it as the last value of a cell.
    Raises:
        InputError: the sizes differ, or an array has another shape or dtype.
    """
    check_image(image)
    for name, labels in (("reference", reference.labels), ("candidate", candidate.labels), ("truth", truth)):
        if labels is not None:
            check_labels(labels, name, image.shape[:2])
    aspect = image.shape[1] / image.shape[0]
    lay_out = _lay_out_wide if aspect >= WIDE_ASPECT else _lay_out_narrow
    figure, cells, columns = lay_out(aspect, truth is not None)
    draw_picture(figure, cells["image"], image, "Image" if truth is None else "Street scene")
    if truth is not None:
        draw_picture(figure, cells["truth"], color_map(truth, palette), "Ground truth")
    for key, panel in (("reference", reference), ("candidate", candidate)):
        axes = draw_picture(figure, cells[key], color_map(panel.labels, palette), title_of(panel.info))
        if truth is not None:
            title_miou(axes, truth, panel.labels, palette, "mIoU {score:.3f} against the ground truth")
    _draw_disagreement(figure, cells["difference"], image, reference, candidate, len(palette))
    maps = [labels for labels in (truth, reference.labels, candidate.labels) if labels is not None]
    swatches = _class_swatches(maps, palette)
    draw_legend(figure, cells["legend"], swatches, loc="center", ncols=columns, fontsize=TEXT_PT)
    caption = (
        f"{title_of(reference.info)} and {title_of(candidate.info)} should give the same picture. A few cyan pixels on "
        "the borders of objects are rounding; whole objects or shifted outlines in cyan are a fault."
    )
    return finish(figure, caption, [reference.info, candidate.info])


def logits_figure(
    reference: ArrayLike, candidate: ArrayLike, reference_info: RunnerInfo, candidate_info: RunnerInfo, note: str = ""
) -> Figure:
    """Plot a runner's logits, (N, K), against the reference's, for a classifier whose classes have no names.

    Left they lie on y = x, right is their difference as a share of the reference's range; `note` ends the caption.
    """
    first, second, left_out = _finite_pairs(reference, candidate)
    extent = max(float(first.max() - first.min()), float(np.finfo(np.float32).tiny))
    relative = (second - first) / extent
    figure = new_page(4.8)
    same, difference = figure.subplots(1, 2)
    ends = [min(first.min(), second.min()), max(first.max(), second.max())]
    same.plot(ends, ends, color="0.55", linewidth=1, zorder=1, label="y = x: the same answer")
    same.scatter(first, second, s=9, color=BLUE, linewidths=0, zorder=2, label=f"{len(first):,} logits")
    same.set_title("Logits of both runners", fontsize=TITLE_PT)
    label_axes(same, f"logit of {title_of(reference_info)}", f"logit of {title_of(candidate_info)}")
    same.legend(loc="upper left", fontsize=TEXT_PT, frameon=False)
    difference.axhline(0, color="0.55", linewidth=1, zorder=1)
    difference.scatter(first, relative, s=9, color=BLUE, linewidths=0, zorder=2)
    largest = f"{float(np.abs(relative).max()):.2g}".replace("e-0", "e-")
    difference.set_title(f"Largest difference: {largest} of the range", fontsize=TITLE_PT)
    label_axes(difference, f"logit of {title_of(reference_info)}", "difference / range of the reference's logits")
    caption = (
        "all points on the line, and differences as small as rounding (about 1e-6 of the range in fp32, 1e-3 in fp16), "
        "without a slope or a pattern."
    )
    caption += f" {left_out:,} values are NaN or infinite and are not drawn." if left_out else ""
    return finish(figure, f"{caption} {note}".rstrip(), [reference_info, candidate_info])


def top_classes_figure(
    image: NDArray[np.uint8],
    reference: Sequence[tuple[str, float]],
    candidate: Sequence[tuple[str, float]],
    reference_info: RunnerInfo,
    candidate_info: RunnerInfo,
) -> Figure:
    """Show a photograph, (H, W, 3) uint8 RGB, and the strongest classes of two runners: (name, probability 0..1).

    A class that does not stand in the same place in the reference's list is orange and hatched.
    """
    check_image(image)
    if not reference or not candidate:
        raise InputError("got no classes to show, expected at least one (name, probability) for each runner")
    figure = new_page(4.2)
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.25))
    draw_picture(figure, Cell(grid[:, 0], 4.0), image, "Photograph")
    places = [name for name, _ in reference]
    for row, (scores, info) in enumerate(((reference, reference_info), (candidate, candidate_info))):
        axes = figure.add_subplot(grid[row, 1])
        _draw_scores(axes, scores, places)
        axes.set_title(title_of(info), fontsize=fit_pt(title_of(info), 5.0))
    axes.set_xlabel("probability", fontsize=TEXT_PT)
    caption = (
        "the same classes in the same order with the same probabilities; an orange, hatched bar is a class in another "
        "place than in the upper chart."
    )
    return finish(figure, caption, [reference_info, candidate_info])


def photographs_figure(images: Sequence[NDArray[np.uint8]], captions: Sequence[str]) -> Figure:
    """Show the (H, W, 3) uint8 RGB pictures that are going to be run, whose sizes may differ, up to four in a row."""
    if not images or len(images) != len(captions):
        got = f"{len(images)} images and {len(captions)} captions"
        raise InputError(f"got {got}, expected at least one image and one caption for each")
    for image in images:
        check_image(image)
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    width_in = WIDTH_IN / max(columns, 2)
    steepness = [min(image.shape[0] / image.shape[1], 1.25) for image in images]
    heights = [width_in * max(steepness[row * columns :][:columns]) + 0.35 for row in range(rows)]
    figure = new_page(sum(heights), width_in * columns)
    grid = figure.add_gridspec(rows, columns, height_ratios=heights)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        axes = draw_picture(figure, Cell(grid[divmod(index, columns)], width_in), image, caption, TEXT_PT)
        axes.set_anchor("N")
    return figure


def _lay_out_wide(aspect: float, has_truth: bool) -> tuple[Figure, dict[str, Cell], int]:
    """The page, a cell for each panel, and the columns of the legend: two columns, and a third row below."""
    half, share = WIDTH_IN / 2, 0.64
    heights = [half / aspect + 0.25, half / aspect + (0.45 if has_truth else 0.25)]
    heights += [share * WIDTH_IN / aspect + 0.25 if has_truth else 0.9]
    figure = new_page(sum(heights) + 0.6)
    rows = GridSpec(3, 1, figure, height_ratios=heights)
    top, middle = rows[0].subgridspec(1, 2), rows[1].subgridspec(1, 2)
    cells = {"image": Cell(top[0], half), "reference": Cell(middle[0], half), "candidate": Cell(middle[1], half)}
    if not has_truth:
        return figure, cells | {"difference": Cell(top[1], half), "legend": Cell(rows[2], WIDTH_IN)}, 5
    bottom = rows[2].subgridspec(1, 2, width_ratios=(share, 1 - share))
    cells |= {"truth": Cell(top[1], half), "difference": Cell(bottom[0], share * WIDTH_IN)}
    return figure, cells | {"legend": Cell(bottom[1], (1 - share) * WIDTH_IN)}, 2


def _lay_out_narrow(aspect: float, has_truth: bool) -> tuple[Figure, dict[str, Cell], int]:
    """The same in three columns; the legend takes the last place of the first row, or a slim column."""
    ratios = (1.0, 1.0, 1.0) if has_truth else (1.0, 1.0, 0.5)
    width_in = WIDTH_IN / sum(ratios)
    heights = [min(width_in / aspect, 4.2) + title_in for title_in in (0.3, 0.5 if has_truth else 0.3)]
    figure = new_page(sum(heights) + 0.7)
    grid = GridSpec(2, 3, figure, width_ratios=ratios, height_ratios=heights)
    places = {"image": grid[0, 0], "reference": grid[1, 0], "candidate": grid[1, 1]}
    if has_truth:
        places |= {"truth": grid[0, 1], "difference": grid[1, 2], "legend": grid[0, 2]}
    else:
        places |= {"difference": grid[0, 1], "legend": grid[:, 2]}
    return figure, {name: Cell(place, width_in) for name, place in places.items()}, 2 if has_truth else 1


def _draw_disagreement(
    figure: Figure, cell: Cell, image: NDArray[np.uint8], reference: Panel, candidate: Panel, classes: int
) -> None:
    first, second = (np.where(p.labels == classes, VOID, p.labels) for p in (reference, candidate))
    different = first != second
    count, total = int(different.sum()), different.size
    title = f"{count:,} of {total:,} pixels differ ({format_share(count, total)})"
    draw_masks(figure, cell, 20 + 0.36 * image.mean(axis=2), [(different, DIFFERENT)], title, 0.6)


def _class_swatches(maps: Sequence[NDArray[np.integer]], palette: Palette) -> list[Any]:
    present = np.unique(np.concatenate([np.unique(labels) for labels in maps]))
    swatches = [swatch(palette.colors[index], palette.names[index]) for index in present if index < len(palette)]
    swatches += [swatch(palette.void, "void")] if (present >= len(palette)).any() else []
    return [*swatches, swatch(DIFFERENT, "answers differ")]


def _draw_scores(axes: Axes, scores: Sequence[tuple[str, float]], places: Sequence[str]) -> None:
    for place, (name, score) in enumerate(scores):
        moved = place >= len(places) or places[place] != name
        style: dict[str, Any] = {"color": ORANGE, "hatch": "///", "edgecolor": "white"} if moved else {"color": BLUE}
        axes.barh(place, score, height=0.7, **style)
        axes.annotate(f"{score:.3f}", (score, place), (4, 0), textcoords="offset points", va="center", fontsize=TEXT_PT)
    names = [textwrap.shorten(name.replace("_", " "), 28, placeholder="...") for name, _ in scores]
    axes.set_yticks(range(len(scores)), names, fontsize=TEXT_PT)
    axes.set_ylim(len(scores) - 0.4, -0.6)
    axes.set_xlim(0, 1.12)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.tick_params(axis="x", labelsize=TEXT_PT)
    axes.spines[["top", "right"]].set_visible(False)


def _finite_pairs(reference: ArrayLike, candidate: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Both arrays as flat float64 where both are finite, and how many pairs are not."""
    first, second = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    if first.ndim != 2 or first.shape != second.shape:
        raise InputError(f"got logits {first.shape} and {second.shape}, expected (N, K) twice; pass equal batches")
    finite = np.isfinite(first) & np.isfinite(second)
    if not finite.any():
        raise InputError("got no finite logit to draw, expected at least one; look for NaN in the network's input")
    return first[finite], second[finite], int(finite.size - finite.sum())


def errors_figure(reports: Mapping[str, ParityReport], title: str) -> Figure:
    """Draw the largest error of each report on one axis, with what rounding does to the network and what is allowed."""
    figure = new_page(2.2 + 0.3 * len(reports))
    axes = figure.add_subplot()
    worst = [worst_output(report) for report in reports.values()]
    finite = [output.max_relative_error for output in worst if math.isfinite(output.max_relative_error)]
    top = 10 * max([100 * LOWEST, *finite, *(output.allowed or 0.0 for output in worst)])
    for place, (report, output) in enumerate(zip(reports.values(), worst, strict=True)):
        if output.noise is not None:
            axes.barh(place, max(output.noise, LOWEST), 0.62, color="0.8", zorder=1)
        if output.allowed is not None:
            axes.vlines(output.allowed, place - 0.4, place + 0.4, **ALLOWED)
        height = min(_height(output.max_relative_error, top), top)
        _draw_points(axes, [height], [place], wrong=report.status == "fail")
        text = f"{short_error(output.max_relative_error)}, {report.status}"
        right = max(height, output.allowed or 0.0)
        axes.annotate(text, (right, place), (9, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(reports)), list(reports))
    axes.set(xscale="log", xlim=(LOWEST / 2, top * 100), ylim=(len(reports) - 0.4, -0.6))
    label_axes(axes, "largest error / range of the reference", "")
    axes.set_title(title, fontsize=fit_pt(title, WIDTH_IN - 1, TITLE_PT), loc="left")
    handles = [
        Patch(color="0.8", label="what rounding does to this network"),
        Line2D([], [], **ALLOWED, label="allowed"),
        Line2D([], [], linestyle="", marker="o", color=BLUE, markeredgecolor="0.1", label="error, passes"),
        Line2D([], [], linestyle="", marker="^", color=ORANGE, markeredgecolor="0.1", label="error, fails"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), fontsize=TEXT_PT, frameon=False)
    caption = "dots lie near the end of the grey bar, where rounding ends; triangles lie beyond what is allowed."
    return finish(figure, caption)


def depth_figure(
    layers: Sequence[LayerError], fault: LayerError | None, infos: tuple[RunnerInfo, RunnerInfo], pairs: int,
    allowed: float, look: str,
) -> Figure:  # fmt: skip
    """Draw the error of each compared tensor, as a share of its range, over its depth.

    The jump is marked and named; values that are not finite lie on the upper edge.
    """
    figure = new_page(4.4)
    axes = figure.add_subplot()
    top = _depth_axis(axes, [entry.max_error_of_range for entry in layers], pairs)
    points = [(entry.depth, _height(entry.max_error_of_range, top)) for entry in layers]
    axes.plot(*zip(*points, strict=True), color="0.6", linewidth=1)
    for wrong in (False, True):
        shown = [point for point in points if (point[1] > allowed) == wrong]
        _draw_points(axes, [depth for depth, _ in shown], [height for _, height in shown], wrong)
    handles = [
        Line2D([], [], linestyle="", marker="o", color=BLUE, markeredgecolor="0.1", label="as in the reference"),
        Line2D([], [], linestyle="", marker="^", color=ORANGE, markeredgecolor="0.1", label="wrong"),
        axes.axhline(allowed, **ALLOWED, label=f"allowed, {allowed:.0e}"),
    ]
    if fault is not None:
        handles.append(_mark(axes, fault, pairs))
    candidate, reference = title_of(infos[1]), title_of(infos[0])
    title = f"Error of {candidate} against {reference}"
    axes.set_title(title, fontsize=fit_pt(title, WIDTH_IN - 1, TITLE_PT), loc="left")
    across, up = "depth: place of the tensor in the network, input to output", "largest error / range of the tensor"
    label_axes(axes, across, up)
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), fontsize=TEXT_PT, frameon=False)
    compared = f"{len(layers)} of {pairs} tensors were compared"
    caption = f"{look}. {compared}; a bisection chose them. An error of 0 is drawn at {LOWEST:.0e}."
    return finish(figure, caption, infos)


def _depth_axis(axes: Axes, errors: Sequence[float], pairs: int) -> float:
    """Set the logarithmic axis and return the height at which values that are not finite are drawn."""
    top = 10 ** (math.ceil(math.log10(max([1.0, *filter(math.isfinite, errors)]))) + 1)
    axes.set_yscale("log")
    axes.set_ylim(LOWEST / 2, top * 12)
    axes.set_xlim(-0.02 * pairs - 0.5, 1.02 * pairs)
    if math.inf in errors:
        axes.axhline(top, color="0.35", linewidth=0.8, linestyle=":")
        axes.annotate("not finite", (1, top), (-2, 5), axes.get_yaxis_transform(), "offset points",
                      ha="right", va="bottom", fontsize=TEXT_PT)  # fmt: skip
    return top


def _height(error: float, top: float) -> float:
    return max(error, LOWEST) if math.isfinite(error) else top


def _draw_points(axes: Axes, across: Sequence[float], up: Sequence[float], wrong: bool) -> None:
    """Blue dots for what is right, orange triangles with a dark edge for what is wrong; they differ in grey too."""
    marker, color, size = ("^", ORANGE, 42) if wrong else ("o", BLUE, 26)
    axes.scatter(across, up, s=size, color=color, marker=marker, edgecolors="0.1", linewidths=0.5, zorder=3)


def _mark(axes: Axes, layer: LayerError, pairs: int) -> Line2D:
    """Mark the jump by a line, and write the layer's name and the errors before and after beside it."""
    on_the_left = layer.depth > 0.55 * max(pairs, 1)
    before = 0.0 if math.isnan(layer.max_error_of_range_before) else layer.max_error_of_range_before
    jump = f"{layer.operator}: {short_error(before)} to {short_error(layer.max_error_of_range)}"
    lines = [*textwrap.wrap(layer.layer, 44)[:3], jump, *textwrap.wrap(layer.remark, 44)[:3]]
    across, side = (-10, "right") if on_the_left else (10, "left")
    axes.annotate(
        "\n".join(lines), (layer.depth, math.sqrt(LOWEST * 1e-5)), (across, 0), textcoords="offset points", ha=side,
        va="center", fontsize=TEXT_PT + 1, zorder=4,
        bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": "0.1", "linewidth": 0.8},
    )  # fmt: skip
    label = "the layer at which the error jumps"
    return axes.axvline(layer.depth, color="0.1", linewidth=1.2, zorder=2, label=label)
