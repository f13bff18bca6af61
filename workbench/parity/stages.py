"""Make every stage of a network on its way to an engine, run it, compare neighbours, and name the stage at fault."""

import contextlib
import os
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from workbench.core.compare import ParityReport, worst_output
from workbench.core.contract import Runner, check_feed, ordered_feed
from workbench.core.driver import probe_driver
from workbench.core.errors import (
    BackendUnavailableError,
    EngineBuildError,
    ExportError,
    InputError,
    ModelError,
    WorkbenchError,
)
from workbench.core.files import make_folder
from workbench.core.output_errors import times_noise
from workbench.core.process import temporary_folder
from workbench.core.report import Status, count
from workbench.core.time_limit import time_left, time_limit
from workbench.core.tolerance import FLOOR, AnyTolerance, coarsest
from workbench.export.conversion import convert
from workbench.export.keras_model import frozen_to_onnx
from workbench.export.torch_model import torch_to_onnx
from workbench.models.files import freeze_model, open_model
from workbench.models.freezing import FrozenGraph
from workbench.onnx_graph.file import check, read
from workbench.onnx_graph.input_values import input_values
from workbench.onnx_graph.mend import fix
from workbench.parity.divergence import first_divergence
from workbench.parity.pairs import layer_namer, pair_tensors
from workbench.parity.probes import open_probe
from workbench.parity.reports import Divergence, Stage, StagesReport
from workbench.pictures.feeds import Feed, checked_feeds, make_feeds
from workbench.runners.backends import backend_for, open_runner
from workbench.runners.compare import compare_runners, measured_tolerance, shared_specs

Given = list[tuple[str, Feed]] | None
Made = list[tuple[Stage, Any]]
"""The stages in order, each with what `open_runner` opens; None where it did not come to be."""


def verify(
    model: Any,
    *others: Any,
    images: str | os.PathLike[str] | None = None,
    preprocess: str = "unit",
    spatial: tuple[int, int] | None = None,
    feeds: Iterable[tuple[str, Feed]] | None = None,
    tolerance: AnyTolerance | None = None,
    work_folder: str | os.PathLike[str] | None = None,
    timeout_s: float | None = None,
    progress: bool = True,
) -> StagesReport:
    """Follow a network from stage to stage and name the first one that changes its answers.

    Without `others` the stages are made here: the framework itself, the frozen graph, the ONNX file as the exporter
    wrote it, the ONNX file after `onnx_graph.fix`, and an engine where one can be built. A stage that cannot run is
    named with the reason.

    Args:
        model: the first stage: a Keras model, a model file or a model name.
        others: further stages of it, compared in this order, such as two `.onnx` files.
        images: a folder of pictures; built-in ones when None.
        preprocess: how pictures become inputs, see `workbench.pictures.feeds.make_feeds`.
        spatial: (height, width) in pixels for a model that leaves them open.
        feeds: (name, feed) pairs to judge on instead of pictures, by the names of the first stage's inputs.
        tolerance: the limits; when None what rounding does to this network is measured, and a multiple of it allowed.
        work_folder: keep the files that are made here; they are deleted when None.
        timeout_s: give up after this many seconds; None for no limit. The run of a TensorFlow graph is ended; to open a
            model, and to run one of Keras or PyTorch, is waited for.
        progress: show bars.
    Returns:
        The stages, one parity report for each pair of neighbours, and the stage and layer at fault.
    Raises:
        ModelError: a model cannot be opened.
        InputError: the stages do not take the same inputs, or `model` is an engine and alone.
        ImageError: a file in `images` is not an image.
        OutputError: `work_folder` cannot be written to.
        TimeLimitError: it took longer than `timeout_s`; the message names the step.
    """
    if feeds is not None and images is not None:
        raise InputError("got feeds and images; give one of them")
    given = None if feeds is None else checked_feeds(feeds)
    with (
        time_limit(timeout_s),
        temporary_folder() if work_folder is None else nullcontext(make_folder(work_folder)) as folder,
    ):
        made = _name_stages(model, others) if others else _make_stages(model, folder, spatial, given, progress)
        return _Chain(made, bool(others), images, preprocess, given, tolerance, progress, folder).judge()


def _name_stages(model: Any, others: tuple[Any, ...]) -> Made:
    """The stages that the caller named; equal names get a number."""
    names: list[str] = []
    for target in (model, *others):
        name = Path(target).name if isinstance(target, str | os.PathLike) else getattr(target, "name", "model")
        names.append(str(name) if name not in names else f"{name} ({len(names) + 1})")
    opened = [model if backend_for(model) in ("onnxruntime", "tensorrt") else open_model(model), *others]
    return [(Stage(name), target) for name, target in zip(names, opened, strict=True)]


def _make_stages(model: Any, folder: Path, spatial: tuple[int, int] | None, feeds: Given, progress: bool) -> Made:
    """Make every stage, in order; what cannot be made is named, and what depends on it left out."""
    backend = backend_for(model)
    if backend == "tensorrt":
        raise InputError(f"got the engine {model} alone, expected what it was made from; give that first, then {model}")
    made: Made = []
    bar = tqdm(total=4, unit="stage", leave=False, disable=not progress)

    def add(name: str, make: Callable[[], Any], optional: bool = False) -> Any:
        time_left(f"make {name}")
        bar.set_description(f"make {name}")
        made.append(_attempt(name, make, optional))
        bar.update()
        return made[-1][1]

    with bar:
        raw = _make_raw(model, backend, folder, spatial, made, add)
        if raw is not None:
            fixed = add("fixed ONNX", lambda: _fix(raw, folder / "fixed.onnx", feeds, progress), optional=True)
            add("engine", lambda: _build(fixed or raw, folder / "engine.plan"))
    return made


def _make_raw(
    model: Any, backend: str, folder: Path, spatial: tuple[int, int] | None, made: Made, add: Callable[..., Any]
) -> Any:
    """Open the first stage and go on to the ONNX file as its exporter writes it; None where there is none."""
    if backend == "onnxruntime":
        made.append((Stage("ONNX"), Path(model)))
        return Path(model)
    opened = open_model(model)
    if backend == "torch":
        made.append((Stage("PyTorch"), opened))
        return add("raw ONNX", lambda: torch_to_onnx(opened, None, folder / "raw.onnx", progress=False).path)
    _refuse_open_sizes(opened, spatial)
    is_graph = isinstance(opened, FrozenGraph)
    if is_graph and spatial is not None:
        opened = freeze_model(opened, spatial=spatial)
    made.append((Stage("TensorFlow graph" if is_graph else "Keras"), opened))
    frozen = opened if is_graph else add("frozen graph", lambda: freeze_model(opened, spatial=spatial))
    return None if frozen is None else add("raw ONNX", lambda: frozen_to_onnx(frozen, folder / "raw.onnx"))


def _attempt(name: str, make: Callable[[], Any], optional: bool) -> tuple[Stage, Any]:
    """Make one stage; a network that cannot be converted is a fault, what this machine or file lacks a reason."""
    try:
        target = make()
    except (BackendUnavailableError, InputError) as error:
        return Stage(name, skipped=str(error)), None
    except (ExportError, EngineBuildError) as error:
        return Stage(name, skipped=str(error), failed=not optional), None
    is_engine = backend_for(target) == "tensorrt"
    return Stage(name, made=f"built, {target.stat().st_size / 1e6:.3g} MB" if is_engine else ""), target


def _refuse_open_sizes(model: Any, spatial: tuple[int, int] | None) -> None:
    """Ask for the height and width before a network without them is blamed."""
    if isinstance(model, FrozenGraph):
        nodes = {node.name: node.attr["shape"].shape.dim for node in model.graph_def.node if node.name in model.inputs}
        shapes = {name: tuple(None if dim.size < 0 else dim.size for dim in nodes[name]) for name in model.inputs}
    else:
        shapes = {tensor.name: tuple(tensor.shape) for tensor in getattr(model, "inputs", None) or ()}
    for name, shape in shapes.items():
        if spatial is None and len(shape) == 4 and None in shape[1:]:
            raise InputError(
                f"{name} is {shape}: its height and width are open; give --spatial H W, or spatial=(height, width)"
            )


def _fix(raw: Path, path: Path, feeds: Given, progress: bool) -> Path:
    names = [spec.name for spec in check(raw).inputs]
    fix(raw, path, feeds=None if feeds is None else _named(names, feeds), progress=progress)
    return path


def _named(names: Iterable[str], feeds: Iterable[tuple[str, Feed]]) -> list[tuple[str, Feed]]:
    """The feeds under these names of inputs, by name or else by position."""
    keys = list(names)
    return [(name, dict(zip(keys, ordered_feed(keys, feed), strict=True))) for name, feed in feeds]


def _build(onnx_path: Path, path: Path) -> Path:
    """Build an engine, unless this machine has a GPU that could not run it."""
    from workbench.engine.build import build_engine, save_engine
    from workbench.engine.tensorrt_api import open_flavour, unsupported_gpu
    from workbench.precision.convert import read_precision

    flavour, gpus = open_flavour(for_building=True), probe_driver().gpus
    if gpus and (reason := unsupported_gpu(flavour, gpus[0])):
        raise BackendUnavailableError(reason)
    plan = build_engine(onnx_path, precision=read_precision(onnx_path), flavour=flavour.name, progress=False)
    return save_engine(plan, path)


@dataclass
class _Chain:
    """The comparison of all neighbours; only two networks are open at a time."""

    made: Made
    given: bool
    images: str | os.PathLike[str] | None
    preprocess: str
    feeds: Given
    tolerance: AnyTolerance | None
    progress: bool
    folder: Path
    unit: str = "float32"  # the coarsest type that any stage computes in
    measured: dict[str, tuple[AnyTolerance, tuple[str, ...]]] = field(default_factory=dict)
    reports: dict[str, ParityReport] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stages = {stage.name: stage for stage, _ in self.made}
        self.targets = {stage.name: target for stage, target in self.made if target is not None}

    def judge(self) -> StagesReport:
        first, *others = self.targets
        before = first
        for name in others:
            if (report := self._compare(before, name)) is not None:
                self.reports[name] = report
                before = name
        if not self.reports:
            self._open_alone(first)
        at_fault = next((name for name in self.stages if self._is_at_fault(name)), None)
        divergence = self._look_inside(at_fault) if at_fault in self.reports else None
        whole = self._compare(first, before) if at_fault is None and len(self.reports) > 1 else None
        found = {report.status for report in (*self.reports.values(), *([whole] if whole else []))}
        status: Status = "inconclusive" if "inconclusive" in found or not found else "pass"
        status = "fail" if at_fault or "fail" in found else status
        return StagesReport(
            stages=tuple(self.stages.values()), reports=tuple(self.reports.values()), status=status,
            stage_at_fault=at_fault, verdict=self._verdict(status, at_fault, divergence), divergence=divergence,
            whole=whole, notes=tuple(self.notes),
        )  # fmt: skip

    def _open_alone(self, name: str) -> None:
        """A network that is compared with nothing must at least run."""
        try:
            with open_runner(self.targets[name]) as runner:
                self.stages[name] = replace(self.stages[name], runner=runner.info.name)
        except ModelError as error:
            self.stages[name] = replace(self.stages[name], skipped=str(error), failed=True)

    def _compare(self, first: str, second: str) -> ParityReport | None:
        """Run two stages on all pictures; None, and the reason, where the second cannot run here."""
        time_left(f"compare {first} and {second}")
        with open_runner(self.targets[first]) as reference:
            self.stages[first] = replace(self.stages[first], runner=reference.info.name)
            if first == next(iter(self.targets)):  # names that are wrong would else be taken by position
                for _, feed in self.feeds or ():
                    check_feed(reference.inputs, feed)
            try:
                candidate = open_runner(self.targets[second])
            except (BackendUnavailableError, ModelError) as error:
                if self.given:
                    raise
                failed = isinstance(error, ModelError)
                self.stages[second] = replace(self.stages[second], skipped=str(error), failed=failed)
                del self.targets[second]
                return None
            with candidate:
                self.stages[second] = replace(self.stages[second], runner=candidate.info.name)
                tolerance = self._tolerance(reference, candidate)
                feeds = self._feeds(reference, candidate)
                title = f"{first} and {second}"
                bar = tqdm(feeds, desc=title, unit="picture", leave=False, disable=not self.progress)
                return compare_runners(reference, candidate, bar, tolerance)

    def _feeds(self, reference: Runner, candidate: Runner) -> Iterable[tuple[str, Feed]]:
        specs = shared_specs(reference, candidate)
        if self.feeds is None:
            file = next((target for target in self.targets.values() if backend_for(target) == "onnxruntime"), None)
            known = None if file is None else input_values(read(file))
            return make_feeds(specs, self.images, self.preprocess, known=known)
        return _named(specs, self.feeds)

    def _tolerance(self, reference: Runner, candidate: Runner) -> AnyTolerance:
        """What was given, or what rounding does to the network, measured once for each of its ONNX files."""
        if self.tolerance is not None:
            return self.tolerance
        self.unit = coarsest(self.unit, reference.unit, candidate.unit)
        file = candidate.onnx_file or reference.onnx_file
        if not self.given or file is None:  # of stages that are made here there is one network
            file = next((target for target in self.targets.values() if backend_for(target) == "onnxruntime"), None)
        key = f"{file} {self.unit}"
        if key not in self.measured:
            file = file or self._twin()
            self.measured[key] = measured_tolerance(file, self._feeds(reference, candidate), self.unit)
            self.notes += self.measured[key][1]
        return self.measured[key][0]

    def _twin(self) -> Path | None:
        """The ONNX form of networks none of which is an ONNX file; None where it cannot be made."""
        for target in self.targets.values():
            if backend_for(target) in ("keras", "torch"):
                with contextlib.suppress(WorkbenchError):
                    path = self.folder / "rounding.onnx"
                    convert(target, path, check=False, progress=False)
                    return path
        return None

    def _is_at_fault(self, name: str) -> bool:
        return self.stages[name].failed or (name in self.reports and self.reports[name].status == "fail")

    def _before(self, name: str) -> str:
        ran = list(self.targets)
        return ran[ran.index(name) - 1]

    def _look_inside(self, name: str) -> Divergence | None:
        """Look for the layer between the stage at fault and the one before it; a note says why where that fails."""
        first, second = self.targets[self._before(name)], self.targets[name]
        if "tensorrt" in (backend_for(first), backend_for(second)):
            self.notes.append("an engine keeps its tensors inside, so the layer at fault cannot be looked for there.")
            return None
        try:
            feed = self._telling_feed(first, second, self.reports[name])
            layers = _layers(next(iter(self.targets.values())), first, feed)
            allowed = self._allowed_inside(self.reports[name])
            return first_divergence(first, second, feed, tolerance=allowed, layers=layers, progress=self.progress)
        except WorkbenchError as error:
            self.notes.append(f"the layer at fault could not be looked for: {error}.")
            return None

    def _allowed_inside(self, report: ParityReport) -> float | None:
        """The error from which a layer is wrong: what its output may differ by, and less than it does."""
        failed = next(output for output in report.outputs if output.problems)
        error = failed.max_relative_error
        if failed.allowed is None or not error > 0:
            return None
        return max(min(failed.allowed, error / 2), FLOOR)

    def _telling_feed(self, first: Any, second: Any, report: ParityReport) -> Feed:
        """The picture with the largest error, else the first one."""
        worst = report.worst[0][0] if report.worst else ""
        with open_runner(first) as reference, open_runner(second) as candidate:
            telling = (feed for name, feed in self._feeds(reference, candidate) if f"{worst}, ".startswith(f"{name}, "))
            return next(telling, None) or next(iter(self._feeds(reference, candidate)))[1]

    def _verdict(self, status: str, at_fault: str | None, divergence: Divergence | None) -> str:
        missing = [stage.name for stage in self.stages.values() if stage.skipped and not stage.failed]
        left_out = f" Not run: {', '.join(missing)}." if missing else ""
        if at_fault is not None:
            return self._blame(at_fault, divergence) + left_out
        if not self.reports:
            return f"INCONCLUSIVE: only {next(iter(self.stages))} ran, so that nothing was compared.{left_out}"
        reports = list(self.reports.values())
        if len(self.stages) == 2:
            return reports[-1].verdict
        names = " -> ".join(self.targets)
        if status == "fail":
            return f"FAIL: no single stage breaks the network ({names}), but the small errors add up.{left_out}"
        if status == "inconclusive":
            return next(report.verdict for report in reports if report.status == "inconclusive") + left_out
        on = f"on {count(reports[-1].images, 'image')}"
        worst = max(map(worst_output, reports), key=lambda output: output.max_relative_error)
        times = f", {times_noise(worst.max_relative_error, worst.noise)}" if worst.noise is not None else ""
        text = f"PASS: every stage answers like the one before it {on} ({names}): largest error"
        return f"{text} {worst.max_relative_error:.1e}{times}.{left_out}"

    def _blame(self, name: str, divergence: Divergence | None) -> str:
        if name not in self.reports:
            return f"FAIL: the stage {name} could not be made: {self.stages[name].skipped.rstrip('.')}."
        failed = next(output for output in self.reports[name].outputs if output.problems)
        text = f"FAIL: the stage {name} breaks the network: it differs from {self._before(name)}"
        text += f' in output "{failed.name}", {failed.problems[0]}'
        if divergence is not None and divergence.layer is not None:
            layer = divergence.layer
            remark = f", {layer.remark}" if layer.remark else ""
            return f"{text}; it begins at layer {layer.layer} ({layer.operator}{remark})."
        if divergence is not None and divergence.kind == "growth":
            return f"{text}; the error grows from layer to layer, no single one is at fault."
        return f"{text}{f', {failed.cause}' if failed.cause else ''}."


def _layers(source: Any, network: Any, feed: Feed) -> dict[str, str] | tuple[str, ...]:
    """The layers of the first stage, by the names that their tensors have in a later one."""
    if source is network or backend_for(source) == "torch":
        return ()
    first, later = open_probe(source, feed), open_probe(network, feed)
    tensors = [name for node in later.nodes for name in node.outputs]
    namer = layer_namer(tensors, first.layers)
    known = {name: layer for name in tensors for layer in namer([name]) if layer in first.layers}
    return known | {pair.candidate: pair.layer for pair in pair_tensors(first, later).pairs}
