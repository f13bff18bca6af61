"""The parts that figures are made of: titles that only a runner can give, pictures, captions, legends."""

import io
import os
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.patches import Patch
from matplotlib.text import Text
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from workbench.core.contract import RunnerInfo
from workbench.core.errors import InputError
from workbench.core.files import atomic_path, check_suffix

WIDTH_IN = 10.0
DPI = 100
TITLE_PT, TEXT_PT = 11.0, 9.0

# Colours that people with any colour vision tell apart, and that differ in lightness too.
# Source: M. Okabe and K. Ito, "Color Universal Design", 2008 (blue, orange, sky blue).
BLUE, ORANGE, SKY = "#0072B2", "#E69F00", "#A6D8F5"
DIFFERENT = (0, 229, 255)
"""Cyan (RGB) of the pixels that differ: far from all colours of Cityscapes, and bright in grey too."""


class NotebookFigure(Figure):
    """A figure that a notebook shows when it is the last value of a cell, with or without pyplot."""

    def _repr_png_(self) -> bytes:
        drawn, small = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png", dpi=self.dpi)
        with Image.open(drawn) as picture:
            reduce_colors(picture).save(small, "PNG", optimize=True)
        return small.getvalue()

    def _ipython_display_(self) -> None:
        """Show the small picture; pyplot would otherwise set its own formatter for all figures."""
        from IPython.display import display

        display({"image/png": self._repr_png_(), "text/plain": repr(self)}, raw=True)


FLAT_COLORS = 96


def reduce_colors(picture: Image.Image) -> Image.Image:
    """Bring a picture down to 256 colours; a notebook, which keeps what it shows, becomes a third as large.

    The `FLAT_COLORS` most frequent colours, such as those of text and of classes, stay exactly as they are.
    """
    pixels = np.asarray(picture.convert("RGB"), np.uint32)
    packed = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    colors, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    flat = np.argsort(-counts, kind="stable")[:FLAT_COLORS]
    index = np.full(len(colors), -1)
    index[flat] = np.arange(len(flat))
    numbers = index[inverse].reshape(packed.shape)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(flat)] = np.stack([colors[flat] >> 16, colors[flat] >> 8 & 255, colors[flat] & 255], axis=1)
    rest = numbers < 0
    if rest.any():
        others = Image.fromarray(pixels[rest].astype(np.uint8)[None]).quantize(256 - len(flat), kmeans=1)
        found = np.reshape(others.getpalette() or [], (-1, 3))
        palette[len(flat) : len(flat) + len(found)] = found
        numbers[rest] = np.asarray(others)[0] + len(flat)
    reduced = Image.fromarray(numbers.astype(np.uint8))
    reduced.putpalette(palette.tobytes())
    return reduced


@dataclass(frozen=True, eq=False)
class Panel:
    """One runner's answer for one picture; it is titled by `info.name`.

    InputError where `info` is not a RunnerInfo, or `labels` is not a map of integers.
    """

    info: RunnerInfo
    labels: NDArray[np.integer]  # (H, W) train ids; the number of classes, and 255, are void

    def __post_init__(self) -> None:
        title_of(self.info)
        check_labels(self.labels, "labels")


@dataclass(frozen=True)
class Cell:
    """A place on the page and its width in inches, known before the layout is made."""

    place: SubplotSpec
    width_in: float


def title_of(info: RunnerInfo) -> str:
    """The only source of a runner's title: the runner's own description, never a string."""
    if not isinstance(info, RunnerInfo):
        raise InputError(f"got {info!r} to title a panel, expected a RunnerInfo; pass runner.info")
    return info.name


def refuse_false_names(figure: Figure, infos: Iterable[RunnerInfo]) -> Figure:
    """Refuse a finished figure that mentions TensorRT although no TensorRT runner took part."""
    if not any(info.is_tensorrt for info in infos):
        for text in figure.findobj(Text):
            if "tensorrt" in text.get_text().lower():
                raise InputError(f"the figure says {text.get_text()!r}, but no TensorRT runner computed any of it")
    return figure


def draw_picture(
    figure: Figure, cell: Cell, picture: NDArray[np.uint8], title: str, largest_pt: float = TITLE_PT
) -> Axes:
    """Show a picture without axes, under a title that fits."""
    axes = figure.add_subplot(cell.place)
    axes.imshow(picture)
    axes.set_axis_off()
    axes.set_title(title, fontsize=fit_pt(title, cell.width_in, largest_pt))
    return axes


def add_second_line(axes: Axes, text: str) -> None:
    """Write a smaller line between a panel's title and its picture."""
    axes.set_title(axes.get_title(), fontsize=axes.title.get_fontsize(), pad=18)
    axes.annotate(text, (0.5, 1), (0, 4), "axes fraction", "offset points", ha="center", va="bottom", fontsize=TEXT_PT)


def swatch(rgb: ArrayLike, label: str) -> Patch:
    """Make an entry of a legend in a colour given as (red, green, blue), 0..255."""
    red, green, blue = (float(channel) / 255 for channel in np.asarray(rgb))
    return Patch(facecolor=(red, green, blue), edgecolor="0.3", linewidth=0.5, label=label)


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Label both axes and take the frame away above and to the right."""
    axes.set_xlabel(x, fontsize=TEXT_PT)
    axes.set_ylabel(y, fontsize=TEXT_PT)
    axes.tick_params(labelsize=TEXT_PT)
    axes.spines[["top", "right"]].set_visible(False)


def add_caption(figure: Figure, text: str) -> None:
    """Write the caption under the figure, from the left edge."""
    lines = textwrap.fill(text, int(14.6 * figure.get_figwidth()))
    figure.supxlabel(lines, x=0.01, ha="left", fontsize=TEXT_PT, color="0.25")


def fit_pt(text: str, width_in: float, largest: float = TITLE_PT) -> float:
    """The font size at which a line of `text` fits; a letter is about 0.56 of the size wide."""
    return min(largest, width_in * 72 / (0.56 * max(len(text), 1)))


def grow(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Thicken a mask by `radius` pixels, so that single pixels outlive the scaling to the page."""
    from skimage.morphology import dilation

    return dilation(mask, np.ones((2 * radius + 1, 2 * radius + 1), np.uint8))


def format_share(count: int, total: int) -> str:
    """Write `count` of `total` in percent, never rounded down to 0."""
    share = 100 * count / total
    return "less than 0.01 %" if 0 < share < 0.01 else f"{share:.2f} %"


def check_image(image: object) -> None:
    """Refuse what is not an (H, W, 3) uint8 picture."""
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"got an image of {got}, expected (H, W, 3) uint8; read it with load_image")


def check_labels(labels: object, name: str, size: tuple[int, ...] | None = None) -> None:
    """Refuse what is not an (H, W) map of integers, or not of the picture's size."""
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.dtype.kind not in "iu":
        got = f"{labels.dtype} {labels.shape}" if isinstance(labels, np.ndarray) else type(labels).__name__
        raise InputError(f"got {name} of {got}, expected an (H, W) integer map; use argmax over the logits")
    if size is not None and labels.shape != size:
        raise InputError(
            f"got {name} of {labels.shape} for an image of {size}, expected one size; "
            "bring the image to the network's size with rescale_image"
        )


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = 150) -> Path:
    """Write a figure as PNG, whose name ends so, and return the path; the same figure gives the same bytes on each run.

    `dpi` are pixels per inch; a figure is 10 inches wide. InputError for another suffix.
    """
    target = Path(path)
    check_suffix(target, ".png", "a figure")
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, metadata={"Software": "workbench"})
    return target
