"""What `verify_stages` found: which stage broke the network, and at which layer, as text, HTML and JSON."""

import dataclasses
import html
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from workbench.core.compare import ParityReport
from workbench.core.errors import BackendUnavailableError, EngineBuildError, ExportError, InputError
from workbench.core.report import COLORS, Status, finite_or_none, html_table, percent, text_table
from workbench.export.keras_model import frozen_to_onnx
from workbench.export.torch_model import torch_to_onnx
from workbench.models.files import freeze_model, open_model
from workbench.models.freezing import FrozenGraph
from workbench.onnx_graph.mend import fix
from workbench.parity.layer_errors import Divergence
from workbench.runners.backends import backend_for

HEADINGS = ("stage", "computed by", "compared with", "result", "max error", "agreement", "remark")


@dataclass(frozen=True)
class Stage:
    """One form of the network on its way to the engine.

    Attributes:
        name: such as `"raw ONNX"`.
        runner: the name of what computed it; empty if it did not run.
        skipped: why it did not run; empty if it did.
        failed: whether it could not be made at all, so that it is the stage at fault.
    """

    name: str
    runner: str = ""
    skipped: str = ""
    failed: bool = False


@dataclass(frozen=True)
class StagesReport:
    """The verdict on a chain of stages.

    Attributes:
        stages: every stage, those that did not run included, in order.
        reports: one report for each stage that ran but the first, against the stage that ran before it.
        status: `"pass"`, `"fail"` or `"inconclusive"`.
        stage_at_fault: the name of the first stage that breaks the network, or None.
        verdict: one sentence.
        divergence: where that stage leaves the one before it, if the two could be looked into.
        whole: the last stage that ran against the first, if every stage passed and there are more than two.
        notes: sentences on how far the evidence reaches.
    """

    stages: tuple[Stage, ...]
    reports: tuple[ParityReport, ...]
    status: Status
    stage_at_fault: str | None
    verdict: str
    divergence: Divergence | None = None
    whole: ParityReport | None = None
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True only if every stage that ran answers like the one before it, and the comparison shows it."""
        return self.status == "pass"

    def to_text(self) -> str:
        """Write the verdict, a table of the stages and what the layers showed."""
        if len(self.stages) == 2 and self.reports:
            body = self.reports[0].to_text().removeprefix(self.reports[0].verdict).strip("\n")
        else:
            body = "\n".join(text_table(HEADINGS, self._rows()))
        parts = [self.verdict, body, *self._details()]
        if self.divergence is not None:
            parts.append(self.divergence.to_text().rstrip("\n"))
        return "\n\n".join(part for part in parts if part) + "\n"

    def to_html(self) -> str:
        """Write the same as HTML that reads well in light and dark notebooks."""
        remarks = "".join(f'<div style="opacity:.8">{html.escape(text)}</div>' for text in self._details())
        inner = self.divergence.to_html() if self.divergence is not None else ""
        return (
            f'<div style="border-left:.35em solid {COLORS[self.status]};padding:.2em .8em;color:inherit">'
            f'<div style="font-weight:600;margin-bottom:.4em">{html.escape(self.verdict)}</div>'
            f"{html_table(HEADINGS, self._rows())}{remarks}{inner}</div>"
        )

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_json(self) -> str:
        """Write everything as strict JSON: numbers that are not finite become null."""
        content = {"passed": self.passed, **dataclasses.asdict(self)}
        return json.dumps(finite_or_none(content), indent=2, allow_nan=False) + "\n"

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        before, waiting = "", iter(self.reports)
        for stage in self.stages:
            if stage.skipped:
                rows.append((stage.name, "-", "-", "fail" if stage.failed else "not run", "-", "-", stage.skipped))
                continue
            report = next(waiting) if before else None
            rows.append((stage.name, stage.runner, before or "-", *_result(report)))
            before = stage.name
        return rows

    def _details(self) -> list[str]:
        lines = []
        if len(self.stages) > 2:
            failed = [report for report in self.reports if report.status != "pass"]
            lines += [report.verdict for report in failed]
            lines += [f"First to last: {self.whole.verdict}"] if self.whole is not None else []
        return lines + [f"Note: {note}" for note in self.notes]


def _result(report: ParityReport | None) -> tuple[str, str, str, str]:
    if report is None:
        return ("reference", "-", "-", "")
    error = max(output.max_relative_error for output in report.outputs)
    shares = [output.agreement for output in report.outputs if output.agreement is not None]
    return (report.status, f"{error:.1e}", percent(min(shares)) if shares else "-", "")


PLAN_SUFFIXES = (".plan", ".engine")


@dataclass
class Form:
    """A stage, and what opens it; None where it did not come to be."""

    name: str
    target: Any = None
    skipped: str = ""
    failed: bool = False
    runner: str = ""
    given: bool = False

    @property
    def runs(self) -> bool:
        """Whether it can be opened."""
        return self.target is not None

    def describe(self) -> Stage:
        """What the report says of it."""
        return Stage(self.name, self.runner, self.skipped, self.failed)


def given_forms(model: Any, others: tuple[Any, ...]) -> list[Form]:
    """The stages that the caller named; equal names get a number."""
    names: list[str] = []
    for target in (model, *others):
        name = Path(target).name if isinstance(target, str | os.PathLike) else getattr(target, "name", "model")
        names.append(str(name) if name not in names else f"{name} ({len(names) + 1})")
    opened = [model if _is_file_of(model, ".onnx", *PLAN_SUFFIXES) else open_model(model), *others]
    return [Form(name, target, given=True) for name, target in zip(names, opened, strict=True)]


def make_forms(model: Any, folder: Path, spatial: tuple[int, int] | None, progress: bool) -> list[Form]:
    """Make every form of a network, in order; what cannot be made is named, and what depends on it left out."""
    if is_plan(model):
        raise InputError(f"got the engine {model} alone, expected what it was made from; give that first, then {model}")
    bar = tqdm(total=4, unit="stage", leave=False, disable=not progress)
    forms: list[Form] = []

    def add(name: str, make: Callable[[], Any], optional: bool = False) -> Any:
        bar.set_description(f"make {name}")
        form = _attempt(name, make, optional)
        forms.append(form)
        bar.update()
        return form.target

    with bar:
        raw: Any = None
        if _is_file_of(model, ".onnx"):
            raw = Path(model)
            forms.append(Form("ONNX", raw, given=True))
        elif backend_for(model) == "torch":
            program = open_model(model)
            forms.append(Form("PyTorch", program, given=True))
            raw = add("raw ONNX", lambda: torch_to_onnx(program, None, folder / "raw.onnx", progress=False).path)
        else:
            opened = open_model(model)
            _refuse_open_sizes(opened, spatial)
            is_graph = isinstance(opened, FrozenGraph)
            forms.append(Form("TensorFlow graph" if is_graph else "Keras", opened, given=True))
            frozen = opened if is_graph else add("frozen graph", lambda: freeze_model(opened, spatial=spatial))
            if frozen is not None:
                raw = add("raw ONNX", lambda: frozen_to_onnx(frozen, folder / "raw.onnx"))
        if raw is not None:
            fixed = add("fixed ONNX", lambda: _fix(raw, folder / "fixed.onnx", progress), optional=True)
            add("engine", lambda: _build(fixed or raw, folder / "engine.plan"))
    return forms


def _attempt(name: str, make: Callable[[], Any], optional: bool) -> Form:
    """Make one stage; a network that cannot be converted is a fault, what this machine or file lacks a reason."""
    try:
        return Form(name, make())
    except (BackendUnavailableError, InputError) as error:
        return Form(name, skipped=str(error))
    except (ExportError, EngineBuildError) as error:
        return Form(name, skipped=str(error), failed=not optional)


def _refuse_open_sizes(model: Any, spatial: tuple[int, int] | None) -> None:
    """Ask for the height and width before a network without them is blamed."""
    for tensor in getattr(model, "inputs", None) or ():
        if spatial is None and len(tensor.shape) == 4 and None in tuple(tensor.shape)[1:]:
            raise InputError(
                f"{tensor.name} is {tuple(tensor.shape)}: its height and width are open; give --spatial H W, "
                "or spatial=(height, width)"
            )


def _fix(raw: Path, path: Path, progress: bool) -> Path:
    fix(raw, path, progress=progress)
    return path


def _build(onnx_path: Path, path: Path) -> Path:
    """Build an engine where it can also run."""
    from workbench.core.driver import require_gpu
    from workbench.engine.build import build_engine, save_engine
    from workbench.engine.tensorrt_api import open_flavour, unsupported_gpu
    from workbench.precision.convert import read_precision

    flavour, gpu = open_flavour(for_building=True), require_gpu()
    if reason := unsupported_gpu(flavour, gpu):
        raise BackendUnavailableError(reason)
    plan = build_engine(onnx_path, precision=read_precision(onnx_path), flavour=flavour.name, progress=False)
    save_engine(plan, path)
    return path


def is_plan(target: Any) -> bool:
    """Whether a stage is an engine."""
    return _is_file_of(target, *PLAN_SUFFIXES)


def _is_file_of(target: Any, *suffixes: str) -> bool:
    return isinstance(target, str | os.PathLike) and Path(target).suffix.lower() in suffixes
