"""Compare what two runners answer to the same images, and say in one sentence whether it is still right.

Errors are measured relative to the range of the reference output (its largest minus its smallest
value), so compare logits, not probabilities: a sigmoid or softmax hides and inflates errors.
"""

import dataclasses
import html
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.errors import InputError

BLOCK_VALUES = 1 << 13
"""Values converted to float64 at a time: they stay in the cache, and too few for BLAS to start threads."""

LARGEST_SHIFT = 3
"""Pixels, in both directions, in which a displaced output is looked for."""

TELLING_SENSITIVITY = 0.01
"""A reference that varies by less than this share of its range cannot show that a step of the
preprocessing is lost."""

Status = Literal["pass", "fail", "inconclusive"]
Outputs = Mapping[str, ArrayLike]
Pair = tuple[Outputs, Outputs] | tuple[str | Sequence[str], Outputs, Outputs]


@dataclass(frozen=True)
class Tolerance:
    """How far a candidate may be from the reference; made for float32 on both sides.

    Attributes:
        max_relative_error: largest error of a single value, as a share of the reference's range.
            Float32 sums in another order give 1e-7 to 1e-5 in networks of 20 to 100 layers. Planted in a
            ResNet-50 with random weights, swapped channels, a lost mean and an input shifted by one pixel
            give 1e-1, 3e-1 and 9e-3. 1e-4 lies between.
        mean_relative_error: mean error, same unit. Rounding is rarely large, so its mean is far below its
            maximum; 1e-5 finds a small error that is everywhere, such as TF32 or float16 somewhere inside.
        agreement: share of images or pixels with the same answer, 0..1. Rounding only changes the answer
            where two classes are equally strong within 1e-5, less than 1 pixel in 1000.

    Raises:
        InputError: a number is negative or not finite, or `agreement` is above 1.
    """

    max_relative_error: float = 1e-4
    mean_relative_error: float = 1e-5
    agreement: float = 0.999

    def __post_init__(self) -> None:
        values = dataclasses.astuple(self)
        if not all(math.isfinite(value) and value >= 0 for value in values) or self.agreement > 1:
            raise InputError(f"got {self}, expected shares of 0 or more and an agreement of at most 1")


@dataclass(frozen=True)
class OutputParity:
    """How one output of the candidate compares with the reference's; errors are shares of the range.

    Attributes:
        name: name of the output in the reference (in the candidate, if only that has it).
        candidate_output: its name in the candidate; None if it has none.
        shape: shape over all images; None where the images differ.
        reference_range: largest minus smallest reference value.
        max_relative_error: largest absolute error / range (infinite if values are not finite).
        mean_relative_error: mean absolute error / range.
        relative_l2: L2 norm of the error / L2 norm of the reference.
        cosine: cosine of the angle between both outputs taken as vectors.
        agreement: share of equal answers, 0..1, or None; `agreement_of` says of what.
        top5_agreement: mean share of the five strongest classes that are the same, or None.
        nan, inf: counts in the reference and in the candidate.
        shift: (rows, columns) by which the candidate is displaced, or None.
        sensitivity: how much the reference varies between images (one image: between pixels), or None.
        worst: (image, max_relative_error), worst image first.
        problems: why this output fails; empty if it does not.
        cause: what the numbers say about the cause, or None.
        tells: False if the reference varies too little for a comparison to mean anything.
    """

    name: str
    candidate_output: str | None
    shape: tuple[int | None, ...]
    reference_range: float = math.nan
    max_relative_error: float = math.nan
    mean_relative_error: float = math.nan
    relative_l2: float = math.nan
    cosine: float = math.nan
    agreement: float | None = None
    agreement_of: str = ""
    top5_agreement: float | None = None
    nan: tuple[int, int] = (0, 0)
    inf: tuple[int, int] = (0, 0)
    shift: tuple[int, int] | None = None
    sensitivity: float | None = None
    worst: tuple[tuple[str, float], ...] = ()
    problems: tuple[str, ...] = ()
    cause: str | None = None
    tells: bool = True

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


@dataclass(frozen=True)
class ParityReport:
    """The verdict on a candidate, and the numbers behind it.

    Attributes:
        reference_name, candidate_name: the two runners, as they name themselves.
        status: "pass"; "fail"; or "inconclusive": the reference hardly varies, equal answers show nothing.
        verdict: one sentence.
        outputs: one entry for each output.
        images: how many images were compared.
        worst: (image, max_relative_error over all outputs), worst image first.
        notes: sentences on how far the evidence reaches.
        tolerance: what was allowed.
    """

    reference_name: str
    candidate_name: str
    status: Status
    verdict: str
    outputs: tuple[OutputParity, ...]
    images: int
    worst: tuple[tuple[str, float], ...]
    notes: tuple[str, ...]
    tolerance: Tolerance

    @property
    def passed(self) -> bool:
        """True only if the answers are the same and the comparison shows it."""
        return self.status == "pass"

    def to_text(self) -> str:
        """Write the report as an aligned table; the first line is the verdict."""
        rows = [_HEADINGS, *(_cells(output) for output in self.outputs)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        table.insert(1, "  ".join("-" * width for width in widths))
        lines = [self.verdict, "", *table, "", *self._remarks()]
        return "\n".join(line.rstrip() for line in lines) + "\n"

    def to_html(self) -> str:
        """Write the report as a small table that reads well in light and dark notebooks."""
        line = "border-bottom:1px solid rgba(128,128,128,.35);padding:.25em .7em;text-align:left"
        head = "".join(f'<th style="{line}">{html.escape(name)}</th>' for name in _HEADINGS)
        body = "".join(
            "<tr>" + "".join(f'<td style="{line}">{html.escape(cell)}</td>' for cell in _cells(output)) + "</tr>"
            for output in self.outputs
        )
        remarks = "".join(f'<div style="opacity:.8">{html.escape(remark)}</div>' for remark in self._remarks())
        return (
            f'<div style="border-left:.35em solid {_COLORS[self.status]};padding:.2em .8em;color:inherit">'
            f'<div style="font-weight:600;margin-bottom:.4em">{html.escape(self.verdict)}</div>'
            f'<table style="border-collapse:collapse;color:inherit;background:transparent;font-size:90%">'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{remarks}</div>"
        )

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_json(self) -> str:
        """Write the report as strict JSON: numbers that are not finite become null."""
        content = {"passed": self.passed, **dataclasses.asdict(self)}
        for entry, output in zip(content["outputs"], self.outputs, strict=True):
            entry["status"] = output.status
        return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"

    def _remarks(self) -> list[str]:
        allowed = self.tolerance
        images = _count(self.images, "image")
        lines = [
            f"Reference: {self.reference_name}. Candidate: {self.candidate_name}. {images}.",
            f"Errors are shares of the reference's range. Allowed: max {allowed.max_relative_error:.0e}, "
            f"mean {allowed.mean_relative_error:.0e}, agreement {_percent(allowed.agreement)}.",
        ]
        if len(self.worst) > 1:
            lines.append("Worst: " + ", ".join(f"{name} ({error:.1e})" for name, error in self.worst[:3]) + ".")
        problems = [f"Output {output.name}: {problem}." for output in self.outputs for problem in output.problems]
        return lines + problems + [f"Note: {note}" for note in self.notes]


def compare_outputs(
    reference: Outputs,
    candidate: Outputs,
    *,
    reference_name: str,
    candidate_name: str,
    tolerance: Tolerance = Tolerance(),
    class_axis: int | Literal["auto"] | None = "auto",
    image_names: Sequence[str] | None = None,
) -> ParityReport:
    """Compare the outputs of two runners for one batch of images.

    Args:
        reference: output name to array, axis 0 is the image; logits rather than probabilities.
        candidate: the same from the other runner.
        reference_name: `RunnerInfo.name` of the reference, for the report.
        candidate_name: the same of the candidate.
        tolerance: what is allowed.
        class_axis: axis of the classes; "auto" takes axis 1 of (N, K), the shorter of axis 1 and the last of
            four axes, and none otherwise; None compares no answers.
        image_names: one name per image, for the list of the worst.
    Returns:
        The report; `passed` is True only if the answers agree and the comparison can show it.
    Raises:
        InputError: no outputs, no numbers, or fewer names than images.

    >>> logits = np.array([[1.0, 5.0, 2.0], [7.0, 0.0, 1.0]], np.float32)
    >>> report = compare_outputs(
    ...     {"output": logits}, {"output": logits + 0.5}, reference_name="A", candidate_name="B"
    ... )
    >>> report.passed, report.outputs[0].cause
    (False, 'a constant offset of +0.5')
    """
    pair: Pair = (reference, candidate) if image_names is None else (image_names, reference, candidate)
    return compare_batches(
        [pair],
        reference_name=reference_name,
        candidate_name=candidate_name,
        tolerance=tolerance,
        class_axis=class_axis,
    )


def compare_batches(
    pairs: Iterable[Pair],
    *,
    reference_name: str,
    candidate_name: str,
    tolerance: Tolerance = Tolerance(),
    class_axis: int | Literal["auto"] | None = "auto",
) -> ParityReport:
    """Compare two runners batch by batch, holding one batch and one more image at a time.

    Args:
        pairs: (reference, candidate) outputs of each batch, or (name, reference, candidate) where name is
            a string or one string per image; see `compare_outputs` for the rest.
        reference_name: as there.
        candidate_name: as there.
        tolerance: as there.
        class_axis: as there.
    Returns:
        One report over all images, the same as for one large batch.
    Raises:
        InputError: as there.
    """
    sums: dict[tuple[str | None, str | None], _Sums] = {}
    images, renamed = 0, False
    for names, reference, candidate in map(_with_names, pairs):
        left, right = _as_arrays(reference), _as_arrays(candidate)
        batch = _batch_size(list(left.values()))
        batch_names = _name_images(names, images, batch)
        for pair in _pair_outputs(left, right):
            renamed |= None not in pair and pair[0] != pair[1]
            total = sums.setdefault(pair, _Sums(class_axis))
            total.add_batch(left.get(pair[0] or ""), right.get(pair[1] or ""), batch_names, tolerance)
        images += batch
    if not sums:
        raise InputError("got no outputs to compare; run at least one image through both runners")
    outputs = tuple(total.finish(pair, tolerance) for pair, total in sums.items())
    notes = [note for total, output in zip(sums.values(), outputs, strict=True) for note in total.notes(output)]
    if renamed:
        notes.insert(0, _renamed_note(outputs))
    return _make_report(reference_name, candidate_name, outputs, images, notes, tolerance)


def _make_report(
    reference_name: str,
    candidate_name: str,
    outputs: tuple[OutputParity, ...],
    images: int,
    notes: list[str],
    tolerance: Tolerance,
) -> ParityReport:
    status: Status = "pass" if any(output.tells for output in outputs) else "inconclusive"
    if any(output.problems for output in outputs):
        status = "fail"
    if images == 1:
        notes.append("only one image was compared; several different ones show more.")
    errors: dict[str, float] = {}
    for name, error in itertools.chain.from_iterable(output.worst for output in outputs):
        errors[name] = max(error, errors.get(name, 0.0))
    sentence = _VERDICTS[status](reference_name, candidate_name, outputs, images, tolerance)
    worst = tuple(sorted(errors.items(), key=lambda item: -item[1]))
    return ParityReport(
        reference_name, candidate_name, status, sentence, outputs, images, worst, tuple(notes), tolerance
    )


def _pass_verdict(
    reference: str, candidate: str, outputs: tuple[OutputParity, ...], images: int, allowed: Tolerance
) -> str:
    judged = [output for output in outputs if not output.holds_integers] or outputs
    error = max(output.max_relative_error for output in judged)
    agreements = [output for output in outputs if output.agreement is not None]
    text = f"PASS: {candidate} answers like {reference} on {_count(images, 'image')}: largest error {error:.1e}"
    text += f" of the range (allowed {allowed.max_relative_error:.0e})"
    if agreements:
        lowest = min(agreements, key=lambda output: output.agreement or 0)
        text += f", {lowest.agreement_of} agreement {_percent(lowest.agreement)}"
    return text + "."


def _fail_verdict(
    reference: str, candidate: str, outputs: tuple[OutputParity, ...], images: int, allowed: Tolerance
) -> str:
    failed = [output for output in outputs if output.problems]
    first = next((output for output in failed if output.cause), failed[0])
    text = f'FAIL: {candidate} differs from {reference} in output "{first.name}": {first.problems[0]}'
    text += f"; {first.cause}" if first.cause else ""
    return text + (f"; {_count(len(failed) - 1, 'more output')} failed." if len(failed) > 1 else ".")


def _inconclusive_verdict(
    reference: str, candidate: str, outputs: tuple[OutputParity, ...], images: int, allowed: Tolerance
) -> str:
    varies = max((output.sensitivity or 0.0 for output in outputs), default=0.0)
    return (
        f"INCONCLUSIVE: {candidate} agrees with {reference} on {_count(images, 'image')}, but the reference "
        f"varies by only {varies:.1e} of its range, so that a lost preprocessing step would not show; "
        "use other images, or trained or calibrated weights."
    )


_VERDICTS = {"pass": _pass_verdict, "fail": _fail_verdict, "inconclusive": _inconclusive_verdict}


def _as_arrays(outputs: Outputs) -> dict[str, NDArray]:
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise InputError(f"output {name} is {array.dtype}, expected real numbers; leave it out of the comparison")
    return arrays


def _batch_size(arrays: list[NDArray]) -> int:
    """Length of the batch axis that all outputs share; 1 if they share none."""
    lengths = {array.shape[0] if array.ndim else None for array in arrays}
    length = lengths.pop() if len(lengths) == 1 and any(array.ndim > 1 for array in arrays) else 1
    return length or 1


def _with_names(pair: Pair) -> tuple[str | Sequence[str] | None, Outputs, Outputs]:
    return (None, *pair) if len(pair) == 2 else pair


def _name_images(names: str | Sequence[str] | None, before: int, count: int) -> list[str]:
    if names is None:
        return [f"image {before + number}" for number in range(1, count + 1)]
    if isinstance(names, str):
        return [names] if count == 1 else [f"{names}, {number}" for number in range(1, count + 1)]
    if len(names) != count:
        raise InputError(f"got {len(names)} names for {count} images; give one name per image")
    return list(names)


def _pair_outputs(
    reference: Mapping[str, NDArray], candidate: Mapping[str, NDArray]
) -> list[tuple[str | None, str | None]]:
    """Pair outputs by name, and the rest by position if their shapes leave no doubt."""
    pairs: list[tuple[str | None, str | None]] = [(name, name) for name in reference if name in candidate]
    left = [name for name in reference if name not in candidate]
    right = [name for name in candidate if name not in reference]
    shapes = [reference[name].shape for name in left]
    certain = shapes == [candidate[name].shape for name in right] and len(set(shapes)) == len(shapes)
    if len(left) == len(right) and (certain or len(left) == 1):
        return [*pairs, *zip(left, right, strict=True)]
    return [*pairs, *((name, None) for name in left), *((None, name) for name in right)]


def _renamed_note(outputs: tuple[OutputParity, ...]) -> str:
    pairs = [
        f"{output.name} with {output.candidate_output}"
        for output in outputs
        if output.candidate_output not in (None, output.name)
    ]
    return f"the outputs have different names and were paired by position: {', '.join(pairs)}."


@dataclass
class _Sums:
    """Running sums over the images of one output.

    The reference is x, measured from `pivot` so that large means do not eat up digits; the error is d.
    """

    class_axis: int | Literal["auto"] | None
    shape: tuple[int | None, ...] = ()
    mismatches: list[str] = field(default_factory=list)
    integers: bool = False
    pivot: float | None = None
    n: int = 0
    low: float = math.inf
    high: float = -math.inf
    candidate_low: float = math.inf
    candidate_high: float = -math.inf
    x: float = 0.0
    xx: float = 0.0
    d: float = 0.0
    dd: float = 0.0
    xd: float = 0.0
    absolute: float = 0.0
    nan: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, np.int64))
    inf: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, np.int64))
    errors: dict[str, float] = field(default_factory=dict)
    agreeing: int = 0
    answers: int = 0
    agreement_of: str = ""
    answers_seen: set[int] = field(default_factory=set)
    top5: list[float] = field(default_factory=list)
    first: NDArray | None = None
    between_images: float | None = None
    between_pixels: float | None = None
    shift: tuple[int, int] | None = None
    shift_searches: int = 0

    def add_batch(
        self, reference: NDArray | None, candidate: NDArray | None, names: list[str], tolerance: Tolerance
    ) -> None:
        problem = _mismatch(reference, candidate)
        if problem and problem not in self.mismatches:
            self.mismatches.append(problem)
        if reference is None or candidate is None or problem:
            return
        self._add_shape(reference.shape)
        self.integers = reference.dtype.kind != "f"
        axis = _find_class_axis(reference.shape, self.class_axis)
        if reference.ndim and len(names) == len(reference):
            for name, one, other in zip(names, reference, candidate, strict=True):
                self._add_image(name, one, other, None if axis is None else axis - 1, tolerance)
        else:  # not one entry per image: the whole array belongs to the first image
            self._add_image(names[0], reference, candidate, axis, tolerance)

    def _add_shape(self, shape: tuple[int, ...]) -> None:
        if not self.shape:
            self.shape = shape
        elif len(shape) == len(self.shape):
            rest = [a if a == b else None for a, b in zip(self.shape[1:], shape[1:], strict=True)]
            self.shape = ((self.shape[0] or 0) + shape[0], *rest) if shape else ()

    def _add_image(
        self, name: str, reference: NDArray, candidate: NDArray, axis: int | None, tolerance: Tolerance
    ) -> None:
        low, high = self._add_values(name, reference, candidate)
        self._add_answers(reference, candidate, axis)
        self._add_variation(reference, axis)
        failing = self.errors[name] > tolerance.max_relative_error * (high - low)
        if failing and self.shift is None and self.shift_searches < 3 and math.isfinite(self.errors[name]):
            self.shift_searches += 1
            self.shift = _find_shift(reference, candidate, axis)

    def _add_values(self, name: str, reference: NDArray, candidate: NDArray) -> tuple[float, float]:
        """Add all values of one image, and return the reference's smallest and largest."""
        largest, low, high = 0.0, math.inf, -math.inf
        for one, other in _blocks(reference, candidate):
            finite = np.isfinite(one) & np.isfinite(other)
            if not finite.all():
                self.nan += (np.isnan(one).sum(), np.isnan(other).sum())
                self.inf += (np.isinf(one).sum(), np.isinf(other).sum())
                one, other, largest = one[finite], other[finite], math.inf
            if one.size:
                low, high = min(low, float(one.min())), max(high, float(one.max()))
                self.candidate_low = min(self.candidate_low, float(other.min()))
                self.candidate_high = max(self.candidate_high, float(other.max()))
                largest = max(largest, self._add_block(one, other))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.errors[name] = max(largest, self.errors.get(name, 0.0))
        return low, high

    def _add_block(self, one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
        error = other - one
        if self.pivot is None:
            self.pivot = float(one.mean())
        one = one - self.pivot
        self.n += one.size
        self.x += float(one.sum())
        self.xx += float(one @ one)
        self.d += float(error.sum())
        self.dd += float(error @ error)
        self.xd += float(one @ error)
        np.abs(error, out=error)
        self.absolute += float(error.sum())
        return float(error.max())

    def _add_answers(self, reference: NDArray, candidate: NDArray, axis: int | None) -> None:
        if self.integers:
            self.agreement_of, left, right = "value", reference, candidate
        elif axis is None or not reference.size:
            return
        elif reference.shape[axis] == 1:
            self.agreement_of, left, right = "sign", reference > 0, candidate > 0
        else:
            self.agreement_of = "top-1" if reference.ndim == 1 else "pixel"
            left, right = reference.argmax(axis), candidate.argmax(axis)
        self.agreeing += int(np.count_nonzero(left == right))
        self.answers += left.size
        if len(self.answers_seen) < 2:
            self.answers_seen.update(np.unique(left)[:2].tolist())
        if self.agreement_of == "top-1" and reference.size >= 5:
            five = [set(np.argsort(-array, kind="stable")[:5].tolist()) for array in (reference, candidate)]
            self.top5.append(len(five[0] & five[1]) / 5)

    def _add_variation(self, reference: NDArray, axis: int | None) -> None:
        if self.first is None:
            self.first = reference.copy()
            others = tuple(a for a in range(reference.ndim) if a != axis)
            if reference.ndim > 1 and reference.size and not self.integers:
                self.between_pixels = float(np.max(reference.max(axis=others) - reference.min(axis=others)))
        elif self.first.shape == reference.shape:
            blocks = _blocks(self.first, reference)
            with np.errstate(invalid="ignore"):  # infinite values are counted elsewhere
                difference = max((float(np.abs(a - b).max()) for a, b in blocks if a.size), default=0.0)
            self.between_images = max(difference, self.between_images or 0.0)

    def finish(self, pair: tuple[str | None, str | None], tolerance: Tolerance) -> OutputParity:
        """Turn the sums into the result for one output."""
        name = pair[0] if pair[0] is not None else str(pair[1])
        if self.mismatches:
            return OutputParity(name, pair[1], self.shape, problems=tuple(self.mismatches))
        result = self._measures(OutputParity(name, pair[1], self.shape), tolerance)
        problems = tuple(_find_problems(result, tolerance))
        if not problems:
            return result
        cause = self._find_cause(result)
        return dataclasses.replace(result, problems=problems, shift=self.shift, cause=cause)

    def _measures(self, empty: OutputParity, tolerance: Tolerance) -> OutputParity:
        scale = self._scale()
        errors = {image: error / scale for image, error in self.errors.items()}
        sensitivity = self._sensitivity(scale)
        limit = max(TELLING_SENSITIVITY, tolerance.max_relative_error)
        return dataclasses.replace(
            empty,
            reference_range=max(0.0, self.high - self.low),
            max_relative_error=max(errors.values(), default=0.0),
            mean_relative_error=self.absolute / max(1, self.n) / scale,
            relative_l2=self._relative_l2(),
            cosine=self._cosine(),
            agreement=self.agreeing / self.answers if self.answers else None,
            agreement_of=self.agreement_of,
            top5_agreement=float(np.mean(self.top5)) if self.top5 else None,
            nan=(int(self.nan[0]), int(self.nan[1])),
            inf=(int(self.inf[0]), int(self.inf[1])),
            sensitivity=sensitivity,
            worst=tuple(sorted(errors.items(), key=lambda item: -item[1])),
            tells=not self._is_constant() and (sensitivity is None or sensitivity >= limit),
        )

    def notes(self, output: OutputParity) -> list[str]:
        """What weakens the evidence of this output."""
        if output.problems:
            return []
        if not output.tells:
            return [f"output {output.name} of the reference hardly varies, so that it shows nothing."]
        if len(self.answers_seen) == 1 and self.answers > 1:
            what = {"top-1": "every image has the same top-1 class", "sign": "every value has the same sign"}
            text = what.get(self.agreement_of, "one class covers every pixel")
            return [f"output {output.name}: {text}, so that the agreement says little; the errors count."]
        return []

    def _is_constant(self) -> bool:
        """Whether the reference holds one number, up to the rounding of float32."""
        return not self.high - self.low > 1e-6 * max(abs(self.high), abs(self.low))

    def _scale(self) -> float:
        """What errors are divided by: the range or, for a constant, its size."""
        if not self._is_constant():
            return self.high - self.low
        size = max(abs(self.high), abs(self.low)) if self.n else 0.0
        return size if size > 0 else 1.0

    def _sensitivity(self, scale: float) -> float | None:
        between = self.between_images if self.between_images is not None else self.between_pixels
        return 0.0 if self._is_constant() else None if between is None else between / scale

    def _squares(self) -> tuple[float, float]:
        """Sum of the reference's squares, and of the reference times the error, without the pivot."""
        pivot = self.pivot or 0.0
        return self.xx + 2 * pivot * self.x + self.n * pivot**2, self.xd + pivot * self.d

    def _relative_l2(self) -> float:
        return math.sqrt(self.dd / self._squares()[0]) if self._squares()[0] > 0 else math.sqrt(self.dd)

    def _cosine(self) -> float:
        squares, products = self._squares()
        candidate = squares + 2 * products + self.dd
        if squares <= 0 or candidate <= 0:
            return 1.0 if self.dd == 0 else math.nan
        return min(1.0, (squares + products) / math.sqrt(squares * candidate))

    def _find_cause(self, output: OutputParity) -> str | None:
        """Name a cause only where the numbers show it: not finite, shifted, or linear in the reference."""
        if any(output.nan + output.inf):
            return None  # the problem itself says so
        if self.shift is not None:
            return f"shifted by {self.shift} pixels (rows, columns)"
        if self.integers or self.n < 2 or not self.dd > 0 or self._is_constant():
            return None
        if self.candidate_low == self.candidate_high:
            return f"the candidate gives {self.candidate_low:.3g} everywhere"
        return self._find_linear_cause()

    def _find_linear_cause(self) -> str | None:
        """Name an offset or a factor that explains over 99 % of the squared error and of the candidate."""
        squares, products = self._squares()
        mean_x, mean_d = self.x / self.n, self.d / self.n
        variance = self.xx / self.n - mean_x**2
        covariance = self.xd / self.n - mean_x * mean_d
        candidate = variance + 2 * covariance + self.dd / self.n - mean_d**2
        if variance <= 0 or (variance + covariance) ** 2 < 0.99 * variance * candidate:
            return None
        slope, unexplained = covariance / variance, self.dd / 100
        offset = mean_d - slope * (mean_x + (self.pivot or 0.0))
        if self.dd - self.n * mean_d**2 < unexplained:
            return f"a constant offset of {mean_d:+.3g}"
        if self.dd - products**2 / squares < unexplained:
            return f"scaled by {1 + products / squares:.3g}"
        if self.dd - self.n * (mean_d**2 + slope * covariance) < unexplained:
            return f"scaled by {1 + slope:.3g} with an offset of {offset:+.3g}"
        return None


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


def _find_problems(output: OutputParity, allowed: Tolerance) -> Iterator[str]:
    for kind, counts in (("NaN", output.nan), ("infinite", output.inf)):
        for count, side in zip(counts, ("reference", "candidate"), strict=True):
            if count:
                yield f"{_count(count, kind + ' value')} in the {side}"
    if not output.holds_integers and output.max_relative_error > allowed.max_relative_error:
        error, limit = output.max_relative_error, allowed.max_relative_error
        yield f"largest error {error:.1e} of the range (allowed {limit:.0e})"
    if not output.holds_integers and output.mean_relative_error > allowed.mean_relative_error:
        error, limit = output.mean_relative_error, allowed.mean_relative_error
        yield f"mean error {error:.1e} of the range (allowed {limit:.0e})"
    if output.agreement is not None and output.agreement < allowed.agreement:
        share, limit_share = _percent(output.agreement), _percent(allowed.agreement)
        yield f"{output.agreement_of} agreement {share} (at least {limit_share} needed)"


def _find_class_axis(shape: tuple[int, ...], class_axis: int | Literal["auto"] | None) -> int | None:
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


def _find_shift(reference: NDArray, candidate: NDArray, axis: int | None) -> tuple[int, int] | None:
    """Find the displacement (rows, columns) that makes the error of one image at least three times smaller.

    The channel with the largest spread is searched; a pixel (y, x) of the reference is
    compared with (y + rows, x + columns) of the candidate.
    """
    if reference.ndim == 3 and axis is not None:
        one, other = np.moveaxis(reference, axis, 0), np.moveaxis(candidate, axis, 0)
        channel = int(np.argmax(one.std(axis=(1, 2), dtype=np.float64)))
        one, other = one[channel].astype(np.float64), other[channel].astype(np.float64)
    elif reference.ndim == 2 and axis is None:
        one, other = reference.astype(np.float64), candidate.astype(np.float64)
    else:
        return None
    s = LARGEST_SHIFT
    rows, columns = one.shape[0] - 2 * s, one.shape[1] - 2 * s
    if rows < 2 or columns < 2:
        return None
    inner = one[s : s + rows, s : s + columns]
    errors = {
        (y, x): float(np.square(other[s + y : s + y + rows, s + x : s + x + columns] - inner).sum())
        for y, x in itertools.product(range(-s, s + 1), repeat=2)
    }
    best = min(errors, key=lambda shift: (errors[shift], abs(shift[0]) + abs(shift[1])))
    return best if best != (0, 0) and 9 * errors[best] <= errors[0, 0] else None


def _blocks(one: NDArray, other: NDArray) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Give two arrays of one shape as flat float64 blocks."""
    left, right = one.ravel(), other.ravel()
    for start in range(0, left.size, BLOCK_VALUES):
        block = slice(start, start + BLOCK_VALUES)
        yield left[block].astype(np.float64), right[block].astype(np.float64)


_HEADINGS = (
    "output",
    "result",
    "shape",
    "range",
    "max error",
    "mean error",
    "relative L2",
    "cosine",
    "agreement",
    "NaN, Inf",
)
_COLORS = {"pass": "#2e9e5b", "fail": "#d64545", "inconclusive": "#c98a1b"}


def _cells(output: OutputParity) -> tuple[str, ...]:
    shape = " x ".join("?" if length is None else str(length) for length in output.shape)
    agreement = f"{_percent(output.agreement)} {output.agreement_of}" if output.agreement is not None else "-"
    if output.top5_agreement is not None:
        agreement += f", {_percent(output.top5_agreement)} top-5"
    numbers = (output.max_relative_error, output.mean_relative_error, output.relative_l2)
    bad = f"{sum(output.nan)}, {sum(output.inf)}"
    return (
        output.name,
        output.status,
        shape or "scalar",
        _number(output.reference_range, ".4g"),
        *(_number(number, ".1e") for number in numbers),
        _number(output.cosine, ".6f"),
        agreement,
        bad,
    )


def _number(value: float, style: str) -> str:
    return "-" if math.isnan(value) else format(value, style)


def _percent(share: float | None) -> str:
    """A share in percent, never rounded up to 100 %."""
    percent = 100 * (share or 0.0)
    return "100 %" if percent == 100 else f"{min(percent, 99.9999):.6g} %"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _finite(value: Any) -> Any:
    """The same value for strict JSON, with None for numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
