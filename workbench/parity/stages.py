"""Run every form a network takes on its way to an engine, compare neighbours, and name the stage at fault."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from workbench.core.compare import ParityReport
from workbench.core.errors import BackendUnavailableError, ModelError, WorkbenchError
from workbench.core.files import make_folder
from workbench.core.output_errors import Tolerance
from workbench.core.report import Status, count
from workbench.parity.divergence import first_divergence
from workbench.parity.forms import Form, StagesReport, given_forms, is_plan, make_forms
from workbench.parity.layer_errors import Divergence
from workbench.parity.pairs import layer_namer, pair_tensors
from workbench.parity.probes import open_probe
from workbench.pictures.feeds import Feed, make_feeds
from workbench.runners.backends import backend_for, open_runner
from workbench.runners.compare import shared_specs, verify_runners


def verify_stages(
    model: Any,
    *others: Any,
    images: str | os.PathLike[str] | None = None,
    preprocess: str = "unit",
    spatial: tuple[int, int] | None = None,
    tolerance: Tolerance | None = None,
    work_folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> StagesReport:
    """Follow a network from stage to stage and name the first one that changes its answers.

    Without `others` the stages are made here: the framework itself, the frozen graph, the ONNX file as the exporter
    wrote it, the ONNX file after `onnx_graph.fix`, and an engine where one can be built and run. A stage that cannot
    run is named with the reason.

    Args:
        model: the first stage: a Keras model, a model file or a model name.
        others: further forms of it, compared in this order, such as two `.onnx` files.
        images: a folder of pictures; built-in ones when None.
        preprocess: how pictures become inputs, see `workbench.pictures.feeds.make_feeds`.
        spatial: (height, width) in pixels for a model that leaves them open.
        tolerance: the limits; those of `Tolerance()` when None.
        work_folder: keep the files that are made here; they are deleted when None.
        progress: show bars.
    Returns:
        The stages, one parity report for each pair of neighbours, and the stage and layer at fault.
    Raises:
        ModelError: a model cannot be opened.
        InputError: the stages do not take the same inputs, or `model` is an engine and alone.
        ImageError: a file in `images` is not an image.
        OutputError: `work_folder` cannot be written to.
    """
    with _folder(work_folder) as folder:
        made = given_forms(model, others) if others else make_forms(model, folder, spatial, progress)
        chain = Chain(made, images, preprocess, tolerance, progress)
        return chain.judge()


class Chain:
    """The comparison of all neighbours; only two networks are open at a time.

    Args:
        forms: the stages, in order.
        images: see `verify_stages`.
        preprocess: as there.
        tolerance: as there.
        progress: as there.
    """

    def __init__(
        self,
        forms: list[Form],
        images: str | os.PathLike[str] | None,
        preprocess: str,
        tolerance: Tolerance | None,
        progress: bool,
    ) -> None:
        self.forms, self.images, self.preprocess = forms, images, preprocess
        self.tolerance, self.progress = tolerance, progress
        self.notes: list[str] = []

    def judge(self) -> StagesReport:
        """Compare, and say which stage is at fault."""
        reports: dict[str, ParityReport] = {}
        before = self.forms[0]
        for form in self.forms[1:]:
            if form.runs and (report := self._compare(before, form)) is not None:
                reports[form.name] = report
                before = form
        at_fault = self._first_fault(reports)
        divergence = self._look_inside(at_fault, reports) if at_fault in reports else None
        whole = self._compare(self.forms[0], before) if at_fault is None and len(reports) > 1 else None
        status: Status = "fail" if at_fault else _worst_of([*reports.values(), *([whole] if whole else [])])
        return StagesReport(
            stages=tuple(form.describe() for form in self.forms),
            reports=tuple(reports.values()),
            status=status,
            stage_at_fault=at_fault,
            verdict=self._verdict(status, at_fault, reports, divergence),
            divergence=divergence,
            whole=whole,
            notes=tuple(self.notes),
        )

    def _compare(self, first: Form, second: Form) -> ParityReport | None:
        """Run two neighbours on all pictures; None, and the reason, where the second cannot run here."""
        with open_runner(first.target) as reference:
            first.runner = reference.info.name
            try:
                candidate = open_runner(second.target)
            except (BackendUnavailableError, ModelError) as error:
                made_wrong = isinstance(error, ModelError)
                if second.given:
                    raise
                second.target, second.skipped, second.failed = None, str(error), made_wrong
                return None
            with candidate:
                second.runner = candidate.info.name
                feeds = make_feeds(shared_specs(reference, candidate), self.images, self.preprocess)
                title = f"{first.name} and {second.name}"
                bar = tqdm(feeds, desc=title, unit="picture", leave=False, disable=not self.progress)
                return verify_runners(reference, candidate, bar, self.tolerance)

    def _first_fault(self, reports: dict[str, ParityReport]) -> str | None:
        wrong = (form.name for form in self.forms if form.failed or _failed(reports.get(form.name)))
        return next(wrong, None)

    def _look_inside(self, name: str | None, reports: dict[str, ParityReport]) -> Divergence | None:
        """Look for the layer between the stage at fault and the one before it; a note says why where that fails."""
        ran = [form for form in self.forms if form.runs]
        place = next(index for index, form in enumerate(ran) if form.name == name)
        first, second = ran[place - 1], ran[place]
        if name is None or is_plan(second.target) or is_plan(first.target):
            self.notes.append("an engine keeps its tensors inside, so the layer at fault cannot be looked for there.")
            return None
        try:
            feed = self._telling_feed(first, second, reports[name])
            return first_divergence(
                first.target,
                second.target,
                feed,
                tolerance=self.tolerance,
                layers=_layers(self.forms[0].target, first.target, feed),
                progress=self.progress,
            )
        except WorkbenchError as error:
            self.notes.append(f"the layer at fault could not be looked for: {error}.")
            return None

    def _telling_feed(self, first: Form, second: Form, report: ParityReport) -> Feed:
        """The picture with the largest error."""
        worst = report.worst[0][0] if report.worst else ""
        with open_runner(first.target) as reference, open_runner(second.target) as candidate:
            specs = shared_specs(reference, candidate)
        fallback: Feed = {}
        for name, feed in make_feeds(specs, self.images, self.preprocess):
            fallback = fallback or feed
            if worst == name or worst.startswith(f"{name}, "):
                return feed
        return fallback

    def _verdict(
        self, status: str, at_fault: str | None, reports: dict[str, ParityReport], divergence: Divergence | None
    ) -> str:
        missing = [form.name for form in self.forms if form.skipped and not form.failed]
        left_out = f" Not run: {', '.join(missing)}." if missing else ""
        if at_fault is not None:
            return self._blame(at_fault, reports.get(at_fault), divergence) + left_out
        if not reports:
            return f"INCONCLUSIVE: only {self.forms[0].name} ran, so that nothing was compared.{left_out}"
        last = list(reports.values())[-1]
        if len(self.forms) == 2:
            return last.verdict
        names = " -> ".join(form.name for form in self.forms if form.runs)
        if status == "fail":
            return f"FAIL: no single stage breaks the network ({names}), but the small errors add up.{left_out}"
        if status == "inconclusive":
            sentence = next(report.verdict for report in reports.values() if report.status == "inconclusive")
            return sentence + left_out
        error = max(output.max_relative_error for report in reports.values() for output in report.outputs)
        on = f"on {count(last.images, 'image')}"
        return f"PASS: every stage answers like the one before it {on} ({names}): largest error {error:.1e}.{left_out}"

    def _before(self, name: str) -> str:
        ran = [form.name for form in self.forms if form.runs]
        return ran[ran.index(name) - 1]

    def _blame(self, name: str, report: ParityReport | None, divergence: Divergence | None) -> str:
        form = next(form for form in self.forms if form.name == name)
        if report is None:
            return f"FAIL: the stage {name} could not be made: {form.skipped.rstrip('.')}."
        failed = next(output for output in report.outputs if output.problems)
        text = f"FAIL: the stage {name} breaks the network: it differs from {self._before(name)}"
        text += f' in output "{failed.name}", {failed.problems[0]}'
        if divergence is not None and divergence.layer is not None:
            layer = divergence.layer
            remark = f", {layer.remark}" if layer.remark else ""
            return f"{text}; it begins at layer {layer.layer} ({layer.operator}{remark})."
        if divergence is not None and divergence.kind == "growth":
            return f"{text}; the error grows from layer to layer, no single one is at fault."
        return f"{text}{f', {failed.cause}' if failed.cause else ''}."


@contextmanager
def _folder(path: str | os.PathLike[str] | None) -> Iterator[Path]:
    if path is not None:
        yield make_folder(path)
        return
    with tempfile.TemporaryDirectory(prefix="workbench-stages-") as name:
        yield Path(name)


def _layers(source: Any, network: Any, feed: Feed) -> dict[str, str] | tuple[str, ...]:
    """The layers of the first stage, by the names that their tensors have in a later one."""
    if source is network or backend_for(source) == "torch":
        return ()
    first, later = open_probe(source, feed), open_probe(network, feed)
    tensors = [name for node in later.nodes for name in node.outputs]
    namer = layer_namer(tensors, first.layers)
    known = {name: layer for name in tensors for layer in namer([name]) if layer in first.layers}
    return known | {pair.candidate: pair.layer for pair in pair_tensors(first, later).pairs}


def _failed(report: ParityReport | None) -> bool:
    return report is not None and report.status == "fail"


def _worst_of(reports: list[ParityReport]) -> Status:
    statuses = {report.status for report in reports}
    if "fail" in statuses:
        return "fail"
    return "inconclusive" if "inconclusive" in statuses or not statuses else "pass"
