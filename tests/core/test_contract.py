"""The runner contract: names that cannot mislead, and feeds refused with the call that mends them."""

import dataclasses

import numpy as np
import pytest

from workbench.core.contract import BACKEND_NAMES, Runner, RunnerInfo, TensorSpec, check_feed, ordered_feed
from workbench.core.errors import FeedError, InputError

SPEC = TensorSpec("input", (None, 3, 32, 64), "float32")
INFO = RunnerInfo("onnxruntime", "1.31.1", "CPU")


class Doubler(Runner):
    """A runner whose right answer is known: twice the input, plus the input itself without a copy."""

    def __init__(self):
        super().__init__(INFO, {"input": SPEC}, {"output": SPEC, "same": SPEC}, reason="the test asked for it")
        self.closings = 0

    def _infer(self, feed):
        return {"output": feed["input"] * 2, "same": feed["input"]}

    def _close(self):
        self.closings += 1


def refusal(feed, specs=None):
    with pytest.raises(FeedError) as caught:
        check_feed(specs or {"input": SPEC}, feed)
    return str(caught.value)


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def test_runner_info_name_is_backend_version_and_device():
    assert INFO.name == "ONNX Runtime 1.31.1 (CPU)"
    assert RunnerInfo("keras", "3.15.1", "TensorFlow, CPU").name == "Keras 3.15.1 (TensorFlow, CPU)"
    assert RunnerInfo("tensorrt", "10.13", "NVIDIA L4").name == "TensorRT 10.13 (NVIDIA L4)"


def test_only_tensorrt_backends_have_tensorrt_in_their_name():
    for backend in BACKEND_NAMES:
        name = RunnerInfo(backend, "1.0", "CPU").name
        assert ("TensorRT" in name) == backend.startswith("tensorrt")


@pytest.mark.parametrize(("version", "device"), [("1.0 TensorRT", "CPU"), ("1.0", "tensorrt provider, GPU")])
def test_runner_info_refuses_tensorrt_in_the_details_of_another_backend(version, device):
    with pytest.raises(InputError, match="only a tensorrt backend may carry that name"):
        RunnerInfo("onnxruntime", version, device)


def test_runner_info_refuses_an_unknown_backend_and_lists_the_known_ones():
    with pytest.raises(InputError, match="got the backend 'numpy', expected one of keras, tf_keras, tensorflow, torch"):
        RunnerInfo("numpy", "2.0", "CPU")


def test_runner_info_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        INFO.backend = "tensorrt"


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((None, 3, 512, 1024), "float32 (batch, 3, 512, 1024)"),
        ((1, None, None, 3), "float32 (1, any, any, 3)"),
        ((None,), "float32 (batch,)"),
        ((), "float32 ()"),
    ],
)
def test_tensor_spec_describes_itself(shape, text):
    assert TensorSpec("x", shape, "float32").describe() == text


def test_a_right_feed_passes_in_any_batch_size_and_memory_order():
    check_feed({"input": SPEC}, {"input": ones(1, 3, 32, 64)})
    check_feed({"input": SPEC}, {"input": ones(5, 3, 32, 64)})
    check_feed({"input": SPEC}, {"input": ones(1, 32, 64, 3).transpose(0, 3, 1, 2)})
    check_feed({}, {})


def test_missing_tensor_is_named_with_what_was_got_and_expected():
    specs = {"input": SPEC, "mask": SPEC}
    assert refusal({"input": ones(1, 3, 32, 64)}, specs) == (
        "input 'mask' is missing: got input, expected input, mask; add it to the feed"
    )
    assert "got an empty feed, expected input" in refusal({})


def test_unexpected_tensor_is_named():
    assert refusal({"input": ones(1, 3, 32, 64), "input_1": ones(1)}) == (
        "got an input 'input_1' the network does not have, expected input; remove it"
    )


def test_a_bare_array_as_feed_is_refused_with_the_dict_to_pass():
    assert refusal(ones(1, 3, 32, 64)) == (
        "got ndarray as the feed, expected a dict of arrays by input name; pass {'input': x}"
    )


def test_a_list_is_not_an_array():
    assert refusal({"input": [1.0]}) == (
        "input 'input': got a list, expected float32 (batch, 3, 32, 64); pass np.asarray(x, dtype=\"float32\")"
    )


def test_wrong_dtype_suggests_astype():
    assert refusal({"input": ones(1, 3, 32, 64, dtype=np.float64)}) == (
        "input 'input': got float64 (1, 3, 32, 64), expected float32 (batch, 3, 32, 64); pass x.astype(\"float32\")"
    )


def test_foreign_byte_order_is_a_wrong_dtype():
    message = refusal({"input": ones(1, 3, 32, 64, dtype=np.dtype("f4").newbyteorder())})
    assert "foreign byte order" in message and 'x.astype("float32")' in message


def test_a_missing_batch_axis_suggests_x_none():
    assert refusal({"input": ones(3, 32, 64)}) == (
        "input 'input': got float32 (3, 32, 64), expected float32 (batch, 3, 32, 64); add the batch axis: pass x[None]"
    )


@pytest.mark.parametrize(
    ("expected", "got", "call"),
    [
        ((None, 3, 32, 64), (2, 32, 64, 3), "x.transpose(0, 3, 1, 2)"),
        ((None, 32, 64, 3), (2, 3, 32, 64), "x.transpose(0, 2, 3, 1)"),
        ((None, 3, 32, 64), (32, 64, 3), "x.transpose(2, 0, 1)[None]"),
        ((None, 32, 64, 3), (3, 32, 64), "x.transpose(1, 2, 0)[None]"),
    ],
)
def test_swapped_axes_suggest_a_call_that_mends_them(expected, got, call):
    spec = TensorSpec("input", expected, "float32")
    message = refusal({"input": ones(*got)}, {"input": spec})
    assert f"the axes are in another order: pass {call}" in message
    check_feed({"input": spec}, {"input": eval(call, {"x": ones(*got)})})


def test_a_wrong_rank_that_no_call_mends_says_how_many_axes():
    assert refusal({"input": ones(32, 64)}).endswith("give an array of 4 axes, not 2")


def test_a_wrong_dimension_names_the_axis_and_both_sizes():
    message = refusal({"input": ones(1, 3, 48, 64)})
    assert "got float32 (1, 3, 48, 64), expected float32 (batch, 3, 32, 64)" in message
    assert "axis 2 is 48 where the network takes 32; bring the input to that size, or export" in message


def test_an_empty_batch_is_refused():
    assert refusal({"input": ones(0, 3, 32, 64)}).endswith("axis 0 is empty; give at least one")


def test_nan_and_infinity_are_counted_and_the_first_is_located():
    x = ones(1, 3, 32, 64)
    x[0, 1, 2, 3] = np.nan
    x[0, 2, 0, 0] = -np.inf
    x[0, 2, 0, 1] = np.inf
    assert "got 1 NaN and 2 infinite of 6144 values, the first at (0, 1, 2, 3)" in refusal({"input": x})
    x[0, 1, 2, 3] = 0
    assert "got 2 infinite of 6144 values, the first at (0, 2, 0, 0)" in refusal({"input": x})


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_finite_values_whose_sum_overflows_pass(dtype):
    x = np.full((1, 4), np.finfo(dtype).max, dtype)
    check_feed({"x": TensorSpec("x", (None, 4), dtype)}, {"x": x})


def test_integers_are_not_searched_for_nan():
    check_feed({"x": TensorSpec("x", (None,), "uint8")}, {"x": np.arange(3, dtype=np.uint8)})


def test_infer_checks_the_feed_and_returns_fresh_arrays():
    x = ones(1, 3, 32, 64)
    with Doubler() as runner:
        first = runner.infer({"input": x})
        assert not any(np.may_share_memory(x, array) for array in first.values())
        assert (first["output"] == 2).all() and (first["same"] == 1).all()
        with pytest.raises(FeedError, match=r"x\[None\]"):
            runner.infer({"input": x[0]})


def test_close_is_idempotent_and_a_closed_runner_says_so():
    runner = Doubler()
    with runner:
        pass
    runner.close()
    assert runner.closings == 1
    with pytest.raises(InputError, match=r"the runner is closed; open it again with open_runner\(\.\.\.\)"):
        runner.infer({"input": ones(1, 3, 32, 64)})
    with pytest.raises(InputError, match="the runner is closed"), runner:
        pass


def test_the_runner_closes_when_the_block_fails():
    runner = Doubler()
    with pytest.raises(KeyError), runner:
        raise KeyError("anything")
    assert runner.closings == 1


def test_repr_names_the_runner_and_its_tensors():
    runner = Doubler()
    assert repr(runner).startswith("<ONNX Runtime 1.31.1 (CPU): input float32 (batch, 3, 32, 64) -> output float32")
    runner.close()
    assert repr(runner).endswith("(closed)>")


def test_a_feed_is_ordered_by_name_or_else_by_position():
    assert ordered_feed(["a", "b"], {"b": 2, "a": 1}) == [1, 2]
    assert ordered_feed(["a", "b"], {"x": 2, "y": 1}) == [2, 1]
    with pytest.raises(InputError, match=r"got 1 inputs \(a\), expected a, b"):
        ordered_feed(["a", "b"], {"a": 1})
