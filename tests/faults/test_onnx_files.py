"""ONNX files with one thing wrong in them: refused in a sentence, or used, by everything that opens one."""

import os
import random

import fault_cases
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_networks import save_mixed_network, save_network, save_picture_network

from workbench.core.errors import InputError, ModelError
from workbench.core.time_limit import time_limit
from workbench.onnx_graph.cost import inspect
from workbench.onnx_graph.file import check, read
from workbench.onnx_graph.input_values import input_values
from workbench.onnx_graph.mend import fix
from workbench.onnx_graph.noise import rounding_noise
from workbench.pictures.feeds import make_feeds
from workbench.runners.onnxruntime_runner import OnnxRuntimeRunner

HUGE = 2**62


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A small network: input (batch, 4), two weights, three nodes."""
    path = tmp_path_factory.mktemp("good") / "good.onnx"
    random_numbers = np.random.default_rng(0)
    weights = {name: random_numbers.standard_normal((4, 4)).astype(np.float32) for name in ("first", "second")}
    nodes = [
        helper.make_node("MatMul", ["input", "first"], ["hidden"], name="one"),
        helper.make_node("Relu", ["hidden"], ["active"], name="two"),
        helper.make_node("Gemm", ["active", "second"], ["output"], name="three", alpha=1.0, transB=0),
    ]
    ends = [{name: ("float32", ("batch", 4))} for name in ("input", "output")]
    return save_network(path, nodes, *ends, weights)


def use(path):
    """Everything that a stranger's ONNX file goes through, one after the other."""
    inspect(path)
    with time_limit(5), OnnxRuntimeRunner(path, threads=1) as runner:
        feeds = list(make_feeds(runner.inputs, known=input_values(read(path))))[:1]
        runner.infer(feeds[0][1])
        rounding_noise(path, feeds)
        fix(path, path.with_name("fixed.onnx"), feeds=feeds, progress=False)


def size(graph, number):
    graph.input[0].type.tensor_type.shape.dim[1].dim_value = number


def kind(value, number):
    value.type.tensor_type.elem_type = number


def text(old, new):
    """Replace bytes of the file, as many as there were."""
    return lambda content: content.replace(old, new)


def sparse(model, index, dims):
    values = helper.make_tensor("first", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("places", TensorProto.INT64, [1], [index])
    del model.graph.initializer[0]
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, dims))


def constant(model, **attributes):
    model.graph.node.insert(0, helper.make_node("Constant", [], ["extra"], **attributes))


def weight(model, **fields):
    tensor = model.graph.initializer[0]
    for name, value in fields.items():
        if name == "dims":
            tensor.dims[:] = value
        else:
            setattr(tensor, name, value)


def attribute(model, name, value):
    node = model.graph.node[2]
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def node(model, place, **fields):
    for name, value in fields.items():
        if isinstance(value, list):
            getattr(model.graph.node[place], name)[:] = value
        else:
            setattr(model.graph.node[place], name, value)


REFUSED = {
    "an input of element type 99": (lambda m: kind(m.graph.input[0], 99), "element type 99"),
    "an output of element type 99": (lambda m: kind(m.graph.output[0], 99), "element type 99"),
    "an input of element type -1": (lambda m: kind(m.graph.input[0], -1), "element type -1"),
    "a weight of element type 99": (lambda m: weight(m, data_type=99), "element type 99"),
    "a weight of element type 0": (lambda m: weight(m, data_type=0), "first"),
    "a weight of text": (lambda m: weight(m, data_type=TensorProto.STRING), "first"),
    "an input without a type": (lambda m: m.graph.input[0].type.Clear(), "input"),
    "an input without a shape": (lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"), "shape"),
    "a negative size": (lambda m: size(m.graph, -5), "-5"),
    "a size of 2**62": (lambda m: size(m.graph, HUGE), ""),
    "a size of 2**40": (lambda m: size(m.graph, 2**40), ""),
    "a weight of a negative size": (lambda m: weight(m, dims=[-4, 4]), "first"),
    "a weight of two negative sizes": (lambda m: weight(m, dims=[-4, -4]), "first"),
    "a weight of 2**62 numbers": (lambda m: weight(m, dims=[HUGE, 4]), "first"),
    "a weight of 2**124 numbers": (lambda m: weight(m, dims=[HUGE, HUGE]), "first"),
    "a weight with bytes missing": (lambda m: weight(m, raw_data=b"\0" * 60), "first"),
    "a weight with bytes too many": (lambda m: weight(m, raw_data=b"\0" * 68), "need 64"),
    "a weight without bytes": (lambda m: m.graph.initializer[0].ClearField("raw_data"), "first"),
    "a weight of other dims": (lambda m: weight(m, dims=[5, 5]), "first"),
    "a weight that is there twice": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "first"),
    "a weight without a name": (lambda m: weight(m, name=""), ""),
    "a sparse weight outside itself": (lambda m: sparse(m, 10**6, [4, 4]), "range"),
    "a sparse weight of a negative place": (lambda m: sparse(m, -1, [4, 4]), ""),
    "a sparse weight of 2**60 bytes": (lambda m: sparse(m, 1, [2**29, 2**29]), ""),
    "a name that is no text": (text(b"hidden", b"hid\xff\xfen"), "no text"),
    "an input whose name is no text": (text(b"input", b"in\xffut"), "no text"),
    "an operator that is no text": (text(b"MatMul", b"Mat\xfful"), "no text"),
    "a node whose name is no text": (text(b"\x03one", b"\x03o\xffe"), "no text"),
    "a weight whose name is no text": (text(b"second", b"sec\xffnd"), "no text"),
    "a graph whose name is no text": (text(b"good", b"g\xffod"), "no text"),
    "an output of 100,000 letters": (lambda m: setattr(m.graph.output[0], "name", "n" * 100_000), "output"),
    "an operator of 100,000 letters": (lambda m: node(m, 1, op_type="Q" * 100_000), "operators that ONNX does not"),
    "an operator with a line's end": (lambda m: node(m, 1, op_type="Re\nlu\x1b[31m"), "Re lu"),
    "a node that reads itself": (lambda m: node(m, 1, input=["active"]), "active"),
    "two nodes that read each other": (lambda m: node(m, 0, input=["active", "first"]), "active"),
    "a tensor that two nodes write": (lambda m: node(m, 1, output=["hidden"]), "hidden"),
    "a node without outputs": (lambda m: node(m, 0, output=[]), ""),
    "a node without inputs": (lambda m: node(m, 0, input=[]), ""),
    "a node with a thousand inputs": (lambda m: node(m, 1, input=["hidden"] * 1000), ""),
    "a node that ONNX does not have": (lambda m: node(m, 1, op_type="Frobnicate"), "Frobnicate"),
    "a domain of its own": (lambda m: node(m, 1, domain="com.example"), "com.example"),
    "a Constant without a value": (constant, ""),
    "no opset": (lambda m: m.ClearField("opset_import"), "opset none"),
    "an opset of 10**9": (lambda m: setattr(m.opset_import[0], "version", 10**9), "opset 1000000000"),
    "a negative opset": (lambda m: setattr(m.opset_import[0], "version", -3), "opset -3"),
    "an opset of 0": (lambda m: setattr(m.opset_import[0], "version", 0), "opset 0"),
    "two opsets": (lambda m: m.opset_import.append(helper.make_opsetid("", 11)), "opset 17 and 11"),
    "an ir_version of 99": (lambda m: setattr(m, "ir_version", 99), "99"),
    "an ir_version of -1": (lambda m: setattr(m, "ir_version", -1), ""),
    "no ir_version": (lambda m: m.ClearField("ir_version"), "no graph"),
    "no graph": (lambda m: m.ClearField("graph"), "no graph"),
    "no nodes": (lambda m: m.graph.ClearField("node"), "empty graph"),
    "no outputs": (lambda m: m.graph.ClearField("output"), "empty graph"),
    "an input without a name": (lambda m: setattr(m.graph.input[0], "name", ""), "name"),
    "an input that is there twice": (lambda m: m.graph.input.append(m.graph.input[0]), "input"),
    "an attribute that an operator does not have": (lambda m: attribute(m, "evil", 1), "evil"),
    "an attribute of another type": (lambda m: attribute(m, "alpha", [1, 2]), "alpha"),
    "a list of tensors as its input": (
        lambda m: m.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("input", 1, None)),
        "",
    ),
}


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_in_one_sentence_that_names_it(good, tmp_path, change, words):
    content, model = good.read_bytes(), onnx.load(good)
    changed = change(content) if change.__qualname__.startswith("text.") else change(model)
    changed = changed if isinstance(changed, bytes) else model.SerializeToString()
    assert changed != content
    path = tmp_path / "bad.onnx"
    path.write_bytes(changed)
    with fault_cases.untouched(tmp_path):
        assert words in fault_cases.refusal(use, path)


ALLOWED = {
    "a weight that is NaN": lambda m: weight(m, raw_data=np.full(16, np.nan, np.float32).tobytes()),
    "a weight that is infinite": lambda m: weight(m, raw_data=np.full(16, np.inf, np.float32).tobytes()),
    "training info": lambda m: m.training_info.add(),
    "a sparse weight": lambda m: sparse(m, 1, [4, 4]),
    "a note on a tensor that is not there": lambda m: m.graph.value_info.append(
        helper.make_tensor_value_info("nowhere", 1, [1])
    ),
    "a note of element type 99": lambda m: (
        m.graph.value_info.append(helper.make_tensor_value_info("hidden", 1, [1])) or kind(m.graph.value_info[0], 99)
    ),
    "a note of a wrong shape": lambda m: m.graph.value_info.append(helper.make_tensor_value_info("hidden", 1, [7, 7])),
    "a constant that nobody reads": lambda m: constant(m, value_float=1.0),
    "a domain that nobody uses": lambda m: m.opset_import.append(helper.make_opsetid("com.example", 1)),
    "a text of a megabyte": lambda m: setattr(m, "doc_string", "d" * 1_000_000),
    "a thousand notes": lambda m: m.metadata_props.extend([onnx.StringStringEntryProto(key="k", value="v")] * 1000),
    "a segment of a tensor": lambda m: setattr(m.graph.initializer[0].segment, "end", 5),
    "an output that is an input": lambda m: m.graph.output.append(m.graph.input[0]),
    "a name with a line's end": lambda m: node(m, 2, name="a\nb\x1b[31m"),
    "a size of 0": lambda m: size(m.graph, 0),
}


@pytest.mark.parametrize("change", ALLOWED.values(), ids=ALLOWED)
def test_it_is_used_or_refused_in_one_sentence(good, tmp_path, change):
    model = onnx.load(good)
    change(model)
    (tmp_path / "odd.onnx").write_bytes(model.SerializeToString())
    fault_cases.answer(use, tmp_path / "odd.onnx")


def flipped(content, seed):
    """One to three bits, a byte, or a few bytes changed, removed or added."""
    draw, changed = random.Random(seed), bytearray(content)
    place, what = draw.randrange(len(changed)), draw.random()
    if what < 0.7:
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    elif what < 0.85:
        changed[place] = draw.choice((0, 1, 127, 128, 255))
    elif what < 0.92:
        del changed[place : place + draw.randrange(1, 9)]
    else:
        changed[place:place] = draw.randbytes(draw.randrange(1, 9))
    return bytes(changed)


@pytest.fixture(scope="module")
def small_files(good, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return [good.read_bytes(), save_mixed_network(folder / "mixed.onnx").read_bytes()]


@pytest.mark.parametrize("seed", fault_cases.some(range(4000), 100))
def test_a_flipped_bit_is_used_or_refused_in_one_sentence(small_files, tmp_path, seed):
    (tmp_path / "bad.onnx").write_bytes(flipped(small_files[seed % 2], seed))
    fault_cases.answer(use, tmp_path / "bad.onnx")


@pytest.mark.parametrize("share", fault_cases.some([part / 200 for part in range(1, 200)], 20))
def test_a_file_that_was_cut_is_refused(good, tmp_path, share):
    content = good.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: int(len(content) * share)])
    fault_cases.refusal(use, tmp_path / "cut.onnx")


CONTENTS = {
    "empty": b"",
    "zeros": bytes(1000),
    "text": b"no network\n" * 50,
    "a zip archive": b"PK\x03\x04" + bytes(100),
    "an HTML page": b"<!DOCTYPE html><html></html>",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_what_is_no_onnx_file_is_refused(tmp_path, content):
    (tmp_path / "no.onnx").write_bytes(content)
    fault_cases.refusal(check, tmp_path / "no.onnx")


def test_paths_that_are_no_file_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "ring.onnx").symlink_to("ring.onnx")
    with (tmp_path / "large.onnx").open("wb") as file:
        file.truncate(3 << 30)
    names = [f"{'n' * 300}.onnx", "a\0b.onnx", "pipe.onnx", "ring.onnx", "large.onnx", "", "no/such.onnx"]
    answers = [fault_cases.refusal(check, tmp_path / name) for name in names]
    assert all(isinstance(answer, str) for answer in answers)
    assert "3,221,225,472 bytes" in answers[4]
    with pytest.raises(ModelError, match="does not exist"):
        rounding_noise(tmp_path / "no.onnx", [])


@pytest.mark.parametrize("batch", [0, -1, float("nan"), 1.5, 2**70, "8", None, True])
def test_a_batch_that_is_none_is_refused(good, batch):
    with pytest.raises(InputError, match="got batch="):
        inspect(good, batch=batch)


def test_a_picture_network_of_impossible_size_is_refused_before_memory_is_asked_for(tmp_path):
    path = save_picture_network(tmp_path / "huge.onnx", size=(2**20, 2**20), channels=2)
    assert "more than the" in fault_cases.refusal(use, path)


def test_a_long_message_keeps_its_start_and_its_advice(tmp_path):
    error = InputError("got " + "x" * 5000 + "\nand\x1b more; do this")
    assert str(error).startswith("got xxx") and str(error).endswith("; do this")
    assert len(str(error)) < fault_cases.LONGEST and str(error).isprintable()


def test_weights_of_every_type_are_counted_in_bytes(tmp_path):
    """Types of less than a byte are packed: seven numbers of 4 bits are 4 bytes."""
    for name, numbers in (("INT4", 7), ("UINT4", 7), ("FLOAT16", 3), ("BOOL", 3), ("DOUBLE", 3), ("BFLOAT16", 3)):
        tensor = helper.make_tensor("w", getattr(TensorProto, name), [numbers], [1] * numbers)
        cast = helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT)
        ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, [numbers]) for end in "xy"]
        graph = helper.make_graph([cast, helper.make_node("Add", ["x", "f"], ["y"])], "g", ends[:1], ends[1:], [tensor])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        array = numpy_helper.from_array(numpy_helper.to_array(tensor), "w")
        model.graph.initializer[0].CopyFrom(array)
        assert array.HasField("raw_data")
        onnx.save(model, tmp_path / "typed.onnx")
        assert check(tmp_path / "typed.onnx").parameters == numbers
