"""What stands where along a street: houses, trees, furniture, vehicles and people."""

from dataclasses import replace
from math import pi

import numpy as np

from street_scenes.canvas import Camera, Item
from street_scenes.cycles import cycle_item
from street_scenes.furniture import BARRIER_COLORS, SIGN_GROUPS, barrier_items, lamp_item, sign_item, traffic_light_item
from street_scenes.greenery import hedge_items, tree_item
from street_scenes.houses import ROOF_COLORS, WALL_COLORS, Building, building_items
from street_scenes.light import Light, plan_light
from street_scenes.people import person_item, random_look
from street_scenes.shapes import mixed, pick, scaled, varied
from street_scenes.street import Street, plan_street
from street_scenes.vehicles import BODIES, Vehicle, vehicle_item

END_M = 130.0  # the street ends at a far row of houses and trees, this far away
METAL_COLORS = [(118, 122, 124), (70, 76, 74), (92, 92, 94), (60, 66, 72)]
CYCLE_COLORS = [(120, 36, 36), (44, 66, 96), (50, 52, 54), (150, 150, 146), (60, 96, 72), (168, 128, 58)]
BUS_COLORS = [(170, 52, 44), (206, 172, 74), (66, 104, 140), (210, 208, 200)]
CAR_COLORS = [
    (206, 208, 208), (156, 160, 164), (108, 112, 116), (48, 50, 54), (38, 48, 74), (126, 34, 34),
    (66, 88, 116), (176, 166, 144), (50, 74, 60), (224, 222, 214), (86, 92, 100), (150, 64, 40), (30, 32, 34),
]  # fmt: skip


def generator(seed: int, part: str) -> np.random.Generator:
    """Give each part its own random numbers, so that one part never shifts another."""
    return np.random.default_rng([int(seed), *part.encode()])


def plan_world(seed: int, height: int, width: int) -> tuple[Camera, Light, Street]:
    """Choose the street, the weather, and from where the camera looks."""
    street = plan_street(generator(seed, "street"))
    rng = generator(seed, "view")
    light = plan_light(rng)
    camera = Camera(
        focal=float(rng.uniform(1.1, 1.55)),
        height_m=float(rng.uniform(1.35, 2.1)),
        horizon=float(rng.uniform(0.42, 0.53)),
        shift=float(rng.uniform(-0.16, 0.16)),
        x_m=street.own_lane + float(rng.uniform(-0.7, 0.7)),
        curve=float(rng.choice([0, 1]) * rng.uniform(-0.0016, 0.0016)),
        rows=int(height),
        columns=int(width),
    )
    return camera, light, street


def plan_items(seed: int, light: Light, street: Street) -> list[Item]:
    """Choose everything that stands, drives and walks in the street."""
    items: list[Item] = []
    for sign in (-1, 1):
        items += _plan_lots(generator(seed, f"lots {sign}"), street, sign)
        items += _plan_trees(generator(seed, f"trees {sign}"), street, sign)
        items += _plan_furniture(generator(seed, f"furniture {sign}"), street, sign)
        items += _plan_parked(generator(seed, f"parked {sign}"), street, sign)
        items += _plan_people(generator(seed, f"people {sign}"), street, sign, light)
    items += _plan_traffic(generator(seed, "traffic"), street)
    items += _plan_crossers(generator(seed, "crossers"), street, light)
    items += _plan_riders(generator(seed, "riders"), street)
    return items


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
            items += building_items(_plan_house(rng, street, sign, z, z + max(6.0, length - gap)))
        else:
            items += _plan_park(rng, street, sign, z, z + length)
        items += _plan_boundary(rng, street, sign, z, z + length)
        z += length
    return items


def _plan_house(rng: np.random.Generator, street: Street, sign: int, z0: float, z1: float) -> Building:
    style = street.side(sign).style
    city = style == "city"
    wall = varied(rng, pick(rng, WALL_COLORS))
    floors = int(rng.integers(*{"city": (2, 6), "homes": (1, 3), "avenue": (2, 5)}[style]))
    flat = rng.random() < {"city": 0.45, "homes": 0.05, "avenue": 0.6}[style]
    base = scaled(mixed(wall, (150, 146, 140), 0.5), 0.85) if rng.random() < 0.6 else wall
    return Building(
        side=sign,
        front=street.front(sign),
        z0=z0,
        z1=z1,
        floors=floors,
        ground_floor=float(rng.uniform(3.6, 4.4)) if city else 3.0,
        floor=float(rng.uniform(2.9, 3.5)),
        bays=max(2, round((z1 - z0) / float(rng.uniform(2.6, 3.6)))),
        wall=wall,
        trim=mixed(wall, (232, 228, 218), float(rng.uniform(0.5, 0.9))),
        base=base,
        roof=varied(rng, pick(rng, ROOF_COLORS)),
        roof_height=0.6 if flat else float(rng.uniform(2.5, 4.5)),
        shop=bool(city and rng.random() < 0.7),
        balconies=bool(rng.random() < 0.22),
        window=(float(rng.uniform(0.36, 0.58)), float(rng.uniform(0.48, 0.66)), bool(rng.random() < 0.7)),
        seed=int(rng.integers(1 << 31)),
    )


def _plan_park(rng: np.random.Generator, street: Street, sign: int, z0: float, z1: float) -> list[Item]:
    items = []
    for _ in range(int(rng.integers(2, 5))):
        x = street.front(sign) + sign * float(rng.uniform(2.5, 11))
        items.append(_plan_tree(rng, street, x, float(rng.uniform(max(z0, 7), max(z1, 9)))))
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
        leaf = scaled(varied(rng, (70, 98, 52)), 0.9)
        return hedge_items(x, z0, z1, height, leaf, int(rng.integers(1 << 31)))
    return barrier_items(x, z0, z1 - 0.4, height, kind, varied(rng, pick(rng, BARRIER_COLORS[kind])))


def _plan_tree(rng: np.random.Generator, street: Street, x: float, z: float) -> Item:
    height = float(rng.uniform(5.5, 10.5))
    shape = float(rng.choice([0.9, 1.1, 1.6]))
    crown = min(height * float(rng.uniform(0.24, 0.36)) / shape**0.5, (height - 2.4) / (2 * shape) * 1.15)
    leaf = varied(rng, street.season, 0.07)
    return tree_item(x, z, height, crown, shape, leaf, int(rng.integers(1 << 31)))


def _plan_trees(rng: np.random.Generator, street: Street, sign: int) -> list[Item]:
    """Plant a row of street trees on the strip or at the kerb, and a few in the gardens."""
    side, items = street.side(sign), []
    spacing = float(rng.uniform(8, 15))
    if rng.random() < {"city": 0.4, "homes": 0.45, "avenue": 0.9}[side.style]:
        x = sign * (street.half_road + (side.strip * 0.55 if side.strip else 0.75))
        z = float(rng.uniform(7, 16))
        while z < 85:
            if not street.in_crossing(z, 4) and rng.random() < 0.85:
                items.append(_plan_tree(rng, street, x, z))
            z += spacing * float(rng.uniform(0.85, 1.2))
    if side.garden > 2:
        for _ in range(int(rng.integers(1, 5))):
            z = float(rng.uniform(10, 60))
            if not street.in_crossing(z, 4):
                items.append(_plan_tree(rng, street, street.front(sign) - sign * side.garden * 0.5, z))
    return items


def _plan_furniture(rng: np.random.Generator, street: Street, sign: int) -> list[Item]:
    """Put street lamps, traffic lights, signs and leaning bicycles near the kerb."""
    x = sign * (street.half_road + 0.55)
    metal = varied(rng, pick(rng, METAL_COLORS))
    items: list[Item] = []
    z = float(rng.uniform(8, 18))
    while z < 42 and rng.random() < 0.9:
        items.append(lamp_item(x, z, float(rng.uniform(5.5, 7.5)), -sign * float(rng.uniform(0.9, 1.8)), metal))
        z += float(rng.uniform(14, 22))
    if street.crossing[1] or street.zebra:  # a light where streets or people cross
        at = (street.zebra or street.crossing[0]) - 1.2
        if rng.random() < 0.9 and at < 36:
            arm = -sign * float(rng.uniform(2.2, 3.6)) if sign > 0 and rng.random() < 0.5 else 0.0
            items.append(traffic_light_item(x + sign * 0.2, at, int(rng.integers(3)), arm, metal))
    for number in range(int(rng.integers(1, 4))):
        kinds = pick(rng, SIGN_GROUPS)
        beside = x + sign * float(rng.uniform(0, 0.4))
        items.append(sign_item(beside, 7.5 + 7.5 * number + float(rng.uniform(0, 5)), kinds, metal))
    for _ in range(int(rng.integers(0, 4))):
        z, yaw = float(rng.uniform(7, 24)), pi / 2 + float(rng.uniform(-0.3, 0.3))
        frame = varied(rng, pick(rng, CYCLE_COLORS))
        items.append(cycle_item(x + sign * 0.7, z, yaw, frame, None, bool(rng.random() < 0.15)))
    return items


def _plan_vehicle(rng: np.random.Generator, kind: str, x: float, z: float, yaw: float, braking: bool = False) -> Item:
    paint = varied(rng, pick(rng, CAR_COLORS))
    if kind == "bus":
        paint = varied(rng, pick(rng, BUS_COLORS))
    rng.integers(1 << 31)  # not used: a seed must go on giving the scenes the committed weights learned from
    return vehicle_item(Vehicle(BODIES[kind], x, z, yaw, paint, braking))


def _plan_parked(rng: np.random.Generator, street: Street, sign: int) -> list[Item]:
    if not street.parking:
        return []
    items = []
    full = float(rng.uniform(0.4, 0.95))
    z = float(rng.uniform(4.2, 9))
    while z < 75:
        kept_free = street.in_crossing(z, 5) or street.zebra - 3 < z < street.zebra + 6
        if not kept_free and rng.random() < full:
            kind = str(rng.choice(["sedan", "hatch", "suv", "van"], p=[0.32, 0.36, 0.22, 0.1]))
            yaw = (0.0 if sign > 0 or rng.random() < 0.2 else pi) + float(rng.normal(0, 0.015))
            items.append(_plan_vehicle(rng, kind, sign * (street.half_road - 1.1), z, yaw))
        z += float(rng.uniform(5.4, 6.4))
    return items


def _plan_traffic(rng: np.random.Generator, street: Street) -> list[Item]:
    """Let vehicles drive: ahead in our direction on the right, towards us on the left, and across."""
    items = []
    lanes = [(street.own_lane, 0.0), (-street.driven / 2 if street.lanes < 4 else -1.6, pi)]
    lanes += [(-4.8, pi), (1.6, 0.0)] if street.lanes == 4 else []
    for x, yaw in lanes:
        z = float(rng.uniform(9, 26))
        braking = bool(rng.random() < 0.4)
        while z < 90 and rng.random() < 0.72:
            kind = str(rng.choice(list(BODIES), p=[0.3, 0.28, 0.19, 0.09, 0.07, 0.07]))
            z += 5 if kind in ("bus", "truck") else 0
            beside = x + float(rng.normal(0, 0.15))
            items.append(_plan_vehicle(rng, kind, beside, z, yaw, braking and yaw == 0))
            z += float(rng.uniform(9, 26))
    if street.crossing[1] and rng.random() < 0.5:
        z = sum(street.crossing) / 2 + float(rng.uniform(-1, 1))
        toward = float(rng.choice([-1, 1]))
        kind = str(rng.choice(["sedan", "hatch", "suv"]))
        items.append(_plan_vehicle(rng, kind, toward * float(rng.uniform(5, 13)), z, toward * pi / 2))
    return items


def _plan_people(rng: np.random.Generator, street: Street, sign: int, light: Light) -> list[Item]:
    """Let people walk on one sidewalk, alone or in pairs."""
    side, items = street.side(sign), []
    for _ in range(int(rng.integers(1, 6))):
        z = 6.5 + 26 * float(rng.random()) ** 1.3
        x = sign * (street.half_road + side.strip + 1.0 + float(rng.random()) * max(0.3, side.sidewalk - 1.6))
        for _ in range(int(rng.choice([1, 1, 2]))):
            items.append(person_item(x, z, random_look(rng, light.wet > 0)))
            x += sign * float(rng.uniform(0.55, 0.75))
            z += float(rng.uniform(-0.3, 0.3))
    return items


def _plan_crossers(rng: np.random.Generator, street: Street, light: Light) -> list[Item]:
    """Let people walk over the zebra crossing."""
    if not street.zebra or rng.random() < 0.3:
        return []
    items = []
    for _ in range(int(rng.integers(1, 4))):
        x = float(rng.uniform(-street.half_road, street.half_road))
        z = street.zebra + float(rng.uniform(0.5, 3))
        items.append(person_item(x, z, replace(random_look(rng, light.wet > 0), from_side=True)))
    return items


def _plan_riders(rng: np.random.Generator, street: Street) -> list[Item]:
    """Let people ride along the edge of the road, or across it."""
    items = []
    edge = street.driven - 0.7
    for number in range(int(rng.choice([0, 1, 1, 2, 3]))):
        motor = bool(rng.random() < 0.35)
        look = replace(random_look(rng, False), skirt=False, umbrella=None)
        frame = varied(rng, pick(rng, CYCLE_COLORS))
        z = float(rng.uniform(7, 13)) + 4.5 * number
        if rng.random() < 0.25:
            x, towards = float(rng.uniform(-4, 4)), float(rng.choice([-1, 1]))
            yaw = towards * (pi / 2 + float(rng.uniform(-0.4, 0.4)))
            place = street.zebra or street.crossing[0]
            z = 1.6 * number + (place + 2 if place else z)
        else:
            x, yaw = (edge, 0.0) if rng.random() < 0.6 else (-edge, pi)
        items.append(cycle_item(x, z, yaw, frame, look, motor))
    return items
