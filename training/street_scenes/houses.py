"""Houses: fronts with windows, shops and balconies, end walls, roofs, and a far row that closes the street."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from street_scenes.canvas import (
    BUILDING,
    FOLIAGE,
    GLOWING,
    MASONRY,
    NEAR_M,
    PLAIN,
    VEGETATION,
    Canvas,
    Front,
    Item,
    Plane,
)
from street_scenes.shapes import Color, Point3, box, mixed, pick, ring, scaled, varied

WALL_COLORS = [
    (205, 190, 165), (190, 160, 130), (168, 96, 76), (214, 206, 192), (182, 178, 170), (198, 172, 118),
    (150, 120, 104), (176, 186, 178), (206, 176, 156), (140, 84, 70), (160, 150, 142), (222, 212, 180),
]  # fmt: skip
ROOF_COLORS = [(142, 74, 56), (120, 66, 52), (86, 84, 88), (70, 72, 80), (104, 84, 72)]
DOOR_COLORS = [(88, 58, 40), (52, 70, 62), (60, 64, 84), (110, 44, 38), (70, 70, 70)]
GOODS_COLORS = [(150, 120, 96), (96, 104, 112), (168, 160, 140), (116, 70, 62)]
SHOP_COLORS = [
    (122, 38, 36), (38, 70, 58), (40, 52, 86), (56, 52, 50), (166, 130, 62), (92, 46, 70), (60, 92, 104),
]  # fmt: skip


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


def building_items(house: Building) -> list[Item]:
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
    return [*items, _house_shadow(house)]


def _house_shadow(house: Building) -> Item:
    back, top = house.front + house.side * 9, house.height + 0.5 * house.roof_height
    ends = (max(1.0, house.z0), house.z1)
    cast = tuple((x, z, y) for x in (house.front, back) for z in ends for y in (0.0, top))
    foot = tuple((x, z) for x in (house.front - house.side * 0.35, back) for z in ends)
    return Item(house.z1 + 0.06, lambda canvas: None, foot, cast)


@dataclass(frozen=True)
class _Bay:
    """One bay while it is painted: `along` goes from 0 to 1, heights and depths are in metres."""

    canvas: Canvas
    house: Building
    front: Front
    rng: np.random.Generator

    def paint(
        self, a0: float, y0: float, a1: float, y1: float, color: Color, out: float = 0.0, material: int = PLAIN
    ) -> None:
        """Paint a rectangle that stands out from the front by so many metres."""
        self.canvas.face(self.front(a0, y0, a1, y1, out), color, BUILDING, material)


def _bay(house: Building, near: float, far: float, number: int) -> Callable[[Canvas], None]:
    def draw(canvas: Canvas) -> None:
        x, side = house.front, house.side
        corners = [(x - side * out, z) for z in (near, far) for out in (0.0, 1.4)]
        if not canvas.sees(*(canvas.camera.project(at, 0.0, z)[0] for at, z in corners)):
            return
        front = Front(x, near, far, side)
        bay = _Bay(canvas, house, front, np.random.default_rng([house.seed, number]))
        bay.paint(0, 0, 1, house.height, house.wall, material=MASONRY)
        _ground_floor(bay)
        for level in range(house.floors):
            _window(bay, house.ground_floor + level * house.floor)
        bay.paint(0, house.ground_floor - 0.12, 1, house.ground_floor + 0.1, house.trim, 0.08)
        bay.paint(0, house.height - 0.4, 1, house.height, house.trim, 0.3)
        bay.paint(0, house.height - 0.62, 1, house.height - 0.4, scaled(house.wall, 0.62), 0.02)

    return draw


def _glass(canvas: Canvas, rng: np.random.Generator, lit: bool) -> tuple[Color, Color, int]:
    """Choose a pane: upper and lower colour, and whether it glows."""
    if lit:
        warm = pick(rng, [(255, 214, 140), (250, 226, 170), (240, 190, 110)])
        return warm, scaled(warm, 0.8), GLOWING
    sky = scaled(mixed(canvas.light.sky_low, canvas.light.sky_top, 0.5), 255)
    dark = scaled((52, 60, 70), 0.6 + 0.7 * float(rng.random()))
    return mixed(dark, sky, 0.32), mixed(dark, sky, 0.10), PLAIN


def _window(bay: _Bay, base: float) -> None:
    house, canvas, rng = bay.house, bay.canvas, bay.rng
    wide, tall, cross = house.window
    lit = bool(rng.random() < canvas.light.lit_windows)
    upper, lower, material = _glass(canvas, rng, lit)
    a0, a1 = 0.5 - wide / 2, 0.5 + wide / 2
    y0 = base + house.floor * (0.92 - tall) * 0.75
    y1 = y0 + house.floor * tall
    metre = canvas.camera.size(1.0, bay.front.near)
    if metre < 0.024:  # too far away to see more than the pane
        bay.paint(a0, y0, a1, y1, mixed(lower, upper, 0.5), material=material)
        return
    bay.paint(a0 - 0.035, y0 - 0.08, a1 + 0.035, y1 + 0.1, house.trim)
    blind = float(rng.random())
    bay.paint(a0, y0, a1, y1, lower, material=material)
    top = (206, 200, 186) if blind > 0.75 and not lit else upper
    bay.paint(a0, y1 - (y1 - y0) * (0.3 + 0.3 * blind), a1, y1, top, material=material)
    if metre > 0.035:
        bay.paint(a0, y1 - 0.12, a1, y1, scaled(lower, 0.5))
        if cross:
            bay.paint(0.49, y0, 0.51, y1, house.trim)
        bay.paint(a0 - 0.05, y0 - 0.2, a1 + 0.05, y0 - 0.06, scaled(house.trim, 1.05), 0.12)
    if house.balconies and rng.random() < 0.6:
        _balcony(bay, base)


def _balcony(bay: _Bay, base: float) -> None:
    house, front = bay.house, bay.front
    inner, outer = front(0.1, base, 0.9, base), front(0.1, base, 0.9, base, 0.9)
    bay.canvas.face([inner[0], inner[1], outer[1], outer[0]], scaled(house.trim, 0.6), BUILDING)
    bay.paint(0.1, base - 0.12, 0.9, base + 0.05, house.trim, 0.9)
    bay.paint(0.1, base + 0.05, 0.9, base + 0.95, scaled(house.base, 0.75), 0.9)
    inner, outer = front(0.1, base, 0.1, base + 0.95), front(0.1, base, 0.1, base + 0.95, 0.9)
    bay.canvas.face([inner[0], outer[0], outer[3], inner[3]], scaled(house.base, 0.7), BUILDING)


def _ground_floor(bay: _Bay) -> None:
    house, canvas, rng = bay.house, bay.canvas, bay.rng
    top = house.ground_floor
    bay.paint(0, 0, 1, top, house.base, material=MASONRY)
    upper, lower, material = _glass(canvas, rng, bool(rng.random() < canvas.light.lit_windows * 1.6))
    if house.shop and rng.random() < 0.85:
        _shop(bay, upper, lower, material)
    elif rng.random() < 0.25:
        door = varied(rng, pick(rng, DOOR_COLORS))
        bay.paint(0.28, 0, 0.72, top * 0.80, house.trim)
        bay.paint(0.33, 0, 0.67, top * 0.76, door)
        bay.paint(0.37, top * 0.58, 0.63, top * 0.73, lower, material=material)
    else:
        bay.paint(0.25, 0.85, 0.75, top * 0.82, house.trim)
        bay.paint(0.29, 0.95, 0.71, top * 0.78, lower, material=material)
        bay.paint(0.29, top * 0.55, 0.71, top * 0.78, upper, material=material)
    bay.paint(0, 0, 1, 0.35, scaled(house.base, 0.7), 0.04)


def _shop(bay: _Bay, upper: Color, lower: Color, material: int) -> None:
    rng, top = bay.rng, bay.house.ground_floor
    board = varied(rng, pick(rng, SHOP_COLORS))
    bay.paint(0.04, 0, 0.96, top * 0.78, scaled(board, 0.6))
    bay.paint(0.08, 0.45, 0.92, top * 0.74, lower, material=material)
    for number in range(4):
        a = 0.12 + 0.2 * number
        goods = scaled(varied(rng, pick(rng, GOODS_COLORS), 0.2), 0.75)
        bay.paint(a, 0.5, a + 0.15, 0.8 + float(rng.random()), goods)
    bay.paint(0.08, top * 0.55, 0.92, top * 0.74, upper, material=material)
    bay.paint(0.49, 0.4, 0.52, top * 0.74, scaled(board, 0.6))
    bay.paint(0.02, top * 0.78, 0.98, top * 0.95, board, 0.1)
    bay.paint(0.25, top * 0.83, 0.75, top * 0.90, (222, 214, 190), 0.11)
    if rng.random() < 0.45:
        _awning(bay, varied(rng, pick(rng, SHOP_COLORS)))


def _awning(bay: _Bay, cloth: Color) -> None:
    top = bay.house.ground_floor
    for number in range(6):
        a0, a1 = 0.04 + number * 0.153, 0.04 + (number + 1) * 0.153
        high = bay.front(a0, top * 0.8, a1, top * 0.8, 0.1)
        low = bay.front(a0, top * 0.6, a1, top * 0.6, 1.3)
        stripe = cloth if number % 2 else mixed(cloth, (225, 218, 205), 0.75)
        bay.canvas.face([low[0], low[1], high[1], high[0]], stripe, BUILDING)
        bay.paint(a0, top * 0.6 - 0.2, a1, top * 0.6, scaled(stripe, 0.85), 1.3)


def _sheet(x0: float, y0: float, x1: float, y1: float, z: float) -> list[Point3]:
    """Give an upright rectangle that faces along the street."""
    return [(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)]


def _end_wall(canvas: Canvas, house: Building) -> None:
    x, z, h, depth = house.front, house.z0, house.height, house.side * 10.0
    if not canvas.sees(*(canvas.camera.project(at, 0.0, z)[0] for at in (x, x + depth))):
        return
    wall = scaled(house.wall, 0.95)
    if house.roof_height > 1:
        peak = (x + depth / 2, h + house.roof_height, z)
        canvas.face([(x, h, z), (x + depth, h, z), peak], wall, BUILDING, MASONRY)
    canvas.face(_sheet(x, 0, x + depth, h, z), wall, BUILDING, MASONRY)
    rng = np.random.default_rng([house.seed, 99])
    inset = 0.1 * house.side
    for level in range(house.floors):
        y = house.ground_floor + level * house.floor + 0.8
        for a in (0.18, 0.46, 0.74):
            _, lower, material = _glass(canvas, rng, bool(rng.random() < canvas.light.lit_windows))
            x0, x1 = x + depth * a, x + depth * (a + 0.12)
            canvas.face(_sheet(x0, y - 0.1, x1, y + 1.5, z), house.trim, BUILDING)
            canvas.face(_sheet(x0 + inset, y, x1 - inset, y + 1.4, z), lower, BUILDING, material)


def _roof(canvas: Canvas, house: Building) -> None:
    x, h, z0, z1 = house.front - house.side * 0.3, house.height, max(house.z0, NEAR_M), house.z1
    ridge, top = house.front + house.side * 5.0, h + house.roof_height
    if house.roof_height > 1:
        slope: list[Point3] = [(x, h, z0), (x, h, z1), (ridge, top, z1), (ridge, top, z0)]
        canvas.face(slope, house.roof, BUILDING, MASONRY)
    rng = np.random.default_rng([house.seed, 98])
    chimney = ridge - house.side * 1.5
    for _ in range(2):
        z = float(rng.uniform(z0, z1))
        front = _sheet(chimney - 0.4, h + house.roof_height * 0.5, chimney + 0.4, top + 0.9, z)
        canvas.face(front, scaled(house.base, 0.8), BUILDING)


def paint_far_row(canvas: Canvas, z: float, seed: int) -> None:
    """Close the street far away with a row of houses and trees, so that the ground ends at something."""
    rng = np.random.default_rng(seed)
    reach = 1.6 * z / canvas.camera.focal
    x = -reach + float(rng.uniform(0, 6))
    while x < reach:
        width, height = float(rng.uniform(9, 20)), float(rng.uniform(7, 17))
        wall = varied(rng, pick(rng, WALL_COLORS))
        if rng.random() < 0.6:
            _far_house(canvas, rng, (x, z, width, height), wall)
        x += width * 0.9
    x = -reach
    while x < reach:
        radius = float(rng.uniform(2.5, 5.5))
        if rng.random() > 0.36:
            _far_tree(canvas, rng, x, z, radius)
        x += radius * 1.1


def _far_house(canvas: Canvas, rng: np.random.Generator, place: tuple[float, ...], wall: Color) -> None:
    x, z, width, height = place
    x -= canvas.camera.curve * z * z
    canvas.face(_sheet(x, 0, x + width, height, z), wall, BUILDING, MASONRY)
    roof = varied(rng, pick(rng, ROOF_COLORS))
    if rng.random() < 0.6:
        eaves: list[Point3] = [(x - 0.4, height, z), (x + width + 0.4, height, z)]
        ridge: list[Point3] = [(x + width * 0.8, height + 3, z), (x + width * 0.2, height + 3, z)]
        canvas.face([*eaves, *ridge], roof, BUILDING)
    for y in np.arange(1.2, height - 2, 3.2).tolist():
        for a in np.arange(1.2, width - 1.5, 2.6).tolist():
            upper, _, material = _glass(canvas, rng, bool(rng.random() < canvas.light.lit_windows))
            canvas.face(_sheet(x + a, y, x + (a + 1.3), y + 1.7, z), upper, BUILDING, material)


def _far_tree(canvas: Canvas, rng: np.random.Generator, x: float, z: float, radius: float) -> None:
    leaf = scaled(varied(rng, (74, 94, 56)), canvas.light.shade((0.0, 0.6, -0.8)))
    place = Plane(canvas.camera, x - canvas.camera.curve * z * z, z - 1)
    crown = [
        (a * float(rng.uniform(0.85, 1.15)), max(0.0, y * float(rng.uniform(0.9, 1.1))))
        for a, y in ring(0, radius * 0.9, radius, radius, 18)
    ]
    foot = box(-radius, 0, radius, radius * 0.8)
    canvas.fill(place(crown), leaf, VEGETATION, z - 1, FOLIAGE)
    canvas.fill(place(foot), scaled(leaf, 0.9), VEGETATION, z - 1, FOLIAGE)
