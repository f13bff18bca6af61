"""The plan of a street: its lanes, sidewalks, gardens and crossings."""

from dataclasses import dataclass

import numpy as np

from street_scenes.shapes import Color, pick


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
    """The plan of a street: everything the ground needs; widths and distances in metres."""

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

    @property
    def driven(self) -> float:
        """Half the width of the road without the parked cars."""
        return self.half_road - self.parking

    @property
    def own_lane(self) -> float:
        """The x of the middle of the lane in which the camera drives: the right one."""
        return self.driven - 1.6

    def side(self, sign: int) -> Side:
        """The side at x > 0 for sign 1, at x < 0 for -1."""
        return self.right if sign > 0 else self.left

    def front(self, sign: int) -> float:
        """The signed x of the house fronts."""
        return sign * (self.half_road + self.side(sign).front)

    def in_crossing(self, z: float, margin: float) -> bool:
        """Tell whether the distance z lies in the side street or within so many metres of it."""
        return self.crossing[1] > 0 and self.crossing[0] - margin < z < self.crossing[1] + margin


def plan_street(rng: np.random.Generator) -> Street:
    """Choose the lanes, sides, crossings and markings."""
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
        left=_plan_side(rng),
        right=_plan_side(rng),
        crossing=crossing,
        zebra=zebra if rng.random() < 0.55 else 0.0,
        dashed=bool(rng.random() < 0.7),
        edge_lines=bool(rng.random() < 0.6),
        tone=float(rng.uniform(0.78, 1.15)),
        season=pick(rng, [(84, 112, 54), (92, 122, 60), (76, 104, 58), (128, 116, 56), (150, 106, 52)]),
    )


def _plan_side(rng: np.random.Generator) -> Side:
    style = str(rng.choice(["city", "homes", "avenue"], p=[0.42, 0.33, 0.25]))
    has_strip = rng.random() < {"city": 0.2, "homes": 0.45, "avenue": 0.8}[style]
    strip = float(rng.uniform(1.2, 2.6)) if has_strip else 0.0
    # all three are drawn for every style: a seed must go on giving the scenes the committed weights learned from
    garden = {"city": 0.0, "homes": float(rng.uniform(2.5, 5)), "avenue": float(rng.uniform(0, 3))}[style]
    return Side(strip, float(rng.uniform(2.2, 4.2)), garden, style)
