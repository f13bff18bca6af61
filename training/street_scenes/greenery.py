"""Trees with leafy crowns, and cut hedges."""

from math import pi

import numpy as np

from street_scenes.canvas import FOLIAGE, VEGETATION, Canvas, Front, Item, Plane
from street_scenes.shapes import Color, box, capsule, ring, scaled, varied


def tree_item(x: float, z: float, height: float, crown: float, shape: float, leaf: Color, seed: int) -> Item:
    """Plan a tree: `crown` is its radius in metres, `shape` its height / width."""
    middle = height - crown * shape
    cast = [(x + a, z + b, middle) for a, b in ring(0, 0, crown * 0.9, crown * 0.9, 10)]
    cast += [(x + a, z, middle + crown * shape * s) for a, s in ((0, 0.9), (crown * 0.5, 0.5), (-crown * 0.5, 0.5))]

    def draw(canvas: Canvas) -> None:
        if not canvas.sees_at(x, z, 1.5 * crown):
            return
        rng = np.random.default_rng(seed)
        place, shadow = Plane(canvas.camera, x, z), canvas.shadow_at(x, z - 0.5) * 0.5
        _trunk(canvas, place, rng, (height, middle, crown), shadow)
        _crown(canvas, place, rng, (middle, crown, crown * shape), leaf, shadow)

    return Item(z, draw, tuple(ring(x, z, 0.5, 0.35, 8)), (*cast, (x, z, 0.0)))


def _trunk(
    canvas: Canvas, place: Plane, rng: np.random.Generator, size: tuple[float, float, float], shadow: float
) -> None:
    height, middle, crown = size
    thick = max(0.13, 0.026 * height)
    bark = scaled(varied(rng, (92, 78, 64)), canvas.light.shade((0.4, 0.2, -0.9), shadow))
    right = [(thick * 1.5, 0.0), (thick * 0.8, 0.5), (thick * 0.6, middle)]
    trunk = [(-thick * 1.5, 0.0), *right, (-thick * 0.6, middle), (-thick * 0.9, 0.5)]
    canvas.fill(place(trunk), bark, VEGETATION, place.z)
    shade = box(0.1 * thick, 0.3, thick * 0.7, middle)
    canvas.fill(place(shade), scaled(bark, 0.72), VEGETATION, place.z)
    for turn in (-0.5, 0.45):
        limb = capsule((0, middle - crown * 0.9), (turn * crown, middle), thick * 0.4, thick * 0.2)
        canvas.fill(place(limb), scaled(bark, 0.85), VEGETATION, place.z)


def _crown(
    canvas: Canvas, place: Plane, rng: np.random.Generator, size: tuple[float, float, float], leaf: Color,
    shadow: float,
) -> None:  # fmt: skip
    """Paint a crown: leafy clumps in three depths, then small dabs of leaves, lighter towards the light."""
    middle, radius, tall = size
    camera, sun = canvas.camera, canvas.light.sun
    on_screen = camera.size(radius, place.z)
    base = np.asarray(scaled(leaf, canvas.light.shade((sun[0] * 0.4, 0.6, -0.5), shadow)))
    clumps, dabs = rng.random((3, 16, 32)), rng.random((420, 8))

    def paint(places: np.ndarray, edges: np.ndarray, lit: np.ndarray) -> None:
        points = (places[:, None] + edges) * (radius, tall) + (0.0, middle)
        u, v = camera.project(place.x, 0.0, place.z)
        scale = camera.size(1.0, place.z) * camera.rows
        outlines = np.stack([u + points[..., 0] * scale, v - points[..., 1] * scale], axis=-1)
        canvas.fill_many(outlines, base * lit[:, None], VEGETATION, place.z, FOLIAGE)

    for layer, tone in enumerate((0.62, 0.8, 0.98)):
        draws = clumps[layer, : 16 if on_screen > 0.06 else 9]
        a, y = _inside_disc(draws, 0.82 - 0.16 * layer)
        lit = tone + 0.10 * y + 0.12 * (a * sun[0] + y * sun[1]) * (layer > 0) + 0.1 * (draws[:, 2] - 0.5)
        places = np.stack([a + 0.1 * layer * sun[0], y + 0.06 * layer], axis=1)
        reach = (0.2 + 0.16 * draws[:, 3] + (0.06 if on_screen <= 0.06 else 0.0))[:, None, None]
        rough = 0.8 + 0.4 * np.stack([draws[:, 4:17], draws[:, 17:30]], axis=-1)
        paint(places, np.asarray(ring(0, 0, 1, 1, 13)) * rough * reach, lit)
    draws = dabs[: int(min(420, 1500 * on_screen))]
    a, y = _inside_disc(draws, 0.98)
    lit = 0.72 + 0.22 * y + 0.16 * (a * sun[0] + y * sun[1]) + 0.34 * (draws[:, 2] - 0.5)
    turn = 2 * pi * (draws[:, 6:7] + np.arange(5) / 5)
    size_of = (0.03 + 0.05 * draws[:, 3:4]) * (0.7 + draws[:, 4:5])
    edges = np.stack([size_of * np.cos(turn), 0.8 * size_of * np.sin(turn)], axis=-1)
    paint(np.stack([a, y], axis=1), edges, lit)


def _inside_disc(draws: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Turn two uniform columns into points spread evenly over a disc."""
    out, turn = radius * np.sqrt(draws[:, 0]), 2 * pi * draws[:, 1]
    return out * np.cos(turn), out * np.sin(turn)


def hedge_items(x: float, z0: float, z1: float, height: float, leaf: Color, seed: int) -> list[Item]:
    """Plan a cut hedge along the street, a metre and a half at a time."""
    rng = np.random.default_rng(seed)
    items = []
    side = 1 if x > 0 else -1
    for near in np.arange(z0, z1, 1.5).tolist():
        bumps = [height * float(rng.uniform(0.92, 1.08)) for _ in range(2)]
        front = Front(x, near, min(z1, near + 1.5), side)

        def draw(canvas: Canvas, front: Front = front, bumps: list[float] = bumps) -> None:
            _hedge(canvas, front, bumps, leaf, front.near < z0 + 0.1)

        ends = (near, front.far)
        foot = ((x - side * 0.25, near), (x - side * 0.25, front.far), (x + side, front.far), (x + side, near))
        cast = tuple((cx, cz, cy) for cx in (x, x + side * 0.9) for cz in ends for cy in (0.0, height))
        items.append(Item(front.far, draw, foot, cast))
    return items


def _hedge(canvas: Canvas, front: Front, bumps: list[float], leaf: Color, is_end: bool) -> None:
    (a, b), x, near, far = bumps, front.x, front.near, front.far
    back = x + front.side * 0.9
    canvas.face([(x, a, near), (x, b, far), (back, b, far), (back, a, near)], leaf, VEGETATION, FOLIAGE)
    if is_end:
        end = [(x, 0, near), (back, 0, near), (back, a, near), (x, a, near)]
        canvas.face(end, leaf, VEGETATION, FOLIAGE)
    street_side = [(x, 0, near), (x, 0, far), (x, b, far), (x, a, near)]
    canvas.face(street_side, scaled(leaf, 0.9), VEGETATION, FOLIAGE)
    canvas.face(front(0, 0, 1, 0.3), scaled(leaf, 0.6), VEGETATION, FOLIAGE)
