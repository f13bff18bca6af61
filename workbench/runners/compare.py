"""Run two forms of one network on the same inputs and judge whether the answers agree."""

import itertools
import os
from collections.abc import Iterable, Iterator

import numpy as np

from workbench.core.compare import FLOAT32, ParityReport, compare_batches
from workbench.core.contract import Runner, TensorSpec
from workbench.core.errors import ExportError, InputError, first_line
from workbench.core.tolerance import AnyTolerance, coarsest
from workbench.onnx_graph.noise import FEEDS, rounding_noise
from workbench.pictures.feeds import Feed


def compare_runners(
    reference: Runner, candidate: Runner, feeds: Iterable[tuple[str, Feed]], tolerance: AnyTolerance | None = None
) -> ParityReport:
    """Compare two open runners on named feeds.

    How far they may differ is measured: what rounding does to the network, on the first feeds. Where neither runs an
    ONNX file, give `rounding_noise("net.onnx", feeds)` of the ONNX form, or the limits of `Tolerance()` are taken, and
    a note says so.

    Args:
        reference: the runner whose answers are right by definition.
        candidate: the runner that is judged.
        feeds: (name, feed) pairs, one picture each; consumed one at a time.
        tolerance: the limits; measured when None.
    Returns:
        The parity report; `passed` says whether the candidate may be used instead of the reference.
    """
    waiting: Iterator[tuple[str, Feed]] = iter(feeds)
    notes: tuple[str, ...] = ()
    if tolerance is None:
        first = list(itertools.islice(waiting, FEEDS))
        waiting = itertools.chain(first, waiting)
        tolerance, notes = measured_tolerance(
            candidate.onnx_file or reference.onnx_file, first, coarsest(reference.unit, candidate.unit)
        )

    def answers() -> Iterator[tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]]:
        for name, feed in waiting:
            same_names = set(feed) == set(candidate.inputs)
            renamed = feed if same_names else dict(zip(candidate.inputs, feed.values(), strict=True))
            yield name, reference.infer(feed), candidate.infer(renamed)

    names = (reference.info.name, candidate.info.name)
    return compare_batches(
        answers(), reference_name=names[0], candidate_name=names[1], tolerance=tolerance, notes=notes
    )


def measured_tolerance(
    onnx_file: str | os.PathLike[str] | None, feeds: Iterable[tuple[str, Feed]], unit: str
) -> tuple[AnyTolerance, tuple[str, ...]]:
    """What rounding does to the network of an ONNX file; fixed limits, and a note that says why, where that fails."""
    reason = "neither of the two is an ONNX file"
    if onnx_file is not None:
        try:
            return rounding_noise(onnx_file, feeds, unit=unit), ()
        except (InputError, ExportError) as error:
            reason = first_line(error)
    return FLOAT32, (f"what rounding does to this network was not measured, so the limits are fixed: {reason}.",)


def shared_specs(reference: Runner, candidate: Runner) -> dict[str, TensorSpec]:
    """Pair the inputs of two runners, by name or else by position, and keep the sizes either one fixes.

    Returns:
        Specs under the reference's names, in its order.
    Raises:
        InputError: another number of inputs, or shapes and dtypes that exclude each other.
    """
    same_names = set(reference.inputs) == set(candidate.inputs)
    if len(reference.inputs) != len(candidate.inputs):
        raise InputError(
            f"{reference.info.name} takes {', '.join(reference.inputs)}, {candidate.info.name} takes "
            f"{', '.join(candidate.inputs)}; are they the same network?"
        )
    others = list(candidate.inputs.values())
    return {
        name: _merge(spec, candidate.inputs[name] if same_names else others[index], reference, candidate)
        for index, (name, spec) in enumerate(reference.inputs.items())
    }


def _merge(first: TensorSpec, second: TensorSpec, reference: Runner, candidate: Runner) -> TensorSpec:
    pairs = list(zip(first.shape, second.shape, strict=False))
    clash = any(None not in pair and pair[0] != pair[1] for pair in pairs)
    if clash or len(first.shape) != len(second.shape) or first.dtype != second.dtype:
        raise InputError(
            f"input {first.name}: {reference.info.name} takes {first.describe()}, {candidate.info.name} takes "
            f"{second.describe()}; convert the model again for the same size"
        )
    shape = tuple(right if left is None else left for left, right in pairs)
    return TensorSpec(first.name, shape, first.dtype)
