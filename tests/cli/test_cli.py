"""The commands as a person uses them: results, exit statuses and one-sentence errors."""

import json
import re
import subprocess
import sys
import warnings

import numpy as np
import onnx
import pytest
from networks import small_network, two_input_network
from onnx import TensorProto, helper
from onnx_networks import save_network
from onnxruntime import InferenceSession
from PIL import Image
from sweep_checks import run_here

from workbench.cli import demo
from workbench.cli import main as cli
from workbench.cli.options import exit_status
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
    words = ("convert", folder / "small.keras", tmp_path / "s.onnx", "--pb", tmp_path / "s.pb")
    status, out, _ = run(capsys, *words)
    (line,) = out.splitlines()
    assert status == 0 and line.startswith(f"written {tmp_path / 's.onnx'}: PASS")
    status, out, _ = run(capsys, *words, "--details")
    assert status == 0 and out.startswith(f"written {tmp_path / 's.onnx'}: PASS")
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


@pytest.fixture
def lookup(tmp_path):
    """A network that takes the numbers of rows, and how many numbers of each to give: neither can be made up."""
    nodes = [
        helper.make_node("Gather", ["table", "rows"], ["found"]),
        helper.make_node("Slice", ["found", "from", "to", "from"], ["output"]),
    ]
    inputs = {"rows": ("int64", ("batch",)), "from": ("int64", (1,)), "to": ("int64", (1,))}
    table = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    outputs = {"output": ("float32", ("rows", "numbers"))}
    return save_network(tmp_path / "lookup.onnx", nodes, inputs, outputs, {"table": table})


def save_feed(path, rows=(5, 8, 2), dtype=np.int64, **more):
    arrays = {"rows": np.array(rows, dtype), "from": np.array([1]), "to": np.array([3])} | more
    np.savez(path, **arrays)
    return path


COMMANDS = {
    "convert": lambda network, out: ["convert", network, out / "mended.onnx"],
    "verify": lambda network, out: ["verify", network, network],
    "verify --precision": lambda network, out: ["verify", network, "--precision", "fp16", "--max-miou-drop", "1"],
    "sweep": lambda network, out: ["sweep", network, "--runs", "1"],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_network_runs_on_the_readers_own_feeds(words, lookup, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("workbench.measure.sweep.run_child", run_here)
    (tmp_path / "mine").mkdir()
    for name, rows in (("one", (5, 8, 2)), ("two", (0, 3))):
        save_feed(tmp_path / "mine" / f"{name}.npz", rows)
    given = []
    real = InferenceSession.run
    monkeypatch.setattr(
        InferenceSession, "run", lambda self, names, feed, *more: given.append(feed) or real(self, names, feed, *more)
    )
    status, out, errors = run(capsys, *words(lookup, tmp_path), "--feeds", tmp_path / "mine")
    assert status == 0, out + errors
    assert {tuple(feed["rows"].tolist()) for feed in given} == {(5, 8, 2), (0, 3)}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_sizes_that_follow_from_the_network_are_made_up(words, tmp_path, monkeypatch, capsys):
    """Scales of random numbers would be refused, and so would a shape of zeros and ones."""
    monkeypatch.setattr("workbench.measure.sweep.run_child", run_here)
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["large"]),
             helper.make_node("Reshape", ["large", "shape"], ["output"])]  # fmt: skip
    inputs = {"x": ("float32", (1, 2, 4, 4)), "scales": ("float32", (4,)), "shape": ("int64", (2,))}
    network = save_network(tmp_path / "net.onnx", nodes, inputs, {"output": ("float32", (1, 128))})
    model = onnx.load(network)
    model.graph.value_info.append(helper.make_tensor_value_info("large", TensorProto.FLOAT, (1, 2, 8, 8)))
    onnx.save(model, network)
    status, out, errors = run(capsys, *words(network, tmp_path))
    assert status == 0, out + errors


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": np.int32}, "input 'rows': got int32 (3,), expected int64 (batch,)"),
        ({"rows": [[1]]}, "input 'rows': got int64 (1, 1), expected int64 (batch,)"),
        ({"picture": np.zeros(3)}, "expected rows, from, to"),
        ({"from": np.array([{}], object)}, "feed.npz is not an .npz file of plain arrays"),
    ],
)
def test_feeds_that_do_not_fit_are_one_sentence(words, change, message, lookup, tmp_path, capsys):
    save_feed(tmp_path / "feed.npz", **change)
    status, _, errors = run(capsys, *words(lookup, tmp_path), "--feeds", tmp_path / "feed.npz")
    assert status == 2
    assert message in errors and "Traceback" not in errors and "unexpected" not in errors


def test_inputs_are_either_pictures_or_feeds(folder, tmp_path, capsys):
    for command in ("verify", "sweep", "build"):
        with pytest.raises(SystemExit):
            run(capsys, command, folder / "small.onnx", "-o", "x.plan", "--images", tmp_path, "--feeds", tmp_path)
        assert "argument --feeds: not allowed with argument --images" in capsys.readouterr().err


def test_what_convert_wrote_is_compared_unless_no_check_is_asked_for(folder, tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        raise AssertionError("compared")

    monkeypatch.setattr("workbench.runners.compare.compare_runners", fail)
    assert run(capsys, "convert", folder / "small.keras", tmp_path / "s.onnx", "--no-check")[0] == 0
    status, _, errors = run(capsys, "convert", folder / "small.keras", tmp_path / "s.onnx")
    assert (status, "compared" in errors) == (2, True)


def save_constant(path, offset):
    """Every answer is the same number, whatever the picture."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["mean"]),
        helper.make_node("Mul", ["mean", "nothing"], ["none"]),
        helper.make_node("Add", ["none", "offset"], ["output"]),
    ]
    ends = ({"input": ("float32", ("batch", 3, 16, 24))}, {"output": ("float32", ("batch", 3, 1, 1))})
    numbers = {"nothing": np.zeros(1, np.float32), "offset": np.array(offset, np.float32).reshape(3, 1, 1)}
    return save_network(path, nodes, *ends, numbers)


def test_answers_that_agree_but_show_nothing_exit_3_and_others_1(tmp_path, capsys):
    one, other = save_constant(tmp_path / "a.onnx", [1, 2, 3]), save_constant(tmp_path / "b.onnx", [1, 2, 9])
    status, out, _ = run(capsys, "verify", one, one)
    assert (status, out[:12]) == (3, "INCONCLUSIVE")
    status, out, _ = run(capsys, "verify", one, other)
    assert (status, out[:4]) == (1, "FAIL")


def test_verify_precision_that_judged_nothing_exits_3(tmp_path, monkeypatch, capsys):
    """TF32 is arithmetic of GPUs: on a processor its row fails, and only float32 is left."""
    monkeypatch.setattr("workbench.measure.sweep.run_child", run_here)
    monkeypatch.setattr("workbench.measure.sweep.best_backend", lambda: "onnxruntime")
    network = save_constant(tmp_path / "net.onnx", [1, 2, 3])
    status, out, _ = run(capsys, "verify", network, "--precision", "tf32")
    assert (status, "no precision but fp32 ran" in out) == (3, True)


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [(["pass", "pass"], 0), (["pass", "inconclusive"], 3), (["inconclusive", "fail"], 1), (["fail", "pass"], 1)],
)
def test_the_worst_of_several_verdicts_is_the_exit_status(verdicts, status):
    assert exit_status(*verdicts) == status


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
    status, out, _ = run(capsys, "convert", folder / "small.onnx", tmp_path / "mended.onnx", "--details")
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
    assert reports.pop("format").startswith("workbench")
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
