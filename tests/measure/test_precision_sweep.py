"""Accuracy beside speed: what a row says about its arithmetic, what it counts, and what is advised."""

import dataclasses
import json
import os
import shutil

import ml_dtypes
import numpy as np
import onnx
import pytest
from networks import random_input
from onnx import TensorProto, helper
from onnx_networks import save_mixed_network, save_network, save_picture_network
from PIL import Image
from workbench.measure.precision_figures import pareto_rows, sweep_figure
from workbench.measure.precision_sweep import precision_sweep
from workbench.measure.precision_table import PrecisionRow, PrecisionTable

from workbench.cli import main as cli
from workbench.core.contract import RunnerInfo
from workbench.core.driver import Driver
from workbench.core.errors import BackendUnavailableError, EngineBuildError, ImageError, InputError
from workbench.engine import tensorrt_api
from workbench.measure import precision_routes
from workbench.measure.accuracy import find_classes
from workbench.measure.latency import Timing
from workbench.pictures.cityscapes import class_iou, confusion_matrix
from workbench.pictures.labels import fit_labels, load_labels, pair_labels
from workbench.precision.calibration import Calibration, calibrate
from workbench.precision.convert import convert
from workbench.precision.rounding import Arithmetic, emulate_float16, profile_types, rounded_copy
from workbench.precision.spec import Wanted
from workbench.runners.backends import open_runner
from workbench.runners.onnxruntime_runner import OnnxRuntimeRunner

SIZE, CLASSES = (16, 24), 5
LARGE = 2000.0


def save_segmenter(path, inner=1.0):
    """Three convolutions: (batch, 3, 16, 24) to logits (batch, 5, 16, 24); `inner` scales what the first gives."""
    random = np.random.default_rng(5)
    shapes = {"first": (8, 3, 3, 3), "second": (8, 8, 1, 1), "third": (CLASSES, 8, 1, 1)}
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    weights["first"], weights["second"] = weights["first"] * np.float32(inner), weights["second"] / np.float32(inner)
    nodes = [
        helper.make_node("Conv", ["input", "first"], ["features"], "encoder", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["features"], ["active"], "relu"),
        helper.make_node("Conv", ["active", "second"], ["small"], "squeeze"),
        helper.make_node("Conv", ["small", "third"], ["output"], "decoder"),
    ]
    shapes = {"output": ("float32", ("batch", CLASSES, *SIZE))}
    return save_network(path, nodes, {"input": ("float32", ("batch", 3, *SIZE))}, shapes, weights)


def scenes(count=3, scale=10.0):
    return [(f"scene {k}", {"input": random_input((1, 3, *SIZE), k, scale)}) for k in range(count)]


def answer(path, feed):
    with open_runner(path) as runner:
        return runner.infer(feed)["output"]


def truths(path, feeds):
    """The network's own classes, with every fifth row of pixels void and the left third wrong."""
    labels = {}
    for name, feed in feeds:
        found = answer(path, feed)[0].argmax(0)
        found[:, :8] = (found[:, :8] + 1) % CLASSES
        found[::5] = 255
        labels[name] = found.astype(np.uint8)
    return labels


def sweep(path, feeds=None, **options):
    options = {"plans": False, "runs": 1, "progress": False, "backend": "onnxruntime"} | options
    return precision_sweep(path, feeds, **options)


@pytest.fixture(autouse=True)
def no_process_for_memory(monkeypatch):
    """One process for each network takes a second; `table`, which is made before, has the real figures."""
    monkeypatch.setattr("workbench.measure.memory.measure_memory", lambda *arguments, **options: None)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return save_segmenter(tmp_path_factory.mktemp("sweep") / "segmenter.onnx")


@pytest.fixture(scope="module")
def table(network):
    feeds = scenes()
    return sweep(network, feeds, labels=truths(network, feeds))


def test_every_precision_is_there_and_what_cannot_run_is_named_with_the_reason(table):
    assert [row.precision for row in table.rows] == ["fp32", "tf32", "fp16", "bf16", "int8", "fp8"]
    assert not table["tf32"].ran
    assert "tf32 did not run: TF32 is arithmetic of NVIDIA GPUs" in table.to_text()


def test_a_row_that_a_cpu_simulates_says_so_and_has_neither_time_nor_memory(table):
    for precision, word in (("fp16", "rounded to float16"), ("bf16", "rounded to bfloat16"), ("fp8", "float8")):
        row = table[precision]
        assert not row.real, row
        assert word in row.arithmetic
        assert row.timing is None and row.memory_bytes is None
    assert table["fp32"].real
    assert table["fp32"].timing.n == 1
    assert "This machine does not compute in fp16" in table.to_text()


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="only Linux tells the peak of a process")
def test_memory_is_that_of_the_network_and_not_of_this_process(table, tmp_path):
    weights = {"w": np.ones((1, 10_000_000), np.float32)}  # 40 MB
    node = helper.make_node("Add", ["x", "w"], ["output"])
    ends = {"x": ("float32", (1, 1))}, {"output": ("float32", (1, 10_000_000))}
    path = save_network(tmp_path / "large.onnx", [node], *ends, weights)
    from workbench.measure.memory import measure_memory

    grown = measure_memory(path, {"x": np.ones((1, 1), np.float32)})
    assert 80e6 < grown < 600e6  # weights and answer at least; copies of the file while it is read
    assert table["fp32"].memory_bytes < 100e6


def test_scores_are_the_mean_iou_of_answers_that_numpy_rounds_node_by_node(network, table, tmp_path):
    convert(network, tmp_path / "half.onnx", Wanted("fp16"))
    feeds = scenes()
    labels = truths(network, feeds)
    found = {name: emulate_float16(tmp_path / "half.onnx", feed).outputs["output"][0].argmax(0) for name, feed in feeds}
    exact = {name: answer(network, feed)[0].argmax(0) for name, feed in feeds}

    def miou(answers):  # by hand: true positives over the union, void left out
        scores = []
        for k in range(CLASSES):
            sets = [(labels[n] == k, (a == k) & (labels[n] != 255)) for n, a in answers.items()]
            scores.append(sum((t & p).sum() for t, p in sets) / sum((t | p).sum() for t, p in sets))
        return np.mean(scores)

    assert table.measure == "mIoU"
    assert table["fp32"].score == pytest.approx(miou(exact), abs=1e-12)
    assert table["fp16"].score == pytest.approx(miou(found), abs=1e-12)
    assert table["fp16"].loss == pytest.approx(miou(exact) - miou(found), abs=1e-12)


def test_errors_have_the_size_of_each_format(table):
    """Half a step of rounding, relative to the value: 2^-11 float16, 2^-8 bfloat16, 2^-4 float8; int8 1/254 of the
    range, and more of the few values that entropy cuts off. Few roundings add up in three layers."""
    limits = {"fp16": 2**-11, "bf16": 2**-8, "int8": 1 / 40, "fp8": 2**-4}
    errors = {precision: table[precision].error for precision in limits}
    for precision, limit in limits.items():
        assert limit / 30 < errors[precision] < 3 * limit, errors
    assert errors["fp16"] < errors["bf16"] < errors["fp8"]


def test_fp16_stands_beside_8_bits_even_if_nobody_asked(network):
    table = sweep(network, scenes(), precisions=("int8",))
    assert [row.precision for row in table.rows] == ["fp32", "fp16", "int8"]
    assert table["int8"].qdq_pairs == 6  # three activations, three weights
    assert any("the very images that are judged" in note for note in table.notes)


def test_what_overflows_is_kept_in_float32_and_named(tmp_path):
    path = save_segmenter(tmp_path / "large.onnx", LARGE)
    table = sweep(path, scenes(scale=30.0), precisions=("fp16",))
    assert {name for name, *_ in table["fp16"].kept} == {"encoder", "relu", "squeeze"}
    assert table["fp16"].error < 2**-9
    assert table.passed
    assert "fp16 keeps 3 nodes in float32: encoder" in table.to_text()


def overflowing(folder):
    """A float16 file with an intermediate of more than 65504, its source, and a feed."""
    path = save_segmenter(folder / "large.onnx", LARGE)
    half = folder / "half.onnx"
    convert(path, half, Wanted("fp16"))
    return path, half, scenes(1, 30.0)[0][1]


def test_a_cpu_hides_an_overflow_that_the_rounded_copy_shows(tmp_path):
    path, half, feed = overflowing(tmp_path)
    exact = answer(path, feed)
    assert np.abs(answer(half, feed) - exact).max() < 0.01 * np.ptp(exact)  # computed in float32: nothing to see
    shown = answer(rounded_copy(half, tmp_path / "rounded.onnx"), feed)
    assert not np.isfinite(shown).all()


def test_a_network_that_overflows_fails_with_the_count_of_bad_answers(tmp_path, monkeypatch):
    path, _, _ = overflowing(tmp_path)
    monkeypatch.setattr("workbench.precision.ranges.measure_ranges", lambda *arguments, **options: None)
    table = sweep(path, scenes(scale=30.0), precisions=("fp16",))
    row = table["fp16"]
    assert row.broken and not table.passed
    assert table.advice.startswith("Stay with fp32: fp16 answers ")
    assert "NaN or infinite values" in table.advice
    assert "too much" in table.to_text()
    json.loads(table.to_json())  # infinite errors do not break it


@pytest.mark.parametrize("inner", [1.0, LARGE])
def test_the_rounded_copy_answers_as_numpy_that_rounds_node_by_node(tmp_path, inner):
    path, half = save_segmenter(tmp_path / "network.onnx", inner), tmp_path / "half.onnx"
    convert(path, half, Wanted("fp16"))
    _, feed = scenes(1, 30.0)[0]
    fast = answer(rounded_copy(half, tmp_path / "rounded.onnx"), feed)
    slow = emulate_float16(half, feed).outputs["output"]
    np.testing.assert_array_equal(np.isfinite(fast), np.isfinite(slow))
    good = np.isfinite(slow)
    # a sum in another order may fall on the other side of a rounding: one step of float16, 2^-10 of the value
    np.testing.assert_allclose(fast[good], slow[good], rtol=2**-10, atol=2**-10 * np.abs(slow[good]).max(initial=1))


def test_the_rounded_copy_reaches_the_bodies_of_a_branch(tmp_path):
    def body(name, value):
        constant = onnx.numpy_helper.from_array(np.float16([value]), "k")
        nodes = [
            helper.make_node("Constant", [], [f"{name}_k"], value=constant),
            helper.make_node("Mul", ["half", f"{name}_k"], [f"{name}_out"]),
        ]
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT16, ["n"])
        return helper.make_graph(nodes, name, [], [out])

    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("If", ["yes"], ["chosen"], then_branch=body("a", 300.0), else_branch=body("b", 1.0)),
        helper.make_node("Cast", ["chosen"], ["output"], to=TensorProto.FLOAT),
    ]
    ends = {"x": ("float32", ("n",)), "yes": ("bool", ())}, {"output": ("float32", ("n",))}
    path = save_network(tmp_path / "branch.onnx", nodes, *ends)
    x = np.float32([1.0001, 250.0])
    shown = answer(rounded_copy(path, tmp_path / "rounded.onnx"), {"x": x, "yes": np.array(True)})
    assert shown.tolist() == [300.0, np.inf]  # 1.0001 rounds to 1; 75,000 is beyond float16


def test_float8_is_simulated_as_its_numpy_type_rounds(tmp_path):
    """One product between pairs: activations by one scale, weights by one for each column."""
    weights = random_input((6, 4), 1)
    node = helper.make_node("MatMul", ["input", "w"], ["output"], "product")
    ends = {"input": ("float32", ("batch", 6))}, {"output": ("float32", ("batch", 4))}
    path = save_network(tmp_path / "product.onnx", [node], *ends, {"w": weights})
    x = random_input((3, 6), 2)
    convert(path, tmp_path / "f8.onnx", Wanted("fp8", calibration=calibrate(path, [{"input": x}], progress=False)))
    shown = answer(rounded_copy(tmp_path / "f8.onnx", tmp_path / "rounded.onnx"), {"input": x})

    def rounded(array, axis=None):
        scale = np.abs(array).max(axis, keepdims=True) / 448
        return (array / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale

    candidates = [rounded(x) @ rounded(weights, axis) for axis in (0, None)]
    nearest = min(np.abs(shown - expected).max() for expected in candidates)
    # a scale that differs in its last bit moves few values to the next step, of 2^-3 of their size
    assert nearest < 0.02 * np.ptp(shown)
    assert 0.001 < np.abs(shown - x @ weights).max() < 0.5


def test_a_profile_tells_int8_kernels_from_a_simulation(tmp_path):
    ends = {"x": ("int8", (2, 4))}, {"output": ("int8", (2, 3))}
    constants = {"w": np.ones((4, 3), np.int8), "s": np.float32(0.1), "z": np.int8(0)}
    node = helper.make_node("QLinearMatMul", ["x", "s", "z", "w", "s", "z", "s", "z"], ["output"])
    path = save_network(tmp_path / "int8.onnx", [node], *ends, constants)
    found = profile_types(path, {"x": np.ones((2, 4), np.int8)})
    assert found.types == {"int8": 1} and found.is_mostly("int8")
    assert found.to_text("int8") == "int8"


def test_a_row_is_real_only_if_most_heavy_layers_are():
    assert not Arithmetic({"int8": 1, "float32": 20}).is_mostly("int8")
    assert not Arithmetic({"int8": 1, "float32": 1}).is_mostly("int8")
    assert Arithmetic({"float8_e4m3fn": 2, "float32": 1}).is_mostly("float8")
    assert not Arithmetic({"float32": 3}).is_mostly("float16")


def test_int8_kernels_make_a_row_real_and_give_it_a_time(network, monkeypatch):
    monkeypatch.setattr("workbench.precision.rounding.profile_types", lambda *a, **k: Arithmetic({"int8": 2}))
    table = sweep(network, scenes(1), precisions=("int8",))
    assert table["int8"].real and table["int8"].timing is not None
    assert not table["fp16"].real  # the same profile shows no float16


def test_without_labels_the_share_of_equal_pixels_is_judged(network):
    feeds = scenes(2)
    table = sweep(network, feeds, precisions=("int8",), max_miou_drop=1e-6)
    row = table["int8"]
    assert (table.measure, table.against) == ("pixel agreement", "fp32")
    assert row.score == pytest.approx(np.mean([share for _, share in row.worst]))
    assert row.worst[0][1] <= row.worst[-1][1]
    assert 0 < row.loss < 0.1
    assert not table.within_limit(row) and not table.passed


def test_a_classifier_is_judged_by_its_top_1(tmp_path):
    path = save_picture_network(tmp_path / "classes.onnx")
    feeds = [(f"p{k}", {"input": random_input((1, 3, 16, 24), k)}) for k in range(8)]
    exact = {name: int(answer(path, feed)[0].argmax()) for name, feed in feeds}
    labels = exact | {"p0": (exact["p0"] + 1) % 5}
    table = sweep(path, feeds, labels=labels, precisions=("fp16",))
    assert (table.measure, table["fp32"].score) == ("top-1 accuracy", 7 / 8)
    table = sweep(path, feeds, precisions=("fp16",))
    assert (table.measure, table["fp32"].score) == ("top-1 agreement", 1.0)


def test_answers_without_classes_are_judged_by_their_error(tmp_path):
    node = helper.make_node("Gemm", ["input", "w"], ["output"])
    ends = {"input": ("float32", (6, 6))}, {"output": ("float32", (6, 6))}
    path = save_network(tmp_path / "gemm.onnx", [node], *ends, {"w": random_input((6, 6))})
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Reshape", ["output", "shape"], ["values"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.int64([36]), "shape"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("values", TensorProto.FLOAT, [36]))
    onnx.save(model, path)
    table = sweep(path, precisions=("bf16",))
    assert table.measure == "1 - relative L2"
    assert table["bf16"].loss == pytest.approx(table["bf16"].relative_l2)
    assert 2**-12 < table["bf16"].loss < 2**-6


def test_classes_are_found_in_every_layout():
    maps = np.zeros((1, 20, 4, 30), np.float32)
    maps[0, 19] = 1
    found, scored = find_classes(maps)
    assert (found == 19).all() and scored == 19  # the twentieth channel is void
    found, scored = find_classes(np.float32([[[[1.0, -1.0]]]]))
    assert found.tolist() == [[1, 0]] and scored == 2
    assert find_classes(np.zeros((2, 3, 4), np.float32)) is None
    assert find_classes(np.full((1, 2, 3), 7, np.uint8))[0].shape == (2, 3)


# what must be refused


def save_picture(path, array):
    Image.fromarray(array).save(path)


@pytest.fixture
def folders(tmp_path):
    """Three pictures and their label maps."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    random = np.random.default_rng(0)
    for k in range(3):
        save_picture(images / f"{k}.jpg", random.integers(0, 256, (*SIZE, 3), np.uint8))
        save_picture(labels / f"{k}.png", random.integers(0, CLASSES, SIZE).astype(np.uint8))
    return images, labels


def test_folders_of_images_and_labels_are_paired_by_name(network, folders):
    images, labels = folders
    table = sweep(network, images=images, labels=labels, precisions=("int8",))
    assert (table.images, table.measure) == (3, "mIoU")
    assert {name for name, _ in table["int8"].worst} == {"0.jpg", "1.jpg", "2.jpg"}


def test_an_image_without_its_label_is_an_error(network, folders):
    images, labels = folders
    (labels / "1.png").unlink()
    with pytest.raises(InputError, match=r"no labels for 1\.jpg; give both folders the same names"):
        sweep(network, images=images, labels=labels)


def test_a_label_without_its_image_is_an_error(network, folders):
    images, labels = folders
    (images / "2.jpg").unlink()
    with pytest.raises(InputError, match=r"no image for 2\.png"):
        sweep(network, images=images, labels=labels)


def test_labels_by_name_must_be_those_of_the_feeds(network):
    feeds = scenes(2)
    labels = truths(network, feeds)
    with pytest.raises(InputError, match="an image without its label: 'scene 2'"):
        sweep(network, scenes(3), labels=labels)
    with pytest.raises(InputError, match="a label without its image: 'scene 1'"):
        sweep(network, scenes(1), labels=labels)
    with pytest.raises(InputError, match="got several feeds called scene 0"):
        sweep(network, scenes(1) + scenes(1), labels=labels)
    with pytest.raises(InputError, match="got one number as the label of scene 0, expected a label map"):
        sweep(network, scenes(1), labels={"scene 0": 3})


def test_two_files_for_one_image_are_an_error(folders):
    images, labels = folders
    save_picture(images / "0.png", np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(InputError, match="has both"):
        pair_labels(sorted(path.name for path in images.iterdir()), labels)


def test_cityscapes_names_and_ids_are_understood(tmp_path):
    save_picture(tmp_path / "ulm_0_1_gtFine_labelIds.png", np.uint8([[7, 26], [0, 7]]))
    save_picture(tmp_path / "ulm_0_1_gtFine_color.png", np.zeros((2, 2, 3), np.uint8))
    found = pair_labels(["ulm_0_1_leftImg8bit.png"], tmp_path)
    labels = load_labels(found["ulm_0_1_leftImg8bit.png"])
    assert labels.tolist() == [[0, 13], [255, 0]]
    assert fit_labels(labels, (4, 4))[0].tolist() == [0, 0, 13, 13]


def test_a_label_that_is_a_coloured_picture_is_refused(tmp_path):
    save_picture(tmp_path / "x.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ImageError, match="mode RGB, expected one channel"):
        load_labels(tmp_path / "x.png")
    (tmp_path / "y.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="not a label map that can be read"):
        load_labels(tmp_path / "y.png")


def test_calibration_images_of_one_colour_are_refused(network, tmp_path):
    save_picture(tmp_path / "grey.png", np.full((*SIZE, 3), 100, np.uint8))
    with pytest.raises(InputError, match="of one colour"):
        sweep(network, images=tmp_path, precisions=("int8",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precisions": ("fp12",)}, "got the precision 'fp12', expected some of fp32"),
        ({"precisions": "fp16"}, r"expected a list such as \['fp16'\]"),
        ({"max_miou_drop": 1.5}, "expected a share of 0 to 1"),
        ({"runs": 0}, "got runs=0"),
        ({"feeds": []}, "got no feed to judge on"),
        ({"feeds": scenes(1), "images": "."}, "got feeds and images"),
        ({"backend": "cuda"}, "got backend='cuda'"),
        ({"calibration": "nowhere.json"}, "is not a calibration"),
    ],
)
def test_a_wrong_argument_is_one_sentence(network, options, message):
    with pytest.raises(InputError, match=message):
        sweep(network, options.pop("feeds", scenes(1)), **options)


def test_a_network_that_is_not_float32_or_not_onnx_is_refused(network, tmp_path):
    convert(network, tmp_path / "half.onnx", Wanted("fp16"))
    with pytest.raises(InputError, match="in fp16 already, expected float32"):
        sweep(tmp_path / "half.onnx", scenes(1))
    quantised = Wanted("int8", calibration=calibrate(network, scenes(1), progress=False))
    convert(network, tmp_path / "int8.onnx", quantised)
    with pytest.raises(InputError, match="in int8 already"):
        sweep(tmp_path / "int8.onnx", scenes(1))
    with pytest.raises(InputError, match="run workbench convert first"):
        sweep("model.keras", scenes(1))


def test_a_calibration_of_another_network_is_refused(network, tmp_path):
    other = save_segmenter(tmp_path / "other.onnx", 2.0)
    saved = calibrate(other, scenes(1), progress=False).save(tmp_path / "c.json")
    with pytest.raises(InputError, match="calibrate this network again"):
        sweep(network, scenes(1), precisions=("int8",), calibration=saved)


def test_a_calibration_file_is_used_and_no_note_says_otherwise(network, tmp_path):
    saved = calibrate(network, scenes(2), method="minmax", progress=False).save(tmp_path / "c.json")
    table = sweep(network, scenes(1), precisions=("int8",), calibration=saved)
    assert table["int8"].ran
    assert not any("very images" in note for note in table.notes)
    assert Calibration.load(saved).method == "minmax"


def test_a_precision_that_nothing_can_be_converted_to_is_skipped_with_the_reason(tmp_path):
    path = save_mixed_network(tmp_path / "mixed.onnx")
    model = onnx.load(path)
    del model.graph.node[1], model.graph.output[1]  # the float16 output
    onnx.save(model, path)
    table = sweep(path, precisions=("int8",))
    assert "nothing to quantise" in table["int8"].skipped
    assert "int8 did not run: " in table.to_text()


# engines


@pytest.fixture
def builder(monkeypatch, tmp_path):
    """A real builder; CI names it as one it must test."""
    if not tensorrt_api.available_flavours()[0] and "CI" not in os.environ:
        pytest.skip("no TensorRT that can build is installed; a must in CI only")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


def test_plans_are_built_for_their_size_and_the_table_names_the_builder(network, builder):
    table = sweep(network, scenes(1), precisions=("int8",), plans=True)
    assert "plan, TensorRT-RTX" in table.to_text()
    assert all(row.plan_bytes > 1000 for row in table.rows), table.to_text()


def test_a_plan_that_cannot_be_built_is_named_and_the_row_stays(network, builder, monkeypatch):
    def refuse(self, path, precision, kept):
        raise EngineBuildError("the builder refused")

    monkeypatch.setattr(precision_routes.Route, "build", refuse)
    table = sweep(network, scenes(1), precisions=("fp16",), plans=True)
    assert table["fp16"].ran and table["fp16"].plan_bytes is None
    assert "fp16 has no plan: the builder refused." in table.to_text()
    assert table.planner == ""


def test_tensorrt_by_name_is_refused_where_none_runs(network, monkeypatch):
    monkeypatch.setattr(precision_routes, "probe_driver", lambda: Driver(None, (), "no NVIDIA driver"))
    with pytest.raises(BackendUnavailableError, match="no NVIDIA driver"):
        sweep(network, scenes(1), backend="tensorrt")


class PretendedEngine(OnnxRuntimeRunner):
    """Stands for an engine on a GPU; it computes the ONNX file, and its name says TensorRT for this test only."""

    def __init__(self, path):
        super().__init__(path)
        self.info = RunnerInfo("tensorrt", "0", "a test")


def test_where_engines_run_they_are_judged_and_what_does_not_build_did_not_run(network, builder, monkeypatch):
    (flavour, *_) = tensorrt_api.available_flavours()[0]
    route = precision_routes.Route(True, "cpu", flavour)
    monkeypatch.setattr("workbench.measure.precision_routes.choose_route", lambda backend: route)
    monkeypatch.setattr(precision_routes.Route, "open", lambda self, path, plan, tf32: PretendedEngine(path))
    build = precision_routes.Route.build

    def build_most(self, path, precision, kept):
        if precision == "fp16":
            raise EngineBuildError("found float32 layers")
        return build(self, path, precision, kept)

    monkeypatch.setattr(precision_routes.Route, "build", build_most)
    table = sweep(network, scenes(1), precisions=("tf32", "fp16", "int8"))
    assert table["tf32"].ran and table["int8"].real
    assert table["int8"].arithmetic == "int8, by the engine's types"
    assert table["int8"].computed_by == "TensorRT 0 (a test)"
    assert table["fp16"].skipped == "found float32 layers"


# advice


def made_table(**rows):
    """A table of made-up rows: precision to (loss, milliseconds or None, plan bytes)."""
    made = [PrecisionRow("fp32", real=True, score=0.8, timing=Timing("a", (10.0,)), plan_bytes=100, file_bytes=100)]
    for precision, (loss, ms, size) in rows.items():
        timing = None if ms is None else Timing("a", (ms,))
        made.append(
            PrecisionRow(
                precision,
                computed_by="ONNX Runtime 1 (CPU)",
                real=ms is not None,
                score=0.8 - loss,
                loss=loss,
                timing=timing,
                plan_bytes=size,
                file_bytes=100,
            )
        )
    return PrecisionTable("n.onnx", tuple(made), "mIoU", "the labels", 0.01, 9, "", (), {"processor": "p"}, {}, "d")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"fp16": (0.001, 5.0, 50), "int8": (0.002, 4.0, 30)}, "Take int8: it is 2.5 times as fast as fp32 (4.00 ag"),
        ({"fp16": (0.001, 5.0, 50), "int8": (0.002, 4.0, 30)}, "; fp16 takes 5.00 ms."),
        ({"fp16": (0.001, 5.0, 50), "int8": (0.002, 7.0, 30)}, "Take fp16: it is 2.0 times as fast as fp32"),
        ({"fp16": (0.001, 5.0, 50), "int8": (0.002, 7.0, 30)}, "int8 is slower than fp16 here (7.00 against 5.00 ms)"),
        ({"fp16": (0.001, 5.0, 50), "int8": (0.002, 4.9, 30)}, "Take fp16"),  # no faster than the noise
        ({"fp16": (0.001, 9.9, 50)}, "Stay with fp32 on this machine: fp16 takes 9.90 against 10.0 ms."),
        ({"fp16": (0.0, 5.0, 50), "int8": (0.03, 2.0, 30)}, "; not int8: it loses 0.0300 of mIoU (0.01 allowed)."),
        ({"fp16": (0.0, None, 50), "int8": (0.002, 4.0, 30)}, "has no float16 arithmetic, so compare it with fp16"),
        ({"fp16": (0.0, None, 50)}, "Take fp16: mIoU stays at 0.8000, and its plan takes 50 % of fp32's; how fast"),
        ({"fp16": (0.02, 5.0, 50), "int8": (0.03, 2.0, 30)}, "Stay with fp32: fp16 loses 0.0200 of mIoU (0.01 allowed"),
        ({}, "Nothing to advise: no precision but fp32 ran here."),
    ],
)
def test_advice_takes_the_fastest_that_keeps_its_answers_and_says_why(rows, said):
    advice = made_table(**rows).advice
    assert said in advice
    assert advice.count(". ") == 0 and advice.endswith(".")  # one sentence


def test_a_table_passes_only_if_something_was_judged_and_all_of_it_is_within_the_limit():
    assert not made_table().passed
    assert made_table(fp16=(0.01, 5.0, 50)).passed
    assert not made_table(fp16=(0.0, 5.0, 50), int8=(0.011, 5.0, 50)).passed


def test_the_front_is_what_nothing_beats_in_both():
    table = made_table(fp16=(0.0, 5.0, 50), bf16=(0.004, 6.0, 60), int8=(0.003, 4.0, 30))
    front = pareto_rows(table, lambda row: row.plan_bytes)
    assert [row.precision for row in front] == ["int8", "fp16"]  # fp32 and bf16 are larger and no better


def test_the_figure_names_the_runner_and_every_precision(table):
    texts = [text.get_text() for axes in sweep_figure(table).axes for text in axes.texts]
    assert {*texts} == {"int8", "fp8", "fp16", "bf16", "fp32"}
    figure = sweep_figure(table)
    assert "ONNX Runtime" in figure.get_suptitle()
    assert not any("TensorRT" in axes.get_xlabel() for axes in figure.axes)
    with pytest.raises(InputError, match="only the reference ran"):
        sweep_figure(made_table())


def test_json_holds_every_row_and_the_advice(table):
    content = json.loads(table.to_json())
    assert [row["precision"] for row in content["rows"]] == [row.precision for row in table.rows]
    assert content["advice"] == table.advice
    assert content["rows"][0]["median_ms"] > 0 and content["rows"][2]["median_ms"] is None
    assert dataclasses.asdict(table)["limit"] == 0.01


def test_html_is_escaped_and_holds_the_advice(table):
    assert table.advice.split(";")[0] in table._repr_html_().replace("&#x27;", "'")
    with pytest.raises(KeyError):
        table["fp64"]


# the command


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


@pytest.fixture
def no_builder(monkeypatch):
    monkeypatch.setattr(precision_routes, "available_flavours", lambda: ([], []))


def test_verify_precision_judges_folders_and_writes_everything(network, folders, tmp_path, no_builder, capsys):
    images, labels = folders
    options = ["--images", images, "--labels", labels, "--json", tmp_path / "p.json", "--figure", tmp_path / "p.png"]
    status, out, _ = run(capsys, "verify", network, "--precision", "fp16,int8", "--max-miou-drop", "0.5", *options)
    assert status == 0, out
    assert out.startswith("Take fp16: ")
    assert "mIoU is against the labels, and may fall by 0.5" in out
    assert json.loads((tmp_path / "p.json").read_text())["passed"]
    assert (tmp_path / "p.png").stat().st_size > 5000


def test_verify_precision_exits_1_if_too_much_is_lost(network, folders, no_builder, capsys):
    status, out, _ = run(
        capsys, "verify", network, "--precision", "int8", "--images", folders[0], "--max-miou-drop", "0"
    )
    assert status == 1
    assert "too much" in out


def test_verify_precision_all_runs_on_built_in_pictures(network, no_builder, capsys):
    status, out, _ = run(capsys, "verify", network, "--precision", "all", "--max-miou-drop", "1")
    assert status == 0
    assert "6 images" in out and "fp8" in out


def test_verify_precision_converts_what_is_no_onnx_file(network, tmp_path, no_builder, monkeypatch, capsys):
    monkeypatch.setattr("workbench.export.conversion.convert", lambda model, path, spatial: shutil.copy(network, path))
    kept = tmp_path / "kept"
    options = ("--precision", "fp16", "--max-miou-drop", "1", "--keep", kept)
    status, out, _ = run(capsys, "verify", tmp_path / "small.keras", *options)
    assert status == 0, out
    assert {"small.onnx", "small_fp16.onnx"} <= {path.name for path in kept.iterdir()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--precision", "fp64"], "got the precision 'fp64'"),
        (["--labels", "x"], "without --precision"),
        (["other.onnx", "--precision", "fp16"], "expected one network; leave it out"),
        (["--precision", "fp16", "--images", "nowhere"], "expected a folder of images"),
    ],
)
def test_verify_precision_refuses_in_one_sentence(network, capsys, words, message):
    status, _, errors = run(capsys, "verify", network, *words)
    assert status == 2
    assert message in errors and "Traceback" not in errors


def test_the_scores_of_a_void_channel_are_those_of_the_other_classes():
    """A network with Cityscapes' twentieth channel: what it calls void is wrong, and no class of its own."""
    truth, found = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.int64)
    found[0] = 19
    assert np.nanmean(class_iou(confusion_matrix(truth, found, 19))) == pytest.approx(12 / 16)
