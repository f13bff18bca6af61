"""Inputs that a network looks something up with, or takes sizes from, get numbers that it can use."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from workbench.core.errors import ModelError
from workbench.onnx_graph.edit import real_inputs
from workbench.onnx_graph.file import tensor_spec
from workbench.onnx_graph.input_values import input_values
from workbench.onnx_graph.mend import fix
from workbench.onnx_graph.proof import default_feeds
from workbench.pictures.feeds import make_feeds

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
ROWS = 500
TABLE = {"table": np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 4)}


def network(nodes, inputs, outputs, weights=None):
    values = [[helper.make_tensor_value_info(name, *what) for name, what in ends.items()] for ends in (inputs, outputs)]
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    nodes = [helper.make_node(*what[:-1], **what[-1]) for what in nodes]
    graph = helper.make_graph(nodes, "net", *values, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def feeds(model):
    """What `fix` and `verify` make up."""
    specs, known = {value.name: tensor_spec(value) for value in real_inputs(model.graph)}, input_values(model)
    return [feed for _, feed in (*default_feeds(specs, known), *make_feeds(specs, known=known))]


def lookup(nodes, kind=INT64, shape=("batch", 64)):
    return network(nodes, {"ids": (kind, shape)}, {"y": (FLOAT, None)}, TABLE)


LOOKUPS = {
    "Gather": lookup([("Gather", ["table", "ids"], ["y"], {})]),
    "Gather after Cast of float32": lookup(
        [("Cast", ["ids"], ["whole"], {"to": INT64}), ("Gather", ["table", "whole"], ["y"], {})], kind=FLOAT
    ),
    "GatherElements": lookup([("GatherElements", ["table", "ids"], ["y"], {})], shape=(64, 4)),
}


@pytest.mark.parametrize("model", LOOKUPS.values(), ids=LOOKUPS)
def test_indices_are_drawn_from_the_whole_table_and_no_further(model):
    ids = np.concatenate([feed["ids"].ravel() for feed in feeds(model)])
    assert ids.min() >= 0
    assert ROWS // 2 < ids.max() < ROWS  # of 64 numbers or more, all in the lower half: a chance of 2 ** -64
    np.testing.assert_array_equal(ids, ids.round())


def test_indices_of_two_tables_fit_the_smaller_one():
    nodes = [("Gather", ["table", "ids"], ["y"], {}), ("Gather", ["small", "ids"], ["z"], {})]
    inputs, outputs = {"ids": (INT64, (64,))}, {"y": (FLOAT, None), "z": (FLOAT, None)}
    assert input_values(network(nodes, inputs, outputs, {**TABLE, "small": np.zeros(7, np.float32)})) == {"ids": 7}


def test_indices_in_several_axes_fit_the_smallest():
    nodes = [("GatherND", ["table", "ids"], ["y"], {})]
    assert input_values(network(nodes, {"ids": (INT64, (64, 2))}, {"y": (FLOAT, None)}, TABLE)) == {"ids": 4}


def sizes(operator, others, outputs, x=(1, 3, 8, 6), **attributes):
    """A node that reads an x and other inputs, with the shapes that its outputs have according to the file."""
    inputs = {"x": (FLOAT, x), **{name: (kind, shape) for name, (kind, shape) in others.items() if name}}
    names = [name if name.strip() else "" for name in ("x", *others)]
    ends = {f"y{index}": (FLOAT, shape) for index, shape in enumerate(outputs)}
    return network([(operator, names, list(ends), attributes)], inputs, ends)


SIZES = {
    "Reshape": sizes("Reshape", {"shape": (INT64, [2])}, [(24, 6)]),
    "Expand": sizes("Expand", {"shape": (INT64, [4])}, [(5, 3, 8, 6)]),
    "Tile": sizes("Tile", {"repeats": (INT64, [4])}, [(2, 3, 8, 12)]),
    "Pad": sizes("Pad", {"pads": (INT64, [8])}, [(1, 3, 9, 8)]),
    "Resize by scales": sizes("Resize", {" ": (FLOAT, [0]), "scales": (FLOAT, [4])}, [(1, 3, 16, 12)]),
    "Resize of two axes": sizes(
        "Resize", {" ": (FLOAT, [0]), "  ": (FLOAT, [0]), "sizes": (INT64, [2])}, [(1, 3, 4, 12)], axes=[2, 3]
    ),
    "Slice": sizes("Slice", {"from": (INT64, [2]), "to": (INT64, [2])}, [(1, 2, 8, 6)]),
    "Slice with axes and steps": sizes(
        "Slice", {name: (INT64, [2]) for name in ("from", "to", "axes", "steps")}, [(1, 2, 8, 6)]
    ),
    "Split": sizes("Split", {"split": (INT64, [2])}, [(1, 3, 5, 6), (1, 3, 3, 6)], axis=2),
    "Squeeze": sizes("Squeeze", {"axes": (INT64, [1])}, [(3, 8, 6)]),
    "Unsqueeze": sizes("Unsqueeze", {"axes": (INT64, [2])}, [(1, 1, 1, 3, 8, 6)]),
    "ReduceMean": sizes("ReduceMean", {"axes": (INT64, [2])}, [(8, 6)], keepdims=0),
    "CumSum": sizes("CumSum", {"axis": (INT64, [])}, [(4,)], x=(4,)),
    "an open batch": sizes("Reshape", {"shape": (INT64, [2])}, [("batch", 144)], x=("batch", 3, 8, 6)),
}


@pytest.mark.parametrize("model", SIZES.values(), ids=SIZES)
def test_onnx_runtime_answers_in_the_shapes_that_the_file_declares(model):
    onnx.checker.check_model(model, full_check=True)
    session = InferenceSession(model.SerializeToString())
    for feed in feeds(model):
        shapes = [answer.shape for answer in session.run(None, feed)]
        assert shapes == [tuple(size or 1 for size in tensor_spec(value).shape) for value in model.graph.output]


def test_the_largest_of_a_row_are_as_many_as_the_file_declares():
    ends = {"values": (FLOAT, (2, 5)), "places": (INT64, (2, 5))}
    model = network([("TopK", ["x", "k"], list(ends), {})], {"x": (FLOAT, (2, 9)), "k": (INT64, (1,))}, ends)
    assert input_values(model)["k"].tolist() == [5]


def test_a_range_moves_and_a_whole_number_is_not_divided_by_zero():
    nodes = [("Range", ["x", "x", "step"], ["y"], {}), ("Div", ["y", "by"], ["z"], {})]
    known = input_values(network(nodes, dict.fromkeys(("x", "step", "by"), (INT64, ())), {"z": (INT64, (None,))}))
    assert {name: value.tolist() for name, value in known.items()} == {"step": 1, "by": 1}


def test_other_inputs_are_left_to_chance():
    nodes = [("Div", ["x", "by"], ["z"], {}), ("Reshape", ["z", "shape"], ["y"], {})]
    inputs = {"x": (FLOAT, (4, 4)), "by": (FLOAT, (4,)), "shape": (INT64, (2,))}
    assert input_values(network(nodes, inputs, {"y": (FLOAT, ("a", "b"))})) == {}


def test_numbers_that_cannot_be_known_are_asked_for_by_name(tmp_path):
    inputs = {"x": (FLOAT, (1, 5, 5)), "picture": (INT64, (2,)), "block": (INT64, (2,))}
    nodes = [("Col2Im", ["x", "picture", "block"], ["y"], {})]
    path = tmp_path / "net.onnx"
    onnx.save(network(nodes, inputs, {"y": (FLOAT, ("batch", "c", "h", "w"))}), path)
    with pytest.raises(ModelError, match=r"the numbers in picture or block, give others with --feeds FILE\.npz"):
        fix(path, path.with_name("out.onnx"), progress=False)
    feed = {"x": np.ones((1, 5, 5), np.float32), "picture": np.array([5, 5]), "block": np.array([1, 5])}
    assert fix(path, path.with_name("out.onnx"), feeds=[("mine", feed)], progress=False).operators_after == {
        "Col2Im": 1
    }
