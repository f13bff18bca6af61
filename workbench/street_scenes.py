"""Street scenes made from a seed, with the exact Cityscapes label of every pixel."""

from dataclasses import dataclass, replace
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from workbench import scene_drawing as sd
from workbench.errors import InputError
from workbench.scene_drawing import Camera, Canvas, Color, Item, Light

SMALLEST, LARGEST_HEIGHT, LARGEST_WIDTH = 64, 1024, 2048
END_M = 130.0  # the street ends at the backdrop, this far away
WEATHERS = ("sunny", "overcast", "dusk", "rain", "fog")


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
        from workbench.cityscapes import train_ids_to_ids

        return train_ids_to_ids(self.train_ids)


@dataclass(frozen=True)
class Side:
    """One side of the street, outwards from the kerb; widths in metres."""

    strip: float
    sidewalk: float
    garden: float
    style: str

    @property
    def front(self) -> float:
        """Distance of the house fronts from the kerb."""
        return self.strip + self.sidewalk + self.garden


@dataclass(frozen=True)
class Street:
    """The plan of a street: everything the ground needs."""

    half_road: float
    lanes: int
    parking: float
    left: Side
    right: Side
    crossing: tuple[float, float]  # a side street between these distances; (0, 0) for none
    zebra: float  # distance of a zebra crossing, 0 for none
    dashed: bool
    edge_lines: bool
    tone: float
    season: Color

    def side(self, sign: int) -> Side:
        """The side at x > 0 for sign 1, at x < 0 for -1."""
        return self.right if sign > 0 else self.left

    def front(self, sign: int) -> float:
        """The signed x of the house fronts."""
        return sign * (self.half_road + self.side(sign).front)


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
    camera, light, street = _plan_world(seed, height, width)
    items = _plan_items(seed, camera, light, street)
    canvas = _draw(seed, camera, light, street, items)
    image = _photograph(canvas, _generator(seed, "camera"), _generator(seed, f"noise {height} {width}"))
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


def _generator(seed: int, part: str) -> np.random.Generator:
    """Give each part its own random numbers, so that one part never shifts another."""
    return np.random.default_rng([int(seed), *part.encode()])


def _plan_world(seed: int, height: int, width: int) -> tuple[Camera, Light, Street]:
    street = _plan_street(_generator(seed, "street"))
    rng = _generator(seed, "view")
    light = _plan_light(rng)
    camera = Camera(
        focal=float(rng.uniform(1.1, 1.55)),
        height_m=float(rng.uniform(1.35, 2.1)),
        horizon=float(rng.uniform(0.42, 0.53)),
        shift=float(rng.uniform(-0.16, 0.16)),
        x_m=_own_lane(street) + float(rng.uniform(-0.7, 0.7)),
        curve=float(rng.choice([0, 1]) * rng.uniform(-0.0016, 0.0016)),
        rows=int(height),
        columns=int(width),
    )
    return camera, light, street


def _own_lane(street: Street) -> float:
    """The middle of the lane in which the camera drives: the right one."""
    return street.half_road - street.parking - 1.6


def _plan_street(rng: np.random.Generator) -> Street:
    def side() -> Side:
        style = str(rng.choice(["city", "homes", "avenue"], p=[0.42, 0.33, 0.25]))
        strip = (
            float(rng.uniform(1.2, 2.6))
            if rng.random() < {"city": 0.2, "homes": 0.45, "avenue": 0.8}[style]
            else 0.0
        )
        garden = {"city": 0.0, "homes": float(rng.uniform(2.5, 5)), "avenue": float(rng.uniform(0, 3))}[style]
        return Side(strip, float(rng.uniform(2.2, 4.2)), garden, style)

    lanes = int(rng.choice([2, 2, 3, 4]))
    parking = float(rng.choice([0.0, 2.2], p=[0.3, 0.7]))
    crossing = (0.0, 0.0)
    if rng.random() < 0.55:
        start = float(rng.uniform(18, 45))
        crossing = (start, start + float(rng.uniform(7, 11)))
    zebra = crossing[0] - 5.5 if crossing[0] else float(rng.uniform(9, 24))
    return Street(
        half_road=lanes * 1.6 + parking,
        lanes=lanes,
        parking=parking,
        left=side(),
        right=side(),
        crossing=crossing,
        zebra=zebra if rng.random() < 0.55 else 0.0,
        dashed=bool(rng.random() < 0.7),
        edge_lines=bool(rng.random() < 0.6),
        tone=float(rng.uniform(0.78, 1.15)),
        season=sd.pick(rng, [(84, 112, 54), (92, 122, 60), (76, 104, 58), (128, 116, 56), (150, 106, 52)]),
    )


_UP = (0.0, 1.0, 0.0)
_LIGHTS = {
    "sunny": Light(
        weather="sunny", sun=_UP, sun_color=(0.86, 0.78, 0.62), ambient=(0.66, 0.70, 0.78),
        sky_top=(0.30, 0.50, 0.80), sky_low=(0.78, 0.86, 0.92), clouds=0.0, cloud_color=(0.98, 0.98, 0.98),
        haze=0.0022, wet=0.0, lit_windows=0.01, lamps=False,
    ),
    "overcast": Light(
        weather="overcast", sun=_UP, sun_color=(0.08, 0.08, 0.07), ambient=(1.0, 1.01, 1.02),
        sky_top=(0.64, 0.69, 0.75), sky_low=(0.86, 0.88, 0.90), clouds=1.0, cloud_color=(0.70, 0.73, 0.77),
        haze=0.004, wet=0.0, lit_windows=0.01, lamps=False,
    ),
    "dusk": Light(
        weather="dusk", sun=_UP, sun_color=(0.12, 0.07, 0.04), ambient=(0.64, 0.59, 0.68),
        sky_top=(0.24, 0.30, 0.50), sky_low=(0.94, 0.66, 0.52), clouds=0.4, cloud_color=(0.62, 0.46, 0.50),
        haze=0.004, wet=0.0, lit_windows=0.42, lamps=True,
    ),
    "rain": Light(
        weather="rain", sun=_UP, sun_color=(0.0, 0.0, 0.0), ambient=(0.80, 0.83, 0.88),
        sky_top=(0.50, 0.54, 0.60), sky_low=(0.72, 0.75, 0.79), clouds=1.0, cloud_color=(0.60, 0.63, 0.68),
        haze=0.009, wet=1.0, lit_windows=0.2, lamps=True,
    ),
    "fog": Light(
        weather="fog", sun=_UP, sun_color=(0.04, 0.04, 0.03), ambient=(0.95, 0.96, 0.97),
        sky_top=(0.72, 0.75, 0.78), sky_low=(0.83, 0.84, 0.85), clouds=-1.0, cloud_color=(0.80, 0.80, 0.80),
        haze=0.019, wet=0.0, lit_windows=0.1, lamps=False,
    ),
}  # fmt: skip


def _plan_light(rng: np.random.Generator) -> Light:
    weather = str(rng.choice(WEATHERS, p=[0.4, 0.22, 0.13, 0.14, 0.11]))
    turn, rise = float(rng.uniform(0, 2 * pi)), float(rng.uniform(0.6, 1.05))
    ahead = -abs(sin(turn)) * float(rng.choice([1, 1, -0.6]))
    light = replace(_LIGHTS[weather], sun=(cos(turn) * cos(rise), sin(rise), ahead * cos(rise)))
    share = float(rng.random())
    if weather == "sunny":
        return replace(
            light,
            sky_top=sd.scaled(light.sky_top, 0.85 + 0.25 * share),
            clouds=1.5 * float(rng.random()) - 0.6,
        )
    if weather == "dusk":
        return replace(light, sky_low=sd.scaled(light.sky_low, (1.0, 0.92 + 0.2 * share, 0.9 + 0.25 * share)))
    if weather == "fog":
        return replace(light, haze=0.014 + 0.012 * share, lamps=bool(rng.random() < 0.6))
    return light


def _plan_items(seed: int, camera: Camera, light: Light, street: Street) -> list[Item]:
    items: list[Item] = []
    for sign in (-1, 1):
        items += _plan_lots(_generator(seed, f"lots {sign}"), street, sign)
        items += _plan_trees(_generator(seed, f"trees {sign}"), street, sign)
        items += _plan_furniture(_generator(seed, f"furniture {sign}"), street, sign)
        items += _plan_parked(_generator(seed, f"parked {sign}"), street, sign)
        items += _plan_people(_generator(seed, f"people {sign}"), street, sign, light)
    items += _plan_traffic(_generator(seed, "traffic"), street)
    items += _plan_crossers(_generator(seed, "crossers"), street, light)
    items += _plan_riders(_generator(seed, "riders"), street)
    return items


def _in_crossing(street: Street, z: float, margin: float = 1.0) -> bool:
    return street.crossing[1] > 0 and street.crossing[0] - margin < z < street.crossing[1] + margin


def _plan_lots(rng: np.random.Generator, street: Street, sign: int) -> list[Item]:
    """Put houses, gardens, walls and fences along one side."""
    items: list[Item] = []
    side, z = street.side(sign), -4.0 - float(rng.uniform(0, 6))
    while z < END_M - 8:
        length = float(rng.uniform(9, 20))
        start, stop = street.crossing[0] - 2.5, street.crossing[1] + 2.5
        if street.crossing[1] and z < stop and z + length > start:
            length = start - z
            if length < 6:
                z = stop
                continue
        if rng.random() < {"city": 0.9, "homes": 0.8, "avenue": 0.72}[side.style]:
            gap = 0.0 if side.style == "city" else float(rng.uniform(1.5, 5))
            items += sd.building_items(_plan_house(rng, street, sign, z, z + max(6.0, length - gap)))
        else:
            items += _plan_park(rng, street, sign, z, z + length)
        items += _plan_boundary(rng, street, sign, z, z + length)
        z += length
    return items


def _plan_house(rng: np.random.Generator, street: Street, sign: int, z0: float, z1: float) -> sd.Building:
    style = street.side(sign).style
    city = style == "city"
    wall = sd.varied(rng, sd.pick(rng, sd.WALL_COLORS))
    floors = (
        int(rng.integers(2, 6))
        if city
        else int(rng.integers(1, 3))
        if style == "homes"
        else int(rng.integers(2, 5))
    )
    flat = rng.random() < {"city": 0.45, "homes": 0.05, "avenue": 0.6}[style]
    base = sd.scaled(sd.mixed(wall, (150, 146, 140), 0.5), 0.85) if rng.random() < 0.6 else wall
    return sd.Building(
        side=sign, front=street.front(sign), z0=z0, z1=z1, floors=floors,
        ground_floor=float(rng.uniform(3.6, 4.4)) if city else 3.0, floor=float(rng.uniform(2.9, 3.5)),
        bays=max(2, round((z1 - z0) / float(rng.uniform(2.6, 3.6)))), wall=wall,
        trim=sd.mixed(wall, (232, 228, 218), float(rng.uniform(0.5, 0.9))), base=base,
        roof=sd.varied(rng, sd.pick(rng, sd.ROOF_COLORS)),
        roof_height=0.6 if flat else float(rng.uniform(2.5, 4.5)),
        shop=bool(city and rng.random() < 0.7), balconies=bool(rng.random() < 0.22),
        window=(float(rng.uniform(0.36, 0.58)), float(rng.uniform(0.48, 0.66)), bool(rng.random() < 0.7)),
        seed=int(rng.integers(1 << 31)),
    )  # fmt: skip


def _plan_park(rng: np.random.Generator, street: Street, sign: int, z0: float, z1: float) -> list[Item]:
    items = []
    for _ in range(int(rng.integers(2, 5))):
        x = street.front(sign) + sign * float(rng.uniform(2.5, 11))
        items.append(_tree(rng, street, x, float(rng.uniform(max(z0, 7), max(z1, 9)))))
    return items


def _plan_boundary(rng: np.random.Generator, street: Street, sign: int, z0: float, z1: float) -> list[Item]:
    """Fence a front garden or a park off from the sidewalk."""
    side = street.side(sign)
    z0, z1 = max(z0, 2.5), min(z1, 70.0)
    if side.style == "city" or z1 < z0 + 2:
        return []
    x = sign * (street.half_road + side.strip + side.sidewalk + 0.15)
    kind = str(rng.choice(["none", "hedge", "planks", "mesh", "wall"], p=[0.16, 0.2, 0.26, 0.2, 0.18]))
    height = float(rng.uniform(1.0, 1.7))
    if kind == "none":
        return []
    if kind == "hedge":
        return sd.hedge_items(
            x, z0, z1, height, sd.scaled(sd.varied(rng, (70, 98, 52)), 0.9), int(rng.integers(1 << 31))
        )
    color = sd.varied(rng, sd.pick(rng, BARRIER_COLORS[kind]))
    return sd.barrier_items(x, z0, z1 - 0.4, height, kind, color)


BARRIER_COLORS = {
    "planks": [(134, 104, 76), (112, 92, 76), (176, 172, 162), (96, 106, 98)],
    "mesh": [(78, 92, 84), (66, 68, 72), (120, 124, 126)],
    "wall": [(168, 158, 144), (146, 92, 74), (186, 180, 168)],
}


def _tree(rng: np.random.Generator, street: Street, x: float, z: float) -> Item:
    height = float(rng.uniform(5.5, 10.5))
    shape = float(rng.choice([0.9, 1.1, 1.6]))
    crown = min(height * float(rng.uniform(0.24, 0.36)) / shape**0.5, (height - 2.4) / (2 * shape) * 1.15)
    leaf = sd.varied(rng, street.season, 0.07)
    return sd.tree_item(x, z, height, crown, shape, leaf, int(rng.integers(1 << 31)))


def _plan_trees(rng: np.random.Generator, street: Street, sign: int) -> list[Item]:
    """Plant a row of street trees on the strip or at the kerb, and a few in the gardens."""
    side, items = street.side(sign), []
    spacing = float(rng.uniform(8, 15))
    if rng.random() < {"city": 0.4, "homes": 0.45, "avenue": 0.9}[side.style]:
        x = sign * (street.half_road + (side.strip * 0.55 if side.strip else 0.75))
        z = float(rng.uniform(7, 16))
        while z < 85:
            if not _in_crossing(street, z, 4) and rng.random() < 0.85:
                items.append(_tree(rng, street, x, z))
            z += spacing * float(rng.uniform(0.85, 1.2))
    if side.garden > 2:
        for _ in range(int(rng.integers(1, 5))):
            z = float(rng.uniform(10, 60))
            if not _in_crossing(street, z, 4):
                items.append(_tree(rng, street, street.front(sign) - sign * side.garden * 0.5, z))
    return items


def _plan_furniture(rng: np.random.Generator, street: Street, sign: int) -> list[Item]:
    """Put street lamps, traffic lights, signs and leaning bicycles near the kerb."""
    x = sign * (street.half_road + 0.55)
    metal = sd.varied(rng, sd.pick(rng, [(118, 122, 124), (70, 76, 74), (92, 92, 94), (60, 66, 72)]))
    items: list[Item] = []
    z = float(rng.uniform(8, 18))
    while z < 42 and rng.random() < 0.9:
        items.append(
            sd.lamp_item(x, z, float(rng.uniform(5.5, 7.5)), -sign * float(rng.uniform(0.9, 1.8)), metal)
        )
        z += float(rng.uniform(14, 22))
    if street.crossing[1] or street.zebra:  # a light where streets or people cross
        at = (street.zebra or street.crossing[0]) - 1.2
        if rng.random() < 0.9 and at < 36:
            arm = -sign * float(rng.uniform(2.2, 3.6)) if sign > 0 and rng.random() < 0.5 else 0.0
            items.append(sd.traffic_light_item(x + sign * 0.2, at, int(rng.integers(3)), arm, metal))
    for number in range(int(rng.integers(1, 4))):
        kinds = sd.pick(rng, sd.SIGN_GROUPS)
        items.append(
            sd.sign_item(
                x + sign * float(rng.uniform(0, 0.4)),
                7.5 + 7.5 * number + float(rng.uniform(0, 5)),
                kinds,
                metal,
            )
        )
    for _ in range(int(rng.integers(0, 4))):
        z, yaw = float(rng.uniform(7, 24)), pi / 2 + float(rng.uniform(-0.3, 0.3))
        frame = sd.varied(rng, sd.pick(rng, BICYCLE_COLORS))
        items.append(sd.bicycle_item(x + sign * 0.7, z, yaw, frame, None, bool(rng.random() < 0.15)))
    return items


BICYCLE_COLORS = [(120, 36, 36), (44, 66, 96), (50, 52, 54), (150, 150, 146), (60, 96, 72), (168, 128, 58)]
PAINTS = [
    (206, 208, 208), (156, 160, 164), (108, 112, 116), (48, 50, 54), (38, 48, 74), (126, 34, 34),
    (66, 88, 116), (176, 166, 144), (50, 74, 60), (224, 222, 214), (86, 92, 100), (150, 64, 40), (30, 32, 34),
]  # fmt: skip


def _vehicle(
    rng: np.random.Generator, kind: str, x: float, z: float, yaw: float, braking: bool = False
) -> Item:
    paint = sd.varied(rng, sd.pick(rng, PAINTS))
    if kind == "bus":
        paint = sd.varied(rng, sd.pick(rng, [(170, 52, 44), (206, 172, 74), (66, 104, 140), (210, 208, 200)]))
    return sd.vehicle_item(sd.Vehicle(sd.BODIES[kind], x, z, yaw, paint, braking, int(rng.integers(1 << 31))))


def _plan_parked(rng: np.random.Generator, street: Street, sign: int) -> list[Item]:
    if not street.parking:
        return []
    items = []
    full = float(rng.uniform(0.4, 0.95))
    z = float(rng.uniform(4.2, 9))
    while z < 75:
        if (
            not _in_crossing(street, z, 5)
            and not street.zebra - 3 < z < street.zebra + 6
            and rng.random() < full
        ):
            kind = str(rng.choice(["sedan", "hatch", "suv", "van"], p=[0.32, 0.36, 0.22, 0.1]))
            yaw = (0.0 if sign > 0 or rng.random() < 0.2 else pi) + float(rng.normal(0, 0.015))
            items.append(_vehicle(rng, kind, sign * (street.half_road - 1.1), z, yaw))
        z += float(rng.uniform(5.4, 6.4))
    return items


def _plan_traffic(rng: np.random.Generator, street: Street) -> list[Item]:
    """Let vehicles drive: ahead in our direction on the right, towards us on the left, and across."""
    items = []
    width = street.half_road - street.parking
    own = _own_lane(street)
    lanes = (
        [(own, 0.0)]
        + [(-width / 2 if street.lanes < 4 else -1.6, pi)]
        + ([(-4.8, pi), (1.6, 0.0)] if street.lanes == 4 else [])
    )
    for x, yaw in lanes:
        z = float(rng.uniform(9, 26))
        braking = bool(rng.random() < 0.4)
        while z < 90 and rng.random() < 0.72:
            kind = str(
                rng.choice(
                    ["sedan", "hatch", "suv", "van", "bus", "truck"], p=[0.3, 0.28, 0.19, 0.09, 0.07, 0.07]
                )
            )
            place = z + (5 if kind in ("bus", "truck") else 0)
            items.append(
                _vehicle(rng, kind, x + float(rng.normal(0, 0.15)), place, yaw, braking and yaw == 0)
            )
            z = place + float(rng.uniform(9, 26))
    if street.crossing[1] and rng.random() < 0.5:
        z = sum(street.crossing) / 2 + float(rng.uniform(-1, 1))
        toward = float(rng.choice([-1, 1]))
        items.append(
            _vehicle(
                rng,
                str(rng.choice(["sedan", "hatch", "suv"])),
                toward * float(rng.uniform(5, 13)),
                z,
                toward * pi / 2,
            )
        )
    return items


def _plan_people(rng: np.random.Generator, street: Street, sign: int, light: Light) -> list[Item]:
    side, items = street.side(sign), []
    for _ in range(int(rng.integers(1, 6))):
        z = 6.5 + 26 * float(rng.random()) ** 1.3
        x = sign * (street.half_road + side.strip + 1.0 + float(rng.random()) * max(0.3, side.sidewalk - 1.6))
        for _ in range(int(rng.choice([1, 1, 2]))):
            look = sd.random_look(rng, light.wet > 0)
            items.append(sd.person_item(x, z, look))
            x += sign * float(rng.uniform(0.55, 0.75))
            z += float(rng.uniform(-0.3, 0.3))
    return items


def _plan_crossers(rng: np.random.Generator, street: Street, light: Light) -> list[Item]:
    if not street.zebra or rng.random() < 0.3:
        return []
    items = []
    for _ in range(int(rng.integers(1, 4))):
        x = float(rng.uniform(-street.half_road, street.half_road))
        z = street.zebra + float(rng.uniform(0.5, 3))
        look = replace(sd.random_look(rng, light.wet > 0), from_side=True)
        items.append(sd.person_item(x, z, look))
    return items


def _plan_riders(rng: np.random.Generator, street: Street) -> list[Item]:
    items = []
    edge = street.half_road - street.parking - 0.7
    for number in range(int(rng.choice([0, 1, 1, 2, 3]))):
        motor = bool(rng.random() < 0.35)
        look = replace(sd.random_look(rng, False), skirt=False, umbrella=None)
        frame = sd.varied(rng, sd.pick(rng, BICYCLE_COLORS))
        z = float(rng.uniform(7, 13)) + 4.5 * number
        if rng.random() < 0.25:
            x, yaw = (
                float(rng.uniform(-4, 4)),
                float(rng.choice([-1, 1])) * (pi / 2 + float(rng.uniform(-0.4, 0.4))),
            )
            z = 1.6 * number + (
                street.zebra + 2 if street.zebra else street.crossing[0] + 2 if street.crossing[0] else z
            )
        else:
            x, yaw = (edge, 0.0) if rng.random() < 0.6 else (-edge, pi)
        items.append(sd.bicycle_item(x, z, yaw, frame, look, motor))
    return items


def _draw(seed: int, camera: Camera, light: Light, street: Street, items: list[Item]) -> Canvas:
    """Paint the sky, the ground, the shadows on it and then all items, far to near."""
    sky = _paint_sky(camera, light, _generator(seed, "sky"))
    first, x, z = camera.ground()
    picture = np.zeros((camera.rows, camera.columns, 4), np.uint8)
    picture[..., :3] = np.clip(sky * 255, 0, 255)
    labels = np.full((camera.rows, camera.columns), sd.SKY, np.uint8)
    depth = np.full((camera.rows, camera.columns), sd.SKY_DEPTH_M, np.float32)
    color, labels[first:] = _paint_ground(street, light, x, z, _generator(seed, "ground"), camera)
    cast, contact = _shadow_maps(camera, light, items)
    sunlit = np.asarray(light.shade((0, 1, 0)), np.float32)
    shaded = np.asarray(light.shade((0, 1, 0), 1.0), np.float32)
    factor = sunlit + (shaded - sunlit) * cast[first:, :, None]
    color *= factor * (1 - 0.62 * contact[first:, :, None])
    picture[first:, :, :3] = np.clip(color * 255, 0, 255)
    depth[first:] = np.minimum(z, sd.SKY_DEPTH_M)
    planes = [Image.fromarray(plane) for plane in (picture, labels, depth)]
    canvas = Canvas(camera, light, planes[0], planes[1], planes[2], cast)
    sd.backdrop(canvas, END_M, int(_generator(seed, "backdrop").integers(1 << 31)), 0.6)
    for item in sorted(items, key=lambda item: -item.z):
        item.draw(canvas)
    return canvas


def _paint_sky(camera: Camera, light: Light, rng: np.random.Generator) -> np.ndarray:
    rows, columns = camera.rows, camera.columns
    up = np.clip(1 - (np.arange(rows, dtype=np.float32) + 0.5) / rows / camera.horizon, 0, 1)[:, None, None]
    sky = np.asarray(light.sky_low, np.float32) + up**0.7 * np.subtract(light.sky_top, light.sky_low).astype(
        np.float32
    )
    reach = 4.0  # the clouds cover a band this many heights wide, of which the picture shows its middle
    high = max(32, rows // 2)
    wide = sd.smooth_noise(rng, 7, high, int(high * reach), 4, wide=reach * 0.55)
    middle = wide.shape[1] // 2
    half = min(middle, max(1, round(columns / rows / 2 * wide.shape[0])))
    noise = np.asarray(
        Image.fromarray(wide[:, middle - half : middle + half]).resize(
            (columns, rows), Image.Resampling.BILINEAR
        )
    )
    cover = np.clip((noise + light.clouds) * 0.6, 0, 1)[..., None] * np.clip(up * 3, 0, 1) * 0.9
    lit = np.asarray(light.cloud_color, np.float32) * (1 - 0.06 * np.clip(noise, -1, 1.5)[..., None])
    return sky * np.ones((1, columns, 1), np.float32) * (1 - cover) + lit * cover


def _band(distance: np.ndarray, half_width: float, footprint: np.ndarray) -> np.ndarray:
    """Tell how much of a pixel a painted line covers: 0..1."""
    return np.clip((half_width - np.abs(distance)) / footprint + 0.5, 0, 1)


def _paint_ground(
    street: Street, light: Light, x: np.ndarray, z: np.ndarray, rng: np.random.Generator, camera: Camera
) -> tuple[np.ndarray, np.ndarray]:
    """Give the unlit colour (rows, columns, 3) in 0..1 and the label of each ground pixel."""
    beyond = np.abs(x) - street.half_road
    strip = np.where(x > 0, street.right.strip, street.left.strip).astype(np.float32)
    walk = np.where(x > 0, street.right.sidewalk, street.left.sidewalk).astype(np.float32) + strip
    paved = np.where(x > 0, street.right.style == "city", street.left.style == "city")
    crossing = (z > street.crossing[0]) & (z < street.crossing[1])
    road = (beyond < 0) | crossing
    grass = ~road & (((beyond > 0.25) & (beyond < strip)) | ((beyond > walk) & ~paved))
    labels = np.where(road, sd.ROAD, np.where(grass, sd.TERRAIN, sd.SIDEWALK)).astype(np.uint8)
    tile = sd.smooth_noise(rng, 32, 256, 512, 3)[:, :256] * 0.6
    grain = rng.normal(0, 1, (256, 256)).astype(np.float32)
    near = 1 / (1 + (z / 9) ** 2)

    def lookup(texture: np.ndarray, per_m: float) -> np.ndarray:
        return texture[(z * per_m).astype(np.int32) & 255, (x * per_m).astype(np.int32) & 255]

    broad, fine = lookup(tile, 5.0), lookup(grain, 45.0) * near
    color = np.empty((*x.shape, 3), np.float32)
    tint = np.asarray(sd.pick(rng, [(1.0, 1.0, 1.02), (1.02, 1.0, 0.97), (0.99, 1.0, 1.0)]), np.float32)
    asphalt = (0.40 * street.tone * (1 + 0.045 * broad + 0.06 * fine + _wear(street, x)))[..., None] * tint
    color[:] = asphalt * (0.62 if light.wet else 1.0)
    _paint_markings(street, color, x, z, broad, camera, rng)
    _paint_slabs(color, labels == sd.SIDEWALK, x, z, beyond, grain, broad + fine, camera, rng, light.wet)
    lawn = np.asarray(sd.scaled(sd.mixed(street.season, (104, 110, 62), 0.6), 1 / 255), np.float32)
    blades = 1 + 0.13 * broad + 0.2 * fine + 0.1 * lookup(grain, 12.0) * near
    color[grass] = lawn * blades[grass][:, None]
    return color, labels


def _wear(street: Street, x: np.ndarray) -> np.ndarray:
    """Lighter tracks where wheels run, darker gutters."""
    tracks = 0.05 * np.cos((x / 1.6) * 2 * pi)
    return tracks - 0.22 * np.exp(-(((np.abs(x) - street.half_road) / 0.3) ** 2))


def _paint_markings(
    street: Street,
    color: np.ndarray,
    x: np.ndarray,
    z: np.ndarray,
    broad: np.ndarray,
    camera: Camera,
    rng: np.random.Generator,
) -> None:
    """Paint lines and the zebra crossing; all of it stays road."""
    foot_x = z / (camera.focal * camera.rows)
    foot_z = z * z / (camera.focal * camera.height_m * camera.rows)
    open_road = (
        ~((z > street.crossing[0] - 6.5) & (z < street.crossing[1] + 1))
        if street.crossing[1]
        else np.ones_like(z, bool)
    )
    if street.zebra:
        open_road = open_road & ((z < street.zebra - 1.5) | (z > street.zebra + 5))
    phase = float(rng.uniform(0, 6))
    dashes = np.clip((1.5 - np.abs((z + phase) % 6 - 3)) / foot_z + 0.5, 0, 1)
    dashes = np.where(foot_z > 3, 0.5, dashes)
    width = street.half_road - street.parking
    paint = _band(x, 0.07, foot_x) * (dashes if street.dashed else 1.0)
    inner = [-3.2, 3.2] if street.lanes == 4 else []
    for line in inner:
        paint = np.maximum(paint, _band(x - line, 0.06, foot_x) * dashes)
    if street.edge_lines:
        for line in (-width + 0.12, width - 0.12):
            paint = np.maximum(paint, _band(x - line, 0.06, foot_x))
    paint = paint * open_road
    if street.zebra:
        stripes = np.clip((0.27 - np.abs((x + 40) % 1.05 - 0.525)) / foot_x + 0.5, 0, 1)
        paint = np.maximum(
            paint,
            stripes * _band(z - street.zebra - 1.75, 1.75, foot_z) * (np.abs(x) < street.half_road - 0.3),
        )
        stop = _band(z - street.zebra + 1.2, 0.22, foot_z) * ((x > 0.2) & (x < width - 0.1))
        paint = np.maximum(paint, stop)
    worn = np.clip(0.80 + 0.14 * broad, 0.25, 0.95) * paint
    color += worn[..., None] * (np.asarray((0.80, 0.80, 0.77), np.float32) - color)


def _paint_slabs(
    color: np.ndarray, where: np.ndarray, x: np.ndarray, z: np.ndarray, beyond: np.ndarray, grain: np.ndarray,
    stain: np.ndarray, camera: Camera, rng: np.random.Generator, wet: float,
) -> None:  # fmt: skip
    """Pave the sidewalks with slabs, each a little different, and a lighter kerb."""
    size = float(rng.uniform(0.5, 1.1))
    foot_x = z / (camera.focal * camera.rows)
    foot_z = z * z / (camera.focal * camera.height_m * camera.rows)
    tone = grain[np.floor(z / size).astype(np.int32) & 255, np.floor(x / size).astype(np.int32) & 255]
    tone = tone * np.clip(0.06 - foot_z * 0.03, 0, 1)
    joint = np.maximum(_joints(x, size, foot_x), _joints(z, size, foot_z))
    base = np.asarray(
        sd.scaled(
            sd.pick(rng, [(176, 172, 164), (164, 162, 160), (178, 166, 152), (158, 150, 144)]), 1 / 255
        ),
        np.float32,
    )
    kerb = (beyond < 0.22) & (beyond >= 0)
    level = (1 + tone + 0.03 * stain) * (1 - 0.3 * joint)
    level = np.where(kerb, 1.12 + 0.03 * stain, level) * (1 - 0.55 * _band(beyond - 0.235, 0.015, foot_x))
    color[where] = (base * (0.68 if wet else 0.94)) * level[where][:, None]


def _joints(along: np.ndarray, size: float, footprint: np.ndarray) -> np.ndarray:
    """Tell how much of a pixel the joints between slabs cover, along one direction: 0..1."""
    part = (along / size) % 1
    distance = np.minimum(part, 1 - part) * size
    return np.clip(1 - distance / np.maximum(footprint, 0.012), 0, 1) * np.clip(0.025 / footprint, 0, 1)


def _shadow_maps(camera: Camera, light: Light, items: list[Item]) -> tuple[np.ndarray, np.ndarray]:
    """Give the cast and the contact shadows on the ground, (rows, columns) float32 in 0..1."""
    cast, contact = (Image.new("L", (camera.columns, camera.rows)) for _ in range(2))
    pens = ImageDraw.Draw(cast), ImageDraw.Draw(contact)
    strong = sum(light.sun_color) > 0.5
    dx, dz = (-light.sun[0] / light.sun[1], -light.sun[2] / light.sun[1])
    for item in items:
        if item.foot:
            _fill_ground(pens[1], camera, sd.hull(item.foot))
        if item.cast and strong:
            _fill_ground(pens[0], camera, sd.hull([(x + dx * y, z + dz * y) for x, z, y in item.cast]))
    blurs = (0.0022, 0.006)
    cast, contact = (
        plane.filter(ImageFilter.GaussianBlur(blur * camera.rows))
        for plane, blur in zip((cast, contact), blurs, strict=True)
    )
    return np.asarray(cast, np.float32) / 255, np.asarray(contact, np.float32) / 255


def _fill_ground(pen: ImageDraw.ImageDraw, camera: Camera, points: list[sd.Point]) -> None:
    outline = camera.outline([(x, 0.0, z) for x, z in points])
    if len(outline) > 2:
        pen.polygon([(min(1e5, max(-1e5, u)), min(1e5, max(-1e5, v))) for u, v in outline], fill=255)


def _photograph(canvas: Canvas, rng: np.random.Generator, noise: np.random.Generator) -> np.ndarray:
    """Turn the painted planes into a photograph: texture, wet reflections, haze, glow, lens and sensor."""
    planes = np.asarray(canvas.picture)
    material = planes[..., 3]
    color = planes[..., :3].astype(np.float32) / 255
    labels, depth = np.asarray(canvas.labels), np.asarray(canvas.depth)
    light, camera = canvas.light, canvas.camera
    _texture(color, material, rng)
    if light.wet:
        _reflect(color, labels, camera, rng)
    haze = 0.98 * np.asarray(light.sky_low, np.float32)
    clear = np.exp(-light.haze * depth)[..., None]
    clear[labels == sd.SKY] = 1.0
    color *= clear
    color += haze * (1 - clear)
    if light.lamps:
        _glow(color, material, camera)
    return _expose(color, camera, rng, noise)


def _texture(color: np.ndarray, material: np.ndarray, rng: np.random.Generator) -> None:
    rows, columns = material.shape
    speckle = sd.smooth_noise(rng, 96, rows, columns, 2)
    broad = sd.smooth_noise(rng, 6, rows, columns, 2)
    strength = np.asarray([0.0, 0.022, 0.13, 0.0], np.float32)[np.minimum(material, 3)]
    softly = np.asarray([0.012, 0.035, 0.05, 0.0], np.float32)[np.minimum(material, 3)]
    color *= (1 + strength * speckle + softly * broad)[..., None]


def _reflect(color: np.ndarray, labels: np.ndarray, camera: Camera, rng: np.random.Generator) -> None:
    """Mirror what stands on a wet street: a ground pixel sees its own column, turned about the foot."""
    rows, columns = labels.shape
    ground = (labels == sd.ROAD) | (labels == sd.SIDEWALK)
    row = np.arange(rows)[:, None]
    foot = np.maximum.accumulate(np.where(ground, -1, row), axis=0)
    source = np.clip(2 * foot - row, 0, rows - 1)
    mirror = color[source, np.arange(columns)[None]]
    picture = Image.fromarray((np.clip(mirror, 0, 1) * 255).astype(np.uint8))
    squeezed = picture.resize((columns, max(8, rows // 24)), Image.Resampling.BOX).resize(
        (columns, rows), Image.Resampling.BICUBIC
    )
    soft = np.asarray(squeezed, np.float32) / 255
    puddles = np.clip(0.5 + 0.35 * sd.smooth_noise(rng, 7, rows, columns, 3), 0.15, 1)
    share = np.where(labels == sd.ROAD, 0.44, 0.24) * puddles * ground
    color += share[..., None].astype(np.float32) * (soft * 1.05 - color * 0.5)


def _glow(color: np.ndarray, material: np.ndarray, camera: Camera) -> None:
    bright = color * (material == sd.GLOWING)[..., None] * (color.max(axis=2) > 0.75)[..., None]
    small = Image.fromarray((np.clip(bright, 0, 1) * 255).astype(np.uint8)).reduce(2)
    halo = small.filter(ImageFilter.GaussianBlur(camera.rows * 0.012)).resize(
        (camera.columns, camera.rows), Image.Resampling.BILINEAR
    )
    color += np.asarray(halo, np.float32) / 255 * 1.1


def _expose(
    color: np.ndarray, camera: Camera, rng: np.random.Generator, noise: np.random.Generator
) -> np.ndarray:
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
    soft = Image.fromarray((np.clip(color, 0, 1) * 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(float(rng.uniform(0.55, 0.8)) * max(0.8, rows / 512))
    )
    sigma = float(rng.uniform(1.0, 3.2))
    grain = noise.standard_normal((rows, columns, 3), np.float32) * sigma
    return np.clip(np.asarray(soft, np.float32) + grain, 0, 255).astype(np.uint8)
