"""`workbench build` and the engine lines of `workbench doctor`, as a person uses them."""

import enum
import json
import os
import re

import numpy as np
import pytest
from engine_checks import save_net, small_net
from onnx import TensorProto, helper

from workbench.cli import main as cli
from workbench.core.driver import Driver, Gpu
from workbench.engine import tensorrt_api
from workbench.engine.tensorrt_api import Flavour
from workbench.precision.calibration import Calibration


@pytest.fixture
def folder(tmp_path, monkeypatch):
    if not tensorrt_api.available_flavours()[0] and "CI" not in os.environ:
        pytest.skip("no TensorRT that can build is installed; a must in CI only")
    small_net(tmp_path / "small.onnx")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_build_writes_a_plan_and_a_manifest_and_says_so(folder, capsys):
    status, out, _ = run(capsys, "build", "small.onnx", "-o", "small.plan", "--targets", "sm89", "sm120")
    assert status == 0
    assert (folder / "small.plan").read_bytes()[:4] == b"vtrt"
    assert json.loads((folder / "small.plan.json").read_text())["targets"] == ["sm89", "sm120"]
    assert "input: min 1x3x16x16, opt 4x3x16x16, max 8x3x16x16" in out
    assert "2 before fusion (1 convolution, 1 activation)" in out
    assert "runs on  GPUs of sm89, sm120" in out
    assert "trtexec" not in out


def test_build_takes_a_profile_and_shows_the_equivalent_commands(folder, capsys):
    profile = "input=1x3x16x16,2x3x16x16,3x3x16x16"
    status, out, _ = run(
        capsys, "build", "small.onnx", "-o", "small.plan", "--profile", profile, "--show-commands", "--no-cache"
    )
    assert status == 0
    assert "--maxShapes=input:3x3x16x16" in out
    assert "polygraphy convert small.onnx --convert-to trt -o small.plan --strongly-typed" in out
    assert not (folder / "cache").exists()


def test_build_calibrates_a_network_without_pictures_on_the_readers_feeds(folder, capsys):
    weights = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    ends = [("x", TensorProto.FLOAT, ["batch", 8])], [("y", TensorProto.FLOAT, ["batch", 4])]
    save_net(folder / "net.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"], "product")], *ends, [("w", weights)])
    np.savez("mine.npz", x=np.array([[1, 2, -3, 1, 1, 1, 1, 1]], np.float32))
    words = ["net.onnx", "-o", "net.plan", "--precision", "int8", "--calibration", "scales.json", "--feeds", "mine.npz"]
    status, _, errors = run(capsys, "build", *words)
    assert status == 0, errors
    scales = Calibration.load("scales.json")
    assert (scales.samples, scales.largest["x"]) == (1, 3.0)
    assert json.loads((folder / "net.plan.json").read_text())["calibration"] == scales.digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.onnx", "-o", "x.plan"], "nothing.onnx does not exist"),
        (["small.onnx", "-o", "small.onnx"], "expected a name that ends in .plan"),
        (["small.onnx", "-o", "no/x.plan"], "the folder no does not exist; create it first"),
        (["small.onnx", "-o", "x.plan", "--precision", "half"], "got precision='half', expected one of fp32"),
        (["small.onnx", "-o", "x.plan", "--precision", "int8", "--feeds", "none.npz"], "none.npz cannot be read"),
        (["small.onnx", "-o", "x.plan", "--targets", "sm90"], "got the target 'sm90', expected some of sm75"),
        (["small.onnx", "-o", "x.plan", "--profile", "input"], "expected name=1x3x224x224"),
        (["small.onnx", "-o", "x.plan", "--profile", "image=1x3x16x16"], "names 'image', expected an input"),
        (["small.onnx", "-o", "x.plan", "--flavour", "tensorrt_lean"], "TensorRT lean runtime"),
        (["small.onnx", "-o", "x.plan", "--workspace-mib", "0"], "expected at least 1048576 (1 MiB)"),
        (["small.onnx", "-o", "x.plan", "--timeout", "-1"], "expected seconds above 0"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_status_2(folder, capsys, arguments, message):
    status, _, errors = run(capsys, "build", *arguments)
    assert status == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1, errors
    assert message in errors
    assert not (folder / "x.plan").exists()


def test_doctor_names_the_driver_and_what_each_flavour_can_do(monkeypatch, capsys):
    gpu = Gpu("NVIDIA H200", (9, 0), 141 << 30)
    capabilities = enum.Enum("ComputeCapability", "SM75 SM80 SM86 SM89 SM120 SM121")
    module = type("rtx", (), {"Builder": 1, "OnnxParser": 1, "ComputeCapability": capabilities})
    rtx = Flavour("tensorrt_rtx", module, "1.7.1.116")
    full = Flavour("tensorrt", type("full", (), {"Builder": 1, "OnnxParser": 1}), "11.4")
    lean = Flavour("tensorrt_lean", object(), "11.4")
    monkeypatch.setattr(tensorrt_api, "available_flavours", lambda: ([full, rtx, lean], []))
    monkeypatch.setattr("workbench.runners.machine.probe_driver", lambda: Driver(13000, (gpu,), ""))
    _, out, _ = run(capsys, "doctor")
    assert re.search("^NVIDIA driver +for CUDA 13.0$", out, re.M)
    assert re.search("^GPU +NVIDIA H200, 144384 MiB, 9.0$", out, re.M)
    assert "TensorRT 11.4: builds here; runs here" in out
    assert "builds here for sm75, sm80, sm86, sm89, sm120, sm121; TensorRT-RTX" in out
    assert "does not support this GPU" in out
    assert "TensorRT lean runtime 11.4: runs plans, builds none; runs here" in out


def test_doctor_without_a_driver_says_what_still_works(monkeypatch, capsys):
    full = Flavour("tensorrt", type("full", (), {"Builder": 1, "OnnxParser": 1}), "11.4")
    monkeypatch.setattr(tensorrt_api, "available_flavours", lambda: ([full], []))
    no_driver = Driver(None, (), "no NVIDIA driver was found (x)")
    monkeypatch.setattr("workbench.runners.machine.probe_driver", lambda: no_driver)
    status, out, _ = run(capsys, "doctor")
    assert status == 0
    assert re.search("^NVIDIA driver +no NVIDIA driver was found", out, re.M)
    assert "TensorRT 11.4: builds on a GPU only; a GPU is needed to run" in out
    monkeypatch.setattr(tensorrt_api, "available_flavours", lambda: ([], []))
    assert re.search("^engines +no TensorRT is installed", run(capsys, "doctor")[1], re.M)


def test_doctor_names_a_tensorrt_whose_libraries_are_missing_and_exits_1(monkeypatch, capsys):
    sentence = "TensorRT is installed, but a library it needs cannot be loaded (libnvinfer.so.11)"
    monkeypatch.setattr(tensorrt_api, "available_flavours", lambda: ([], [sentence]))
    status, out, _ = run(capsys, "doctor")
    assert status == 1
    assert f"missing: {sentence}" in out
