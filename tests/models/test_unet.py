"""U-Net of segmentation_models: how it is loaded, built, exported, and what the committed weights find."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from street_scenes import generate_scene

from workbench.core.errors import EngineBuildError, ExportError, FeedError, InputError, ModelError
from workbench.core.files import data_file
from workbench.core.packages import load_tf_keras
from workbench.engine import tensorrt_api
from workbench.engine.build import build_engine
from workbench.export import keras_model
from workbench.models import unet
from workbench.models.weights import named_weights, save_weights
from workbench.pictures.cityscapes import class_iou, confusion_matrix
from workbench.runners.backends import open_runner
from workbench.runners.compare import compare_runners

UNSEEN = range(1_000_000, 1_000_016)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model():
    return unet.demonstration_model()


@pytest.fixture(scope="module")
def scenes():
    return [generate_scene(seed, *unet.DEMONSTRATION_SIZE) for seed in UNSEEN]


@pytest.fixture(scope="module")
def feeds(scenes):
    return [(f"scene {scene.seed}", {"input": unet.preprocess(scene.image)}) for scene in scenes[:4]]


@pytest.fixture(scope="module")
def onnx_path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("unet") / "unet.onnx"
    return keras_model.keras_to_onnx(model, path, spatial=unet.DEMONSTRATION_SIZE, progress=False)


@pytest.fixture(scope="module")
def trapped_path(model, tmp_path_factory):
    """What tf2onnx's own --target tensorrt makes of the same network."""
    from tf2onnx.convert import from_graph_def

    frozen = keras_model.freeze(model, spatial=unet.DEMONSTRATION_SIZE)
    names = {"input:0": "input", "output:0": "output"}
    network, _ = from_graph_def(
        frozen.graph_def, input_names=["input:0"], output_names=["output:0"], opset=17, target=["tensorrt"],
        tensors_to_rename=names,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("trapped") / "trapped.onnx"
    onnx.save(network, path)
    return path


def road_iou(runner, scenes):
    confusion = 0
    for scene in scenes:
        labels = unet.road_labels(runner.infer({"input": unet.preprocess(scene.image)})["output"])[0]
        confusion = confusion + confusion_matrix(unet.road_truth(scene.train_ids), labels, classes=2)
    return class_iou(confusion)[0]


# loading


def load_in_a_new_python(first, **variables):
    """Run `first`, then load segmentation_models, in a process of its own; returns what it prints."""
    code = f"{first}\nfrom workbench.models import unet\nprint(type(unet.build(decoder_filters=(8,) * 5)).__module__)"
    environment = {name: value for name, value in os.environ.items() if name not in unet.VARIABLES}
    run = subprocess.run(
        [sys.executable, "-c", code], env={**environment, **variables}, cwd=ROOT, capture_output=True, text=True
    )
    return run.stdout + run.stderr


def test_where_tensorflow_is_not_there_yet_the_variables_are_set():
    assert "tf_keras.src" in load_in_a_new_python("")


def test_after_tensorflow_the_variables_are_missed_by_name():
    said = load_in_a_new_python("import tensorflow").splitlines()[-1]
    assert "BackendUnavailableError: TensorFlow was imported before" in said
    assert all(f"{name}={value}" in said for name, value in unet.VARIABLES.items())
    assert "restart Python (the kernel)" in said


def test_variables_set_too_late_are_missed_too():
    # tf.keras is decided when it is first looked at; set afterwards, the variables change nothing
    first = f"import os, tensorflow\ntensorflow.keras.layers\nos.environ.update({unet.VARIABLES!r})"
    assert "TensorFlow was imported before" in load_in_a_new_python(first).splitlines()[-1]


def test_only_one_variable_is_not_enough():
    said = load_in_a_new_python("import tensorflow", TF_USE_LEGACY_KERAS="1").splitlines()[-1]
    assert "segmentation_models needs both" in said


# building


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"architecture": "UNet"}, "got architecture='UNet', expected one of Unet, FPN, Linknet, PSPNet"),
        ({"backbone": "resnet19"}, "got backbone='resnet19', expected one of .*resnet18"),
        ({"encoder_weights": "imagenet"}, "got encoder_weights='imagenet', expected None"),
        ({"input_size": (100, 128)}, r"divisible by 32; pad or resize to \(128, 128\)"),
        ({"architecture": "PSPNet"}, r"without input_size.*divisible by 48.*input_size=\(192, 384\)"),
        ({"architecture": "PSPNet", "input_size": (64, 96)}, r"divisible by 48; pad or resize to \(96, 96\)"),
        ({"architecture": "PSPNet", "input_size": (48, 96), "downsample_factor": 16}, "divisible by 96"),
    ],
)
def test_build_refuses_and_says_what_to_do(arguments, said):
    with pytest.raises(InputError, match=said):
        unet.build(**arguments)


def test_build_downloads_nothing(monkeypatch):
    def no_network(*arguments, **options):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    model = unet.build(backbone="resnet18", decoder_filters=(8,) * 5)
    assert model.output_shape == (None, None, None, 1)


def test_activation_none_gives_logits_and_sigmoid_their_probabilities():
    keras = load_tf_keras()
    keras.utils.set_random_seed(1)
    logits = unet.build(decoder_filters=(8,) * 5)
    probabilities = unet.build(decoder_filters=(8,) * 5, activation="sigmoid")
    probabilities.set_weights(logits.get_weights())
    x = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    z, p = np.asarray(logits(x), np.float64), np.asarray(probabilities(x))
    assert z.min() < 0 or z.max() > 1
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-z)), atol=1e-6)  # float32 has 24 bits: 6e-8 near 1


def test_calibration_makes_answers_differ_between_pictures(scenes):
    load_tf_keras().utils.set_random_seed(2)
    model = unet.build(decoder_filters=(8,) * 5)
    batch = np.concatenate([unet.preprocess(scene.image[:128, :128]) for scene in scenes[:4]])
    spread = []
    for _ in range(2):
        answers = np.asarray(model(batch, training=False))
        spread.append(np.ptp(answers, axis=0).mean() / np.ptp(answers))
        unet.calibrate(model, batch)
    assert spread[1] > 0.1
    assert {layer.momentum for layer in model.layers if hasattr(layer, "momentum")} == {0.99, 0.999}


# arrays


def test_preprocess_is_that_of_segmentation_models(scenes):
    image = scenes[0].image
    theirs = unet.load_segmentation_models().get_preprocessing("mobilenetv2")(image.astype(np.float32))
    ours = unet.preprocess(image)
    assert ours.shape == (1, 256, 512, 3)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours[0], theirs, atol=1e-6)  # one rounding of numbers up to 1
    np.testing.assert_array_equal(unet.preprocess(np.stack([image, image]))[1], ours[0])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((64, 64, 3), np.float32),
        np.zeros((3, 64, 64), np.uint8),
        np.zeros((64, 64), np.uint8),
        np.zeros((65, 64, 3), np.uint8),
        np.zeros((0, 64, 3), np.uint8),
    ],
)
def test_preprocess_refuses_other_arrays(image):
    with pytest.raises(InputError, match="expected"):
        unet.preprocess(image)


def test_road_labels_refuses_several_channels():
    with pytest.raises(InputError, match=r"expected \(H, W, 1\)"):
        unet.road_labels(np.zeros((4, 4, 2)))


# the committed weights


def test_the_file_is_small_and_float16():
    assert data_file(unet.DEMONSTRATION_WEIGHTS).stat().st_size < 4e6
    with np.load(data_file(unet.DEMONSTRATION_WEIGHTS)) as file:
        assert {file[name].dtype for name in file.files} == {np.dtype("float16")}


def test_the_road_of_unseen_scenes_is_found(model, scenes):
    # 16 of the 200 scenes that gave 0.937; another 16 move it by about 0.015
    with open_runner(model) as runner:
        assert road_iou(runner, scenes) > 0.90


def test_weights_of_another_decoder_are_refused(tmp_path):
    other = unet.build(decoder_filters=(8,) * 5)
    save_weights({name: variable.numpy() for name, variable in named_weights(other).items()}, tmp_path / "w.npz")
    with pytest.raises(ModelError, match="the model has"):
        unet.demonstration_model(tmp_path / "w.npz")


# export


def test_the_size_is_fixed_at_export_and_the_model_is_left_alone(model, onnx_path):
    with open_runner(onnx_path) as runner:
        assert runner.inputs["input"].shape == (None, 256, 512, 3)
        assert runner.outputs["output"].shape == (None, 256, 512, 1)
    assert model.input_shape == (None, None, None, 3)


def test_export_without_a_size_says_which_argument_is_missing(model, tmp_path):
    with pytest.raises(ExportError, match=r"open; give spatial=\(height, width\)"):
        keras_model.keras_to_onnx(model, tmp_path / "unet.onnx", progress=False)


def test_the_converted_network_gives_the_same_logits(model, onnx_path, feeds):
    # 63 convolutions in float32: rounding of 1e-7 to 1e-5 of the range; the faults below give 1e-1
    with open_runner(model) as reference, open_runner(onnx_path) as candidate:
        report = compare_runners(reference, candidate, feeds)
        assert report.passed, report.verdict
        assert report.outputs[0].reference_range > 10  # the answers are no constants
        labels = [unet.road_labels(runner.infer(feeds[0][1])["output"]) for runner in (reference, candidate)]
        assert np.mean(labels[0] != labels[1]) < 1e-4


def test_the_converted_network_refuses_another_size(onnx_path):
    with open_runner(onnx_path) as runner, pytest.raises(FeedError, match="export the network for yours"):
        runner.infer({"input": np.zeros((1, 128, 256, 3), np.float32)})


def test_every_resize_is_exact_and_none_is_in_words_that_tensorrt_refuses(onnx_path):
    styles = [
        {attribute.name: attribute.s for attribute in node.attribute if attribute.s}
        for node in onnx.load(onnx_path).graph.node
        if node.op_type == "Resize"
    ]
    assert len(styles) == 5
    for style in styles:
        assert style["coordinate_transformation_mode"] == b"half_pixel"
        assert style["nearest_mode"] == b"round_prefer_ceil"


def test_the_graph_of_tf2onnx_s_tensorrt_target_is_caught(model, trapped_path, feeds, scenes):
    with open_runner(model) as reference, open_runner(trapped_path) as candidate:
        report = compare_runners(reference, candidate, feeds)
        assert report.status == "fail"
        assert report.outputs[0].max_relative_error > 0.1
        logits = [runner.infer(feeds[0][1])["output"] for runner in (reference, candidate)]
        assert np.mean(unet.road_labels(logits[0]) != unet.road_labels(logits[1])) > 0.01


def test_tensorrt_takes_the_graph(onnx_path, tmp_path, monkeypatch):
    if not tensorrt_api.available_flavours()[0] and "CI" not in os.environ:
        pytest.skip("no TensorRT that can build is installed; a must in CI only")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    assert build_engine(onnx_path, progress=False).manifest.layers


def test_tensorrt_refuses_tf2onnx_s_own_resize(onnx_path, tmp_path, monkeypatch):
    if not tensorrt_api.available_flavours()[0] and "CI" not in os.environ:
        pytest.skip("no TensorRT that can build is installed; a must in CI only")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    network = onnx.load(onnx_path)
    for node in network.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Resize" and attribute.name == "coordinate_transformation_mode":
                attribute.s = b"tf_half_pixel_for_nn"
            if node.op_type == "Resize" and attribute.name == "nearest_mode":
                attribute.s = b"floor"
    onnx.save(network, tmp_path / "own.onnx")
    with pytest.raises(EngineBuildError, match="tf_half_pixel_for_nn"):
        build_engine(tmp_path / "own.onnx", progress=False)


def test_the_command_line_sets_the_variables_itself(tmp_path):
    code = "import sys; from workbench.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = ["convert", "unet", str(tmp_path / "unet.onnx"), "--details", "--spatial", "64", "128"]
    environment = {name: value for name, value in os.environ.items() if name not in unet.VARIABLES}
    run = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "float32 (batch, 64, 128, 3)" in run.stdout
