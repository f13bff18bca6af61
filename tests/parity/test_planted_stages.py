"""Faults planted in one stage of a chain: `verify` must name that stage, and the layer.

The network has every part that conversions break: a mean, batch normalisation, a 3 x 3 kernel, a Resize, a
convolution whose numbers are near the end of float16. Its batch norm is calibrated, so that the answers vary.
"""

import functools
import shutil

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image
from street_scenes import generate_scene

from workbench import onnx_graph
from workbench.cli import main as cli
from workbench.core.packages import load_keras, load_tensorflow
from workbench.export.keras_model import frozen_to_onnx
from workbench.models.files import freeze_model
from workbench.models.freezing import freeze_function
from workbench.parity import stages
from workbench.parity.stages import verify

SIZE = (64, 96)
STAGES = {"raw ONNX": "raw.onnx", "fixed ONNX": "fixed.onnx"}


@functools.cache
def network():
    """Pictures -1..1 to eight channels of logits: mean, conv, batch norm, conv, Resize, two convs."""
    keras = load_keras()
    keras.utils.set_random_seed(11)
    layers = keras.layers
    picture = keras.Input((*SIZE, 3), name="picture")
    x = layers.Rescaling(2.0, offset=[-0.7, -0.2, 0.4], name="mean")(picture)
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="first")(x)
    x = layers.BatchNormalization(momentum=0.0, name="norm")(x)
    x = layers.ReLU(name="active")(x)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="second")(x)
    x = layers.Resizing(*SIZE, interpolation="nearest", name="larger")(x)
    x = layers.Conv2D(8, 1, name="hot")(x)
    x = layers.ReLU(name="positive")(x)
    model = keras.Model(picture, layers.Conv2D(8, 3, padding="same", name="scores")(x), name="planted")
    scenes = np.stack([generate_scene(seed, *SIZE).image / 127.5 - 1 for seed in (3, 4, 5)]).astype(np.float32)
    model(scenes, training=True)
    hot, scores = model.get_layer("hot"), model.get_layer("scores")
    hot.set_weights([weight * 3e5 for weight in hot.get_weights()])
    scores.set_weights([weight / 3e5 for weight in scores.get_weights()])
    return model


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A folder with the healthy ONNX files and two pictures."""
    folder = tmp_path_factory.mktemp("stages")
    frozen_to_onnx(freeze_model(network()), folder / "raw.onnx")
    onnx_graph.fix(folder / "raw.onnx", folder / "fixed.onnx", progress=False)
    (folder / "pictures").mkdir()
    for seed in (6, 7):
        Image.fromarray(generate_scene(seed, *SIZE).image).save(folder / "pictures" / f"{seed}.png")
    return folder


@pytest.fixture
def plant(monkeypatch, healthy):
    """Let one stage be made wrongly: `plant(stage, fault)`; the other stages are the healthy ones."""

    def plant(stage, fault):
        def make(source, path, **options):
            name = next(name for name, file in STAGES.items() if file == path.name)
            if name == stage:
                model = onnx.load(healthy / path.name)
                fault(model)
                onnx.save(model, path)
            else:  # a healthy fix of a broken graph keeps what is broken
                broken = name == "fixed ONNX" and stage == "raw ONNX"
                shutil.copy(source if broken else healthy / path.name, path)

        monkeypatch.setattr(stages, "frozen_to_onnx", lambda frozen, path: make(None, path) or path)
        monkeypatch.setattr(stages, "fix", make)

    return plant


def swap_channels(model):
    """RGB read as BGR: the first kernel sees its input channels in reverse order."""
    change_kernel(model, (8, 3, 3, 3), lambda kernel: kernel[:, ::-1])


def lose_the_mean(model):
    """The constant that is added to the picture becomes 0."""
    add = next(node for node in model.graph.node if node.op_type == "Add")
    change_weight(model, add.input[1], np.zeros_like)


def transpose_kernel(model):
    """Rows and columns of the second kernel change places."""
    change_kernel(model, (8, 8, 3, 3), lambda kernel: kernel.swapaxes(2, 3))


def shift_resize(model):
    """The map of pixels of `target=["tensorrt"]` is one source pixel off for half of the rows and columns."""
    for node in model.graph.node:
        if node.op_type == "Resize":
            del node.attribute[:]
            names = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "ceil"}
            node.attribute.extend(helper.make_attribute(name, value) for name, value in names.items())


def overflow_weights(model):
    """NumPy casts a kernel of more than 65504 to float16 and back."""
    change_kernel(model, (8, 8, 1, 1), through_float16)


def overflow_activations(model):
    """The Resize's answer times 3e5 goes through float16, as in a network whose `hot` layer runs in half precision."""
    place, node = next((i, n) for i, n in enumerate(model.graph.node) if n.op_type == "Conv" and is_hot(model, n))
    wanted = node.output[0]
    node.output[0] = "before_casts"
    casts = [
        helper.make_node("Cast", ["before_casts"], ["half"], to=onnx.TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], [wanted], to=onnx.TensorProto.FLOAT),
    ]
    for offset, cast in enumerate(casts):
        model.graph.node.insert(place + 1 + offset, cast)


def is_hot(model, node):
    kernel = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    return tuple(kernel.dims) == (8, 8, 1, 1)


def through_float16(kernel):
    with np.errstate(over="ignore"):
        return kernel.astype(np.float16).astype(np.float32)


def change_kernel(model, shape, change):
    name = next(tensor.name for tensor in model.graph.initializer if tuple(tensor.dims) == shape)
    change_weight(model, name, change)


def change_weight(model, name, change):
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    changed = np.ascontiguousarray(change(numpy_helper.to_array(tensor)))
    tensor.CopyFrom(numpy_helper.from_array(changed, name))


FAULTS = {
    "swapped channels": (swap_channels, "first"),
    "missing mean": (lose_the_mean, "mean"),
    "transposed kernel": (transpose_kernel, "second"),
    "shifted Resize": (shift_resize, "larger"),
    "float16 overflow of weights": (overflow_weights, "hot"),
    "float16 overflow of activations": (overflow_activations, "hot"),
}


def judge(healthy, **options):
    return verify(network(), images=healthy / "pictures", progress=False, **options)


def test_without_a_fault_every_stage_passes_and_the_engine_is_named(healthy, plant):
    plant(None, None)
    report = judge(healthy)
    assert report.status == "pass", report.to_text()
    assert report.stage_at_fault is None
    assert [stage.name for stage in report.stages] == ["Keras", "frozen graph", "raw ONNX", "fixed ONNX", "engine"]
    engine = report.stages[-1]
    assert bool(engine.runner) != bool(engine.skipped), "the engine ran, or the report says why not"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_an_onnx_stage_is_named_with_its_layer(healthy, plant, fault, stage):
    change, layer = FAULTS[fault]
    plant(stage, change)
    report = judge(healthy)
    assert report.status == "fail", report.to_text()
    assert report.stage_at_fault == stage, report.to_text()
    assert report.divergence is not None
    assert report.divergence.layer is not None, report.to_text()
    named = report.divergence.layer.layer.split(" + ")
    assert layer in named, report.to_text()
    assert len(named) <= 2, "more would not help anybody"
    assert f"the stage {stage} breaks the network" in report.verdict
    assert layer in report.verdict
    if "overflow" in fault:
        assert "not finite" in report.verdict


def freeze_in_training_mode(model, *, spatial=None):
    """Freeze as an exporter does that forgot `training=False`: batch norm uses the mean of the batch."""
    tf = load_tensorflow()

    spec = tf.TensorSpec((None, *SIZE, 3), tf.float32)
    graph = tf.compat.v1.wrap_function(lambda picture: model(picture, training=True), [spec])
    return freeze_function(graph.prune(graph.inputs[0], graph.outputs), ("input",), ("output",))


def test_batch_norm_in_training_mode_is_named_in_the_stage_that_froze_it(healthy, plant, monkeypatch):
    plant(None, None)
    monkeypatch.setattr(stages, "freeze_model", freeze_in_training_mode)
    report = judge(healthy)
    assert report.stage_at_fault == "frozen graph", report.to_text()
    assert report.divergence.layer.layer.split(" + ")[-1] == "norm", report.to_text()


def test_batch_norm_in_training_mode_is_named_in_the_onnx_file(healthy, plant, tmp_path):
    wrong = frozen_to_onnx(freeze_in_training_mode(network()), tmp_path / "training.onnx")
    plant("raw ONNX", lambda model: model.CopyFrom(onnx.load(wrong)))
    report = judge(healthy)
    assert report.stage_at_fault == "raw ONNX", report.to_text()
    assert report.divergence.layer.layer.split(" + ")[-1] == "norm", report.to_text()


def test_the_command_names_stage_and_layer_in_its_first_line(healthy, plant, tmp_path, capsys):
    plant("raw ONNX", transpose_kernel)
    network().save(tmp_path / "my.keras")
    files = ["--json", str(tmp_path / "r.json"), "--figure", str(tmp_path / "f.png"), "--keep", str(tmp_path / "kept")]
    status = cli.main(["verify", str(tmp_path / "my.keras"), "--images", str(healthy / "pictures"), *files])
    first = capsys.readouterr().out.splitlines()[0]
    assert status == 1
    assert first.startswith("FAIL: the stage raw ONNX breaks the network")
    assert "begins at layer second (Conv)" in first
    assert (tmp_path / "kept" / "raw.onnx").is_file()
    assert Image.open(tmp_path / "f.png").width == 1500
    assert '"stage_at_fault": "raw ONNX"' in (tmp_path / "r.json").read_text()
