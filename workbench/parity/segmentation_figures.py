"""Draw what a segmentation gets wrong: per class, on the picture, and where a change of runner matters.

Nothing here is told by colour alone: numbers, names, lightness and outlines say the same in grey.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
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
    Panel,
    check_image,
    check_labels,
    draw_picture,
    fit_pt,
    format_share,
    grow,
    label_axes,
    swatch,
    title_of,
)
from workbench.core.errors import InputError
from workbench.parity.figures import draw_legend, draw_masks, finish, new_page, title_miou
from workbench.pictures.cityscapes import CITYSCAPES, VOID, Palette, class_iou, color_map, mean_iou

# Lightness in grey about 115, 160 and 255 of 255, on a picture that is dimmed below 60.
WRONG_IN_BOTH, WRONG_IN_REFERENCE, WRONG_IN_CANDIDATE = (40, 130, 235), (230, 159, 0), (255, 255, 255)
SMALL_PT = 7.5
DEPTH_ROWS = 96


def confusion_figure(confusion: ArrayLike, info: RunnerInfo, palette: Palette = CITYSCAPES) -> Figure:
    """Draw which class is taken for which, as a share of each true class that occurs, and its IoU.

    `confusion` is the (N, N + 1) of `confusion_matrix`; InputError for another shape, or where no pixel was scored.
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
    figure = new_page(2.1 + 0.29 * len(rows))
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", norm=PowerNorm(0.45, 0, 100), aspect="auto")
    for (row, column), value in np.ndenumerate(share):
        if value >= 0.5:
            text = f"{min(value, 99.4) if value < 100 else 100:.0f}"
            color = "white" if value > 30 else "0.1"
            axes.text(column, row, text, ha="center", va="center", fontsize=SMALL_PT, color=color)
    _name_classes(axes, rows, columns, palette)
    for place, row in enumerate(rows):
        axes.text(len(columns) - 0.3, place, f"{scores[row]:.2f}", va="center", fontsize=TEXT_PT)
    axes.text(len(columns) - 0.3, -0.75, "IoU", fontsize=TEXT_PT, weight="bold")
    axes.set_title(f"{title_of(info)}: mIoU {mean_iou(counts):.3f}", fontsize=TITLE_PT, pad=12)
    caption = (
        "a perfect answer has 100 on the diagonal and nothing beside it. A row reads: of the true pixels of this "
        "class, so many percent were painted as each class (numbers below 0.5 are left out). A dark cell off the "
        "diagonal is a confusion; a column with many numbers is a class painted too often."
    )
    return finish(figure, caption, [info])


def overlay_figure(
    image: NDArray[np.uint8],
    answers: Sequence[Panel],
    truth: NDArray[np.integer] | None = None,
    palette: Palette = CITYSCAPES,
) -> Figure:
    """Lay each answer over the (H, W, 3) uint8 RGB picture, outlined, with the names of the large regions on it.

    The truth, (H, W) train ids, comes first where there is one. InputError without an answer, or for other sizes.
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
    caption = (
        "outlines on the borders of the objects you see. A gap along the same side of every object is a shift; a "
        "region without an object in it is an error of the network."
    )
    return finish(figure, caption, [panel.info for panel in answers])


def overlay(
    image: NDArray[np.uint8], labels: NDArray[np.integer], palette: Palette = CITYSCAPES, outline: int = 0
) -> NDArray[np.uint8]:
    """Mix an (H, W, 3) uint8 RGB picture half and half with the colours of its classes; outline the regions in white.

    A new array; void, in the (H, W) train ids, stays as in the picture; an outline is 1 + 2 * `outline` pixels wide.
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

    The image is (H, W, 3) uint8 RGB, the truth (H, W) train ids, of which 255 is void and not scored; InputError for
    others.
    """
    check_image(image)
    for name, labels in (("truth", truth), ("reference", reference.labels), ("candidate", candidate.labels)):
        check_labels(labels, name, image.shape[:2])
    scored = truth != VOID
    wrong = [(panel.labels != truth) & scored for panel in (reference, candidate)]
    figure, cells = _lay_out(image, 4, 2, 0.4)
    dimmed = (8 + 0.2 * image.mean(axis=2)) * scored  # void is black
    for panel, mask, cell in zip((reference, candidate), wrong, cells, strict=False):
        axes = draw_masks(figure, cell, dimmed, [(mask, WRONG_IN_REFERENCE)], title_of(panel.info), 0.3)
        share = format_share(int(mask.sum()), int(scored.sum()))
        title_miou(axes, truth, panel.labels, palette, f"wrong in {share} of the pixels, mIoU {{score:.3f}}")
    parts = [
        (wrong[0] & wrong[1], WRONG_IN_BOTH, "wrong in both"),
        (wrong[0] & ~wrong[1], WRONG_IN_REFERENCE, f"only in {title_of(reference.info)}"),
        (wrong[1] & ~wrong[0], WRONG_IN_CANDIDATE, f"only in {title_of(candidate.info)}"),
    ]
    draw_masks(figure, cells[2], dimmed, [part[:2] for part in parts], "Who is wrong", 0.3)
    _draw_counts(figure, cells[3], parts, int(scored.sum()), bool((~scored).any()))
    caption = (
        "in the lower picture blue is the network's own error, which every runner must repeat. White is what the "
        "conversion made worse, orange what it happened to mend: a few single pixels are rounding, outlines or whole "
        "objects are a fault."
    )
    return finish(figure, caption, [reference.info, candidate.info])


def change_figure(changes: Sequence[tuple[str, float, float]], names: tuple[str, str], caption: str) -> Figure:
    """Draw the IoU of classes for two runners, `(class, reference, candidate)`, and what the change costs."""
    figure = new_page(1.7 + 0.27 * len(changes))
    axes = figure.add_subplot()
    places = range(len(changes))
    for place, (_, before, after) in enumerate(changes):
        axes.plot([before, after], [place, place], color="0.35", linewidth=1.5, zorder=1)
        axes.annotate(f"{after - before:+.3f}", (1.03, place), va="center", fontsize=TEXT_PT)
    ring: dict[str, Any] = {"s": 70, "facecolor": "white", "edgecolor": BLUE, "linewidth": 1.8, "zorder": 2}
    dot: dict[str, Any] = {"s": 24, "color": ORANGE, "edgecolor": "0.2", "linewidth": 0.6, "zorder": 3}
    for side, style in enumerate((ring, dot)):
        axes.scatter([row[side + 1] for row in changes], places, label=names[side], **style)
    axes.set_yticks(places, [name for name, _, _ in changes])
    axes.set(ylim=(len(changes) - 0.4, -0.6), xlim=(0, 1.12), xticks=[0, 0.25, 0.5, 0.75, 1])
    label_axes(axes, "IoU against the truth (1 is perfect), and its change", "")
    axes.grid(axis="x", color="0.9")
    figure.legend(loc="outside upper left", ncols=2, fontsize=TEXT_PT, frameon=False)
    return finish(figure, f"a dot inside its ring is a class that kept its score. {caption}")


def _lay_out(image: NDArray[np.uint8], panels: int, columns: int, title_in: float = 0.3) -> tuple[Figure, list[Cell]]:
    """Make a figure with a grid of panels for pictures of one size."""
    width_in, rows = WIDTH_IN / columns, -(-panels // columns)
    height_in = min(width_in * image.shape[0] / image.shape[1], 5.0) + title_in
    figure = new_page(rows * height_in + 0.5)
    grid = figure.add_gridspec(rows, columns)
    return figure, [Cell(grid[divmod(index, columns)], width_in) for index in range(panels)]


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


def _draw_counts(
    figure: Figure, cell: Cell, parts: Sequence[tuple[NDArray[np.bool_], tuple[int, int, int], str]], scored: int,
    has_void: bool,
) -> None:  # fmt: skip
    handles = [
        swatch(color, f"{text}\n{int(mask.sum()):,} pixels ({format_share(int(mask.sum()), max(1, scored))})")
        for mask, color, text in parts
    ]
    handles += [swatch((0, 0, 0), "not scored: the truth is void")] if has_void else []
    size = fit_pt("m" * max(len(text) for _, _, text in parts), 0.8 * cell.width_in, TEXT_PT)
    draw_legend(figure, cell, handles, loc="center left", fontsize=size, labelspacing=1.0)
