"""A custom node takes the half float where its function does, and stays whole in every precision."""

import custom_networks
import numpy as np
import onnx
import pytest
from conversions import relative_error, run_onnx
from onnx import TensorProto, helper, numpy_helper

from workbench.core.errors import InputError
from workbench.onnx_graph import edit
from workbench.precision.calibration import calibrate
from workbench.precision.half import to_bf16, to_fp16
from workbench.precision.quantize import quantize_int8


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("custom")
    return custom_networks.mark_all(custom_networks.save_plain(folder), folder)


def custom_operators(path):
    return [node.op_type for node in onnx.load(path).graph.node if node.domain]


def kinds(path):
    """The types of what each custom node writes."""
    model = onnx.load(path)
    values = edit.inferred_values(model)
    return [values[node.output[0]].elem_type for node in model.graph.node if node.domain]


@pytest.mark.parametrize(("convert", "kind"), [(to_fp16, TensorProto.FLOAT16), (to_bf16, TensorProto.BFLOAT16)])
def test_the_nodes_stay_whole_and_take_the_half_float(marked, tmp_path, convert, kind):
    report = convert(marked, tmp_path / "half.onnx")
    assert report.kept == ()
    assert custom_operators(tmp_path / "half.onnx") == ["HardMish", "Warp", "HardMish"]
    assert kinds(tmp_path / "half.onnx") == [kind] * 3
    onnx.checker.check_model(str(tmp_path / "half.onnx"), full_check=True)


def test_the_answers_in_float16_are_those_of_float32_to_its_rounding(marked, tmp_path):
    to_fp16(marked, tmp_path / "half.onnx", keep=["Warp"])  # whose coordinates want more than 11 bits
    arrays = [run_onnx(path, custom_networks.pictures()) for path in (tmp_path / "half.onnx", marked)]
    # a dozen roundings of 2**-11 in a row, each of what is at most the range
    assert 0 < relative_error(*arrays) < 12 * 2**-11


def test_a_node_that_is_kept_reads_and_writes_float32(marked, tmp_path):
    report = to_fp16(marked, tmp_path / "half.onnx", keep=["net_1/warp_1/Warp"])
    assert [entry[1:] for entry in report.kept] == [("Warp", "you keep it")]
    assert kinds(tmp_path / "half.onnx") == [TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.FLOAT16]


def custom_node(path, body, *, functions=True, domain=edit.CUSTOM, ends=(TensorProto.FLOAT,) * 2):
    """A network of an Abs and one custom node with this function."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    nodes = [
        helper.make_node("Abs", ["x"], ["a"], name="abs"),
        helper.make_node("Own", ["a"], ["y"], "own", domain=domain),
    ]
    x, y = (helper.make_tensor_value_info(name, kind, ["N", 3]) for name, kind in zip("xy", ends, strict=True))
    function = helper.make_function(domain, "Own", ["a"], ["y"], body, opsets)
    graph = helper.make_graph(nodes, "g", [x], [y])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[function] if functions else [])
    onnx.save(model, path)
    return path


def constant(value):
    return helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float32(value)))


FIXED = [constant(2), helper.make_node("Mul", ["a", "c"], ["y"])]


def like(value):
    return [
        helper.make_node("Constant", [], ["n"], value=numpy_helper.from_array(np.float32(value))),
        helper.make_node("CastLike", ["n", "a"], ["c"]),
        helper.make_node("Mul", ["a", "c"], ["y"]),
    ]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (FIXED, "its function takes no float16"),  # a float32 constant meets float16
        (like(1e6), "its function takes no float16"),  # a constant that float16 cannot hold
    ],
)
def test_a_function_for_float32_alone_keeps_its_node_there(tmp_path, body, reason):
    report = to_fp16(custom_node(tmp_path / "own.onnx", body), tmp_path / "half.onnx")
    assert report.kept == (("own", "Own", reason),)
    x = np.array([[1, -2, 3]], np.float32)
    np.testing.assert_array_equal(*(run_onnx(tmp_path / name, x) for name in ("half.onnx", "own.onnx")))


def test_a_node_without_a_function_stays_float32(tmp_path):
    report = to_fp16(custom_node(tmp_path / "own.onnx", FIXED, functions=False), tmp_path / "half.onnx")
    assert report.kept == (("own", "Own", "it is no operator of ONNX, so its types are not known"),)


def test_a_function_that_inference_does_not_get_through_keeps_its_node(tmp_path):
    inner = helper.make_node("Unknown", ["a"], ["y"], domain=edit.CUSTOM)
    report = to_fp16(custom_node(tmp_path / "own.onnx", [inner]), tmp_path / "half.onnx")
    assert [entry[:2] for entry in report.kept] == [("own", "Own")]


def test_functions_of_other_domains_are_inlined_as_before(tmp_path):
    path = custom_node(tmp_path / "own.onnx", FIXED, domain="pkg.of.an.exporter")
    assert to_fp16(path, tmp_path / "half.onnx").kept == ()
    assert {node.op_type for node in onnx.load(tmp_path / "half.onnx").graph.node} == {"Cast", "Abs", "Mul"}


def test_a_custom_node_alone_can_be_converted(tmp_path):
    source = custom_node(tmp_path / "own.onnx", like(2))
    report = to_fp16(source, tmp_path / "half.onnx", keep=["abs"])
    assert report.converted == 1 and kinds(tmp_path / "half.onnx") == [TensorProto.FLOAT16]
    with pytest.raises(InputError, match="no node that can be converted"):
        to_fp16(source, tmp_path / "none.onnx", keep=["abs", "Own"])


def test_eight_bits_leave_custom_nodes_in_float32(marked, tmp_path):
    name = onnx.load(marked).graph.input[0].name
    feeds = [(str(seed), {name: custom_networks.pictures(seed, 1)}) for seed in range(4)]
    found = calibrate(marked, feeds=feeds, progress=False)
    quantize_int8(marked, tmp_path / "int8.onnx", calibration=found)
    assert custom_operators(tmp_path / "int8.onnx") == ["HardMish", "Warp", "HardMish"]
    assert kinds(tmp_path / "int8.onnx") == [TensorProto.FLOAT] * 3
    arrays = [run_onnx(path, custom_networks.pictures()) for path in (tmp_path / "int8.onnx", marked)]
    assert relative_error(*arrays) < 0.1  # 8 bits in each of three convolutions, random weights
