"""Run two forms of one network on the same inputs and judge whether the answers agree."""

from collections.abc import Iterable, Iterator

import numpy as np

from workbench.core.compare import ParityReport, compare_batches
from workbench.core.contract import Runner, TensorSpec
from workbench.core.errors import InputError
from workbench.core.output_errors import Tolerance
from workbench.pictures.feeds import Feed


def compare_runners(
    reference: Runner, candidate: Runner, feeds: Iterable[tuple[str, Feed]], tolerance: Tolerance | None = None
) -> ParityReport:
    """Compare two open runners on named feeds.

    Args:
        reference: the runner whose answers are right by definition.
        candidate: the runner that is judged.
        feeds: (name, feed) pairs, one picture each; consumed one at a time.
        tolerance: the limits; those of `Tolerance()` when None.
    Returns:
        The parity report; `passed` says whether the candidate may be used instead of the reference.
    """

    def answers() -> Iterator[tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]]:
        for name, feed in feeds:
            same_names = set(feed) == set(candidate.inputs)
            renamed = feed if same_names else dict(zip(candidate.inputs, feed.values(), strict=True))
            yield name, reference.infer(feed), candidate.infer(renamed)

    names = (reference.info.name, candidate.info.name)
    limits = tolerance or Tolerance()
    return compare_batches(answers(), reference_name=names[0], candidate_name=names[1], tolerance=limits)


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
