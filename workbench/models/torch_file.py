"""Open a PyTorch file without running code from it, or say what it is and what to do."""

import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.core import errors
from workbench.core.errors import InputError, ModelError
from workbench.core.packages import require_backend
from workbench.core.report import count
from workbench.models.untrusted import UNREADABLE, check_archive, nested, read_entry, read_json

TORCH_SUFFIXES = (".pt2", ".pt", ".pth", ".safetensors")

_SWITCH = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_EXPORT_AGAIN = "save it with torch.export.save(torch.export.export(model.eval(), (example,)), 'model.pt2')"
# What shape expressions are made of: symbols, numbers, operators, and the capitalised functions of sympy and PyTorch.
_EXPRESSION = re.compile(r"[\w +\-*/%(),<>=!&|~.]*")
_NOT_ARITHMETIC = re.compile(r"__|\.\s*[A-Za-z_]|\b(?![A-Z])\w+\s*\(")


def open_torch_file(path: str | os.PathLike[str]) -> Any:
    """Open a program (`ExportedProgram`) that `torch.export.save` wrote; every other PyTorch file is a ModelError.

    Nothing is unpickled that needs code: `weights_only` is on for every pickle, also for those inside a `.pt2`, where
    PyTorch 2.13 leaves it off. That keeps accidents and simple attacks out, and is no guarantee: open files of people
    you trust.
    Source: `_load_state_dict`, `_load_constants` and `deserialize_torch_artifact` of torch 2.13.0 unpickle with
        `weights_only=False`; https://github.com/pytorch/pytorch/pull/176791 has the discussion.
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size == 0:
        raise ModelError(f"{path} is missing, a directory or empty; give a .pt2 file")
    if path.suffix.lower() == ".safetensors":
        raise ModelError(f"{path} holds weights only, no network; {_build_first('safetensors.torch.load_file(path)')}")
    names: list[str] = []  # where it is no zip archive
    if zipfile.is_zipfile(path):
        check_archive(path)
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    if any(name.endswith(("/archive_format", "/models/model.json")) for name in names):
        _refuse_code(path)
        return _open_program(require_backend("torch", "torch"), path)
    if any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names):
        raise ModelError(
            f"{path} is TorchScript, which PyTorch no longer develops and today's exporter does not take; it is a "
            f"program, so it is not opened here. Best: {_EXPORT_AGAIN}. If only this file is left and you trust it: "
            "torch_to_onnx(torch.jit.load(path), example, 'model.onnx')"
        )
    raise ModelError(_say_what_it_holds(require_backend("torch", "torch"), path))


def _open_program(torch: Any, path: Path) -> Any:
    """Load a `.pt2` with every pickle in it held to weights: the switch overrules who calls `torch.load` otherwise."""
    before = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "1"
    try:
        program = torch.export.load(path)
    except Exception as error:  # a damaged archive ends in many kinds of errors
        if "weights_only" in str(error) or "Weights only" in str(error):
            raise ModelError(_needs_code(path, str(error))) from error
        raise ModelError(
            f"PyTorch {torch.__version__} cannot read {path}: {first_line(error)}; it was cut short or written by "
            f"another version: {_EXPORT_AGAIN}"
        ) from error
    finally:
        del os.environ[_SWITCH]
        if before is not None:
            os.environ[_SWITCH] = before
    try:
        check_trained(program)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return program


def _refuse_code(path: Path) -> None:
    """Raise ModelError for a `.pt2` whose loading would run code, whatever `weights_only` says."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if "/aotinductor/" in name or name.endswith(".so"):
                raise ModelError(f"{path} holds compiled code ({name}), not a graph; {_EXPORT_AGAIN}")
            if not name.endswith(".json"):
                continue
            try:
                content = read_json(read_entry(archive, name))
            except UNREADABLE as error:
                raise ModelError(f"{path} has a damaged {name} ({first_line(error)}); {_EXPORT_AGAIN}") from error
            for key, text in nested(content):
                if not isinstance(text, str):
                    continue
                if key == "path_name" and text.startswith(("custom_obj", "opaque_obj")):
                    raise ModelError(_needs_code(path, f"the object {text}"))
                if key == "expr_str" and not _is_arithmetic(text):
                    raise ModelError(_needs_code(path, f"the shape expression {text[:60]!r}"))


def _is_arithmetic(text: str) -> bool:
    """Whether a shape expression, which sympy evaluates as Python, holds symbols and arithmetic only."""
    text = re.sub(r"'\w+'", "", text)  # the name of a symbol
    return _EXPRESSION.fullmatch(text) is not None and _NOT_ARITHMETIC.search(text) is None


def _say_what_it_holds(torch: Any, path: Path) -> str:
    """Read a pickle of weights and describe it; the message of the refusal."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, EOFError, RuntimeError and others
        if "Weights only" in str(error):
            return _needs_code(path, str(error))
        return f"{path} is not a PyTorch file, or was cut short ({first_line(error)}); copy it again"
    items = content.items() if isinstance(content, Mapping) else ()
    tensors = [name for name, value in items if hasattr(value, "shape")]
    inner = [key for key, value in items if isinstance(value, Mapping)]
    if tensors:
        what = f"weights only ({count(len(tensors), 'tensor')}, the first is {tensors[0]})"
        return f"{path} holds {what}, no network; {_build_first('torch.load(path, weights_only=True)')}"
    if inner:
        way = _build_first(f"torch.load(path, weights_only=True)[{inner[0]!r}]")
        return f"{path} holds a checkpoint ({', '.join(map(str, content))}), no network; {way}"
    return f"{path} holds a {type(content).__name__}, expected a network; {_EXPORT_AGAIN}"


def _build_first(weights: str) -> str:
    return (
        f"build the network in Python, call model.load_state_dict({weights}), and then "
        "torch_to_onnx(model, example, 'model.onnx')"
    )


def _needs_code(path: Path, text: str) -> str:
    found = re.search(r"GLOBAL (\S+)|(the (?:object|shape expression) .*)", text)
    what = (found.group(1) or found.group(2)) if found else "a class of its own"
    return (
        f"{path} needs code to be opened ({what}), and a file that may run code is not opened (weights_only stays on); "
        f"where its Python code is, {_EXPORT_AGAIN}"
    )


def is_torch(model: Any) -> bool:
    """Whether this is a PyTorch module or an exported program; imports nothing."""
    return any(cls.__module__.partition(".")[0] == "torch" for cls in type(model).__mro__)


def is_program(model: Any) -> bool:
    """Whether this is what `torch.export.export` gives."""
    return is_torch(model) and type(model).__name__ == "ExportedProgram"


def is_script(model: Any) -> bool:
    """Whether this is a TorchScript module."""
    return any(cls.__name__ == "ScriptModule" for cls in type(model).__mro__)


def check_trained(program: Any) -> None:
    """Refuse a program that was exported in training mode, with dropout or batch statistics: ModelError."""
    for node in program.graph.nodes:
        operator = str(node.target)
        training = {"aten.dropout.default": 2, "aten.batch_norm.default": 5}.get(operator)
        if training is not None and len(node.args) > training and node.args[training] is True:
            raise ModelError(
                f"the program was exported in training mode (it holds {operator} with training=True), so its answers "
                "would change; call model.eval() and export it again with torch.export.export"
            )


def program_example(program: Any) -> Any:
    """Return the (arguments, keywords) that a program was exported with; InputError without them."""
    if program.example_inputs is None:
        raise InputError("the program was saved without its example; give one, such as torch.randn(1, 3, 224, 224)")
    return program.example_inputs


def has_open_batch(program: Any) -> bool:
    """Whether axis 0 of the program's first input is open."""
    names = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    shape: list[Any] = list(nodes[names[0]].meta["val"].shape) if names and names[0] in nodes else []
    return bool(shape) and not isinstance(shape[0], int)


def first_line(error: BaseException) -> str:
    """Return the first sentence of a message, or the error's name."""
    return errors.first_line(error).split(". ")[0].rstrip(".")
