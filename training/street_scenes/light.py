"""The weather of a scene: its sun, sky, clouds, haze and lamps."""

from dataclasses import dataclass, replace
from math import cos, pi, sin

import numpy as np

from street_scenes.shapes import Color, Point3, scaled

WEATHERS = ("sunny", "overcast", "dusk", "rain", "fog")


@dataclass(frozen=True)
class Light:
    """The light of one scene: colours in 0..1; `sun` is the unit vector from the ground to the sun."""

    weather: str
    sun: Point3
    sun_color: Color
    ambient: Color
    sky_top: Color
    sky_low: Color
    clouds: float
    cloud_color: Color
    haze: float
    wet: float
    lit_windows: float
    lamps: bool

    def shade(self, normal: Point3, in_shadow: float = 0.0) -> Color:
        """Give the factor per channel for a surface with this normal; `in_shadow` 1 is no sun."""
        (nx, ny, nz), (sx, sy, sz) = normal, self.sun
        facing = max(0.0, nx * sx + ny * sy + nz * sz) * (1 - in_shadow)
        up = 0.86 + 0.14 * ny
        (r, g, b), (sun_r, sun_g, sun_b) = self.ambient, self.sun_color
        return r * up + sun_r * facing, g * up + sun_g * facing, b * up + sun_b * facing


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


def plan_light(rng: np.random.Generator) -> Light:
    """Choose the weather and the direction of the sun."""
    weather = str(rng.choice(WEATHERS, p=[0.4, 0.22, 0.13, 0.14, 0.11]))
    turn, rise = float(rng.uniform(0, 2 * pi)), float(rng.uniform(0.6, 1.05))
    ahead = -abs(sin(turn)) * float(rng.choice([1, 1, -0.6]))
    light = replace(_LIGHTS[weather], sun=(cos(turn) * cos(rise), sin(rise), ahead * cos(rise)))
    share = float(rng.random())
    if weather == "sunny":
        sky_top = scaled(light.sky_top, 0.85 + 0.25 * share)
        return replace(light, sky_top=sky_top, clouds=1.5 * float(rng.random()) - 0.6)
    if weather == "dusk":
        return replace(light, sky_low=scaled(light.sky_low, (1.0, 0.92 + 0.2 * share, 0.9 + 0.25 * share)))
    if weather == "fog":
        return replace(light, haze=0.014 + 0.012 * share, lamps=bool(rng.random() < 0.6))
    return light
