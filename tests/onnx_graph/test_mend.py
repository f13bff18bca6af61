"""Every rewrite keeps the answers, by ONNX's own reference evaluator; what changes them is dropped and named."""

import json
import sys
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from workbench.core.errors import BackendUnavailableError, ExportError, FeedError, InputError, ModelError, OutputError
from workbench.onnx_graph import edit
from workbench.onnx_graph import fold as onnx_folding
from workbench.onnx_graph import mend as onnx_fix
from workbench.onnx_graph.file import check
from workbench.onnx_graph.mend import Rewrite, fix
from workbench.onnx_graph.rewrites import remove_dead

FLOAT = TensorProto.FLOAT
RANDOM = np.random.default_rng(5)


def numbers(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def network(nodes, x, y, weights=None, opset=17, x_type=FLOAT, y_type=FLOAT, **options):
    ends = helper.make_tensor_value_info("x", x_type, x), helper.make_tensor_value_info("y", y_type, y)
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    domains = [helper.make_opsetid(domain, 1) for domain in options.pop("domains", ())]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), *domains], ir_version=8, **options)


@pytest.fixture
def mend(tmp_path):
    """Save, fix and load a network; returns the report and the new network."""

    def run(model, **options):
        onnx.save(model, tmp_path / "in.onnx")
        report = fix(tmp_path / "in.onnx", tmp_path / "out.onnx", progress=False, **options)
        check(tmp_path / "out.onnx")
        return report, onnx.load(tmp_path / "out.onnx")

    return run


def answers(model, x):
    return ReferenceEvaluator(model).run(None, {"x": x})[0]


def run(model, x):
    """ONNX Runtime, where the reference evaluator cannot: it has no ConvTranspose in groups."""
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def counts(report):
    return {rewrite.name: rewrite.count for rewrite in report.kept}


def operators(model):
    return dict(Counter(node.op_type for node in model.graph.node))


def batch_norm(data, result, channels, weights, name="bn"):
    parts = [numbers(channels) + 2, numbers(channels), numbers(channels), RANDOM.random(channels, np.float32) + 0.5]
    weights.update({f"{name}{index}": part for index, part in enumerate(parts)})
    return helper.make_node("BatchNormalization", [data, *(f"{name}{index}" for index in range(4))], [result], name)


@pytest.mark.parametrize(
    ("operator", "kernel", "options"),
    [
        ("Conv", (6, 4, 3, 3), {}),
        ("Conv", (6, 2, 3, 3), {"group": 2}),
        ("Conv", (4, 1, 3, 3), {"group": 4}),
        ("ConvTranspose", (4, 6, 3, 3), {}),
        ("ConvTranspose", (4, 3, 3, 3), {"group": 2}),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_a_batch_norm_goes_into_the_convolution_before_it(mend, operator, kernel, options, bias):
    channels = kernel[0] if operator == "Conv" else kernel[1] * options.get("group", 1)
    weights = {"w": numbers(*kernel), **({"b": numbers(channels)} if bias else {})}
    conv = helper.make_node(operator, ["x", "w", *(["b"] if bias else [])], ["c"], "conv", **options)
    norm = batch_norm("c", "y", channels, weights)
    report, mended = mend(network([conv, norm], ["batch", 4, 8, 8], ["batch", channels, None, None], weights))
    assert operators(mended) == {operator: 1}
    assert counts(report)["scales"] == 1
    x = numbers(2, 4, 8, 8)
    conv.output[0] = "y"
    plain = run(network([conv], ["batch", 4, 8, 8], ["batch", channels, None, None], weights), x)
    scale, offset, mean, variance = (weights[f"bn{index}"][:, None, None] for index in range(4))
    expected = scale * (plain - mean) / np.sqrt(variance + 1e-5) + offset
    # 36 products of numbers around 1, scaled by up to 5: float32 keeps 1e-5 of such sums
    np.testing.assert_allclose(run(mended, x), expected, rtol=1e-4, atol=1e-4)


def test_the_epsilon_of_a_batch_norm_is_added_to_the_variance(mend):
    weights = {"w": numbers(2, 3, 1, 1)}
    conv, norm = helper.make_node("Conv", ["x", "w"], ["c"]), batch_norm("c", "y", 2, weights)
    norm.attribute.append(helper.make_attribute("epsilon", 0.5))
    _, mended = mend(network([conv, norm], [1, 3, 4, 4], [1, 2, 4, 4], weights))
    assert operators(mended) == {"Conv": 1}
    x = numbers(1, 3, 4, 4)
    plain = np.einsum("oi,nihw->nohw", weights["w"][:, :, 0, 0], x)
    scale, offset, mean, variance = (weights[f"bn{index}"][:, None, None] for index in range(4))
    expected = scale * (plain - mean) / np.sqrt(variance + 0.5) + offset
    np.testing.assert_allclose(run(mended, x), expected, rtol=1e-4, atol=1e-4)  # as above


def test_a_scale_and_an_offset_of_each_channel_go_into_the_convolution(mend):
    weights = {"w": numbers(6, 4, 3, 3), "s": numbers(1, 6, 1, 1), "o": numbers(6, 1, 1), "k": np.float32(3)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Mul", ["s", "c"], ["d"]),
        helper.make_node("Add", ["d", "o"], ["e"]),
        helper.make_node("Mul", ["e", "k"], ["y"]),
    ]
    model = network(nodes, [1, 4, 8, 8], [1, 6, 6, 6], weights)
    report, mended = mend(model)
    assert operators(mended) == {"Conv": 1}
    assert counts(report) == {"scales": 3}
    x = numbers(1, 4, 8, 8)
    np.testing.assert_allclose(answers(mended, x), answers(model, x), rtol=1e-4, atol=1e-5)  # as above


@pytest.mark.parametrize("shape", [(6,), (1, 1, 1, 6), (1, 6, 6, 6), (1, 6, 1, 6)])
def test_a_scale_that_is_not_of_channels_stays(mend, shape):
    # with 6 channels and 6 columns, (6,) and (1, 1, 1, 6) are of columns
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Mul", ["c", "s"], ["y"])]
    model = network(nodes, [1, 4, 8, 8], [1, 6, 6, 6], {"w": numbers(6, 4, 3, 3), "s": numbers(*shape)})
    report, mended = mend(model)
    assert operators(mended) == {"Conv": 1, "Mul": 1}
    assert not report.rewrites


def test_a_batch_norm_stays_where_the_convolution_is_read_elsewhere(mend):
    weights = {"w": numbers(6, 4, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        batch_norm("c", "d", 6, weights),
        helper.make_node("Add", ["c", "d"], ["y"]),
    ]
    report, mended = mend(network(nodes, [1, 4, 8, 8], [1, 6, 8, 8], weights))
    assert operators(mended) == {"Conv": 1, "BatchNormalization": 1, "Add": 1}
    assert not report.rewrites


def test_weights_that_two_convolutions_share_are_folded_for_one_only(mend):
    weights = {"w": numbers(4, 4, 3, 3)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        batch_norm("c", "d", 4, weights),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Conv", ["e", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]
    model = network(nodes, [1, 4, 8, 8], [1, 4, 8, 8], weights)
    _, mended = mend(model)
    assert operators(mended) == {"Conv": 2, "Relu": 1}
    x = numbers(1, 4, 8, 8)
    np.testing.assert_allclose(answers(mended, x), answers(model, x), rtol=1e-4, atol=1e-3)  # two layers of such sums


def test_zeros_padded_before_a_convolution_become_its_own(mend):
    nodes = [helper.make_node("Pad", ["x", "p"], ["a"]), helper.make_node("Conv", ["a", "w"], ["y"], pads=[1, 0, 0, 1])]
    pads = np.array([0, 0, 1, 2, 0, 0, 3, 4])
    model = network(nodes, [1, 3, 8, 8], [1, 2, 11, 13], {"p": pads, "w": numbers(2, 3, 3, 3)})
    report, mended = mend(model)
    assert (operators(mended), counts(report)) == ({"Conv": 1}, {"pads": 1})
    assert list(mended.graph.node[0].attribute[0].ints) == [2, 2, 3, 5]
    x = numbers(1, 3, 8, 8)
    np.testing.assert_allclose(answers(mended, x), answers(model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("pads", "value", "options"),
    [
        ([0, 0, 1, 1, 0, 0, 1, 1], 1.0, {}),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, {"mode": "reflect"}),
        ([0, 1, 0, 0, 0, 0, 0, 0], 0.0, {}),
        ([0, 0, -1, 0, 0, 0, 0, 0], 0.0, {}),
    ],
    ids=["ones", "reflect", "channels", "crop"],
)
def test_a_pad_that_a_convolution_cannot_do_stays(mend, pads, value, options):
    nodes = [helper.make_node("Pad", ["x", "p", "v"], ["a"], **options), helper.make_node("Conv", ["a", "w"], ["y"])]
    channels = 3 + pads[1]
    weights = {"p": np.array(pads), "v": np.float32(value), "w": numbers(2, channels, 1, 1)}
    report, mended = mend(network(nodes, [1, 3, 8, 8], [1, 2, None, None], weights))
    assert operators(mended) == {"Pad": 1, "Conv": 1}
    assert not report.rewrites


def test_a_pad_stays_where_others_read_it_or_the_convolution_pads_to_keep_the_size(mend):
    pad, weights = helper.make_node("Pad", ["x", "p"], ["a"]), {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    weights["w"] = numbers(3, 3, 3, 3)
    read = [pad, helper.make_node("Conv", ["a", "w"], ["b"], pads=[1] * 4), helper.make_node("Add", ["a", "b"], ["y"])]
    same = [pad, helper.make_node("Conv", ["a", "w"], ["y"], auto_pad="SAME_UPPER")]
    for nodes in (read, same):
        report, mended = mend(network(nodes, [1, 3, 6, 6], [1, 3, 8, 8], weights))
        assert operators(mended)["Pad"] == 1
        assert not report.rewrites


def test_nodes_that_hand_their_input_on_go(mend):
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Dropout", ["a", "ratio", "training"], ["b"]),
        helper.make_node("Cast", ["b"], ["c"], to=FLOAT),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 1]),
        helper.make_node("Concat", ["d"], ["e"], axis=0),
        helper.make_node("Pad", ["e", "none"], ["f"]),
        helper.make_node("Exp", ["f"], ["g"]),
        helper.make_node("Identity", ["g"], ["y"]),
    ]
    weights = {"ratio": np.float32(0.5), "training": np.bool_(False), "none": np.zeros(4, np.int64)}
    model = network(nodes, [2, 5], [2, 5], weights)
    report, mended = mend(model)
    assert (operators(mended), counts(report)) == ({"Exp": 1}, {"no-ops": 7})
    assert not mended.graph.initializer
    x = numbers(2, 5)
    np.testing.assert_array_equal(answers(mended, x), np.exp(x))


def test_an_identity_between_input_and_output_stays_because_both_names_must(mend):
    report, mended = mend(network([helper.make_node("Identity", ["x"], ["y"])], ["batch", 5], ["batch", 5]))
    assert operators(mended) == {"Identity": 1}
    assert report.verdict == "out.onnx: nothing was changed, 1 node."


def test_a_tensor_that_a_branch_reads_is_followed_into_it(mend):
    branches = [
        helper.make_graph(
            [helper.make_node(operator, ["a"], [result])],
            operator,
            [],
            [helper.make_tensor_value_info(result, FLOAT, [2, 5])],
        )
        for operator, result in (("Neg", "p"), ("Abs", "q"))
    ]
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    model = network(nodes, [2, 5], [2, 5], {"zero": np.float32(0)})
    report, mended = mend(model)
    assert counts(report) == {"no-ops": 1}
    for x in (np.ones((2, 5), np.float32), -np.ones((2, 5), np.float32)):
        np.testing.assert_array_equal(answers(mended, x), answers(model, x))


def test_what_only_a_branch_reads_is_not_dead(mend):
    value = [helper.make_tensor_value_info(name, FLOAT, [2, 5]) for name in "pq"]
    branches = [
        helper.make_graph([helper.make_node("Mul", ["a", "w"], ["p"])], "then", [], value[:1]),
        helper.make_graph([helper.make_node("Sub", ["a", "w"], ["q"])], "else", [], value[1:]),
    ]
    nodes = [
        helper.make_node("Exp", ["x"], ["a"]),
        helper.make_node("ReduceMax", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "w"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    report, mended = mend(network(nodes, [2, 5], [2, 5], {"w": np.float32(2)}))
    assert not report.rewrites
    assert operators(mended)["Exp"] == 1


def test_what_no_input_can_change_is_computed_once(mend):
    constant = helper.make_node("Constant", [], ["two"], value_float=2.0)
    nodes = [
        constant,
        helper.make_node("Sqrt", ["w"], ["a"]),
        helper.make_node("Mul", ["a", "two"], ["b"]),
        helper.make_node("Add", ["x", "b"], ["y"]),
    ]
    model = network(nodes, ["batch", 3], ["batch", 3], {"w": np.array([1, 4, 9], np.float32)})
    report, mended = mend(model)
    assert (operators(mended), counts(report)) == ({"Add": 1}, {"constants": 3})
    (weight,) = mended.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(weight), [2, 4, 6])


def test_what_a_feed_or_chance_can_change_is_no_constant():
    noise = helper.make_node("RandomNormal", [], ["r"], shape=[1, 3])
    model = network([noise, helper.make_node("Add", ["x", "r"], ["y"])], [1, 3], [1, 3])
    assert onnx_folding.fold_constants(model) == 0
    nodes = [helper.make_node("Sqrt", ["w"], ["r"]), helper.make_node("Add", ["x", "r"], ["y"])]
    model = network(nodes, [1, 3], [1, 3], {"w": numbers(3) ** 2})
    model.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [3]))  # a feed may replace it
    assert onnx_folding.fold_constants(model) == 0


def test_a_fixed_shape_is_a_constant_and_an_open_batch_is_not(mend):
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "axes"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    weights = {"axes": np.array([0]), "rest": np.array([-1])}
    report, mended = mend(network(nodes, [4, 3, 2], [4, 6], weights))
    assert (operators(mended), counts(report)) == ({"Reshape": 1}, {"constants": 3})
    report, mended = mend(network(nodes, ["batch", 3, 2], ["batch", 6], weights))
    assert operators(mended) == {"Shape": 1, "Gather": 1, "Concat": 1, "Reshape": 1}
    assert answers(mended, numbers(7, 3, 2)).shape == (7, 6)


def test_a_part_of_a_shape_is_folded_with_its_start_and_end(mend):
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], start=1, end=-1),
        helper.make_node("Cast", ["s"], ["f"], to=FLOAT),
        helper.make_node("Mul", ["x", "f"], ["y"]),
    ]
    model = network(nodes, [2, 5, 3], [2, 5, 3])
    _, mended = mend(model)
    assert operators(mended) == {"Mul": 1}
    x = numbers(2, 5, 3)
    np.testing.assert_array_equal(answers(mended, x), 5 * x)


def test_a_constant_that_would_grow_stays(mend, monkeypatch):
    monkeypatch.setattr(onnx_folding, "LARGEST_CONSTANT", 100)
    nodes = [
        helper.make_node("Sqrt", ["w"], ["a"]),
        helper.make_node("Expand", ["a", "shape"], ["b"]),
        helper.make_node("Neg", ["b"], ["c"]),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    model = network(nodes, [50, 3], [50, 3], {"w": np.ones((1, 3), np.float32), "shape": np.array([50, 3])})
    report, mended = mend(model)
    assert (operators(mended), counts(report)) == ({"Expand": 1, "Neg": 1, "Add": 1}, {"constants": 1})


def test_scales_of_quantization_are_not_folded_away(mend):
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"]),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    model = network(nodes, [1, 3], [1, 2], {"w": np.ones((3, 2), np.int8), "s": np.float32(0.1)})
    _, mended = mend(model)
    assert operators(mended) == {"DequantizeLinear": 1, "MatMul": 1}


def test_transposes_that_undo_each_other_go_also_around_elementwise_nodes(mend):
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 2, 3, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Clip", ["b", "low", "high"], ["c"]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 3, 1, 2]),
        helper.make_node("Exp", ["d"], ["y"]),
    ]
    model = network(nodes, ["batch", 3, 4, 5], ["batch", 3, 4, 5], {"low": np.float32(0.1), "high": np.float32(1)})
    report, mended = mend(onnx.shape_inference.infer_shapes(model))
    assert (operators(mended), counts(report)) == ({"Relu": 1, "Clip": 1, "Exp": 1}, {"Transposes": 2})
    onnx.checker.check_model(mended, full_check=True)  # the notes on shapes between them are gone
    x = numbers(2, 3, 4, 5)
    np.testing.assert_array_equal(answers(mended, x), answers(model, x))


def test_two_transposes_that_do_not_undo_each_other_become_one(mend):
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[2, 0, 1]),
        helper.make_node("Transpose", ["a"], ["y"], perm=[2, 1, 0]),
    ]
    model = network(nodes, [2, 3, 4], [3, 2, 4])
    report, mended = mend(model)
    assert (operators(mended), counts(report)) == ({"Transpose": 1}, {"Transposes": 1})
    x = numbers(2, 3, 4)
    np.testing.assert_array_equal(answers(mended, x), x.transpose(2, 0, 1).transpose(2, 1, 0))


def test_a_transposed_tensor_that_is_read_twice_stays(mend):
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[1, 0]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Transpose", ["b"], ["c"], perm=[1, 0]),
        helper.make_node("Transpose", ["a"], ["d"], perm=[1, 0]),
        helper.make_node("MatMul", ["c", "a"], ["e"]),
        helper.make_node("Add", ["d", "e"], ["y"]),
    ]
    model = network(nodes, [3, 3], [3, 3])
    _, mended = mend(model)
    x = numbers(3, 3)
    np.testing.assert_allclose(answers(mended, x), np.maximum(x, 0) @ x.T + x, rtol=1e-6)
    assert operators(mended)["Transpose"] == 2  # only the one that turns `a` back is gone


def test_what_no_output_depends_on_goes(mend):
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Add", ["a", "w"], ["b"]),
    ]
    report, mended = mend(network(nodes, [1, 3], [1, 3], {"w": numbers(3), "never": numbers(9)}))
    assert (operators(mended), counts(report)) == ({"Relu": 1}, {"dead parts": 4})
    assert not mended.graph.initializer


def test_what_only_dead_nodes_read_is_dead_at_once():
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Exp", ["a"], ["b"]),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    assert remove_dead(network(nodes, [1, 3], [1, 3])) == 2


def test_what_one_rewrite_makes_possible_is_found_in_the_next_round_and_counted(mend):
    """The amounts of the Pad are 0, which only shows when the constants are computed."""
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Sub", ["p", "p"], ["q"]),
        helper.make_node("Pad", ["a", "q"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    report, mended = mend(network(nodes, [1, 3], [1, 3], {"p": np.array([1, 2, 3, 4])}))
    assert operators(mended) == {"Relu": 1}
    assert (counts(report)["no-ops"], counts(report)["constants"]) == (2, 1)


LEFT_ALONE = {
    "casts that cut decimals off": [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.INT32),
        helper.make_node("Cast", ["a"], ["y"], to=FLOAT),
    ],
    "a second output that is read": [
        helper.make_node("Split", ["x"], ["a", "b"], axis=3, num_outputs=2),
        helper.make_node("Relu", ["b"], ["y"]),
    ],
    "the mask of a dropout": [
        helper.make_node("Dropout", ["x"], ["a", "mask"]),
        helper.make_node("Where", ["mask", "a", "x"], ["y"]),
    ],
    "a dropout that may be in training": [
        helper.make_node("ReduceMax", ["x"], ["a"], keepdims=0),
        helper.make_node("Greater", ["a", "huge"], ["b"]),
        helper.make_node("Dropout", ["x", "half", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ],
    "a concatenation of two": [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Concat", ["x", "a"], ["b"], axis=1),
        helper.make_node("Relu", ["b"], ["y"]),
    ],
    "elementwise results that others read": [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 2, 3, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Transpose", ["b"], ["c"], perm=[0, 3, 1, 2]),
        helper.make_node("ReduceMax", ["b", "last"], ["d"], keepdims=0),
        helper.make_node("Unsqueeze", ["d", "first"], ["e"]),
        helper.make_node("Mul", ["c", "e"], ["y"]),
    ],
}


@pytest.mark.parametrize("nodes", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_what_a_rewrite_would_spoil_is_not_even_tried(mend, nodes):
    weights = {"huge": np.float32(1e30), "half": np.float32(0.5), "last": np.array([3]), "first": np.array([1])}
    used = {name: weights[name] for node in nodes for name in node.input if name in weights}
    report, mended = mend(network(nodes, [1, 3, 4, 6], [None] * 4, used, opset=18))
    assert not report.rewrites, report.to_text()
    assert operators(mended) == dict(Counter(node.op_type for node in nodes))


@pytest.mark.parametrize(("name", "inferred"), [("N", 2), ("", 2), ("batch", 0)])
def test_the_open_batch_gets_one_name(mend, name, inferred):
    dim = name or None
    report, mended = mend(network([helper.make_node("Relu", ["x"], ["y"])], [dim, 3], [dim, 3]))
    ends = (*mended.graph.input, *mended.graph.output)
    assert [end.type.tensor_type.shape.dim[0].dim_param for end in ends] == ["batch", "batch"]
    assert counts(report) == ({"batch name": inferred} if inferred else {})


def test_a_batch_is_not_given_the_name_of_another_dimension(mend):
    model = network([helper.make_node("Relu", ["x"], ["y"])], ["N", "batch"], ["N", "batch"])
    report, mended = mend(model)
    assert not report.rewrites
    assert [dim.dim_param for dim in mended.graph.input[0].type.tensor_type.shape.dim] == ["N", "batch"]


def test_two_open_dimensions_of_different_names_are_not_made_one(mend):
    model = network([helper.make_node("MatMul", ["x", "z"], ["y"])], ["rows", 3], ["rows", "columns"])
    model.graph.input.append(helper.make_tensor_value_info("z", FLOAT, ["three", "columns"]))
    rows = [("a", {"x": numbers(2, 3), "z": numbers(3, 4)}), ("b", {"x": numbers(5, 3), "z": numbers(3, 2)})]
    report, mended = mend(model, feeds=rows)
    assert not report.rewrites
    assert mended.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "rows"


def test_tf2onnx_s_resize_is_written_so_that_tensorrt_takes_it(mend):
    style = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "tf_half_pixel_for_nn"}
    resize = helper.make_node("Resize", ["x", "", "scales"], ["y"], **style)
    model = network([resize], [1, 3, 5, 7], [1, 3, 10, 21], {"scales": np.array([1, 1, 2, 3], np.float32)})
    report, mended = mend(model)
    assert counts(report) == {"exact Resize": 1}
    x = numbers(1, 3, 5, 7)
    np.testing.assert_array_equal(answers(mended, x), x.repeat(2, axis=2).repeat(3, axis=3))


# Layers for a random network on (batch, 4, 6, 6): each takes the tensor before it.
LAYERS = {
    "conv": lambda a, b, w: [helper.make_node("Conv", [a, w["kernel"]], [b], pads=[1, 1, 1, 1])],
    "norm": lambda a, b, w: [helper.make_node("BatchNormalization", [a, *w["norm"]], [b])],
    "scale": lambda a, b, w: [helper.make_node("Mul", [a, w["channel"]], [b])],
    "shift": lambda a, b, w: [helper.make_node("Add", [w["channel"], a], [b])],
    "relu": lambda a, b, w: [helper.make_node("Relu", [a], [b])],
    "identity": lambda a, b, w: [helper.make_node("Identity", [a], [b])],
    "turn": lambda a, b, w: [
        helper.make_node("Transpose", [a], [f"{b}_t"], perm=[0, 1, 3, 2]),
        helper.make_node("Tanh", [f"{b}_t"], [f"{b}_r"]),
        helper.make_node("Transpose", [f"{b}_r"], [b], perm=[0, 1, 3, 2]),
    ],
    "pad": lambda a, b, w: [
        helper.make_node("Pad", [a, w["pads"]], [f"{b}_p"]),
        helper.make_node("Conv", [f"{b}_p", w["kernel"]], [b]),
    ],
    "twice": lambda a, b, w: [helper.make_node("Neg", [a], [f"{b}_n"]), helper.make_node("Sub", [a, f"{b}_n"], [b])],
}


@settings(max_examples=25)
@example(["conv"] * 4 + ["scale", "scale", "norm"])  # numbers that nearly cancel in weights of four
@given(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=7))
def test_a_random_network_keeps_its_answers(tmp_path_factory, names):
    random = np.random.default_rng(len(names))
    arrays = {f"norm{index}": random.random(4, np.float32) + 0.5 for index in range(4)}
    arrays["kernel"] = random.standard_normal((4, 4, 3, 3)).astype(np.float32) / 6
    arrays["channel"] = random.standard_normal((1, 4, 1, 1)).astype(np.float32)
    arrays["pads"] = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    shared = {"norm": [f"norm{index}" for index in range(4)], "kernel": "kernel", "channel": "channel", "pads": "pads"}
    nodes, last = [], "x"
    for index, name in enumerate(names):
        result = "y" if index == len(names) - 1 else f"t{index}"
        nodes += LAYERS[name](last, result, shared)
        last = result
    model = network(nodes, ["batch", 4, 6, 6], ["batch", 4, 6, 6], arrays)
    folder = tmp_path_factory.mktemp("random")
    onnx.save(model, folder / "in.onnx")
    report = fix(folder / "in.onnx", folder / "out.onnx", progress=False)
    assert not report.dropped
    assert sum(report.operators_after.values()) <= sum(report.operators_before.values())
    x = random.standard_normal((3, 4, 6, 6)).astype(np.float32)
    expected = answers(model, x)
    # a handful of layers of sums of 36 products: 1e-5 of the range is ten times what float32 loses there
    np.testing.assert_allclose(answers(onnx.load(folder / "out.onnx"), x), expected, atol=1e-5 * np.ptp(expected))


def spoil(change):
    """A rewrite that does harm, for the list."""

    def apply(model):
        change(model)
        return 1

    return apply


def scale_weight(factor):
    def change(model):
        tensor = model.graph.initializer[0]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))

    return spoil(change)


def linear(batch="batch"):
    return network([helper.make_node("MatMul", ["x", "w"], ["y"])], [batch, 4], [batch, 3], {"w": numbers(4, 3)})


@pytest.mark.parametrize(
    ("rewrite", "words"),
    [
        (Rewrite("harm", "", scale_weight(1.01), exact=False), "FAIL"),
        (Rewrite("harm", "", scale_weight(1.000001)), "expected the same to the last bit"),
        (Rewrite("harm", "", spoil(lambda model: model.graph.node.pop())), "does not run"),
    ],
    ids=["wrong", "rounding", "broken"],
)
def test_a_rewrite_that_changes_the_answers_is_dropped_and_named(mend, monkeypatch, rewrite, words):
    monkeypatch.setattr(onnx_fix, "REWRITES", (rewrite, *onnx_fix.REWRITES))
    model = linear()
    report, mended = mend(model)
    (dropped,) = report.dropped
    assert (dropped.name, dropped.kept) == ("harm", False)
    assert words in dropped.dropped
    assert mended.graph.SerializeToString() == model.graph.SerializeToString()
    assert "harm" in report.to_text()
    assert "dropped" in report.to_text()


def test_a_rewrite_that_only_works_for_one_image_is_dropped(mend, monkeypatch):
    def fix_batch(model):
        if len(model.graph.node) == 2:
            return 0
        model.graph.node[0].input[0] = "flat"
        model.graph.initializer.append(numpy_helper.from_array(np.array([1, 4]), "shape"))
        model.graph.node.insert(0, helper.make_node("Reshape", ["x", "shape"], ["flat"]))
        return 1

    monkeypatch.setattr(onnx_fix, "REWRITES", (Rewrite("harm", "", fix_batch),))
    assert "does not run" in mend(linear())[0].dropped[0].dropped
    assert not mend(linear(1))[0].dropped  # with a batch of 1 it is right


@pytest.mark.parametrize("exact", [True, False])
def test_a_rewrite_that_is_right_for_the_first_feed_only_is_dropped(mend, monkeypatch, exact):
    """Without its Relu the network answers the same to numbers above 0."""

    def harm(model):
        if len(model.graph.node) == 1:
            return 0
        del model.graph.node[0]
        model.graph.node[0].input[0] = "x"
        return 1

    monkeypatch.setattr(onnx_fix, "REWRITES", (Rewrite("harm", "", harm, exact=exact),))
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])]
    feeds = [("above", {"x": np.float32([[1, 2, 3]])}), ("below", {"x": np.float32([[-1, -2, 3]])})]
    report, mended = mend(network(nodes, [1, 3], [1, 3]), feeds=feeds)
    assert [rewrite.name for rewrite in report.dropped] == ["harm"]
    assert operators(mended) == {"Relu": 1, "Neg": 1}
    assert report.parity.images == 2


def test_a_rewrite_that_changes_the_type_of_an_answer_is_dropped(mend, monkeypatch):
    def harm(model):
        if len(model.graph.node) == 2:
            return 0
        model.graph.node[0].output[0] = "single"
        model.graph.node.append(helper.make_node("Cast", ["single"], ["y"], to=TensorProto.DOUBLE))
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
        return 1

    monkeypatch.setattr(onnx_fix, "REWRITES", (Rewrite("harm", "", harm),))
    report, _ = mend(network([helper.make_node("Neg", ["x"], ["y"])], [1, 3], [1, 3]))
    assert [rewrite.name for rewrite in report.dropped] == ["harm"]


def test_a_dropped_rewrite_is_not_tried_again_when_another_has_changed_something(mend, monkeypatch):
    tried = []

    def harm(model):
        tried.append(len(model.graph.node))
        return scale_weight(1.5)(model)

    monkeypatch.setattr(onnx_fix, "REWRITES", (Rewrite("harm", "", harm), *onnx_fix.REWRITES))
    nodes = [helper.make_node("Identity", ["x"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    report, _ = mend(network(nodes, ["batch", 4], ["batch", 3], {"w": numbers(4, 3)}))
    assert (tried, counts(report), len(report.dropped)) == ([2], {"no-ops": 1}, 1)


def test_not_a_number_is_an_answer_like_any_other(mend):
    nodes = [helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Log", ["a"], ["y"])]
    report, mended = mend(network(nodes, [1, 3], [1, 3]), feeds=[("below 0", {"x": np.float32([[-1, 1, 2]])})])
    assert (operators(mended), counts(report)) == ({"Log": 1}, {"no-ops": 1})
    assert report.parity.status == "fail"  # the network itself is at fault, so the same answers prove nothing
    assert report.status == "inconclusive"


def test_a_rounding_rewrite_on_answers_that_do_not_vary_proves_nothing(mend, monkeypatch):
    # the weights are 0: whatever a rewrite does to the input, the answer is the offset
    monkeypatch.setattr(onnx_fix, "REWRITES", (Rewrite("harm", "", add_noise, exact=False),))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "o"], ["y"])]
    model = network(nodes, ["batch", 4], ["batch", 3], {"w": np.zeros((4, 3), np.float32), "o": numbers(3)})
    report, _ = mend(model)
    assert report.dropped
    assert "harm" in report.to_text()


def test_the_same_answers_that_hardly_vary_are_not_called_a_proof(mend):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "o"], ["b"])]
    nodes.append(helper.make_node("Identity", ["b"], ["y"]))
    model = network(nodes, ["batch", 4], ["batch", 3], {"w": np.zeros((4, 3), np.float32), "o": numbers(3)})
    report, _ = mend(model)
    assert counts(report) == {"no-ops": 1}
    assert report.parity.status == "inconclusive"
    assert "hardly vary" in report.verdict
    assert "proved" not in report.verdict


def test_the_same_answers_with_nan_are_neither_a_proof_nor_a_fault(mend):
    nodes = [helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Log", ["a"], ["y"])]
    report, _ = mend(network(nodes, [4, 8], [4, 8]))  # the logarithm of random numbers, of which half are negative
    assert counts(report) == {"no-ops": 1}
    assert report.status == "inconclusive"
    assert "the answers hold NaN or infinity" in report.verdict
    assert "differs" not in report.to_text()


@pytest.mark.parametrize("shape", [[None, 3, 32, 48], [None, "H", "W", 3], [2, 3, 32, 48]])
def test_pictures_of_any_layout_and_open_sizes_are_fed(mend, shape):
    nodes = [helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    report, _ = mend(network(nodes, shape, shape))
    assert counts(report)["no-ops"] == 1
    assert report.parity.images == 4  # a picture and noise, alone and together; or each twice in a fixed batch of 2


def add_noise(model):
    offset = model.graph.initializer[1]
    offset.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(offset) + np.float32(1e-6), offset.name))
    return 1


def test_own_feeds_are_used_and_checked(mend):
    feeds = [(str(index), {"x": numbers(2, 4)}) for index in range(3)]
    report, _ = mend(linear("N"), feeds=feeds)
    assert report.parity.images == 6
    with pytest.raises(FeedError, match="expected float32"):
        mend(linear(), feeds=[("bad", {"x": numbers(2, 5)})])


def test_the_file_that_was_read_is_not_written(tmp_path):
    path = tmp_path / "same.onnx"
    onnx.save(
        network([helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"])], [1, 3], [1, 3]),
        path,
    )
    before = path.read_bytes()
    with pytest.raises(OutputError, match="input"):
        fix(path, path, progress=False)
    assert path.read_bytes() == before


def test_weights_in_another_file_come_in(tmp_path, mend):
    onnx.save(linear("N"), tmp_path / "big.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    fix(tmp_path / "big.onnx", tmp_path / "small.onnx", progress=False)
    (tmp_path / "w.bin").unlink()
    assert check(tmp_path / "small.onnx").parameters == 12


def test_a_network_that_answers_by_chance_is_refused(mend, tmp_path):
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["n"]), helper.make_node("Add", ["x", "n"], ["y"])]
    with pytest.raises(ModelError, match="answers the same input differently each time"):
        mend(network(nodes, [1, 3], [1, 3]))
    assert not (tmp_path / "out.onnx").exists()


def test_a_network_that_onnx_runtime_cannot_run_is_refused(mend, tmp_path):
    node = helper.make_node("Swirl", ["x"], ["y"], domain="my.own")
    with pytest.raises(ModelError, match="ONNX Runtime cannot run the network, so no rewrite can be proved"):
        mend(network([node], [1, 3], [1, 3], domains=["my.own"]))
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


def test_a_network_of_text_is_refused(mend):
    node = helper.make_node("Identity", ["x"], ["y"])
    with pytest.raises(InputError, match="no test input can be made"):
        mend(network([node], [1, 3], [1, 3], x_type=TensorProto.STRING, y_type=TensorProto.STRING))


def test_a_network_of_more_than_two_gigabytes_is_refused(mend, monkeypatch):
    monkeypatch.setattr(edit, "LARGEST_FILE", 10)
    with pytest.raises(ExportError, match="more than the 2 GB that one file can hold"):
        mend(linear())


def test_an_unknown_simplifier_and_a_missing_one_are_named(mend, monkeypatch):
    with pytest.raises(InputError, match="got simplifier='onnxsim', expected 'onnxslim', or None"):
        mend(linear(), simplifier="onnxsim")
    monkeypatch.setitem(sys.modules, "onnxslim", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install -e '\.\[torch\]'"):
        mend(linear(), simplifier="onnxslim")


def test_a_folder_that_is_not_there_is_refused_and_nothing_is_left(tmp_path):
    onnx.save(linear(), tmp_path / "in.onnx")
    with pytest.raises(OutputError, match="create it first"):
        fix(tmp_path / "in.onnx", tmp_path / "no" / "out.onnx", progress=False)


def test_ctrl_c_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(model):
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx_fix, "REWRITES", (Rewrite("slow", "", interrupt),))
    onnx.save(linear(), tmp_path / "in.onnx")
    with pytest.raises(KeyboardInterrupt):
        fix(tmp_path / "in.onnx", tmp_path / "out.onnx", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


def test_the_report_is_one_page_for_people(mend):
    nodes = [helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    report, _ = mend(network(nodes, ["batch", 3], ["batch", 3]))
    assert report.verdict == "out.onnx: 2 nodes became 1, proved with ONNX Runtime on 4 inputs."
    page = report._repr_html_()
    assert "hand their input on unchanged" in page
    assert "PASS" in page
    content = json.loads(report.to_json())
    assert (content["passed"], content["verdict"]) == (True, report.verdict)
    assert [rewrite["name"] for rewrite in content["rewrites"]] == ["no-ops"]
