"""Fused graphs give the labels of the unfused ones, and refuse networks that they do not fit."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_networks import save_network
from segmenters import MEANS, OPERATORS, SIZE, chw, labels_of, pictures, run, save_scores, save_segmenter

from workbench.core.errors import InputError, ModelError
from workbench.engine.build import build_engine
from workbench.onnx_graph.file import check
from workbench.onnx_graph.fuse import fuse_argmax, fuse_preprocessing
from workbench.pictures.cityscapes import color_map
from workbench.pictures.images import CITYSCAPES_MEAN, sub_mean_chw


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return save_segmenter(tmp_path_factory.mktemp("networks") / "segmenter.onnx")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("batch", [1, 3])
def test_pictures_in_give_the_bits_of_the_unfused_network(tmp_path, dtype, batch):
    path = save_segmenter(tmp_path / "plain.onnx", dtype=dtype)
    assert fuse_preprocessing(path, tmp_path / "fused.onnx", mean=MEANS[dtype]) == tmp_path / "fused.onnx"
    (spec,) = check(tmp_path / "fused.onnx").inputs
    assert (spec.name, spec.shape, spec.dtype) == ("input", (None, *SIZE, 3), "uint8")
    images = pictures(batch)
    assert np.array_equal(run(tmp_path / "fused.onnx", input=images), run(path, input=chw(images, dtype)))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("batch", [1, 3])
def test_both_fusions_in_either_order_give_the_labels_of_the_unfused_network(tmp_path, operator, dtype, batch):
    path = save_segmenter(tmp_path / "plain.onnx", dtype=dtype)
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    fuse_argmax(fuse_preprocessing(path, tmp_path / "half.onnx", mean=MEANS[dtype]), one, operator=operator)
    fuse_preprocessing(fuse_argmax(path, tmp_path / "half.onnx", operator=operator), two, mean=MEANS[dtype])
    images = pictures(batch)
    scores = run(path, input=chw(images, dtype))
    expected = labels_of(scores)
    assert len(np.unique(expected)) > 3
    if dtype == "float16":  # nor is the tie seen that rounding makes: leave the pixels out where two channels tie
        tied = (scores == scores.max(axis=1, keepdims=True)).sum(axis=1) > 1
        assert tied.mean() < 0.02
    else:
        tied = np.zeros_like(expected, bool)
    for fused in (one, two):
        (spec,) = check(fused).outputs
        assert (spec.name, spec.shape, spec.dtype) == ("output", (None, *SIZE), "uint8")
        assert np.array_equal(np.where(tied, 0, run(fused, input=images)), np.where(tied, 0, expected))


@pytest.mark.parametrize("operator", OPERATORS)
def test_ties_and_void_are_painted_as_from_the_logits(tmp_path, operator):
    path = save_scores(tmp_path / "scores.onnx", ("batch", 20, *SIZE))
    fuse_argmax(path, tmp_path / "labels.onnx", operator=operator)
    scores = np.random.default_rng(1).integers(-1, 2, (4, 20, *SIZE)).astype(np.float32)  # nearly every pixel ties
    scores[1], scores[2, 19], scores[3] = 0, 9, -np.finfo(np.float32).max
    labels = run(tmp_path / "labels.onnx", scores=scores)
    assert np.array_equal(labels, labels_of(scores))
    assert not labels[1].any() and (labels[2] == 19).all()
    assert all(np.array_equal(color_map(label), color_map(score)) for label, score in zip(labels, scores, strict=True))


def test_256_channels_fit_and_257_are_refused(tmp_path):
    fuse_argmax(save_scores(tmp_path / "most.onnx", (1, 256, 1, 1)), tmp_path / "labels.onnx")
    scores = np.arange(256, dtype=np.float32).reshape(1, 256, 1, 1)
    assert run(tmp_path / "labels.onnx", scores=scores).tolist() == [[[255]]]
    with pytest.raises(
        ModelError, match=r"\(1, 257, 1, 1\), expected logits \(batch, C, H, W\) with C fixed, 1 to 256"
    ):
        fuse_argmax(save_scores(tmp_path / "more.onnx", (1, 257, 1, 1)), tmp_path / "labels.onnx")


def test_another_mean_a_loaded_model_and_a_fixed_batch(tmp_path):
    path = save_segmenter(tmp_path / "plain.onnx", batch=1)
    model = onnx.load(path)
    before, mean = model.SerializeToString(), (1.5, 20.25, 99.0)
    fuse_preprocessing(model, tmp_path / "fused.onnx", mean=mean)
    assert model.SerializeToString() == before
    assert check(tmp_path / "fused.onnx").inputs[0].shape == (1, *SIZE, 3)
    image = pictures(1)
    expected = run(path, input=sub_mean_chw(image[0].transpose(2, 0, 1), mean)[None])
    assert np.array_equal(run(tmp_path / "fused.onnx", input=image), expected)


def test_names_that_are_taken_and_an_input_read_in_a_branch(tmp_path):
    value = helper.make_tensor_value_info("input_float", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Neg", ["input"], ["input_float"])], "branch", [], [value])
    other = helper.make_tensor_value_info("input_chw", TensorProto.FLOAT, None)
    inner = helper.make_graph([helper.make_node("Abs", ["input"], ["input_chw"])], "inner", [], [other])
    nodes = [helper.make_node("If", ["input_mean"], ["output"], then_branch=branch, else_branch=inner)]
    ends = {"input": ("float32", (1, 3, *SIZE))}, {"output": ("float32", (1, 3, *SIZE))}
    path = save_network(tmp_path / "if.onnx", nodes, *ends, {"input_mean": np.array(True)})
    fuse_argmax(fuse_preprocessing(path, tmp_path / "half.onnx"), tmp_path / "fused.onnx")
    image = pictures(1)
    assert np.array_equal(run(tmp_path / "fused.onnx", input=image), labels_of(-chw(image)))


def test_weights_beside_the_model_come_into_the_fused_file(tmp_path, segmenter):
    folder = tmp_path / "apart"
    folder.mkdir()
    model = onnx.load(segmenter)
    onnx.save(model, folder / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    fuse_preprocessing(folder / "net.onnx", tmp_path / "fused.onnx")
    image = pictures(1)
    assert np.array_equal(run(tmp_path / "fused.onnx", input=image), run(segmenter, input=chw(image)))


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        (("batch", 8, 12, 3), "float32", r"\(batch, 8, 12, 3\), expected .* its layout is channels-last"),
        (("batch", 4, 8, 12), "float32", r"expected a picture input \(batch, 3, H, W\)"),
        ((3, 8, 12), "float32", r"expected a picture input"),
        (("batch", 3, 8, 12), "uint8", "is uint8 .* may be in the graph already"),
        (("batch", 3, 8, 12), "float64", "is float64 .* expected float32 or float16"),
    ],
)
def test_an_input_that_is_no_picture_is_refused(tmp_path, shape, dtype, message):
    with pytest.raises(ModelError, match=message):
        fuse_preprocessing(save_scores(tmp_path / "net.onnx", shape, dtype), tmp_path / "fused.onnx")
    assert not (tmp_path / "fused.onnx").exists()


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        (("batch", 20), "float32", r"expected logits \(batch, C, H, W\)"),
        (("batch", "c", 8, 12), "float32", "with C fixed"),
        (("batch", 8, 12), "int64", "the argmax may be in the graph already"),
    ],
)
def test_an_output_that_is_no_logits_is_refused(tmp_path, shape, dtype, message):
    with pytest.raises(ModelError, match=message):
        fuse_argmax(save_scores(tmp_path / "net.onnx", shape, dtype), tmp_path / "fused.onnx")


def test_as_many_channels_as_rows_and_columns_are_no_other_layout(tmp_path):
    path = save_network(
        tmp_path / "cube.onnx", [helper.make_node("Conv", ["input", "w"], ["output"])],
        {"input": ("float32", (1, 3, 8, 8))}, {"output": ("float32", (1, 8, 8, 8))},
        {"w": np.random.default_rng(0).random((8, 3, 1, 1), np.float32)},
    )  # fmt: skip
    (spec,) = check(fuse_argmax(path, tmp_path / "labels.onnx")).outputs
    assert (spec.shape, spec.dtype) == ((1, 8, 8), "uint8")


def test_channels_last_logits_are_refused(tmp_path):
    node = helper.make_node("Transpose", ["input"], ["output"], perm=[0, 2, 3, 1])
    ends = {"input": ("float32", ("batch", 3, *SIZE))}, {"output": ("float32", ("batch", *SIZE, 3))}
    path = save_network(tmp_path / "net.onnx", [node], *ends)
    with pytest.raises(ModelError, match="whose layout is channels-last"):
        fuse_argmax(path, tmp_path / "fused.onnx")


def test_several_ends_an_old_opset_a_bad_mean_and_an_unknown_operator_are_refused(tmp_path, segmenter):
    out, model = tmp_path / "fused.onnx", onnx.load(segmenter)
    model.opset_import[0].version = 11
    with pytest.raises(ModelError, match="declares opset 11, expected 12 or more"):
        fuse_argmax(model, out)
    model.graph.output.append(model.graph.output[0])
    with pytest.raises(ModelError, match=r"has 2 outputs \(output, output\), expected one"):
        fuse_argmax(model, out)
    for mean in ((1, 2), (1, 2, np.nan)):
        with pytest.raises(InputError, match="expected three numbers"):
            fuse_preprocessing(segmenter, out, mean=mean)
    with pytest.raises(InputError, match="expected 'ArgMax' or 'MaxPool'"):
        fuse_argmax(segmenter, out, operator="TopK")


def test_the_real_parser_builds_the_fused_graph(tmp_path, segmenter):
    pytest.importorskip("tensorrt_rtx")  # CI names the backends it must test
    path = fuse_argmax(fuse_preprocessing(segmenter, tmp_path / "half.onnx"), tmp_path / "fused.onnx")
    plan = build_engine(path, progress=False, flavour="tensorrt_rtx")
    assert plan.data[:4] == b"vtrt"
    assert plan.manifest.profiles[0]["input"] == ((1, *SIZE, 3), (4, *SIZE, 3), (8, *SIZE, 3))


def test_the_mean_is_that_of_the_tutorial(tmp_path, segmenter):
    model = onnx.load(fuse_preprocessing(segmenter, tmp_path / "fused.onnx"))
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "input_mean")
    assert np.array_equal(onnx.numpy_helper.to_array(weight).ravel(), np.float32(CITYSCAPES_MEAN))
