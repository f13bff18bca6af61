"""Make the forms that a network takes on its way to an engine; what cannot be made is named with the reason."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from workbench.errors import BackendUnavailableError, EngineBuildError, ExportError, InputError
from workbench.export import onnx_graph
from workbench.export.keras_model import FrozenGraph, frozen_to_onnx
from workbench.export.model_files import freeze_model, open_model
from workbench.export.torch_model import torch_to_onnx
from workbench.runners import backend_for
from workbench.stages_report import Stage

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
    onnx_graph.fix(raw, path, progress=progress)
    return path


def _build(onnx_path: Path, path: Path) -> Path:
    """Build an engine where it can also run."""
    from workbench.engine import build_engine, save_engine
    from workbench.precision.convert import read_precision
    from workbench.tensorrt_api import open_flavour, require_gpu, unsupported_gpu

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
