"""Ranges against NumPy on the same tensors, sensitivity against hand-made rounding, and what their figures show."""

import dataclasses
import json
import math

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from matplotlib.colors import to_hex
from onnx import TensorProto, helper
from onnx_networks import picture, save_network, save_picture_network

from workbench import precision
from workbench.core.drawing import ORANGE
from workbench.core.errors import FeedError, InputError
from workbench.precision import observing, ranges
from workbench.precision.calibration import calibrate
from workbench.precision.figures import range_figure, sensitivity_figure
from workbench.precision.quantize import quantize_int8
from workbench.precision.ranges import Ranges, TensorRange, measure_ranges
from workbench.precision.sensitivity import LayerSensitivity, Sensitivity, layers_to_keep, round_to_int8, sensitivity

NODE = helper.make_node
RANDOM = np.random.default_rng(17)


def numbers(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def measure(source, feeds):
    return measure_ranges(source, feeds, progress=False)


def by_name(ranges):
    return {entry.name: entry for entry in ranges.tensors}


def identity(path, shape=("n",)):
    return save_network(path, [NODE("Neg", ["x"], ["y"])], {"x": ("float32", shape)}, {"y": ("float32", shape)})


# ranges


def test_ranges_are_those_of_numpy_on_the_same_values(tmp_path):
    parts = [numbers(4000), numbers(500) * 1e-9, numbers(500) * 3e4, np.zeros(600, np.float32)]
    values = np.concatenate(parts).astype(np.float32)
    entry = by_name(measure(identity(tmp_path / "n.onnx"), [{"x": values}]))["x"]
    magnitudes = np.abs(values)
    others = magnitudes[magnitudes > 0]
    with np.errstate(over="ignore"):
        half = others.astype(np.float16)
    assert (entry.minimum, entry.maximum) == (values.min(), values.max())
    assert entry.absmax == magnitudes.max()
    assert entry.zeros == pytest.approx(600 / 5600)
    assert entry.underflow == pytest.approx(np.mean(half == 0))  # the bins have an edge at 2**-25
    assert entry.beyond == pytest.approx(np.isinf(half).sum() / 5600)
    for found, share in ((entry.low, 1), (entry.median, 50), (entry.high, 99.9)):
        exact = np.percentile(others, share, method="inverted_cdf")
        assert exact <= found * (1 + 1e-6) and found <= exact * 1.126  # the upper end of 1/8 of an octave
    step = magnitudes.max() / 254
    assert np.mean(others < step / 1.126) <= entry.int8_lost <= np.mean(others < step * 1.126)


@given(
    arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
)
def test_limits_and_shares_hold_for_any_values(tmp_path_factory, values):
    entry = by_name(measure(identity(tmp_path_factory.mktemp("any") / "n.onnx"), [{"x": values}]))["x"]
    assert (entry.minimum, entry.maximum) == (values.min(), values.max())
    assert all(0 <= share <= 1 for share in (entry.zeros, entry.underflow, entry.int8_lost, entry.beyond))
    with np.errstate(over="ignore"):
        assert (entry.beyond > 0) == bool(np.isinf(values.astype(np.float16)).any())


def test_what_float16_makes_0_begins_below_half_of_its_smallest_number(tmp_path):
    values = np.float32([1.5, 0.99, 0.5, 2]) * np.float32(2.0**-25)
    entry = by_name(measure(identity(tmp_path / "n.onnx"), [{"x": values}]))["x"]
    assert entry.underflow == np.mean(values.astype(np.float16) == 0) == 0.5
    assert entry.high == entry.absmax == 2.0**-24, "no percentile lies above the largest value"


def test_the_largest_float16_is_no_overflow(tmp_path):
    found = measure(identity(tmp_path / "n.onnx"), [{"x": np.float32([1, -65504])}])
    assert found.overflows() == {} and "all fit into float16" in found.verdict


def test_samples_add_up(tmp_path):
    source = identity(tmp_path / "n.onnx")
    parts = [numbers(100), numbers(300) * 50, np.zeros(7, np.float32)]
    many = measure(source, [("a name", {"x": parts[0]}), {"x": parts[1]}, {"x": parts[2]}])
    one = measure(source, [{"x": np.concatenate(parts)}])
    assert (many.samples, many.tensors) == (3, one.tensors)


def test_every_float_tensor_that_depends_on_the_feed_is_measured_in_order(tmp_path):
    nodes = [
        NODE("Shape", ["x"], ["shape"]),
        NODE("Cast", ["shape"], ["size"], to=TensorProto.FLOAT),
        NODE("Relu", ["x"], ["r"], name="relu"),
        NODE("ArgMax", ["r"], ["best"], axis=0),
        NODE("Mul", ["r", "w"], ["y"], name="mul"),
    ]
    source = save_network(
        tmp_path / "n.onnx", nodes, {"x": ("float32", (3,))}, {"y": ("float32", (3,))}, {"w": numbers(3)}
    )
    ranges = measure(source, [{"x": numbers(3)}])
    assert [(entry.name, entry.node, entry.operator) for entry in ranges.tensors] == [
        ("x", "", ""), ("r", "relu", "Relu"), ("y", "mul", "Mul"),
    ]  # fmt: skip


def test_a_network_larger_than_the_budget_is_measured_in_groups_alike(tmp_path, monkeypatch):
    source = save_picture_network(tmp_path / "n.onnx")
    whole = measure(source, [{"input": picture(1)}])
    opened = []
    real = observing.open_with_outputs
    monkeypatch.setattr(observing, "BUDGET_BYTES", 1000)
    monkeypatch.setattr("workbench.precision.observing.open_with_outputs", lambda *a: opened.append(a[2]) or real(*a))
    assert measure(source, [{"input": picture(1)}]) == whole
    assert opened == [["features"], ["active"], ["pooled", "output"]]


def test_values_that_are_not_finite_are_counted_and_left_out(tmp_path):
    ends = {"x": ("float32", ("n",))}, {"y": ("float32", ("n",))}
    source = save_network(tmp_path / "n.onnx", [NODE("Log", ["x"], ["y"])], *ends)
    entry = by_name(measure(source, [{"x": np.array([1, -1, 0, np.e], np.float32)}]))["y"]
    assert (entry.minimum, entry.maximum, entry.not_finite) == (0, pytest.approx(1), 2)
    nothing = by_name(measure(source, [{"x": np.array([-1, 0], np.float32)}]))["y"]
    assert (nothing.minimum, nothing.maximum, nothing.not_finite) == (0, 0, 2)


def test_overflows_name_the_tensor_and_its_largest_value(tmp_path):
    ranges = measure(identity(tmp_path / "n.onnx"), [{"x": np.array([65504, -65505], np.float32)}])
    assert ranges.overflows("float16") == {"x": 65505, "y": 65505}
    assert ranges.overflows("bfloat16") == {}
    assert "2 hold values that float16 makes infinite, the first is x (input) with 65,505" in ranges.verdict
    with pytest.raises(InputError, match="got the format 'int8', expected 'float16' or 'bfloat16'"):
        ranges.overflows("int8")


def test_ranges_survive_json_and_belong_to_one_network(tmp_path):
    source = save_picture_network(tmp_path / "n.onnx")
    ranges = measure(source, [{"input": picture(1)}])
    assert Ranges.from_json(ranges.to_json()) == ranges
    ranges.check(source)
    other = identity(tmp_path / "other.onnx")
    with pytest.raises(InputError, match=r"got ranges of the network \w{12}, expected those of other.onnx"):
        ranges.check(other)
    for text in ("", "{}", json.dumps({"network": "a", "samples": 1, "tensors": [{"name": "x"}]})):
        with pytest.raises(InputError, match="got text that holds no ranges"):
            Ranges.from_json(text)


def test_bad_feeds_are_refused(tmp_path):
    source = save_picture_network(tmp_path / "n.onnx")
    with pytest.raises(InputError, match="got no feeds, expected one at least"):
        measure(source, [])
    with pytest.raises(FeedError, match="input 'input' is missing"):
        measure(source, [{"image": picture(1)}])


def test_a_network_of_integers_has_no_ranges(tmp_path):
    source = save_network(
        tmp_path / "n.onnx", [NODE("Add", ["x", "x"], ["y"])], {"x": ("int64", (2,))}, {"y": ("int64", (2,))}
    )
    with pytest.raises(InputError, match="got a network without float32 tensors"):
        measure(source, [{"x": np.array([1, 2])}])


def test_the_package_gives_its_names_without_loading_what_is_not_asked_for():
    assert sorted(precision.__all__) == dir(precision)
    assert precision.measure_ranges is measure_ranges
    assert all(callable(getattr(precision, name)) for name in precision.__all__ if not name.isupper())
    with pytest.raises(AttributeError, match=r"No workbench\.precision attribute to_fp17"):
        precision.to_fp17  # noqa: B018


# the figure of the ranges


def entry_of(name, absmax, **values):
    start = TensorRange(name, name, "Conv", -absmax / 2, absmax, absmax / 1e4, absmax / 10, absmax, 0.1, 0, 0.2, 0)
    return dataclasses.replace(start, **values)


def ranges_of(*entries):
    return Ranges("0" * 64, 2, entries)


def triangles(figure):
    lines = [line for line in figure.axes[0].get_lines() if line.get_marker() == "^"]
    assert all(to_hex(line.get_markerfacecolor()) == ORANGE.lower() for line in lines)
    return [(int(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines]


def captions(figure):
    return " ".join(figure.get_supxlabel().split())


def test_the_range_figure_marks_what_overflows_and_names_the_first():
    figure = range_figure(ranges_of(entry_of("a", 3), entry_of("b", 1e6), entry_of("c", 7e4), entry_of("d", 65504)))
    assert triangles(figure) == [(1, 1e6), (2, 7e4)]
    assert "2 tensors, the first is b with 1,000,000." in captions(figure)
    low, high = figure.axes[0].get_ylim()
    assert low < 2.0**-24 and high > 1e6


def test_the_range_figure_of_a_network_that_fits_marks_nothing():
    figure = range_figure(ranges_of(entry_of("a", 3), entry_of("b", 30, int8_lost=0.75)))
    assert triangles(figure) == []
    assert "there are none." in captions(figure)
    assert "at most 75% of the values other than 0, in b." in captions(figure)
    assert figure.axes[0].get_xlabel() and figure.axes[0].get_ylabel()


def test_the_range_figure_needs_numbers():
    with pytest.raises(InputError, match="every tensor is 0"):
        range_figure(ranges_of(entry_of("a", 0.0)))


# sensitivity


@given(
    arrays.arrays(np.float32, st.integers(1, 30), elements=st.floats(-1e6, 1e6, width=32)),
    st.floats(0.0009765625, 1e6, width=32),
)
def test_int8_rounds_to_at_most_half_a_step_and_cuts_beyond_the_peak(values, peak):
    rounded, step = round_to_int8(values, peak), peak / 127
    inside = np.abs(values) <= peak
    # half a step, and the rounding of float32 in the division and the product
    assert np.abs(rounded - values)[inside].max(initial=0) <= step * (0.5 + 1e-4)
    assert -128 * step * (1 + 1e-6) <= rounded.min() and rounded.max() <= peak * (1 + 1e-6)


def linear_network(path, *weights):
    """x times one matrix after the other."""
    names = ["x", *(f"t{index}" for index in range(1, len(weights))), "y"]
    nodes = [NODE("MatMul", [names[i], f"w{i}"], [names[i + 1]], name=f"layer{i}") for i in range(len(weights))]
    ends = {"x": ("float32", ("n", len(weights[0])))}, {"y": ("float32", ("n", weights[-1].shape[1]))}
    return save_network(path, nodes, *ends, {f"w{i}": weight for i, weight in enumerate(weights)})


def relative(exact, other):
    return float(np.sqrt(np.square(exact - other).sum() / np.square(exact).sum()))


def test_int8_sensitivity_is_that_of_rounding_one_layer_by_hand(tmp_path):
    x, first, second = numbers(16, 6), numbers(6, 5), numbers(5, 4)
    source = linear_network(tmp_path / "n.onnx", first, second)
    found = sensitivity(source, [{"x": x}], "int8", progress=False)
    middle = x @ first
    exact = middle @ second
    one = round_to_int8(x, np.abs(x).max()) @ round_to_int8(first, np.abs(first).max(0, keepdims=True)) @ second
    other = round_to_int8(middle, np.abs(middle).max()) @ round_to_int8(second, np.abs(second).max(0, keepdims=True))
    assert [layer.node for layer in found.layers] == ["layer0", "layer1"]
    # sums in another order differ by a few float32 roundings of 6e-8, errors here are near 1e-2
    assert [layer.relative_l2 for layer in found.layers] == pytest.approx(
        [relative(exact, one), relative(exact, other)], rel=1e-3
    )
    content = json.loads(found.to_json())
    assert [layer["relative_l2"] for layer in content["layers"]] == [layer.relative_l2 for layer in found.layers]
    assert content["total_relative_l2"] == found.total_error()
    assert found.total_error() == pytest.approx(math.hypot(relative(exact, one), relative(exact, other)), rel=1e-3)


def test_float16_sensitivity_rounds_what_the_layer_reads_and_writes(tmp_path):
    x, weight = numbers(8, 6), numbers(6, 5)
    source = linear_network(tmp_path / "n.onnx", weight, np.eye(5, dtype=np.float32))
    found = sensitivity(source, [{"x": x}], "fp16", progress=False)

    def half(array):
        return array.astype(np.float16).astype(np.float32)

    expected = relative(x @ weight, half(half(x) @ half(weight)))
    assert found.layers[0].relative_l2 == pytest.approx(
        expected, rel=0.02
    )  # a sum in another order may round another way


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose", "Gemm"])
def test_each_output_channel_of_a_weight_has_its_own_scale(tmp_path, operator):
    """One channel is a thousand times larger than the others: with one scale for all, the small ones were lost."""
    shapes = {"Conv": (1, 3, 6, 6), "ConvTranspose": (1, 3, 6, 6), "Gemm": (7, 3)}
    weight = numbers(*{"Conv": (4, 3, 1, 1), "ConvTranspose": (3, 4, 1, 1), "Gemm": (4, 3)}[operator])
    axis = 1 if operator == "ConvTranspose" else 0
    scale = np.ones([4 if place == axis else 1 for place in range(weight.ndim)], np.float32)
    scale.flat[0] = 1000
    options = {"transB": 1} if operator == "Gemm" else {}
    nodes = [NODE(operator, ["x", "w"], ["t"], name="layer", **options), NODE("Mul", ["t", "back"], ["y"])]
    back = {"Gemm": (1, 4)}.get(operator, (1, 4, 1, 1))
    out = (7, 4) if operator == "Gemm" else (1, 4, 6, 6)
    errors = []
    for factor in (np.ones_like(scale), scale):
        weights = {"w": weight * factor, "back": (1 / factor).reshape(back)}
        ends = {"x": ("float32", shapes[operator])}, {"y": ("float32", out)}
        source = save_network(tmp_path / "n.onnx", nodes, *ends, weights)
        feed = {"x": np.random.default_rng(3).standard_normal(shapes[operator]).astype(np.float32)}
        errors.append(sensitivity(source, [feed], progress=False).layers[0].relative_l2)
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)  # 1000 is no power of 2, so the roundings differ a little


def test_the_layer_with_an_outlier_is_found_kept_and_then_the_target_is_met(tmp_path):
    """The prediction is held against a real quantisation, without the layers to keep."""
    good = [numbers(32, 32) / 6 for _ in range(4)]
    spoiled = good[2].copy()
    spoiled[0] *= 300  # one input that is always nearly 0 gets all the weight: the others are lost in 255 steps
    good[1][:, 0] *= 1 / 300
    source = linear_network(tmp_path / "n.onnx", good[0], good[1], spoiled, good[3])
    feeds = [{"x": numbers(64, 32)}]
    found = sensitivity(source, feeds, progress=False)
    worst = max(found.layers, key=lambda layer: layer.relative_l2)
    assert worst.node == "layer2" and worst.node in found.verdict
    target = found.total_error([worst.node]) * 1.2
    keep = layers_to_keep(found, target)
    assert keep == ("layer2",)
    quantize_int8(source, tmp_path / "q.onnx", calibrate(source, feeds, method="minmax", progress=False), exclude=keep)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # else the CPU's own int8 kernels are measured
    exact = onnxruntime.InferenceSession(str(source)).run(None, feeds[0])[0]
    rounded = onnxruntime.InferenceSession(str(tmp_path / "q.onnx"), options).run(None, feeds[0])[0]
    real = relative(exact, rounded)
    # independent errors add up in squares; over 2,048 values a sum of three estimates that to better than a third
    assert found.total_error(keep) == pytest.approx(real, rel=0.33)
    assert real < 2 * target < found.total_error()


def test_the_scales_of_a_calibration_are_used_and_those_of_another_network_refused(tmp_path):
    x, weight = numbers(8, 6), numbers(6, 5)
    source = linear_network(tmp_path / "n.onnx", weight)
    made = calibrate(source, [{"x": x}], method="minmax", progress=False)
    cut = dataclasses.replace(made, thresholds={"x": 0.5})
    found = sensitivity(source, [{"x": x}], calibration=cut, progress=False)
    expected = round_to_int8(x, 0.5) @ round_to_int8(weight, np.abs(weight).max(0, keepdims=True))
    assert found.layers[0].relative_l2 == pytest.approx(relative(x @ weight, expected), rel=1e-3)
    other = linear_network(tmp_path / "other.onnx", weight * 2)
    with pytest.raises(InputError, match="got a calibration of the network"):
        sensitivity(other, [{"x": x}], calibration=made, progress=False)


def test_an_overflow_is_an_error_that_is_not_finite_and_is_kept_first(tmp_path):
    source = linear_network(tmp_path / "n.onnx", np.eye(2, dtype=np.float32) * 1e5, np.eye(2, dtype=np.float32) / 1e5)
    found = sensitivity(source, [{"x": np.ones((1, 2), np.float32)}], "fp16", progress=False)
    assert found.layers[0].relative_l2 == math.inf
    assert layers_to_keep(found, 1.0)[0] in ("layer0", "layer1")
    assert "not finite" in found.to_text()
    sensitivity_figure(found, ["layer0"])


def test_a_layer_that_only_reads_zeros_costs_nothing(tmp_path):
    source = linear_network(tmp_path / "n.onnx", np.zeros((3, 3), np.float32), numbers(3, 3))
    found = sensitivity(source, [{"x": numbers(2, 3)}], progress=False)
    assert [layer.relative_l2 for layer in found.layers] == [0, 0]


def test_the_fewest_layers_are_kept():
    layers = [LayerSensitivity(name, "Conv", error) for name, error in (("a", 0.03), ("b", 0.04), ("c", 0.001))]
    found = Sensitivity("int8", 1, tuple(layers))
    assert layers_to_keep(found, 0.06) == ()
    assert layers_to_keep(found, 0.031) == ("b",)
    assert layers_to_keep(found, 0.002) == ("b", "a")
    assert layers_to_keep(found, 1e-9) == ("b", "a", "c")
    with pytest.raises(InputError, match="got target_error=0, expected a positive share"):
        layers_to_keep(found, 0)


def test_bad_requests_are_refused(tmp_path):
    source = linear_network(tmp_path / "n.onnx", numbers(3, 3))
    feed = {"x": numbers(1, 3)}
    with pytest.raises(InputError, match="got precision='fp8', expected one of int8, fp16, bf16"):
        sensitivity(source, [feed], "fp8")
    with pytest.raises(InputError, match="got no feeds"):
        sensitivity(source, [])
    with pytest.raises(InputError, match="got a network without Conv, expected one at least"):
        sensitivity(source, [feed], operators=["Conv"], progress=False)
    with pytest.raises(FeedError):
        sensitivity(source, [{"x": numbers(1, 4)}])


def test_a_network_that_answers_in_integers_has_no_sensitivity(tmp_path):
    nodes = [NODE("MatMul", ["x", "w"], ["t"]), NODE("ArgMax", ["t"], ["y"], axis=1, keepdims=0)]
    ends = {"x": ("float32", (2, 3))}, {"y": ("int64", (2,))}
    source = save_network(tmp_path / "n.onnx", nodes, *ends, {"w": numbers(3, 3)})
    with pytest.raises(InputError, match="without floating point outputs, expected logits"):
        sensitivity(source, [{"x": numbers(2, 3)}], progress=False)


# the figure of the sensitivity


def test_the_sensitivity_figure_marks_the_layers_that_are_kept():
    layers = [LayerSensitivity(name, "Conv", error) for name, error in (("a", 0.03), ("b", 0.04), ("c", 0.001))]
    found = Sensitivity("int8", 1, tuple(layers))
    figure = sensitivity_figure(found, layers_to_keep(found, 0.031))
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([3, 4, 0.1])
    assert [to_hex(bar.get_facecolor()) == ORANGE.lower() for bar in bars] == [False, True, False]
    assert "they should cost 5 % of the answers, and 3 % with 1 layer in float32" in captions(figure)
    with pytest.raises(InputError, match="got 'd' to keep, which no layer is called"):
        sensitivity_figure(found, ["d"])


def test_a_tensor_of_several_blocks_is_counted_to_its_end(monkeypatch):
    monkeypatch.setattr(ranges, "_BLOCK", 4)
    counts = ranges._Counts()
    counts.add(np.arange(1, 11, dtype=np.float32))
    assert (counts.minimum, counts.maximum, counts.bins.sum()) == (1, 10, 10)
