"""Sweeps: every combination measured into rows that can be taken up again, and the two commands."""

import dataclasses
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_networks import save_identity_network, save_mixed_network, save_network, save_picture_network
from sweep_checks import (
    LARGE,
    SIZE,
    quick,
    run_here,
    save_folders,
    save_picture,
    save_segmenter,
    scenes,
    truths,
)

import workbench.measure.sweep as engine
from workbench.cli import main as cli
from workbench.core.contract import RunnerInfo
from workbench.core.driver import Driver, probe_driver
from workbench.core.errors import EngineBuildError, InputError, ModelError
from workbench.engine import tensorrt_api
from workbench.export import conversion
from workbench.measure import backends, point_child, points
from workbench.measure.figures import precision_figure
from workbench.measure.points import network_digest
from workbench.measure.rows import load_rows
from workbench.measure.sweep import grid, sweep
from workbench.precision.calibration import Calibration, calibrate
from workbench.precision.convert import to_precision
from workbench.precision.rounding import KernelTypes
from workbench.precision.spec import PrecisionSpec
from workbench.runners.onnxruntime_runner import OnnxRuntimeRunner

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def here(monkeypatch):
    """Points are measured in this process."""
    monkeypatch.setattr(engine, "run_child", run_here)


# The grid


def test_points_to_be_compared_follow_each_other_and_keras_takes_part_in_fp32_only():
    made = grid({"net": "net.keras"}, ("fp32", "fp16"), (1, 2), backends=("onnxruntime", "keras"))
    found = [(point.batch, point.precision, point.backend) for point in made]
    assert found[:3] == [(1, "fp32", "onnxruntime"), (1, "fp32", "keras"), (1, "fp16", "onnxruntime")]
    assert len(found) == 6


@pytest.mark.parametrize(
    "wrong",
    [
        {"precisions": "fp16"},
        {"precisions": ["half"]},
        {"backends": []},
        {"backends": ["cuda"]},
        {"batches": [0]},
        {"batches": []},
        {"networks": {}},
    ],
)
def test_a_wrong_grid_is_refused(wrong):
    with pytest.raises(InputError, match="expected"):
        grid(**{"networks": {"net": "net.onnx"}, "precisions": ["fp32"], **wrong})


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A small network measured in three precisions and two batches, and the file of its rows."""
    folder = tmp_path_factory.mktemp("measured")
    network, out = save_picture_network(folder / "net.onnx"), folder / "rows.jsonl"
    how = {"precision": ("fp32", "fp16", "int8"), "batch": (1, 3), "out": out, "progress": False}
    return SimpleNamespace(network=network, out=out, how=how, rows=sweep({"net": network}, runs=6, **how))


def test_every_point_has_its_row_with_machine_versions_and_pictures(measured):
    assert [(row.precision, row.batch) for row in measured.rows] == [
        (precision, batch) for batch in (1, 3) for precision in ("fp32", "fp16", "int8")
    ]
    for row in measured.rows:
        assert row.ok, row.reason
        assert (row.height, row.width) == (16, 24)
        assert "cores" in row.machine
        assert "onnxruntime 1." in row.versions
        assert row.network_sha256 == network_digest(measured.network)
    assert load_rows(measured.out) == measured.rows


def test_float32_is_timed_and_agrees_with_itself(measured):
    for row in (row for row in measured.rows if row.precision == "fp32"):
        assert row.relative_l2 <= 1e-6  # the same kernels, though a batch may add in another order
        assert row.minimum_ms <= row.latency_ms <= row.p95_ms
        assert row.images_per_s == pytest.approx(1000 * row.batch / row.latency_ms, rel=1e-3)
        assert row.memory_mib > 0
        assert (row.real, row.arithmetic, row.runs) == (True, "float32", 6)


@pytest.mark.skipif(not probe_driver().problem, reason="a GPU computes in float16")
def test_a_precision_that_a_cpu_lacks_is_judged_by_rounding_and_never_timed(measured):
    for row in (row for row in measured.rows if row.precision == "fp16"):
        assert (row.real, row.latency_ms, row.memory_mib) == (False, None, None)
        assert row.arithmetic == "float32, rounded to float16"
        # One rounding to 11 bits is at most 2**-11; four layers and the weights may add up to 16 of them.
        assert 2**-16 < row.max_error_of_range < 16 * 2**-11
        assert row.file_mib < measured.rows[0].file_mib


def test_eight_bits_say_what_they_were_calibrated_on(measured):
    for row in (row for row in measured.rows if row.precision == "int8"):
        assert "calibrated on 6 pictures, the judged ones among them" in row.note
        assert 1e-4 < row.max_error_of_range < 0.5  # coarser than float16; noise of random weights in a small network


def test_the_same_call_measures_nothing_again_and_a_longer_one_only_what_is_new(measured, monkeypatch):
    before, calls = measured.out.read_bytes(), []
    assert sweep({"net": measured.network}, **measured.how) == measured.rows
    assert measured.out.read_bytes() == before
    monkeypatch.setattr(engine, "run_child", lambda *order: calls.append(order) or run_here(*order))
    rows = sweep({"net": measured.network}, batch=(1, 2, 3), out=measured.out, runs=2, progress=False)
    assert [row.batch for row in rows] == [1, 2, 3]
    assert len(calls) == 1  # the new point
    assert len(load_rows(measured.out)) == len(measured.rows) + 1
    measured.out.write_bytes(before)


@pytest.mark.parametrize("other", [{"preprocess": "raw"}, {"pictures": 2}, {"feeds": scenes(2)}])
def test_other_pictures_are_another_measurement(measured, tmp_path, other, here):
    (tmp_path / "rows.jsonl").write_bytes(measured.out.read_bytes())
    rows = sweep({"net": measured.network}, out=tmp_path / "rows.jsonl", runs=1, progress=False, **other)
    assert rows[0].judged_on != measured.rows[0].judged_on
    assert len(load_rows(tmp_path / "rows.jsonl")) == len(measured.rows) + 1


def test_another_network_of_the_same_name_is_another_measurement(measured, tmp_path, here):
    measured_before = len(load_rows(measured.out))
    (tmp_path / "rows.jsonl").write_bytes(measured.out.read_bytes())
    other = save_picture_network(tmp_path / "net.onnx", channels=4)
    sweep(other, out=tmp_path / "rows.jsonl", runs=2, progress=False)
    assert len(load_rows(tmp_path / "rows.jsonl")) == measured_before + 1


class Interrupted:
    """Stands in for the child: answers a few times, then Ctrl-C."""

    def __init__(self, calls):
        self.left = calls

    def __call__(self, order, timeout_s):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return {"runner": "ONNX Runtime 1.0 (CPU)", "latency_ms": 1.0}


def test_ctrl_c_keeps_the_rows_and_the_next_call_goes_on(measured, tmp_path, monkeypatch):
    how = {"batch": (1, 2, 3, 4), "out": tmp_path / "rows.jsonl", "progress": False}
    monkeypatch.setattr(engine, "run_child", Interrupted(2))
    with pytest.raises(KeyboardInterrupt):
        sweep(measured.network, **how)
    assert [row.batch for row in load_rows(how["out"])] == [1, 2]
    monkeypatch.setattr(engine, "run_child", Interrupted(2))
    assert [row.batch for row in sweep(measured.network, **how)] == [1, 2, 3, 4]


def test_a_failed_point_keeps_its_reason_and_is_only_tried_again_when_asked(measured, tmp_path, monkeypatch):
    how = {"out": tmp_path / "rows.jsonl", "progress": False}
    monkeypatch.setattr(engine, "run_child", lambda *order: (_ for _ in ()).throw(InputError("out of memory")))
    (row,) = sweep(measured.network, **how)
    assert (row.status, row.reason, row.latency_ms) == ("failed", "out of memory", None)
    monkeypatch.setattr(engine, "run_child", Interrupted(2))
    assert not sweep(measured.network, **how)[0].ok
    assert sweep(measured.network, retry_failed=True, **how)[0].ok
    assert [row.ok for row in load_rows(how["out"])] == [True]


def save_logarithm(path):
    """The logarithm of pictures of -1..1: half of it is NaN."""
    shape = ("float32", ("batch", 3, 8, 8))
    return save_network(path, [helper.make_node("Log", ["input"], ["output"])], {"input": shape}, {"output": shape})


def test_the_reason_of_each_kind_of_failure(tmp_path):
    networks = {
        "bad": save_logarithm(tmp_path / "bad.onnx"),
        "fixed": save_picture_network(tmp_path / "fixed.onnx", batch=1),
        "words": save_identity_network(tmp_path / "words.onnx", "int64"),
        "damaged": tmp_path / "damaged.onnx",
    }
    networks["damaged"].write_text("not a network")
    rows = sweep(networks, batch=(2,), out=tmp_path / "rows.jsonl", runs=1, progress=False)
    reasons = {row.network: row.reason for row in rows}
    assert "answers are NaN or infinite" in reasons["bad"]
    assert "takes batches of 1 only; export it with an open batch" in reasons["fixed"]
    assert reasons["words"] == ""
    assert "damaged.onnx" in reasons["damaged"]
    assert [row.status for row in load_rows(tmp_path / "rows.jsonl")] == ["failed", "failed", "ok", "failed"]


@pytest.mark.skipif(not probe_driver().problem, reason="a GPU can run these")
def test_what_this_machine_cannot_run_says_so(measured, tmp_path):
    where = ("onnxruntime", "onnxruntime-cuda", "tensorrt")
    rows = sweep(measured.network, precision=("tf32",), backend=where, out=tmp_path / "rows.jsonl", progress=False)
    assert [(row.precision, row.backend) for row in rows if row.ok] == [("fp32", "onnxruntime")]
    assert "TF32 is arithmetic of NVIDIA GPUs" in next(row.reason for row in rows if row.precision == "tf32")
    assert all((row.ok or row.reason) and str(tmp_path) not in row.reason for row in rows)


def test_sizes_that_a_network_does_not_have_are_refused(measured, tmp_path):
    rows = sweep(measured.network, size=[(16, 24), (32, 48)], runs=1, progress=False)
    assert [row.ok for row in rows] == [True, False]
    assert "input takes pictures of 16x24, got the size 32x48" in rows[1].reason


def test_an_open_size_is_measured_at_each_size(tmp_path):
    weights = {"kernel": np.random.default_rng(0).standard_normal((2, 3, 3, 3)).astype(np.float32)}
    nodes = [helper.make_node("Conv", ["input", "kernel"], ["output"], pads=[1, 1, 1, 1])]
    inputs = {"input": ("float32", ("batch", 3, "height", "width"))}
    outputs = {"output": ("float32", ("batch", 2, "height", "width"))}
    network = save_network(tmp_path / "open.onnx", nodes, inputs, outputs, weights)
    rows = sweep({"open": network}, size=[(16, 24), (32, 48)], batch=(2,), runs=1, progress=False)
    assert [(row.ok, row.height, row.width) for row in rows] == [(True, 16, 24), (True, 32, 48)]


def test_keras_and_its_onnx_file_are_measured_side_by_side(tmp_path):
    from networks import small_network

    where = ("onnxruntime", "keras")
    rows = sweep({"small": small_network()}, backend=where, runs=2, preprocess="cityscapes", progress=False)
    assert [row.reason for row in rows] == ["", ""]
    assert rows[1].runner.startswith("Keras")
    assert rows[1].relative_l2 < 1e-5  # float32 on both sides
    assert rows[0].network_sha256 == rows[1].network_sha256


def test_a_mistyped_path_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ModelError, match=r"nothing\.onnx does not exist"):
        sweep(tmp_path / "nothing.onnx", out=tmp_path / "rows.jsonl", progress=False)
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"pictures": 0}, {"timeout_s": 0}])
def test_wrong_counts_are_refused(tmp_path, wrong):
    with pytest.raises(InputError, match="expected at least 1"):
        sweep("net.onnx", out=tmp_path / "rows.jsonl", **wrong)


def test_a_point_that_takes_too_long_is_ended(measured, tmp_path):
    with pytest.raises(InputError, match=r"longer than 0\.01 s"):
        point_child.run_child({"batch": 1}, timeout_s=0.01)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL; the machine may be out of memory"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        (
            "print('one', file=sys.stderr) or {}['x']",
            "ended with status 1 and no result; its last words: KeyError: 'x'",
        ),
    ],
)
def test_a_crash_is_a_reason(measured, tmp_path, monkeypatch, work, said):
    (tmp_path / "crashing.py").write_text(
        f"import os, signal, sys\nfrom workbench.core.process import serve\nsys.exit(serve(lambda order: {work}))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(point_child, "CHILD", "crashing")
    (row,) = sweep(measured.network, progress=False)
    assert not row.ok and said in row.reason


def test_the_digest_knows_a_network_by_its_numbers_not_by_its_names(tmp_path):
    path = save_picture_network(tmp_path / "one.onnx")
    model = onnx.load(path)
    renamed = {"kernel": "k", "classes": "c"}
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    for tensor in model.graph.initializer:
        tensor.name = renamed[tensor.name]
    weights = list(model.graph.initializer)
    del model.graph.initializer[:]
    model.graph.initializer.extend(reversed(weights))
    onnx.save(model, tmp_path / "same.onnx")
    weights[0].raw_data = b"\0\0\0\0" + weights[0].raw_data[4:]
    model.graph.initializer[1].CopyFrom(weights[0])
    onnx.save(model, tmp_path / "other.onnx")
    digests = [network_digest(tmp_path / f"{name}.onnx") for name in ("one", "same", "other")]
    assert digests[0] == digests[1] != digests[2]


def test_the_same_numbers_in_another_shape_are_another_network(tmp_path):
    shape = ("float32", ("batch", 4))
    digests = set()
    for weight in (np.ones((1, 4), np.float32), np.ones(4, np.float32)):
        node = helper.make_node("Add", ["x", "w"], ["y"])
        digests.add(
            network_digest(save_network(tmp_path / "n.onnx", [node], {"x": shape}, {"y": shape}, {"w": weight}))
        )
    assert len(digests) == 2


def test_sizes_of_files_are_in_mebibytes(tmp_path):
    (tmp_path / "saved").mkdir()
    for name in ("a", "saved/b", "saved/c"):
        (tmp_path / name).write_bytes(bytes(3 * 2**19))
    found = [points._mebibytes(tmp_path / name) for name in ("a", "saved", "resnet50")]
    assert found == [1.5, 3.0, None]


def test_relative_l2_of_two_pictures_is_that_of_all_their_numbers(benchmark):
    reference, candidate = np.array([[3.0, 0.0], [0.0, 4.0]]), np.array([[3.0, 0.3], [0.4, 4.0]])
    assert benchmark.relative_l2([reference], [candidate]) == pytest.approx(0.5 / 5)
    assert benchmark.relative_l2([reference], [np.where(reference == 3, np.nan, reference)]) == float("inf")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return save_segmenter(tmp_path_factory.mktemp("sweep") / "segmenter.onnx")


@pytest.fixture(scope="module")
def rows(network):
    feeds = scenes()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine, "run_child", run_here)
        return quick(network, feeds, labels=truths(network, feeds))


def test_every_precision_is_there_and_what_cannot_run_is_named_with_the_reason(rows):
    assert [row.precision for row in rows] == ["fp32", "tf32", "fp16", "bf16", "int8", "fp8"]
    assert not rows["tf32"].ran
    assert "tf32 did not run: TF32 is arithmetic of NVIDIA GPUs" in rows.to_text()


def test_a_row_that_a_cpu_simulates_says_so_and_has_neither_time_nor_memory(rows):
    for precision, word in (("fp16", "rounded to float16"), ("bf16", "rounded to bfloat16"), ("fp8", "float8")):
        row = rows[precision]
        assert not row.real, row
        assert word in row.arithmetic
        assert row.latency_ms is None and row.memory_mib is None
    assert rows["fp32"].real
    assert rows["fp32"].runs == 1
    assert "This machine does not compute in fp16" in rows.to_text()


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="only Linux tells the peak of a process")
def test_memory_is_that_of_the_network_and_not_of_this_process(measured, tmp_path):
    weights = {"w": np.ones((1, 10_000_000), np.float32)}  # 40 MB
    node = helper.make_node("Add", ["x", "w"], ["output"])
    ends = {"x": ("float32", (1, 1))}, {"output": ("float32", (1, 10_000_000))}
    path = save_network(tmp_path / "large.onnx", [node], *ends, weights)
    (row,) = sweep(path, feeds=[("one", {"x": np.ones((1, 1), np.float32)})], runs=1, progress=False)
    # weights and answer at least; copies of the file while it is read
    assert 80e6 < row.memory_mib * 2**20 < 600e6, row
    assert measured.rows[0].memory_mib * 2**20 < 100e6


def test_the_pairs_of_8_bits_are_counted_and_their_calibration_is_named(network, here):
    rows = quick(network, scenes(), precision=("int8",))
    assert [row.precision for row in rows] == ["fp32", "int8"]
    assert rows["int8"].qdq_pairs == 6  # three activations, three weights
    assert "The 8-bit scales come from the very images that are judged" in rows.to_text()


def test_8_bits_are_calibrated_on_other_pictures_where_there_are_enough(network, here):
    rows = quick(network, scenes(12), precision=("int8",), pictures=3)
    assert "calibrated on 9 other pictures" in rows["int8"].note
    assert rows["int8"].images == 3 and len(rows["int8"].worst) == 3
    assert "the very images" not in rows.to_text()


def test_what_overflows_is_kept_in_float32_and_named(tmp_path, here):
    path = save_segmenter(tmp_path / "large.onnx", LARGE)
    rows = quick(path, scenes(scale=30.0), precision=("fp16",))
    assert {name for name, *_ in rows["fp16"].kept} == {"encoder", "relu", "squeeze"}
    assert rows["fp16"].max_error_of_range < 2**-9
    assert rows.passed
    assert "fp16 keeps 3 nodes in float32: encoder" in rows.to_text()


def test_a_network_that_overflows_fails_with_the_count_of_bad_answers(tmp_path, monkeypatch, here):
    path = save_segmenter(tmp_path / "large.onnx", LARGE)
    monkeypatch.setattr("workbench.precision.ranges.measure_ranges", lambda *arguments, **options: None)
    rows = quick(path, scenes(scale=30.0), precision=("fp16",), out=tmp_path / "rows.jsonl")
    row = rows["fp16"]
    assert row.broken and not rows.passed
    assert row.max_error_of_range is None
    assert "answers are NaN or infinite" in row.reason
    assert rows.verdict.startswith("Stay with fp32: fp16 answers ")
    assert "NaN or infinite values" in rows.verdict
    assert "too much" in rows.to_text()
    json.loads(rows.to_json())  # infinite errors do not break it
    assert load_rows(tmp_path / "rows.jsonl") == rows
    assert "fp16: NaN or infinite" in {text.get_text() for text in precision_figure(rows).axes[0].texts}


def test_int8_kernels_make_a_row_real_and_give_it_a_time(network, monkeypatch, here):
    monkeypatch.setattr(point_child, "profile_types", lambda *a, **k: KernelTypes({"int8": 2}))
    rows = quick(network, scenes(1), precision=("fp16", "int8"))
    assert rows["int8"].real and rows["int8"].latency_ms is not None
    assert not rows["fp16"].real  # the same profile shows no float16


def test_some_int8_kernels_are_named_in_a_simulated_row(network, monkeypatch, here):
    monkeypatch.setattr(point_child, "profile_types", lambda *a, **k: KernelTypes({"int8": 1, "float32": 2}))
    rows = quick(network, scenes(1), precision=("int8",))
    assert rows["int8"].arithmetic == "int8 in 1 of 3 heavy layers, else float32 between Q/DQ pairs"


@pytest.fixture
def folders(tmp_path):
    return save_folders(tmp_path)


def test_calibration_images_of_one_colour_are_refused(network, tmp_path, here):
    save_picture(tmp_path / "grey.png", np.full((*SIZE, 3), 100, np.uint8))
    with pytest.raises(InputError, match="of one colour"):
        quick(network, images=tmp_path, precision=("int8",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": ("fp12",)}, "got the precision 'fp12', expected some of fp32"),
        ({"precision": "fp16"}, r"expected a list such as \['fp16'\]"),
        ({"limit": 1.5}, "expected a share of 0 to 1"),
        ({"runs": 0}, "got runs=0"),
        ({"feeds": []}, "got no feed to judge on"),
        ({"feeds": scenes(1), "images": "."}, "got feeds and images"),
        ({"backend": "cuda"}, "got backend='cuda'"),
        ({"backend": ("cuda",)}, "got the backend 'cuda', expected some of auto, onnxruntime"),
        ({"preprocess": "none"}, "got preprocess='none'"),
        ({"calibration": "nowhere.json"}, "is not a calibration"),
    ],
)
def test_a_wrong_argument_is_one_sentence(network, options, message):
    with pytest.raises(InputError, match=message):
        quick(network, options.pop("feeds", scenes(1)), **options)


def test_a_network_that_is_not_float32_is_refused(network, tmp_path):
    to_precision(network, tmp_path / "half.onnx", PrecisionSpec("fp16"))
    with pytest.raises(InputError, match="in fp16 already, expected float32"):
        quick(tmp_path / "half.onnx", scenes(1))
    quantised = PrecisionSpec("int8", calibration=calibrate(network, scenes(1), progress=False))
    to_precision(network, tmp_path / "int8.onnx", quantised)
    with pytest.raises(InputError, match="in int8 already"):
        quick(tmp_path / "int8.onnx", scenes(1))
    with pytest.raises(InputError, match=r"model\.keras does not exist"):
        quick("model.keras", scenes(1))


def test_a_calibration_of_another_network_is_refused(network, tmp_path, here):
    other = save_segmenter(tmp_path / "other.onnx", 2.0)
    saved = calibrate(other, scenes(1), progress=False).save(tmp_path / "c.json")
    for size in (None, SIZE):
        with pytest.raises(InputError, match="calibrate this network again"):
            quick(network, scenes(1), precision=("int8",), size=(size,), calibration=saved)
    rows = quick({"one": network, "other": other}, scenes(1), precision=("int8",), calibration=saved)
    assert [row.ok for row in rows] == [True, False, True, True]  # of several networks it is a row's reason


def test_plans_are_added_to_rows_that_lack_them_where_something_builds(network, tmp_path, monkeypatch, here):
    how = {"precision": ("fp32",), "out": tmp_path / "rows.jsonl"}
    dates = [quick(network, scenes(1), **how)[0].date]
    monkeypatch.setattr(engine, "now", lambda: "later")
    monkeypatch.setattr(backends, "available_flavours", lambda: ([], []))
    monkeypatch.setattr(engine, "find_builder", lambda: None)
    assert quick(network, scenes(1), plans=True, **how)[0].date == dates[0]
    monkeypatch.setattr(engine, "find_builder", lambda: "a builder")
    assert quick(network, scenes(1), plans=True, **how)[0].date == "later"


def test_a_calibration_file_is_used_and_no_note_says_otherwise(network, tmp_path, here):
    saved = calibrate(network, scenes(2), method="minmax", progress=False).save(tmp_path / "c.json")
    rows = quick(network, scenes(1), precision=("int8",), calibration=saved)
    assert rows["int8"].ran
    assert "very images" not in rows.to_text()
    assert "calibrated on 2 given pictures" in rows["int8"].note
    assert Calibration.load(saved).method == "minmax"
    assert Calibration.load(saved).digest.startswith(rows["int8"].calibration) and not rows["fp32"].calibration


def test_a_precision_that_nothing_can_be_converted_to_is_skipped_with_the_reason(tmp_path, here):
    path = save_mixed_network(tmp_path / "mixed.onnx")
    model = onnx.load(path)
    del model.graph.node[1], model.graph.output[1]  # the float16 output
    onnx.save(model, path)
    rows = quick(path, precision=("int8",))
    assert "nothing to quantise" in rows["int8"].reason
    assert "int8 did not run: " in rows.to_text()


# Engines


@pytest.fixture
def builder(monkeypatch, tmp_path):
    """A real builder; CI names it as one it must test."""
    if not tensorrt_api.available_flavours()[0] and "CI" not in os.environ:
        pytest.skip("no TensorRT that can build is installed; a must in CI only")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


def test_plans_are_built_for_their_size_and_the_table_names_the_builder(network, builder, here):
    rows = quick(network, scenes(1), precision=("fp16", "int8"), plans=True)
    assert "plan, TensorRT-RTX" in rows.to_text()
    assert all(row.plan_mib * 2**20 > 1000 for row in rows), rows.to_text()


def test_a_plan_that_cannot_be_built_is_named_and_the_row_stays(network, builder, monkeypatch, here):
    def refuse(self, precision, batch, builder):
        raise EngineBuildError("the builder refused")

    monkeypatch.setattr(points.Network, "_build", refuse)
    rows = quick(network, scenes(1), precision=("fp16",), plans=True)
    assert rows["fp16"].ran and rows["fp16"].plan_mib is None
    assert "fp16 has no plan: the builder refused." in rows.to_text()
    assert "plan, " not in rows.to_text()


def test_tensorrt_by_name_is_refused_where_none_runs(network, monkeypatch):
    monkeypatch.setattr(backends, "probe_driver", lambda: Driver(None, (), "no NVIDIA driver"))
    rows = quick(network, scenes(1), backend=("tensorrt",))
    assert not any(row.ok for row in rows)
    assert "no TensorRT runs here (no NVIDIA driver)" in rows["fp32"].reason
    assert [row.backend for row in quick(network, scenes(1), backend=("auto",), precision=("tf32",))] == [
        "onnxruntime"
    ] * 2


class PretendedEngine(OnnxRuntimeRunner):
    """Stands for an engine on a GPU; it computes the ONNX file, and its name says TensorRT for this test only."""

    def __init__(self, plan):
        super().__init__(plan.replace("_1.plan", ".onnx") if "fp32" not in plan and "tf32" not in plan else NETWORK[0])
        self.info = RunnerInfo("tensorrt", "0", "a test")


NETWORK = []


def test_where_engines_run_they_are_judged_and_what_does_not_build_did_not_run(network, builder, monkeypatch, here):
    (flavour, *_) = tensorrt_api.available_flavours()[0]
    NETWORK[:] = [str(network)]
    monkeypatch.setattr(points, "find_engines", lambda: flavour)
    monkeypatch.setattr(point_child, "open_runner", lambda plan, backend: PretendedEngine(plan))
    build = points.Network._build

    def build_most(self, precision, batch, builder):
        if precision == "fp16":
            raise EngineBuildError("found float32 layers")
        return build(self, precision, batch, builder)

    monkeypatch.setattr(points.Network, "_build", build_most)
    rows = quick(network, scenes(1), precision=("tf32", "fp16", "int8"), backend=("tensorrt",))
    assert rows["tf32"].ran and rows["int8"].real
    assert rows["int8"].arithmetic == "int8, by the engine's types"
    assert rows["int8"].runner == "TensorRT 0 (a test)"
    assert rows["fp16"].reason == "found float32 layers"


# What a sweep says


def test_the_figure_names_the_runner_and_every_precision(rows):
    figure = rows.figure()
    assert {text.get_text() for axes in figure.axes for text in axes.texts} == {"int8", "fp8", "fp16", "bf16", "fp32"}
    assert "ONNX Runtime" in figure.get_suptitle()
    assert not any("TensorRT" in axes.get_xlabel() for axes in figure.axes)


def test_json_holds_every_row_and_the_advice(rows):
    content = json.loads(rows.to_json())
    assert [row["precision"] for row in content["rows"]] == [row.precision for row in rows]
    assert content["verdict"] == rows.verdict
    assert content["rows"][0]["latency_ms"] > 0 and content["rows"][2]["latency_ms"] is None
    assert content["limit"] == dataclasses.asdict(rows)["limit"] == 0.01


def test_html_is_escaped_and_holds_the_advice(rows):
    assert rows.verdict.split(";")[0] in rows._repr_html_().replace("&#x27;", "'")


# The commands


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


@pytest.fixture
def no_builder(monkeypatch):
    monkeypatch.setattr(backends, "available_flavours", lambda: ([], []))


def test_both_commands_print_the_same_figures(network, folders, tmp_path, no_builder, capsys):
    images, labels = folders
    shared = ["--precision", "fp16", "int8", "--images", images, "--labels", labels, "--max-miou-drop", "0.5"]
    tables, found = [], []
    for command in ("sweep", "verify"):
        status, out, _ = run(capsys, command, network, *shared, "--json", tmp_path / "rows.json")
        assert status == 0, out
        tables.append([line.split("  ")[0] for line in out.splitlines() if line.startswith("segmenter")])
        found.append(json.loads((tmp_path / "rows.json").read_text()))
    measured_now = {"latency_ms", "minimum_ms", "p95_ms", "images_per_s", "memory_mib", "date"}
    for one, other in zip(found[0]["rows"], found[1]["rows"], strict=True):
        assert {name: one[name] for name in set(one) - measured_now} == {
            name: other[name] for name in set(other) - measured_now
        }
        assert [one[name] is None for name in measured_now] == [other[name] is None for name in measured_now]
    assert [row["precision"] for row in found[0]["rows"]] == ["fp32", "fp16", "int8"]
    assert found[0]["rows"][0]["latency_ms"] > 0 and found[0]["rows"][1]["miou"] is not None
    assert tables[0] == tables[1]
    assert found[0]["passed"] is found[1]["passed"] is True


def test_verify_precision_judges_folders_and_writes_everything(network, folders, tmp_path, no_builder, here, capsys):
    images, labels = folders
    options = ["--images", images, "--labels", labels, "--json", tmp_path / "p.json", "--figure", tmp_path / "p.png"]
    status, out, _ = run(capsys, "verify", network, "--precision", "fp16", "int8", "--max-miou-drop", "0.5", *options)
    assert status == 0, out
    assert out.startswith("Take fp16: ")
    assert "mIoU is against the labels, and may fall by 0.5" in out
    assert json.loads((tmp_path / "p.json").read_text())["passed"]
    assert (tmp_path / "p.png").stat().st_size > 5000


def test_verify_precision_exits_1_if_too_much_is_lost(network, folders, no_builder, here, capsys):
    status, out, _ = run(
        capsys, "verify", network, "--precision", "int8", "--images", folders[0], "--max-miou-drop", "0"
    )
    assert status == 1
    assert "too much" in out
    # fp16 stands beside 8 bits even if nobody asked
    assert [line.split(", ")[2] for line in out.splitlines() if line.startswith("segmenter 16x24")] == [
        "fp32", "fp16", "int8"]  # fmt: skip


def test_verify_precision_all_runs_on_built_in_pictures(network, no_builder, here, capsys):
    status, out, _ = run(capsys, "verify", network, "--precision", "all", "--max-miou-drop", "1")
    assert status == 0
    assert "6 images" in out and "fp8" in out


def test_verify_precision_converts_what_is_no_onnx_file(network, tmp_path, no_builder, here, monkeypatch, capsys):
    calls = []
    real = lambda model, path, **options: calls.append(model) or shutil.copy(network, path)  # noqa: E731
    monkeypatch.setattr(conversion, "convert", real)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "small.keras").write_text("a model")
    kept = tmp_path / "kept"
    options = ("--precision", "fp16", "--max-miou-drop", "1", "--keep-files", kept)
    status, out, _ = run(capsys, "verify", tmp_path / "small.keras", *options)
    assert status == 0, out
    assert {"small.onnx", "small_fp16.onnx"} <= {path.name for path in kept.iterdir()}
    assert run(capsys, "sweep", tmp_path / "small.keras")[0] == 0
    assert len(calls) == 1  # the second command found it in the cache


def test_verify_precision_judges_a_network_that_fixes_its_batch(tmp_path, no_builder, here, capsys):
    fixed = save_picture_network(tmp_path / "fixed.onnx", batch=2)
    status, out, _ = run(capsys, "verify", fixed, "--precision", "fp16", "--max-miou-drop", "1")
    assert status == 0, out
    assert "fixed 16x24, batch 2, fp16" in out and "6 images" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "fp64"], "got the precision 'fp64'"),
        (["--labels", "x"], "without --precision"),
        (["other.onnx", "--precision", "fp16"], "expected one network; leave it out"),
        (["--precision", "fp16", "--images", "nowhere"], "expected a folder of images"),
        (["--precision", "fp16", "--spatial", "8", "8"], "takes pictures of 16x24, got the size 8x8"),
    ],
)
def test_verify_precision_refuses_in_one_sentence(network, capsys, words, message):
    status, _, errors = run(capsys, "verify", network, *words)
    assert status == 2
    assert message in errors and "Traceback" not in errors


def test_sweep_writes_rows_and_a_figure_and_prints_the_table(tmp_path, capsys):
    network, out = save_picture_network(tmp_path / "net.onnx"), tmp_path / "rows.jsonl"
    words = ["sweep", str(network), "-o", str(out), "--batch", "1", "2", "--size", "16x24", "--runs", "2"]
    assert cli.main([*words, "--figure", str(tmp_path / "pareto.png")]) == 0
    assert "net 16x24, batch 2, fp32, onnxruntime" in capsys.readouterr().out
    assert len(load_rows(out)) == 2
    assert (tmp_path / "pareto.png").stat().st_size > 10_000


def test_made_up_inputs_are_what_the_network_can_use(tmp_path, here):
    """A shape of zeros and ones is none that 50 rows can be brought to."""
    table = np.arange(1000, dtype=np.float32).reshape(1000, 1)
    nodes = [helper.make_node("Gather", ["table", "rows"], ["found"]),
             helper.make_node("Expand", ["found", "shape"], ["output"])]  # fmt: skip
    inputs = {"rows": ("int64", ("batch", 50)), "shape": ("int64", (3,))}
    path = save_network(tmp_path / "n.onnx", nodes, inputs, {"output": ("float32", ("batch", 50, 1))}, {"table": table})
    rows = sweep(path, precision=["fp16"], runs=1, progress=False)
    assert [row.ok for row in rows] == [True, True], [row.reason for row in rows]
    assert rows["fp16"].images == 4


def test_sweep_exits_1_when_no_point_was_measured_and_2_on_bad_input(tmp_path, capsys):
    network = save_picture_network(tmp_path / "net.onnx")
    out = ["-o", str(tmp_path / "rows.jsonl")]
    assert cli.main(["sweep", str(network), "--size", "8x8", *out]) == 1
    assert cli.main(["sweep", str(network), "--precision", "half", *out]) == 2
    assert "expected some of fp32, tf32, fp16" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["sweep", str(network), "--size", "8", *out])
    assert "such as 256x512" in capsys.readouterr().err


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("gpu_precision", BENCHMARKS / "gpu_precision.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["gpu_precision"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


def run_benchmark(benchmark, folder, files, late):
    """The loop of the benchmark on the CPU, with small networks of one output."""
    networks = [benchmark.Network("resnet50", "00", files, dict.fromkeys(benchmark.PRECISIONS, "a note"), (16, 24))]
    arguments = SimpleNamespace(largest=2, partial=folder / "rows.partial.jsonl", seconds_a_point=0.001)
    return benchmark.run_all(networks, benchmark.describe("cpu"), arguments, late), load_rows(arguments.partial)


def save_single(path, scale):
    nodes = [helper.make_node("Mul", ["input", "scale"], ["output"])]
    shape = ("float32", ("batch", 3, 16, 24))
    return save_network(path, nodes, {"input": shape}, {"output": shape}, {"scale": np.array(scale, np.float32)})


def test_the_benchmark_writes_a_row_for_each_point_and_its_error(tmp_path, benchmark):
    files = {name: save_single(tmp_path / f"{name}.onnx", scale)
             for name, scale in (("fp32", 1.0), ("tf32", 1.5), ("fp16", np.inf))}  # fmt: skip
    rows, written = run_benchmark(benchmark, tmp_path, files, lambda: False)
    assert list(written) == rows
    assert [(row.precision, row.batch) for row in rows] == [
        ("fp32", 1), ("tf32", 1), ("fp16", 1), ("fp32", 2), ("tf32", 2)]  # fmt: skip
    assert [row.relative_l2 for row in rows] == [0.0, 0.5, None, 0.0, 0.5]
    assert "answers are not finite" in rows[2].reason  # and the next batch did not try it again
    assert not any(row.recording for row in rows)  # a trial on a CPU is no recording


def test_the_benchmark_stops_in_time_and_says_what_is_missing(tmp_path, benchmark, capsys):
    calls = []
    files = dict.fromkeys(("fp32", "tf32"), save_single(tmp_path / "net.onnx", 1.0))
    rows, _ = run_benchmark(benchmark, tmp_path, files, lambda: calls.append(1) or len(calls) > 3)
    assert [(row.precision, row.ok) for row in rows] == [("fp32", True), ("tf32", True), ("fp16", False)]
    assert rows[2].reason == "a note"  # there is no file, and the note says why
    assert "the time is over: resnet50, batch 2, fp32" in capsys.readouterr().out
