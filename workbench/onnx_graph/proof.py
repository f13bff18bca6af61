"""Prove that a changed ONNX network still answers as before: both run in ONNX Runtime, without its own rewrites."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from workbench.core.compare import FLOAT32, ParityReport, compare_batches
from workbench.core.contract import TensorSpec, check_feed
from workbench.core.errors import ModelError, first_line
from workbench.core.tolerance import AnyTolerance
from workbench.onnx_graph.edit import real_inputs
from workbench.onnx_graph.file import tensor_spec
from workbench.onnx_graph.input_values import input_values
from workbench.onnx_graph.noise import rounding_noise
from workbench.onnx_graph.session import open_session, run_session
from workbench.pictures.feeds import Known, channel_axis, checked_feeds, make_feeds, random_feed

PURPOSE = "run the network, so no rewrite can be proved"
OPEN_PICTURE = (64, 96)  # rows and columns of the test pictures for a network that leaves both open
NOISE_SEED = 1

Arrays = dict[str, NDArray[Any]]
Feeds = Iterable[tuple[str, Mapping[str, NDArray[Any]]]]


class Proof:
    """The answers of a network, which is right by definition, to some feeds; and the judgement of others by them.

    The feeds are (name, feed) pairs, those of `default_feeds` when None; the tolerance is what rounding may change,
    measured when None.
    A network that ONNX Runtime cannot run, or that answers differently each time, is a ModelError.
    """

    def __init__(self, model: onnx.ModelProto, feeds: Feeds | None, tolerance: AnyTolerance | None) -> None:
        self._model, self._tolerance = model, tolerance
        specs = {value.name: tensor_spec(value) for value in real_inputs(model.graph)}
        given = default_feeds(specs, input_values(model)) if feeds is None else checked_feeds(feeds)
        self._feeds = [(name, dict(feed)) for name, feed in given]
        for _, feed in self._feeds:
            check_feed(specs, feed)
        session = open_session(model, PURPOSE, optimise="none")
        self._answers = self._last = [run_session(session, feed) for _, feed in self._feeds]
        if self._feeds and not _same(self._answers[0], run_session(session, self._feeds[0][1])):
            raise ModelError(
                "the network answers the same input differently each time, so no rewrite can be proved; "
                "export it for inference, without random operators"
            )

    def judge(self, candidate: onnx.ModelProto, *, exact: bool) -> str:
        """Say in one clause why a changed network is not proved to be the same; an empty text where it is.

        An `exact` one must answer as the last network that passed, to the last bit; another one as the first network,
        within the tolerance.
        """
        try:
            onnx.checker.check_model(candidate)
            answers = self._run(candidate)
        except (ModelError, onnx.checker.ValidationError) as error:
            return f"the changed network does not run ({first_line(error)})"
        if all(map(_same, self._last, answers)):
            return ""
        if self._tolerance is None and not exact:
            self._tolerance = rounding_noise(self._model, self._feeds)
        report = self._report(answers)
        if exact:
            worst = max(output.max_relative_error for output in report.outputs)
            return f"it changes the answers (by up to {worst:.1e} of their range), expected the same to the last bit"
        if report.passed:
            self._last = answers
        return "" if report.passed else report.verdict

    def report(self, candidate: onnx.ModelProto) -> ParityReport:
        """Compare a changed network with the original on the same feeds."""
        return self._report(self._run(candidate))

    def _run(self, network: onnx.ModelProto) -> list[Arrays]:
        session = open_session(network, PURPOSE, optimise="none")
        return [run_session(session, feed) for _, feed in self._feeds]

    def _report(self, answers: Sequence[Arrays]) -> ParityReport:
        return compare_batches(
            zip((name for name, _ in self._feeds), self._answers, answers, strict=True),
            reference_name="the graph as it was",
            candidate_name="the rewritten graph",
            tolerance=self._tolerance or FLOAT32,  # not measured: the answers are the same to the last bit
        )


def default_feeds(specs: Mapping[str, TensorSpec], known: Mapping[str, Known]) -> list[tuple[str, Arrays]]:
    """Make feeds whose answers differ: a picture, noise, and both in one batch where every input leaves it open.

    `known` is what `input_values` finds.
    """
    closed = {name: _close_picture(spec) for name, spec in specs.items()}
    noise = random_feed(closed, np.random.default_rng(NOISE_SEED), known)
    feeds = [next(make_feeds(closed, known=known)), ("noise", noise)]
    numbers = any(isinstance(value, np.ndarray) for value in known.values())  # that hold for a batch of 1
    if specs and not numbers and all(spec.shape[:1] == (None,) for spec in specs.values()):
        both = {name: np.concatenate([feed[name] for _, feed in feeds]) for name in specs}
        feeds.append(("both at once", both))
    return feeds


def _close_picture(spec: TensorSpec) -> TensorSpec:
    axis, shape = channel_axis(spec), list(spec.shape)
    if axis is not None:
        for place, size in enumerate(OPEN_PICTURE, 2 if axis == 1 else 1):
            shape[place] = shape[place] or size
    return replace(spec, shape=tuple(shape))


def _same(left: Arrays, right: Arrays) -> bool:
    """Equal to the last bit, types and shapes included; a NaN equals a NaN."""
    return left.keys() == right.keys() and all(
        one.dtype == right[name].dtype and np.array_equal(one, right[name], equal_nan=one.dtype.kind == "f")
        for name, one in left.items()
    )
