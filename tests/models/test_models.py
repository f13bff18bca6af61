"""The networks: their shapes, their weights files and what they say about where weights came from."""

import functools
import sys
from pathlib import Path

import numpy as np
import pytest
from networks import random_input, small_network

from workbench.core.errors import InputError, ModelError, OutputError
from workbench.core.files import data_file
from workbench.core.packages import load_keras
from workbench.models import fcn_vgg16, resnet50
from workbench.models.weights import load_weights, named_weights, save_weights
from workbench.pictures.images import IMAGENET_MEAN_BGR

STREET_WEIGHTS = "fcn_vgg16_street_scenes.npz"

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))


def test_the_full_network_has_vgg16s_134_million_parameters():
    # 134.5 M: VGG16's convolutions (14.7 M) plus fc6 and fc7 (119.6 M) and the score layers; Long et al. report 134 M
    model = fcn_vgg16.build(load_keras(), input_size=(32, 32))
    assert model.count_params() == pytest.approx(134.5e6, rel=1e-2)


def test_the_network_takes_and_gives_channel_first_pictures():
    assert small_network().input_shape == (None, 3, 32, 64)
    assert small_network().output_shape == (None, 20, 32, 64)


def test_weights_survive_a_round_trip_in_float16(tmp_path):
    model = small_network()
    before = {name: np.asarray(variable) for name, variable in named_weights(model).items()}
    save_weights(before, tmp_path / "w.npz")
    other = fcn_vgg16.build(load_keras(), input_size=(32, 64), width=0.0625, fc_width=16)
    load_weights(other, tmp_path / "w.npz")
    for name, variable in named_weights(other).items():
        # float16 keeps 11 bits, and weights below its smallest normal number lose a little more
        np.testing.assert_allclose(np.asarray(variable), before[name], rtol=2**-10, atol=2**-24)


def test_weights_of_another_width_are_refused(tmp_path):
    save_weights({n: np.asarray(v) for n, v in named_weights(small_network()).items()}, tmp_path / "w.npz")
    wider = fcn_vgg16.build(load_keras(), input_size=(32, 64), width=0.125, fc_width=16)
    with pytest.raises(ModelError, match="build the model with the width the weights were saved with"):
        load_weights(wider, tmp_path / "w.npz")


def test_weights_of_another_network_are_refused(tmp_path):
    save_weights({"dense/kernel": np.ones((2, 2))}, tmp_path / "w.npz")
    with pytest.raises(ModelError, match="is for another network"):
        load_weights(small_network(), tmp_path / "w.npz")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut"])
def test_damaged_weights_are_refused(tmp_path, content):
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(ModelError, match=r"not a readable \.npz file"):
        load_weights(small_network(), tmp_path / "w.npz")


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ModelError, match="do not exist"):
        load_weights(small_network(), tmp_path / "nothing.npz")


def test_weights_that_overflow_are_not_saved(tmp_path):
    with pytest.raises(ModelError, match="big overflow float16; save them as float32"):
        save_weights({"big": np.array([1e6])}, tmp_path / "w.npz")
    assert list(tmp_path.iterdir()) == []


def test_weights_into_a_missing_folder_are_refused(tmp_path):
    with pytest.raises(OutputError):
        save_weights({"a": np.ones(1)}, tmp_path / "no" / "w.npz")


def test_folding_batch_norm_and_scaling_keeps_the_answer():
    from fold import fold_batch_norm

    keras = load_keras()
    keras.utils.set_random_seed(7)
    build = functools.partial(fcn_vgg16.build, keras, input_size=(32, 64), width=0.0625, fc_width=16)
    trained, shipped = build(batch_norm=True, dropout=0.2), build()
    generator = np.random.default_rng(0)
    for name, variable in named_weights(trained).items():
        if "_bn/" in name:
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
    for name, array in fold_batch_norm(trained, 1 / 58).items():
        named_weights(shipped)[name].assign(array)
    x = random_input((2, 3, 32, 64), scale=50)
    expected = np.asarray(trained(x / np.float32(58), training=False))
    got = np.asarray(shipped(x, training=False))
    # the folded products are rounded to float32 once more
    assert np.abs(got - expected).max() < 1e-4 * np.ptp(expected)


def test_resnet50_preprocess_is_kerass_caffe_mode():
    keras = load_keras()
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    expected = keras.applications.resnet50.preprocess_input(image.astype(np.float32))
    np.testing.assert_allclose(resnet50.preprocess(image), expected, atol=1e-4)  # float32 of values up to 255


def test_resnet50_preprocess_takes_the_centre_of_a_wide_picture():
    image = np.zeros((224, 448, 3), np.uint8)
    image[:, 112:336] = 255
    expected = np.broadcast_to(255 - np.float32(IMAGENET_MEAN_BGR), (224, 224, 3))
    np.testing.assert_allclose(resnet50.preprocess(image), expected, atol=1e-4)


def test_resnet50_preprocess_refuses_grey():
    with pytest.raises(InputError, match=r"expected an \(H, W, 3\) RGB image, got \(5, 5\)"):
        resnet50.preprocess(np.zeros((5, 5)))


class WithoutNetwork:
    """A Keras whose download fails."""

    class applications:
        @staticmethod
        def ResNet50(weights, classifier_activation):
            raise Exception("URL fetch failure on somewhere: None -- name or service not known")


def test_resnet50_without_a_network_falls_back_to_calibrated_random_weights_and_says_so(monkeypatch):
    calibrated = []
    monkeypatch.setattr(resnet50, "_calibrated", lambda keras, seed, crops: calibrated.append(seed) or "model")
    network = resnet50.build(WithoutNetwork, seed=5, crops=np.zeros(0))
    assert (network.weights, network.model, calibrated) == ("random", "model", [5])
    assert "ImageNet weights could not be had" in network.note
    assert "(name or service not known)" in network.note
    assert "not for naming objects" in network.note


def test_resnet50_takes_kerass_weights_when_they_are_there():
    class WithWeights:
        class applications:
            @staticmethod
            def ResNet50(weights, classifier_activation):
                return (weights, classifier_activation)

    network = resnet50.build(WithWeights)
    assert (network.model, network.weights) == (("imagenet", None), "imagenet")


def test_resnet50_refuses_unknown_weights():
    with pytest.raises(InputError, match="expected 'imagenet' or 'random'"):
        resnet50.build(load_keras(), weights="mine")


def test_top_classes_are_softmax_of_the_logits(monkeypatch):
    keras = load_keras()
    seen = {}

    def decode(probabilities, top):
        seen["p"] = probabilities
        return [[("n0", "tabby_cat", probabilities.max())][:top]]

    monkeypatch.setattr(keras.applications.imagenet_utils, "decode_predictions", decode)
    logits = np.array([0.0, np.log(3.0)])
    ((name, probability),) = resnet50.top_classes(logits, 1)
    assert name == "tabby cat"
    assert probability == pytest.approx(0.75)
    np.testing.assert_allclose(seen["p"], [[0.25, 0.75]])


def test_weights_are_found_by_name_or_path(tmp_path):
    assert fcn_vgg16.weights_path() == fcn_vgg16.weights_path("street-scenes") == data_file(STREET_WEIGHTS)
    (tmp_path / "mine.npz").write_bytes(b"")
    assert fcn_vgg16.weights_path(str(tmp_path / "mine.npz")) == tmp_path / "mine.npz"


def test_weights_that_are_not_there_are_named_with_the_choices(monkeypatch, tmp_path):
    with pytest.raises(ModelError, match=r"got weights 'mine', expected street-scenes, camvid, or the path of an"):
        fcn_vgg16.weights_path("mine")
    monkeypatch.setitem(fcn_vgg16.WEIGHTS, "camvid", tmp_path / "removed.npz")
    with pytest.raises(InputError, match=r"removed\.npz is neither in the repository nor in the installed package"):
        fcn_vgg16.weights_path("camvid")


def test_the_demonstration_network_is_as_wide_as_its_weights(tmp_path):
    save_weights({n: np.asarray(v) for n, v in named_weights(small_network()).items()}, tmp_path / "w.npz", "float32")
    model = fcn_vgg16.demonstration_model(load_keras(), (32, 64), tmp_path / "w.npz")
    x = random_input((1, 3, 32, 64), scale=50)
    np.testing.assert_array_equal(np.asarray(model(x)), np.asarray(small_network()(x)))  # the same numbers


@pytest.mark.parametrize("weights", [{"dense/kernel": np.ones((2, 2))}, {"block1_conv1/kernel": np.ones(2)}])
def test_the_demonstration_network_refuses_weights_of_another_network(tmp_path, weights):
    save_weights(weights, tmp_path / "w.npz")
    with pytest.raises(ModelError, match="is for another network"):
        fcn_vgg16.demonstration_model(load_keras(), (32, 64), tmp_path / "w.npz")
