"""Colours, outlines and noise: the small tools that everything is painted with."""

from collections.abc import Iterable, Sequence
from math import atan2, cos, pi, sin
from typing import Any

import numpy as np
from PIL import Image

Color = tuple[float, float, float]
Point = tuple[float, float]
Point3 = tuple[float, float, float]
Part = tuple[Sequence[Point], Color]


def scaled(color: Color, factor: float | Color) -> Color:
    """Multiply a colour by one factor or by one per channel."""
    r, g, b = (factor, factor, factor) if isinstance(factor, int | float) else factor
    return color[0] * r, color[1] * g, color[2] * b


def mixed(a: Color, b: Color, share: float) -> Color:
    """Blend two colours: `share` of the second."""
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share


def pick(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    """Choose one element."""
    return choices[int(rng.integers(len(choices)))]


def varied(rng: np.random.Generator, color: Color, amount: float = 0.08) -> Color:
    """Change a colour a little: mostly its brightness."""
    r, g, b = (c * f for c, f in zip(color, rng.normal(1, amount * 0.3, 3) * rng.normal(1, amount), strict=True))
    return r, g, b


def ring(a: float, y: float, radius_a: float, radius_y: float, corners: int = 16, turn: float = 0.0) -> list[Point]:
    """Give an ellipse as a polygon."""
    step = 2 * pi / corners
    return [(a + radius_a * cos(i * step + turn), y + radius_y * sin(i * step + turn)) for i in range(corners)]


def box(a0: float, y0: float, a1: float, y1: float) -> list[Point]:
    """Give a rectangle as a polygon."""
    return [(a0, y0), (a1, y0), (a1, y1), (a0, y1)]


def capsule(start: Point, end: Point, r0: float, r1: float) -> list[Point]:
    """Give a limb: two circles and what lies between them, as a polygon."""
    turn = atan2(end[1] - start[1], end[0] - start[0])
    steps = [turn + pi * (0.5 + k / 5) for k in range(6)]
    first = [(start[0] + r0 * cos(t), start[1] + r0 * sin(t)) for t in steps]
    return first + [(end[0] - r1 * cos(t), end[1] - r1 * sin(t)) for t in steps]


def hull(points: Iterable[Point]) -> list[Point]:
    """Give the convex hull of points (Andrew's monotone chain)."""
    ordered = sorted(set(points))

    def chain(sequence: Iterable[Point]) -> list[Point]:
        kept: list[Point] = []
        for p in sequence:
            while len(kept) > 1 and (kept[-1][0] - kept[-2][0]) * (p[1] - kept[-2][1]) <= (
                kept[-1][1] - kept[-2][1]
            ) * (p[0] - kept[-2][0]):
                kept.pop()
            kept.append(p)
        return kept[:-1]

    return chain(ordered) + chain(reversed(ordered))


def smooth_noise(
    rng: np.random.Generator, cells: int, rows: int, columns: int, octaves: int = 4, wide: float = 2.0
) -> np.ndarray:
    """Give (rows, columns) float32 noise of mean 0 and spread about 1, the same picture at every size.

    The coarsest octave has `cells` blobs in height and `wide` times as many in width.
    """
    total = np.zeros((rows, columns), np.float32)
    for octave in range(octaves):
        shape = (cells << octave, int(cells * wide) << octave)
        grid = rng.normal(0, 0.6**octave, shape).astype(np.float32)
        total += np.asarray(Image.fromarray(grid).resize((columns, rows), Image.Resampling.BICUBIC))
    return total / 0.8
