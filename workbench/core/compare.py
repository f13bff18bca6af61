"""Compare what two runners answer to the same images, and say in one sentence whether it is still right.

Errors are measured relative to the range of the reference output (its largest minus its smallest
value), so compare logits, not probabilities: a sigmoid or softmax hides and inflates errors.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workbench.core.errors import InputError
from workbench.core.output_errors import ClassAxis, Names, OutputParity, OutputSums, times_noise, worst_first
from workbench.core.report import Report, Status, Table, count, percent
from workbench.core.tolerance import AnyTolerance, Tolerance

HEADINGS = (
    "output", "result", "shape", "range", "rounding", "allowed", "max error", "mean error", "relative L2", "cosine",
    "agreement", "NaN, Inf",
)  # fmt: skip


@dataclass(frozen=True)
class ParityReport(Report):
    """The verdict on a candidate, and the numbers behind it.

    Attributes:
        status: "pass"; "fail"; or "inconclusive": the reference hardly varies, equal answers show nothing.
        images: how many images were compared.
        worst: (image, max_relative_error over all outputs), worst image first.
        notes: sentences on how far the evidence reaches.
    """

    reference_name: str
    candidate_name: str
    status: Status
    verdict: str
    outputs: tuple[OutputParity, ...]
    images: int
    worst: tuple[tuple[str, float], ...]
    notes: tuple[str, ...]
    tolerance: AnyTolerance

    def _tables(self) -> list[Table]:
        return [Table(HEADINGS, [_cells(output) for output in self.outputs])]

    def _content(self) -> dict[str, Any]:
        content = super()._content()
        for entry, output in zip(content["outputs"], self.outputs, strict=True):
            entry["status"] = output.status
        return content

    def _remarks(self) -> list[str]:
        allowed = self.tolerance
        lines = [
            f"Reference: {self.reference_name}. Candidate: {self.candidate_name}. {count(self.images, 'image')}.",
            f"Errors are shares of the reference's range, of each channel's own. Allowed: {allowed.describe()}.",
        ]
        if len(self.worst) > 1:
            worst = ", ".join(f"{name} ({error:.1e})" for name, error in self.worst[:3])
            lines.append(f"Worst: {worst}.")
        lines += [f"Output {output.name}: {problem}." for output in self.outputs for problem in output.problems]
        return lines + [f"Note: {note}" for note in self.notes]


def _cells(output: OutputParity) -> tuple[str, ...]:
    agreement = "-" if output.agreement is None else f"{percent(output.agreement)} {output.agreement_of}"
    if output.top5_agreement is not None:
        agreement += f", {percent(output.top5_agreement)} top-5"
    numbers = (
        (output.reference_range, ".4g"), (output.noise, ".1e"), (output.allowed, ".1e"),
        (output.max_relative_error, ".1e"), (output.mean_relative_error, ".1e"), (output.relative_l2, ".1e"),
        (output.cosine, ".6f"),
    )  # fmt: skip
    return (
        output.name,
        output.status,
        " x ".join("?" if length is None else str(length) for length in output.shape) or "scalar",
        *("-" if value is None or math.isnan(value) else format(value, style) for value, style in numbers),
        agreement,
        f"{sum(output.nan)}, {sum(output.inf)}",
    )


def worst_output(report: ParityReport) -> OutputParity:
    """The output with the largest error, first of all one that is missing."""
    return max(report.outputs, key=lambda output: (math.isnan(output.max_relative_error), output.max_relative_error))


FLOAT32 = Tolerance()
"""What is allowed where both sides calculate in float32."""

Outputs = Mapping[str, ArrayLike]
Pair = tuple[Outputs, Outputs] | tuple[str | Sequence[str], Outputs, Outputs]


def compare_outputs(
    reference: Outputs,
    candidate: Outputs,
    *,
    reference_name: str,
    candidate_name: str,
    tolerance: AnyTolerance = FLOAT32,
    class_axis: ClassAxis = "auto",
    image_names: Sequence[str] | None = None,
) -> ParityReport:
    """Compare the outputs of two runners for one batch of images.

    Outputs are arrays by name, axis 0 is the image; give logits rather than probabilities. `class_axis` is that of the
    classes: "auto" takes axis 1 of (N, K), the shorter of axis 1 and the last of four axes, and none otherwise; None
    compares no answers. `passed` is True only if the answers agree and the comparison can show it. InputError without
    outputs or numbers, or where `image_names` are fewer than the images.

    >>> logits = np.array([[1.0, 5.0, 2.0], [7.0, 0.0, 1.0]], np.float32)
    >>> report = compare_outputs({"y": logits}, {"y": logits + 0.5}, reference_name="A", candidate_name="B")
    >>> report.passed, report.outputs[0].cause
    (False, 'a constant offset of +0.5')
    """
    pair: Pair = (reference, candidate) if image_names is None else (image_names, reference, candidate)
    return compare_batches(
        [pair], reference_name=reference_name, candidate_name=candidate_name, tolerance=tolerance,
        class_axis=class_axis,
    )  # fmt: skip


def compare_batches(
    pairs: Iterable[Pair],
    *,
    reference_name: str,
    candidate_name: str,
    tolerance: AnyTolerance = FLOAT32,
    class_axis: ClassAxis = "auto",
    notes: Sequence[str] = (),
) -> ParityReport:
    """Compare two runners batch by batch, holding one batch and one more image at a time; see `compare_outputs`.

    A pair is (reference, candidate) outputs, or (name, reference, candidate) with one name, or one for each
    image. The `notes` are kept in the report.
    """
    sums: dict[Names, OutputSums] = {}
    images = 0
    for pair in pairs:
        left, right = _as_arrays(pair[-2]), _as_arrays(pair[-1])
        batch = batch_size(left.values())
        image_names = _name_images(pair[0] if len(pair) == 3 else None, images, batch)
        for names in _pair_outputs(left, right):
            total = sums.setdefault(names, OutputSums(names, class_axis, tolerance, len(sums)))
            total.add_batch(left.get(names[0] or ""), right.get(names[1] or ""), image_names)
        images += batch
    if not sums:
        raise InputError("got no outputs to compare; run at least one image through both runners")
    outputs = tuple(total.finish() for total in sums.values())
    notes = [*notes, *_renamed(outputs)]
    notes += [note for total, output in zip(sums.values(), outputs, strict=True) for note in total.notes(output)]
    if images == 1:
        notes.append("only one image was compared; several different ones show more.")
    status: Status = "pass" if any(output.tells for output in outputs) else "inconclusive"
    if any(output.problems for output in outputs):
        status = "fail"
    verdict = _verdict(status, reference_name, candidate_name, outputs, images)
    worst = worst_first(itertools.chain.from_iterable(output.worst for output in outputs))
    return ParityReport(
        reference_name, candidate_name, status, verdict, outputs, images, worst, tuple(notes), tolerance
    )


def _verdict(status: Status, reference: str, candidate: str, outputs: tuple[OutputParity, ...], images: int) -> str:
    on = f"on {count(images, 'image')}"
    if status == "fail":
        failed = [output for output in outputs if output.problems]
        first = next((output for output in failed if output.cause), failed[0])
        reasons = [first.problems[0], first.cause] if first.cause else [first.problems[0]]
        reasons += [f"{count(len(failed) - 1, 'more output')} failed"] if len(failed) > 1 else []
        return f'FAIL: {candidate} differs from {reference} in output "{first.name}": {"; ".join(reasons)}.'
    if status == "inconclusive":
        varies = max(output.sensitivity or 0.0 for output in outputs)
        return (
            f"INCONCLUSIVE: {candidate} agrees with {reference} {on}, but the reference varies by only "
            f"{varies:.1e} of its range, so that a lost preprocessing step would not show; "
            "use other images, or trained or calibrated weights."
        )
    text = f"PASS: {candidate} answers like {reference} {on}"
    judged = [output for output in outputs if not output.holds_integers and 0 not in output.shape]
    if judged:
        worst = max(judged, key=lambda output: output.max_relative_error)
        times = f", {times_noise(worst.max_relative_error, worst.noise)}" if worst.noise is not None else ""
        style = ".0e" if worst.noise is None else ".1e"
        text += f": largest error {worst.max_relative_error:.1e} of the range{times} (allowed {worst.allowed:{style}})"
    elif any(output.steps for output in outputs):
        text += f": integers are off by at most {max(output.steps or 0 for output in outputs):.0f}"
    agreements = [(output.agreement, output.agreement_of) for output in outputs if output.agreement is not None]
    return text + "".join(f", {what} agreement {percent(share)}" for share, what in sorted(agreements)[:1]) + "."


def _renamed(outputs: tuple[OutputParity, ...]) -> list[str]:
    renamed = [output for output in outputs if output.candidate_output not in (None, output.name)]
    pairs = [f"{output.name} with {output.candidate_output}" for output in renamed]
    return [f"the outputs have different names and were paired by position: {', '.join(pairs)}."] if pairs else []


def _as_arrays(outputs: Outputs) -> dict[str, NDArray]:
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    arrays = {
        name: array.astype(np.float32) if array.dtype.name == "bfloat16" else array for name, array in arrays.items()
    }
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise InputError(f"output {name} is {array.dtype}, expected real numbers; leave it out of the comparison")
    return arrays


def batch_size(arrays: Iterable[NDArray]) -> int:
    """Length of the batch axis that all outputs share; 1 if they share none."""
    shapes = [array.shape for array in arrays]
    lengths = {shape[0] if shape else None for shape in shapes}
    length = lengths.pop() if len(lengths) == 1 and any(len(shape) > 1 for shape in shapes) else 1
    return length or 1


def _name_images(names: str | Sequence[str] | None, before: int, count: int) -> list[str]:
    if names is None:
        return [f"image {before + number}" for number in range(1, count + 1)]
    if isinstance(names, str):
        return [names] if count == 1 else [f"{names}, {number}" for number in range(1, count + 1)]
    if len(names) != count:
        raise InputError(f"got {len(names)} names for {count} images; give one name per image")
    return list(names)


def _pair_outputs(reference: Mapping[str, NDArray], candidate: Mapping[str, NDArray]) -> list[Names]:
    """Pair outputs by name, and the rest by position if their shapes leave no doubt."""
    pairs: list[Names] = [(name, name) for name in reference if name in candidate]
    left = [name for name in reference if name not in candidate]
    right = [name for name in candidate if name not in reference]
    shapes = [reference[name].shape for name in left]
    certain = shapes == [candidate[name].shape for name in right] and len(set(shapes)) == len(shapes)
    if len(left) == len(right) and (certain or len(left) == 1):
        return [*pairs, *zip(left, right, strict=True)]
    return [*pairs, *((name, None) for name in left), *((None, name) for name in right)]
