"""Both exporters behind one call, files of tf_keras, and what each of them refuses."""

import functools

import numpy as np
import onnx
import onnxruntime
import pytest
from conversions import randomise, relative_error, run_onnx
from networks import random_input, small_network, two_input_network

from workbench.cli import main as cli
from workbench.core.errors import ExportError, ModelError
from workbench.core.packages import load_tf_keras
from workbench.export.conversion import convert
from workbench.export.keras_model import keras_to_onnx
from workbench.models import fcn_vgg16
from workbench.models.files import open_model
from workbench.models.freezing import FrozenGraph, tensor_names
from workbench.onnx_graph.file import check, rename_ends
from workbench.runners.backends import open_runner

# Both compute the same float32 sums in another order: measured 1e-6 of the range and below on these small networks.
ROUNDING = 1e-5


@functools.cache
def street_network():
    """The channel-first segmentation network, made with tf_keras: (3, 32, 64) in, (20, 32, 64) out."""
    keras = load_tf_keras()
    keras.utils.set_random_seed(3)
    return fcn_vgg16.build(keras, input_size=(32, 64), width=0.0625, fc_width=16)


@functools.cache
def open_network():
    """Two open pictures in, two answers out, with what a U-Net has: batch norms, a branch, an upsampling."""
    keras = load_tf_keras()
    layers = keras.layers
    left, right = (keras.Input((None, None, 3), name=name) for name in ("left", "right"))
    x = layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False)(layers.Add()([left, right]))
    x = layers.UpSampling2D(2)(layers.ReLU()(layers.BatchNormalization()(x)))
    mask = layers.Conv2D(2, 3, padding="same", name="mask")(layers.Concatenate()([x, left]))
    score = layers.Dense(3, name="score")(layers.GlobalAveragePooling2D()(x))
    return randomise(keras.Model([left, right], [mask, score], name="open_network"))


@pytest.mark.parametrize(("exporter", "opset"), [("tf2onnx", 17), ("keras2onnx", 15)])
def test_each_exporter_names_the_ends_and_keeps_the_answer(tmp_path, exporter, opset):
    model = street_network()
    path = keras_to_onnx(model, tmp_path / "street.onnx", exporter=exporter, progress=False)
    summary = check(path)
    assert [(spec.name, spec.shape) for spec in summary.inputs] == [("input", (None, 3, 32, 64))]
    assert [(spec.name, spec.shape) for spec in summary.outputs] == [("output", (None, 20, 32, 64))]
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert summary.opset == opset
    assert "Transpose" not in summary.operators
    x = random_input((3, 3, 32, 64), scale=50)
    assert relative_error(run_onnx(path, x), np.asarray(model(x, training=False))) < ROUNDING


@pytest.mark.parametrize("exporter", ["tf2onnx", "keras2onnx"])
def test_each_exporter_fixes_an_open_size_and_keeps_several_names_and_answers(tmp_path, exporter):
    model = open_network()
    path = keras_to_onnx(model, tmp_path / "open.onnx", exporter=exporter, spatial=(16, 24), progress=False)
    assert [tuple(spec.shape) for spec in check(path).inputs] == [(None, 16, 24, 3)] * 2
    feed = {"left": random_input((2, 16, 24, 3), 1), "right": random_input((2, 16, 24, 3), 2)}
    answers = onnxruntime.InferenceSession(path).run(["mask", "score"], feed)
    for got, expected in zip(answers, model(list(feed.values()), training=False), strict=True):
        assert relative_error(got, np.asarray(expected)) < ROUNDING
    assert model.inputs[0].shape == (None, None, None, 3)


def test_an_unknown_exporter_is_refused_and_both_are_named(tmp_path):
    with pytest.raises(ExportError, match="got exporter='magic', expected one of tf2onnx, keras2onnx"):
        keras_to_onnx(street_network(), tmp_path / "x.onnx", exporter="magic")
    assert cli.main(["convert", "x.h5", str(tmp_path / "x.onnx"), "--exporter", "magic"]) == 2


def refused(model, tmp_path, message, **options):
    with pytest.raises(ExportError, match=message) as caught:
        keras_to_onnx(model, tmp_path / "x.onnx", exporter="keras2onnx", progress=False, **options)
    assert list(tmp_path.iterdir()) == []
    return str(caught.value)


def test_keras2onnx_refuses_a_keras_3_model_and_names_the_other_exporter(tmp_path):
    message = refused(small_network(), tmp_path, "takes tf_keras models only, got a Keras 3 model")
    assert message.endswith("use exporter='tf2onnx'")


def test_keras2onnx_refuses_a_frozen_graph(tmp_path):
    refused(FrozenGraph(None, ("input",), ("output",)), tmp_path, "got a FrozenGraph .* use exporter='tf2onnx'")


def test_keras2onnx_refuses_layers_that_are_code(tmp_path):
    keras = load_tf_keras()

    class Shifted(keras.layers.Layer):
        def call(self, x):
            return x + 1.5

    vector = keras.Input((4,))
    for layer in (Shifted(name="mine"), keras.layers.Lambda(lambda x: x * 2, name="mine")):
        inner = keras.Model(vector, layer(vector))
        for model in (inner, keras.Sequential([keras.Input((4,)), inner])):
            refused(model, tmp_path, "the layer 'mine' .* is code; use exporter='tf2onnx'")


def test_keras2onnx_refuses_a_subclass_strings_and_an_open_size(tmp_path):
    keras = load_tf_keras()

    class Own(keras.Model):
        def call(self, x):
            return x

    text = keras.Input((1,), dtype="string")
    refused(Own(), tmp_path, "does not say what it takes, called or not; wrap it")
    refused(keras.Model(text, keras.layers.Flatten()(text)), tmp_path, "takes strings, expected numbers")
    refused(open_network(), tmp_path, r"height and width are open; give spatial=\(height, width\)")


def test_keras2onnx_says_what_it_cannot_convert_and_names_the_other_exporter(tmp_path):
    keras = load_tf_keras()
    rows = keras.Input((4, 8))
    product = keras.Model(rows, keras.layers.Dot(axes=(1, 1))([rows, rows]))
    refused(product, tmp_path, "archived in 2020, cannot convert.*IndexError.*use exporter='tf2onnx'")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tf_keras network with batch norms, and one of Keras 3, in both kinds of file."""
    folder = tmp_path_factory.mktemp("keras_files")
    for suffix in (".keras", ".h5"):
        open_network().save(folder / f"classic{suffix}")
        small_network().save(folder / f"modern{suffix}")
    return folder


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_file_of_tf_keras_is_opened_and_its_runner_says_which_keras_computed(files, suffix):
    feed = {"left": random_input((1, 16, 24, 3), 1), "right": random_input((1, 16, 24, 3), 2)}
    expected = open_network()(list(feed.values()), training=False)
    with open_runner(files / f"classic{suffix}") as runner:
        answers = runner.infer(feed)
    for name, wanted in zip(("mask", "score"), expected, strict=True):
        assert relative_error(answers[name], np.asarray(wanted)) < ROUNDING
    with open_runner(open_network()) as runner:
        assert runner.info.name.startswith("tf_keras 2.")
    with open_runner(small_network()) as runner:
        assert runner.info.name.startswith("Keras 3.")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_keras2onnx_refuses_a_file_of_keras_3(files, tmp_path, suffix):
    with pytest.raises(ModelError, match="not saved by tf_keras, which keras2onnx needs; use exporter='tf2onnx'"):
        convert(files / f"modern{suffix}", tmp_path / "x.onnx", exporter="keras2onnx", progress=False)


def test_the_command_converts_a_file_of_tf_keras_with_keras2onnx(files, tmp_path, capsys):
    words = ["convert", str(files / "classic.h5"), str(tmp_path / "x.onnx"), "--exporter", "keras2onnx"]
    assert cli.main([*words, "--details", "--spatial", "16", "24"]) == 0
    assert "opset 15" in capsys.readouterr().out
    with open_runner(tmp_path / "x.onnx") as runner:
        assert list(runner.inputs) == ["left", "right"]


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("exporter", ["tf2onnx", "keras2onnx"])
def test_a_lambda_in_a_file_of_tf_keras_is_refused_and_does_not_run(tmp_path, suffix, exporter):
    keras = load_tf_keras()
    trace = tmp_path / "the code ran"
    code = eval(f"lambda x, path={str(trace)!r}: (open(path, 'w').close(), x)[1]")
    vector = keras.Input((4,))
    keras.Model(vector, keras.layers.Lambda(code)(vector)).save(tmp_path / f"m{suffix}")
    trace.unlink(missing_ok=True)
    with pytest.raises(ModelError, match="holds a Lambda layer, which is code"):
        convert(tmp_path / f"m{suffix}", tmp_path / "x.onnx", exporter=exporter, progress=False)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_layer_of_tf_keras_defined_nowhere_is_named(tmp_path, suffix):
    keras = load_tf_keras()

    class Mystery(keras.layers.Layer):
        def call(self, x):
            return x

    vector = keras.Input((4,))
    keras.Model(vector, Mystery()(vector)).save(tmp_path / f"m{suffix}")
    with pytest.raises(ModelError, match="uses the layer Mystery, which is defined nowhere here"):
        open_model(tmp_path / f"m{suffix}")


def test_a_tf_keras_file_of_weights_only_is_refused(tmp_path):
    street_network().save_weights(tmp_path / "w.h5")
    with pytest.raises(ModelError, match=r"w\.h5"):
        open_model(tmp_path / "w.h5")


def test_a_python_if_in_a_layer_of_tf_keras_converts_with_both_branches(tmp_path):
    keras = load_tf_keras()
    import tensorflow as tf

    class Choice(keras.layers.Layer):
        def call(self, x):
            if tf.reduce_sum(x) > 0:
                return x * 2
            return x - 1

    vector = keras.Input((4,))
    path = keras_to_onnx(keras.Model(vector, Choice()(vector)), tmp_path / "x.onnx", progress=False)
    ones = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(run_onnx(path, ones), ones * 2)
    np.testing.assert_array_equal(run_onnx(path, -ones), ones * -2)


def test_the_names_of_a_tf_keras_model_are_those_of_its_layers():
    assert tensor_names(open_network()) == (("left", "right"), ("mask", "score"))
    assert tensor_names(street_network()) == (("input",), ("output",))
    assert tensor_names(two_input_network())[0] == ("left", "right")


def test_renaming_the_ends_reaches_into_loops_and_moves_names_that_are_taken():
    helper = onnx.helper
    value = helper.make_tensor_value_info
    inner = helper.make_graph([helper.make_node("Add", ["x", "x"], ["twice"])], "then", [], [value("twice", 1, None)])
    nodes = [
        helper.make_node("Neg", ["x"], ["input"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=inner),
        helper.make_node("Add", ["y", "input"], ["z"]),
    ]
    ends = [value("x", 1, ["N"]), value("flag", 9, [])], [value("z", 1, ["N"])]
    graph = helper.make_graph(nodes, "g", *ends)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    rename_ends(model, ["input", "choice"], ["output"])
    onnx.checker.check_model(model)
    feed = {"input": np.array([1.0, 2.0], np.float32), "choice": np.array(True)}
    session = onnxruntime.InferenceSession(model.SerializeToString())
    np.testing.assert_array_equal(session.run(["output"], feed)[0], [1, 2])
