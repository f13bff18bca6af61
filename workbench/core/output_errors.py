"""The errors of one output, summed up image by image, and what they say about it."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workbench.core.columns import Columns, find_column_axis, is_constant
from workbench.core.errors import InputError
from workbench.core.report import Status, count, percent
from workbench.core.shifts import find_shift
from workbench.core.tolerance import AnyTolerance, Limits, OutputNoise


@dataclass(frozen=True)
class OutputParity:
    """How one output of the candidate compares with the reference's.

    The errors, and what is allowed, are shares of the reference's range: of that of the column (or channel) in which
    the error is largest, or breaks its limit by most, where the values stand in columns.
    """

    name: str  # in the reference (in the candidate, if only that has it)
    candidate_output: str | None  # its name there; None if it has none
    shape: tuple[int | None, ...]  # over all images; None where they differ
    reference_range: float = math.nan  # largest minus smallest value
    max_relative_error: float = math.nan  # of a single value; infinite if values are not finite
    mean_relative_error: float = math.nan
    allowed: float | None = None  # the largest error of a single value that passes
    noise: float | None = None  # what rounding alone does to a single value; None where it was not measured
    column: int | None = None  # where the values stand in columns, the one that the errors are of
    relative_l2: float = math.nan  # L2 norm of the error / that of the reference
    cosine: float = math.nan  # of the angle between both outputs taken as vectors
    agreement: float | None = None  # share of equal answers, 0..1
    agreement_of: str = ""  # what the answers are
    steps: float | None = None  # by which an integer is off at most
    top5_agreement: float | None = None  # mean share of the five strongest classes that are the same
    nan: tuple[int, int] = (0, 0)  # counts in the reference and in the candidate, as for `inf`
    inf: tuple[int, int] = (0, 0)
    shift: tuple[int, int] | None = None  # (rows, columns) by which the candidate is displaced
    sensitivity: float | None = None  # how much the reference varies between images (one image: between pixels)
    worst: tuple[tuple[str, float], ...] = ()  # (image, max_relative_error), worst image first
    problems: tuple[str, ...] = ()  # why it fails
    cause: str | None = None  # what the numbers say about it
    tells: bool = True  # False if the reference varies too little for a comparison to mean anything

    @property
    def holds_integers(self) -> bool:
        """Whether the values are labels, which are equal or not: only their agreement is judged."""
        return self.agreement_of == "value"

    @property
    def status(self) -> Status:
        """Whether this output passes, fails, or shows nothing."""
        if self.problems:
            return "fail"
        return "pass" if self.tells else "inconclusive"


TELLING_SENSITIVITY = 0.01
"""A reference that varies by less than this share of its range cannot show that a step of the
preprocessing is lost."""

ClassAxis = int | Literal["auto"] | None
Names = tuple[str | None, str | None]  # of one output in the reference and in the candidate


@dataclass
class OutputSums:
    """Running sums over the images of one output; x is the reference and d the error."""

    names: Names
    class_axis: ClassAxis
    tolerance: AnyTolerance
    place: int = 0  # among the outputs
    mismatch: str = ""
    shape: tuple[int | None, ...] = ()
    n: int = 0
    x: float = 0.0
    xx: float = 0.0
    xd: float = 0.0
    d: float = 0.0
    dd: float = 0.0
    columns: Columns | None = None
    candidate_low: float = math.inf
    candidate_high: float = -math.inf
    nan: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, np.int64))
    inf: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, np.int64))
    errors: dict[str, NDArray[np.float64]] = field(default_factory=dict)  # the largest of each column, by image
    agreement_of: str = ""
    answers: int = 0
    agreeing: int = 0
    answers_seen: set[int] = field(default_factory=set)
    top5: list[float] = field(default_factory=list)
    first: NDArray | None = None
    between_images: float | None = None
    between_pixels: float | None = None
    shift: tuple[int, int] | None = None
    shift_searches: int = 0

    def add_batch(self, reference: NDArray | None, candidate: NDArray | None, names: list[str]) -> None:
        """Add one batch; an output that one side does not have is None."""
        self.mismatch = self.mismatch or _mismatch(reference, candidate)
        if reference is None or candidate is None or self.mismatch:
            return
        self._add_shape(reference.shape)
        axis = _find_class_axis(reference.shape, self.class_axis)
        if reference.ndim and len(names) == len(reference):
            for name, one, other in zip(names, reference, candidate, strict=True):
                self._add_image(name, one, other, None if axis is None else axis - 1)
        else:  # not one entry per image: the whole array belongs to the first image
            self._add_image(names[0], reference, candidate, axis)

    def _add_shape(self, shape: tuple[int, ...]) -> None:
        if not self.shape:
            self.shape = shape
        elif len(shape) == len(self.shape):
            rest = [a if a == b else None for a, b in zip(self.shape[1:], shape[1:], strict=True)]
            self.shape = ((self.shape[0] or 0) + shape[0], *rest)

    def _add_image(self, name: str, reference: NDArray, candidate: NDArray, axis: int | None) -> None:
        error = self._add_values(reference, candidate)
        self.errors[name] = np.maximum(error, self.errors.get(name, 0.0))
        self._add_answers(reference, candidate, axis)
        self._add_variation(reference, axis)
        failing = bool((error > self._limits()[0].largest).any()) and bool(np.isfinite(error).all())
        if failing and self.shift is None and self.shift_searches < 3:
            self.shift_searches += 1
            self.shift = find_shift(reference, candidate, axis)

    def _limits(self) -> tuple[Limits, NDArray[np.float64]]:
        """What is allowed, and what errors are divided by, in each column."""
        scales = self._columns().scales()
        return self.tolerance.limits(self.names, self.place, scales, self.answers), scales

    def _columns(self) -> Columns:
        return self.columns or Columns.empty(1)

    def _split(self, reference: NDArray) -> int | None:
        """The axis whose columns are counted apart; None where all values count as one column."""
        axis = find_column_axis(reference.shape) if reference.size else None
        number = 1 if axis is None else reference.shape[axis]
        if self.columns is None:
            self.columns = Columns.empty(number)
        elif len(self.columns.low) not in (1, number):  # columns come and go between images
            self.columns = self.columns.as_one()
            self.errors = {name: error.max(keepdims=True) for name, error in self.errors.items()}
        return axis if len(self.columns.low) == number else None

    def _add_values(self, reference: NDArray, candidate: NDArray) -> NDArray[np.float64]:
        """Add all values of one image, and return the largest error of each column."""
        axis = self._split(reference)
        moved = (array[None] if axis is None else np.moveaxis(array, axis, 0) for array in (reference, candidate))
        x, error = (array.reshape(len(array), -1) for array in moved)
        x = x.astype(np.float64)
        with np.errstate(invalid="ignore"):  # inf - inf
            error = error - x
        finite = np.isfinite(error)
        all_finite = bool(finite.all())
        if not all_finite:
            self.nan += [np.isnan(array).sum() for array in (reference, candidate)]
            self.inf += [np.isinf(array).sum() for array in (reference, candidate)]
        self._columns().add(x, error, finite)
        good, wrong = (x, error) if all_finite else (x[finite], error[finite])
        if good.size:
            self.candidate_low = min(self.candidate_low, float(candidate.min()))
            self.candidate_high = max(self.candidate_high, float(candidate.max()))
            self.n += good.size
            good, wrong = good.ravel(), wrong.ravel()
            self.x += float(good.sum())
            self.xx += float(good @ good)
            self.xd += float(good @ wrong)
            self.d += float(wrong.sum())
            self.dd += float(wrong @ wrong)
        return np.abs(error).max(axis=1, initial=0.0) if all_finite else np.full(len(x), math.inf)

    def _add_answers(self, reference: NDArray, candidate: NDArray, axis: int | None) -> None:
        if reference.dtype.kind != "f":
            self.agreement_of, left, right = "value", reference, candidate
        elif axis is None or not reference.size:
            return
        elif reference.shape[axis] == 1:
            self.agreement_of, left, right = "sign", reference > 0, candidate > 0
        else:
            self.agreement_of = "top-1" if reference.ndim == 1 else "pixel"
            left, right = reference.argmax(axis), candidate.argmax(axis)
        if not left.size:
            return
        self.answers += left.size
        self.agreeing += int(np.count_nonzero(left == right))
        if len(self.answers_seen) < 2:
            self.answers_seen |= {int(left.min()), int(left.max())}
        if self.agreement_of == "top-1" and reference.size >= 5:
            five = [set(np.argsort(-array, kind="stable")[:5].tolist()) for array in (reference, candidate)]
            self.top5.append(len(five[0] & five[1]) / 5)

    def _add_variation(self, reference: NDArray, axis: int | None) -> None:
        """Note how much the reference varies: between the first and the other images, or in the first."""
        if self.first is None:
            self.first = reference.copy()
            others = tuple(a for a in range(reference.ndim) if a != axis)
            if reference.ndim > 1 and reference.size and reference.dtype.kind == "f":
                with np.errstate(invalid="ignore"):  # infinite values are counted elsewhere
                    self.between_pixels = float(np.max(reference.max(axis=others) - reference.min(axis=others)))
        elif self.first.shape == reference.shape:
            with np.errstate(invalid="ignore"):  # infinite values are counted elsewhere
                change = np.abs(np.subtract(self.first, reference, dtype=np.float64)).max(initial=0.0)
            self.between_images = max(float(change), self.between_images or 0.0)

    def finish(self) -> OutputParity:
        """Turn the sums into the result."""
        name = str(self.names[1] if self.names[0] is None else self.names[0])
        if self.mismatch:
            return OutputParity(name, self.names[1], self.shape, problems=(self.mismatch,))
        columns, (limits, scales) = self._columns(), self._limits()
        errors = np.stack([*self.errors.values()] or [np.zeros(len(scales))])
        largest, means = errors.max(axis=0), columns.absolute / max(1, columns.n)
        place = _worst(largest, limits.largest if (largest > limits.largest).any() else scales)
        sensitivity = self._sensitivity()
        telling = max(TELLING_SENSITIVITY, float(limits.largest[place] / scales[place]))
        result = OutputParity(
            name, self.names[1], self.shape,
            reference_range=max(0.0, self.high - self.low),
            max_relative_error=float(largest[place] / scales[place]),
            mean_relative_error=float(means[_worst(means, limits.mean)] / scales[_worst(means, limits.mean)]),
            allowed=float(limits.largest[place] / scales[place]),
            noise=None if limits.noise is None else float(limits.noise[place] / scales[place]),
            column=place if len(scales) > 1 else None,
            relative_l2=math.sqrt(self.dd / self.xx) if self.xx > 0 else math.sqrt(self.dd),
            cosine=self._cosine(),
            agreement=self.agreeing / self.answers if self.answers else None,
            agreement_of=self.agreement_of, top5_agreement=float(np.mean(self.top5)) if self.top5 else None,
            steps=float(largest.max()) if self.agreement_of == "value" else None,
            nan=(int(self.nan[0]), int(self.nan[1])), inf=(int(self.inf[0]), int(self.inf[1])),
            sensitivity=sensitivity,
            worst=worst_first((image, float((error / scales).max())) for image, error in self.errors.items()),
            tells=self._is_empty() or (not self._is_constant() and (sensitivity is None or sensitivity >= telling)),
        )  # fmt: skip
        problems = tuple(_find_problems(result, limits, means / scales, scales))
        if not problems:
            return result
        return dataclasses.replace(result, problems=problems, shift=self.shift, cause=self._find_cause())

    def noise(self, coarse: "OutputSums") -> OutputNoise:
        """Take the errors for what small moves did to this output, and those of other sums for what coarse ones did."""
        largest, means = [], []
        for sums in (self, coarse):
            columns = sums._columns()
            errors = np.stack([*sums.errors.values()] or [np.zeros(len(columns.low))])
            largest.append(tuple(errors.max(axis=0).tolist()))
            means.append(tuple((columns.absolute / max(1, columns.n)).tolist()))
        changed = 1 - coarse.agreeing / coarse.answers if coarse.answers else 0.0
        return OutputNoise(str(self.names[0]), largest[0], means[0], largest[1], means[1], changed)

    def notes(self, output: OutputParity) -> list[str]:
        """What weakens the evidence of this output."""
        if output.problems:
            return []
        if not output.tells:
            return [f"output {output.name} of the reference hardly varies, so that it shows nothing."]
        if len(self.answers_seen) == 1 and self.answers > 1:
            what = f"every {self.agreement_of} answer of the reference is the same"
            return [f"output {output.name}: {what}, so that the agreement says little; the errors count."]
        return []

    def _is_empty(self) -> bool:
        """Whether an image has no values, so that the shape is all there is to compare."""
        return bool(self.shape) and self.shape[0] != 0 and 0 in self.shape[1:]

    def _is_constant(self) -> bool:
        """Whether the reference holds one number, up to the rounding of float32."""
        return bool(is_constant(self.low, self.high))

    @property
    def low(self) -> float:
        """The smallest value of the reference."""
        return float(self._columns().low.min())

    @property
    def high(self) -> float:
        """The largest value of the reference."""
        return float(self._columns().high.max())

    def _scale(self) -> float:
        return float(self._columns().as_one().scales()[0])

    def _sensitivity(self) -> float | None:
        between = self.between_pixels if self.between_images is None else self.between_images
        if self._is_constant():
            return 0.0
        return None if between is None else between / self._scale()

    def _cosine(self) -> float:
        candidate = self.xx + 2 * self.xd + self.dd
        if self.xx <= 0 or candidate <= 0:
            return 1.0 if self.dd == 0 else math.nan
        return min(1.0, (self.xx + self.xd) / math.sqrt(self.xx * candidate))

    def _correlation(self) -> float:
        """Correlation of reference and candidate, without its sign."""
        variance, covariance = self.xx - self.x**2 / self.n, self.xd - self.x * self.d / self.n
        candidate = variance + 2 * covariance + self.dd - self.d**2 / self.n
        both = variance * candidate
        return abs(variance + covariance) / math.sqrt(both) if both > 0 else 0.0

    def _find_cause(self) -> str | None:
        """Name a cause only where the numbers show it: it explains over 99 % of the squared error."""
        if self.nan.any() or self.inf.any():
            return None  # the problem itself says so
        if self.shift is not None:
            return f"shifted by {self.shift} pixels (rows, columns)"
        if self.agreement_of == "value" or self._is_constant() or self.dd == 0:
            return None
        if self.candidate_low == self.candidate_high:
            return f"the candidate gives {self.candidate_low:.3g} everywhere"
        if self._correlation() < 0.995:
            return None
        if self.dd - self.d**2 / self.n < 0.01 * self.dd:
            return f"a constant offset of {self.d / self.n:+.3g}"
        if self.dd - self.xd**2 / self.xx < 0.01 * self.dd:
            return f"scaled by {1 + self.xd / self.xx:.5g}"
        return None


def worst_first(errors: Iterable[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    """Keep the largest error of each image, and sort by it."""
    largest: dict[str, float] = {}
    for name, error in errors:
        largest[name] = max(error, largest.get(name, 0.0))
    return tuple(sorted(largest.items(), key=lambda entry: -entry[1]))


def _mismatch(reference: NDArray | None, candidate: NDArray | None) -> str:
    """What makes two outputs incomparable; empty if nothing does."""
    if reference is None:
        return "the reference has no such output"
    if candidate is None:
        return "the candidate has no such output"
    if reference.shape != candidate.shape:
        text = f"shape {candidate.shape}, expected {reference.shape}"
        same = sorted(reference.shape) == sorted(candidate.shape)
        return f"{text} (the same lengths in another order: the layout differs)" if same else text
    if (reference.dtype.kind == "f") != (candidate.dtype.kind == "f"):
        return f"dtype {candidate.dtype}, expected {reference.dtype}"
    return ""


def _find_problems(
    output: OutputParity, limits: Limits, means: NDArray[np.float64], scales: NDArray[np.float64]
) -> Iterator[str]:
    for kind, numbers in (("NaN", output.nan), ("infinite", output.inf)):
        for number, side in zip(numbers, ("reference", "candidate"), strict=True):
            if number:
                yield f"{count(number, kind + ' value')} in the {side}"
    if output.holds_integers:
        if output.steps is not None and output.steps > limits.steps:
            yield f"values are off by up to {output.steps:,.0f} (at most {limits.steps:.0f} allowed)"
    else:
        mean = _worst(means, limits.mean / scales)
        for kind, error, limit, column in (
            ("largest", output.max_relative_error, output.allowed or 0.0, output.column),
            ("mean", float(means[mean]), float(limits.mean[mean] / scales[mean]), mean),
        ):
            if error > limit:
                where = f" in channel {column}" if output.column is not None else ""
                told = output.noise is not None and kind == "largest" and math.isfinite(error)
                times = f", {times_noise(error, output.noise)}" if told else ""
                style = ".0e" if output.noise is None else ".1e"
                yield f"{kind} error {error:.1e} of the range{where}{times} (allowed {limit:{style}})"
    # Values within a measured limit can exchange no answers but those that rounding exchanges.
    judged = output.holds_integers or limits.noise is None
    if judged and output.agreement is not None and output.agreement < limits.agreement:
        share, needed = percent(output.agreement), percent(limits.agreement)
        yield f"{output.agreement_of} agreement {share} (at least {needed} needed)"


def times_noise(error: float, noise: float | None) -> str:
    """Compare an error with what rounding does, in words; empty where that was not measured.

    >>> times_noise(3.4e-6, 2e-7), times_noise(0.3, 2e-7)
    ('17 times what rounding does to this network', '1,500,000 times what rounding does to this network')
    >>> times_noise(1e-7, 0.0), times_noise(1e-7, None)
    ('where rounding does nothing', '')
    """
    if noise is None:
        return ""
    if not noise:
        return "where rounding does nothing"
    times = float(f"{error / noise:.2g}")
    return f"{f'{times:,.0f}' if times >= 100 else f'{times:g}'} times what rounding does to this network"


def _worst(errors: NDArray[np.float64], limits: NDArray[np.float64]) -> int:
    """The column whose error is largest beside its limit."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return int(np.argmax(np.where(errors > 0, errors / limits, 0.0)))


def _find_class_axis(shape: tuple[int, ...], class_axis: ClassAxis) -> int | None:
    if class_axis is None:
        return None
    if class_axis == "auto":
        if len(shape) == 4:
            return 1 if shape[1] <= shape[3] else 3
        return 1 if len(shape) == 2 else None
    axis = class_axis + len(shape) if class_axis < 0 else class_axis
    if not 1 <= axis < len(shape):
        raise InputError(f"got class_axis {class_axis} for an output of shape {shape}, expected 1..{len(shape) - 1}")
    return axis
