"""From the painting to a photograph: texture, wet reflections, haze, glow, lens and sensor."""

import numpy as np
from PIL import Image, ImageFilter

from street_scenes.canvas import GLOWING, ROAD, SIDEWALK, SKY, Camera, Canvas
from street_scenes.shapes import smooth_noise


def photograph(canvas: Canvas, rng: np.random.Generator, noise: np.random.Generator) -> np.ndarray:
    """Give the (rows, columns, 3) uint8 RGB photograph of a painted canvas; the labels stay as they are."""
    planes = np.asarray(canvas.picture)
    material = planes[..., 3]
    color = planes[..., :3].astype(np.float32) / 255
    labels, depth = np.asarray(canvas.labels), np.asarray(canvas.depth)
    light, camera = canvas.light, canvas.camera
    _texture(color, material, rng)
    if light.wet:
        _reflect(color, labels, rng)
    haze = 0.98 * np.asarray(light.sky_low, np.float32)
    clear = np.exp(-light.haze * depth)[..., None]
    clear[labels == SKY] = 1.0
    color *= clear
    color += haze * (1 - clear)
    if light.lamps:
        _glow(color, material)
    return _expose(color, camera, rng, noise)


def _texture(color: np.ndarray, material: np.ndarray, rng: np.random.Generator) -> None:
    rows, columns = material.shape
    speckle = smooth_noise(rng, 96, rows, columns, 2)
    broad = smooth_noise(rng, 6, rows, columns, 2)
    strength = np.asarray([0.0, 0.022, 0.13, 0.0], np.float32)[np.minimum(material, 3)]
    softly = np.asarray([0.012, 0.035, 0.05, 0.0], np.float32)[np.minimum(material, 3)]
    color *= (1 + strength * speckle + softly * broad)[..., None]


def _reflect(color: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> None:
    """Mirror what stands on a wet street: a ground pixel sees its own column, turned about the foot."""
    rows, columns = labels.shape
    ground = (labels == ROAD) | (labels == SIDEWALK)
    row = np.arange(rows)[:, None]
    foot = np.maximum.accumulate(np.where(ground, -1, row), axis=0)
    source = np.clip(2 * foot - row, 0, rows - 1)
    mirror = _to_picture(color[source, np.arange(columns)[None]])
    squeezed = mirror.resize((columns, max(8, rows // 24)), Image.Resampling.BOX)
    soft = np.asarray(squeezed.resize((columns, rows), Image.Resampling.BICUBIC), np.float32) / 255
    puddles = np.clip(0.5 + 0.35 * smooth_noise(rng, 7, rows, columns, 3), 0.15, 1)
    share = np.where(labels == ROAD, 0.44, 0.24) * puddles * ground
    color += share[..., None].astype(np.float32) * (soft * 1.05 - color * 0.5)


def _glow(color: np.ndarray, material: np.ndarray) -> None:
    """Surround what glows with a halo."""
    rows, columns = material.shape
    bright = color * (material == GLOWING)[..., None] * (color.max(axis=2) > 0.75)[..., None]
    halo = _to_picture(bright).reduce(2).filter(ImageFilter.GaussianBlur(rows * 0.012))
    color += np.asarray(halo.resize((columns, rows), Image.Resampling.BILINEAR), np.float32) / 255 * 1.1


def _to_picture(color: np.ndarray) -> Image.Image:
    return Image.fromarray((np.clip(color, 0, 1) * 255).astype(np.uint8))


def _expose(color: np.ndarray, camera: Camera, rng: np.random.Generator, noise: np.random.Generator) -> np.ndarray:
    """Apply exposure, white balance, vignette, tone curve, blur and sensor noise."""
    rows, columns = camera.rows, camera.columns
    gain = float(rng.uniform(1.0, 1.2)) * (1 + rng.normal(0, 0.018, 3)).astype(np.float32)
    y = ((np.arange(rows, dtype=np.float32) + 0.5) / rows - 0.5)[:, None]
    x = ((np.arange(columns, dtype=np.float32) + 0.5 - columns / 2) / rows)[None]
    vignette = 1 - float(rng.uniform(0.05, 0.16)) * (y * y * 1.2 + x * x)
    color = color * (gain * vignette[..., None])
    color = np.where(color > 0.8, 0.8 + 0.2 * np.tanh((color - 0.8) / 0.2), color)  # soft highlights
    color = np.clip(color, 0, 1)
    color += 0.25 * (color - 0.5) * color * (1 - color)  # a little contrast
    blur = float(rng.uniform(0.55, 0.8)) * max(0.8, rows / 512)
    soft = _to_picture(color).filter(ImageFilter.GaussianBlur(blur))
    sigma = float(rng.uniform(1.0, 3.2))
    grain = noise.standard_normal((rows, columns, 3), np.float32) * sigma
    return np.clip(np.asarray(soft, np.float32) + grain, 0, 255).astype(np.uint8)
