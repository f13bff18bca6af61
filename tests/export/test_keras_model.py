"""Keras models to .pb and ONNX: names, shapes, exactness, and what a failure leaves behind."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from networks import random_input, small_network, two_input_network, upsampling_network

from workbench.core.errors import ExportError, OutputError
from workbench.core.packages import load_keras
from workbench.export.keras_model import default_opset, keras_to_onnx, keras_to_pb, pb_to_onnx, tf2onnx_command
from workbench.models import fcn_vgg16
from workbench.models.freezing import tensor_names
from workbench.onnx_graph.file import check

# Both compute the same float32 sums in another order: measured 1e-6 of the range and below on these small networks.
ROUNDING = 1e-5


def run_onnx(path, feed):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def relative_error(got, expected):
    return float(np.abs(got - expected).max() / np.ptp(expected))


def test_keras_to_onnx_names_the_ends_fixes_the_size_and_keeps_the_answer(tmp_path):
    path = keras_to_onnx(small_network(), tmp_path / "small.onnx", progress=False)
    summary = check(path)
    model = onnx.load(path)
    assert [spec.name for spec in summary.inputs] == ["input"]
    assert [spec.name for spec in summary.outputs] == ["output"]
    assert summary.inputs[0].shape == (None, 3, 32, 64)
    assert summary.outputs[0].shape == (None, 20, 32, 64)
    assert {value.type.tensor_type.shape.dim[0].dim_param for value in (*model.graph.input, *model.graph.output)} == {
        "batch"
    }
    assert summary.opset == 17
    x = random_input((3, 3, 32, 64), scale=50)
    expected = np.asarray(small_network()(x, training=False))
    assert relative_error(run_onnx(path, {"input": x})[0], expected) < ROUNDING


def test_the_channel_first_network_has_no_transpose_left(tmp_path):
    path = keras_to_onnx(small_network(), tmp_path / "small.onnx", progress=False)
    assert "Transpose" not in check(path).operators


def test_two_inputs_and_two_outputs_keep_their_names_and_order(tmp_path):
    model = two_input_network()
    path = keras_to_onnx(model, tmp_path / "two.onnx", progress=False)
    assert tensor_names(model)[0] == ("left", "right")
    feed = {"left": random_input((2, 8), 1), "right": random_input((2, 8), 2)}
    expected = [np.asarray(answer) for answer in model(list(feed.values()))]
    names = [spec.name for spec in check(path).outputs]
    assert names == list(tensor_names(model)[1])
    for got, want in zip(run_onnx(path, feed), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=ROUNDING)


def test_the_tutorials_two_steps_give_the_same_network_as_one(tmp_path):
    names = keras_to_pb(small_network(), tmp_path / "small.pb")
    assert names == (("input",), ("output",))
    pb_to_onnx(tmp_path / "small.pb", tmp_path / "a.onnx", inputs=names[0], outputs=names[1], progress=False)
    keras_to_onnx(small_network(), tmp_path / "b.onnx", progress=False)
    x = random_input((1, 3, 32, 64), scale=50)
    assert check(tmp_path / "a.onnx").operators == check(tmp_path / "b.onnx").operators
    np.testing.assert_array_equal(
        run_onnx(tmp_path / "a.onnx", {"input": x})[0], run_onnx(tmp_path / "b.onnx", {"input": x})[0]
    )


def test_the_command_line_shown_gives_the_same_answer(tmp_path):
    inputs, outputs = keras_to_pb(small_network(), tmp_path / "small.pb")
    keras_to_onnx(small_network(), tmp_path / "ours.onnx", progress=False)
    command = tf2onnx_command(tmp_path / "small.pb", tmp_path / "theirs.onnx", inputs, outputs)
    words = shlex.split(command)
    assert words[0] == "python"
    subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True, timeout=200)
    x = random_input((1, 3, 32, 64), scale=50)
    ours, theirs = (run_onnx(tmp_path / name, {"input": x})[0] for name in ("ours.onnx", "theirs.onnx"))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("size", [(32, 48), (30, 46)])
def test_an_open_size_is_fixed_at_export_and_the_resize_is_exact(tmp_path, size):
    model = upsampling_network()
    path = keras_to_onnx(model, tmp_path / "up.onnx", spatial=size, progress=False)
    resizes = [node for node in onnx.load(path).graph.node if node.op_type == "Resize"]
    attributes = {a.name: a.s for a in resizes[0].attribute if a.s}
    assert attributes["coordinate_transformation_mode"] == b"half_pixel"
    assert attributes["nearest_mode"] == b"round_prefer_ceil"
    x = random_input((2, *size, 3))
    expected = np.asarray(model(x, training=False))
    assert relative_error(run_onnx(path, {"input": x})[0], expected) < ROUNDING


def test_an_open_size_without_spatial_is_refused_with_what_to_give(tmp_path):
    with pytest.raises(ExportError, match=r"open; give spatial=\(height, width\)"):
        keras_to_onnx(upsampling_network(), tmp_path / "up.onnx", progress=False)


def test_another_size_than_the_model_is_fixed_to_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r"fixed to .*got spatial=\(64, 64\)"):
        keras_to_onnx(small_network(), tmp_path / "x.onnx", spatial=(64, 64), progress=False)


def test_a_model_that_was_never_called_is_refused(tmp_path):
    keras = load_keras()
    with pytest.raises(ExportError, match="no input shapes yet; call it once"):
        keras_to_onnx(keras.Sequential([keras.layers.Dense(2)]), tmp_path / "x.onnx", progress=False)


def test_a_subclass_is_refused_even_after_a_call_and_the_way_out_works(tmp_path):
    keras = load_keras()

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x):
            return self.dense(x)

    model, x = Own(), random_input((2, 4))
    expected = np.asarray(model(x))
    with pytest.raises(ExportError, match=r"\(Own\) does not say what it takes, called or not; wrap it"):
        keras_to_onnx(model, tmp_path / "x.onnx", progress=False)
    vector = keras.Input((4,))
    path = keras_to_onnx(keras.Model(vector, model(vector)), tmp_path / "x.onnx", progress=False)
    assert relative_error(run_onnx(path, {"input": x})[0], expected) < ROUNDING


def test_a_lambda_layer_of_the_callers_own_model_converts(tmp_path):
    keras = load_keras()
    vector = keras.Input((4,))
    model = keras.Model(vector, keras.layers.Lambda(lambda x: x * 2)(vector))
    path = keras_to_onnx(model, tmp_path / "x.onnx", progress=False)
    np.testing.assert_array_equal(run_onnx(path, {"input": np.ones((1, 4), np.float32)})[0], [[2.0] * 4])


def test_three_inputs_of_different_types_convert(tmp_path):
    keras = load_keras()
    keras.utils.set_random_seed(6)
    layers = keras.layers
    image, vector = keras.Input((8, 8, 3), name="image"), keras.Input((5,), name="vector")
    words = keras.Input((4,), dtype="int32", name="words")
    parts = [layers.Flatten()(layers.Conv2D(2, 3)(image)), vector, layers.Flatten()(layers.Embedding(9, 3)(words))]
    model = keras.Model([image, vector, words], layers.Dense(3)(layers.Concatenate()(parts)))
    feed = {"image": random_input((2, 8, 8, 3)), "vector": random_input((2, 5), 1)}
    feed["words"] = np.arange(8, dtype=np.int32).reshape(2, 4)
    path = keras_to_onnx(model, tmp_path / "x.onnx", progress=False)
    assert [(spec.name, spec.dtype) for spec in check(path).inputs] == [
        ("image", "float32"), ("vector", "float32"), ("words", "int32"),
    ]  # fmt: skip
    assert relative_error(run_onnx(path, feed)[0], np.asarray(model(list(feed.values())))) < ROUNDING


def test_strings_are_refused_with_what_to_do(tmp_path):
    keras = load_keras()
    text = keras.Input((1,), dtype="string")
    model = keras.Model(text, keras.layers.StringLookup(vocabulary=["a", "b"])(text))
    with pytest.raises(
        ExportError, match="'input' takes strings, expected numbers; take the layers that read text out"
    ):
        keras_to_onnx(model, tmp_path / "x.onnx", progress=False)


def test_a_python_if_on_the_input_is_refused_with_what_to_write_instead(tmp_path):
    keras = load_keras()

    class Choice(keras.layers.Layer):
        def compute_output_shape(self, shape):
            return shape

        def call(self, x):
            return x * 2 if keras.ops.sum(x) > 0 else x - 1

    vector = keras.Input((4,))
    with pytest.raises(ExportError, match=r"decides by the values of its input.*keras\.ops\.where or keras\.ops\.cond"):
        keras_to_onnx(keras.Model(vector, Choice()(vector)), tmp_path / "x.onnx", progress=False)


def test_each_exporter_writes_its_own_opset_unless_asked():
    assert (default_opset("tf2onnx"), default_opset("keras2onnx"), default_opset("keras2onnx", 12)) == (17, 15, 12)


def test_an_unknown_exporter_is_refused(tmp_path):
    with pytest.raises(ExportError, match="got exporter='magic', expected one of tf2onnx, keras2onnx"):
        keras_to_onnx(small_network(), tmp_path / "x.onnx", exporter="magic")


def test_an_operator_without_onnx_counterpart_is_named_and_leaves_no_file(tmp_path):
    keras = load_keras()
    import tensorflow as tf

    class Determinant(keras.layers.Layer):
        def call(self, x):
            return tf.linalg.expm(x)

    matrix = keras.Input((3, 3), batch_size=2)
    model = keras.Model(matrix, Determinant()(matrix))
    with pytest.raises(ExportError) as caught:
        keras_to_onnx(model, tmp_path / "x.onnx", progress=False)
    assert "Matrix" in str(caught.value) or "cannot convert" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_layer_defined_in_the_callers_process_converts(tmp_path):
    keras = load_keras()

    class Shifted(keras.layers.Layer):
        def call(self, x):
            return x + 1.5

    vector = keras.Input((4,))
    path = keras_to_onnx(keras.Model(vector, Shifted()(vector)), tmp_path / "x.onnx", progress=False)
    np.testing.assert_array_equal(run_onnx(path, {"input": np.zeros((1, 4), np.float32)})[0], [[1.5] * 4])


def test_an_output_in_a_missing_folder_is_refused_before_the_work(tmp_path):
    with pytest.raises(OutputError, match="does not exist; create it first"):
        keras_to_onnx(small_network(), tmp_path / "nowhere" / "x.onnx", progress=False)


def test_an_output_that_is_a_directory_is_refused(tmp_path):
    with pytest.raises(OutputError, match="got the directory"):
        keras_to_onnx(small_network(), tmp_path, progress=False)


INTERRUPTED = """
import sys
sys.path.insert(0, {tests!r})
from networks import small_network
from workbench.cli.main import main
small_network().save({keras!r})
print("go", flush=True)
sys.exit(main(["convert", {keras!r}, {out!r}]))
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to a process group")
def test_ctrl_c_in_the_middle_of_an_export_leaves_no_half_file(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    script = INTERRUPTED.format(
        tests=str(Path(__file__).parents[1]), keras=str(tmp_path / "s.keras"), out=str(out / "s.onnx")
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout.readline() == "go\n"
    deadline = time.monotonic() + 60
    while not list(out.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)  # the temporary file appears when the conversion starts
    assert list(out.iterdir()), "the conversion never started"
    os.killpg(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert "interrupted" in errors
    assert list(out.iterdir()) == []


def test_two_exports_at_once_into_one_folder_both_succeed(tmp_path):
    model_path = tmp_path / "small.keras"
    small_network().save(model_path)
    command = [sys.executable, "-m", "workbench.cli.main", "convert", str(model_path)]
    children = [
        subprocess.Popen([*command, str(tmp_path / "same.onnx")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for child in children:
        _, errors = child.communicate(timeout=200)
        assert child.returncode == 0, errors.decode()
    check(tmp_path / "same.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["same.onnx", "small.keras"]


@pytest.mark.parametrize("size", [(33, 64), (64, 100), (0, 32)])
def test_a_size_that_does_not_divide_by_32_names_the_padded_size(size):
    padded = fcn_vgg16.padded_size(max(size[0], 1), size[1])
    with pytest.raises(ValueError, match=f"rescale the image to {padded[0]} x {padded[1]}"):
        fcn_vgg16.build(load_keras(), input_size=size)
