"""ncnn and TVM, the other routes of notebook 04; the oracle is ONNX Runtime."""

import importlib.util
import os
import stat

import numpy as np
import pytest
from extras import torch_networks as networks
from networks import small_network
from onnx_networks import save_mixed_network

from workbench.core.errors import BackendUnavailableError, FeedError, ModelError
from workbench.export.keras_model import keras_to_onnx
from workbench.export.torch_model import torch_to_onnx
from workbench.runners import other_routes
from workbench.runners.backends import open_runner
from workbench.runners.compare import verify_runners
from workbench.runners.other_routes import NcnnRunner, TvmRunner

ROUTES = {"ncnn": NcnnRunner, "tvm": TvmRunner}


@pytest.fixture(scope="module")
def onnx_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("routes")
    for name in ("residual", "unet", "transformer", "lstm"):
        torch_to_onnx(*networks.make(name), folder / f"{name}.onnx", progress=False)
    keras_to_onnx(small_network(), folder / "keras.onnx", progress=False)
    return folder


def compare(path, runner):
    generator = np.random.default_rng(0)
    shapes = {name: spec.shape for name, spec in runner.inputs.items()}
    feeds = [
        (
            f"random {index}",
            {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()},
        )
        for index in range(3)
    ]
    with open_runner(path) as reference:
        return verify_runners(reference, runner, feeds)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", ["residual", "unet", "keras"])
def test_a_picture_network_answers_like_onnx_runtime(name, route, onnx_files):
    path = onnx_files / f"{name}.onnx"
    with ROUTES[route](path) as runner:
        assert runner.info.backend == route and runner.info.name.endswith("(CPU)")
        report = compare(path, runner)
    # the limits of Tolerance(), float32 on both sides; measured below 1e-6
    assert report.passed, report.to_text()


def test_pnnx_s_own_float16_weights_fail_the_verdict(onnx_files):
    """What pnnx does unless it is told otherwise: float16 keeps 11 bits, 5e-4 of a weight, and that shows."""
    with NcnnRunner(onnx_files / "unet.onnx", fp16=True) as runner:
        report = compare(onnx_files / "unet.onnx", runner)
    assert not report.passed
    assert report.outputs[0].max_relative_error < 1e-2  # it is rounding, not another network


def test_ncnn_answers_of_another_shape_are_refused(onnx_files):
    with pytest.raises(ModelError, match=r"\(1, 16, 5\).*the graph says float32 \(1, 5\): pnnx misread an axis"):
        NcnnRunner(onnx_files / "transformer.onnx")


def test_tvm_runs_the_transformer(onnx_files):
    with TvmRunner(onnx_files / "transformer.onnx") as runner:
        assert compare(onnx_files / "transformer.onnx", runner).passed


@pytest.mark.parametrize(
    ("route", "message"), [("ncnn", "ncnn cannot run .*pnnx left out LSTM"), ("tvm", "TVM .* cannot compile .*LSTM")]
)
def test_a_recurrent_network_is_refused_and_the_operator_named(route, message, onnx_files):
    with pytest.raises(ModelError, match=message):
        ROUTES[route](onnx_files / "lstm.onnx")


@pytest.mark.parametrize("route", ROUTES)
def test_inputs_of_other_types_are_refused(route, tmp_path):
    with pytest.raises(ModelError, match=r"takes flags int32 \(batch, 2, 3\), expected float32, a batch of one"):
        ROUTES[route](save_mixed_network(tmp_path / "mixed.onnx"))


@pytest.mark.parametrize("route", ROUTES)
def test_the_runners_keep_the_contract(route, onnx_files):
    runner = ROUTES[route](onnx_files / "residual.onnx")
    x = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    kept = x.copy()
    first = runner.infer({"input": x})["output"]
    snapshot = first.copy()
    runner.infer({"input": -x})
    np.testing.assert_array_equal(first, snapshot)
    np.testing.assert_array_equal(x, kept)
    assert first.shape == (1, 10) and first.dtype == np.float32
    with pytest.raises(FeedError, match="axis 0 is 2 where the network takes 1"):
        runner.infer({"input": np.zeros((2, 3, 32, 32), np.float32)})
    runner.close()


def test_a_crash_of_pnnx_is_one_sentence(onnx_files, tmp_path, monkeypatch):
    program = tmp_path / "pnnx"
    program.write_text("#!/bin/sh\necho 'no such layer'\nkill -SEGV $$\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(other_routes, "_pnnx_program", lambda: str(program))
    with pytest.raises(ModelError, match=r"pnnx cannot translate .*status -11: no such layer"):
        NcnnRunner(onnx_files / "residual.onnx")


def test_pnnx_leaves_nothing_beside_the_model(onnx_files):
    before = sorted(os.listdir(onnx_files))
    NcnnRunner(onnx_files / "residual.onnx").close()
    assert sorted(os.listdir(onnx_files)) == before


@pytest.mark.parametrize(("route", "module"), [("ncnn", "ncnn"), ("tvm", "tvm")])
def test_a_missing_package_is_named_with_its_extra(route, module, onnx_files, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(BackendUnavailableError, match=rf"{module} cannot be imported .*pip install -e '\.\[routes\]'"):
        ROUTES[route](onnx_files / "residual.onnx")


def test_a_missing_pnnx_is_named_too(onnx_files, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pnnx" else found(name))
    with pytest.raises(BackendUnavailableError, match=r"pnnx is not installed.*pip install -e '\.\[routes\]'"):
        NcnnRunner(onnx_files / "residual.onnx")
