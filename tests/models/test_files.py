"""Every file a reader may call a model: opened, or refused in one sentence."""

import shutil

import numpy as np
import pytest
from networks import random_input, small_network, two_input_network

from workbench.core.errors import ModelError
from workbench.core.packages import load_keras
from workbench.export.keras_model import keras_to_pb
from workbench.models import resnet50
from workbench.models.files import open_model
from workbench.models.freezing import FrozenGraph
from workbench.runners.backends import open_runner


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One network saved in every form."""
    folder = tmp_path_factory.mktemp("models")
    model = small_network()
    model.save(folder / "small.keras")
    model.save(folder / "small.h5")
    model.export(folder / "saved_model", verbose=False)
    keras_to_pb(model, folder / "small.pb")
    return folder


@pytest.mark.parametrize("name", ["small.keras", "small.h5", "saved_model", "small.pb"])
def test_every_form_of_a_network_gives_the_models_answer(files, name):
    x = random_input((2, 3, 32, 64), scale=50)
    expected = np.asarray(small_network()(x, training=False))
    with open_runner(files / name) as runner:
        assert list(runner.inputs) == ["input"]
        assert list(runner.outputs) == ["output"]
        # The same TensorFlow kernels on the same weights; graph optimisation may reorder sums.
        np.testing.assert_allclose(runner.infer({"input": x})["output"], expected, atol=1e-5 * np.ptp(expected))


def test_a_saved_model_with_two_inputs_keeps_their_names(tmp_path):
    two_input_network().export(tmp_path / "two", verbose=False)
    frozen = open_model(tmp_path / "two")
    assert isinstance(frozen, FrozenGraph)
    assert sorted(frozen.inputs) == ["left", "right"]


def test_a_keras_model_object_is_passed_through():
    assert open_model(small_network()) is small_network()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.keras", b"", "is empty; save or copy the model again"),
        ("text.keras", b"this is no model", "not a Keras model that can be read, or was cut short"),
        ("text.h5", b"this is no model", "not a Keras HDF5 file that can be read, or was cut short"),
        ("text.pb", b"this is no model at all", "not a binary GraphDef, or was cut short"),
        ("empty.pb", b"", "is empty"),
        ("picture.png", b"\x89PNG", "is not a model this program opens"),
    ],
)
def test_files_that_are_no_model_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        open_model(tmp_path / name)


@pytest.mark.parametrize("name", ["small.keras", "small.h5", "small.pb"])
def test_truncated_files_are_refused(files, tmp_path, name):
    content = (files / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ModelError, match="cut short"):
        open_model(tmp_path / name)


def test_a_directory_that_is_no_saved_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="which is not a SavedModel"):
        open_model(tmp_path)


def test_a_damaged_saved_model_is_refused(files, tmp_path):
    shutil.copytree(files / "saved_model", tmp_path / "broken")
    (tmp_path / "broken" / "saved_model.pb").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="damaged SavedModel"):
        open_model(tmp_path / "broken")


def test_a_missing_file_names_the_models_that_can_be_built():
    with pytest.raises(ModelError, match=r"does not exist; give .* one of the names resnet50, fcn_vgg16, unet"):
        open_model("nothing.keras")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_lambda_layer_is_refused_because_it_is_code(tmp_path, suffix):
    keras = load_keras()
    vector = keras.Input((4,))
    keras.Model(vector, keras.layers.Lambda(lambda x: x * 2)(vector)).save(tmp_path / f"m{suffix}")
    with pytest.raises(ModelError, match="Lambda layer, which is code"):
        open_model(tmp_path / f"m{suffix}")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_layer_defined_nowhere_is_named(tmp_path, suffix):
    keras = load_keras()

    class Mystery(keras.layers.Layer):
        def call(self, x):
            return x

    vector = keras.Input((4,))
    keras.Model(vector, Mystery()(vector)).save(tmp_path / f"m{suffix}")
    with pytest.raises(ModelError, match="uses the layer Mystery, which is defined nowhere here"):
        open_model(tmp_path / f"m{suffix}")


def test_a_graph_with_variables_is_refused(tmp_path):
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.compat.v1.placeholder(tf.float32, (1,), name="x") + tf.compat.v1.get_variable("v", (1,), use_resource=False)
    (tmp_path / "raw.pb").write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(ModelError, match=r"still has variables \(v, \.\.\.\); freeze it"):
        open_model(tmp_path / "raw.pb")


def test_resnet50_by_name_warns_when_its_weights_are_random(monkeypatch):
    network = resnet50.ResNet50("the model", "random", "calibrated random weights")
    monkeypatch.setattr(resnet50, "build", lambda keras: network)
    with pytest.warns(UserWarning, match="calibrated random weights"):
        assert open_model("resnet50") == "the model"
