"""ONNX Runtime on the GPU under the runner contract, and behind our buffers."""

import numpy as np
import pytest
from _onnxruntime_engine import OnnxRuntimeEngine
from onnx import helper
from onnx_networks import mixed_feed, picture, save_mixed_network, save_network, save_picture_network

from workbench.core.driver import require_gpu
from workbench.core.errors import FeedError, InputError
from workbench.engine.inference import allocate_buffers, do_inference
from workbench.runners.onnxruntime_runner import OnnxRuntimeRunner

pytestmark = pytest.mark.needs("onnxruntime-cuda")


@pytest.fixture
def path(tmp_path):
    return save_picture_network(tmp_path / "picture.onnx")


@pytest.fixture
def runner(path):
    with OnnxRuntimeRunner(path, device="cuda") as runner:
        yield runner


def test_it_says_that_a_gpu_computed(runner):
    assert runner.info.name == f"ONNX Runtime {runner.info.version} ({require_gpu().name})"


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_it_takes_any_batch_and_gives_the_answer_of_the_cpu(runner, path, batch, record_property):
    x = picture(batch, batch)
    with OnnxRuntimeRunner(path) as cpu:
        expected = cpu.infer({"input": x})
    got = runner.infer({"input": x})
    for name, array in expected.items():
        error = float(np.abs(got[name] - array).max() / np.ptp(array))
        record_property(f"largest error of {name} over its range", error)
        assert got[name].shape == array.shape and got[name].dtype == array.dtype
        assert error < 1e-5  # float32 in another order


def test_it_gives_fresh_arrays_and_leaves_the_feed_alone(runner):
    x, y = picture(1, 1), picture(1, 2)
    kept = x.copy()
    first = runner.infer({"input": x})["output"]
    snapshot = first.copy()
    second = runner.infer({"input": y})["output"]
    np.testing.assert_array_equal(first, snapshot)
    np.testing.assert_array_equal(x, kept)
    assert not np.shares_memory(first, second)
    first[...] = 0


def test_it_takes_arrays_that_are_not_contiguous(runner):
    view = np.asfortranarray(picture(1, 3))
    expected = runner.infer({"input": np.ascontiguousarray(view)})["output"]
    np.testing.assert_array_equal(runner.infer({"input": view})["output"], expected)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({}, "missing"),
        ({"input": picture(1).transpose(0, 2, 3, 1)}, "transpose"),
        ({"input": picture(1)[0]}, r"x\[None\]"),
        ({"input": picture(1).astype(np.float64)}, "astype"),
        ({"input": picture(1) * np.float32(np.nan)}, "NaN"),
    ],
)
def test_a_wrong_feed_is_refused(runner, feed, message):
    with pytest.raises(FeedError, match=message):
        runner.infer(feed)


def test_a_closed_runner_says_so(runner):
    runner.close()
    runner.close()
    with pytest.raises(InputError, match="closed; open it again"):
        runner.infer({"input": picture(1)})


def test_float32_is_float32_and_not_tf32(tmp_path, record_property):
    random = np.random.default_rng(0)
    x, weights = (random.standard_normal((512, 512)).astype(np.float32) for _ in range(2))
    node = helper.make_node("MatMul", ["input", "weights"], ["output"])
    shape = {"input": ("float32", (512, 512))}, {"output": ("float32", (512, 512))}
    path = save_network(tmp_path / "product.onnx", [node], *shape, {"weights": weights})
    with OnnxRuntimeRunner(path, device="cuda") as runner:
        got = runner.infer({"input": x})["output"]
    exact = x.astype(np.float64) @ weights.astype(np.float64)
    error = float(np.linalg.norm(got - exact) / np.linalg.norm(exact))
    record_property("relative error of a product", error)
    assert error < 2e-6  # TF32 keeps 10 bits, so its error is about 3e-4


@pytest.mark.needs("cuda-python")
def test_it_runs_behind_our_buffers(tmp_path):
    path = save_mixed_network(tmp_path / "mixed.onnx")
    engine = OnnxRuntimeEngine(path)
    with OnnxRuntimeRunner(path) as cpu, allocate_buffers(engine, 8, memory="cuda-python") as buffers:
        for seed, batch in enumerate((8, 1, 3, 3, 8)):
            feed = mixed_feed(batch, seed)
            expected, got = cpu.infer(feed), do_inference(engine, feed, buffers)
            assert list(got) == list(expected)
            for name, array in expected.items():
                np.testing.assert_array_equal(got[name], array)  # one subtraction, one rounding, a sum of integers


@pytest.mark.needs("pycuda")
def test_it_runs_behind_our_buffers_of_pycuda(path):
    engine = OnnxRuntimeEngine(path)
    with OnnxRuntimeRunner(path) as cpu, allocate_buffers(engine, 4, memory="pycuda") as buffers:
        for batch in (4, 1, 2):
            expected = cpu.infer({"input": picture(batch)})["output"]
            got = do_inference(engine, picture(batch), buffers)["output"]
            np.testing.assert_allclose(got, expected, atol=1e-5 * np.ptp(expected))
