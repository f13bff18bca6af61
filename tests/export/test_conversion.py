"""What `convert` tells before it imports a framework, and what it says where Keras is set to another one."""

import os
import subprocess
import sys

import pytest
from networks import small_network
from onnx_networks import save_mixed_network

from workbench.core.errors import BackendUnavailableError, InputError
from workbench.core.packages import load_keras
from workbench.export.keras_model import OPSETS, default_opset, keras_to_onnx, pb_to_onnx

HEAVY = ("tensorflow", "keras", "torch", "matplotlib", "skimage", "scipy")

# The command's status, and which of the modules named it has imported.
COMMAND = """
import sys
from workbench.cli.main import main
status = main(sys.argv[2:])
print("status", status, "imported", *sorted(set(sys.argv[1].split(",")) & set(sys.modules)))
"""


def run_command(*words, unwanted=HEAVY, **variables):
    """Run `workbench` in a Python of its own; return its last line of output and its errors."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "KERAS_", "SM_"))}
    child = subprocess.run(
        [sys.executable, "-c", COMMAND, ",".join(unwanted), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=250,
        env={**environment, **variables},
        check=True,
    )
    return child.stdout.splitlines()[-1], child.stderr


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("missing.keras", (), "does not exist; give a model file or one of the names"),
        ("missing.pt2", (), "does not exist; give a model file"),
        ("missing.onnx", (), "does not exist; give the path of an .onnx file"),
        ("damaged.keras", (), "is not a Keras model that can be read, or was cut short"),
        ("empty.h5", (), "is empty; save or copy the model again"),
        ("text.md", (), "is not a model this program opens"),
        ("resnet50", ("--exporter", "magic"), "got exporter='magic'"),
        ("resnet50", ("--pb", "nowhere/x.pb"), "does not exist; create it first"),
        ("resnet50", ("--opset", "99"), "got opset=99, expected 7 to 18"),
        ("resnet50", ("--opset", "0"), "got opset=0, expected 7 to 18"),
        ("resnet50", ("--opset", "-1"), "got opset=-1"),
        ("resnet50", ("--exporter", "keras2onnx", "--opset", "16"), "expected 7 to 15"),
        ("resnet50", ("--timeout", "nan"), "expected seconds above 0"),
    ],
)
def test_what_a_name_a_path_or_an_option_tells_is_refused_without_any_framework(tmp_path, model, options, message):
    (tmp_path / "damaged.keras").write_bytes(b"PK\x03\x04 cut")
    (tmp_path / "empty.h5").write_bytes(b"")
    (tmp_path / "text.md").write_text("no model")
    source = model if "." not in model else tmp_path / model
    said, errors = run_command("convert", source, tmp_path / "x.onnx", *options)
    assert said == "status 2 imported"
    (line,) = errors.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_an_onnx_file_is_mended_without_any_framework(tmp_path):
    save_mixed_network(tmp_path / "a.onnx")
    said, _ = run_command("convert", tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert said == "status 0 imported"


def test_the_modules_behind_convert_import_nothing_heavy():
    modules = "workbench.export.conversion, workbench.models.files, workbench.runners.backends"
    unwanted = (*HEAVY, "onnx", "onnxruntime", "PIL", "workbench.engine")
    code = f"import sys, {modules}; print(*[name for name in {unwanted} if name in sys.modules])"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert child.stdout.strip() == ""


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_another_framework_in_the_environment_is_overruled_and_said(tmp_path, backend):
    small_network().save(tmp_path / "small.keras")
    words = ("convert", tmp_path / "small.keras", tmp_path / "x.onnx")
    said, errors = run_command(*words, unwanted=(), KERAS_BACKEND=backend)
    assert said == "status 0 imported"
    assert f"warning: KERAS_BACKEND={backend} stands in the environment" in errors
    assert "takes KERAS_BACKEND=tensorflow" in errors
    for startup in ("oneDNN", "cpu_feature_guard", "cudart_stub", "absl::InitializeLog"):
        assert startup not in errors


def test_keras_that_was_imported_on_another_framework_is_refused_with_what_to_set(tmp_path, monkeypatch):
    model = small_network()
    monkeypatch.setattr(load_keras().config, "backend", lambda: "torch")
    message = r"imported with KERAS_BACKEND=torch.*; set KERAS_BACKEND=tensorflow and restart Python"
    with pytest.raises(BackendUnavailableError, match=message):
        load_keras()
    with pytest.raises(BackendUnavailableError, match=message):
        keras_to_onnx(model, tmp_path / "x.onnx", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_the_opsets_that_are_allowed_are_those_that_the_packages_write():
    constants = pytest.importorskip("tf2onnx.constants")
    assert OPSETS["tf2onnx"][1] == max(constants.OPSET_TO_IR_VERSION)
    torch = pytest.importorskip("torch.onnx._constants")
    assert OPSETS["torch"] == (torch.ONNX_MIN_OPSET, torch.ONNX_MAX_OPSET)


@pytest.mark.parametrize("opset", [0, -1, 19, 99, 10**9, 17.0, "17", True])
@pytest.mark.parametrize("call", [pb_to_onnx, keras_to_onnx])
def test_an_opset_that_is_not_written_is_refused_before_the_network_is_looked_at(tmp_path, call, opset):
    with pytest.raises(InputError, match=r"got opset=.* expected 7 to 18"):
        call(tmp_path / "nothing.pb", tmp_path / "x.onnx", opset=opset, progress=False)


@pytest.mark.parametrize("exporter", ["tf2onnx", "keras2onnx"])
def test_every_opset_that_is_written_is_allowed(exporter):
    first, last = OPSETS[exporter]
    assert [default_opset(exporter, opset) for opset in range(first, last + 1)] == [*range(first, last + 1)]
    assert first <= default_opset(exporter) <= last


def test_a_conversion_prints_its_bar_on_one_line_and_nothing_else_on_standard_error(tmp_path):
    small_network().save(tmp_path / "small.keras")
    said, errors = run_command("convert", tmp_path / "small.keras", tmp_path / "x.onnx", unwanted=())
    assert said == "status 0 imported"
    assert [line for line in errors.splitlines() if line.strip() and "step" not in line] == []
