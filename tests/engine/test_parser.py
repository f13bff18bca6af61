"""What TensorRT's real parser refuses, node by node; the rules for machines without it must not say anything else."""

import json
import os
import re
import time

import numpy as np
import onnx
import pytest
from engine_checks import use_child
from onnx import TensorProto, helper, numpy_helper

from workbench.core.errors import BackendUnavailableError, InputError, ModelError
from workbench.engine import parser as parser_check
from workbench.engine import tensorrt_api
from workbench.engine.parser import ask_parser
from workbench.onnx_graph.mend import fix

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
PICTURE = ("x", FLOAT, [1, 3, 8, 8])
NO_FLAVOUR = """
import runpy, sys
sys.modules.update(dict.fromkeys(("tensorrt", "tensorrt_rtx", "tensorrt_lean", "tensorrt_lean_bindings")))
runpy.run_module("workbench.engine.child", run_name="__main__")
"""
NOT_ASKED = "no TensorRT is here; pip install -e '.[rtx]'"


@pytest.fixture
def parser_is_here():
    """The real parser; CI names it as one it must test, so there its absence is an error."""
    if not tensorrt_api.available_flavours()[0] and "CI" not in os.environ:
        pytest.skip("no TensorRT that can parse is installed; a must in CI only")


@pytest.fixture
def no_parser(monkeypatch):
    def missing(*_, **__):
        raise BackendUnavailableError(NOT_ASKED)

    monkeypatch.setattr(parser_check, "run_child", missing)


def node(operator, inputs, outputs, name="", **attributes):
    return helper.make_node(operator, inputs.split(), outputs.split(), name, **attributes)


def network(nodes, inputs=(PICTURE,), outputs=(("y", FLOAT, [None]),), weights=None, opset=17, **options):
    ends = [[helper.make_tensor_value_info(*value) for value in group] for group in (inputs, outputs)]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "net", *ends, tensors)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in options.pop("domains", ()))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **options)


def resize(opset=17, **attributes):
    scales = {"scales": np.array([1, 1, 2, 2], np.float32)}
    made = helper.make_node("Resize", ["x", "", "scales"], ["y"], "up", **attributes)
    return network([made], outputs=[("y", FLOAT, [1, 3, 16, 16])], weights=scales, opset=opset)


def batch_norm(**attributes):
    weights = {name: np.ones(3, np.float32) for name in "sbmv"}
    return network([node("BatchNormalization", "x s b m v", "y rm rv", "norm", **attributes)], weights=weights)


def typed(kind, *nodes, y=FLOAT, shape=(1, 3), **options):
    made = [("x", kind, list(shape))], [("y", y, [None] * len(shape))]
    return network(list(nodes) or [node("Identity", "x", "y")], *made, **options)


# Name of the refused part, its operator, words of the parser, words of the help; each seen with TensorRT-RTX 1.7.1.
TF2ONNX_RESIZE = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "tf_half_pixel_for_nn"}
REFUSED = {
    "resize of tf2onnx": (
        resize(**TF2ONNX_RESIZE),
        "up",
        "Resize",
        "only support round_prefer_floor",
        "workbench convert",
    ),
    "antialiased resize": (resize(18, mode="linear", antialias=1), "up", "Resize", "Antialiasing is not", "without it"),
    "text": (typed(TensorProto.STRING, y=TensorProto.STRING), "x (string), y (string)", "", "data type", "no text"),
    "int16": (typed(TensorProto.INT16, node("Cast", "x", "y", to=FLOAT)), "x (int16)", "", "data type", "convert them"),
    "nine axes": (typed(FLOAT, node("Relu", "x", "y"), shape=[1] * 9), "of 9 axes", "", "dimensions", "8 axes at most"),
    "unknown domain": (
        network([node("Swirl", "x", "y", "mine", domain="my.own")], domains=["my.own"]),
        "mine",
        "Swirl",
        "Plugin not found",
        "as a plugin",
    ),
    "NonZero": (
        network([node("NonZero", "x", "y")], outputs=[("y", INT64, [4, None])]),
        "y",
        "NonZero",
        "",
        "Where or TopK",
    ),
    "no implementation": (network([node("Det", "x", "y", "d")]), "d", "Det", "no reason given", "replace the layer"),
    "indices of a pool": (
        network(
            [node("MaxPool", "x", "y i", "pool", kernel_shape=[2, 2])],
            outputs=[("y", FLOAT, [None]), ("i", INT64, [None])],
        ),
        "pool",
        "MaxPool",
        "outputs for MaxPool",
        "without them",
    ),
    "dilated pool": (
        network([node("MaxPool", "x", "y", "pool", kernel_shape=[2, 2], dilations=[2, 2])]),
        "pool",
        "MaxPool",
        "dilations other than 1",
        "without dilation",
    ),
    "batch norm in training": (
        batch_norm(training_mode=1),
        "norm",
        "BatchNormalization",
        "training_mode",
        r"model.eval\(\)",
    ),
    "dropout in training": (
        network(
            [node("Dropout", "x ratio training", "y", "drop")],
            weights={"ratio": np.float32(0.5), "training": np.bool_(True)},
        ),
        "drop",
        "Dropout",
        "training mode",
        r"model.eval\(\)",
    ),
    "list of tensors": (
        network(
            [node("SequenceConstruct", "x x", "s", "pack"), node("ConcatFromSequence", "s", "y", "unpack", axis=0)]
        ),
        "pack",
        "SequenceConstruct",
        "no reason given",
        "Split and Concat",
    ),
    "integer convolution": (
        network(
            [node("ConvInteger", "x w", "y", "conv8")],
            [("x", TensorProto.UINT8, [1, 3, 8, 8])],
            [("y", TensorProto.INT32, [None])],
            {"w": np.ones((2, 3, 3, 3), np.uint8)},
        ),
        "conv8",
        "ConvInteger",
        "no reason given",
        "QuantizeLinear",
    ),
}
# Refused when the parser reaches them: rules without the parser's look at the types do not find these.
STOPPED = {
    "uint8 transposed": (
        typed(TensorProto.UINT8, node("Transpose", "x", "t", "turn", perm=[1, 0]), node("Cast", "t", "y", to=FLOAT)),
        "turn",
        "Transpose",
        "has type UInt8",
        "Cast to float before the Transpose",
    ),
    "asymmetric quantization": (
        network(
            [node("QuantizeLinear", "x s z", "q", "quantize"), node("DequantizeLinear", "q s z", "y")],
            weights={"s": np.float32(0.1), "z": np.uint8(128)},
        ),
        "quantize",
        "QuantizeLinear",
        "Non-zero zero point",
        "symmetrically",
    ),
}
TAKEN = {
    "layers": network([node("Relu", "x", "a"), node("GlobalAveragePool", "a", "y")]),
    "lstm": network(
        [node("LSTM", "x w r", "y", hidden_size=4)],
        [("x", FLOAT, [5, 1, 3])],
        weights={"w": np.ones((1, 16, 3), np.float32), "r": np.ones((1, 16, 4), np.float32)},
    ),
    "resize by half_pixel": resize(
        mode="nearest", nearest_mode="round_prefer_ceil", coordinate_transformation_mode="half_pixel"
    ),
    "int64": typed(INT64, node("Add", "x x", "y"), y=INT64),
    "gelu of ONNX Runtime": network([node("Gelu", "x", "y", domain="com.microsoft")], domains=["com.microsoft"]),
    "grid sample": network([node("GridSample", "x g", "y")], [PICTURE, ("g", FLOAT, [1, 4, 4, 2])]),
    "a function": network(
        [node("Twice", "x", "y", domain="local")],
        domains=["local"],
        functions=[
            helper.make_function(
                "local", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 17)]
            )
        ],
    ),
}


@pytest.fixture
def ask(tmp_path):
    def run(model, **options):
        onnx.save(model, tmp_path / "net.onnx")
        return ask_parser(tmp_path / "net.onnx", progress=False, **options)

    return run


@pytest.mark.parametrize("case", [*REFUSED, *STOPPED])
@pytest.mark.usefixtures("parser_is_here")
def test_the_parser_s_refusal_names_node_reason_and_help(ask, case):
    model, name, operator, words, help_words = (REFUSED | STOPPED)[case]
    answer = ask(model)
    assert answer.accepted is False
    refused = answer.refused[0]
    assert name in refused.name
    assert refused.operator == operator
    assert words in refused.reason
    assert refused.code
    assert re.search(help_words, refused.help)
    assert "/_src/" not in answer.to_text()
    assert "cudaError" not in answer.to_text()
    assert f"TensorRT-RTX {answer.flavour.split()[-1]} refuses" in answer.verdict


@pytest.mark.parametrize("case", TAKEN)
@pytest.mark.usefixtures("parser_is_here")
def test_what_the_parser_takes_is_said_too(ask, case):
    answer = ask(TAKEN[case])
    assert (answer.accepted, answer.refused, answer.problem) == (True, (), "")
    assert sum(answer.operators.values()) == len(TAKEN[case].graph.node)
    assert sum(answer.layers.values()) > 0
    assert "takes all" in answer.verdict


@pytest.mark.usefixtures("parser_is_here")
def test_every_refused_node_is_listed_and_the_others_are_said_to_be_fine(ask):
    nodes = [
        node("Det", "x", "a", "first"),
        node("Relu", "x", "b", "fine"),
        node("Unique", "b", "c", "second"),
        node("Det", "x", "d", "third"),
    ]
    answer = ask(network(nodes, outputs=[(name, FLOAT, [None]) for name in "acd"]))
    assert [(part.name, part.operator) for part in answer.refused] == [
        ("first", "Det"),
        ("second", "Unique"),
        ("third", "Det"),
    ]
    assert answer.operators == {"Relu": 1}
    assert "refuses 3 parts of it: Det, Unique." in answer.verdict


@pytest.mark.usefixtures("parser_is_here")
def test_where_the_parser_stops_the_rest_is_said_to_be_unknown(ask):
    answer = ask(STOPPED["uint8 transposed"][0])
    assert answer.notes == ("the parser stopped at turn: ask again when that node is mended",)


@pytest.mark.usefixtures("parser_is_here")
def test_a_refused_node_in_a_branch_names_the_nodes_around_it(ask):
    branches = [
        helper.make_graph([node(*made)], name, [], [helper.make_tensor_value_info(name, FLOAT, [1, 3, 8, 8])])
        for made, name in ((("Relu", "x", "a"), "a"), (("Det", "x", "b", "inner"), "b"))
    ]
    choose = node("If", "c", "y", "choose", then_branch=branches[0], else_branch=branches[1])
    tail = node("Tanh", "z", "y")
    choose.output[0] = "z"
    answer = ask(network([node("Relu", "x", "r"), choose, tail], [PICTURE, ("c", TensorProto.BOOL, [])]))
    (refused,) = answer.refused
    assert refused.name == "inner"
    assert refused.inside[0] == "choose (If)"
    assert answer.operators == {"Relu": 1, "Tanh": 1}
    assert "choose (If)" in answer.to_text()


@pytest.mark.usefixtures("parser_is_here")
def test_a_type_that_tensorrt_changes_in_silence_is_told(ask):
    answer = ask(typed(TensorProto.DOUBLE, node("Relu", "x", "y"), y=TensorProto.DOUBLE))
    assert answer.accepted
    assert answer.notes == (
        "x is float64 in the file, TensorRT makes it float32",
        "y is float64 in the file, TensorRT makes it float32",
    )


@pytest.mark.usefixtures("parser_is_here")
def test_a_fixed_network_is_taken_where_it_was_refused(tmp_path):
    onnx.save(resize(**TF2ONNX_RESIZE), tmp_path / "in.onnx")
    assert ask_parser(tmp_path / "in.onnx", progress=False).accepted is False
    fix(tmp_path / "in.onnx", tmp_path / "out.onnx", progress=False)
    assert ask_parser(tmp_path / "out.onnx", progress=False).accepted is True


@pytest.mark.usefixtures("parser_is_here")
def test_weights_in_another_file_are_found(tmp_path):
    model = network([node("Conv", "x w", "y")], weights={"w": np.ones((2, 3, 3, 3), np.float32)})
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert ask_parser(tmp_path / "net.onnx", progress=False).accepted is True


@pytest.mark.usefixtures("parser_is_here")
@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"parsed": False, "layers": {"ACTIVATION": 1}, "outputs": 1}, "it says no and gives no reason"),
        ({"parsed": True, "layers": {}, "outputs": 0}, "it says yes and found 0 layers and 0 outputs"),
    ],
)
def test_a_yes_to_nothing_and_a_no_without_reason_are_no_yes(ask, monkeypatch, facts, problem):
    monkeypatch.setattr(parser_check, "run_child", lambda *_, **__: {"errors": [], "types": {}, **facts})
    answer = ask(TAKEN["layers"])
    assert (answer.accepted, answer.problem) == (False, problem)


CHILDREN = {
    "crash": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "TensorRT's parser was killed by SIGSEGV"),
    "end": ("import sys; print('goodbye', file=sys.stderr); sys.exit(3)", "ended with status 3 and no result.*goodbye"),
    "wait": ("import time; time.sleep(60)", "the parser took longer than 0.3 s and was ended"),
}


@pytest.mark.parametrize("case", CHILDREN)
@pytest.mark.usefixtures("parser_is_here")
def test_a_parser_that_dies_is_an_answer(ask, monkeypatch, case):
    code, words = CHILDREN[case]
    use_child(monkeypatch, code)
    start = time.monotonic()
    answer = ask(TAKEN["layers"], timeout_s=0.3 if case == "wait" else 60)
    assert time.monotonic() - start < 30
    assert (answer.accepted, answer.refused) == (False, ())
    assert re.search(words, answer.problem)
    assert "gave no answer" in answer.verdict


def test_a_parser_that_dies_has_said_which_it_is(ask, monkeypatch):
    event = json.dumps({"event": "open", "title": "TensorRT 9.9"})
    use_child(monkeypatch, f"import os, signal; print({event!r}, flush=True); os.kill(os.getpid(), signal.SIGSEGV)")
    answer = ask(TAKEN["layers"])
    assert (answer.accepted, answer.flavour) == (False, "TensorRT 9.9")
    assert "the parser of TensorRT 9.9 gave no answer: TensorRT's parser was killed by SIGSEGV" in answer.verdict


def test_the_child_says_that_no_tensorrt_is_installed(ask, monkeypatch):
    use_child(monkeypatch, NO_FLAVOUR)
    answer = ask(REFUSED["no implementation"][0])
    assert (answer.accepted, answer.flavour) == (None, "")
    assert re.match("no TensorRT flavour that can build engines is here; .*pip install", answer.problem)
    assert [part.operator for part in answer.refused] == ["Det"]


@pytest.mark.usefixtures("no_parser")
@pytest.mark.parametrize("case", REFUSED)
def test_without_tensorrt_a_rule_finds_the_same_node_and_is_called_a_rule(ask, case):
    model, name, operator, _, _ = REFUSED[case]
    answer = ask(model)
    assert (answer.accepted, answer.flavour, answer.problem) == (None, "", NOT_ASKED)
    assert operator in [part.operator for part in answer.refused]
    assert any(part.name in name or name in part.name for part in answer.refused)
    assert not any(part.code for part in answer.refused)
    text = answer.to_text()
    assert "TensorRT was not asked" in text
    assert "what a rule of this package says" in text
    assert "the parser said" not in text


@pytest.mark.usefixtures("no_parser")
@pytest.mark.parametrize("case", TAKEN)
def test_without_tensorrt_no_rule_speaks_against_what_the_parser_takes(ask, case):
    answer = ask(TAKEN[case])
    assert (answer.accepted, answer.refused) == (None, ())
    assert "rules of this package speak against nothing in it" in answer.verdict


def test_a_file_that_the_parser_would_take_for_a_network_is_refused_before(tmp_path):
    # TensorRT's parser says yes to both
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match="is empty"):
        ask_parser(tmp_path / "empty.onnx")
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [])), tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="empty graph"):
        ask_parser(tmp_path / "none.onnx")


def test_an_unknown_flavour_is_refused(ask):
    with pytest.raises(InputError, match="got the flavour 'trt'"):
        ask(TAKEN["layers"], flavour="trt")


@pytest.mark.usefixtures("no_parser")
def test_the_page_shows_names_as_text(ask):
    page = ask(network([node("Det", "x", "y", "<b>det</b>")]))._repr_html_()
    assert "&lt;b&gt;det&lt;/b&gt;" in page
    assert "<b>det" not in page


@pytest.mark.usefixtures("no_parser")
def test_the_answer_is_a_report(ask):
    answer = ask(network([node("Det", "x", "y", "det")]))
    content = json.loads(answer.to_json())
    assert (answer.status, content["passed"], content["verdict"]) == ("inconclusive", False, answer.verdict)
    assert [entry["operator"] for entry in content["refused"]] == ["Det"]
    assert content["path"].endswith(answer.path.name)
