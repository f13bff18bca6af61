"""A generated picture with its ground truth: from the seed to the pixels."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from street_scenes.background import SKY_DEPTH_M, paint_ground, paint_sky, shadow_maps
from street_scenes.canvas import SKY, Camera, Canvas, Item
from street_scenes.houses import paint_far_row
from street_scenes.light import Light
from street_scenes.photograph import photograph
from street_scenes.plan import END_M, generator, plan_items, plan_world
from street_scenes.street import Street
from workbench.core.errors import InputError

SMALLEST, LARGEST_HEIGHT, LARGEST_WIDTH = 64, 1024, 2048


@dataclass(frozen=True)
class Scene:
    """A generated picture and its ground truth.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        train_ids: (H, W) uint8, Cityscapes train ids 0..18; 255 would be void.
        seed: the number it was made from.
        weather: one of `WEATHERS`.
    """

    image: np.ndarray
    train_ids: np.ndarray
    seed: int
    weather: str

    @property
    def ids(self) -> np.ndarray:
        """The ground truth as (H, W) Cityscapes ids instead of train ids."""
        from workbench.pictures.cityscapes import train_ids_to_ids

        return train_ids_to_ids(self.train_ids)


def generate_scene(seed: int, height: int = 512, width: int = 1024) -> Scene:
    """Make a street scene and its exact ground truth.

    The same seed gives the same pixels, and the same composition at every size; a wider picture shows more at
    both sides.

    Args:
        seed: any integer from 0.
        height: rows, 64 to 1024.
        width: columns, 64 to 2048.

    Returns:
        The scene: (height, width, 3) uint8 picture and (height, width) uint8 train ids.

    Raises:
        InputError: the seed or the size is not an integer in range.

    >>> scene = generate_scene(7, 64, 128)
    >>> scene.image.shape, scene.train_ids.shape
    ((64, 128, 3), (64, 128))
    """
    _check_arguments(seed, height, width)
    camera, light, street = plan_world(seed, height, width)
    canvas = draw(seed, camera, light, street, plan_items(seed, light, street))
    image = photograph(canvas, generator(seed, "camera"), generator(seed, f"noise {height} {width}"))
    return Scene(image, np.array(canvas.labels), seed, light.weather)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_arguments(seed: int, height: int, width: int) -> None:
    if not _is_whole(seed) or seed < 0:
        raise InputError(f"got seed {seed!r}; expected an integer from 0; pass for example generate_scene(7)")
    for name, value, largest in (("height", height, LARGEST_HEIGHT), ("width", width, LARGEST_WIDTH)):
        if not _is_whole(value) or not SMALLEST <= value <= largest:
            raise InputError(
                f"got {name} {value!r}; expected an integer from {SMALLEST} to {largest}; "
                "generate at a size in that range and resize the result"
            )


def draw(seed: int, camera: Camera, light: Light, street: Street, items: list[Item]) -> Canvas:
    """Paint the sky, the ground, the shadows on it and then all items, far to near."""
    sky = paint_sky(camera, light, generator(seed, "sky"))
    first, x, z = camera.ground()
    picture = np.zeros((camera.rows, camera.columns, 4), np.uint8)
    picture[..., :3] = np.clip(sky * 255, 0, 255)
    labels = np.full((camera.rows, camera.columns), SKY, np.uint8)
    depth = np.full((camera.rows, camera.columns), SKY_DEPTH_M, np.float32)
    color, labels[first:] = paint_ground(street, light, x, z, generator(seed, "ground"), camera)
    cast, contact = shadow_maps(camera, light, items)
    sunlit = np.asarray(light.shade((0, 1, 0)), np.float32)
    shaded = np.asarray(light.shade((0, 1, 0), 1.0), np.float32)
    factor = sunlit + (shaded - sunlit) * cast[first:, :, None]
    color *= factor * (1 - 0.62 * contact[first:, :, None])
    picture[first:, :, :3] = np.clip(color * 255, 0, 255)
    depth[first:] = np.minimum(z, SKY_DEPTH_M)
    planes = [Image.fromarray(plane) for plane in (picture, labels, depth)]
    canvas = Canvas(camera, light, planes[0], planes[1], planes[2], cast)
    paint_far_row(canvas, END_M, int(generator(seed, "backdrop").integers(1 << 31)))
    for item in sorted(items, key=lambda item: -item.z):
        item.draw(canvas)
    return canvas
