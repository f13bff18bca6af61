"""The commands as a person uses them: results, exit statuses and one-sentence errors."""

import json
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
from networks import small_network, two_input_network
from PIL import Image

from workbench.cli import demo
from workbench.cli import main as cli
from workbench.core.packages import load_keras
from workbench.models import resnet50


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two networks and their ONNX files, converted by the command."""
    folder = tmp_path_factory.mktemp("cli")
    small_network().save(folder / "small.keras")
    two_input_network().save(folder / "two.keras")
    for name in ("small", "two"):
        assert cli.main(["convert", str(folder / f"{name}.keras"), str(folder / f"{name}.onnx")]) == 0
    return folder


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_convert_says_what_came_out_and_the_equivalent_command(folder, tmp_path, capsys):
    status, out, _ = run(capsys, "convert", folder / "small.keras", tmp_path / "s.onnx", "--pb", tmp_path / "s.pb")
    assert status == 0
    assert "input: float32 (batch, 3, 32, 64)" in out
    assert f"python -m tf2onnx.convert --graphdef {tmp_path / 's.pb'}" in out
    assert (tmp_path / "s.pb").is_file()
    assert (tmp_path / "s.onnx").is_file()


def test_verify_passes_on_a_true_conversion_and_writes_json(folder, tmp_path, capsys):
    status, out, _ = run(capsys, "verify", folder / "small.keras", folder / "small.onnx", "--json", tmp_path / "r.json")
    assert status == 0
    assert out.startswith("PASS")
    assert json.loads((tmp_path / "r.json").read_text())["status"] == "pass"


def test_verify_takes_a_network_with_two_inputs(folder, capsys):
    status, out, _ = run(capsys, "verify", folder / "two.keras", folder / "two.onnx")
    assert (status, out[:4]) == (0, "PASS")


def test_verify_takes_the_readers_pictures(folder, tmp_path, capsys):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"mine_{index}.png")
    status, out, _ = run(capsys, "verify", folder / "small.keras", folder / "small.onnx", "--images", tmp_path)
    assert status == 0
    assert "mine_0.png" in out
    assert "mine_1.png" in out


def test_verify_of_another_network_with_the_same_shapes_exits_1(folder, tmp_path, capsys):
    keras = load_keras()
    other = keras.models.clone_model(small_network())  # new random weights
    other.save(tmp_path / "other.keras")
    status, out, _ = run(capsys, "verify", tmp_path / "other.keras", folder / "small.onnx")
    assert (status, out[:4]) == (1, "FAIL")


def test_verify_of_networks_with_other_inputs_is_refused(folder, capsys):
    status, _, errors = run(capsys, "verify", folder / "small.keras", folder / "two.onnx")
    assert status == 2
    assert "are they the same network?" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "nothing.keras", "x.onnx"], "nothing.keras does not exist"),
        (["convert", "small.keras", "x.txt"], "expected a name that ends in .onnx"),
        (["convert", "small.onnx", "x.onnx", "--pb", "x.pb"], "is an ONNX file: it keeps its sizes and opset"),
        (["convert", "small.keras", "no/x.onnx"], "does not exist; create it first"),
        (["convert", ".", "x.onnx"], "is not a SavedModel"),
        (["verify", "small.keras", "nothing.onnx"], "does not exist"),
        (["verify", "small.keras", "small.onnx", "--images", "nowhere"], "expected a folder of images"),
        (["demo", "--images", "nowhere"], "expected a folder of images"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_status_2(folder, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    status, _, errors = run(capsys, *arguments)
    sentence = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert status == 2
    assert len(sentence) == 1, errors
    assert message in sentence[0]
    assert "Traceback" not in errors
    assert sorted(path for path in folder.iterdir() if path.name != "demo_output") == before


def test_convert_of_an_onnx_file_checks_mends_proves_and_tells(folder, tmp_path, capsys):
    status, out, _ = run(capsys, "convert", folder / "small.onnx", tmp_path / "mended.onnx")
    assert status == 0
    assert "for a batch of 1" in out  # what it costs
    assert "mended.onnx: nothing was changed" in out
    assert "the parser of" in out or "TensorRT was not asked" in out
    assert f"written {tmp_path / 'mended.onnx'}" in out
    assert (tmp_path / "mended.onnx").exists()


def test_debug_shows_the_traceback(capsys):
    status, _, errors = run(capsys, "verify", "a.keras", "b.onnx", "--debug")
    assert status == 2
    assert "Traceback" in errors


def test_an_unexpected_error_says_how_to_see_where(monkeypatch, capsys):
    monkeypatch.setattr("workbench.runners.machine.environment", lambda: 1 / 0)
    status, _, errors = run(capsys, "doctor")
    assert status == 2
    assert errors == "error: unexpected ZeroDivisionError: division by zero; --debug shows where\n"


def test_ctrl_c_is_one_sentence_and_exit_status_130(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.runners.machine.environment", interrupt)
    status, _, errors = run(capsys, "doctor")
    assert (status, errors.count("\n")) == (130, 1)


def test_a_warning_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(
        "workbench.runners.machine.environment", lambda: warnings.warn("mind the gap", stacklevel=1) or "report"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        _, _, errors = run(capsys, "doctor")
    assert errors == "warning: mind the gap\n"


def test_doctor_reports_and_passes_here(capsys):
    status, out, _ = run(capsys, "doctor")
    assert status == 0
    assert "onnxruntime" in out


def test_doctor_names_what_is_missing_and_exits_1(monkeypatch, capsys):
    monkeypatch.setattr("workbench.runners.machine.diagnose", lambda: ["keras cannot be imported"])
    status, out, _ = run(capsys, "doctor")
    assert status == 1
    assert out.endswith("missing: keras cannot be imported\n")


@pytest.mark.parametrize("command", ["demo", "convert", "build", "verify", "sweep", "segment", "doctor"])
def test_every_command_explains_itself(command):
    done = subprocess.run(
        [sys.executable, "-m", "workbench.cli.main", command, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 5


class TinyClassifier:
    """A stand-in for ResNet-50 that is quick to convert; its answers depend on the picture."""

    @staticmethod
    def build(keras, *, weights):
        keras.utils.set_random_seed(1)
        image = keras.Input((224, 224, 3), name="image")
        x = keras.layers.Conv2D(4, 7, strides=16, activation="relu")(image)
        logits = keras.layers.Dense(1000)(keras.layers.Flatten()(x))
        return resnet50.ResNet50(keras.Model(image, logits), "random", f"asked for {weights}")


@pytest.fixture
def quick_demo(monkeypatch):
    """The demonstration at a small size and with a small classifier; the rest is the real thing."""
    monkeypatch.setattr(demo.resnet50, "build", TinyClassifier.build)
    monkeypatch.setattr(demo, "STREET_SIZE", (64, 128))
    monkeypatch.setattr(demo, "SCENES", ("scene_1000000",))


def test_the_demo_writes_figures_reports_and_networks_and_names_them(quick_demo, tmp_path, capsys):
    status, out, _ = run(capsys, "demo", "-o", tmp_path / "out")
    assert status == 0
    named = {line.strip() for line in out.split("written:")[1].splitlines() if line.strip()}
    assert named == {str(path) for path in (tmp_path / "out").iterdir()}
    kinds = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert kinds == {".onnx", ".png", ".json", ".txt"}
    reports = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert {name: report["status"] for name, report in reports.items()} == {"resnet50": "pass", "fcn_vgg16": "pass"}
    assert "asked for imagenet" in reports["resnet50"]["notes"]  # where the weights came from
    for path in (tmp_path / "out").glob("*.png"):
        assert np.ptp(np.asarray(Image.open(path).convert("L"))) > 100  # not an empty page


def test_the_demo_takes_the_readers_pictures(quick_demo, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "mine" / "holiday.jpg")
    status, out, _ = run(capsys, "demo", "--images", tmp_path / "mine", "-o", tmp_path / "out")
    assert status == 0
    assert (tmp_path / "out" / "fcn_vgg16_holiday.png").is_file()
    assert "holiday" in out


def test_the_demo_exits_1_when_a_verdict_fails(quick_demo, tmp_path, monkeypatch, capsys):
    real = demo.compare_runners

    def spoilt(reference, candidate, feeds, tolerance=None):
        infer = candidate._infer
        candidate._infer = lambda feed: {name: -array for name, array in infer(feed).items()}
        return real(reference, candidate, feeds, tolerance)

    monkeypatch.setattr(demo, "compare_runners", spoilt)
    status, out, _ = run(capsys, "demo", "-o", tmp_path / "out")
    assert status == 1
    assert re.search(r"fcn_vgg16: FAIL", out)
