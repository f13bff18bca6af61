"""The verdict is only worth something if it fails when it should: five faults, planted one by one, each must be caught.

Each fault is one that a conversion really makes, on networks whose answers depend on the input:
ResNet-50 with calibrated random weights, and the segmentation network with its demonstration weights.
"""

import functools

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from street_scenes import generate_scene

from workbench.core.contract import Runner, RunnerInfo
from workbench.core.packages import load_keras
from workbench.export.keras_model import keras_to_onnx
from workbench.models import fcn_vgg16, resnet50
from workbench.parity.divergence import first_divergence
from workbench.pictures.images import CITYSCAPES_MEAN, IMAGENET_MEAN_BGR, photographs
from workbench.runners.backends import open_runner
from workbench.runners.compare import compare_runners

SIZE = (128, 256)


class Faulty(Runner):
    """A runner that passes its feed through a fault first."""

    def __init__(self, runner, fault):
        super().__init__(runner.info, runner.inputs, runner.outputs)
        self.runner, self.fault = runner, fault

    def _infer(self, feed):
        return self.runner.infer({name: np.ascontiguousarray(self.fault(array)) for name, array in feed.items()})


class InTrainingMode(Runner):
    """Keras with batch normalisation left in training mode."""

    def __init__(self, model, runner):
        super().__init__(RunnerInfo("keras", "3", "training mode"), runner.inputs, runner.outputs)
        self.model = model

    def _infer(self, feed):
        return {"output": np.array(self.model(feed["input"], training=True))}


class Network:
    """A model, its ONNX file, feeds, and where its channels, rows and mean are."""

    def __init__(self, model, path, feeds, channel_axis, row_axis, mean):
        self.model, self.path, self.feeds = model, path, feeds
        self.channel_axis, self.row_axis = channel_axis, row_axis
        self.mean = np.float32(mean).reshape([3 if axis == channel_axis else 1 for axis in range(4)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("planted")


@functools.cache
def classifier(folder):
    model = resnet50.build(load_keras(), weights="random").model
    path = keras_to_onnx(model, folder / "resnet50.onnx", progress=False)
    feeds = [(name, {"input": resnet50.preprocess(image)[None]}) for name, image in photographs().items()]
    return Network(model, path, feeds, 3, 1, IMAGENET_MEAN_BGR)


@functools.cache
def segmenter(folder):
    from workbench.models.fcn_vgg16 import street_input

    model = fcn_vgg16.demonstration_model(load_keras(), SIZE)
    path = keras_to_onnx(model, folder / "fcn.onnx", progress=False)
    feeds = [(f"scene {seed}", {"input": street_input(generate_scene(seed, *SIZE).image, SIZE)}) for seed in (1, 2)]
    return Network(model, path, feeds, 1, 2, CITYSCAPES_MEAN)


NETWORKS = {"resnet50": classifier, "fcn_vgg16": segmenter}


@pytest.fixture(params=NETWORKS)
def network(request, folder):
    return NETWORKS[request.param](folder)


def judge(network, plant=lambda runner: runner, path=None):
    with open_runner(network.model) as reference, open_runner(path or network.path) as candidate:
        return compare_runners(reference, plant(candidate), network.feeds)


def test_without_a_fault_the_verdict_is_a_pass(network):
    report = judge(network)
    assert report.passed, report.to_text()


FAULTS = {
    "swapped channels": lambda network: lambda x: np.flip(x, network.channel_axis),
    "missing mean": lambda network: lambda x: x + network.mean,
    "one-pixel shift": lambda network: lambda x: np.roll(x, 1, network.row_axis),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_input_fails(network, fault):
    report = judge(network, lambda runner: Faulty(runner, FAULTS[fault](network)))
    assert report.status == "fail", f"{fault}: {report.to_text()}"


def transpose_first_square_kernel(path, out):
    """Swap rows and columns of the first 3 x 3 kernel, as a converter with the wrong layout would."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        kernel = numpy_helper.to_array(tensor)
        if kernel.ndim == 4 and kernel.shape[2:] == (3, 3):
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(kernel.swapaxes(2, 3)), tensor.name))
            break
    onnx.save(model, out)
    return out


def test_a_transposed_kernel_fails(network, tmp_path):
    report = judge(network, path=transpose_first_square_kernel(network.path, tmp_path / "transposed.onnx"))
    assert report.status == "fail", report.to_text()


def test_batch_norm_in_training_mode_fails(folder):
    network = classifier(folder)
    weights = network.model.get_weights()  # training mode moves the averages; the next test takes the same model
    report = judge(network, lambda runner: InTrainingMode(network.model, runner))
    network.model.set_weights(weights)
    assert report.status == "fail", report.to_text()


def test_a_shift_of_the_answer_is_named(folder):
    network = segmenter(folder)

    class Shifted(Faulty):
        def _infer(self, feed):
            return {"output": np.roll(self.runner.infer(feed)["output"], 1, axis=3)}

    report = judge(network, lambda runner: Shifted(runner, None))
    assert report.status == "fail"
    assert report.outputs[0].shift == (0, 1)
    assert "shift" in report.verdict


def test_the_layer_of_a_transposed_kernel_is_named(folder, tmp_path):
    """The divergence walk on a real depth: one of 53 kernels of ResNet-50, in the middle of the network."""
    network = classifier(folder)
    model = onnx.load(network.path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    kernels = [weights[node.input[1]] for node in model.graph.node if node.op_type == "Conv"]
    # one 3 x 3 kernel in each block, of which there are 3 and 4 before the third block of conv4
    kernel = [tensor for tensor in kernels if tuple(tensor.dims[2:]) == (3, 3)][3 + 4 + 2]
    turned = np.ascontiguousarray(numpy_helper.to_array(kernel).swapaxes(2, 3))
    kernel.CopyFrom(numpy_helper.from_array(turned, kernel.name))
    onnx.save(model, tmp_path / "turned.onnx")
    feed = network.feeds[0][1]
    healthy = first_divergence(network.model, network.path, feed, progress=False)
    assert healthy.kind == "none", healthy.to_text()
    found = first_divergence(network.model, tmp_path / "turned.onnx", feed, progress=False, budget_bytes=16 << 20)
    assert found.layer is not None, found.to_text()
    assert "conv4_block3_2_conv" in found.layer.layer.split(" + "), found.to_text()
    assert found.fetched_bytes <= 16 << 20
    assert len(found.layers) < found.pairs / 2, "a bisection, not a scan"
