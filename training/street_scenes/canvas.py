"""The camera, and the canvas on which picture, labels and distances are painted together."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from street_scenes.light import Light
from street_scenes.shapes import Color, Part, Point, Point3, scaled

# Cityscapes train ids
ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN = range(8)
VEGETATION, TERRAIN, SKY, PERSON, RIDER, CAR, TRUCK, BUS = range(8, 16)
MOTORCYCLE, BICYCLE = 17, 18

PLAIN, MASONRY, FOLIAGE, GLOWING = range(4)  # materials: what the light and texture passes do with a pixel
NEAR_M = 0.8  # nothing nearer to the camera is drawn


@dataclass(frozen=True)
class Camera:
    """A pinhole camera above a flat ground; lengths on the screen are in units of the image height.

    Attributes:
        focal: focal length / image height.
        height_m: height of the lens above the ground.
        horizon: row of the horizon / image height.
        shift: column of the vanishing point, from the middle of the image / image height.
        x_m: the camera's place across the street.
        curve: the street's x offset is `curve * z ** 2` metres at the distance z.
        rows, columns: the size of the picture in pixels.
    """

    focal: float
    height_m: float
    horizon: float
    shift: float
    x_m: float
    curve: float
    rows: int
    columns: int

    def project(self, x: float, y: float, z: float) -> Point:
        """Give the (column, row) in pixels of a point: x right, y up, z ahead, in metres."""
        scale = self.focal / z
        u = self.shift + scale * (x - self.x_m + self.curve * z * z)
        v = self.horizon + scale * (self.height_m - y)
        return self.columns / 2 + u * self.rows, v * self.rows

    def outline(self, points: Sequence[Point3]) -> list[Point]:
        """Project a polygon, cut off where it comes nearer than `NEAR_M`; empty when nothing is left."""
        if all(z >= NEAR_M for _, _, z in points):
            return [self.project(*point) for point in points]
        return [self.project(*point) for point in clip_near(points)]

    def size(self, length_m: float, z: float) -> float:
        """Give the height on the screen, as a part of the image height, of a length at the distance z."""
        return self.focal * length_m / z

    def ground(self) -> tuple[int, np.ndarray, np.ndarray]:
        """Give the first ground row, and x (rows, columns) and z (rows, 1) in metres of each ground pixel."""
        first = int(np.ceil(self.horizon * self.rows + 0.5))
        v = (np.arange(first, self.rows, dtype=np.float32) + 0.5) / self.rows - self.horizon
        z = (self.focal * self.height_m / v)[:, None]
        u = (np.arange(self.columns, dtype=np.float32) + 0.5 - self.columns / 2) / self.rows - self.shift
        return first, u[None] * z / self.focal + self.x_m - self.curve * z * z, z


def clip_near(points: Sequence[Point3]) -> list[Point3]:
    """Cut a polygon at the plane z = `NEAR_M` (Sutherland and Hodgman's algorithm)."""
    kept: list[Point3] = []
    for a, b in zip(points, [*points[1:], points[0]], strict=True):
        if a[2] >= NEAR_M:
            kept.append(a)
        if (a[2] >= NEAR_M) != (b[2] >= NEAR_M):
            t = (NEAR_M - a[2]) / (b[2] - a[2])
            kept.append((a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]), NEAR_M))
    return kept


@dataclass
class Canvas:
    """Picture, label, distance and material of every pixel, painted together, one outline for each part.

    Attributes:
        camera: from where the scene is seen.
        light: how it is lit.
        picture: RGBA; the fourth channel is the material.
        labels: Cityscapes train ids.
        depth: distances in metres, float32.
        shadows: (rows, columns) float32, how much of the sun is blocked on the ground, 0..1.
    """

    camera: Camera
    light: Light
    picture: Image.Image
    labels: Image.Image
    depth: Image.Image
    shadows: np.ndarray
    pens: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.pens = [ImageDraw.Draw(plane) for plane in (self.picture, self.labels, self.depth)]

    def fill(self, outline: Sequence[Point], color: Color, label: int, z: float, material: int = PLAIN) -> None:
        """Paint a polygon, in pixels, with a colour of 0..255 on all planes."""
        if len(outline) < 3:
            return
        r, g, b = color
        ink = (min(255, int(r)), min(255, int(g)), min(255, int(b)), material)
        for pen, value in zip(self.pens, (ink, label, z), strict=True):
            pen.polygon(outline, fill=value)

    def fill_many(self, outlines: np.ndarray, colors: np.ndarray, label: int, z: float, material: int) -> None:
        """Paint (n, corners, 2) polygons, in pixels, with (n, 3) colours of 0..255, all at one distance."""
        inks = np.clip(colors, 0, 255).astype(np.int64).tolist()
        for outline, ink in zip(outlines.reshape(len(outlines), -1).tolist(), inks, strict=True):
            for pen, value in zip(self.pens, ((*ink, material), label, z), strict=True):
                pen.polygon(outline, fill=value)

    def fill_parts(
        self, place: "Plane", parts: Iterable[Part], factor: Color, label: int, z: float | None = None
    ) -> None:
        """Paint the parts of a flat figure, lit by a factor per channel, at the distance of its plane or z."""
        for outline, color in parts:
            self.fill(place(outline), scaled(color, factor), label, place.z if z is None else z)

    def face(
        self, points: Sequence[Point3], color: Color, label: int, material: int = PLAIN, shadow: float = 0.0
    ) -> None:
        """Paint a flat face in space, lit by its normal; a glowing face keeps its colour."""
        factor = (1.0, 1.0, 1.0) if material == GLOWING else self.light.shade(facing_normal(points), shadow)
        z = sum(point[2] for point in points) / len(points)
        self.fill(self.camera.outline(points), scaled(color, factor), label, max(z, NEAR_M), material)

    def tint(self, outline: Sequence[Point], color: Color, label: int, z: float, alpha: float) -> None:
        """Paint a polygon that lets the picture behind it shine through, as wire mesh does."""
        left, top = (max(0, int(min(axis)) - 1) for axis in zip(*outline, strict=True))
        right, bottom = (int(max(axis)) + 2 for axis in zip(*outline, strict=True))
        right, bottom = min(right, self.camera.columns), min(bottom, self.camera.rows)
        if right <= left or bottom <= top:
            return
        mask = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(mask).polygon([(u - left, v - top) for u, v in outline], fill=255)
        ink = (*(int(c) for c in color), PLAIN)
        self.picture.paste(ink, (left, top), mask.point(lambda value: int(value * alpha)))
        self.labels.paste(label, (left, top), mask)
        self.depth.paste(z, (left, top), mask)

    def sees(self, *columns: float) -> bool:
        """Tell whether something between these columns, in pixels, can be in the picture."""
        return max(columns) >= 0 and min(columns) <= self.camera.columns

    def sees_at(self, x: float, z: float, reach: float) -> bool:
        """Tell whether something that reaches so many metres to both sides can be in the picture."""
        ends = [(x + side * reach, at) for side in (-1, 1) for at in (max(NEAR_M, z - reach), z + reach)]
        return self.sees(*(self.camera.project(at_x, 0.0, at_z)[0] for at_x, at_z in ends))

    def shadow_at(self, x: float, z: float) -> float:
        """Tell how much of the sun is blocked on the ground at (x, z): 0 to 1; 0 outside the picture."""
        u, v = self.camera.project(x, 0.0, max(z, NEAR_M))
        if 0 <= u < self.camera.columns and 0 <= v < self.camera.rows:
            return float(self.shadows[int(v), int(u)])
        return 0.0


@dataclass(frozen=True)
class Plane:
    """A standing or turned sheet at (x, z): maps metres along it and above the ground to pixels."""

    camera: Camera
    x: float
    z: float
    along_x: float = 1.0
    along_z: float = 0.0

    def __call__(self, points: Iterable[Point]) -> list[Point]:
        """Project (along, up) points."""
        at, z = self.camera.project, self.z
        return [at(self.x + a * self.along_x, y, max(NEAR_M, z + a * self.along_z)) for a, y in points]


@dataclass(frozen=True)
class Front:
    """A flat front beside the street: maps (along, up) to space, `along` as a share from near to far.

    Attributes:
        x: its place across the street.
        near, far: where it begins and ends.
        side: 1 if it stands at the right of the street, -1 at the left.
    """

    x: float
    near: float
    far: float
    side: int

    def __call__(self, a0: float, y0: float, a1: float, y1: float, out: float = 0.0) -> list[Point3]:
        """Give a rectangle that stands out towards the street by so many metres."""
        x = self.x - self.side * out
        z0, z1 = self.near + a0 * (self.far - self.near), self.near + a1 * (self.far - self.near)
        return [(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)]


def facing_normal(points: Sequence[Point3]) -> Point3:
    """Give the unit normal of a flat face, on the side from which the camera sees it."""
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = points[0], points[1], points[2]
    p, q, r = bx - ax, by - ay, bz - az
    s, t, u = cx - bx, cy - by, cz - bz
    n = (q * u - r * t, r * s - p * u, p * t - q * s)
    length = sqrt(sum(v * v for v in n)) or 1.0
    towards = -(n[0] * ax + n[1] * (ay - 1.5) + n[2] * az)
    length = length if towards >= 0 else -length
    return n[0] / length, n[1] / length, n[2] / length


def signed_area(outline: Sequence[Point]) -> float:
    """Give twice the signed area of a polygon; negative for the visible side of an outward face."""
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(outline, [*outline[1:], *outline[:1]], strict=True))


@dataclass(frozen=True)
class Item:
    """One thing to draw: its distance, how, and the ground outlines (x, z) of its shadows.

    Attributes:
        z: distance in metres; far things are drawn first.
        draw: paints it on a canvas.
        foot: where it stands: the dark contact shadow, in any weather.
        cast: (x, z, y) points whose hull, moved along the sunlight, is the cast shadow.
    """

    z: float
    draw: Callable[[Canvas], None]
    foot: tuple[Point, ...] = ()
    cast: tuple[tuple[float, float, float], ...] = ()
