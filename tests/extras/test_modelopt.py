"""NVIDIA's Model Optimizer in its child process, on the demonstration network."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest

from workbench.core.packages import load_keras
from workbench.export.keras_model import keras_to_onnx
from workbench.models import fcn_vgg16
from workbench.onnx_graph.file import check
from workbench.pictures.feeds import make_feeds
from workbench.precision.calibration import calibrate
from workbench.precision.quantize import quantize_fp8, quantize_int8


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "fcn.onnx"
    return keras_to_onnx(fcn_vgg16.demonstration_model(load_keras(), (64, 128)), path, progress=False)


def feeds(network):
    return make_feeds({spec.name: spec for spec in check(network).inputs}, preprocess="cityscapes")


@pytest.fixture(scope="module")
def calibration(network):
    return calibrate(network, feeds(network), preprocess="cityscapes", progress=False)


def answer(path, feed):
    options = onnxruntime.SessionOptions()
    # ONNX Runtime 1.31.1 fuses float8 pairs into kernels that it does not have
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feed)[0]


def test_int8_by_modelopt_and_by_onnx_runtime_give_the_same_answer(network, calibration, tmp_path):
    ours, theirs = tmp_path / "ours.onnx", tmp_path / "theirs.onnx"
    reports = [
        quantize_int8(network, ours, calibration),
        quantize_int8(network, theirs, calibration, backend="modelopt"),
    ]
    assert {(report.converted, report.qdq_pairs) for report in reports} == {(21, 40)}
    feed = next(feeds(network))[1]
    # the same numbers in another order of nodes
    np.testing.assert_allclose(answer(ours, feed), answer(theirs, feed), atol=1e-3)


def test_float8_by_modelopt_names_what_it_leaves_out(network, calibration, tmp_path):
    report = quantize_fp8(network, tmp_path / "q.onnx", calibration, backend="modelopt")
    assert report.qdq_pairs == Counter(n.op_type for n in onnx.load(tmp_path / "q.onnx").graph.node)["DequantizeLinear"]
    assert report.converted + len(report.kept) == 18
    assert ("fc6_1/BiasAdd", "Conv", "left out by modelopt") in [
        (name.split("/", 1)[1], operator, reason) for name, operator, reason in report.kept
    ]
    feed = next(feeds(network))[1]
    expected, got = answer(network, feed), answer(tmp_path / "q.onnx", feed)
    # 3 bits of mantissa are up to 6 % off for each number
    assert 0 < np.abs(got - expected).mean() < 0.15 * np.abs(expected).mean()


def test_the_source_stays_as_it_is(network, calibration, tmp_path):
    """nvidia-modelopt 0.47.0 writes over the file that it is given."""
    before = network.read_bytes()
    quantize_int8(network, tmp_path / "q.onnx", calibration, backend="modelopt")
    assert network.read_bytes() == before
