"""ncnn and TVM, the other routes: the cells of notebook 04 that run them; the oracle is ONNX Runtime."""

import contextlib
import importlib.util
import io
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from extras import torch_networks as networks
from networks import small_network

from workbench.core.errors import ModelError
from workbench.export.keras_model import keras_to_onnx
from workbench.export.torch_model import torch_to_onnx
from workbench.onnx_graph.session import open_session

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "04_your_own_network.ipynb"
TITLES = {"ncnn": "float32", "tvm": "not tuned"}


def sources():
    """The notebook's imports, and the cells of the other routes, in order."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    tagged = [cell for cell in cells if "other-routes" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 6, "the cells of the other routes are tagged"
    return ["".join(cell["source"]) for cell in (cells[0], *tagged)]


@pytest.fixture(scope="module")
def onnx_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("routes")
    for name in ("residual", "unet", "transformer", "lstm"):
        torch_to_onnx(*networks.make(name), folder / f"{name}.onnx", progress=False)
    keras_to_onnx(small_network(), folder / "keras.onnx", progress=False)
    return folder


@pytest.fixture
def run(tmp_path):
    """Run the cells on a network; returns the notebook's names and what it printed."""

    def run(path):
        names = {"mine_onnx": path, "OUT": tmp_path / "out", "IMAGES": None, "PREPROCESS": "unit", "RUNS": 1}
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            for source in sources():
                exec(source, names)
        return names, printed.getvalue()

    return run


def reports(names, route):
    """The reports on one route, by its label."""
    start = {"ncnn": "ncnn ", "tvm": "TVM "}[route]
    return {title.split(", ")[1]: report for title, (_, report) in names["routes"].items() if title.startswith(start)}


@pytest.mark.parametrize("name", ["residual", "unet", "keras"])
def test_a_picture_network_answers_like_onnx_runtime(name, onnx_files, run):
    names, _ = run(onnx_files / f"{name}.onnx")
    for route, label in TITLES.items():
        report = reports(names, route)[label]
        # the limits of Tolerance(), float32 on both sides; measured below 1e-6
        assert report.passed, report.to_text()
        assert report.candidate_name.endswith("(CPU)")
    assert all(milliseconds > 0 for milliseconds, _ in names["routes"].values())


def test_pnnx_s_own_float16_weights_fail_the_verdict(onnx_files, run):
    """What pnnx does unless it is told otherwise: float16 keeps 11 bits, 5e-4 of a weight, and that shows."""
    names, printed = run(onnx_files / "unet.onnx")
    report = reports(names, "ncnn")["float16 weights"]
    assert not report.passed
    assert report.outputs[0].max_relative_error < 1e-2  # it is rounding, not another network
    assert f"float16 weights: {report.verdict}" in printed


def test_ncnn_answers_of_another_shape_fail_and_tvm_runs_the_transformer(onnx_files, run):
    names, _ = run(onnx_files / "transformer.onnx")
    misread = reports(names, "ncnn")["float32"]
    assert misread.status == "fail" and "(1, 16, 5)" in misread.verdict and "(1, 5)" in misread.verdict
    assert reports(names, "tvm")["not tuned"].passed


def test_a_recurrent_network_is_refused_and_the_operator_named(onnx_files, run):
    names, printed = run(onnx_files / "lstm.onnx")
    assert not reports(names, "ncnn") and not reports(names, "tvm")
    assert "ncnn cannot run" in printed and "pnnx left out LSTM" in printed
    assert "LSTM" in printed.split("TVM cannot compile it:")[1]


def test_the_answers_are_fresh_and_the_feed_is_left_alone(onnx_files, run):
    names, _ = run(onnx_files / "residual.onnx")
    x = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    kept = x.copy()
    expected = open_session(onnx_files / "residual.onnx").run(["output"], {"input": x})[0]
    for answer in (names["open_ncnn"](onnx_files / "residual.onnx", False), names["compile_tvm"](names["mine_onnx"])):
        first = answer({"input": x})["output"]
        snapshot = first.copy()
        answer({"input": -x})
        np.testing.assert_array_equal(first, snapshot)
        np.testing.assert_array_equal(x, kept)
        assert first.shape == (1, 10) and first.dtype == np.float32
        # float32 sums in another order
        assert np.abs(first - expected).max() < 1e-5 * np.ptp(expected)


def test_a_crash_of_pnnx_is_one_sentence_and_no_older_file_is_taken(onnx_files, run, tmp_path, monkeypatch):
    names, _ = run(onnx_files / "residual.onnx")
    program = tmp_path / "pnnx"
    program.write_text("#!/bin/sh\necho 'no such layer'\nkill -SEGV $$\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    found = importlib.util.spec_from_file_location("pnnx", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(ModelError, match=r"pnnx cannot translate .*status -11.*no such layer"):
        names["open_ncnn"](onnx_files / "residual.onnx", False)
    assert not list((tmp_path / "out" / "ncnn_fp32").glob("*.bin"))


def test_pnnx_leaves_nothing_beside_the_model(onnx_files, run):
    before = sorted(os.listdir(onnx_files))
    run(onnx_files / "residual.onnx")
    assert sorted(os.listdir(onnx_files)) == before


@pytest.mark.parametrize(
    ("missing", "said"),
    [("ncnn", "ncnn or pnnx is not installed"), ("pnnx", "ncnn or pnnx is not"), ("tvm", "TVM is not installed")],
)
def test_a_missing_package_is_named_with_what_installs_it(missing, said, onnx_files, run, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    names, printed = run(onnx_files / "residual.onnx")
    assert said in printed and "make extras" in printed
    assert not reports(names, "tvm" if missing == "tvm" else "ncnn")
