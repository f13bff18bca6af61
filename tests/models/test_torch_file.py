"""What is told of a PyTorch file before PyTorch is asked, and without PyTorch; the rest is in tests/extras."""

import json
import os
import sys
import zipfile
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from workbench.cli import main as cli
from workbench.core.errors import BackendUnavailableError, InputError, ModelError
from workbench.export.conversion import convert
from workbench.export.torch_model import torch_to_onnx
from workbench.models import torch_file
from workbench.models.torch_file import check_trained, has_open_batch, open_torch_file
from workbench.runners.backends import backend_for, open_runner
from workbench.runners.torch_runner import TorchRunner


def write_archive(path, entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"m/archive_format": "pt2", "m/models/model.json": "{}", **entries}.items():
            archive.writestr(name, content)
    return path


def with_expression(path, text):
    return write_archive(path, {"m/models/model.json": json.dumps({"sizes": [{"as_expr": {"expr_str": text}}]})})


@pytest.fixture
def no_torch(monkeypatch):
    for name in ("torch", "onnxscript", "onnxslim", "ncnn", "tvm"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("before", [None, "0"])
@pytest.mark.parametrize("damaged", [False, True])
def test_while_a_program_is_read_no_pickle_may_run_code(tmp_path, monkeypatch, before, damaged):
    """The switch that PyTorch reads in `torch.load`; a stand-in for PyTorch notes it."""
    switch = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    monkeypatch.delenv(switch, raising=False)
    if before is not None:
        monkeypatch.setenv(switch, before)
    seen = []

    def load(path):
        seen.append(os.environ.get(switch))
        if damaged:
            raise RuntimeError("cut short")
        return SimpleNamespace(graph=SimpleNamespace(nodes=()))

    torch = SimpleNamespace(__version__="2", export=SimpleNamespace(load=load))
    monkeypatch.setattr(torch_file, "require_backend", lambda name, extra: torch)
    with pytest.raises(ModelError, match="cut short") if damaged else nullcontext():
        open_torch_file(write_archive(tmp_path / "m.pt2", {}))
    assert seen == ["1"]
    assert os.environ.get(switch) == before


def program_of(*nodes, first=None):
    """A stand-in for an `ExportedProgram`: (operator, arguments) of its nodes, and the shape of its first input."""
    made = [SimpleNamespace(op="call_function", name=name, target=name, args=args) for name, args in nodes]
    meta = {"val": SimpleNamespace(shape=first)}
    made.append(SimpleNamespace(op="placeholder", name="x", target="x", args=(), meta=meta))
    signature = SimpleNamespace(user_inputs=["x"])
    return SimpleNamespace(graph=SimpleNamespace(nodes=made), graph_signature=signature)


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [("aten.dropout.default", ("x", 0.5)), ("aten.batch_norm.default", ("x", "w", "b", "mean", "var"))],
)
def test_a_program_in_training_is_refused(operator, arguments):
    """The arguments as PyTorch's schemas order them: `training` follows these."""
    with pytest.raises(ModelError, match=f"training mode .it holds {operator} with training=True"):
        check_trained(program_of(("aten.relu.default", ("x",)), (operator, (*arguments, True, 0.1))))
    check_trained(program_of((operator, (*arguments, False, True))))
    check_trained(program_of((operator, arguments)))


def test_the_batch_is_open_where_the_first_axis_is_a_symbol():
    assert [has_open_batch(program_of(first=shape)) for shape in (("s0", 3), (1, 3), ())] == [True, False, False]


def test_a_file_that_is_no_program_is_read_as_weights_and_nothing_else(tmp_path, monkeypatch):
    asked = []

    def load(path, **options):
        asked.append(options)
        return {"weight": np.zeros(3)}

    monkeypatch.setattr(torch_file, "require_backend", lambda name, extra: SimpleNamespace(load=load))
    (tmp_path / "w.pt").write_bytes(b"a pickle")
    with pytest.raises(ModelError, match=r"holds weights only \(1 tensor, the first is weight\)"):
        open_torch_file(tmp_path / "w.pt")
    assert asked == [{"map_location": "cpu", "weights_only": True}]


@pytest.mark.parametrize(
    "text",
    [
        "s77",
        "2*s0 + 1",
        "Max(1, s0)",
        "Symbol('s77', positive=True, integer=True)",
        "s0 // 2 >= 1",
        "Mod(s0, 4)",
        "0.5*s0",
    ],
)
def test_arithmetic_in_shapes_is_let_through(text, tmp_path, no_torch):
    with pytest.raises(BackendUnavailableError):  # the next step is PyTorch's
        open_torch_file(with_expression(tmp_path / "m.pt2", text))


@pytest.mark.parametrize(
    "text",
    [
        "open('/x', 'w')",
        "exit(s0)",
        "__import__",
        "s0.args",
        "Symbol('s0').subs(1, 2)",
        "[s0][0]",
        "lambda: 1",
        'eval("1")',
        "(s0)\nimport os",
        "'a b'",
    ],
)
def test_anything_else_in_shapes_is_refused(text, tmp_path, no_torch):
    with pytest.raises(ModelError, match=r"needs code to be opened .the shape expression"):
        open_torch_file(with_expression(tmp_path / "m.pt2", text))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"m/data/aotinductor/model/a.cpp": ""}, "holds compiled code"),
        ({"m/data/elsewhere.so": ""}, "holds compiled code"),
        (
            {"m/data/constants/c.json": json.dumps([{"path_name": "opaque_obj_1"}])},
            r"needs code to be opened \(the object opaque_obj_1\)",
        ),
        ({"m/models/model.json": "{cut"}, "has a damaged m/models/model.json"),
        (
            {"m/data/constants/c.json": json.dumps({"config": {"a": {"path_name": "custom_obj_0"}}})},
            r"needs code to be opened \(the object custom_obj_0\)",
        ),
    ],
)
def test_a_program_with_code_is_refused_before_pytorch_sees_it(entries, message, tmp_path, no_torch):
    with pytest.raises(ModelError, match=message):
        open_torch_file(write_archive(tmp_path / "m.pt2", entries))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_program_with_two_entries_of_one_name_is_refused(tmp_path, no_torch):
    with zipfile.ZipFile(write_archive(tmp_path / "m.pt2", {}), "a") as archive:
        archive.writestr("m/models/model.json", "{}")
    with pytest.raises(ModelError, match="has two entries of one name"):
        open_torch_file(tmp_path / "m.pt2")


def test_torchscript_weights_and_missing_files_are_told_apart(tmp_path, no_torch):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/constants.pkl", b"")
        archive.writestr("script/code/__torch__.py", b"")
    (tmp_path / "w.safetensors").write_bytes(b"x")
    for name, message in (
        ("script.pt", "is TorchScript.*not opened here"),
        ("w.safetensors", "holds weights only.*build the network in Python"),
        ("nowhere.pt2", "is missing, a directory or empty"),
    ):
        with pytest.raises(ModelError, match=message):
            open_torch_file(tmp_path / name)


def test_without_pytorch_each_door_names_the_extra(tmp_path, no_torch, capsys):
    path = write_archive(tmp_path / "m.pt2", {})
    missing = r"torch cannot be imported .*pip install -e '\.\[torch\]'"
    for call in (lambda: open_runner(path), lambda: TorchRunner(None, np.zeros(1)), lambda: convert(path, "m.onnx")):
        with pytest.raises(BackendUnavailableError, match=missing):
            call()
    with pytest.raises(BackendUnavailableError, match=r"onnxscript cannot .*\[torch\]"):
        torch_to_onnx(None, None, tmp_path / "m.onnx")
    assert cli.main(["convert", str(path), str(tmp_path / "m.onnx")]) == 2
    assert "pip install -e '.[torch]'" in capsys.readouterr().err


def test_options_of_keras_are_refused_for_a_program(tmp_path, no_torch):
    path = write_archive(tmp_path / "m.pt2", {})
    with pytest.raises(InputError, match=r"PyTorch writes ONNX itself.*leave spatial"):
        convert(path, tmp_path / "m.onnx", spatial=(32, 32))


@pytest.mark.parametrize(
    ("name", "backend"), [("a.pt2", "torch"), ("a.PTH", "torch"), ("a.onnx", "onnxruntime"), ("a.keras", "keras")]
)
def test_the_suffix_tells_the_backend(name, backend):
    assert backend_for(name) == backend
