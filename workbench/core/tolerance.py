"""How far a candidate may be from the reference: limits chosen by hand, or measured from what rounding does."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import InputError
from workbench.core.report import percent

MULTIPLES = {"float32": 16.0, "float16": 4.0, "bfloat16": 4.0, "8 bits": 3.0}
"""How many times what rounding does to a network two correct executors may differ by, by its coarsest type.

Over 50 healthy float32 networks, Keras and ONNX Runtime differed by up to 4.2 times, with the instruction sets and
threads of docs/verification.md. The weights of coarser types are the same on both sides, so that moving them says more
than enough.
"""

CEILINGS = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 2e-1, "8 bits": 3e-1}
"""The largest error of a single value, as a share of the range, that rounding excuses."""

MEAN_CEILING = 0.5
"""The ceiling of the mean error, as a share of that of a single value."""

FLOOR, MEAN_FLOOR = 2e-6, 2e-6
"""Errors below these shares of the range are rounding of float32, even if a network hardly shows any."""


@dataclass(frozen=True)
class Limits:
    """What one output may differ by.

    `largest` and `mean` are absolute, one number for each column; `agreement` is the least share of equal answers;
    `steps` is how far an integer may be off; `noise` what rounding does to each column, None where it was not measured.
    """

    largest: NDArray[np.float64]
    mean: NDArray[np.float64]
    agreement: float
    steps: float
    noise: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Tolerance:
    """Limits chosen by hand, for float32 on both sides; better are measured ones, see `workbench.rounding_noise`.

    Attributes:
        max_relative_error: largest error of a single value, as a share of the reference's range; where values stand in
            columns or channels, of the range of their own.
            Float32 sums in another order give 1e-7 to 1e-4 in networks of 20 to 150 layers. Planted in a
            ResNet-50 with random weights, swapped channels, a lost mean and an input shifted by one pixel
            give 1e-1, 3e-1 and 9e-3.
        mean_relative_error: mean error, same unit. Rounding is rarely large, so its mean is far below its
            maximum; 1e-5 finds a small error that is everywhere, such as TF32 or float16 somewhere inside.
        agreement: share of images, pixels or integers with the same answer, 0..1. Rounding only changes the answer
            where two classes are equally strong within 1e-5, less than 1 pixel in 1000.
        steps: how far an integer may be off: 1 is what rounding does to a quantised number; numbers of classes
            have no order, so they need `math.inf`.

    Raises:
        InputError: a number is negative or not finite (but `steps`), or `agreement` is above 1.
    """

    max_relative_error: float = 1e-4
    mean_relative_error: float = 1e-5
    agreement: float = 0.999
    steps: float = 1.0

    def __post_init__(self) -> None:
        shares = (self.max_relative_error, self.mean_relative_error, self.agreement)
        good = all(math.isfinite(value) and value >= 0 for value in shares) and self.steps >= 0
        if not good or self.agreement > 1:
            raise InputError(f"got {self}, expected shares of 0 or more and an agreement of at most 1")

    def limits(self, names: tuple[str | None, ...], place: int, scale: NDArray[np.float64], size: int) -> Limits:
        """The limits of an output whose columns have these ranges."""
        return Limits(self.max_relative_error * scale, self.mean_relative_error * scale, self.agreement, self.steps)

    def describe(self) -> str:
        """What is allowed, in words."""
        errors = f"max {self.max_relative_error:.0e}, mean {self.mean_relative_error:.0e}"
        return f"{errors}, agreement {percent(self.agreement)}"


@dataclass(frozen=True)
class OutputNoise:
    """What rounding does to one output; for each column of it, absolute.

    Attributes:
        name: of the output.
        largest, mean: changes of a value when inputs and weights move by half a unit in the last place.
        coarse_largest, coarse_mean: the same when they move by several units, as `workbench.onnx_graph.noise` says:
            labels and quantised values move by whole steps or not at all, which a small move would not show.
        changed: the largest share of values that the coarse moves changed; all that is needed for integers.
    """

    name: str
    largest: tuple[float, ...]
    mean: tuple[float, ...]
    coarse_largest: tuple[float, ...]
    coarse_mean: tuple[float, ...]
    changed: float


@dataclass(frozen=True)
class RoundingNoise:
    """What rounding does to a network, and so what two correct executors of it may differ by.

    Attributes:
        unit: the coarsest type in the network: a key of `CEILINGS`.
        outputs: what it does to each.
        runs: how often the network was run with moved inputs and weights.
        fallback: the limits of an output that was not measured.
    """

    unit: str
    outputs: tuple[OutputNoise, ...]
    runs: int
    fallback: Tolerance = field(default_factory=Tolerance)

    def limits(self, names: tuple[str | None, ...], place: int, scale: NDArray[np.float64], size: int) -> Limits:
        """The limits of an output: of that name, or else at that place."""
        known = {noise.name: noise for noise in self.outputs}
        found = next((known[name] for name in names if name in known), None)
        found = found or (self.outputs[place] if place < len(self.outputs) else None)
        if found is None or len(found.largest) != len(scale):
            return self.fallback.limits(names, place, scale, size)
        ceiling = CEILINGS[self.unit] * float(scale.max())
        largest = self._limit(found.largest, found.coarse_largest, ceiling, FLOOR * scale)
        mean = self._limit(found.mean, found.coarse_mean, MEAN_CEILING * ceiling, MEAN_FLOOR * scale)
        moved = max(found.coarse_largest)
        # One value more than twice what was seen: rounding may change a few where none was seen to change.
        share = 2 * found.changed + (1 / size if size else 0)
        # Beyond one step integers are numbers of classes, which have no order.
        steps = math.inf if moved > 1 else 1.0
        return Limits(largest, mean, max(0.0, 1 - share), steps, np.asarray(found.largest))

    def _limit(
        self, fine: tuple[float, ...], coarse: tuple[float, ...], ceiling: float, floor: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        noise = np.maximum(self.multiple * np.asarray(fine), coarse)
        return np.maximum(np.minimum(noise, ceiling), floor)

    @property
    def multiple(self) -> float:
        """How many times the noise is allowed."""
        return MULTIPLES[self.unit]

    def describe(self) -> str:
        """What is allowed, in words."""
        return (
            f"{self.multiple:g} times what rounding does to this network ({self.unit}, {self.runs} runs with moved "
            f"inputs and weights), at least {FLOOR:.0e} and at most {CEILINGS[self.unit]:.0e} of the range"
        )


AnyTolerance = Tolerance | RoundingNoise


def coarsest(*units: str | None) -> str:
    """The coarsest of some types; float32 where there is none."""
    return max((unit for unit in units if unit is not None), key=CEILINGS.__getitem__, default="float32")
