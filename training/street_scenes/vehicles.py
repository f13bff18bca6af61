"""Cars, vans, buses and trucks: solid bodies from a profile, seen from any side."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import cos, sin

from street_scenes.canvas import BUS, CAR, GLOWING, NEAR_M, PLAIN, TRUCK, Canvas, Item, facing_normal, signed_area
from street_scenes.shapes import Color, Point, Point3, box, mixed, ring, scaled

PLATE: Color = (222, 222, 214)


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

    def at(self, along: float, across: float, y: float) -> Point3:
        """Turn the vehicle's own metres into the scene's."""
        c, s = cos(self.yaw), sin(self.yaw)
        return self.x + across * c + along * s, y, self.z + along * c - across * s


def vehicle_item(car: Vehicle) -> Item:
    """Plan a car, bus or truck."""
    body, (rear, front), w = car.body, car.body.ends, car.body.half_width
    nearest = min(car.at(a, b, 0.0)[2] for a in (rear, front) for b in (-w, w))
    feet = [car.at(a, b, 0.0) for a in (rear - 0.1, front + 0.1) for b in (-w - 0.12, w + 0.12)]
    edges = [car.at(a, b * body.half(y), y) for a, y in body.profile for b in (-1, 1)]
    return Item(
        nearest,
        lambda canvas: _vehicle(canvas, car),
        foot=tuple((x, z) for x, _, z in feet),
        cast=tuple((x, z, y) for x, y, z in edges),
    )


def _vehicle(canvas: Canvas, car: Vehicle) -> None:
    if not canvas.sees_at(car.x, car.z, car.body.ends[1] + 0.3):
        return
    shadow = canvas.shadow_at(car.x, car.z) * 0.8
    _underside(canvas, car)
    for side in (-1, 1):
        if _side_visible(canvas, car, side):
            _vehicle_side(canvas, car, side, shadow)
    faces = [(_cross_face(car, step), step) for step in range(len(car.body.profile) - 1)]
    for face, step in sorted(faces, key=lambda entry: -sum(point[2] for point in entry[0])):
        if signed_area(canvas.camera.outline(face)) < 0:
            _vehicle_face(canvas, car, face, step, shadow)


def _underside(canvas: Canvas, car: Vehicle) -> None:
    """Paint the tyres and the dark that is seen under the bumpers."""
    (rear, front), w, wheel, label = car.body.ends, car.body.half_width, car.body.wheel, car.body.label
    for b in (-w * 0.82, w * 0.82):
        for a in car.body.wheels:
            for end in (a + wheel * 0.7, a - wheel * 0.7):
                tyre = [car.at(end, b + d, y) for d, y in box(-0.12, 0.0, 0.12, wheel * 1.5)]
                canvas.face(tyre, (34, 34, 36), label)
    for end in (front - 0.2, rear + 0.2):
        under = [car.at(end, b, y) for b, y in box(-w * 0.9, 0.2, w * 0.9, 0.6)]
        canvas.face(under, (24, 24, 26), label)


def _cross_face(car: Vehicle, step: int) -> list[Point3]:
    """Give the face across the vehicle between two points of its profile."""
    (a0, y0), (a1, y1) = car.body.profile[step], car.body.profile[step + 1]
    h0, h1 = car.body.half(y0), car.body.half(y1)
    return [car.at(a0, -h0, y0), car.at(a0, h0, y0), car.at(a1, h1, y1), car.at(a1, -h1, y1)]


def _side_visible(canvas: Canvas, car: Vehicle, side: int) -> bool:
    quad = [car.at(a, car.body.half_width * side, y) for a, y in box(car.body.ends[0], 0.4, car.body.ends[1], 0.9)]
    return signed_area(canvas.camera.outline(quad)) * side < 0


def _between(face: Sequence[Point3], a0: float, b0: float, a1: float, b1: float) -> list[Point3]:
    """Cut a rectangle out of a four-cornered face, in parts of its width and height."""

    def inside(a: float, b: float) -> Point3:
        low, high = mixed(face[0], face[1], a), mixed(face[3], face[2], a)
        return mixed(low, high, b)

    return [inside(a0, b0), inside(a1, b0), inside(a1, b1), inside(a0, b1)]


def _pane_colors(canvas: Canvas) -> tuple[Color, Color]:
    """Give the upper and lower colour of a window, which mirrors the sky."""
    sky = scaled(mixed(canvas.light.sky_low, canvas.light.sky_top, 0.4), 255)
    return mixed((30, 36, 42), sky, 0.34), mixed((24, 28, 33), sky, 0.10)


def _vehicle_face(canvas: Canvas, car: Vehicle, face: list[Point3], step: int, shadow: float) -> None:
    """Paint one face across the vehicle: roof, windows, bonnet, tail or front."""
    body, label = car.body, car.body.label
    is_car, last = label == CAR, len(body.profile) - 2

    def panel(a0: float, b0: float, a1: float, b1: float, color: Color, material: int = PLAIN) -> None:
        canvas.face(_between(face, a0, b0, a1, b1), color, label, material, shadow)

    canvas.face(face, car.paint, label, PLAIN, shadow)
    if step in body.glass:
        upper, lower = _pane_colors(canvas)
        panel(0.06, 0.1, 0.94, 0.9, lower, GLOWING)
        y0, y1 = (0.14, 0.5) if body.profile[step][0] > 0 else (0.5, 0.86)
        panel(0.08, y0, 0.92, y1, upper, GLOWING)
    if label == TRUCK and step == 0:
        _truck_doors(canvas, car, face, shadow)
        return
    if step == 0:
        panel(0.0, 0.0, 1.0, 0.5, scaled(car.paint, 0.45))
    if step == (1 if is_car and 1 not in body.glass else 0):
        panel(0.02, 0.86, 0.98, 0.98, scaled(car.paint, 1.12))
        _tail(canvas, car, face)
    if step == last - is_car:
        _front(canvas, car, face)
    if step == last:
        panel(0.15, 0.15, 0.85, 0.85, scaled(car.paint, 0.3))
        panel(0.36, 0.4, 0.64, 0.75, (218, 218, 210))


def _tail_lamps(canvas: Canvas, car: Vehicle) -> tuple[Color, int]:
    bright = car.braking or canvas.light.lamps
    return ((255, 50, 40), GLOWING) if bright else ((150, 24, 26), PLAIN)


def _truck_doors(canvas: Canvas, car: Vehicle, face: list[Point3], shadow: float) -> None:
    panel = mixed(car.paint, (226, 224, 218), 0.85)
    parts = [
        ((0.0, 0.0, 1.0, 1.0), panel),
        ((0.0, 0.0, 1.0, 0.09), (58, 58, 60)),
        ((0.0, 0.95, 1.0, 1.0), scaled(panel, 0.8)),
        ((0.495, 0.09, 0.505, 0.95), scaled(panel, 0.55)),
        ((0.40, 0.1, 0.42, 0.94), scaled(panel, 0.75)),
        ((0.58, 0.1, 0.60, 0.94), scaled(panel, 0.75)),
        ((0.38, 0.01, 0.62, 0.075), PLATE),
    ]
    for place, color in parts:
        canvas.face(_between(face, *place), color, TRUCK, PLAIN, shadow)
    red, material = _tail_lamps(canvas, car)
    for a in (0.03, 0.85):
        canvas.face(_between(face, a, 0.015, a + 0.12, 0.07), red, TRUCK, material)


def _tail(canvas: Canvas, car: Vehicle, face: list[Point3]) -> None:
    label = car.body.label
    red, material = _tail_lamps(canvas, car)
    low, high = (0.35, 0.85) if label == CAR and len(car.body.profile) > 8 else (0.55, 0.8)
    for a in (0.03, 0.81):
        canvas.face(_between(face, a, low, a + 0.16, high), red, label, material)
        canvas.face(_between(face, a + 0.03, low, a + 0.13, low + 0.12), (225, 190, 170), label)
    canvas.face(_between(face, 0.36, 0.12, 0.64, 0.42), PLATE, label)
    canvas.face(_between(face, 0.4, 0.2, 0.6, 0.34), (70, 70, 76), label)


def _front(canvas: Canvas, car: Vehicle, face: list[Point3]) -> None:
    label, lamps = car.body.label, canvas.light.lamps
    canvas.face(_between(face, 0.28, 0.2, 0.72, 0.8), (40, 42, 46), label)
    for a in (0.04, 0.78):
        color = (255, 246, 220) if lamps else (206, 212, 216)
        canvas.face(_between(face, a, 0.2, a + 0.18, 0.75), color, label, GLOWING if lamps else PLAIN)


def _vehicle_side(canvas: Canvas, car: Vehicle, side: int, shadow: float) -> None:
    """Paint one side: bodywork, windows, wheels and door."""
    body, (rear, front) = car.body, car.body.ends

    def sheet(points: Iterable[Point], out: float = 0.0) -> list[Point3]:
        return [car.at(a, side * (body.half(y) + out), y) for a, y in points]

    base = sheet([(rear, 0.4), (front, 0.4), (front, 0.9)])
    factor = canvas.light.shade(facing_normal(base), shadow)
    z = max(NEAR_M, min(point[2] for point in base))

    def part(points: Iterable[Point], color: Color, factor: Color | float = factor) -> None:
        canvas.fill(canvas.camera.outline(sheet(points, 0.01)), scaled(color, factor), body.label, z)

    canvas.fill(canvas.camera.outline(sheet(body.profile)), scaled(car.paint, factor), body.label, z)
    part(box(rear + 0.1, 0.26, front - 0.1, 0.42), scaled(car.paint, 0.4))
    part(box(rear + 0.06, 0.42, front - 0.08, 0.6), scaled(car.paint, 0.84))
    if body.label == CAR:  # light on the shoulder
        part(box(rear + 0.1, 0.80, front - 0.3, 0.84), mixed(scaled(car.paint, 1.1), (200, 205, 210), 0.12))
    if body.label == TRUCK:
        part(box(-4.1, 0.95, 1.6, 3.3), mixed(car.paint, (226, 224, 218), 0.85))
        part(box(-3.6, 1.9, 1.0, 2.4), scaled(car.paint, 0.9))
    upper, lower = _pane_colors(canvas)
    for pane in body.windows:
        part(pane, lower, 1.0)
        low, high = min(y for _, y in pane), max(y for _, y in pane)
        part([(a, max(y, low + 0.55 * (high - low))) for a, y in pane], upper, 1.0)
    for outline, color in _wheels(body):
        part(outline, color)
    if body.label == CAR:  # a door and its handle
        part(box(-0.42, 0.45, -0.38, body.belt), scaled(car.paint, 0.6))
        part(box(-0.3, body.belt - 0.12, -0.1, body.belt - 0.07), scaled(car.paint, 0.55))


def _wheels(body: Body) -> Iterable[tuple[Sequence[Point], Color]]:
    r = body.wheel
    for a in body.wheels:
        yield ring(a, r, r * 1.18, r * 1.2, 16), (22, 22, 24)
        yield ring(a, r, r, r, 18), (38, 38, 40)
        yield ring(a, r, r * 0.62, r * 0.62, 12), (150, 152, 156)
        yield ring(a, r, r * 0.2, r * 0.2, 8), (80, 82, 86)
