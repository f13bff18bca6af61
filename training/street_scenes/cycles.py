"""Bicycles and motorcycles, with and without riders."""

from math import cos, sin

from street_scenes.canvas import BICYCLE, GLOWING, MOTORCYCLE, PLAIN, RIDER, Canvas, Item, Plane
from street_scenes.people import Look
from street_scenes.shapes import Color, Part, Point, box, capsule, ring, scaled


def cycle_item(x: float, z: float, yaw: float, frame: Color, look: Look | None, motor: bool = False) -> Item:
    """Plan a bicycle or motorcycle at (x, z), with a rider if `look` is given; `yaw` 0 drives away."""
    label = MOTORCYCLE if motor else BICYCLE
    across, front = abs(sin(yaw)) > 0.5, cos(yaw) < 0

    def draw(canvas: Canvas) -> None:
        if not canvas.sees_at(x, z, 1.2):
            return
        factor = canvas.light.shade((canvas.light.sun[0] * 0.4, 0.3, -0.85), canvas.shadow_at(x, z) * 0.8)
        if across:
            place = Plane(canvas.camera, x, z, sin(yaw), cos(yaw))
            canvas.fill_parts(place, _from_side(frame, motor), factor, label)
        else:
            place = Plane(canvas.camera, x, z - 0.1)
            canvas.fill_parts(place, _from_behind(frame, motor), factor, label)
            _lamp(canvas, place, label, front)
        if look:
            rider = _rider_side(look, motor) if across else _rider_back(look, motor, front)
            canvas.fill_parts(place, rider, factor, RIDER, z)

    reach = 0.9 * abs(sin(yaw)) + 0.2
    top = 1.7 if look else 1.0
    foot = tuple((x + a, z + b) for a, b in box(-reach, -0.2, reach, 0.2))
    cast = ((x - reach * 0.7, z, 0.0), (x + reach * 0.7, z, 0.0), (x - 0.2, z, top), (x + 0.2, z, top))
    return Item(z - 0.05, draw, foot, cast)


def _from_side(frame: Color, motor: bool) -> list[Part]:
    radius, base = (0.32, 0.68) if motor else (0.35, 0.54)
    dark = (36, 36, 38)
    parts: list[Part] = []
    for a in (-base, base):
        parts.append((ring(a, radius, radius, radius, 20), dark))
        inside = (90, 90, 92) if motor else (118, 116, 112)
        parts.append((ring(a, radius, radius * 0.78, radius * 0.78, 18), inside))
        if not motor:
            ends = ring(a, radius, radius * 0.78, radius * 0.78, 8)[1::2]
            parts += [(capsule((a, radius), end, 0.012, 0.012), (170, 170, 168)) for end in ends]
        parts.append((ring(a, radius, radius * 0.2, radius * 0.2, 8), dark))
    if motor:
        shape = [(-0.85, 0.72), (-0.5, 0.82), (0.0, 0.76), (0.2, 0.95), (0.5, 0.92), (0.55, 0.6), (0.2, 0.35)]
        parts.append(([*shape, (-0.3, 0.35)], frame))
        parts.append(([(-0.9, 0.74), (-0.45, 0.9), (0.05, 0.82), (0.0, 0.72)], dark))
        parts.append((ring(-0.02, 0.42, 0.2, 0.16, 10), (112, 112, 116)))
        bars = [((base, radius), (0.42, 1.0), 0.05), ((0.42, 1.0), (0.25, 1.1), 0.03)]
    else:
        bars = [
            ((-0.54, 0.35), (-0.05, 0.3), 0.028), ((-0.05, 0.3), (-0.2, 0.92), 0.03),
            ((-0.17, 0.78), (0.38, 0.84), 0.03), ((-0.05, 0.3), (0.4, 0.78), 0.03),
            ((0.54, 0.35), (0.36, 1.02), 0.028), ((-0.54, 0.35), (-0.18, 0.76), 0.024),
            ((0.36, 1.02), (0.22, 1.05), 0.026), ((-0.3, 0.94), (-0.08, 0.95), 0.05),
        ]  # fmt: skip
    return parts + [(capsule(start, end, width, width), frame) for start, end, width in bars]


def _from_behind(frame: Color, motor: bool) -> list[Part]:
    wide, reach = (0.085, 0.36) if motor else (0.045, 0.29)
    dark = (34, 34, 36)
    parts: list[Part] = [
        (ring(0, 0.35, wide, 0.35, 14), dark),
        (capsule((0, 0.5), (0, 0.95), wide * 1.1, wide), frame),
    ]
    if motor:
        parts.append(([(-0.2, 0.45), (0.2, 0.45), (0.16, 0.85), (-0.16, 0.85)], frame))
    return [*parts, (capsule((-reach, 1.03), (reach, 1.03), 0.028, 0.028), dark)]


def _lamp(canvas: Canvas, place: Plane, label: int, front: bool) -> None:
    color: Color = (255, 244, 214) if front else (230, 40, 34)
    ink, material = (color, GLOWING) if canvas.light.lamps else (scaled(color, 0.7), PLAIN)
    canvas.fill(place(ring(0, 0.78, 0.07, 0.07, 10)), ink, label, place.z, material)


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
