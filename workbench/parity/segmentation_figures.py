"""Draw what a segmentation gets wrong: per class, on the picture, and where a change of runner matters.

Nothing here is told by colour alone: numbers, names, lightness and outlines say the same in grey.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike, NDArray

from workbench.core.contract import RunnerInfo
from workbench.core.drawing import (
    BLUE,
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
from workbench.parity.segmentation import SegmentationReport
from workbench.pictures.cityscapes import CITYSCAPES, VOID, Palette, class_iou, color_map, confusion_matrix, mean_iou

# Lightness in grey about 115, 160 and 255 of 255, on a picture that is dimmed below 60.
WRONG_IN_BOTH, WRONG_IN_REFERENCE, WRONG_IN_CANDIDATE = (40, 130, 235), (230, 159, 0), (255, 255, 255)
SMALL_PT = 7.5
DEPTH_ROWS = 96


def confusion_figure(confusion: ArrayLike, info: RunnerInfo, palette: Palette = CITYSCAPES) -> Figure:
    """Draw which class is taken for which, as a share of each true class.

    Args:
        confusion: (N, N + 1) counts of `confusion_matrix`.
        info: what computed the predictions.
        palette: names and colours of the N classes.
    Returns:
        A figure with a row for each class that occurs in the truth, and its IoU.
    Raises:
        InputError: another shape, or no pixel was scored.
    """
    counts = np.asarray(confusion)
    scores = class_iou(counts)
    if len(counts) != len(palette) or not counts.sum():
        raise InputError(
            f"got counts {counts.shape} of {counts.sum()} pixels for {len(palette)} classes, expected "
            f"({len(palette)}, {len(palette) + 1}) and a scored pixel; make them with confusion_matrix"
        )
    rows = np.flatnonzero(counts.sum(axis=1))
    columns = np.flatnonzero(counts.sum(axis=0) + np.pad(counts.sum(axis=1), (0, 1)))
    share = 100 * counts[np.ix_(rows, columns)] / counts[rows].sum(axis=1, keepdims=True)
    figure = NotebookFigure(figsize=(WIDTH_IN, 2.1 + 0.29 * len(rows)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", norm=PowerNorm(0.45, 0, 100), aspect="auto")
    _write_shares(axes, share)
    _name_classes(axes, rows, columns, palette)
    for place, row in enumerate(rows):
        axes.text(len(columns) - 0.3, place, f"{scores[row]:.2f}", va="center", fontsize=TEXT_PT)
    axes.text(len(columns) - 0.3, -0.75, "IoU", fontsize=TEXT_PT, weight="bold")
    axes.set_title(f"{title_of(info)}: mIoU {mean_iou(counts):.3f}", fontsize=TITLE_PT, pad=12)
    add_caption(
        figure,
        "What to look for: a perfect answer has 100 on the diagonal and nothing beside it. A row reads: of the true "
        "pixels of this class, so many percent were painted as each class (numbers below 0.5 are left out). "
        "A dark cell off the diagonal is a confusion; a column with many numbers is a class painted too often.",
    )
    return refuse_false_names(figure, [info])


def overlay_figure(
    image: NDArray[np.uint8],
    answers: Sequence[Panel],
    truth: NDArray[np.integer] | None = None,
    palette: Palette = CITYSCAPES,
) -> Figure:
    """Lay each answer over the picture, outlined, with the names of the large regions written on them.

    Args:
        image: (H, W, 3) uint8, RGB.
        answers: one panel for each runner.
        truth: (H, W) train ids, 255 is void, shown first; None leaves it out.
        palette: names and colours of the classes.
    Returns:
        A figure, 10 inches wide.
    Raises:
        InputError: no answer, or sizes that differ.
    """
    check_image(image)
    if not answers:
        raise InputError("got no answer to lay over the picture, expected at least one Panel")
    maps = [] if truth is None else [("Ground truth", truth)]
    maps += [(title_of(panel.info), panel.labels) for panel in answers]
    for title, labels in maps:
        check_labels(labels, title, image.shape[:2])
    figure, cells = _lay_out(image, len(maps), 2 if len(maps) > 1 else 1)
    for (title, labels), cell in zip(maps, cells, strict=True):
        radius = int(0.4 * image.shape[1] / (cell.width_in * DPI))
        axes = draw_picture(figure, cell, overlay(image, labels, palette, radius), title)
        _write_names(axes, labels, palette)
    add_caption(
        figure,
        "What to look for: outlines on the borders of the objects you see. A gap along the same side of every object "
        "is a shift; a region without an object in it is an error of the network.",
    )
    return refuse_false_names(figure, [panel.info for panel in answers])


def overlay(
    image: NDArray[np.uint8], labels: NDArray[np.integer], palette: Palette = CITYSCAPES, outline: int = 0
) -> NDArray[np.uint8]:
    """Mix a picture half and half with the colours of its classes, and outline the regions in white.

    Args:
        image: (H, W, 3) uint8, RGB. Not modified.
        labels: (H, W) train ids; void stays as in the picture.
        palette: colours of the classes.
        outline: the outline's width is 1 + 2 * `outline` pixels.
    Returns:
        (H, W, 3) uint8, RGB.
    """
    mixed = ((image.astype(np.uint16) + color_map(labels, palette)) // 2).astype(np.uint8)
    void = labels >= len(palette)
    mixed[void] = image[void]
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    mixed[grow(edge, outline)] = 255
    return mixed


def error_figure(
    image: NDArray[np.uint8],
    truth: NDArray[np.integer],
    reference: Panel,
    candidate: Panel,
    palette: Palette = CITYSCAPES,
) -> Figure:
    """Show where each runner is wrong against the truth, and where only one of them is.

    Args:
        image: (H, W, 3) uint8, RGB.
        truth: (H, W) train ids, 255 is void and not scored.
        reference: the answer to be kept.
        candidate: the answer to be judged.
        palette: names of the classes.
    Returns:
        A figure, 10 inches wide.
    Raises:
        InputError: the sizes differ, or an array has another shape or dtype.
    """
    check_image(image)
    for name, labels in (("truth", truth), ("reference", reference.labels), ("candidate", candidate.labels)):
        check_labels(labels, name, image.shape[:2])
    scored = truth != VOID
    wrong = [(panel.labels != truth) & scored for panel in (reference, candidate)]
    figure, cells = _lay_out(image, 4, 2, 0.4)
    for panel, mask, cell in zip((reference, candidate), wrong, cells, strict=False):
        axes = _draw_masks(figure, cell, image, scored, [(mask, WRONG_IN_REFERENCE)], title_of(panel.info))
        score = mean_iou(confusion_matrix(truth, panel.labels, classes=len(palette)))
        add_second_line(
            axes, f"wrong in {format_share(int(mask.sum()), int(scored.sum()))} of the pixels, mIoU {score:.3f}"
        )
    parts = [
        (wrong[0] & wrong[1], WRONG_IN_BOTH, "wrong in both"),
        (wrong[0] & ~wrong[1], WRONG_IN_REFERENCE, f"only in {title_of(reference.info)}"),
        (wrong[1] & ~wrong[0], WRONG_IN_CANDIDATE, f"only in {title_of(candidate.info)}"),
    ]
    _draw_masks(figure, cells[2], image, scored, [part[:2] for part in parts], "Who is wrong")
    _draw_counts(figure, cells[3], parts, int(scored.sum()), bool((~scored).any()))
    add_caption(
        figure,
        "What to look for: in the lower picture blue is the network's own error, which every runner must repeat. "
        "White is what the conversion made worse, orange what it happened to mend: a few single pixels are rounding, "
        "outlines or whole objects are a fault.",
    )
    return refuse_false_names(figure, [reference.info, candidate.info])


def class_change_figure(report: SegmentationReport, reference: RunnerInfo, candidate: RunnerInfo) -> Figure:
    """Draw the IoU of each class for both runners, and what the change costs.

    Args:
        report: of `compare_segmentation`, with a truth.
        reference: what computed the reference.
        candidate: what computed the candidate.
    Returns:
        A figure with one line for each class, the largest loss first.
    Raises:
        InputError: no image of the report has a truth, or the report is of other runners.
    """
    if (title_of(reference), title_of(candidate)) != (report.reference_name, report.candidate_name):
        got = f"{reference.name} and {candidate.name}"
        raise InputError(f"got {got}, expected the report's {report.reference_name} and {report.candidate_name}")
    scores = sorted((one for one in report.classes if not np.isnan(one.change)), key=lambda one: one.change)
    if not scores:
        raise InputError("got a report without a truth, expected one; pass the truth to compare_segmentation")
    figure = NotebookFigure(figsize=(WIDTH_IN, 1.7 + 0.27 * len(scores)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for place, one in enumerate(scores):
        axes.plot([one.reference, one.candidate], [place, place], color="0.35", linewidth=1.5, zorder=1)
        axes.annotate(f"{one.change:+.3f}", (1.03, place), va="center", fontsize=TEXT_PT)
    places = range(len(scores))
    before, after = [one.reference for one in scores], [one.candidate for one in scores]
    axes.scatter(before, places, s=70, facecolor="white", edgecolor=BLUE, linewidth=1.8, zorder=2, label=reference.name)
    axes.scatter(after, places, s=24, color=ORANGE, edgecolor="0.2", linewidth=0.6, zorder=3, label=candidate.name)
    axes.set_yticks(places, [one.name for one in scores])
    axes.set(ylim=(len(scores) - 0.4, -0.6), xlim=(0, 1.12), xticks=[0, 0.25, 0.5, 0.75, 1])
    label_axes(axes, "IoU against the truth (1 is perfect), and its change", "")
    axes.grid(axis="x", color="0.9")
    figure.legend(loc="outside upper left", ncols=2, fontsize=TEXT_PT, frameon=False)
    add_caption(
        figure,
        f"What to look for: a dot inside its ring is a class that kept its score. mIoU {report.reference_miou:.4f} and "
        f"{report.candidate_miou:.4f} ({report.change:+.4f}) on {report.truths} images with a truth.",
    )
    return refuse_false_names(figure, [reference, candidate])


def _lay_out(image: NDArray[np.uint8], panels: int, columns: int, title_in: float = 0.3) -> tuple[Figure, list[Cell]]:
    """Make a figure with a grid of panels for pictures of one size."""
    width_in, rows = WIDTH_IN / columns, -(-panels // columns)
    height_in = min(width_in * image.shape[0] / image.shape[1], 5.0) + title_in
    figure = NotebookFigure(figsize=(WIDTH_IN, rows * height_in + 0.5), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    return figure, [Cell(grid[divmod(index, columns)], width_in) for index in range(panels)]


def _write_shares(axes: Axes, share: NDArray[np.float64]) -> None:
    for (row, column), value in np.ndenumerate(share):
        if value >= 0.5:
            color = "white" if value > 30 else "0.1"
            text = f"{min(value, 99.4) if value < 100 else 100:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=SMALL_PT, color=color)


def _name_classes(axes: Axes, rows: NDArray[np.intp], columns: NDArray[np.intp], palette: Palette) -> None:
    names = [*palette.names, "void"]
    axes.set_yticks(range(len(rows)), [names[row] for row in rows], fontsize=TEXT_PT)
    axes.set_xticks(range(len(columns)), [names[column] for column in columns], fontsize=TEXT_PT, rotation=45)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    axes.tick_params(axis="y", length=0, pad=16)
    colors = palette.colors[rows] / 255
    axes.scatter([-0.8] * len(rows), range(len(rows)), marker="s", s=60, c=colors, edgecolors="0.3", clip_on=False)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xlabel("painted as (% of the true class)", fontsize=TEXT_PT)
    axes.set_ylabel("true class", fontsize=TEXT_PT)
    axes.spines[:].set_visible(False)


def _write_names(axes: Axes, labels: NDArray[np.integer], palette: Palette) -> None:
    """Write the name of each class where its regions are thickest."""
    step = max(1, labels.shape[0] // DEPTH_ROWS)
    small = labels[::step, ::step]
    for index in np.unique(small):
        if index < len(palette):
            depth = _depth(small == index)
            row, column = np.unravel_index(depth.argmax(), depth.shape)
            if depth.max() >= 4:
                axes.text(
                    column * step, row * step, palette.names[index], ha="center", va="center", fontsize=TEXT_PT,
                    color="white", path_effects=[withStroke(linewidth=2.5, foreground="black")], clip_on=True,
                )  # fmt: skip


def _depth(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many pixels each pixel lies inside its region; rows count half, because names are wide."""
    depth = np.zeros(mask.shape, np.int64)
    rest = np.pad(mask, 2)
    while rest.any():
        depth += rest[2:-2, 2:-2]
        inner = rest[2:-2, 2:-2] & rest[1:-3, 2:-2] & rest[3:-1, 2:-2] & rest[2:-2, :-4] & rest[2:-2, 4:]
        rest = np.pad(inner, 2)
    return depth


def _draw_masks(
    figure: Figure, cell: Cell, image: NDArray[np.uint8], scored: NDArray[np.bool_],
    masks: Sequence[tuple[NDArray[np.bool_], tuple[int, int, int]]], title: str,
) -> Axes:  # fmt: skip
    """Paint masks over the dimmed picture, the last on top; void is black."""
    grey = (8 + 0.2 * image.mean(axis=2)) * scored
    picture = np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8)
    for mask, color in masks:
        picture[grow(mask, round(0.3 * image.shape[1] / (cell.width_in * DPI)))] = color
    for mask, color in masks:  # what was thickened must not hide its neighbour
        picture[mask] = color
    return draw_picture(figure, cell, picture, title)


def _draw_counts(
    figure: Figure,
    cell: Cell,
    parts: Sequence[tuple[NDArray[np.bool_], tuple[int, int, int], str]],
    scored: int,
    has_void: bool,
) -> None:
    handles: list[Patch | Line2D] = [
        swatch(color, f"{text}\n{int(mask.sum()):,} pixels ({format_share(int(mask.sum()), max(1, scored))})")
        for mask, color, text in parts
    ]
    if has_void:
        handles.append(swatch((0, 0, 0), "not scored: the truth is void"))
    axes = figure.add_subplot(cell.place)
    axes.set_axis_off()
    longest = max(len(text) for _, _, text in parts)
    size = fit_pt("m" * longest, 0.8 * cell.width_in, TEXT_PT)
    axes.legend(handles=handles, loc="center left", fontsize=size, frameon=False, labelspacing=1.0)
