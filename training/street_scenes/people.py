"""People on foot: how they look, and the parts of a walking person."""

from dataclasses import dataclass

import numpy as np

from street_scenes.canvas import PERSON, Canvas, Item, Plane
from street_scenes.shapes import Color, Part, box, capsule, pick, ring, scaled, varied

SKINS = [(222, 180, 150), (198, 150, 120), (150, 104, 78), (98, 68, 52)]
HAIRS = [(48, 36, 28), (84, 62, 42), (150, 120, 76), (30, 28, 28), (130, 126, 122)]
TOPS = [
    (52, 62, 84), (120, 48, 46), (66, 84, 66), (150, 146, 136), (42, 42, 46), (176, 140, 84),
    (84, 108, 136), (196, 192, 184), (104, 76, 96), (158, 92, 58),
]  # fmt: skip
TROUSERS = [(46, 54, 76), (40, 40, 44), (92, 84, 72), (112, 104, 90), (60, 60, 66), (70, 82, 108)]
SHOES = [(40, 36, 34), (180, 178, 172), (88, 62, 44)]


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

    @property
    def scale(self) -> float:
        """The height, as a share of 1.75 m."""
        return self.height / 1.75

    @property
    def hip(self) -> float:
        """Height of the hip in metres."""
        return 0.9 * self.scale

    @property
    def neck(self) -> float:
        """Height of the neck in metres."""
        return 1.46 * self.scale

    @property
    def wide(self) -> float:
        """Half the width of the shoulders in metres."""
        return 0.15 * self.scale if self.from_side else 0.215 * self.scale


def random_look(rng: np.random.Generator, wet: bool) -> Look:
    """Choose a person's clothes; umbrellas only come out when it is wet."""
    return Look(
        skin=varied(rng, pick(rng, SKINS), 0.04),
        hair=varied(rng, pick(rng, HAIRS)),
        top=varied(rng, pick(rng, TOPS)),
        trousers=varied(rng, pick(rng, TROUSERS)),
        shoes=pick(rng, SHOES),
        height=float(rng.choice([1.3, 1.62, 1.68, 1.75, 1.8, 1.86])),
        stride=float(rng.uniform(0.25, 1.0)),
        skirt=bool(rng.random() < 0.2),
        bag=varied(rng, pick(rng, TOPS)) if rng.random() < 0.4 else None,
        umbrella=varied(rng, pick(rng, [*TOPS, (146, 40, 48)])) if wet and rng.random() < 0.65 else None,
        from_side=bool(rng.random() < 0.45),
        facing=bool(rng.random() < 0.5),
    )


def person_item(x: float, z: float, look: Look) -> Item:
    """Plan somebody on foot."""

    def draw(canvas: Canvas) -> None:
        if not canvas.sees_at(x, z, 1.0):
            return
        normal, shadow = (canvas.light.sun[0] * 0.5, 0.3, -0.85), canvas.shadow_at(x, z - 0.05) * 0.8
        factor = canvas.light.shade(normal, shadow)
        canvas.fill_parts(Plane(canvas.camera, x, z), _person(look), factor, PERSON)

    outline = [(-0.2, 0.0), (0.2, 0.0), (-0.26, look.height * 0.8), (0.26, look.height * 0.8), (0, look.height)]
    return Item(z, draw, tuple(ring(x, z, 0.34, 0.24, 8)), tuple((x + a, z, y) for a, y in outline))


def _person(look: Look) -> list[Part]:
    """Give the parts of a walking person, standing at 0, from the back to the front."""
    wide, hip, neck = look.wide, look.hip, look.neck
    parts = [*_leg(look, -1, 0.75), *_leg(look, 1, 1.0), *_arm(look, -1, 0.7)]
    if look.bag and not look.facing:
        left = -wide * 0.75 - (0.12 if look.from_side else 0)
        parts.append((box(left, hip + 0.12, wide * 0.75, neck), scaled(look.bag, 0.8)))
    parts += _torso(look)
    if look.bag and not look.facing and not look.from_side:
        parts.append((box(-wide * 0.6, hip + 0.14, wide * 0.6, neck - 0.05), look.bag))
    parts += [*_arm(look, 1, 0.92), *_head(look)]
    if look.umbrella:
        top = neck + 0.55 * look.scale
        dome = [(a, y) for a, y in ring(0.12, top, 0.62, 0.3, 22) if y >= top - 0.01]
        parts += [(box(0.13, neck - 0.2, 0.17, top), (70, 70, 74)), (dome, look.umbrella)]
        parts.append(([(0.12, top + 0.3), (0.3, top), (0.74, top)], scaled(look.umbrella, 0.8)))
    return parts


def _leg(look: Look, sign: int, tone: float) -> list[Part]:
    h, side = look.scale, look.from_side
    step = 0.32 * look.stride if side else 0.05
    stand = sign * (0.0 if side else 0.09 * h)
    foot = stand + sign * step * h
    knee = (stand + sign * step * 0.55 * h + (0.05 if side else 0), 0.5 * h)
    lift = 0.05 if sign < 0 and look.stride > 0.5 else 0.0
    toe = (foot + (0.12 if side else 0), 0.045 + lift)
    return [
        (capsule((stand * 0.9, look.hip), knee, 0.105 * h, 0.085 * h), scaled(look.trousers, tone)),
        (
            capsule(knee, (foot, 0.1 * h + lift), 0.082 * h, 0.06 * h),
            scaled(look.skin if look.skirt else look.trousers, tone),
        ),
        (capsule((foot, 0.05 + lift), toe, 0.055, 0.05), scaled(look.shoes, tone)),
    ]


def _arm(look: Look, sign: int, tone: float) -> list[Part]:
    h, wide, hip, neck = look.scale, look.wide, look.hip, look.neck
    if look.from_side:
        shoulder, hand, bend = (0.0, neck - 0.06 * h), (-sign * (0.24 * look.stride) * h, hip - 0.04 * h), 0.0
    else:
        shoulder = (sign * wide * 0.98, neck - 0.06 * h)
        hand, bend = (sign * (wide + 0.035 * h + 0.06), hip - 0.04 * h), sign * 0.05
    elbow = ((shoulder[0] + hand[0]) / 2 + bend, (neck + hip) / 2)
    cloth = scaled(look.top, tone)
    return [
        (ring(hand[0], hand[1], 0.05 * h, 0.06 * h, 8), scaled(look.skin, tone)),
        (capsule(shoulder, elbow, 0.072 * h, 0.06 * h), cloth),
        (capsule(elbow, hand, 0.06 * h, 0.048 * h), cloth),
    ]


def _torso(look: Look) -> list[Part]:
    h, wide, hip, neck = look.scale, look.wide, look.hip, look.neck
    half = [(0.8, hip - 0.1 * h), (0.82, hip + 0.2 * h), (1.0, neck - 0.1 * h), (0.7, neck)]
    right = [(wide * a, y) for a, y in half]
    torso = [(-wide * a, y) for a, y in reversed(half)] + right
    shade = [(0.1 * wide, hip - 0.1 * h), *right, (0.25 * wide, neck)]
    parts: list[Part] = [(torso, look.top), (shade, scaled(look.top, 0.86))]
    if look.skirt:
        hem, low = wide * 1.25, hip - 0.4 * h
        parts.insert(0, ([(-hem, low), (hem, low), (wide * 0.8, hip), (-wide * 0.8, hip)], look.trousers))
    return parts


def _head(look: Look) -> list[Part]:
    h, neck = look.scale, look.neck
    y = neck + 0.165 * h
    back, ahead = (-0.025, 0.025) if look.from_side else (0.0, 0.0)
    parts: list[Part] = [
        (capsule((0, neck - 0.02), (0, neck + 0.08), 0.05 * h, 0.05 * h), scaled(look.skin, 0.85)),
        (ring(back, y + 0.02, 0.098 * h, 0.13 * h, 14), look.hair),
    ]
    if look.facing or look.from_side:
        fringe = capsule((back - 0.05, y + 0.08 * h), (back + 0.06, y + 0.08 * h), 0.05 * h, 0.045 * h)
        parts += [(ring(ahead, y - 0.02 * h, 0.08 * h, 0.105 * h, 14), look.skin), (fringe, look.hair)]
    return parts
