"""A layer's nodes folded into one custom node with a function of the same name: any reader gives the same answers."""

import custom_networks
import numpy as np
import onnx
import pytest
from conversions import run_onnx
from custom_layers import hard_mish
from fault_cases import is_sentence
from onnx import TensorProto, helper, numpy_helper

from workbench.core.errors import InputError, ModelError, OutputError
from workbench.onnx_graph import edit
from workbench.onnx_graph.cost import inspect
from workbench.onnx_graph.custom import mark_custom_layer
from workbench.onnx_graph.mend import fix
from workbench.onnx_graph.operators import register_operator

HALF = np.float32(0.5)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return custom_networks.save_plain(tmp_path_factory.mktemp("custom"))


@pytest.fixture(scope="module")
def marked(plain):
    return custom_networks.mark_all(plain, plain.parent)


def save(path, nodes, *, weights=(), inputs=("x",), outputs=("y",), opset=17, channels=3):
    def ends(names):
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", channels]) for name in names]

    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights]
    graph = helper.make_graph(nodes, "g", ends(inputs), ends(outputs), tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def node(operator, reads, writes, name="", **attributes):
    return helper.make_node(operator, reads.split(), writes.split(), name=name, **attributes)


# one file for every reader


def test_whole_layers_become_one_node_each_with_the_same_answers(plain, marked):
    model = onnx.load(marked)
    operators = [item.op_type for item in model.graph.node if item.domain]
    assert operators == ["HardMish", "Warp", "HardMish"]
    assert not {item.name for item in model.graph.node} & {"net_1/mish_1/mul"}
    assert len(onnx.load(plain).graph.node) > 150 > 20 > len(model.graph.node)
    # the same nodes in the same order, so the same numbers
    np.testing.assert_array_equal(*(run_onnx(path, custom_networks.pictures()) for path in (plain, marked)))


def test_layers_of_one_kind_share_a_function_in_either_layout(marked):
    model = onnx.load(marked)
    assert sorted(item.name for item in model.functions) == ["HardMish", "Warp"]
    known = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    gains = [known[item.input[1]] for item in model.graph.node if item.op_type == "HardMish"]
    assert gains == [[1, 4, 1, 1], [4]]  # N C H W among convolutions, N H W C after the warp


def test_the_node_reads_tensors_that_change_then_weights_and_keeps_the_layer_s_scope(marked):
    nodes = {item.name: item for item in onnx.load(marked).graph.node}
    mish, warp = nodes["net_1/mish_1/HardMish"], nodes["net_1/warp_1/Warp"]
    assert mish.input[0].endswith("stem_1/convolution:0") and "ReadVariableOp" in mish.input[1]
    assert len(warp.input) == 2 and len(warp.output) == 1


def test_the_checker_and_shape_inference_see_through_the_function(marked):
    onnx.checker.check_model(str(marked), full_check=True)
    inferred = onnx.shape_inference.infer_shapes(onnx.load(marked), strict_mode=True, check_type=True)
    assert {value.name: value for value in inferred.graph.value_info}["net_1/mish_1/mul_2:0"]


def test_the_function_computes_in_the_type_of_what_it_reads(marked):
    model = onnx.load(marked)
    function = next(item for item in model.functions if item.name == "HardMish")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N", 4])
    gain = numpy_helper.from_array(np.linspace(0.5, 1.5, 4, dtype=np.float16), "gain")
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["N", 4])
    call = helper.make_node("HardMish", ["x", "gain"], ["y"], domain=edit.CUSTOM)
    graph = helper.make_graph([call], "g", [x], [y], [gain])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(edit.CUSTOM, 1)]
    half = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[function])
    array = np.linspace(-3, 3, 8).reshape(2, 4).astype(np.float16)
    wanted = hard_mish(array, np.linspace(0.5, 1.5, 4, dtype=np.float16))
    answer = run_onnx(half, array)
    # the function has constants of one size on each axis, so the answer has four axes; three roundings of 2**-11
    np.testing.assert_allclose(answer.reshape(2, 4), wanted, rtol=3 * 2**-11)


def test_inspect_names_each_custom_node_and_its_function(plain, marked):
    found = inspect(marked)
    assert [(item.operator, item.has_function) for item in found.custom] == [
        ("HardMish", True), ("Warp", True), ("HardMish", True),
    ]  # fmt: skip
    assert "mish_1/HardMish (workbench.custom.HardMish): a function of the file" in found.to_text()
    assert inspect(plain).custom == ()
    assert found.flops == inspect(plain).flops


def test_inspect_says_what_a_node_without_a_function_needs(marked, tmp_path):
    model = onnx.load(marked)
    del model.functions[:]
    onnx.save(model, tmp_path / "bare.onnx")
    assert "register_operator, TensorRT a plugin" in inspect(tmp_path / "bare.onnx").to_text()


def test_fix_leaves_custom_nodes_whole(marked, tmp_path):
    fix(marked, tmp_path / "fixed.onnx", progress=False)
    operators = [item.op_type for item in onnx.load(tmp_path / "fixed.onnx").graph.node if item.domain]
    assert operators == ["HardMish", "Warp", "HardMish"]


def test_the_report_says_what_was_folded(plain, tmp_path):
    report = mark_custom_layer(plain, tmp_path / "m.onnx", layer="mish", name="HardMish")
    assert report.node == "net_1/mish_1/HardMish" and report.operator == "HardMish"
    assert report.verdict == (
        "m.onnx: 6 nodes became one HardMish (net_1/mish_1/HardMish), proved with ONNX Runtime to give the "
        "same answers to the last bit."
    )
    assert len(report.inputs) == 2 and report.inputs[1] in report.to_text()


def test_a_registered_operator_does_not_take_part_in_the_proof(plain, tmp_path):
    with register_operator("HardMish", lambda x, gain: x):
        mark_custom_layer(plain, tmp_path / "m.onnx", layer="mish", name="HardMish")


# what is folded


def test_what_the_optimiser_put_between_the_layer_s_nodes_goes_with_them(tmp_path):
    nodes = [node("Abs", "x", "a", "net/own/abs"), node("Neg", "a", "b", "Neg__7"), node("Exp", "b", "y", "net/own/e")]
    path = save(tmp_path / "n.onnx", nodes)
    assert mark_custom_layer(path, tmp_path / "m.onnx", layer="own", name="Own").folded == 3


def test_nodes_that_follow_an_early_output_stay_after_the_custom_node(tmp_path):
    nodes = [
        node("Abs", "x", "a", "net/own/abs"), node("Neg", "a", "b", "net/other/neg"),
        node("Exp", "x", "c", "net/own/e"), node("Add", "b c", "y", "net/other/add"),
    ]  # fmt: skip
    path = save(tmp_path / "n.onnx", nodes)
    report = mark_custom_layer(path, tmp_path / "m.onnx", layer="own", name="Own")
    assert report.outputs == ("a", "c") and "writes several tensors" in report.to_text()
    x = np.array([[1, -2, 3]], np.float32)
    np.testing.assert_array_equal(run_onnx(tmp_path / "m.onnx", x), run_onnx(path, x))


def test_the_caller_may_choose_the_inputs_and_their_order(tmp_path):
    nodes = [node("Sub", "x w", "a", "net/own/sub"), node("Div", "a v", "y", "net/own/div")]
    path = save(tmp_path / "n.onnx", nodes, weights=[("w", HALF * np.ones(3, "f")), ("v", np.ones(3, "f") * 3)])
    both = mark_custom_layer(path, tmp_path / "m.onnx", layer="own", name="Own")
    assert both.inputs == ("x", "w", "v")
    chosen = mark_custom_layer(path, tmp_path / "m.onnx", layer="own", name="Own", inputs=["v", "x"])
    assert chosen.inputs == ("v", "x")
    assert [item.name for item in onnx.load(tmp_path / "m.onnx").graph.initializer] == ["v"]


def test_an_input_may_be_named_by_the_layer_that_makes_it(tmp_path):
    nodes = [
        node("Neg", "x", "net/first_1/neg:0", "net/first_1/neg"),
        node("Abs", "x", "net/second_1/abs:0", "net/second_1/abs"),
        node("Sub", "net/first_1/neg:0 net/second_1/abs:0", "y", "net/own_1/sub"),
    ]
    path = save(tmp_path / "n.onnx", nodes)
    turned = mark_custom_layer(path, tmp_path / "m.onnx", layer="own", name="Own", inputs=["second", "net/first_1"])
    assert turned.inputs == ("net/second_1/abs:0", "net/first_1/neg:0")
    refused(path, tmp_path, "expected in your order", layer="own", inputs=["second", "net"])  # whose tensors are two


def test_a_layer_around_a_marked_one_can_be_marked(tmp_path):
    nodes = [node("Abs", "x", "a", "net/outer/own/abs"), node("Exp", "a", "y", "net/outer/exp")]
    path = save(tmp_path / "n.onnx", nodes)
    mark_custom_layer(path, tmp_path / "inner.onnx", layer="own", name="Own")
    mark_custom_layer(tmp_path / "inner.onnx", tmp_path / "outer.onnx", layer="outer", name="Outer")
    assert [item.op_type for item in onnx.load(tmp_path / "outer.onnx").graph.node] == ["Outer"]
    x = np.array([[1, -2, 3]], np.float32)
    np.testing.assert_array_equal(run_onnx(tmp_path / "outer.onnx", x), run_onnx(path, x))


def test_a_network_of_an_opset_without_castlike_is_marked_too(tmp_path):
    nodes = [node("Mul", "x w", "y", "net/own/mul")]
    path = save(tmp_path / "n.onnx", nodes, weights=[("w", HALF)], opset=13)
    mark_custom_layer(path, tmp_path / "m.onnx", layer="own", name="Own")
    assert [item.op_type for item in onnx.load(tmp_path / "m.onnx").functions[0].node] == ["Constant", "Mul"]


def test_a_number_is_rounded_only_where_it_is_a_float(tmp_path):
    nodes = [node("Cast", "x", "i", "net/own/c", to=TensorProto.INT64), node("Add", "i one", "j", "net/own/a"),
             node("Cast", "j", "y", "net/own/d", to=TensorProto.FLOAT)]  # fmt: skip
    path = save(tmp_path / "n.onnx", nodes, weights=[("one", np.int64(1))])
    mark_custom_layer(path, tmp_path / "m.onnx", layer="own", name="Own")
    body = [item.op_type for item in onnx.load(tmp_path / "m.onnx").functions[0].node]
    assert body == ["Constant", "Cast", "Add", "CastLike"]


# bad input


def refused(plain, tmp_path, *words, error=InputError, **options):
    out = tmp_path / "refused.onnx"
    settings = {"layer": "mish", "name": "HardMish"} | options
    with pytest.raises(error) as caught:
        mark_custom_layer(plain, out, **settings)
    is_sentence(str(caught.value))
    assert not out.exists()
    for word in words:
        assert word in str(caught.value)


def test_a_layer_that_is_not_there_is_refused_with_those_that_are(plain, tmp_path):
    refused(plain, tmp_path, "'mishmash'", "expected one of", "net_1/mish_1", layer="mishmash")


def test_a_network_without_names_is_refused(tmp_path):
    path = save(tmp_path / "n.onnx", [node("Abs", "x", "y")])
    refused(path, tmp_path, "the nodes have no names")


def test_two_layers_of_one_name_are_refused_with_their_scopes(tmp_path):
    path = save(tmp_path / "n.onnx", [node("Abs", "x", "a", "one/own_1/abs"), node("Exp", "a", "y", "two/own_1/exp")])
    refused(path, tmp_path, "2 layers have", "one/own_1, two/own_1", "whole scope", layer="own")
    assert mark_custom_layer(path, tmp_path / "m.onnx", layer="two/own_1", name="Own").folded == 1


def test_an_inner_tensor_that_is_read_outside_is_refused(tmp_path):
    nodes = [node("Abs", "x", "a", "net/own/abs"), node("Exp", "a", "b", "net/own/exp"), node("Add", "a b", "y", "add")]
    refused(save(tmp_path / "n.onnx", nodes), tmp_path, "a inside it is also read outside", layer="own")


def test_an_inner_tensor_that_is_an_output_of_the_network_is_refused(tmp_path):
    nodes = [node("Abs", "x", "a", "net/own/abs"), node("Exp", "a", "y", "net/own/exp")]
    path = save(tmp_path / "n.onnx", nodes, outputs=("a", "y"))
    refused(path, tmp_path, "a inside it is also read outside", layer="own")


def test_another_layer_between_its_nodes_is_refused(tmp_path):
    nodes = [node("Abs", "x", "a", "net/own/abs"), node("Neg", "a", "b", "net/other/neg"),
             node("Exp", "b", "y", "net/own/exp")]  # fmt: skip
    refused(save(tmp_path / "n.onnx", nodes), tmp_path, "net/other/neg lies between", layer="own")


def test_a_layer_that_nobody_reads_is_refused(tmp_path):
    nodes = [node("Abs", "x", "a", "net/own/abs"), node("Exp", "x", "y", "net/other/exp")]
    refused(save(tmp_path / "n.onnx", nodes), tmp_path, "nobody reads", layer="own")


def test_a_layer_with_a_branch_inside_is_refused(tmp_path):
    def branch(operator):
        out = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
        return helper.make_graph([node(operator, "x", "b")], "branch", [], [out])

    nodes = [node("If", "yes", "y", "net/own/if", then_branch=branch("Abs"), else_branch=branch("Neg"))]
    path = save(tmp_path / "n.onnx", nodes, weights=[("yes", np.array(True))])
    refused(path, tmp_path, "is a If", layer="own")


@pytest.mark.parametrize("name", ["Conv", "", "Hard Mish", "1st", "a/b", "a-b"])
def test_a_name_that_is_none_is_refused(plain, tmp_path, name):
    refused(plain, tmp_path, "no operator of ONNX's own", name=name)


def test_a_name_that_stands_for_something_else_is_refused(marked, plain, tmp_path):
    one = tmp_path / "one.onnx"
    mark_custom_layer(plain, one, layer="mish", name="Thing")
    refused(one, tmp_path, "is another than warp", "give another name", layer="warp", name="Thing")


@pytest.mark.parametrize("inputs", [["w"], ["x", "w", "w"], ["x", "nothing"], []])
def test_inputs_that_are_not_the_layer_s_are_refused(tmp_path, inputs):
    nodes = [node("Sub", "x w", "y", "net/own/sub")]
    path = save(tmp_path / "n.onnx", nodes, weights=[("w", np.ones(3, "f"))])
    refused(path, tmp_path, "expected in your order: x, and constants of w", layer="own", inputs=inputs)


def test_a_file_that_is_no_network_and_one_that_would_be_overwritten_are_refused(plain, tmp_path):
    text = tmp_path / "text.onnx"
    text.write_text("not a network")
    refused(text, tmp_path, error=ModelError)
    before = plain.read_bytes()
    with pytest.raises(OutputError):
        mark_custom_layer(plain, plain, layer="mish", name="HardMish")
    assert plain.read_bytes() == before
