"""Street lamps, traffic lights, traffic signs, walls and fences."""

from collections.abc import Callable, Sequence
from math import pi

import numpy as np

from street_scenes.canvas import (
    FENCE,
    GLOWING,
    MASONRY,
    POLE,
    TRAFFIC_LIGHT,
    TRAFFIC_SIGN,
    WALL,
    Canvas,
    Front,
    Item,
    Plane,
)
from street_scenes.shapes import Color, Part, box, capsule, mixed, ring, scaled

SIGN_GROUPS = (
    ("limit",), ("warning",), ("parking",), ("crossing",), ("priority",), ("yield",), ("stop",),
    ("no entry",), ("arrow",), ("warning", "limit"), ("priority", "limit"), ("crossing", "warning"),
    ("parking", "arrow"), ("limit", "crossing"),
)  # fmt: skip
RED, BLUE, WHITE, BLACK, YELLOW = (186, 32, 36), (28, 78, 150), (236, 234, 228), (34, 34, 36), (232, 186, 44)
BRIGHT = ((255, 66, 48), (255, 190, 60), (70, 240, 170))  # red, amber, green
BARRIER_COLORS = {
    "planks": [(134, 104, 76), (112, 92, 76), (176, 172, 162), (96, 106, 98)],
    "mesh": [(78, 92, 84), (66, 68, 72), (120, 124, 126)],
    "wall": [(168, 158, 144), (146, 92, 74), (186, 180, 168)],
}


def lamp_item(x: float, z: float, height: float, arm: float, metal: Color) -> Item:
    """Plan a street lamp; `arm` reaches over the road (metres, signed)."""

    def draw(canvas: Canvas) -> None:
        place = Plane(canvas.camera, x, z)
        _pole(canvas, place, height, 0.11, metal)
        tone = scaled(metal, canvas.light.shade((0.0, 0.2, -0.9)))
        canvas.fill(place(capsule((0, height - 0.05), (arm, height + 0.25), 0.09, 0.08)), tone, POLE, z)
        head = [(arm * 0.8, height + 0.12), (arm * 1.35, height + 0.3), (arm * 1.35, height + 0.45)]
        canvas.fill(place([*head, (arm * 0.8, height + 0.4)]), scaled(tone, 0.8), POLE, z)
        if canvas.light.lamps:
            glow = [(arm * 0.85, height + 0.13), (arm * 1.3, height + 0.29), (arm * 1.3, height + 0.2)]
            canvas.fill(place(glow), (255, 226, 170), POLE, z, GLOWING)

    return _pole_item(x, z, draw, 0.25, 0.2, 0.08, height)


def _pole_item(
    x: float, z: float, draw: Callable[[Canvas], None], foot_x: float, foot_z: float, half: float, top: float
) -> Item:
    """Plan something on a pole: its shadow is a narrow triangle."""
    return Item(z, draw, tuple(ring(x, z, foot_x, foot_z, 6)), ((x - half, z, 0.0), (x + half, z, 0.0), (x, z, top)))


def _pole(canvas: Canvas, place: Plane, height: float, radius: float, metal: Color) -> None:
    z, sun = place.z, canvas.light.sun
    radius = max(radius, 0.0042 * z / canvas.camera.focal)  # never narrower than 0.8 % of the image height
    tone = scaled(metal, canvas.light.shade((sun[0], 0.2, -0.7), canvas.shadow_at(place.x, z) * 0.6))
    dark = radius if sun[0] < 0 else -radius
    canvas.fill(place(box(-radius * 1.5, 0, radius * 1.5, 0.6)), scaled(tone, 0.85), POLE, z)
    canvas.fill(place(box(-radius, 0, radius, height)), tone, POLE, z)
    canvas.fill(place(box(min(0, dark), 0, max(0, dark), height)), scaled(tone, 0.7), POLE, z)


def traffic_light_item(x: float, z: float, state: int, arm: float, metal: Color) -> Item:
    """Plan a traffic light; `state` 0 red, 1 amber, 2 green; `arm` metres over the road, 0 for none."""

    def draw(canvas: Canvas) -> None:
        place = Plane(canvas.camera, x, z)
        _pole(canvas, place, 5.6 if arm else 2.9, 0.11, metal)
        heads = [(0.0, 2.3)]
        if arm:
            tone = scaled(metal, canvas.light.shade((0.0, 0.4, -0.9)))
            canvas.fill(place(capsule((0, 5.5), (arm, 5.7), 0.11, 0.09)), tone, POLE, z)
            heads.append((arm, 5.0))
        for a, y in heads:
            _signal(canvas, place, a, y, state)

    return _pole_item(x, z, draw, 0.3, 0.25, 0.1, 3.3)


def _signal(canvas: Canvas, place: Plane, a: float, y: float, state: int) -> None:
    body = scaled((46, 48, 48), canvas.light.shade((0.0, 0.2, -0.9)))
    canvas.fill(place(box(a - 0.34, y - 0.08, a + 0.34, y + 1.23)), body, TRAFFIC_LIGHT, place.z)
    canvas.fill(place(box(a - 0.22, y, a + 0.22, y + 1.15)), scaled(body, 0.6), TRAFFIC_LIGHT, place.z)
    for lamp, color in enumerate(BRIGHT):
        lens = ring(a, y + 0.95 - 0.37 * lamp, 0.145, 0.145, 14)
        if lamp == state:
            core = ring(a, y + 0.97 - 0.37 * lamp, 0.08, 0.08, 10)
            canvas.fill(place(lens), color, TRAFFIC_LIGHT, place.z, GLOWING)
            canvas.fill(place(core), mixed(color, (255, 255, 240), 0.6), TRAFFIC_LIGHT, place.z, GLOWING)
        else:
            canvas.fill(place(lens), scaled(color, 0.2), TRAFFIC_LIGHT, place.z)


def sign_item(x: float, z: float, kinds: Sequence[str], metal: Color) -> Item:
    """Plan a pole with one or two traffic signs, the first on top."""

    def draw(canvas: Canvas) -> None:
        place = Plane(canvas.camera, x, z)
        top = 2.35 + 0.85 * len(kinds)
        _pole(canvas, place, top, 0.06, metal)
        factor = canvas.light.shade((0.0, 0.2, -0.95), canvas.shadow_at(x, z) * 0.5)
        for number, kind in enumerate(kinds):
            canvas.fill_parts(place, _sign(kind, top - 0.42 - 0.85 * number), factor, TRAFFIC_SIGN)

    return _pole_item(x, z, draw, 0.2, 0.15, 0.06, 2.8)


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
    return _panel_sign(kind, y, r)


def _panel_sign(kind: str, y: float, r: float) -> list[Part]:
    """Give the parts of a blue panel: "parking" or "crossing"."""
    panel = [(box(-r, y - r, r, y + r), WHITE), (box(-r * 0.92, y - r * 0.92, r * 0.92, y + r * 0.92), BLUE)]
    if kind == "parking":
        bowl = [(ring(0.03, y + 0.1, 0.17, 0.15, 14), WHITE), (ring(0.03, y + 0.1, 0.08, 0.07, 12), BLUE)]
        return [*panel, *bowl, (box(-0.14, y - 0.27, -0.05, y + 0.25), WHITE)]
    white = [(0.0, y + 0.33), (-0.33, y - 0.25), (0.33, y - 0.25)]
    head = ring(0.02, y + 0.1, 0.05, 0.05, 10)
    body = capsule((0.02, y + 0.04), (-0.02, y - 0.08), 0.05, 0.04)
    legs = [capsule((-0.02, y - 0.08), (a, y - 0.21), 0.03, 0.02) for a in (-0.1, 0.07)]
    return [*panel, (white, WHITE), *((outline, BLACK) for outline in (head, body, *legs))]


def barrier_items(x: float, z0: float, z1: float, height: float, kind: str, color: Color) -> list[Item]:
    """Plan a wall (`"wall"`), or a wooden (`"planks"`) or wire (`"mesh"`) fence along the street."""
    paint = {"wall": _wall, "planks": _planks, "mesh": _mesh}[kind]
    items = []
    for near in np.arange(z0, z1, 1.8).tolist():
        far = min(z1, near + 1.8)
        front = Front(x, near, far, 0)

        def draw(canvas: Canvas, front: Front = front) -> None:
            paint(canvas, front, height, color)

        foot = ((x - 0.2, near), (x - 0.2, far), (x + 0.2, far), (x + 0.2, near))
        cast = () if kind == "mesh" else tuple((x, z, y) for z in (near, far) for y in (0.0, height))
        items.append(Item(far, draw, foot, cast))
    return items


def _mesh(canvas: Canvas, front: Front, height: float, color: Color) -> None:
    tone = scaled(color, canvas.light.shade((0.0, 0.3, -0.9)))
    wire = canvas.camera.outline(front(0, 0.05, 1, height))
    canvas.tint(wire, tone, FENCE, (front.near + front.far) / 2, 0.5)
    bars = [(0.0, height - 0.1, 1.0, height), (0.0, 0.05, 1.0, 0.16), (0.0, 0.0, 0.06, height)]
    bars += [(k / 8, 0.1, k / 8 + 0.025, height) for k in range(1, 8) if front.near < 22]
    for bar in bars:
        canvas.face(front(*bar), color, FENCE)


def _planks(canvas: Canvas, front: Front, height: float, color: Color) -> None:
    canvas.face(front(0, 0, 1, height), color, FENCE, MASONRY)
    for k in range(6):
        canvas.face(front(k / 6, 0.02, k / 6 + 0.03, height), scaled(color, 0.6), FENCE)
        canvas.face(front(k / 6 + 0.03, 0, k / 6 + 0.08, height), scaled(color, 1.12), FENCE)
    canvas.face(front(0, height * 0.75, 1, height * 0.82), scaled(color, 0.8), FENCE)


def _wall(canvas: Canvas, front: Front, height: float, color: Color) -> None:
    canvas.face(front(0, 0, 1, height), color, WALL, MASONRY)
    canvas.face(front(0, height - 0.15, 1, height), scaled(color, 1.2), WALL)
    canvas.face(front(0, 0, 1, 0.25), scaled(color, 0.8), WALL)
    for k in range(1, 4):
        canvas.face(front(0, height * k / 4 - 0.02, 1, height * k / 4 + 0.01), scaled(color, 0.86), WALL)
