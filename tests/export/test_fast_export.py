"""The quick way through tf2onnx: the same graph as the stock one, and as its public functions."""

import importlib
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from conversions import convert_here, randomise, relative_error, run_onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import random_input, small_network

from workbench.core.packages import load_keras
from workbench.export import tf2onnx_child as fast_tf2onnx
from workbench.export import tf2onnx_process
from workbench.export import tf2onnx_process as graph_weights
from workbench.export.keras_model import keras_to_onnx, keras_to_pb
from workbench.models import freezing
from workbench.models.freezing import freeze
from workbench.onnx_graph.file import check
from workbench.runners.backends import open_runner

# Both compute the same float32 sums in another order: measured 2e-6 of the range and below on these small networks.
ROUNDING = 1e-5


def mixed_network():
    """What ends differently in a graph that was folded badly: batch norms, a rescaling, depthwise kernels, a branch."""
    keras = load_keras()
    layers = keras.layers
    image = keras.Input((16, 24, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1)(image)
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.ReLU(6)(layers.BatchNormalization()(x))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    y = layers.BatchNormalization()(y)
    y = layers.Multiply()([y, layers.Dense(8, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(y))])
    x = layers.UpSampling2D(2)(layers.Add()([x, y]))
    return randomise(keras.Model(image, layers.Dense(5)(layers.GlobalAveragePooling2D()(x))))


@pytest.mark.parametrize("build", [small_network, mixed_network])
def test_the_graph_is_the_stock_exporters(tmp_path, build):
    model = build()
    model(np.zeros((1, *model.inputs[0].shape[1:]), np.float32))  # the stock exporter refuses a model never called
    model.export(tmp_path / "stock.onnx", format="onnx", verbose=False)
    stock, ours = onnx.load(tmp_path / "stock.onnx"), convert_here(model)
    assert Counter(node.op_type for node in ours.graph.node) == Counter(node.op_type for node in stock.graph.node)


def test_batch_norms_disappear_into_their_convolutions():
    operators = Counter(node.op_type for node in convert_here(mixed_network()).graph.node)
    assert operators["Conv"] >= 2
    assert operators["BatchNormalization"] == 0
    assert operators["Sub"] == 0


@pytest.mark.parametrize("name", ["compress_graph_def", "process_tf_graph", "GraphOptimizerBase"])
def test_where_a_private_name_of_tf2onnx_is_gone_its_public_functions_give_the_same_graph(monkeypatch, capsys, name):
    importlib.import_module("tf2onnx.convert")
    model = mixed_network()
    fast = convert_here(model)
    assert "note" not in capsys.readouterr().out
    modules = {"compress_graph_def": "tf_utils", "process_tf_graph": "tfonnx"}
    owner = f"tf2onnx.{modules.get(name, 'optimizer.optimizer_base')}"
    # tf2onnx's modules have imported these names from each other already; only what the child imports is gone
    monkeypatch.delattr(sys.modules[owner], name)
    slow = convert_here(model)
    assert "note: tf2onnx or TensorFlow has changed inside" in capsys.readouterr().out
    assert Counter(n.op_type for n in slow.graph.node) == Counter(n.op_type for n in fast.graph.node)
    x = random_input((2, 16, 24, 3), scale=60)
    np.testing.assert_array_equal(run_onnx(slow, x), run_onnx(fast, x))


@pytest.mark.parametrize(("name", "argument"), [("process_tf_graph", "const_node_values"), ("optimize_graph", "catch")])
def test_an_argument_with_another_name_also_takes_the_public_way(monkeypatch, capsys, name, argument):
    import tf2onnx.optimizer
    import tf2onnx.tfonnx

    module = tf2onnx.tfonnx if name == "process_tf_graph" else tf2onnx.optimizer
    monkeypatch.setattr(module, name, lambda graph, another_name=None: None)
    with pytest.raises(AttributeError, match=argument):
        fast_tf2onnx.fast_conversion()


@pytest.fixture
def altered_child(tmp_path, monkeypatch):
    """Make the exporter start a child that first runs the code given."""

    def alter(code):
        folder = tmp_path / "altered"
        folder.mkdir()
        lines = ["import os, sys", "from workbench.export import tf2onnx_child", code, "STATUS = tf2onnx_child.main()"]
        (folder / "altered_child.py").write_text("\n".join([*lines, "sys.exit(STATUS)"]))
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        monkeypatch.setenv("PYTHONPATH", path)
        monkeypatch.setattr(tf2onnx_process, "CHILD", "altered_child")

    return alter


def test_the_slower_way_is_said_to_the_reader(tmp_path, altered_child):
    altered_child("import tf2onnx.convert, tf2onnx.tf_utils; del tf2onnx.tf_utils.compress_graph_def")
    with pytest.warns(UserWarning, match="public functions convert: the same graph, slower"):
        path = keras_to_onnx(small_network(), tmp_path / "small.onnx", progress=False)
    x = random_input((1, 3, 32, 64), scale=50)
    assert relative_error(run_onnx(path, x), np.asarray(small_network()(x, training=False))) < ROUNDING


def test_without_tensorflows_graph_optimiser_the_slower_way_is_said_too(tmp_path, monkeypatch):
    def gone(*arguments):
        raise ImportError("tf_optimizer has moved")

    monkeypatch.setattr(tf2onnx_process, "fold_constants", gone)
    with pytest.warns(UserWarning, match="graph optimiser is not there"):
        path = keras_to_onnx(small_network(), tmp_path / "small.onnx", progress=False)
    assert "Transpose" not in check(path).operators


def test_weights_of_a_large_network_travel_beside_the_graph_and_end_beside_the_file(
    tmp_path, monkeypatch, altered_child
):
    altered_child("tf2onnx_child.LARGE_GRAPH_BYTES = 1000")
    monkeypatch.setattr(graph_weights, "LARGE_GRAPH_BYTES", 1000)
    monkeypatch.setattr(graph_weights, "_SMALL_WEIGHT_BYTES", 500)
    model = small_network()
    light, weights = graph_weights.split_weights(freeze(model).graph_def)
    assert light.ByteSize() < sum(map(len, weights.values())) / 10
    out = tmp_path / "out"
    out.mkdir()
    path = keras_to_onnx(model, out / "small.onnx", progress=False)
    assert sorted(file.name for file in out.iterdir()) == ["small.onnx", "small.onnx.data"]
    assert path.stat().st_size < (out / "small.onnx.data").stat().st_size / 10
    x = random_input((2, 3, 32, 64), scale=50)
    with open_runner(path) as runner:
        answer = runner.infer({"input": x})["output"]
    assert relative_error(answer, np.asarray(model(x, training=False))) < ROUNDING


def test_splitting_and_joining_gives_the_graph_back(monkeypatch):
    monkeypatch.setattr(graph_weights, "_LARGE_WEIGHT_BYTES", 500)
    graph_def = freeze(small_network()).graph_def
    before = graph_def.SerializeToString(deterministic=True)
    light, weights = graph_weights.split_weights(graph_def)
    assert graph_def.SerializeToString(deterministic=True) == before
    assert {node.op for node in light.node if node.name in weights} == {"Placeholder"}
    graph_weights.join_weights(light, weights)
    for old, new in zip(graph_def.node, light.node, strict=True):
        assert (old.name, old.op, old.attr["value"]) == (new.name, new.op, new.attr["value"])


def test_written_weights_are_read_back(tmp_path):
    weights = {"a": b"12345", "b/c": b"", "d": bytes(range(256)) * 40}
    index = graph_weights.write_weights(weights, tmp_path / "w.bin")
    assert graph_weights.read_weights(tmp_path / "w.bin", index) == weights
    assert graph_weights.read_weights(tmp_path / "w.bin", {}) == {}


def test_both_ways_of_freezing_give_the_same_graph_and_answer(tmp_path, monkeypatch):
    model = mixed_network()
    x = random_input((2, 16, 24, 3), scale=60)
    quick = convert_here(model)
    keras_to_pb(model, tmp_path / "quick.pb")
    monkeypatch.setattr(freezing, "_with_constants", lambda function: None)
    tensorflows = convert_here(model)
    keras_to_pb(model, tmp_path / "tensorflow.pb")
    assert Counter(n.op_type for n in quick.graph.node) == Counter(n.op_type for n in tensorflows.graph.node)
    np.testing.assert_array_equal(run_onnx(quick, x), run_onnx(tensorflows, x))
    for name in ("quick.pb", "tensorflow.pb"):
        with open_runner(tmp_path / name) as runner:
            assert relative_error(runner.infer({"input": x})["output"], np.asarray(model(x, training=False))) < ROUNDING


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_a_recurrent_network_converts(kind):
    keras = load_keras()
    series = keras.Input((6, 4))
    model = randomise(keras.Model(series, keras.layers.Dense(2)(getattr(keras.layers, kind)(5)(series))))
    x = random_input((3, 6, 4))
    assert relative_error(run_onnx(convert_here(model), x), np.asarray(model(x, training=False))) < ROUNDING


def test_control_flow_in_the_graphs_own_words_converts():
    keras = load_keras()
    ops = keras.ops

    class Choice(keras.layers.Layer):
        def build(self, shape):
            self.factor = self.add_weight(shape=(shape[-1],), initializer="ones")

        def call(self, x):
            x = ops.cond(ops.sum(x) > 0, lambda: x * self.factor, lambda: x - 1)
            return ops.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, v * self.factor + 1), (0, x))[1]

    vector = keras.Input((4,))
    model = keras.Model(vector, Choice()(vector))
    model.weights[0].assign([1.0, 2.0, 3.0, 4.0])
    converted = convert_here(model)
    for x in (np.full((2, 4), 0.5, np.float32), np.full((2, 4), -0.5, np.float32)):
        assert relative_error(run_onnx(converted, x), np.asarray(model(x, training=False))) < ROUNDING


def convolution(draw, layers, x):
    size, stride = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    kind = draw(st.sampled_from(["Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose"]))
    channels = [] if kind == "DepthwiseConv2D" else [draw(st.sampled_from([4, 6]))]
    options = {"strides": stride, "padding": "same", "use_bias": draw(st.booleans())}
    return getattr(layers, kind)(*channels, size, **options)(x)


def activation(draw, layers, x):
    return layers.Activation(draw(st.sampled_from(["relu", "relu6", "swish", "gelu", "elu", "tanh", "sigmoid"])))(x)


def normalisation(draw, layers, x):
    kind = draw(st.sampled_from(["BatchNormalization", "LayerNormalization", "Rescaling"]))
    return layers.Rescaling(0.3, offset=-0.2)(x) if kind == "Rescaling" else getattr(layers, kind)()(x)


def resampling(draw, layers, x):
    choices = [
        layers.MaxPooling2D(2, padding="same"), layers.AveragePooling2D(2, padding="same"), layers.UpSampling2D(2),
        layers.UpSampling2D((3, 2), interpolation="bilinear"), layers.ZeroPadding2D(((1, 0), (2, 1))),
        layers.Resizing(7, 11, interpolation="nearest"),
    ]  # fmt: skip
    return choices[draw(st.integers(0, len(choices) - 1))](x)


def branch(draw, layers, x):
    kind = draw(st.sampled_from(["Add", "Multiply", "Concatenate", "Maximum"]))
    return getattr(layers, kind)()([x, layers.Conv2D(x.shape[-1], 3, padding="same")(x)])


@st.composite
def networks(draw):
    """Two to six layers on a small picture, with weights of every kind, and an end that sums or keeps the picture."""
    keras = load_keras()
    layers = keras.layers
    image = keras.Input((8, 10, 3))
    x = image
    for step in draw(
        st.lists(st.sampled_from([convolution, activation, normalisation, resampling, branch]), min_size=2, max_size=6)
    ):
        x = step(draw, layers, x)
    if draw(st.booleans()):
        x = layers.Dense(4)(layers.GlobalAveragePooling2D()(x))
    return randomise(keras.Model(image, x), draw(st.integers(0, 99)))


@settings(max_examples=20)
@given(networks())
def test_random_small_networks_keep_their_answers(model):
    # A random network may multiply rounding: float32 is exact to 6e-8, on values up to 1000 times the result.
    converted = convert_here(model)
    for seed in (0, 1):
        x = random_input((2, 8, 10, 3), seed)
        assert relative_error(run_onnx(converted, x), np.asarray(model(x, training=False))) < 1e-4


def test_a_scalar_added_to_a_convolution_converts_quickly_and_without_transposes(capsys):
    keras = load_keras()
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False)(image) + 3.0
    model = randomise(keras.Model(image, keras.layers.GlobalMaxPooling2D()(keras.layers.ReLU(6)(x * 0.2))))
    converted = convert_here(model)
    assert "note" not in capsys.readouterr().out
    x = random_input((2, 8, 8, 3))
    assert relative_error(run_onnx(converted, x), np.asarray(model(x, training=False))) < ROUNDING


def test_where_the_quick_way_fails_the_public_functions_convert_and_it_is_said(monkeypatch, capsys):
    def fail(graph):
        raise ValueError("no such thing")

    monkeypatch.setattr(fast_tf2onnx, "_give_scalars_an_axis", fail)
    model = mixed_network()
    converted = convert_here(model)
    assert "note: the quick way through tf2onnx failed (no such thing)" in capsys.readouterr().out
    x = random_input((2, 16, 24, 3), scale=60)
    assert relative_error(run_onnx(converted, x), np.asarray(model(x, training=False))) < ROUNDING


def test_a_grouped_convolution_and_an_exact_gelu_convert():
    keras = load_keras()
    image = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(8, 3, groups=2, padding="same")(image)
    model = randomise(keras.Model(image, keras.layers.Dense(3)(keras.layers.Activation("gelu")(x))))
    operators = Counter(node.op_type for node in convert_here(model).graph.node)
    assert operators["Erf"] == 1
    x = random_input((2, 8, 8, 4))
    assert relative_error(run_onnx(convert_here(model), x), np.asarray(model(x, training=False))) < ROUNDING


WAITING = """
import time
from workbench.export.tf2onnx_process import Tf2onnxProcess
process = Tf2onnxProcess()
print(process._process.pid, flush=True)
time.sleep(100)
"""


@pytest.mark.skipif(os.name == "nt", reason="looks a process up as Linux and macOS do")
def test_the_child_ends_when_its_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").exists() and ") Z " in Path(f"/proc/{child}/stat").read_text():
            return  # it has ended, and nobody has asked how
        time.sleep(0.2)
    pytest.fail("the child still runs")
