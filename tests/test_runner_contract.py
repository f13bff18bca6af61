"""One contract for every runner: the same questions, whatever computes."""

import numpy as np
import pytest
from networks import random_input, small_network, two_input_network

from workbench.errors import FeedError, InputError, ModelError
from workbench.export.keras_model import keras_to_onnx, keras_to_pb
from workbench.runners import open_runner

KINDS = ("keras", "saved_model", "frozen_graph", "onnxruntime")
BACKENDS = {
    "keras": "keras",
    "saved_model": "tensorflow",
    "frozen_graph": "tensorflow",
    "onnxruntime": "onnxruntime",
}


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contract")
    model = small_network()
    model.export(folder / "saved_model", verbose=False)
    keras_to_pb(model, folder / "small.pb")
    keras_to_onnx(model, folder / "small.onnx", progress=False)
    keras_to_onnx(two_input_network(), folder / "two.onnx", progress=False)
    return {
        "keras": model,
        "saved_model": folder / "saved_model",
        "frozen_graph": folder / "small.pb",
        "onnxruntime": folder / "small.onnx",
        "two inputs": folder / "two.onnx",
    }


@pytest.fixture(params=KINDS)
def runner(request, targets):
    with open_runner(targets[request.param]) as runner:
        assert runner.info.backend == BACKENDS[request.param]
        yield runner


def test_it_says_what_it_is_and_why(runner):
    assert runner.info.version in runner.info.name
    assert runner.reason.startswith(runner.info.name)


def test_it_names_its_tensors(runner):
    assert runner.inputs["input"].shape == (None, 3, 32, 64)
    assert runner.inputs["input"].dtype == "float32"
    assert list(runner.outputs) == ["output"]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_it_takes_any_batch_and_gives_the_reference_answer(runner, batch):
    x = random_input((batch, 3, 32, 64), batch, scale=50)
    expected = np.asarray(small_network()(x, training=False))
    got = runner.infer({"input": x})["output"]
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    # float32 sums in another order: measured below 1e-6 of the range
    assert np.abs(got - expected).max() < 1e-5 * np.ptp(expected)


def test_it_gives_fresh_arrays_and_leaves_the_feed_alone(runner):
    x, y = random_input((1, 3, 32, 64), 1, 50), random_input((1, 3, 32, 64), 2, 50)
    kept = x.copy()
    first = runner.infer({"input": x})["output"]
    snapshot = first.copy()
    second = runner.infer({"input": y})["output"]
    np.testing.assert_array_equal(first, snapshot)
    np.testing.assert_array_equal(x, kept)
    assert not np.shares_memory(first, second)
    first[...] = 0  # the caller owns it


def test_it_takes_arrays_that_are_not_contiguous(runner):
    x = random_input((1, 32, 64, 3), 3, 50)
    view = x.transpose(0, 3, 1, 2)
    expected = runner.infer({"input": np.ascontiguousarray(view)})["output"]
    np.testing.assert_array_equal(runner.infer({"input": view})["output"], expected)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({}, "missing"),
        ({"input": np.zeros((1, 32, 64, 3), np.float32)}, "transpose"),
        ({"input": np.zeros((3, 32, 64), np.float32)}, r"x\[None\]"),
        ({"input": np.zeros((1, 3, 32, 64))}, "astype"),
        ({"input": np.full((1, 3, 32, 64), np.nan, np.float32)}, "NaN"),
    ],
)
def test_a_wrong_feed_is_refused_before_anything_runs(runner, feed, message):
    with pytest.raises(FeedError, match=message):
        runner.infer(feed)


def test_a_closed_runner_says_so(runner):
    runner.close()
    runner.close()
    with pytest.raises(InputError, match="closed; open it again"):
        runner.infer({"input": np.zeros((1, 3, 32, 64), np.float32)})


def test_outputs_come_by_name_from_a_network_with_two(targets):
    feed = {"left": random_input((1, 8), 1), "right": random_input((1, 8), 2)}
    with open_runner(two_input_network()) as keras, open_runner(targets["two inputs"]) as onnx:
        expected, got = keras.infer(feed), onnx.infer(feed)
    assert list(got) == list(expected)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "backend", "message"),
    [
        ("onnxruntime", "keras", "got an .onnx file for backend='keras'"),
        ("keras", "onnxruntime", "convert the model first"),
        ("keras", "abacus", "got backend='abacus', expected one of"),
    ],
)
def test_a_backend_that_cannot_run_the_target_is_refused(targets, kind, backend, message):
    with pytest.raises(InputError, match=message):
        open_runner(targets[kind], backend)


def test_an_onnx_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        open_runner(tmp_path / "nothing.onnx")
