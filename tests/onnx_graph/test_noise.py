"""What rounding does to a network is measured: by moves of one unit, and as much as theory says of small networks."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from workbench.core.compare import compare_outputs
from workbench.core.errors import InputError, ModelError
from workbench.core.tolerance import FLOOR, MULTIPLES
from workbench.onnx_graph.noise import move, own_unit, rounding_noise

NAMES = {"reference_name": "A", "candidate_name": "B"}
FLOATS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def network(nodes, weights=(), shape=(1, 64), kind=TensorProto.FLOAT, out=TensorProto.FLOAT, rank=2):
    """`x` of a shape to `y`."""
    inputs = [helper.make_tensor_value_info("x", kind, shape)]
    outputs = [helper.make_tensor_value_info("y", out, [None] * rank)]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feeds(shape=(1, 64), count=2, dtype=np.float32):
    return [
        (str(seed), {"x": np.random.default_rng(seed).standard_normal(shape).astype(dtype)}) for seed in range(count)
    ]


def dense(scale=1.0, width=32):
    weight = np.random.default_rng(9).standard_normal((64, width)).astype(np.float32) * np.float32(scale)
    return network([helper.make_node("MatMul", ["x", "w"], ["y"])], [("w", weight)])


@given(st.sampled_from(sorted(FLOATS)), st.integers(1, 20), st.integers(0, 99))
def test_a_move_is_of_so_many_units_in_the_last_place_half_of_them_on_average(unit, units, seed):
    draw = np.random.default_rng(seed)
    array = (draw.uniform(0.5, 2, 4000) * draw.choice([-1, 1], 4000)).astype(FLOATS[unit])
    moved = move(array, draw, units)
    kind = f"i{array.itemsize}"
    steps = moved.view(kind).astype(int) - array.view(kind).astype(int)  # neighbours of one sign are one apart
    assert set(np.unique(steps)) == {-units, 0, units}
    # half of 4,000 draws move, give or take five standard deviations of 32
    assert abs(np.count_nonzero(steps) - 2000) < 160


def test_zeros_integers_and_what_is_not_finite_stay():
    array = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-45, np.finfo(np.float32).max], np.float32)
    assert np.array_equal(move(array, np.random.default_rng(0), 3), array, equal_nan=True)
    numbers = np.arange(9)
    assert move(numbers, np.random.default_rng(0), 3) is numbers


def test_in_a_network_of_a_coarser_type_a_unit_is_that_types():
    array = np.ones(4000, np.float32)
    steps = np.unique(move(array, np.random.default_rng(0), 1, "float16")) - 1
    assert steps.tolist() == [-(2.0**-11), 0, 2.0**-10]  # below 1 the units are half as large


def test_the_noise_of_a_product_is_what_the_theory_of_independent_errors_says():
    noise = rounding_noise(dense(), feeds(count=2)).outputs[0]
    # Each of 64 products moves, relative, by a unit (2**-23.5 within a factor of root 2) with probability 1/2, by its
    # weight and by its input; so the sum of normal products moves by sqrt(64) 2**-23.5, and then is rounded itself.
    expected = np.sqrt(64) * 2.0**-23.5 * np.sqrt(2 / np.pi)
    assert expected / 2 < noise.mean[0] < 2 * expected


def test_the_noise_is_stable_between_calls_and_leaves_the_file_alone(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(dense(), path)
    before = path.read_bytes()
    assert rounding_noise(path, feeds()) == rounding_noise(path, feeds())
    assert path.read_bytes() == before


def test_the_noise_scales_with_the_network_and_so_does_what_is_allowed():
    small, large = (rounding_noise(dense(scale), feeds()).outputs[0] for scale in (1.0, 1024.0))
    assert large.largest[0] == pytest.approx(1024 * small.largest[0])
    spread = 40.0  # of sums of 64 normal products, about 8 wide
    limits = rounding_noise(dense(), feeds()).limits(("y", "y"), 0, np.array([spread]), 32)
    assert limits.largest[0] == pytest.approx(max(MULTIPLES["float32"] * small.largest[0], FLOOR * spread))


def cancelling(size):
    weight = np.full(64, size, np.float32)
    nodes = [helper.make_node("Add", ["x", "w"], ["a"]), helper.make_node("Sub", ["a", "v"], ["y"])]
    return network(nodes, [("w", weight), ("v", weight)])


def test_a_network_that_cancels_is_noisy_and_one_that_copies_is_not():
    """x + w - w with a large w is all rounding; a copy has none but that of its input."""
    cancels = rounding_noise(cancelling(4096), feeds()).outputs[0]
    copies = rounding_noise(network([helper.make_node("Identity", ["x"], ["y"])]), feeds()).outputs[0]
    assert cancels.largest[0] > 1e-4  # a unit of 4096 is 4.9e-4
    assert copies.largest[0] < 5e-7  # one of 3 is 2.4e-7


@pytest.mark.parametrize(
    ("operator", "numbers", "moves"),
    [
        ("BatchNormalization", (4,), True),  # an executor folds them into the convolution before
        ("Add", (1, 4, 1, 1), True),
        ("Add", (40,), True),
        ("Add", (4,), False),  # a row of few numbers may be a size
    ],
)
def test_weights_move_unless_they_may_be_sizes(operator, numbers, moves):
    shape = (1, 4, 2, numbers[-1]) if len(numbers) == 1 else (1, 4, 2, 2)
    count = 4 if operator == "BatchNormalization" else 1
    draw = np.random.default_rng(0)
    weights = [(f"w{index}", draw.uniform(1, 2, numbers).astype(np.float32)) for index in range(count)]
    node = helper.make_node(operator, ["x", *(name for name, _ in weights)], ["y"])
    nothing = [("zeros", {"x": np.zeros(shape, np.float32)})]  # zeros stay, so that only the weights move
    noise = rounding_noise(network([node], weights, shape, rank=4), nothing)
    assert (max(noise.outputs[0].largest) > 0) == moves


def test_every_column_of_boxes_has_its_own_noise():
    weight = np.diag([1e5, 1e5, 1e5, 1e5, 1, 1]).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = network([node], [("w", weight)], (1, 100, 6), rank=3)
    noise = rounding_noise(model, feeds((1, 100, 6))).outputs[0]
    assert len(noise.largest) == 6
    assert max(noise.largest[4:]) < 1e-4 * min(noise.largest[:4])
    answer = feeds((1, 100, 6))[0][1]["x"] @ weight
    shuffled = answer.copy()
    shuffled[0, :, 4] = np.random.default_rng(0).permutation(shuffled[0, :, 4])
    tolerance = rounding_noise(model, feeds((1, 100, 6)))
    report = compare_outputs({"y": answer}, {"y": shuffled}, tolerance=tolerance, **NAMES)
    assert report.status == "fail" and "in channel 4" in report.verdict


def labels(scale):
    """The largest of 32 classes for each of 64 pixels."""
    weight = (np.random.default_rng(3).standard_normal((8, 32)) * scale).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["s"]),
        helper.make_node("ArgMax", ["s"], ["y"], axis=-1, keepdims=0),
    ]
    return network(nodes, [("w", weight)], (1, 64, 8), out=TensorProto.INT64)


def test_labels_that_rounding_does_not_change_may_not_change():
    tolerance = rounding_noise(labels(1.0), feeds((1, 64, 8)))
    assert tolerance.outputs[0].changed == 0
    right = np.arange(64)[None]
    wrong = right.copy()
    wrong[0, :2] += 7
    assert compare_outputs({"y": right}, {"y": right}, tolerance=tolerance, **NAMES).passed
    report = compare_outputs({"y": right}, {"y": wrong}, tolerance=tolerance, **NAMES)
    assert report.status == "fail" and "off by up to 7 (at most 1 allowed)" in report.verdict


def test_a_quantised_network_may_differ_by_the_steps_that_coarse_moves_make():
    """Half a unit moves nothing over a rounding boundary; the coarse moves do, and by a whole step."""
    step = np.float32(0.01)
    pair = [
        helper.make_node("MatMul", ["x", "w"], ["s"]),
        helper.make_node("QuantizeLinear", ["s", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["y"]),
    ]
    weight = np.random.default_rng(5).standard_normal((64, 4000)).astype(np.float32) * np.float32(0.01)
    weights = [("w", weight), ("step", np.array(step)), ("zero", np.array(0, np.int8))]
    noise = rounding_noise(network(pair, weights), feeds())
    assert noise.unit == "8 bits"
    assert noise.outputs[0].coarse_largest[0] == pytest.approx(step)
    scale = np.array([2.5])
    limits = noise.limits(("y", "y"), 0, scale, 0)
    assert step <= limits.largest[0] < 2 * step


@pytest.mark.parametrize(("kind", "unit"), [(TensorProto.FLOAT16, "float16"), (TensorProto.BFLOAT16, "bfloat16")])
def test_half_floats_are_known_by_weights_or_by_casts(kind, unit):
    casts = [
        helper.make_node("Cast", ["x"], ["h"], to=kind),
        helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT),
    ]
    assert own_unit(network(casts)) == unit
    assert own_unit(dense()) == "float32"
    noise = rounding_noise(network(casts), feeds())
    assert noise.unit == unit
    # one unit near 2 or 3, of numbers that are drawn from a normal distribution
    assert noise.outputs[0].largest[0] == pytest.approx({"float16": 2**-9, "bfloat16": 2**-6}[unit], rel=1.01)


def test_the_limits_end_at_a_ceiling_so_that_a_noisy_network_excuses_no_fault():
    noise = rounding_noise(cancelling(1e7), feeds())
    assert MULTIPLES["float32"] * noise.outputs[0].largest[0] > 1
    assert noise.limits(("y", "y"), 0, np.array([6.0]), 0).largest[0] == pytest.approx(6e-3)


def test_what_cannot_be_measured_is_said():
    with pytest.raises(InputError, match="got no feeds"):
        rounding_noise(dense(), [])
    with pytest.raises(ModelError, match="ONNX Runtime cannot"):
        rounding_noise(network([helper.make_node("Strange", ["x"], ["y"], domain="nowhere")]), feeds())
