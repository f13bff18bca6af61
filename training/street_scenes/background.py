"""Sky and ground: clouds, asphalt, markings, slabs, lawns, and the shadows on them."""

from math import pi

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from street_scenes.canvas import ROAD, SIDEWALK, TERRAIN, Camera, Item
from street_scenes.light import Light
from street_scenes.shapes import Point, hull, mixed, pick, scaled, smooth_noise
from street_scenes.street import Street

SKY_DEPTH_M = 10000.0
SLAB_COLORS = [(176, 172, 164), (164, 162, 160), (178, 166, 152), (158, 150, 144)]


def paint_sky(camera: Camera, light: Light, rng: np.random.Generator) -> np.ndarray:
    """Give the sky with its clouds, (rows, columns, 3) float32 in 0..1."""
    rows, columns = camera.rows, camera.columns
    up = np.clip(1 - (np.arange(rows, dtype=np.float32) + 0.5) / rows / camera.horizon, 0, 1)[:, None, None]
    rise = np.subtract(light.sky_top, light.sky_low).astype(np.float32)
    sky = np.asarray(light.sky_low, np.float32) + up**0.7 * rise
    noise = _cloud_noise(rows, columns, rng)
    cover = np.clip((noise + light.clouds) * 0.6, 0, 1)[..., None] * np.clip(up * 3, 0, 1) * 0.9
    lit = np.asarray(light.cloud_color, np.float32) * (1 - 0.06 * np.clip(noise, -1, 1.5)[..., None])
    return sky * np.ones((1, columns, 1), np.float32) * (1 - cover) + lit * cover


def _cloud_noise(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Give the middle of a band of noise that is four heights wide, so that wider pictures show more of it."""
    high, reach = max(32, rows // 2), 4.0
    wide = smooth_noise(rng, 7, high, int(high * reach), 4, wide=reach * 0.55)
    middle = wide.shape[1] // 2
    half = min(middle, max(1, round(columns / rows / 2 * high)))
    part = Image.fromarray(wide[:, middle - half : middle + half])
    return np.asarray(part.resize((columns, rows), Image.Resampling.BILINEAR))


def paint_ground(
    street: Street, light: Light, x: np.ndarray, z: np.ndarray, rng: np.random.Generator, camera: Camera
) -> tuple[np.ndarray, np.ndarray]:
    """Give the unlit colour (rows, columns, 3) in 0..1 and the label of each ground pixel."""
    beyond = np.abs(x) - street.half_road
    labels = _ground_labels(street, x, z, beyond)
    tile = smooth_noise(rng, 32, 256, 512, 3)[:, :256] * 0.6
    grain = rng.normal(0, 1, (256, 256)).astype(np.float32)
    near = 1 / (1 + (z / 9) ** 2)

    def lookup(texture: np.ndarray, per_m: float) -> np.ndarray:
        return texture[(z * per_m).astype(np.int32) & 255, (x * per_m).astype(np.int32) & 255]

    broad, fine = lookup(tile, 5.0), lookup(grain, 45.0) * near
    color = np.empty((*x.shape, 3), np.float32)
    tint = np.asarray(pick(rng, [(1.0, 1.0, 1.02), (1.02, 1.0, 0.97), (0.99, 1.0, 1.0)]), np.float32)
    asphalt = (0.40 * street.tone * (1 + 0.045 * broad + 0.06 * fine + _wear(street, x)))[..., None] * tint
    color[:] = asphalt * (0.62 if light.wet else 1.0)
    foot_x = z / (camera.focal * camera.rows)  # how many metres of ground one pixel covers
    foot_z = z * z / (camera.focal * camera.height_m * camera.rows)
    paint = _markings(street, x, z, foot_x, foot_z, rng)
    worn = np.clip(0.80 + 0.14 * broad, 0.25, 0.95) * paint
    color += worn[..., None] * (np.asarray((0.80, 0.80, 0.77), np.float32) - color)
    slabs = _slabs(x, z, beyond, foot_x, foot_z, grain, broad + fine, rng, light.wet)
    color = np.where((labels == SIDEWALK)[..., None], slabs, color)
    lawn = np.asarray(scaled(mixed(street.season, (104, 110, 62), 0.6), 1 / 255), np.float32)
    blades = 1 + 0.13 * broad + 0.2 * fine + 0.1 * lookup(grain, 12.0) * near
    return np.where((labels == TERRAIN)[..., None], lawn * blades[..., None], color), labels


def _ground_labels(street: Street, x: np.ndarray, z: np.ndarray, beyond: np.ndarray) -> np.ndarray:
    strip = np.where(x > 0, street.right.strip, street.left.strip).astype(np.float32)
    walk = np.where(x > 0, street.right.sidewalk, street.left.sidewalk).astype(np.float32) + strip
    paved = np.where(x > 0, street.right.style == "city", street.left.style == "city")
    road = (beyond < 0) | ((z > street.crossing[0]) & (z < street.crossing[1]))
    grass = ((beyond > 0.25) & (beyond < strip)) | ((beyond > walk) & ~paved)
    return np.where(road, ROAD, np.where(grass, TERRAIN, SIDEWALK)).astype(np.uint8)


def _wear(street: Street, x: np.ndarray) -> np.ndarray:
    """Lighter tracks where wheels run, darker gutters."""
    tracks = 0.05 * np.cos((x / 1.6) * 2 * pi)
    return tracks - 0.22 * np.exp(-(((np.abs(x) - street.half_road) / 0.3) ** 2))


def _band(distance: np.ndarray, half_width: float, footprint: np.ndarray) -> np.ndarray:
    """Tell how much of a pixel a painted line covers: 0..1."""
    return np.clip((half_width - np.abs(distance)) / footprint + 0.5, 0, 1)


def _markings(
    street: Street, x: np.ndarray, z: np.ndarray, foot_x: np.ndarray, foot_z: np.ndarray, rng: np.random.Generator
) -> np.ndarray:  # fmt: skip
    """Tell how much of each pixel lines and the zebra crossing cover: 0..1; all of it stays road."""
    phase = float(rng.uniform(0, 6))
    dashes = np.clip((1.5 - np.abs((z + phase) % 6 - 3)) / foot_z + 0.5, 0, 1)
    dashes = np.where(foot_z > 3, 0.5, dashes)
    paint = _band(x, 0.07, foot_x) * (dashes if street.dashed else 1.0)
    for line in (-3.2, 3.2) if street.lanes == 4 else ():
        paint = np.maximum(paint, _band(x - line, 0.06, foot_x) * dashes)
    edge = street.driven - 0.12
    for line in (-edge, edge) if street.edge_lines else ():
        paint = np.maximum(paint, _band(x - line, 0.06, foot_x))
    if street.crossing[1]:
        paint = paint * ~((z > street.crossing[0] - 6.5) & (z < street.crossing[1] + 1))
    if not street.zebra:
        return paint
    paint = paint * ((z < street.zebra - 1.5) | (z > street.zebra + 5))
    stripes = np.clip((0.27 - np.abs((x + 40) % 1.05 - 0.525)) / foot_x + 0.5, 0, 1)
    on_road = np.abs(x) < street.half_road - 0.3
    paint = np.maximum(paint, stripes * _band(z - street.zebra - 1.75, 1.75, foot_z) * on_road)
    stop = _band(z - street.zebra + 1.2, 0.22, foot_z) * ((x > 0.2) & (x < street.driven - 0.1))
    return np.maximum(paint, stop)


def _slabs(
    x: np.ndarray, z: np.ndarray, beyond: np.ndarray, foot_x: np.ndarray, foot_z: np.ndarray,
    grain: np.ndarray, stain: np.ndarray, rng: np.random.Generator, wet: float,
) -> np.ndarray:  # fmt: skip
    """Give the colour of paving slabs, each a little different, with a lighter kerb."""
    size = float(rng.uniform(0.5, 1.1))
    tone = grain[np.floor(z / size).astype(np.int32) & 255, np.floor(x / size).astype(np.int32) & 255]
    tone = tone * np.clip(0.06 - foot_z * 0.03, 0, 1)
    joint = np.maximum(_joints(x, size, foot_x), _joints(z, size, foot_z))
    base = np.asarray(scaled(pick(rng, SLAB_COLORS), 1 / 255), np.float32)
    kerb = (beyond < 0.22) & (beyond >= 0)
    level = (1 + tone + 0.03 * stain) * (1 - 0.3 * joint)
    level = np.where(kerb, 1.12 + 0.03 * stain, level) * (1 - 0.55 * _band(beyond - 0.235, 0.015, foot_x))
    return (base * (0.68 if wet else 0.94)) * level[..., None]


def _joints(along: np.ndarray, size: float, footprint: np.ndarray) -> np.ndarray:
    """Tell how much of a pixel the joints between slabs cover, along one direction: 0..1."""
    part = (along / size) % 1
    distance = np.minimum(part, 1 - part) * size
    return np.clip(1 - distance / np.maximum(footprint, 0.012), 0, 1) * np.clip(0.025 / footprint, 0, 1)


def shadow_maps(camera: Camera, light: Light, items: list[Item]) -> tuple[np.ndarray, np.ndarray]:
    """Give the cast and the contact shadows on the ground, (rows, columns) float32 in 0..1."""
    cast, contact = (Image.new("L", (camera.columns, camera.rows)) for _ in range(2))
    strong = sum(light.sun_color) > 0.5
    dx, dz = (-light.sun[0] / light.sun[1], -light.sun[2] / light.sun[1])
    for item in items:
        if item.foot:
            _fill_ground(contact, camera, hull(item.foot))
        if item.cast and strong:
            _fill_ground(cast, camera, hull([(x + dx * y, z + dz * y) for x, z, y in item.cast]))
    return _blurred(cast, 0.0022 * camera.rows), _blurred(contact, 0.006 * camera.rows)


def _fill_ground(plane: Image.Image, camera: Camera, points: list[Point]) -> None:
    outline = camera.outline([(x, 0.0, z) for x, z in points])
    if len(outline) > 2:
        far = 1e5  # Pillow needs moderate numbers
        inside = [(min(far, max(-far, u)), min(far, max(-far, v))) for u, v in outline]
        ImageDraw.Draw(plane).polygon(inside, fill=255)


def _blurred(plane: Image.Image, radius: float) -> np.ndarray:
    return np.asarray(plane.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255
