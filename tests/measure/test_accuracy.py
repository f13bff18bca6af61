"""What a sweep is judged on, how answers are scored, and what a precision that is simulated answers."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from networks import random_input
from onnx import TensorProto, helper
from onnx_networks import save_network, save_picture_network
from sweep_checks import (
    CLASSES,
    LARGE,
    SIZE,
    answer,
    quick,
    run_here,
    save_folders,
    save_picture,
    save_segmenter,
    scenes,
    truths,
)

import workbench.measure.sweep as engine
from workbench.core.compare import compare_batches
from workbench.core.errors import ImageError, InputError
from workbench.measure.accuracy import Accuracy, find_classes, gather
from workbench.pictures.cityscapes import class_iou, confusion_matrix
from workbench.pictures.labels import fit_labels, load_labels, pair_labels
from workbench.precision.calibration import calibrate
from workbench.precision.convert import to_precision
from workbench.precision.rounding import KernelTypes, emulate_float16, profile_types, rounded_copy
from workbench.precision.spec import PrecisionSpec


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(engine, "run_child", run_here)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return save_segmenter(tmp_path_factory.mktemp("accuracy") / "segmenter.onnx")


@pytest.fixture(scope="module")
def rows(network):
    feeds = scenes()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine, "run_child", run_here)
        return quick(network, feeds, labels=truths(network, feeds))


@pytest.fixture
def folders(tmp_path):
    return save_folders(tmp_path)


def overflowing(folder):
    """A float16 file with an intermediate of more than 65504, its source, and a feed."""
    path = save_segmenter(folder / "large.onnx", LARGE)
    half = folder / "half.onnx"
    to_precision(path, half, PrecisionSpec("fp16"))
    return path, half, scenes(1, 30.0)[0][1]


def test_classes_are_found_in_every_layout():
    maps = np.zeros((1, 20, 4, 30), np.float32)
    maps[0, 19] = 1
    found, scored = find_classes(maps)
    assert (found == 19).all() and scored == 19  # the twentieth channel is void
    picture = np.random.default_rng(0).random((2, 24, 30, 3))  # channels last
    found, scored = find_classes(picture)
    assert (found == picture[0].argmax(2)).all() and scored == 3
    assert (find_classes(picture.transpose(0, 3, 1, 2))[0] == found).all()
    found, scored = find_classes(np.float32([[0.1, 0.7, 0.2], [0.9, 0.0, 0.1]]))
    assert (found.tolist(), scored) == (1, 3)  # of the first picture
    found, scored = find_classes(np.float32([[[[0.3, -0.3]]]]))
    assert found.tolist() == [[1, 0]] and scored == 2
    assert find_classes(np.zeros((2, 3, 4), np.float32)) is None
    assert find_classes(np.full((1, 2, 3), 7, np.uint8))[0].shape == (2, 3)


def scores(*best):
    """Logits of a batch of one with the largest at a class, for each picture."""
    return [{"y": np.eye(3, dtype=np.float32)[[number]]} for number in best]


def judged(references, candidates, truths):
    """Columns of pictures `a`, `b` and so on."""
    accuracy = Accuracy()
    for name, one, other, truth in zip("abcdef", references, candidates, truths, strict=False):
        accuracy.add(name, one, other, truth)
    return accuracy.columns(
        compare_batches(zip(references, candidates, strict=True), reference_name="r", candidate_name="c")
    )


def test_accuracy_is_over_the_pictures_with_a_truth_and_its_change_is_that_from_float32():
    columns = judged(scores(0, 1, 2, 2, 0), scores(0, 2, 2, 1, 0), [0, 1, 0, 1, None])
    assert (columns["accuracy"], columns["accuracy_change"]) == (2 / 4, 2 / 4 - 2 / 4)
    columns = judged(scores(0, 1, 2, 2, 0), scores(0, 2, 1, 1, 0), [0, 1, 2, 2, None])
    assert (columns["accuracy"], columns["accuracy_change"]) == (1 / 4, 1 / 4 - 4 / 4)
    assert (columns["top1_agreement"], columns["agreement_of"], columns["images"]) == (2 / 5, "pictures", 5)
    assert columns["worst"] == [("b", 0.0), ("c", 0.0), ("d", 0.0), ("a", 1.0), ("e", 1.0)]


def test_only_what_the_candidate_answers_without_end_makes_a_row_fail():
    reference, candidate = scores(0, 1), scores(0, 1)
    reference[0]["y"][0, 2] = np.nan
    assert "status" not in judged(reference, candidate, [None, None])
    candidate[1]["y"][0, 2] = np.inf
    columns = judged(reference, candidate, [None, None])
    assert (columns["nan"], columns["inf"], columns["status"]) == (0, 1, "failed")
    assert columns["reason"] == "1 of 6 answers are NaN or infinite"
    assert columns["max_error_of_range"] is None


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
    with pytest.raises(ImageError, match="is not an image that"):
        load_labels(tmp_path / "y.png")


def test_the_scores_of_a_void_channel_are_those_of_the_other_classes():
    """A network with Cityscapes' twentieth channel: what it calls void is wrong, and no class of its own."""
    truth, found = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.int64)
    found[0] = 19
    assert np.nanmean(class_iou(confusion_matrix(truth, found, 19))) == pytest.approx(12 / 16)


def test_a_cpu_hides_an_overflow_that_the_rounded_copy_shows(tmp_path):
    path, half, feed = overflowing(tmp_path)
    exact = answer(path, feed)
    assert np.abs(answer(half, feed) - exact).max() < 0.01 * np.ptp(exact)  # computed in float32: nothing to see
    shown = answer(rounded_copy(half, tmp_path / "rounded.onnx"), feed)
    assert not np.isfinite(shown).all()


@pytest.mark.parametrize("inner", [1.0, LARGE])
def test_the_rounded_copy_answers_as_numpy_that_rounds_node_by_node(tmp_path, inner):
    path, half = save_segmenter(tmp_path / "network.onnx", inner), tmp_path / "half.onnx"
    to_precision(path, half, PrecisionSpec("fp16"))
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
    to_precision(
        path, tmp_path / "f8.onnx", PrecisionSpec("fp8", calibration=calibrate(path, [{"input": x}], progress=False))
    )
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
    assert not KernelTypes({"int8": 1, "float32": 20}).is_mostly("int8")
    assert not KernelTypes({"int8": 1, "float32": 1}).is_mostly("int8")
    assert KernelTypes({"float8_e4m3fn": 2, "float32": 1}).is_mostly("float8")
    assert not KernelTypes({"float32": 3}).is_mostly("float16")


def test_scores_are_the_mean_iou_of_answers_that_numpy_rounds_node_by_node(network, rows, tmp_path):
    to_precision(network, tmp_path / "half.onnx", PrecisionSpec("fp16"))
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

    assert rows["fp16"].measure == "mIoU"
    assert rows["fp16"].miou_change == rows["fp16"].miou - rows["fp32"].miou
    assert rows["fp32"].score == pytest.approx(miou(exact), abs=1e-12)
    assert rows["fp16"].score == pytest.approx(miou(found), abs=1e-12)
    assert rows["fp16"].loss == pytest.approx(miou(exact) - miou(found), abs=1e-12)


def test_errors_have_the_size_of_each_format(rows):
    """Half a step of rounding, relative to the value: 2^-11 float16, 2^-8 bfloat16, 2^-4 float8; int8 1/254 of the
    range, and more of the few values that entropy cuts off. Few roundings add up in three layers."""
    limits = {"fp16": 2**-11, "bf16": 2**-8, "int8": 1 / 40, "fp8": 2**-4}
    errors = {precision: rows[precision].max_error_of_range for precision in limits}
    for precision, limit in limits.items():
        assert limit / 30 < errors[precision] < 3 * limit, errors
    assert errors["fp16"] < errors["bf16"] < errors["fp8"]


def test_without_labels_the_share_of_equal_pixels_is_judged(network):
    feeds = scenes(2)
    rows = quick(network, feeds, precision=("int8",), limit=1e-6)
    row = rows["int8"]
    assert (row.measure, row.agreement_of) == ("pixel agreement", "pixels")
    assert row.against == f"float32, {rows[0].runner}"
    assert row.score == row.top1_agreement == pytest.approx(np.mean([share for _, share in row.worst]))
    assert row.worst[0][1] <= row.worst[-1][1]
    assert 0 < row.loss < 0.1
    assert not rows.within_limit(row) and not rows.passed


def test_a_classifier_is_judged_by_its_top_1(tmp_path):
    path = save_picture_network(tmp_path / "classes.onnx")
    feeds = [(f"p{k}", {"input": random_input((1, 3, 16, 24), k)}) for k in range(8)]
    exact = {name: int(answer(path, feed)[0].argmax()) for name, feed in feeds}
    labels = exact | {"p0": (exact["p0"] + 1) % 5}
    rows = quick(path, feeds, labels=labels, precision=("fp16",))
    assert (rows[0].measure, rows["fp32"].score) == ("top-1 accuracy", 7 / 8)
    assert (rows["fp16"].accuracy, rows["fp16"].accuracy_change) == (7 / 8, 0)
    rows = quick(path, feeds, precision=("fp16",))
    assert (rows[0].measure, rows["fp32"].score) == ("top-1 agreement", 1.0)
    assert rows[0].agreement_of == "pictures"


def test_answers_without_classes_are_judged_by_their_error(tmp_path):
    node = helper.make_node("Gemm", ["input", "w"], ["output"])
    ends = {"input": ("float32", (6, 6))}, {"output": ("float32", (6, 6))}
    path = save_network(tmp_path / "gemm.onnx", [node], *ends, {"w": random_input((6, 6))})
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Reshape", ["output", "shape"], ["values"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.int64([36]), "shape"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("values", TensorProto.FLOAT, [36]))
    onnx.save(model, path)
    rows = quick(path, batch=(None,), precision=("bf16",))
    assert rows["bf16"].measure == "1 - relative L2"
    assert rows["bf16"].loss == pytest.approx(rows["bf16"].relative_l2)
    assert 2**-12 < rows["bf16"].loss < 2**-6


def test_folders_of_images_and_labels_are_paired_by_name(network, folders):
    images, labels = folders
    rows = quick(network, images=images, labels=labels, precision=("int8",))
    assert (rows["int8"].images, rows["int8"].measure) == (3, "mIoU")
    assert {name for name, _ in rows["int8"].worst} == {"0.jpg", "1.jpg", "2.jpg"}


def test_an_image_without_its_label_is_an_error(network, folders):
    images, labels = folders
    (labels / "1.png").unlink()
    with pytest.raises(InputError, match=r"no labels for 1\.jpg; give both folders the same names"):
        quick(network, images=images, labels=labels)


def test_a_label_without_its_image_is_an_error(network, folders):
    images, labels = folders
    (images / "2.jpg").unlink()
    with pytest.raises(InputError, match=r"no image for 2\.png"):
        quick(network, images=images, labels=labels)


def test_labels_by_name_must_be_those_of_the_feeds(network):
    feeds = scenes(2)
    labels = truths(network, feeds)
    with pytest.raises(InputError, match="an image without its label: 'scene 2'"):
        quick(network, scenes(3), labels=labels)
    with pytest.raises(InputError, match="a label without its image: 'scene 1'"):
        quick(network, scenes(1), labels=labels)
    with pytest.raises(InputError, match="got several feeds called scene 0"):
        quick(network, scenes(1) + scenes(1), labels=labels)
    rows = quick(network, scenes(1), labels={"scene 0": 3}, precision=("fp16",))
    assert not any(row.ok for row in rows)  # only the answers tell what a label has to be
    assert "got one number as the label of scene 0, expected a label map" in rows[0].reason
    with pytest.raises(InputError, match="labels without their pictures"):
        quick(network, labels=labels)


def test_the_words_for_the_pictures_change_with_them_and_not_from_run_to_run(tmp_path, folders):
    images, labels = folders

    def words(**options):
        return gather(tmp_path, **options).text

    truth = {"scene 0": 1, "scene 1": 2}
    texts = [words(), words(preprocess="raw"), words(limit=2), words(images=images)]
    texts += [words(feeds=scenes(2)), words(feeds=scenes(2, 2.0)), words(feeds=scenes(2), labels=truth)]
    texts += [words(images=images, labels=labels)]
    assert len(set(texts)) == len(texts), texts
    assert texts[0] == "built-in inputs, unit" and texts[3].startswith("3 pictures of images ")
    assert texts[4] == words(feeds=scenes(2))
    save_picture(labels / "0.png", np.zeros(SIZE, np.uint8))
    assert words(images=images, labels=labels) != texts[-1]
    save_picture(images / "0.jpg", np.zeros((*SIZE, 3), np.uint8))
    assert words(images=images) != texts[3]


def test_of_several_outputs_the_largest_error_is_told():
    same, wrong = np.array([[0.0, 1.0]]), np.array([[0.0, 1.5]])
    pairs = [({"a": same, "b": same}, {"a": same, "b": wrong})]
    report = compare_batches(pairs, reference_name="A", candidate_name="B")
    assert Accuracy().columns(report)["max_error_of_range"] == 0.5
