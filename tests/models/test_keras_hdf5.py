"""The tutorial's kind of file: a channels_first FCN-8s saved by Keras as HDF5.

The tutorial's own `semantic_segmentation.hdf5` is not tested here; the stand-in is a network of the same structure.
"""

import json

import h5py
import numpy as np
import pytest
from networks import random_input

from workbench.core.errors import ModelError
from workbench.core.packages import load_keras
from workbench.models import fcn_vgg16
from workbench.models.fcn_vgg16 import read_fcn_weights

SIZE = (32, 64)


def tutorial_network(width=8, fc_width=24, classes=20, **last):
    """FCN-8s as a Keras 2 author writes it: channels_first throughout, layers named by Keras."""
    keras = load_keras()
    keras.utils.set_random_seed(11)

    def convolution(x, channels, size, **settings):
        settings = {"padding": "same", "bias_initializer": "random_normal"} | settings
        return keras.layers.Conv2D(channels, size, data_format="channels_first", **settings)(x)

    def upscore(x, factor, **settings):
        settings = {"data_format": "channels_first", "bias_initializer": "random_normal"} | settings
        return keras.layers.Conv2DTranspose(classes, 2 * factor, factor, "same", **settings)(x)

    x = image = keras.Input((3, *SIZE))
    pools = []
    for factor, repeats in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
        for _ in range(repeats):
            x = convolution(x, factor * width, 3, activation="relu")
        x = keras.layers.MaxPooling2D(2, data_format="channels_first")(x)
        pools.append(x)
    x = keras.layers.Dropout(0.5)(convolution(x, fc_width, 7, activation="relu"))
    x = convolution(x, fc_width, 1, activation="relu")
    x = upscore(convolution(x, classes, 1), 2)
    x = upscore(keras.layers.Add()([x, convolution(pools[3], classes, 1)]), 2)
    x = upscore(keras.layers.Add()([x, convolution(pools[2], classes, 1)]), 8, **last)
    return keras.Model(image, x)


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    network, path = tutorial_network(), tmp_path_factory.mktemp("standin") / "semantic_segmentation.hdf5"
    network.save(path)
    return network, path


def relative_error(got, expected):
    return np.abs(got - expected).max() / np.abs(expected).max()


def test_a_channels_first_file_gives_the_answer_of_the_network_it_was_saved_from(standin):
    network, path = standin
    model = fcn_vgg16.demonstration_model(load_keras(), SIZE, path)
    x = random_input((2, 3, *SIZE), scale=50)
    expected = np.asarray(network(x))
    # the same products, added up in another order in float32
    assert relative_error(np.asarray(model(x)), expected) < 1e-5
    assert np.ptp(expected) > 0.1


def test_each_layer_of_the_file_matters_to_the_answer(standin, tmp_path):
    """A mapping that dropped or swapped a layer would not notice a change in it."""
    network, _ = standin
    x = random_input((1, 3, *SIZE), scale=50)
    original = np.asarray(network(x))
    for layer in [layer for layer in network.layers if layer.weights]:
        before = layer.get_weights()
        layer.set_weights([before[0] * 1.5, before[1] + 0.5])
        network.save(tmp_path / "changed.hdf5")
        got = np.asarray(fcn_vgg16.demonstration_model(load_keras(), SIZE, tmp_path / "changed.hdf5")(x))
        expected = np.asarray(network(x))
        layer.set_weights(before)
        assert relative_error(got, expected) < 1e-5, layer.name  # as above
        assert relative_error(original, expected) > 1e-3, layer.name


def test_names_of_keras_2_bytes_and_colons_and_weights_only_files_are_read(standin, tmp_path):
    network, path = standin
    with h5py.File(path) as source, h5py.File(tmp_path / "old.h5", "w") as target:
        group = source["model_weights"]
        target.attrs["layer_names"] = [str(name).encode() for name in group.attrs["layer_names"]]
        for layer in group.attrs["layer_names"]:
            names = [str(name) for name in group[layer].attrs["weight_names"]]
            target.create_group(layer).attrs["weight_names"] = [f"{name}:0".encode() for name in names]
            for name in names:
                target[layer][f"{name}:0"] = group[layer][name][()]
    x = random_input((1, 3, *SIZE), scale=50)
    model = fcn_vgg16.demonstration_model(load_keras(), SIZE, tmp_path / "old.h5")
    assert relative_error(np.asarray(model(x)), np.asarray(network(x))) < 1e-5  # as above


def test_a_network_inside_a_network_is_read(standin, tmp_path):
    keras = load_keras()
    network, _ = standin
    image = keras.Input((3, *SIZE))
    keras.Model(image, network(image)).save(tmp_path / "nested.h5")
    x = random_input((1, 3, *SIZE), scale=50)
    model = fcn_vgg16.demonstration_model(keras, SIZE, tmp_path / "nested.h5")
    assert relative_error(np.asarray(model(x)), np.asarray(network(x))) < 1e-5  # as above


def test_missing_biases_are_zero_and_a_last_softmax_changes_no_label(tmp_path):
    network = tutorial_network(use_bias=False)
    softmax = load_keras().layers.Softmax(axis=1)(network.output)
    load_keras().Model(network.input, softmax).save(tmp_path / "softmax.h5")
    model = fcn_vgg16.demonstration_model(load_keras(), SIZE, tmp_path / "softmax.h5")
    x = random_input((1, 3, *SIZE), scale=50)
    assert relative_error(np.asarray(model(x)), np.asarray(network(x))) < 1e-5  # as above


def test_the_width_is_read_off_the_file(tmp_path):
    tutorial_network(width=16, fc_width=40, classes=5).save(tmp_path / "other.h5")
    model = fcn_vgg16.demonstration_model(load_keras(), (64, 32), tmp_path / "other.h5")
    assert model.output_shape == (None, 5, 64, 32)
    assert model.get_layer("fc7").filters == 40
    assert model.get_layer("block5_conv3").filters == 128


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "last", "padding": "valid"}, "last has padding 'valid', not 'same'"),
        ({"name": "last", "strides": [4, 4]}, "last has strides 4, not 8"),
        ({"name": "last", "activation": "relu"}, "last has activation 'relu', not 'linear'"),
        ({"class_name": "Conv2D", "name": "last", "strides": 1, "dilation_rate": 2}, "last has dilation_rate 2, not 1"),
        ({"class_name": "MaxPooling2D", "name": "last"}, "last has strides 8, not 2"),
        ({"class_name": "Activation", "name": "last", "activation": "elu"}, "last has activation 'elu', not 'relu'"),
        ({"class_name": "Cropping2D", "name": "last"}, r"it has a layer Cropping2D \(last\)"),
    ],
)
def test_a_description_of_another_network_is_refused(standin, tmp_path, settings, message):
    copy = tmp_path / "other.h5"
    copy.write_bytes(standin[1].read_bytes())
    with h5py.File(copy, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        layer = config["config"]["layers"][-1]
        layer["class_name"] = settings.pop("class_name", layer["class_name"])
        layer["config"] |= settings
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(ModelError, match=rf"is not the network of the tutorial: {message}; load it with keras"):
        fcn_vgg16.demonstration_model(load_keras(), SIZE, copy)


def test_weights_of_another_network_are_refused_with_what_they_are(tmp_path):
    keras = load_keras()
    image = keras.Input((8,))
    keras.Model(image, keras.layers.Dense(4)(image)).save_weights(tmp_path / "a.weights.h5")
    keras.Model(image, keras.layers.Dense(4)(image)).save(tmp_path / "dense.h5")
    image = keras.Input((8, 8, 3))
    keras.Model(image, keras.layers.Conv2D(2, 3, padding="same")(image)).save(tmp_path / "one.h5")
    for name, message in (
        ("a.weights.h5", "not a Keras HDF5 file that can be read"),
        ("dense.h5", r"it has a layer Dense \(dense"),
        ("one.h5", "it has 1 of 3 x 3 kernels, expected 4 of 1 x 1, 13 of 3 x 3"),
    ):
        with pytest.raises(ModelError, match=message):
            fcn_vgg16.demonstration_model(keras, SIZE, tmp_path / name)


def test_weights_without_a_description_are_told_apart_by_their_shapes(standin, tmp_path):
    copy = tmp_path / "copy.h5"
    copy.write_bytes(standin[1].read_bytes())
    with h5py.File(copy, "r+") as file:
        del file.attrs["model_config"]
        (layer,) = [n for n in file["model_weights"] if f"{n}/{n}/kernel" in file["model_weights"]][:1]
        names = file["model_weights"][layer].attrs["weight_names"]
        del file["model_weights"][layer][names[0]]
        file["model_weights"][layer][names[0]] = np.ones((8, 3))
    with pytest.raises(ModelError, match=r"it has weights of shape \(8, 3\)"):
        fcn_vgg16.demonstration_model(load_keras(), SIZE, copy)


@pytest.mark.parametrize("content", [b"", b"not HDF5", None])
def test_damaged_files_are_refused(standin, tmp_path, content):
    (tmp_path / "w.hdf5").write_bytes(standin[1].read_bytes()[:40_000] if content is None else content)
    with pytest.raises(ModelError, match="not a Keras HDF5 file that can be read"):
        fcn_vgg16.demonstration_model(load_keras(), SIZE, tmp_path / "w.hdf5")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"the weights .*nothing\.hdf5 do not exist"):
        read_fcn_weights(tmp_path / "nothing.hdf5")


def test_a_score_layer_from_other_channels_is_refused(standin, tmp_path):
    copy = tmp_path / "copy.h5"
    copy.write_bytes(standin[1].read_bytes())
    with h5py.File(copy, "r+") as file:
        kernels = {}
        file["model_weights"].visititems(lambda name, item: kernels.update({getattr(item, "shape", None): name}))
        name = kernels[(1, 1, 64, 20)]  # from block 4
        del file["model_weights"][name]
        file["model_weights"][name] = np.ones((1, 1, 65, 20))
    with pytest.raises(ModelError, match="has no 1 x 1 kernel from 64 channels, which score_pool4 needs"):
        fcn_vgg16.demonstration_model(load_keras(), SIZE, copy)
