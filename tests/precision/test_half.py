"""Conversion to half floats: what is converted, what stays and why, and the answers of a run rounded by NumPy."""

import json
import os

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_networks import picture, save_network, save_picture_network

from workbench.core.errors import EngineBuildError, ExportError, FeedError, InputError, ModelError
from workbench.engine import tensorrt_api
from workbench.engine.build import build_engine
from workbench.onnx_graph.edit import inferred_values
from workbench.precision import half, half_graph, observing
from workbench.precision.half import to_bf16, to_fp16
from workbench.precision.ranges import measure_ranges
from workbench.precision.rounding import KernelTypes, emulate_float16

F16, BF16, F32 = TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT
RANDOM = np.random.default_rng(11)
NODE = helper.make_node


def numbers(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.fixture
def here(tmp_path):
    """Save a network of one input x and one output y, and convert it; returns the report and the new network."""

    class Place:
        source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"

        def save(self, nodes, x, y, weights=None, opset=17, x_type="float32", y_type="float32", **options):
            ends = [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape)
                for name, kind, shape in (("x", x_type, x), ("y", y_type, y))
            ]
            tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
            graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
            opsets = [helper.make_opsetid("", opset), *options.pop("domains", ())]
            onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8, **options), self.source)
            return self.source

        def convert(self, *network, to=to_fp16, keep=(), ranges=None, **options):
            if network:
                self.save(*network, **options)
            report = to(self.source, self.out, keep=keep, ranges=ranges)
            model = onnx.load(self.out)
            onnx.checker.check_model(model, full_check=True)  # types, too
            return report, model

        def answers(self, feed):
            return [run(path, feed) for path in (self.source, self.out)]

    return Place()


def run(path, feed):
    return onnxruntime.InferenceSession(os.fspath(path)).run(None, feed)[0]


def kinds(model):
    return {name: value.elem_type for name, value in inferred_values(model).items()}


def operators(model):
    return [node.op_type for node in model.graph.node]


def reasons(report):
    return {operator: reason for _, operator, reason in report.kept}


@pytest.fixture(scope="module")
def builder():
    """The real builder; CI names it as one it must test, so there its absence is an error."""
    if not tensorrt_api.available_flavours()[0] and "CI" not in os.environ:
        pytest.skip("no TensorRT that can build is installed; a must in CI only")


# what is converted


@pytest.mark.parametrize(("convert", "kind", "digits"), [(to_fp16, F16, 11), (to_bf16, BF16, 8)])
def test_every_layer_computes_in_the_half_float_and_the_ends_keep_their_types(tmp_path, convert, kind, digits):
    source = save_picture_network(tmp_path / "in.onnx")
    report = convert(source, tmp_path / "out.onnx")
    model = onnx.load(tmp_path / "out.onnx")
    types = kinds(model)
    assert (report.converted, report.kept) == (4, ())
    assert [types[name] for name in ("features", "active")] == [kind, kind]
    assert [types[name] for name in ("input", "output", "pooled")] == [F32, F32, F32]
    assert {tensor.data_type for tensor in model.graph.initializer} - {TensorProto.INT64} == {kind}
    assert report.weights_bytes_after == pytest.approx(report.weights_bytes_before / 2, abs=32)
    feed = {"input": picture(2)}
    exact, rounded = run(source, feed), emulate_float16(tmp_path / "out.onnx", feed).outputs["output"]
    # Weights, inputs and each of four tensors are off by half a unit in the last of so many binary digits; six such
    # errors in a row, and a factor of 2 for sums in which large terms cancel.
    assert 0 < np.abs(exact - rounded).max() / np.abs(exact).max() < 12 * 2.0**-digits


def test_a_float16_file_gives_nearly_the_same_answers_in_onnx_runtime(tmp_path):
    source = save_picture_network(tmp_path / "in.onnx")
    to_fp16(source, tmp_path / "out.onnx")
    feed = {"input": picture(2)}
    exact, other = run(source, feed), run(tmp_path / "out.onnx", feed)
    assert other.dtype == np.float32
    assert np.abs(exact - other).max() < 12 * 2.0**-11 * np.abs(exact).max()  # as above


def test_conversion_writes_the_same_file_twice_and_leaves_the_source_alone(tmp_path):
    source = save_picture_network(tmp_path / "in.onnx")
    before = source.read_bytes()
    for name in ("one.onnx", "two.onnx"):
        to_fp16(source, tmp_path / name)
    assert source.read_bytes() == before
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_weights_are_rounded_to_the_nearest_and_tiny_ones_are_not_lifted(here):
    weight = np.array([[1e-9, 30000.0], [1 / 3, 2.0**-24]], np.float32)
    _, model = here.convert([NODE("MatMul", ["x", "w"], ["y"])], (1, 2), (1, 2), {"w": weight})
    assert np.array_equal(numpy_helper.to_array(model.graph.initializer[0]), weight.astype(np.float16))


def test_weights_become_the_nearest_bfloat16_and_halves_go_to_even(here):
    """Its step is 2**-7 from 1 to 2, and 2 from 256 to 512; by hand, as IEEE 754 rounds."""
    step = 2.0**-7
    exact = [1 + step / 4, 1 + step / 2, 1 + step * 1.5, 1 + step * 0.5625, -1 - step * 0.75, 301.2]
    nearest = [1, 1, 1 + 2 * step, 1 + step, -1 - step, 302]
    weight = np.array([exact], np.float32).T
    _, model = here.convert([NODE("MatMul", ["x", "w"], ["y"])], (1, 6), (1, 1), {"w": weight}, to=to_bf16)
    assert numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64).ravel().tolist() == nearest


def test_an_output_that_other_nodes_read_too_is_cast_once(here):
    nodes = [NODE("Relu", ["x"], ["y"]), NODE("Neg", ["y"], ["n"]), NODE("Exp", ["n"], ["unread"])]
    _, model = here.convert(nodes, (3,), (3,))
    assert operators(model) == ["Cast", "Relu", "Cast", "Neg", "Exp"]
    neg = next(node for node in model.graph.node if node.op_type == "Neg")
    assert kinds(model)[neg.input[0]] == F16


def test_resize_keeps_its_scales_in_float32(here):
    scales = {"s": np.array([1, 1, 2, 2], np.float32)}
    report, model = here.convert([NODE("Resize", ["x", "", "s"], ["y"])], (1, 1, 2, 2), (1, 1, 4, 4), scales)
    assert (report.converted, kinds(model)["s"]) == (1, F32)
    x = numbers(1, 1, 2, 2)
    exact, other = here.answers({"x": x})
    assert np.array_equal(exact.astype(np.float16), other.astype(np.float16))


def test_shape_arithmetic_stays_exact_where_float16_would_be_off(here):
    nodes = [
        NODE("Shape", ["x"], ["shape"]),
        NODE("Cast", ["shape"], ["size"], to=F32),
        NODE("Mul", ["size", "two"], ["twice"], name="twice"),
        NODE("Cast", ["twice"], ["target"], to=TensorProto.INT64),
        NODE("Resize", ["x", "", "", "target"], ["grown"]),
        NODE("Neg", ["grown"], ["y"]),
    ]
    report, model = here.convert(nodes, (1, "n"), (1, "m"), {"two": np.array([1, 1.5], np.float32)})
    assert kinds(model)["twice"] == F32
    assert report.kept == (("twice", "Mul", "it calculates with shapes and constants, not with what is fed"),)
    exact, other = here.answers({"x": numbers(1, 2734)})  # 4101 is no float16: its neighbours are 4 apart
    assert exact.shape == other.shape == (1, 4101)


def test_integers_and_truth_values_stay_as_they_are(here):
    nodes = [
        NODE("Greater", ["x", "zero"], ["positive"]),
        NODE("Where", ["positive", "x", "zero"], ["clipped"]),
        NODE("ArgMax", ["clipped"], ["y"], axis=1, keepdims=0),
    ]
    report, model = here.convert(nodes, (2, 4), (2,), {"zero": np.zeros(1, np.float32)}, y_type="int64")
    types = kinds(model)
    assert report.converted == 3
    assert (types["positive"], types["clipped"], types["y"]) == (TensorProto.BOOL, F16, TensorProto.INT64)
    x = np.array([[1, -2, 3, 0], [-1, 5, 0, 4]], np.float32)
    assert np.array_equal(*here.answers({"x": x}))


def test_a_uint8_input_is_converted_behind_its_cast(here):
    nodes = [NODE("Cast", ["x"], ["f"], to=F32), NODE("Mul", ["f", "scale"], ["y"])]
    _, model = here.convert(nodes, (1, 4), (1, 4), {"scale": np.array([0.5], np.float32)}, x_type="uint8")
    assert kinds(model)["x"] == TensorProto.UINT8
    x = np.array([[0, 7, 128, 255]], np.uint8)
    assert np.array_equal(*here.answers({"x": x}))  # halves of whole numbers below 256 are float16


def test_weights_that_are_made_by_constant_nodes_are_converted(here):
    nodes = [
        NODE("Constant", [], ["c"], value=numpy_helper.from_array(numbers(4, 2))),
        NODE("Transpose", ["c"], ["w"]),
        NODE("MatMul", ["x", "w"], ["y"]),
    ]
    report, model = here.convert(nodes, (1, 2), (1, 4))
    assert operators(model) == ["Cast", "MatMul", "Cast"]
    assert report.weights_bytes_after == report.weights_bytes_before / 2 == 16


def test_weights_listed_among_the_inputs_are_converted_like_others(here):
    here.save([NODE("MatMul", ["x", "w"], ["y"])], (1, 2), (1, 2), {"w": numbers(2, 2)})
    model = onnx.load(here.source)
    model.graph.input.append(helper.make_tensor_value_info("w", F32, (2, 2)))
    onnx.save(model, here.source)
    _, converted = here.convert()
    assert [value.name for value in converted.graph.input] == ["x"]
    assert converted.graph.initializer[0].data_type == F16


def test_functions_of_the_file_are_converted_inside(here):
    function = helper.make_function(
        "local", "Double", ["a"], ["b"], [NODE("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    domain = helper.make_opsetid("local", 1)
    nodes = [NODE("Double", ["x"], ["y"], domain="local")]
    report, _ = here.convert(nodes, (3,), (3,), functions=[function], domains=[domain])
    assert report.converted == 1


def branch(name, node):
    return helper.make_graph([node], name, [], [helper.make_tensor_value_info(node.output[0], F32, None)])


def test_branches_are_converted_and_what_leaves_them_is_not(here):
    nodes = [
        NODE("Relu", ["x"], ["r"]),
        NODE("ReduceMax", ["r"], ["peak"], keepdims=0),
        NODE("Greater", ["peak", "one"], ["large"]),
        NODE(
            "If", ["large"], ["y"],
            then_branch=branch("then", NODE("Mul", ["r", "w"], ["product"])),
            else_branch=branch("else", NODE("Add", ["x", "w"], ["sum"])),
        ),
    ]  # fmt: skip
    weights = {"w": np.array([0.5, 2, 4], np.float32), "one": np.array(1, np.float32)}
    report, model = here.convert(nodes, (3,), (3,), weights)
    assert (report.converted, report.kept) == (5, ())
    inner = [item.g for node in model.graph.node for item in node.attribute if item.HasField("g")]
    assert sorted(operators(onnx.ModelProto(graph=graph))[-1] for graph in inner) == ["Cast", "Cast"]
    for x in (np.array([1, 2, 3], np.float32), np.array([-1, 0.25, 0.5], np.float32)):
        assert np.array_equal(*here.answers({"x": x}))  # every number here is a float16


def test_the_body_of_a_loop_is_converted_and_what_it_carries_is_not(here):
    body = helper.make_graph(
        [NODE("Add", ["state", "x"], ["grown"]), NODE("Identity", ["go"], ["go_on"])],
        "body",
        [helper.make_tensor_value_info(*value) for value in
         (("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("state", F32, [3]))],
        [helper.make_tensor_value_info(*value) for value in (("go_on", TensorProto.BOOL, []), ("grown", F32, [3]))],
    )  # fmt: skip
    nodes = [NODE("Neg", ["x"], ["start"]), NODE("Loop", ["count", "", "start"], ["y"], body=body)]
    report, _ = here.convert(nodes, (3,), (3,), {"count": np.array(5, np.int64)})
    assert report.converted == 2
    x = np.array([1, 0.5, -3], np.float32)
    assert np.array_equal(*here.answers({"x": x}))
    assert np.array_equal(here.answers({"x": x})[1], 4 * x)


# what stays, and why


def hot_network(here, peak=100_000.0):
    """The middle tensor holds up to `peak` when x is up to 1; the answers are between -1 and 1."""
    weights = {"up": np.full((2, 2), peak / 2, np.float32), "down": np.eye(2, dtype=np.float32) / peak}
    nodes = [
        NODE("MatMul", ["x", "up"], ["hot"], name="raise"),
        NODE("Relu", ["hot"], ["kept"], name="relu"),
        NODE("MatMul", ["kept", "down"], ["low"], name="lower"),
        NODE("Tanh", ["low"], ["y"], name="tanh"),
    ]
    return here.save(nodes, (1, 2), (1, 2), weights)


def test_nodes_that_touch_an_overflow_stay_float32_and_are_named_with_the_number(here):
    feed = {"x": np.ones((1, 2), np.float32)}
    ranges = measure_ranges(hot_network(here), [feed], progress=False)
    report, model = here.convert(ranges=ranges)
    assert [(name, operator) for name, operator, _ in report.kept] == [
        ("raise", "MatMul"), ("relu", "Relu"), ("lower", "MatMul"),
    ]  # fmt: skip
    assert report.kept[0][2] == "it writes values up to 100,000, float16 ends at 65,504"
    assert report.kept[2][2].startswith("it reads values up to 100,000")
    types = kinds(model)
    assert (types["hot"], types["kept"], report.converted) == (F32, F32, 1)
    assert emulate_float16(here.out, feed).outputs["y"] == pytest.approx(np.tanh([[1, 1]]), abs=2**-10)


def test_a_value_of_65504_fits_and_one_beyond_does_not(here):
    for peak, kept in ((65504.0, 0), (65520.0, 3)):
        ranges = measure_ranges(hot_network(here, peak), [{"x": np.ones((1, 2), np.float32)}], progress=False)
        assert len(here.convert(ranges=ranges)[0].kept) == kept


def test_bfloat16_holds_what_float16_does_not(here):
    ranges = measure_ranges(hot_network(here), [{"x": np.ones((1, 2), np.float32)}], progress=False)
    assert here.convert(to=to_bf16, ranges=ranges)[0].kept == ()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (7e4, "its constant w holds 7e+04, float16 ends at 65,504"),
        (-3.4e38, "its constant w holds 3.4e+38, float16 ends at 65,504"),
        (1e-12, "its constant w, at most 1.0e-12, would be 0 in float16"),
        (np.inf, None),
        (0.0, None),
    ],
)
def test_a_constant_that_float16_cannot_hold_keeps_its_node(here, value, reason):
    nodes = [NODE("Add", ["x", "w"], ["sum"], name="add"), NODE("Neg", ["sum"], ["y"])]
    report, _ = here.convert(nodes, (2,), (2,), {"w": np.full(1, value, np.float32)})
    assert report.kept == ((("add", "Add", reason),) if reason else ())


def test_a_weight_of_a_converted_and_of_a_kept_node_is_there_in_both_types(here):
    nodes = [NODE("MatMul", ["x", "w"], ["a"], name="first"), NODE("MatMul", ["a", "w"], ["y"], name="second")]
    _, model = here.convert(nodes, (1, 2), (1, 2), {"w": numbers(2, 2)}, keep=["first"])
    assert sorted(tensor.data_type for tensor in model.graph.initializer) == [F32, F16]
    assert operators(model) == ["MatMul", "Cast", "MatMul", "Cast"]


@pytest.mark.parametrize("word", ["relu", "active", "Relu"])
def test_nodes_can_be_kept_by_name_by_what_they_write_and_by_operator(here, word):
    nodes = [NODE("Neg", ["x"], ["n"]), NODE("Relu", ["n"], ["active"], name="relu"), NODE("Neg", ["active"], ["y"])]
    assert here.convert(nodes, (2,), (2,), keep=[word])[0].kept == (("relu", "Relu", "you keep it"),)


def test_an_unknown_name_to_keep_is_refused(here):
    here.save([NODE("Relu", ["x"], ["y"])], (2,), (2,))
    with pytest.raises(InputError, match=r"no node 'Rleu' to keep; give names of nodes or operators: Relu"):
        to_fp16(here.source, here.out, keep=["Rleu"])
    with pytest.raises(InputError, match=r"got keep='Relu', expected a list of names, such as \['Relu'\]"):
        to_fp16(here.source, here.out, keep="Relu")


def test_what_onnx_has_no_float16_for_stays_and_is_named(here):
    nodes = [NODE("Celu", ["x"], ["c"]), NODE("Relu", ["c"], ["r"]), NODE("Mine", ["r"], ["y"], domain="my.own")]
    report, model = here.convert(nodes, (2,), (2,), domains=[helper.make_opsetid("my.own", 1)])
    assert reasons(report) == {
        "Celu": "ONNX has no float16 Celu in opset 17",
        "Mine": "it is no operator of ONNX, so its types are not known",
    }
    assert operators(model) == ["Celu", "Cast", "Relu", "Cast", "Mine"]


def test_bfloat16_brings_the_network_to_an_opset_that_has_it(here):
    nodes = [NODE("Conv", ["x", "w"], ["c"]), NODE("ReduceMean", ["c"], ["y"], axes=[2, 3])]
    report, model = here.convert(nodes, (1, 3, 8, 8), (1, 4, 1, 1), {"w": numbers(4, 3, 3, 3)}, to=to_bf16)
    assert model.opset_import[0].version == half.BFLOAT16_OPSET
    assert (report.converted, report.kept) == (2, ())


def test_bfloat16_says_when_the_opset_cannot_be_reached(here, monkeypatch):
    def fail(model, version):
        raise RuntimeError("no adapter for Upsample")

    here.save([NODE("Relu", ["x"], ["y"])], (2,), (2,))
    monkeypatch.setattr(half.version_converter, "convert_version", fail)
    with pytest.raises(ExportError, match=r"has opset 17 and cannot be brought to 22, .*no adapter for Upsample"):
        to_bf16(here.source, here.out)


def test_the_report_reads_well(here):
    ranges = measure_ranges(hot_network(here), [{"x": np.ones((1, 2), np.float32)}], progress=False)
    text = here.convert(ranges=ranges)[0].to_text()
    assert text.startswith("fp16: 1 node converted, 3 kept")
    assert "it writes values up to 100,000" in text


# bad input


def test_nothing_to_convert_is_an_error_with_the_reasons(here):
    here.save([NODE("Add", ["x", "x"], ["y"])], (2,), (2,), x_type="int64", y_type="int64")
    with pytest.raises(InputError, match=r"has no node that can be converted to float16; build it as fp32"):
        to_fp16(here.source, here.out)
    here.save([NODE("Celu", ["x"], ["y"])], (2,), (2,))
    with pytest.raises(InputError, match=r"\(ONNX has no float16 Celu in opset 17\)"):
        to_fp16(here.source, here.out)
    assert not here.out.exists()


def test_a_converted_network_is_not_converted_again(tmp_path):
    save_picture_network(tmp_path / "in.onnx")
    to_fp16(tmp_path / "in.onnx", tmp_path / "half.onnx")
    for convert in (to_fp16, to_bf16):
        with pytest.raises(InputError, match=r"already holds float16 tensors, expected a float32 network"):
            convert(tmp_path / "half.onnx", tmp_path / "out.onnx")
    to_bf16(tmp_path / "in.onnx", tmp_path / "half.onnx")
    with pytest.raises(InputError, match=r"already holds bfloat16 tensors"):
        to_fp16(tmp_path / "half.onnx", tmp_path / "out.onnx")


def test_a_quantised_network_is_refused(here):
    weights = {"s": np.float32(0.1), "z": np.int8(0)}
    nodes = [NODE("QuantizeLinear", ["x", "s", "z"], ["q"]), NODE("DequantizeLinear", ["q", "s", "z"], ["y"])]
    here.save(nodes, (2,), (2,), weights)
    with pytest.raises(InputError, match=r"is already quantised \(2 Q/DQ nodes\)"):
        to_fp16(here.source, here.out)


def test_ranges_of_another_network_are_refused(here):
    ranges = measure_ranges(hot_network(here), [{"x": np.ones((1, 2), np.float32)}], progress=False)
    hot_network(here, 200_000)
    with pytest.raises(InputError, match=r"got ranges of the network [0-9a-f]{12}, expected those of in.onnx"):
        to_fp16(here.source, here.out, ranges=ranges)


def test_what_is_no_network_is_refused(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        to_fp16(tmp_path / "none.onnx", tmp_path / "out.onnx")


# a run rounded by NumPy


def test_emulation_is_numpy_arithmetic_of_16_bits(here):
    weight = numbers(4, 4)
    here.save(
        [NODE("MatMul", ["x", "w"], ["m"]), NODE("Relu", ["m"], ["r"]), NODE("Mul", ["r", "r"], ["y"])],
        (1, 4), (1, 4), {"w": weight},
    )  # fmt: skip
    x = numbers(1, 4)
    product = (x.astype(np.float16).astype(np.float32) @ weight.astype(np.float16).astype(np.float32)).astype(
        np.float16
    )
    active = np.maximum(product, np.float16(0))
    emulated = emulate_float16(here.source, {"x": x})
    assert np.array_equal(emulated.outputs["y"], (active * active).astype(np.float32))
    assert [entry.operator for entry in emulated.tensors] == ["Cast", "MatMul", "Relu", "Mul"]


def test_emulation_rounds_to_bfloat16_where_the_file_says_so(here):
    x = numbers(1, 64)
    here.convert([NODE("Exp", ["x"], ["y"])], (1, 64), (1, 64), to=to_bf16)
    rounded = np.exp(x.astype(ml_dtypes.bfloat16).astype(np.float32)).astype(ml_dtypes.bfloat16).astype(np.float32)
    got = emulate_float16(here.out, {"x": x}).outputs["y"]
    # ONNX Runtime's exp is not NumPy's to the last bit: a value between two bfloat16 may go either way
    assert np.abs(got - rounded).max() <= 2.0**-7 * rounded.max()
    assert np.mean(got == rounded) > 0.95


def test_emulation_shows_where_the_overflow_starts_and_what_it_does_to_the_answers(here):
    hot_network(here)
    feed = {"x": np.array([[1, 1]], np.float32)}
    assert run(here.source, feed) == pytest.approx(np.tanh([[1, 1]]), abs=1e-6)
    emulated = emulate_float16(here.source, feed)
    assert not np.isfinite(emulated.outputs["y"]).any() or np.abs(emulated.outputs["y"]).max() == 1
    first = emulated.first_bad
    assert (first.name, first.operator, first.inf, first.nan, first.size) == ("hot", "MatMul", 2, 0, 2)
    assert first.largest == pytest.approx(100_000, rel=2**-10)
    assert "it starts at hot (MatMul)" in emulated.verdict
    assert "hot" in emulated.to_text() and "hot" in emulated._repr_html_()


def test_emulation_of_a_network_that_fits_says_so(tmp_path):
    source = save_picture_network(tmp_path / "in.onnx")
    emulated = emulate_float16(source, {"input": picture(1)})
    assert emulated.first_bad is None
    assert emulated.verdict == "All 5 rounded tensors are finite."  # the input's Cast and four layers


def test_emulation_of_a_network_larger_than_the_budget_runs_in_groups_alike(tmp_path, monkeypatch):
    source = save_picture_network(tmp_path / "in.onnx")
    whole = emulate_float16(source, {"input": picture(1)})
    monkeypatch.setattr(observing, "BUDGET_BYTES", 1)
    parts = emulate_float16(source, {"input": picture(1)})
    assert parts.tensors == whole.tensors
    assert all(np.array_equal(array, whole.outputs[name]) for name, array in parts.outputs.items())
    assert [entry["name"] for entry in json.loads(parts.to_json())["tensors"]] == [e.name for e in whole.tensors]


def test_emulation_tells_the_largest_finite_value_beside_infinite_ones(here):
    here.save(
        [NODE("Div", ["x", "w"], ["a"]), NODE("Tanh", ["a"], ["y"])], (1, 3), (1, 3), {"w": np.float32([0, 1, 2])}
    )
    first = emulate_float16(here.source, {"x": np.float32([[1, 3, 4]])}).first_bad
    assert (first.name, first.largest, first.inf, first.nan, first.size) == ("a", 3.0, 1, 0, 3)


def test_emulation_rounds_inside_branches(here):
    value = [helper.make_tensor_value_info(name, F32, [2]) for name in "pq"]
    branches = {
        "then_branch": helper.make_graph([NODE("Mul", ["x", "w"], ["p"])], "then", [], value[:1]),
        "else_branch": helper.make_graph([NODE("Sub", ["x", "w"], ["q"])], "else", [], value[1:]),
    }
    nodes = [
        NODE("ReduceMax", ["x"], ["s"], keepdims=0),
        NODE("Greater", ["s", "zero"], ["c"]),
        NODE("If", ["c"], ["y"], **branches),
    ]
    here.convert(nodes, (2,), (2,), {"w": np.float32([1 / 3]), "zero": np.float32(0)}, to=to_bf16)
    x = np.float32([0.7, 1.9])
    rounded = [array.astype(ml_dtypes.bfloat16).astype(np.float32) for array in (x, np.float32([1 / 3]))]
    expected = (rounded[0] * rounded[1]).astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(emulate_float16(here.out, {"x": x}).outputs["y"], expected)


def test_half_of_the_layers_are_not_most_of_them():
    assert not KernelTypes({"int8": 2, "float32": 2}).is_mostly("int8")
    assert KernelTypes({"int8": 3, "float32": 2}).is_mostly("int8")


def test_emulation_refuses_a_feed_of_another_number_of_inputs(tmp_path):
    source = save_picture_network(tmp_path / "in.onnx")
    with pytest.raises((InputError, FeedError), match="got 2 inputs"):
        emulate_float16(source, {"a": picture(1), "b": picture(1)})


# random networks


UNARY = ("Relu", "Neg", "Sigmoid", "Tanh", "Softplus", "Abs", "Identity")


STEPS = st.tuples(st.sampled_from((*UNARY, "Add", "Mul", "MatMul", "Concat")), st.integers(0, 5))


@settings(max_examples=25)
@given(st.lists(STEPS, min_size=1, max_size=8), st.sets(st.integers(0, 8)))
def test_any_chain_with_any_nodes_kept_is_valid_and_right(tmp_path_factory, chain, keep):
    folder = tmp_path_factory.mktemp("chain")
    nodes, last, before = [], "x", ["x"]
    for place, (operator, back) in enumerate(chain):
        other = before[back % len(before)]
        name = "y" if place == len(chain) - 1 else f"t{place}"
        if operator == "Concat":
            nodes += [
                NODE("Concat", [last, other], [f"c{place}"], axis=0),
                NODE("Slice", [f"c{place}", "0", "2"], [name]),
            ]
        elif operator == "MatMul":
            nodes.append(NODE("MatMul", [last, "w"], [name]))
        else:
            nodes.append(NODE(operator, [last, other] if operator in ("Add", "Mul") else [last], [name]))
        last = name
        before.append(name)
    weights = {"w": np.eye(3, dtype=np.float32)[::-1] / 2, "0": np.array([0], np.int64), "2": np.array([2], np.int64)}
    inputs = {"x": ("float32", (2, 3))}
    source = save_network(folder / "in.onnx", nodes, inputs, {"y": ("float32", (2, 3))}, weights)
    names = [node.output[0] for place, node in enumerate(nodes) if place in keep]
    if len(names) == len(nodes):
        with pytest.raises(InputError, match="no node that can be converted"):
            to_fp16(source, folder / "out.onnx", keep=names)
        return
    report = to_fp16(source, folder / "out.onnx", keep=names)
    model = onnx.load(folder / "out.onnx")
    onnx.checker.check_model(model, full_check=True)
    types = kinds(model)
    assert all(types[name] == F32 for name in (*names, "x", "y"))
    assert all(types[name] == F16 for node in nodes for name in node.output if name not in (*names, "y"))
    assert report.converted + len(report.kept) == len(nodes)
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    exact, other = run(source, {"x": x}), run(folder / "out.onnx", {"x": x})
    # 8 nodes, each at most doubling the relative error of half a unit in the 11th digit that its reads have
    assert np.abs(exact - other).max() <= 2.0**-11 * 2**9 * max(1, np.abs(exact).max())


# the real builder


@pytest.mark.parametrize(("convert", "precision"), [(to_fp16, "fp16"), (to_bf16, "bf16")])
def test_tensorrt_gives_every_layer_the_type_that_was_asked_for(tmp_path, builder, convert, precision):
    weights = {"w": numbers(4, 3, 3, 3), "t": numbers(4, 2, 2, 2), "s": np.array([1, 1, 2, 2], np.float32)}
    nodes = [
        NODE("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        NODE("Relu", ["c"], ["r"], name="relu"),
        NODE("MaxPool", ["r"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        NODE("Resize", ["p", "", "s"], ["u"], name="resize"),
        NODE("ConvTranspose", ["u", "t"], ["d"], name="deconv", strides=[2, 2]),
        NODE("Softmax", ["d"], ["y"], name="softmax", axis=1),
    ]
    ends = {"x": ("float32", (1, 3, 8, 8))}, {"y": ("float32", (1, 2, 16, 16))}
    source = save_network(tmp_path / "in.onnx", nodes, *ends, weights)
    report = convert(source, tmp_path / "out.onnx")
    # read_types and its check are the engine's own; it raises where a layer outside `keep` has another type
    kept = [name for name, *_ in report.kept]
    plan = build_engine(tmp_path / "out.onnx", precision=precision, keep=kept, cache=False, progress=False)
    asked = {"fp16": "float16", "bf16": "bfloat16"}[precision]
    assert kept == ([] if precision == "fp16" else ["deconv"])
    for kind, counts in plan.manifest.types.items():
        assert counts == {"float32" if precision == "bf16" and kind == "DECONVOLUTION" else asked: sum(counts.values())}


@pytest.mark.parametrize("operator", sorted(half_graph.BFLOAT16.refused))
def test_what_is_kept_out_of_bfloat16_is_refused_by_tensorrt(here, builder, monkeypatch, operator):
    nodes, weights, x, y = refusable(operator)
    source = here.save(nodes, x, y, weights, opset=18)  # the first with Mish
    build_engine(source, cache=False, progress=False)
    report, _ = here.convert(to=to_bf16)
    assert reasons(report) == {operator: f"TensorRT has no bfloat16 {operator}"}
    forced = half_graph.Half("bf16", "bfloat16", BF16, np.dtype(ml_dtypes.bfloat16), half_graph.BFLOAT16.largest)
    monkeypatch.setattr(half, "BFLOAT16", forced)
    here.convert(to=to_bf16)
    with pytest.raises(EngineBuildError):
        build_engine(here.out, precision="bf16", cache=False, progress=False)


def refusable(operator):
    """A network with this operator behind one that every TensorRT has in bfloat16."""
    first = NODE("Relu", ["x"], ["r"])
    if operator == "ConvTranspose":
        return [first, NODE(operator, ["r", "w"], ["y"])], {"w": numbers(2, 2, 2, 2)}, (1, 2, 4, 4), (1, 2, 5, 5)
    if operator == "GRU":
        weights = {"w": numbers(1, 15, 4), "r0": numbers(1, 15, 5)}
        return [first, NODE(operator, ["r", "w", "r0"], ["y"], hidden_size=5)], weights, (3, 1, 4), (3, 1, 1, 5)
    options = {"axis": 1} if operator == "LpNormalization" else {}
    nodes = [first, NODE(operator, ["r"], ["y"], **options)]
    return nodes, {}, (1, 2, 4, 4), (1, 2, 4, 4)


# what ONNX's definitions do not tell


def test_indices_that_a_constant_node_lists_stay_integers(here):
    nodes = [NODE("Constant", [], ["i"], value_ints=[1, 0]), NODE("Gather", ["x", "i"], ["y"])]
    _, model = here.convert(nodes, (2,), (2,))
    assert operators(model) == ["Cast", "Gather", "Cast"]
    assert here.answers({"x": np.array([1, 2], np.float32)})[1].tolist() == [2, 1]


def test_a_node_that_makes_its_type_of_what_it_reads_stays(here):
    report, _ = here.convert([NODE("Bernoulli", ["x"], ["b"]), NODE("Neg", ["b"], ["y"])], (2,), (2,), opset=18)
    assert report.kept[0][1:] == ("Bernoulli", "the type of what it writes depends on more than what it reads")
    assert report.converted == 1


def test_a_result_of_inconsistent_types_is_never_written(here, monkeypatch):
    here.save([NODE("Bernoulli", ["x"], ["y"])], (2,), (2,), opset=18)
    monkeypatch.setattr(half_graph, "_OWN_TYPES", frozenset())
    with pytest.raises(ExportError, match=r"became a network of inconsistent types \(.*Bernoulli"):
        to_fp16(here.source, here.out)
    assert not here.out.exists()


def test_emulation_names_the_node_that_onnx_runtime_cannot_run(here):
    nodes = [NODE("Relu", ["x"], ["r"]), NODE("Mine", ["r"], ["y"], name="own", domain="my.own")]
    here.save(nodes, (2,), (2,), domains=[helper.make_opsetid("my.own", 1)])
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot run own \(Mine\): "):
        emulate_float16(here.source, {"x": numbers(2)})
