"""Files that hold float16 and float32, as Keras's mixed precision does: TensorRT-RTX builds them as they are."""

import os

import numpy as np
import onnx
import pytest
from conversions import convert_here
from engine_checks import build, save_net
from onnx import TensorProto, helper

from workbench.cli import main as cli
from workbench.core.errors import EngineBuildError
from workbench.core.packages import load_keras
from workbench.engine import tensorrt_api

load_keras()
import odd_networks as odd  # noqa: E402  (Keras must be loaded for TensorFlow first)


@pytest.fixture(scope="module", autouse=True)
def builder_is_here():
    """The real builder; CI names it as one it must test, so there its absence is an error."""
    if not tensorrt_api.available_flavours()[0] and "CI" not in os.environ:
        pytest.skip("no TensorRT that can build is installed; a must in CI only")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))


def save_mixed(path, network=odd.mixed):
    onnx.save(convert_here(network("mixed_float16")), path)
    return path


def test_a_mixed_network_is_built_in_the_types_that_keras_gave_its_layers(tmp_path):
    manifest = build(save_mixed(tmp_path / "m.onnx"), precision="fp16").manifest
    # Keras: both convolutions, the ReLU and the Add in float16; batch norm, pooling and the last Dense in float32
    assert manifest.types == {
        "CONVOLUTION": {"float16": 2}, "ACTIVATION": {"float16": 1}, "ELEMENTWISE": {"float32": 3, "float16": 1},
        "REDUCE": {"float32": 1}, "MATRIX_MULTIPLY": {"float32": 1},
    }  # fmt: skip
    assert not manifest.converted
    kept = [entry["node"].split("/")[1].split("_")[0] for entry in manifest.kept]
    assert kept == ["norm", "norm", "pool", "end", "end"]
    assert {entry["reason"] for entry in manifest.kept} == {"the file has it in float32"}


def test_float32_layers_inside_loops_are_found_too(tmp_path):
    types = build(save_mixed(tmp_path / "m.onnx", odd.mixed_upsampling), precision="fp16").manifest.types
    assert types["MATRIX_MULTIPLY"] == {"float16": 4, "float32": 3}
    assert types["RESIZE"] == {"float32": 1}


def test_the_command_says_which_precision_to_ask_for_and_then_builds(tmp_path, capsys):
    words = ["build", str(save_mixed(tmp_path / "m.onnx")), "-o", str(tmp_path / "m.plan")]
    assert cli.main(words) == 2
    assert "the file says so: ask for precision='fp16'" in capsys.readouterr().err
    assert cli.main([*words, "--precision", "fp16"]) == 0
    assert "and 1 more: the file has it in float32" in capsys.readouterr().out


def test_weights_that_are_only_stored_in_float16_make_no_float16_network(tmp_path):
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "wide"], ["y"], "conv"),
    ]
    ends = [("x", TensorProto.FLOAT, [1, 3, 4, 4])], [("y", TensorProto.FLOAT, [1, 4, 4, 4])]
    path = save_net(tmp_path / "stored.onnx", nodes, *ends, [("w", np.ones((4, 3, 1, 1), np.float16))])
    with pytest.raises(EngineBuildError, match=r"got precision='fp16', .* in 1 of 1 layers: conv \(conv.*float32\)"):
        build(path, precision="fp16")
    assert build(path).manifest.types == {"CONVOLUTION": {"float32": 1}}
