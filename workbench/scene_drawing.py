"""How street scenes are drawn: camera, light, a canvas for picture and labels, the things of a street."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import atan2, cos, pi, sin, sqrt
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

Color = tuple[float, float, float]
Point = tuple[float, float]
Point3 = tuple[float, float, float]
Part = tuple[list[Point], Color]

ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN = range(8)
VEGETATION, TERRAIN, SKY, PERSON, RIDER, CAR, TRUCK, BUS = range(8, 16)
MOTORCYCLE, BICYCLE = 17, 18

PLAIN, MASONRY, FOLIAGE, GLOWING = range(4)  # materials: what the light and texture passes do with a pixel
NEAR_M = 0.8  # nothing nearer to the camera is drawn
SKY_DEPTH_M = 10000.0


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


@dataclass(frozen=True)
class Light:
    """The light of one scene: colours in 0..1; `sun` is the unit vector from the ground to the sun."""

    weather: str
    sun: Point3
    sun_color: Color
    ambient: Color
    sky_top: Color
    sky_low: Color
    clouds: float
    cloud_color: Color
    haze: float
    wet: float
    lit_windows: float
    lamps: bool

    def shade(self, normal: Point3, in_shadow: float = 0.0) -> Color:
        """Give the factor per channel for a surface with this normal; `in_shadow` 1 is no sun."""
        (nx, ny, nz), (sx, sy, sz) = normal, self.sun
        facing = max(0.0, nx * sx + ny * sy + nz * sz) * (1 - in_shadow)
        up = 0.86 + 0.14 * ny
        (r, g, b), (sun_r, sun_g, sun_b) = self.ambient, self.sun_color
        return r * up + sun_r * facing, g * up + sun_g * facing, b * up + sun_b * facing


@dataclass
class Canvas:
    """Picture, label, distance and material of every pixel, painted together, one outline for each part."""

    camera: Camera
    light: Light
    picture: Image.Image
    labels: Image.Image
    depth: Image.Image
    shadows: np.ndarray
    pens: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        """Make one pen for each plane."""
        self.pens = [ImageDraw.Draw(plane) for plane in (self.picture, self.labels, self.depth)]

    def fill(
        self, outline: Sequence[Point], color: Color, label: int, z: float, material: int = PLAIN
    ) -> None:
        """Paint a polygon, in pixels, with a colour of 0..255 on all planes."""
        if len(outline) < 3:
            return
        r, g, b = color
        ink = (min(255, int(r)), min(255, int(g)), min(255, int(b)), material)
        picture, labels, depth = self.pens
        picture.polygon(outline, fill=ink)
        labels.polygon(outline, fill=label)
        depth.polygon(outline, fill=z)

    def fill_many(
        self, outlines: np.ndarray, colors: np.ndarray, label: int, z: float, material: int
    ) -> None:
        """Paint (n, corners, 2) polygons, in pixels, with (n, 3) colours of 0..255, all at one distance."""
        inks = np.clip(colors, 0, 255).astype(np.int64).tolist()
        picture, labels, depth = self.pens
        for outline, (r, g, b) in zip(outlines.reshape(len(outlines), -1).tolist(), inks, strict=True):
            picture.polygon(outline, fill=(r, g, b, material))
            labels.polygon(outline, fill=label)
            depth.polygon(outline, fill=z)

    def sees(self, x: float, z: float, reach: float) -> bool:
        """Tell whether something that reaches so many metres to both sides can be in the picture."""
        nearest = max(NEAR_M, z - reach)
        ends = [
            self.camera.project(x + side * reach, 0.0, at)[0]
            for side in (-1, 1)
            for at in (nearest, z + reach)
        ]
        return max(ends) >= 0 and min(ends) <= self.camera.columns

    def tint(self, outline: Sequence[Point], color: Color, label: int, z: float, alpha: float) -> None:
        """Paint a polygon that lets the picture behind it shine through, as spokes and wire mesh do."""
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

    def face(
        self, points: Sequence[Point3], color: Color, label: int, material: int = PLAIN, shadow: float = 0.0
    ) -> None:
        """Paint a flat face in space, lit by its normal; a glowing face keeps its colour."""
        factor = (1.0, 1.0, 1.0) if material == GLOWING else self.light.shade(facing_normal(points), shadow)
        z = sum(point[2] for point in points) / len(points)
        self.fill(self.camera.outline(points), scaled(color, factor), label, max(z, NEAR_M), material)

    def shadow_at(self, x: float, z: float) -> float:
        """Tell how much of the sun is blocked on the ground at (x, z): 0 to 1; 0 outside the picture."""
        u, v = self.camera.project(x, 0.0, max(z, NEAR_M))
        rows, columns = self.shadows.shape
        if 0 <= u < self.camera.columns and 0 <= v < self.camera.rows:
            return float(
                self.shadows[int(v * rows / self.camera.rows), int(u * columns / self.camera.columns)]
            )
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
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(outline, [*outline[1:], outline[0]], strict=True))


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
    r, g, b = (
        c * f for c, f in zip(color, rng.normal(1, amount * 0.3, 3) * rng.normal(1, amount), strict=True)
    )
    return r, g, b


def ring(
    a: float, y: float, radius_a: float, radius_y: float, corners: int = 16, turn: float = 0.0
) -> list[Point]:
    """Give an ellipse as a polygon."""
    step = 2 * pi / corners
    return [
        (a + radius_a * cos(i * step + turn), y + radius_y * sin(i * step + turn)) for i in range(corners)
    ]


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


Drawer = Callable[[Canvas], None]


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
    draw: Drawer
    foot: tuple[Point, ...] = ()
    cast: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True)
class Building:
    """A house beside the street: its street front is the plane x = `front`, from z0 to z1."""

    side: int
    front: float
    z0: float
    z1: float
    floors: int
    ground_floor: float
    floor: float
    bays: int
    wall: Color
    trim: Color
    base: Color
    roof: Color
    roof_height: float
    shop: bool
    balconies: bool
    window: tuple[float, float, bool]  # part of the bay's width, part of the floor's height, with a cross
    seed: int

    @property
    def height(self) -> float:
        """Height of the eaves in metres."""
        return self.ground_floor + self.floors * self.floor


def building_items(house: Building, label: int = BUILDING) -> list[Item]:
    """Cut a house into its bays, its end wall and its roof, each to be drawn at its own distance."""
    if house.z1 < 1.6:
        return []
    edges = np.linspace(house.z0, house.z1, house.bays + 1).tolist()
    items = []
    for number, (near, far) in enumerate(pairwise(edges)):
        if far > 1.5:
            items.append(Item(far, _bay(house, max(near, NEAR_M), far, number)))
    if house.z0 > 2:
        items.append(Item(house.z0 + 0.02, lambda canvas: _end_wall(canvas, house)))
    items.append(Item(house.z1 + 0.05, lambda canvas: _roof(canvas, house)))
    back = house.front + house.side * 9
    top = house.height + 0.5 * house.roof_height
    corners = [
        (x, z, y) for x in (house.front, back) for z in (max(1.0, house.z0), house.z1) for y in (0.0, top)
    ]
    foot = tuple(
        (x, z) for x in (house.front - house.side * 0.35, back) for z in (max(1.0, house.z0), house.z1)
    )
    return [*items, Item(house.z1 + 0.06, lambda canvas: None, tuple(hull(foot)), tuple(corners))]


def _bay(house: Building, near: float, far: float, number: int) -> Drawer:
    def draw(canvas: Canvas) -> None:
        x, side = house.front, house.side
        ends = [canvas.camera.project(x - side * out, 0.0, z)[0] for z in (near, far) for out in (0.0, 1.4)]
        if max(ends) < 0 or min(ends) > canvas.camera.columns:
            return
        rng = np.random.default_rng([house.seed, number])

        def sheet(a0: float, y0: float, a1: float, y1: float, out: float = 0.0) -> list[Point3]:
            at = x - side * out
            za, zb = near + a0 * (far - near), near + a1 * (far - near)
            return [(at, y0, za), (at, y0, zb), (at, y1, zb), (at, y1, za)]

        canvas.face(sheet(0, 0, 1, house.height), house.wall, BUILDING, MASONRY)
        _ground_floor(canvas, house, sheet, rng, far - near)
        for level in range(house.floors):
            _window(canvas, house, sheet, house.ground_floor + level * house.floor, rng)
        canvas.face(
            sheet(0, house.ground_floor - 0.12, 1, house.ground_floor + 0.1, 0.08), house.trim, BUILDING
        )
        canvas.face(sheet(0, house.height - 0.4, 1, house.height, 0.3), house.trim, BUILDING)
        canvas.face(
            sheet(0, house.height - 0.62, 1, house.height - 0.4, 0.02), scaled(house.wall, 0.62), BUILDING
        )

    return draw


Sheet = Callable[..., list[Point3]]


def _glass(canvas: Canvas, rng: np.random.Generator, lit: bool) -> tuple[Color, Color, int]:
    """Choose a pane: upper and lower colour, and whether it glows."""
    if lit:
        warm = pick(rng, [(255, 214, 140), (250, 226, 170), (240, 190, 110)])
        return warm, scaled(warm, 0.8), GLOWING
    sky = scaled(mixed(canvas.light.sky_low, canvas.light.sky_top, 0.5), 255)
    dark = scaled((52, 60, 70), 0.6 + 0.7 * float(rng.random()))
    return mixed(dark, sky, 0.32), mixed(dark, sky, 0.10), PLAIN


def _window(canvas: Canvas, house: Building, sheet: Sheet, base: float, rng: np.random.Generator) -> None:
    wide, tall, cross = house.window
    lit = bool(rng.random() < canvas.light.lit_windows)
    upper, lower, material = _glass(canvas, rng, lit)
    a0, a1 = 0.5 - wide / 2, 0.5 + wide / 2
    y0 = base + house.floor * (0.92 - tall) * 0.75
    y1 = y0 + house.floor * tall
    edge = 0.035
    if canvas.camera.size(1.0, sheet(0, 0, 0, 0)[0][2]) < 0.024:
        canvas.face(sheet(a0, y0, a1, y1), mixed(lower, upper, 0.5), BUILDING, material)
        return
    canvas.face(sheet(a0 - edge, y0 - 0.08, a1 + edge, y1 + 0.1), house.trim, BUILDING)
    blind = float(rng.random())
    middle = y1 - (y1 - y0) * (0.3 + 0.3 * blind)
    canvas.face(sheet(a0, y0, a1, y1), lower, BUILDING, material)
    canvas.face(
        sheet(a0, middle, a1, y1), (206, 200, 186) if blind > 0.75 and not lit else upper, BUILDING, material
    )
    if canvas.camera.size(1.0, sheet(0, 0, 0, 0)[0][2]) > 0.035:
        canvas.face(sheet(a0, y1 - 0.12, a1, y1), scaled(lower, 0.5), BUILDING)
        if cross:
            canvas.face(sheet(0.49, y0, 0.51, y1), house.trim, BUILDING)
        canvas.face(
            sheet(a0 - 0.05, y0 - 0.2, a1 + 0.05, y0 - 0.06, 0.12), scaled(house.trim, 1.05), BUILDING
        )
    if house.balconies and rng.random() < 0.6:
        _balcony(canvas, house, sheet, base)


def _balcony(canvas: Canvas, house: Building, sheet: Sheet, base: float) -> None:
    slab = [sheet(0.1, base, 0.9, base)[0], sheet(0.1, base, 0.9, base)[1]]
    outer = [sheet(0.1, base, 0.9, base, 0.9)[1], sheet(0.1, base, 0.9, base, 0.9)[0]]
    canvas.face([*slab, *outer], scaled(house.trim, 0.6), BUILDING)
    canvas.face(sheet(0.1, base - 0.12, 0.9, base + 0.05, 0.9), house.trim, BUILDING)
    canvas.face(sheet(0.1, base + 0.05, 0.9, base + 0.95, 0.9), scaled(house.base, 0.75), BUILDING)
    side = sheet(0.1, base, 0.1, base + 0.95) + sheet(0.1, base, 0.1, base + 0.95, 0.9)
    canvas.face([side[0], side[4], side[7], side[3]], scaled(house.base, 0.7), BUILDING)


def _ground_floor(
    canvas: Canvas, house: Building, sheet: Sheet, rng: np.random.Generator, length: float
) -> None:
    top = house.ground_floor
    canvas.face(sheet(0, 0, 1, top), house.base, BUILDING, MASONRY)
    lit = bool(rng.random() < canvas.light.lit_windows * 1.6)
    upper, lower, material = _glass(canvas, rng, lit)
    if house.shop and rng.random() < 0.85:
        _shop(canvas, sheet, rng, top, (upper, lower), material)
    elif rng.random() < 0.25:
        door = varied(rng, pick(rng, [(88, 58, 40), (52, 70, 62), (60, 64, 84), (110, 44, 38), (70, 70, 70)]))
        canvas.face(sheet(0.28, 0, 0.72, top * 0.80), house.trim, BUILDING)
        canvas.face(sheet(0.33, 0, 0.67, top * 0.76), door, BUILDING)
        canvas.face(sheet(0.37, top * 0.58, 0.63, top * 0.73), lower, BUILDING, material)
    else:
        canvas.face(sheet(0.25, 0.85, 0.75, top * 0.82), house.trim, BUILDING)
        canvas.face(sheet(0.29, 0.95, 0.71, top * 0.78), lower, BUILDING, material)
        canvas.face(sheet(0.29, top * 0.55, 0.71, top * 0.78), upper, BUILDING, material)
    canvas.face(sheet(0, 0, 1, 0.35, 0.04), scaled(house.base, 0.7), BUILDING)


SHOP_COLORS = [
    (122, 38, 36),
    (38, 70, 58),
    (40, 52, 86),
    (56, 52, 50),
    (166, 130, 62),
    (92, 46, 70),
    (60, 92, 104),
]


def _shop(
    canvas: Canvas,
    sheet: Sheet,
    rng: np.random.Generator,
    top: float,
    glass: tuple[Color, Color],
    material: int,
) -> None:
    board = varied(rng, pick(rng, SHOP_COLORS))
    canvas.face(sheet(0.04, 0, 0.96, top * 0.78), scaled(board, 0.6), BUILDING)
    canvas.face(sheet(0.08, 0.45, 0.92, top * 0.74), glass[1], BUILDING, material)
    for number in range(4):  # goods in the window
        a = 0.12 + 0.2 * number
        goods = varied(rng, pick(rng, [(150, 120, 96), (96, 104, 112), (168, 160, 140), (116, 70, 62)]), 0.2)
        canvas.face(sheet(a, 0.5, a + 0.15, 0.8 + float(rng.random())), scaled(goods, 0.75), BUILDING)
    canvas.face(sheet(0.08, top * 0.55, 0.92, top * 0.74), glass[0], BUILDING, material)
    canvas.face(sheet(0.49, 0.4, 0.52, top * 0.74), scaled(board, 0.6), BUILDING)
    canvas.face(sheet(0.02, top * 0.78, 0.98, top * 0.95, 0.1), board, BUILDING)
    canvas.face(sheet(0.25, top * 0.83, 0.75, top * 0.90, 0.11), (222, 214, 190), BUILDING)
    if rng.random() < 0.45:
        cloth = varied(rng, pick(rng, SHOP_COLORS))
        for number in range(6):
            a0, a1 = 0.04 + number * 0.153, 0.04 + (number + 1) * 0.153
            high, low = sheet(a0, top * 0.8, a1, top * 0.8, 0.1), sheet(a0, top * 0.6, a1, top * 0.6, 1.3)
            stripe = cloth if number % 2 else mixed(cloth, (225, 218, 205), 0.75)
            canvas.face([low[0], low[1], high[1], high[0]], stripe, BUILDING)
            canvas.face(sheet(a0, top * 0.6 - 0.2, a1, top * 0.6, 1.3), scaled(stripe, 0.85), BUILDING)


def _end_wall(canvas: Canvas, house: Building) -> None:
    x, z, h, depth = house.front, house.z0, house.height, house.side * 10.0
    ends = [canvas.camera.project(at, 0.0, z)[0] for at in (x, x + depth)]
    if max(ends) < 0 or min(ends) > canvas.camera.columns:
        return
    wall = scaled(house.wall, 0.95)
    if house.roof_height > 1:
        peak = (x + depth / 2, h + house.roof_height, z)
        canvas.face([(x, h, z), (x + depth, h, z), peak], wall, BUILDING, MASONRY)
    canvas.face([(x, 0, z), (x + depth, 0, z), (x + depth, h, z), (x, h, z)], wall, BUILDING, MASONRY)
    rng = np.random.default_rng([house.seed, 99])
    for level in range(house.floors):
        y = house.ground_floor + level * house.floor + 0.8
        for a in (0.18, 0.46, 0.74):
            _, lower, material = _glass(canvas, rng, bool(rng.random() < canvas.light.lit_windows))
            x0, x1 = x + depth * a, x + depth * (a + 0.12)
            frame = [(x0, y - 0.1, z), (x1, y - 0.1, z), (x1, y + 1.5, z), (x0, y + 1.5, z)]
            canvas.face(frame, house.trim, BUILDING)
            inset = 0.1 * house.side
            pane = [
                (x0 + inset, y, z),
                (x1 - inset, y, z),
                (x1 - inset, y + 1.4, z),
                (x0 + inset, y + 1.4, z),
            ]
            canvas.face(pane, lower, BUILDING, material)


def _roof(canvas: Canvas, house: Building) -> None:
    x, h, z0, z1 = house.front - house.side * 0.3, house.height, max(house.z0, NEAR_M), house.z1
    ridge = house.front + house.side * 5.0
    if house.roof_height > 1:
        eaves_to_ridge: list[Point3] = [(x, h, z0), (x, h, z1)]
        eaves_to_ridge += [(ridge, h + house.roof_height, z1), (ridge, h + house.roof_height, z0)]
        canvas.face(eaves_to_ridge, house.roof, BUILDING, MASONRY)
    rng = np.random.default_rng([house.seed, 98])
    for _ in range(2):
        z = float(rng.uniform(z0, z1))
        base, top = h + house.roof_height * 0.5, h + house.roof_height + 0.9
        c = ridge - house.side * 1.5
        front: list[Point3] = [(c - 0.4, base, z), (c + 0.4, base, z), (c + 0.4, top, z), (c - 0.4, top, z)]
        canvas.face(front, scaled(house.base, 0.8), BUILDING)


def backdrop(canvas: Canvas, z: float, seed: int, town: float) -> None:
    """Close the street far away with a row of houses and trees, so that the ground ends at something."""
    rng = np.random.default_rng(seed)
    reach = 1.6 * z / canvas.camera.focal
    x = -reach + float(rng.uniform(0, 6))
    while x < reach:
        width = float(rng.uniform(9, 20))
        height = float(rng.uniform(7, 17))
        wall = varied(rng, pick(rng, WALL_COLORS))
        if rng.random() < town:
            _far_house(canvas, rng, (x, z, width, height), wall)
        x += width * 0.9
    x = -reach
    while x < reach:
        radius = float(rng.uniform(2.5, 5.5))
        if rng.random() > town * 0.6:
            leaf = scaled(varied(rng, (74, 94, 56)), canvas.light.shade((0.0, 0.6, -0.8)))
            offset = canvas.camera.curve * z * z
            blob = Plane(canvas.camera, x - offset, z - 1)
            rough = [
                (a * float(rng.uniform(0.85, 1.15)), max(0.0, y * float(rng.uniform(0.9, 1.1))))
                for a, y in [*ring(0, radius * 0.9, radius, radius, 18)]
            ]
            canvas.fill(blob(rough), leaf, VEGETATION, z - 1, FOLIAGE)
            canvas.fill(
                blob(box(-radius, 0, radius, radius * 0.8)), scaled(leaf, 0.9), VEGETATION, z - 1, FOLIAGE
            )
        x += radius * 1.1


def _far_house(canvas: Canvas, rng: np.random.Generator, place: tuple[float, ...], wall: Color) -> None:
    x, z, width, height = place
    x -= canvas.camera.curve * z * z

    def sheet(a0: float, y0: float, a1: float, y1: float) -> list[Point3]:
        return [(x + a0, y0, z), (x + a1, y0, z), (x + a1, y1, z), (x + a0, y1, z)]

    canvas.face(sheet(0, 0, width, height), wall, BUILDING, MASONRY)
    roof = varied(rng, pick(rng, ROOF_COLORS))
    if rng.random() < 0.6:
        top: list[Point3] = [
            (x - 0.4, height, z),
            (x + width + 0.4, height, z),
            (x + width * 0.8, height + 3, z),
        ]
        canvas.face([*top, (x + width * 0.2, height + 3, z)], roof, BUILDING)
    for y in np.arange(1.2, height - 2, 3.2).tolist():
        for a in np.arange(1.2, width - 1.5, 2.6).tolist():
            upper, _, material = _glass(canvas, rng, bool(rng.random() < canvas.light.lit_windows))
            canvas.face(sheet(a, y, a + 1.3, y + 1.7), upper, BUILDING, material)


WALL_COLORS = [
    (205, 190, 165), (190, 160, 130), (168, 96, 76), (214, 206, 192), (182, 178, 170), (198, 172, 118),
    (150, 120, 104), (176, 186, 178), (206, 176, 156), (140, 84, 70), (160, 150, 142), (222, 212, 180),
]  # fmt: skip
ROOF_COLORS = [(142, 74, 56), (120, 66, 52), (86, 84, 88), (70, 72, 80), (104, 84, 72)]


def tree_item(x: float, z: float, height: float, crown: float, shape: float, leaf: Color, seed: int) -> Item:
    """Plan a tree: `crown` is its radius in metres, `shape` its height / width."""
    middle = height - crown * shape
    cast = [(x + a, z + b, middle) for a, b in ring(0, 0, crown * 0.9, crown * 0.9, 10)]
    cast += [
        (x + a, z, middle + crown * shape * s) for a, s in ((0, 0.9), (crown * 0.5, 0.5), (-crown * 0.5, 0.5))
    ]

    def draw(canvas: Canvas) -> None:
        if not canvas.sees(x, z, 1.5 * crown):
            return
        rng = np.random.default_rng(seed)
        flat = Plane(canvas.camera, x, z)
        shadow = canvas.shadow_at(x, z - 0.5) * 0.5
        thick = max(0.13, 0.026 * height)
        bark = scaled(varied(rng, (92, 78, 64)), canvas.light.shade((0.4, 0.2, -0.9), shadow))
        low = [
            (-thick * 1.5, 0.0),
            (thick * 1.5, 0.0),
            (thick * 0.8, 0.5),
            (thick * 0.6, middle),
            (-thick * 0.6, middle),
        ]
        canvas.fill(flat([*low, (-thick * 0.9, 0.5)]), bark, VEGETATION, z, PLAIN)
        canvas.fill(flat(box(0.1 * thick, 0.3, thick * 0.7, middle)), scaled(bark, 0.72), VEGETATION, z)
        for turn in (-0.5, 0.45):
            limb = capsule((0, middle - crown * 0.9), (turn * crown, middle), thick * 0.4, thick * 0.2)
            canvas.fill(flat(limb), scaled(bark, 0.85), VEGETATION, z)
        _crown(canvas, flat, rng, (middle, crown, crown * shape), leaf, shadow)

    return Item(z, draw, tuple(ring(x, z, 0.5, 0.35, 8)), (*cast, (x, z, 0.0)))


def _crown(
    canvas: Canvas,
    flat: Plane,
    rng: np.random.Generator,
    size: tuple[float, float, float],
    leaf: Color,
    shadow: float,
) -> None:
    """Paint a crown: leafy clumps in three depths, then small dabs of leaves, lighter towards the light."""
    middle, radius, tall = size
    camera, sun = canvas.camera, canvas.light.sun
    on_screen = camera.size(radius, flat.z)
    base = np.asarray(scaled(leaf, canvas.light.shade((sun[0] * 0.4, 0.6, -0.5), shadow)))
    clumps, dabs = rng.random((3, 16, 32)), rng.random((420, 8))

    def paint(places: np.ndarray, edges: np.ndarray, lit: np.ndarray) -> None:
        points = (places[:, None] + edges) * (radius, tall) + (0.0, middle)
        u, v = camera.project(flat.x, 0.0, flat.z)
        scale = camera.size(1.0, flat.z) * camera.rows
        outlines = np.stack([u + points[..., 0] * scale, v - points[..., 1] * scale], axis=-1)
        canvas.fill_many(outlines, base * lit[:, None], VEGETATION, flat.z, FOLIAGE)

    unit = np.asarray(ring(0, 0, 1, 1, 13))
    for layer, tone in enumerate((0.62, 0.8, 0.98)):
        draws = clumps[layer, : 16 if on_screen > 0.06 else 9]
        a, y = _inside_disc(draws, 0.82 - 0.16 * layer)
        lit = tone + 0.10 * y + 0.12 * (a * sun[0] + y * sun[1]) * (layer > 0) + 0.1 * (draws[:, 2] - 0.5)
        places = np.stack([a + 0.1 * layer * sun[0], y + 0.06 * layer], axis=1)
        reach = (0.2 + 0.16 * draws[:, 3] + (0.06 if on_screen <= 0.06 else 0.0))[:, None, None]
        rough = 0.8 + 0.4 * np.stack([draws[:, 4:17], draws[:, 17:30]], axis=-1)
        paint(places, unit * rough * reach, lit)
    draws = dabs[: int(min(420, 1500 * on_screen))]
    a, y = _inside_disc(draws, 0.98)
    lit = 0.72 + 0.22 * y + 0.16 * (a * sun[0] + y * sun[1]) + 0.34 * (draws[:, 2] - 0.5)
    turn = 2 * pi * (draws[:, 6:7] + np.arange(5) / 5)
    size_of = (0.03 + 0.05 * draws[:, 3:4]) * (0.7 + draws[:, 4:5])
    paint(
        np.stack([a, y], axis=1),
        np.stack([size_of * np.cos(turn), 0.8 * size_of * np.sin(turn)], axis=-1),
        lit,
    )


def _inside_disc(draws: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Turn two uniform columns into points spread evenly over a disc."""
    out, turn = radius * np.sqrt(draws[:, 0]), 2 * pi * draws[:, 1]
    return out * np.cos(turn), out * np.sin(turn)


def hedge_items(x: float, z0: float, z1: float, height: float, leaf: Color, seed: int) -> list[Item]:
    """Plan a cut hedge along the street."""
    rng = np.random.default_rng(seed)
    items = []
    side = 1 if x > 0 else -1
    for near in np.arange(z0, z1, 1.5).tolist():
        bumps = [height * float(rng.uniform(0.92, 1.08)) for _ in range(2)]
        far = min(z1, near + 1.5)

        def draw(canvas: Canvas, near: float = near, far: float = far, bumps: list[float] = bumps) -> None:
            a, b = bumps
            back = x + side * 0.9
            canvas.face(
                [(x, a, near), (x, b, far), (back, b, far), (back, a, near)], leaf, VEGETATION, FOLIAGE
            )
            if near < z0 + 0.1:
                canvas.face(
                    [(x, 0, near), (back, 0, near), (back, a, near), (x, a, near)], leaf, VEGETATION, FOLIAGE
                )
            canvas.face(
                [(x, 0, near), (x, 0, far), (x, b, far), (x, a, near)], scaled(leaf, 0.9), VEGETATION, FOLIAGE
            )
            low: list[Point3] = [(x, 0, near), (x, 0, far), (x, 0.3, far), (x, 0.3, near)]
            canvas.face(low, scaled(leaf, 0.6), VEGETATION, FOLIAGE)

        foot = ((x - side * 0.25, near), (x - side * 0.25, far), (x + side, far), (x + side, near))
        cast = tuple((cx, cz, cy) for cx in (x, x + side * 0.9) for cz in (near, far) for cy in (0.0, height))
        items.append(Item(far, draw, foot, cast))
    return items


def barrier_items(x: float, z0: float, z1: float, height: float, kind: str, color: Color) -> list[Item]:
    """Plan a wall (`"wall"`), or a wooden (`"planks"`) or wire (`"mesh"`) fence along the street."""
    label = WALL if kind == "wall" else FENCE
    items = []
    for near in np.arange(z0, z1, 1.8).tolist():
        far = min(z1, near + 1.8)

        def draw(canvas: Canvas, near: float = near, far: float = far) -> None:
            _barrier(canvas, x, near, far, height, kind, color, label)

        foot = tuple(hull([(x - 0.2, near), (x - 0.2, far), (x + 0.2, far), (x + 0.2, near)]))
        cast = () if kind == "mesh" else tuple((x, z, y) for z in (near, far) for y in (0.0, height))
        items.append(Item(far, draw, foot, cast))
    return items


def _barrier(
    canvas: Canvas, x: float, near: float, far: float, height: float, kind: str, color: Color, label: int
) -> None:
    def sheet(a0: float, y0: float, a1: float, y1: float) -> list[Point3]:
        za, zb = near + a0 * (far - near), near + a1 * (far - near)
        return [(x, y0, za), (x, y0, zb), (x, y1, zb), (x, y1, za)]

    if kind == "mesh":
        outline = canvas.camera.outline(sheet(0, 0.05, 1, height))
        tone = scaled(color, canvas.light.shade((0.0, 0.3, -0.9)))
        canvas.tint(outline, tone, label, (near + far) / 2, 0.5)
        bars = [sheet(0, height - 0.1, 1, height), sheet(0, 0.05, 1, 0.16), sheet(0, 0, 0.06, height)]
        bars += [sheet(k / 8, 0.1, k / 8 + 0.025, height) for k in range(1, 8) if near < 22]
        for bar in bars:
            canvas.face(bar, color, label)
        return
    canvas.face(sheet(0, 0, 1, height), color, label, MASONRY)
    if kind == "planks":
        for k in range(6):
            canvas.face(sheet(k / 6, 0.02, k / 6 + 0.03, height), scaled(color, 0.6), label)
            canvas.face(sheet(k / 6 + 0.03, 0, k / 6 + 0.08, height), scaled(color, 1.12), label)
        canvas.face(sheet(0, height * 0.75, 1, height * 0.82), scaled(color, 0.8), label)
    else:
        canvas.face(sheet(0, height - 0.15, 1, height), scaled(color, 1.2), label)
        canvas.face(sheet(0, 0, 1, 0.25), scaled(color, 0.8), label)
        for k in range(1, 4):
            canvas.face(sheet(0, height * k / 4 - 0.02, 1, height * k / 4 + 0.01), scaled(color, 0.86), label)


def lamp_item(x: float, z: float, height: float, arm: float, metal: Color) -> Item:
    """Plan a street lamp; `arm` reaches over the road (metres, signed)."""

    def draw(canvas: Canvas) -> None:
        flat = Plane(canvas.camera, x, z)
        _pole(canvas, flat, height, 0.11, metal)
        tone = scaled(metal, canvas.light.shade((0.0, 0.2, -0.9)))
        canvas.fill(flat(capsule((0, height - 0.05), (arm, height + 0.25), 0.09, 0.08)), tone, POLE, z)
        head = [(arm * 0.8, height + 0.12), (arm * 1.35, height + 0.3), (arm * 1.35, height + 0.45)]
        canvas.fill(flat([*head, (arm * 0.8, height + 0.4)]), scaled(tone, 0.8), POLE, z)
        if canvas.light.lamps:
            glow = [(arm * 0.85, height + 0.13), (arm * 1.3, height + 0.29), (arm * 1.3, height + 0.2)]
            canvas.fill(flat(glow), (255, 226, 170), POLE, z, GLOWING)

    return Item(
        z, draw, tuple(ring(x, z, 0.25, 0.2, 6)), ((x - 0.08, z, 0.0), (x + 0.08, z, 0.0), (x, z, height))
    )


def _pole(canvas: Canvas, flat: Plane, height: float, radius: float, metal: Color) -> None:
    radius = max(radius, 0.0042 * flat.z / canvas.camera.focal)
    tone = scaled(
        metal, canvas.light.shade((canvas.light.sun[0], 0.2, -0.7), canvas.shadow_at(flat.x, flat.z) * 0.6)
    )
    canvas.fill(flat(box(-radius * 1.5, 0, radius * 1.5, 0.6)), scaled(tone, 0.85), POLE, flat.z)
    canvas.fill(flat(box(-radius, 0, radius, height)), tone, POLE, flat.z)
    sign = 1 if canvas.light.sun[0] < 0 else -1
    canvas.fill(
        flat(box(min(0, sign * radius), 0, max(0, sign * radius), height)), scaled(tone, 0.7), POLE, flat.z
    )


def traffic_light_item(x: float, z: float, state: int, arm: float, metal: Color) -> Item:
    """Plan a traffic light; `state` 0 red, 1 amber, 2 green; `arm` metres over the road, 0 for none."""

    def draw(canvas: Canvas) -> None:
        flat = Plane(canvas.camera, x, z)
        _pole(canvas, flat, 5.6 if arm else 2.9, 0.11, metal)
        heads = [(0.0, 2.3)]
        if arm:
            tone = scaled(metal, canvas.light.shade((0.0, 0.4, -0.9)))
            canvas.fill(flat(capsule((0, 5.5), (arm, 5.7), 0.11, 0.09)), tone, POLE, z)
            heads.append((arm, 5.0))
        for a, y in heads:
            _signal(canvas, flat, a, y, state)

    return Item(z, draw, tuple(ring(x, z, 0.3, 0.25, 6)), ((x - 0.1, z, 0.0), (x + 0.1, z, 0.0), (x, z, 3.3)))


def _signal(canvas: Canvas, flat: Plane, a: float, y: float, state: int) -> None:
    body = scaled((46, 48, 48), canvas.light.shade((0.0, 0.2, -0.9)))
    canvas.fill(flat(box(a - 0.34, y - 0.08, a + 0.34, y + 1.23)), body, TRAFFIC_LIGHT, flat.z)
    canvas.fill(flat(box(a - 0.22, y, a + 0.22, y + 1.15)), scaled(body, 0.6), TRAFFIC_LIGHT, flat.z)
    bright = [(255, 66, 48), (255, 190, 60), (70, 240, 170)]
    for lamp, color in enumerate(bright):
        lens = ring(a, y + 0.95 - 0.37 * lamp, 0.145, 0.145, 14)
        if lamp == state:
            canvas.fill(flat(lens), color, TRAFFIC_LIGHT, flat.z, GLOWING)
            core = ring(a, y + 0.97 - 0.37 * lamp, 0.08, 0.08, 10)
            canvas.fill(flat(core), mixed(color, (255, 255, 240), 0.6), TRAFFIC_LIGHT, flat.z, GLOWING)
        else:
            canvas.fill(flat(lens), scaled(color, 0.2), TRAFFIC_LIGHT, flat.z)


SIGN_GROUPS = (
    ("limit",), ("warning",), ("parking",), ("crossing",), ("priority",), ("yield",), ("stop",),
    ("no entry",), ("arrow",), ("warning", "limit"), ("priority", "limit"), ("crossing", "warning"),
    ("parking", "arrow"), ("limit", "crossing"),
)  # fmt: skip
RED, BLUE, WHITE, BLACK, YELLOW = (186, 32, 36), (28, 78, 150), (236, 234, 228), (34, 34, 36), (232, 186, 44)


def sign_item(x: float, z: float, kinds: Sequence[str], metal: Color) -> Item:
    """Plan a pole with one or two traffic signs, the first on top."""

    def draw(canvas: Canvas) -> None:
        flat = Plane(canvas.camera, x, z)
        top = 2.35 + 0.85 * len(kinds)
        _pole(canvas, flat, top, 0.06, metal)
        factor = canvas.light.shade((0.0, 0.2, -0.95), canvas.shadow_at(x, z) * 0.5)
        for number, kind in enumerate(kinds):
            for outline, color in _sign(kind, top - 0.42 - 0.85 * number):
                canvas.fill(flat(outline), scaled(color, factor), TRAFFIC_SIGN, z)

    return Item(
        z, draw, tuple(ring(x, z, 0.2, 0.15, 6)), ((x - 0.06, z, 0.0), (x + 0.06, z, 0.0), (x, z, 2.8))
    )


def _sign(kind: str, y: float) -> list[Part]:
    """Give the parts of a sign around the height y, from the back to the front."""
    r = 0.42
    up = [(0.0, y + r * 1.05), (-r * 1.1, y - r * 0.8), (r * 1.1, y - r * 0.8)]
    small = [(0.0, y + r * 0.62), (-r * 0.72, y - r * 0.56), (r * 0.72, y - r * 0.56)]
    if kind == "limit":
        digits = [(box(-0.2, y - 0.16, -0.04, y + 0.17), BLACK), (box(0.05, y - 0.16, 0.21, y + 0.17), BLACK)]
        holes = [(box(-0.2, y - 0.08, -0.1, y + 0.08), WHITE), (box(0.1, y - 0.08, 0.16, y + 0.09), WHITE)]
        return [(ring(0, y, r, r, 20), RED), (ring(0, y, r * 0.76, r * 0.76, 20), WHITE), *digits, *holes]
    if kind == "no entry":
        return [(ring(0, y, r, r, 20), RED), (box(-r * 0.7, y - r * 0.18, r * 0.7, y + r * 0.18), WHITE)]
    if kind == "warning":
        bar = (box(-0.045, y - 0.12, 0.045, y + 0.15), BLACK)
        return [(up, RED), (small, WHITE), bar, (box(-0.045, y - 0.21, 0.045, y - 0.15), BLACK)]
    if kind == "yield":
        return [([(a, 2 * y - b) for a, b in up], RED), ([(a, 2 * y - b) for a, b in small], WHITE)]
    if kind == "priority":
        return [(ring(0, y, r * 1.1, r * 1.1, 4), WHITE), (ring(0, y, r * 0.8, r * 0.8, 4), YELLOW)]
    if kind == "stop":
        letters = [(box(-0.28 + k * 0.15, y - 0.1, -0.17 + k * 0.15, y + 0.1), WHITE) for k in range(4)]
        octagon = ring(0, y, r * 1.05, r * 1.05, 8, pi / 8)
        return [(octagon, WHITE), (ring(0, y, r * 0.97, r * 0.97, 8, pi / 8), RED), *letters]
    if kind == "arrow":
        head = [(0.0, y + 0.3), (-0.2, y + 0.05), (0.2, y + 0.05)]
        return [(ring(0, y, r, r, 20), WHITE), (ring(0, y, r * 0.93, r * 0.93, 20), BLUE), (head, WHITE),
                (box(-0.06, y - 0.27, 0.06, y + 0.06), WHITE)]  # fmt: skip
    panel = [(box(-r, y - r, r, y + r), WHITE), (box(-r * 0.92, y - r * 0.92, r * 0.92, y + r * 0.92), BLUE)]
    if kind == "parking":
        bowl = [(ring(0.03, y + 0.1, 0.17, 0.15, 14), WHITE), (ring(0.03, y + 0.1, 0.08, 0.07, 12), BLUE)]
        return [*panel, *bowl, (box(-0.14, y - 0.27, -0.05, y + 0.25), WHITE)]
    walker = [
        (ring(0.02, y + 0.1, 0.05, 0.05, 10), BLACK),
        (capsule((0.02, y + 0.04), (-0.02, y - 0.08), 0.05, 0.04), BLACK),
    ]
    white = [(0.0, y + 0.33), (-0.33, y - 0.25), (0.33, y - 0.25)]
    legs = [(capsule((-0.02, y - 0.08), (a, y - 0.21), 0.03, 0.02), BLACK) for a in (-0.1, 0.07)]
    return [*panel, (white, WHITE), *walker, *legs]


@dataclass(frozen=True)
class Body:
    """The shape of a vehicle: its profile in metres (along, up), from the rear over the roof to the front."""

    profile: tuple[Point, ...]
    glass: tuple[int, ...]  # the steps of the profile that are windows
    windows: tuple[tuple[Point, ...], ...]
    half_width: float
    belt: float
    roof_share: float
    wheels: tuple[float, ...]
    wheel: float
    label: int

    @property
    def ends(self) -> tuple[float, float]:
        """The rear and front ends along the vehicle."""
        return min(a for a, _ in self.profile), max(a for a, _ in self.profile)

    @cached_property
    def top(self) -> float:
        """Height of the roof."""
        return max(y for _, y in self.profile)

    def half(self, y: float) -> float:
        """Half the width at the height y."""
        share = max(0.0, (y - self.belt) / (self.top - self.belt))
        return self.half_width * (1 - (1 - self.roof_share) * share)


def _hatchback(k: float) -> Body:
    line = ((-1.9, 0.3), (-1.96, 0.6), (-1.9, 1.0 * k), (-1.5, 1.46 * k), (-0.6, 1.52 * k), (0.1, 1.49 * k),
            (0.95, 1.02 * k), (1.8, 0.86 * k), (1.98, 0.6), (1.94, 0.28))  # fmt: skip
    back = ((-1.6, 1.05 * k), (-1.34, 1.4 * k), (-0.5, 1.44 * k), (-0.5, 1.03 * k))
    front = ((-0.42, 1.03 * k), (-0.42, 1.44 * k), (0.08, 1.41 * k), (0.76, 1.03 * k))
    return Body(line, (2, 5), (back, front), 0.9, 1.0 * k, 0.78, (-1.22, 1.25), 0.34, CAR)


BODIES = {
    "sedan": Body(
        ((-2.2, 0.3), (-2.24, 0.6), (-2.18, 0.98), (-1.62, 1.03), (-0.98, 1.42), (0.1, 1.46), (0.95, 1.0),
         (2.05, 0.82), (2.22, 0.6), (2.18, 0.28)), (3, 5),
        (((-1.42, 1.04), (-0.9, 1.36), (-0.42, 1.39), (-0.42, 1.0)),
         ((-0.34, 1.0), (-0.34, 1.39), (0.1, 1.38), (0.74, 1.0))),
        0.9, 0.98, 0.74, (-1.35, 1.35), 0.33, CAR,
    ),
    "hatch": _hatchback(1.0),
    "suv": _hatchback(1.14),
    "van": Body(
        ((-2.4, 0.35), (-2.45, 1.15), (-2.4, 2.05), (0.9, 2.1), (1.6, 1.3), (2.3, 1.08), (2.45, 0.7),
         (2.4, 0.3)),
        (1, 3), (((0.3, 1.22), (0.3, 1.85), (0.82, 1.85), (1.32, 1.22)),),
        0.98, 1.15, 0.88, (-1.5, 1.5), 0.35, CAR,
    ),
    "bus": Body(
        ((-5.5, 0.4), (-5.5, 1.35), (-5.45, 2.6), (-5.3, 3.05), (5.4, 3.05), (5.5, 2.7), (5.55, 1.1),
         (5.5, 0.35)),
        (1, 5),
        tuple(((a, 1.35), (a, 2.55), (a + 1.5, 2.55), (a + 1.5, 1.35))
              for a in (-5.1, -3.45, -1.8, -0.15, 1.5, 3.15)),
        1.25, 1.2, 0.95, (-3.2, 3.4), 0.5, BUS,
    ),
    "truck": Body(
        ((-4.2, 0.75), (-4.2, 3.4), (1.7, 3.4), (1.75, 2.9), (2.9, 2.75), (3.4, 1.65), (3.5, 0.9),
         (3.45, 0.4)),
        (4,), (((2.2, 1.6), (2.2, 2.45), (2.8, 2.45), (3.15, 1.6)),),
        1.22, 3.0, 0.98, (-2.9, -1.9, 2.4), 0.48, TRUCK,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Vehicle:
    """A vehicle on the ground at (x, z); `yaw` 0 drives away from the camera, pi comes towards it."""

    body: Body
    x: float
    z: float
    yaw: float
    paint: Color
    braking: bool
    seed: int

    def at(self, along: float, across: float, y: float) -> Point3:
        """Turn the vehicle's own metres into the scene's."""
        c, s = cos(self.yaw), sin(self.yaw)
        return self.x + across * c + along * s, y, self.z + along * c - across * s


def vehicle_item(car: Vehicle) -> Item:
    """Plan a car, bus or truck."""
    rear, front = car.body.ends
    w = car.body.half_width
    corners = [car.at(a, b, 0.0) for a in (rear, front) for b in (-w, w)]
    cast = [
        (*(p[0], p[2]), y)
        for a, y in car.body.profile
        for b in (-1, 1)
        for p in [car.at(a, b * car.body.half(y), y)]
    ]
    foot = [car.at(a, b, 0.0) for a in (rear - 0.1, front + 0.1) for b in (-w - 0.12, w + 0.12)]
    z = min(corner[2] for corner in corners)
    return Item(
        z, lambda canvas: _vehicle(canvas, car), tuple(hull([(p[0], p[2]) for p in foot])), tuple(cast)
    )


def _vehicle(canvas: Canvas, car: Vehicle) -> None:
    if not canvas.sees(car.x, car.z, car.body.ends[1] + 0.3):
        return
    body, shadow = car.body, canvas.shadow_at(car.x, car.z) * 0.8
    _underside(canvas, car)
    parts = [(_cross_face(car, step), step) for step in range(len(body.profile) - 1)]
    order = sorted(parts, key=lambda part: -sum(p[2] for p in part[0]))
    visible = [
        (points, step) for points, step in order if signed_area(canvas.camera.outline(points) or [(0, 0)]) < 0
    ]
    sides = [side for side in (-1, 1) if _side_visible(canvas, car, side)]
    for side in sides:
        _vehicle_side(canvas, car, side, shadow)
    for points, step in visible:
        _vehicle_face(canvas, car, points, step, shadow)


def _underside(canvas: Canvas, car: Vehicle) -> None:
    """Paint the tyres and the dark that is seen under the bumpers."""
    body = car.body
    (rear, front), w, label = body.ends, body.half_width, body.label
    for b in (-w * 0.82, w * 0.82):  # tyres seen under the bumper
        for a in body.wheels:
            tyre = [
                car.at(a - body.wheel * 0.7, b + d, y) for d, y in box(-0.12, 0.0, 0.12, body.wheel * 1.5)
            ]
            back = [
                car.at(a + body.wheel * 0.7, b + d, y) for d, y in box(-0.12, 0.0, 0.12, body.wheel * 1.5)
            ]
            canvas.face(back, (34, 34, 36), label)
            canvas.face(tyre, (34, 34, 36), label)
    under = [
        [car.at(e, b, y) for b, y in box(-w * 0.9, 0.2, w * 0.9, 0.6)] for e in (front - 0.2, rear + 0.2)
    ]
    for face in under:
        canvas.face(face, (24, 24, 26), label)


def _cross_face(car: Vehicle, step: int) -> list[Point3]:
    (a0, y0), (a1, y1) = car.body.profile[step], car.body.profile[step + 1]
    h0, h1 = car.body.half(y0), car.body.half(y1)
    return [car.at(a0, -h0, y0), car.at(a0, h0, y0), car.at(a1, h1, y1), car.at(a1, -h1, y1)]


def _side_visible(canvas: Canvas, car: Vehicle, side: int) -> bool:
    rear, front = car.body.ends
    w = car.body.half_width * side
    quad = [car.at(rear, w, 0.4), car.at(front, w, 0.4), car.at(front, w, 0.9), car.at(rear, w, 0.9)]
    return signed_area(canvas.camera.outline(quad) or [(0, 0)]) * side < 0


def _between(face: Sequence[Point3], a0: float, b0: float, a1: float, b1: float) -> list[Point3]:
    """Cut a rectangle out of a four-cornered face, in parts of its width and height."""

    def inside(a: float, b: float) -> Point3:
        low, high = mixed(face[0], face[1], a), mixed(face[3], face[2], a)
        return mixed(low, high, b)

    return [inside(a0, b0), inside(a1, b0), inside(a1, b1), inside(a0, b1)]


def _pane_colors(canvas: Canvas) -> tuple[Color, Color]:
    sky = scaled(mixed(canvas.light.sky_low, canvas.light.sky_top, 0.4), 255)
    return mixed((30, 36, 42), sky, 0.34), mixed((24, 28, 33), sky, 0.10)


def _vehicle_face(canvas: Canvas, car: Vehicle, face: list[Point3], step: int, shadow: float) -> None:
    body, label = car.body, car.body.label
    canvas.face(face, car.paint, label, PLAIN, shadow)
    upper, lower = _pane_colors(canvas)
    if step in body.glass:
        forward = body.profile[step][0] > 0
        ends = (0.9, 0.1) if forward else (0.1, 0.9)
        canvas.face(_between(face, 0.06, min(ends), 0.94, max(ends)), lower, label, GLOWING)
        top = (0.08, 0.14, 0.92, 0.5) if forward else (0.08, 0.5, 0.92, 0.86)
        canvas.face(_between(face, *top), upper, label, GLOWING)
    last = len(body.profile) - 2
    lamps = canvas.light.lamps
    if label == TRUCK and step == 0:
        _truck_doors(canvas, car, face, shadow)
        return
    if step == 0:
        canvas.face(_between(face, 0.0, 0.0, 1.0, 0.5), scaled(car.paint, 0.45), label, PLAIN, shadow)
    tail = 1 if body.label == CAR and 1 not in body.glass else 0
    if step == tail:
        canvas.face(_between(face, 0.02, 0.86, 0.98, 0.98), scaled(car.paint, 1.12), label, PLAIN, shadow)
        _tail(canvas, car, face, lamps)
    if step == last - (1 if body.label == CAR else 0) or (body.label != CAR and step == last):
        _front(canvas, car, face, lamps)
    if step == last:
        canvas.face(_between(face, 0.15, 0.15, 0.85, 0.85), scaled(car.paint, 0.3), label, PLAIN, shadow)
        canvas.face(_between(face, 0.36, 0.4, 0.64, 0.75), (218, 218, 210), label, PLAIN, shadow)


def _truck_doors(canvas: Canvas, car: Vehicle, face: list[Point3], shadow: float) -> None:
    panel = mixed(car.paint, (226, 224, 218), 0.85)
    parts = [
        ((0.0, 0.0, 1.0, 1.0), panel),
        ((0.0, 0.0, 1.0, 0.09), (58, 58, 60)),
        ((0.0, 0.95, 1.0, 1.0), scaled(panel, 0.8)),
        ((0.495, 0.09, 0.505, 0.95), scaled(panel, 0.55)),
        ((0.40, 0.1, 0.42, 0.94), scaled(panel, 0.75)),
        ((0.58, 0.1, 0.60, 0.94), scaled(panel, 0.75)),
        ((0.38, 0.01, 0.62, 0.075), (222, 222, 214)),
    ]
    for place, color in parts:
        canvas.face(_between(face, *place), color, TRUCK, PLAIN, shadow)
    bright = car.braking or canvas.light.lamps
    for a in (0.03, 0.85):
        lamp = (255, 50, 40) if bright else (150, 24, 26)
        canvas.face(_between(face, a, 0.015, a + 0.12, 0.07), lamp, TRUCK, GLOWING if bright else PLAIN)


def _tail(canvas: Canvas, car: Vehicle, face: list[Point3], lamps: bool) -> None:
    label = car.body.label
    red = (255, 50, 40) if car.braking or lamps else (150, 24, 26)
    material = GLOWING if car.braking or lamps else PLAIN
    low, high = (0.35, 0.85) if label == CAR and len(car.body.profile) > 8 else (0.55, 0.8)
    for a in (0.03, 0.81):
        canvas.face(_between(face, a, low, a + 0.16, high), red, label, material)
        canvas.face(_between(face, a + 0.03, low, a + 0.13, low + 0.12), (225, 190, 170), label)
    canvas.face(_between(face, 0.36, 0.12, 0.64, 0.42), (222, 222, 214), label)
    canvas.face(_between(face, 0.4, 0.2, 0.6, 0.34), (70, 70, 76), label)


def _front(canvas: Canvas, car: Vehicle, face: list[Point3], lamps: bool) -> None:
    label = car.body.label
    canvas.face(_between(face, 0.28, 0.2, 0.72, 0.8), (40, 42, 46), label)
    for a in (0.04, 0.78):
        color = (255, 246, 220) if lamps else (206, 212, 216)
        canvas.face(_between(face, a, 0.2, a + 0.18, 0.75), color, label, GLOWING if lamps else PLAIN)


def _vehicle_side(canvas: Canvas, car: Vehicle, side: int, shadow: float) -> None:
    body, label = car.body, car.body.label

    def sheet(points: Iterable[Point], out: float = 0.0) -> list[Point3]:
        return [car.at(a, side * (body.half(y) + out), y) for a, y in points]

    rear, front = body.ends
    normal_face = sheet([(rear, 0.4), (front, 0.4), (front, 0.9)])
    factor = canvas.light.shade(facing_normal(normal_face), shadow)
    z = max(NEAR_M, min(point[2] for point in normal_face))
    upper, lower = _pane_colors(canvas)

    def part(points: Iterable[Point], color: Color, lit: bool = True) -> None:
        canvas.fill(
            canvas.camera.outline(sheet(points, 0.01)), scaled(color, factor) if lit else color, label, z
        )

    canvas.fill(canvas.camera.outline(sheet(body.profile)), scaled(car.paint, factor), label, z)
    part(box(rear + 0.1, 0.26, front - 0.1, 0.42), scaled(car.paint, 0.4))
    part(box(rear + 0.06, 0.42, front - 0.08, 0.6), scaled(car.paint, 0.84))
    if body.label == CAR:  # light on the shoulder, a door, a handle
        part(box(rear + 0.1, 0.80, front - 0.3, 0.84), mixed(scaled(car.paint, 1.1), (200, 205, 210), 0.12))
    if body.label == TRUCK:
        part(box(-4.1, 0.95, 1.6, 3.3), mixed(car.paint, (226, 224, 218), 0.85))
        part(box(-3.6, 1.9, 1.0, 2.4), scaled(car.paint, 0.9))
    for pane in body.windows:
        part(pane, lower, lit=False)
        low, high = min(y for _, y in pane), max(y for _, y in pane)
        part([(a, max(y, low + 0.55 * (high - low))) for a, y in pane], upper, lit=False)
    for a in body.wheels:
        part(ring(a, body.wheel, body.wheel * 1.18, body.wheel * 1.2, 16), (22, 22, 24))
        part(ring(a, body.wheel, body.wheel, body.wheel, 18), (38, 38, 40))
        part(ring(a, body.wheel, body.wheel * 0.62, body.wheel * 0.62, 12), (150, 152, 156))
        part(ring(a, body.wheel, body.wheel * 0.2, body.wheel * 0.2, 8), (80, 82, 86))
    if body.label == CAR:
        part(box(-0.42, 0.45, -0.38, body.belt), scaled(car.paint, 0.6))
        part(box(-0.3, body.belt - 0.12, -0.1, body.belt - 0.07), scaled(car.paint, 0.55))


@dataclass(frozen=True)
class Look:
    """How a person looks: colours, height in metres, and the way they walk."""

    skin: Color
    hair: Color
    top: Color
    trousers: Color
    shoes: Color
    height: float
    stride: float
    skirt: bool
    bag: Color | None
    umbrella: Color | None
    from_side: bool
    facing: bool


def random_look(rng: np.random.Generator, wet: bool) -> Look:
    """Choose a person's clothes."""
    tops = [
        (52, 62, 84), (120, 48, 46), (66, 84, 66), (150, 146, 136), (42, 42, 46), (176, 140, 84),
        (84, 108, 136), (196, 192, 184), (104, 76, 96), (158, 92, 58),
    ]  # fmt: skip
    legs = [(46, 54, 76), (40, 40, 44), (92, 84, 72), (112, 104, 90), (60, 60, 66), (70, 82, 108)]
    return Look(
        skin=varied(rng, pick(rng, [(222, 180, 150), (198, 150, 120), (150, 104, 78), (98, 68, 52)]), 0.04),
        hair=varied(
            rng, pick(rng, [(48, 36, 28), (84, 62, 42), (150, 120, 76), (30, 28, 28), (130, 126, 122)])
        ),
        top=varied(rng, pick(rng, tops)),
        trousers=varied(rng, pick(rng, legs)),
        shoes=pick(rng, [(40, 36, 34), (180, 178, 172), (88, 62, 44)]),
        height=float(rng.choice([1.3, 1.62, 1.68, 1.75, 1.8, 1.86])),
        stride=float(rng.uniform(0.25, 1.0)),
        skirt=bool(rng.random() < 0.2),
        bag=varied(rng, pick(rng, tops)) if rng.random() < 0.4 else None,
        umbrella=varied(rng, pick(rng, [*tops, (146, 40, 48)])) if wet and rng.random() < 0.65 else None,
        from_side=bool(rng.random() < 0.45),
        facing=bool(rng.random() < 0.5),
    )


def person_item(x: float, z: float, look: Look) -> Item:
    """Plan somebody on foot."""

    def draw(canvas: Canvas) -> None:
        flat = Plane(canvas.camera, x, z)
        if not canvas.sees(x, z, 1.0):
            return
        factor = canvas.light.shade(
            (canvas.light.sun[0] * 0.5, 0.3, -0.85), canvas.shadow_at(x, z - 0.05) * 0.8
        )
        for outline, color in _person(look):
            canvas.fill(flat(outline), scaled(color, factor), PERSON, z)

    top = look.height
    cast = [
        (x - 0.2, z, 0.0),
        (x + 0.2, z, 0.0),
        (x - 0.26, z, top * 0.8),
        (x + 0.26, z, top * 0.8),
        (x, z, top),
    ]
    return Item(z, draw, tuple(ring(x, z, 0.34, 0.24, 8)), tuple(cast))


def _person(look: Look) -> list[Part]:
    """Give the parts of a walking person, standing at 0, from the back to the front."""
    h = look.height / 1.75
    step = 0.32 * look.stride if look.from_side else 0.05
    hip, neck = 0.9 * h, 1.46 * h
    wide = 0.15 * h if look.from_side else 0.215 * h
    parts: list[Part] = []
    for sign, tone in ((-1, 0.75), (1, 1.0)):
        stand = sign * (0.0 if look.from_side else 0.09 * h)
        foot = stand + sign * step * h
        knee = (stand + sign * step * 0.55 * h + (0.05 if look.from_side else 0), 0.5 * h)
        lift = 0.05 if sign < 0 and look.stride > 0.5 else 0.0
        cloth = look.skin if look.skirt else look.trousers
        parts += [
            (capsule((stand * 0.9, hip), knee, 0.105 * h, 0.085 * h), scaled(look.trousers, tone)),
            (capsule(knee, (foot, 0.1 * h + lift), 0.082 * h, 0.06 * h), scaled(cloth, tone)),
            (
                capsule(
                    (foot, 0.05 + lift), (foot + (0.12 if look.from_side else 0), 0.045 + lift), 0.055, 0.05
                ),
                scaled(look.shoes, tone),
            ),
        ]
    swing = 0.24 * look.stride if look.from_side else 0.0
    arm = wide + 0.035 * h

    def arm_parts(sign: int, tone: float) -> list[Part]:
        shoulder = (0.0 if look.from_side else sign * wide * 0.98, neck - 0.06 * h)
        hand = (-sign * swing * h if look.from_side else sign * (arm + 0.06), hip - 0.04 * h)
        elbow = ((shoulder[0] + hand[0]) / 2 + (0.0 if look.from_side else sign * 0.05), (neck + hip) / 2)
        cloth = scaled(look.top, tone)
        return [
            (ring(hand[0], hand[1], 0.05 * h, 0.06 * h, 8), scaled(look.skin, tone)),
            (capsule(shoulder, elbow, 0.072 * h, 0.06 * h), cloth),
            (capsule(elbow, hand, 0.06 * h, 0.048 * h), cloth),
        ]

    parts += arm_parts(-1, 0.7)
    if look.bag and not look.facing:
        parts.append(
            (
                box(-wide * 0.75 - (0.12 if look.from_side else 0), hip + 0.12, wide * 0.75, neck),
                scaled(look.bag, 0.8),
            )
        )
    half = [(0.8, hip - 0.1 * h), (0.82, hip + 0.2 * h), (1.0, neck - 0.1 * h), (0.7, neck)]
    torso = [(-wide * a, y) for a, y in reversed(half)] + [(wide * a, y) for a, y in half]
    if look.skirt:
        hem = wide * 1.25
        parts.append(
            (
                [(-hem, hip - 0.4 * h), (hem, hip - 0.4 * h), (wide * 0.8, hip), (-wide * 0.8, hip)],
                look.trousers,
            )
        )
    parts += [
        (torso, look.top),
        ([(0.1 * wide, hip - 0.1 * h), *torso[4:], (0.25 * wide, neck)], scaled(look.top, 0.86)),
    ]
    if look.bag and not look.facing and not look.from_side:
        parts.append((box(-wide * 0.6, hip + 0.14, wide * 0.6, neck - 0.05), look.bag))
    parts += arm_parts(1, 0.92)
    parts += _head(look, neck, h)
    if look.umbrella:
        top = neck + 0.55 * h
        dome = [(a, y) for a, y in ring(0.12, top, 0.62, 0.3, 22) if y >= top - 0.01]
        parts += [(box(0.13, neck - 0.2, 0.17, top), (70, 70, 74)), (dome, look.umbrella)]
        parts.append(([(0.12, top + 0.3), (0.3, top), (0.74, top)], scaled(look.umbrella, 0.8)))
    return parts


def _head(look: Look, neck: float, h: float) -> list[Part]:
    y = neck + 0.165 * h
    back = -0.025 if look.from_side else 0.0
    parts = [(capsule((0, neck - 0.02), (0, neck + 0.08), 0.05 * h, 0.05 * h), scaled(look.skin, 0.85))]
    parts.append((ring(back, y + 0.02, 0.098 * h, 0.13 * h, 14), look.hair))
    if look.facing or look.from_side:
        parts.append(
            (ring(0.025 if look.from_side else 0.0, y - 0.02 * h, 0.08 * h, 0.105 * h, 14), look.skin)
        )
        parts.append(
            (
                capsule((back - 0.05, y + 0.08 * h), (back + 0.06, y + 0.08 * h), 0.05 * h, 0.045 * h),
                look.hair,
            )
        )
    return parts


def bicycle_item(
    x: float, z: float, yaw: float, frame: Color, look: Look | None, motor: bool = False
) -> Item:
    """Plan a bicycle or motorcycle at (x, z), with a rider if `look` is given; `yaw` 0 drives away."""
    label = MOTORCYCLE if motor else BICYCLE

    def draw(canvas: Canvas) -> None:
        if not canvas.sees(x, z, 1.2):
            return
        lengthwise = Plane(canvas.camera, x, z, sin(yaw), cos(yaw))
        facing_us = Plane(canvas.camera, x, z - 0.1)
        across = abs(sin(yaw)) > 0.5
        factor = canvas.light.shade((canvas.light.sun[0] * 0.4, 0.3, -0.85), canvas.shadow_at(x, z) * 0.8)
        if not across:
            _cycle_from_behind(canvas, facing_us, frame, label, factor, motor, cos(yaw) < 0)
        else:
            _cycle_from_side(canvas, lengthwise, frame, label, factor, motor)
        if look:
            parts = _rider_side(look, motor) if across else _rider_back(look, motor, cos(yaw) < 0)
            for outline, color in parts:
                canvas.fill((lengthwise if across else facing_us)(outline), scaled(color, factor), RIDER, z)

    reach = 0.9 * abs(sin(yaw)) + 0.2
    top = 1.7 if look else 1.0
    foot = tuple((x + a, z + b) for a, b in box(-reach, -0.2, reach, 0.2))
    return Item(
        z - 0.05,
        draw,
        foot,
        ((x - reach * 0.7, z, 0.0), (x + reach * 0.7, z, 0.0), (x - 0.2, z, top), (x + 0.2, z, top)),
    )


def _cycle_from_side(
    canvas: Canvas, flat: Plane, frame: Color, label: int, factor: Color, motor: bool
) -> None:
    z = flat.z
    radius, base = (0.32, 0.68) if motor else (0.35, 0.54)
    dark = scaled((36, 36, 38), factor)
    for a in (-base, base):
        canvas.fill(flat(ring(a, radius, radius, radius, 20)), dark, label, z)
        inner = ring(a, radius, radius * 0.78, radius * 0.78, 18)
        canvas.fill(flat(inner), scaled((118, 116, 112) if not motor else (90, 90, 92), factor), label, z)
        for turn in range(0 if motor else 4):
            spoke = capsule(
                (a, radius), ring(a, radius, radius * 0.78, radius * 0.78, 8)[turn * 2 + 1], 0.012, 0.012
            )
            canvas.fill(flat(spoke), scaled((170, 170, 168), factor), label, z)
        canvas.fill(flat(ring(a, radius, radius * 0.2, radius * 0.2, 8)), dark, label, z)
    tone = scaled(frame, factor)
    if motor:
        shape = [
            (-0.85, 0.72),
            (-0.5, 0.82),
            (0.0, 0.76),
            (0.2, 0.95),
            (0.5, 0.92),
            (0.55, 0.6),
            (0.2, 0.35),
            (-0.3, 0.35),
        ]
        canvas.fill(flat(shape), tone, label, z)
        canvas.fill(flat([(-0.9, 0.74), (-0.45, 0.9), (0.05, 0.82), (0.0, 0.72)]), dark, label, z)
        canvas.fill(flat(ring(-0.02, 0.42, 0.2, 0.16, 10)), scaled((112, 112, 116), factor), label, z)
        bars = [((base, radius), (0.42, 1.0), 0.05), ((0.42, 1.0), (0.25, 1.1), 0.03)]
    else:
        bars = [
            ((-0.54, 0.35), (-0.05, 0.3), 0.028), ((-0.05, 0.3), (-0.2, 0.92), 0.03),
            ((-0.17, 0.78), (0.38, 0.84), 0.03), ((-0.05, 0.3), (0.4, 0.78), 0.03),
            ((0.54, 0.35), (0.36, 1.02), 0.028), ((-0.54, 0.35), (-0.18, 0.76), 0.024),
            ((0.36, 1.02), (0.22, 1.05), 0.026), ((-0.3, 0.94), (-0.08, 0.95), 0.05),
        ]  # fmt: skip
    for start, end, width in bars:
        canvas.fill(flat(capsule(start, end, width, width)), tone, label, z)


def _cycle_from_behind(
    canvas: Canvas, flat: Plane, frame: Color, label: int, factor: Color, motor: bool, front: bool
) -> None:
    wide = 0.085 if motor else 0.045
    z, dark = flat.z, scaled((34, 34, 36), factor)
    canvas.fill(flat(ring(0, 0.35, wide, 0.35, 14)), dark, label, z)
    canvas.fill(flat(capsule((0, 0.5), (0, 0.95), wide * 1.1, wide)), scaled(frame, factor), label, z)
    if motor:
        canvas.fill(
            flat([(-0.2, 0.45), (0.2, 0.45), (0.16, 0.85), (-0.16, 0.85)]), scaled(frame, factor), label, z
        )
    reach = 0.36 if motor else 0.29
    canvas.fill(flat(capsule((-reach, 1.03), (reach, 1.03), 0.028, 0.028)), dark, label, z)
    lamp = ring(0, 0.78, 0.07, 0.07, 10)
    lit = canvas.light.lamps
    color = (255, 244, 214) if front else (230, 40, 34)
    canvas.fill(flat(lamp), color if lit else scaled(color, 0.7), label, z, GLOWING if lit else PLAIN)


def _rider_side(look: Look, motor: bool) -> list[Part]:
    seat, crank = ((-0.25, 0.85), (0.05, 0.4)) if motor else ((-0.22, 1.0), (-0.05, 0.3))
    shoulder, hands = (seat[0] + 0.26, seat[1] + 0.52), ((0.3, 1.1) if motor else (0.26, 1.06))
    parts: list[Part] = []
    for drop, tone in ((0.16, 0.75), (-0.1, 1.0)):
        pedal = (crank[0] + 0.05, crank[1] + drop)
        knee = (seat[0] + 0.42, (seat[1] + pedal[1]) / 2 + 0.14)
        toe = (pedal[0] + 0.12, pedal[1])
        parts += _leg(look, (seat, knee, pedal, toe), tone)
    elbow = ((shoulder[0] + hands[0]) / 2 + 0.02, (shoulder[1] + hands[1]) / 2 - 0.08)
    sleeve, head = scaled(look.top, 0.85), (shoulder[0] + 0.1, shoulder[1] + 0.22)
    brim = head[1] + (-0.06 if motor else 0.02)
    helmet = [(a, y) for a, y in ring(head[0] - 0.01, head[1] + 0.02, 0.13, 0.14, 18) if y >= brim]
    return [
        *parts,
        (capsule(seat, shoulder, 0.16, 0.16), look.top),
        (capsule(shoulder, elbow, 0.075, 0.06), sleeve),
        (capsule(elbow, hands, 0.06, 0.05), sleeve),
        (ring(head[0], head[1], 0.1, 0.125, 14), look.skin),
        (helmet, scaled(look.top, 1.2) if motor else look.hair),
    ]


def _leg(look: Look, joints: tuple[Point, Point, Point, Point], tone: float) -> list[Part]:
    hip, knee, ankle, toe = joints
    return [
        (capsule(hip, knee, 0.11, 0.085), scaled(look.trousers, tone)),
        (capsule(knee, ankle, 0.08, 0.058), scaled(look.trousers, tone)),
        (capsule(ankle, toe, 0.055, 0.048), scaled(look.shoes, tone)),
    ]


def _rider_back(look: Look, motor: bool, front: bool) -> list[Part]:
    low = 0.78 if motor else 0.95
    sleeve, head = scaled(look.top, 0.85), low + 0.75
    parts: list[Part] = []
    for sign, drop, tone in ((-1, 0.18, 0.85), (1, 0.0, 1.0)):
        knee = (sign * (0.24 if motor else 0.15), low - 0.3)
        ankle = (sign * (0.2 if motor else 0.11), 0.34 + (0 if motor else drop))
        parts += _leg(look, ((sign * 0.1, low), knee, ankle, (ankle[0], ankle[1] - 0.05)), tone)
        elbow = (sign * 0.33, low + 0.22)
        parts.append((capsule((sign * 0.2, low + 0.5), elbow, 0.075, 0.06), sleeve))
        parts.append((capsule(elbow, (sign * 0.31, 1.06), 0.06, 0.05), sleeve))
    half = [(0.17, low - 0.08), (0.23, low + 0.45), (0.14, low + 0.58)]
    helmet = [(a, y) for a, y in ring(0, head + 0.03, 0.125, 0.135, 18) if y >= head - 0.02]
    return [
        *parts,
        (half + [(-a, y) for a, y in reversed(half)], look.top),
        (box(0.03, low, 0.16, low + 0.5), scaled(look.top, 0.9)),
        (capsule((0, low + 0.5), (0, head - 0.05), 0.06, 0.06), look.skin),
        (ring(0, head, 0.095, 0.12, 14), look.skin if front else look.hair),
        (helmet, scaled(look.top, 1.2) if motor else look.hair),
    ]
