"""Weights in a file of their own, under names and at places that cannot be, or must not be, read."""

import os

import fault_cases
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from workbench.onnx_graph.file import check, take_digest
from workbench.onnx_graph.mend import fix
from workbench.runners.onnxruntime_runner import OnnxRuntimeRunner

FEED = {"x": np.zeros((1, 4), np.float32)}
LOCATION = ("location", "w.bin")
UP = "../" * 12


def write(folder, entries, where="weight"):
    """Write x + w, with w kept in another file: as a weight, in a Constant, a function, a branch, or sparse."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 4], data_location=TensorProto.EXTERNAL)
    for key, value in entries:
        tensor.external_data.add(key=key, value=value)
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    add, functions, weights = helper.make_node("Add", ["x", "w"], ["y"]), [], []
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xyz"]
    nodes = [constant, add]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    if where == "function":
        functions = [helper.make_function("my", "F", ["x"], ["y"], nodes, opsets[:1])]
        nodes = [helper.make_node("F", ["x"], ["y"], domain="my")]
    elif where == "branch":
        branch = helper.make_graph(nodes[:1], "branch", [], [helper.make_tensor_value_info("w", 1, [1, 4])])
        yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
        other = onnx.GraphProto()
        other.CopyFrom(branch)
        nodes = [yes, helper.make_node("If", ["yes"], ["v"], then_branch=branch, else_branch=other)]
        nodes.append(helper.make_node("Add", ["x", "v"], ["y"]))
    elif where in ("weight", "sparse"):
        nodes = [add]
        weights = [tensor] if where == "weight" else []
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:2], weights)
    if where == "sparse":
        tensor.dims[:] = [4]
        places = helper.make_tensor("places", TensorProto.INT64, [4], range(4))
        graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensor, indices=places, dims=[1, 4]))
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    (folder / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (folder / "sub").mkdir()
    (folder / "sub" / "w.bin").write_bytes(bytes(16))
    return folder / "m.onnx"


def use(path):
    """Check, run, hash and mend the network; what it answers."""
    check(path)
    with OnnxRuntimeRunner(path, threads=1) as runner:
        answer = runner.infer(FEED)["y"]
    take_digest(path)
    fix(path, path.with_name("fixed.onnx"), feeds=[("zeros", FEED)], progress=False)
    return answer


REFUSED = {
    "an offset beyond the end": ([LOCATION, ("offset", "999999")], "999999"),
    "an offset into the last number": ([LOCATION, ("offset", "4")], ""),
    "an offset and a length beyond the end": ([LOCATION, ("offset", "8"), ("length", "16")], "up to byte 24"),
    "a negative offset": ([LOCATION, ("offset", "-4")], "'-4'"),
    "an offset of 30 digits": ([LOCATION, ("offset", "9" * 30)], "no numbers"),
    "an offset of a million digits": ([LOCATION, ("offset", "9" * 1_000_000)], ""),
    "an offset in words": ([LOCATION, ("offset", "abc")], "'abc'"),
    "an empty offset": ([LOCATION, ("offset", "")], "''"),
    "an offset with spaces": ([LOCATION, ("offset", " 0 ")], "no numbers"),
    "an offset in hexadecimal": ([LOCATION, ("offset", "0x0")], "no numbers"),
    "an offset with an underscore": ([LOCATION, ("offset", "1_0")], "no numbers"),
    "an offset in other digits": ([LOCATION, ("offset", "\u0660")], "no numbers"),
    "an offset with a zero byte": ([LOCATION, ("offset", "0\0")], "no numbers"),
    "a length beyond the end": ([LOCATION, ("length", "1000")], "up to byte 1000"),
    "a length of 2**62": ([LOCATION, ("length", str(2**62))], "up to byte"),
    "a negative length": ([LOCATION, ("length", "-1")], "'-1'"),
    "a length in words": ([LOCATION, ("length", "1e3")], "'1e3'"),
    "a length of less than the weight": ([LOCATION, ("length", "8")], ""),
    "a length of 0": ([LOCATION, ("length", "0")], ""),
    "a location with a zero byte": ([("location", "w.bin\0x")], "cannot be opened"),
    "a location of 300 letters": ([("location", "n" * 300)], "cannot be opened"),
    "a location of 10,000 letters": ([("location", "n/" * 5000)], ""),
    "a location with a line's end": ([("location", "a\nb\x1b[31m")], "missing"),
    "an empty location": ([("location", "")], "missing"),
    "no location": ([("offset", "0")], "location"),
    "no entries": ([], ""),
    "the folder itself": ([("location", ".")], "missing"),
    "a folder": ([("location", "sub")], "missing"),
    "the folder above": ([("location", "..")], "outside"),
    "a file above": ([("location", "../w.bin")], "outside"),
    "a file far above": ([("location", f"{UP}etc/hostname")], "outside"),
    "a file above, through a folder": ([("location", "sub/../../w.bin")], "outside"),
    "an absolute path": ([("location", "/etc/hostname")], "outside"),
    "a device": ([("location", "/dev/zero")], "outside"),
    "standard input": ([("location", "/dev/stdin")], "outside"),
    "an address": ([("location", "http://example.com/w.bin")], "missing"),
    "a home folder": ([("location", "~/w.bin")], "missing"),
    "a path of Windows": ([("location", "..\\..\\w.bin")], "missing"),
    "an address in memory": ([("location", "*/_ORT_MEM_ADDR_/*"), ("offset", "4096"), ("length", "16")], "missing"),
    "two locations, the second outside": ([LOCATION, ("location", "/etc/hostname")], "outside"),
    "two locations, the first outside": ([("location", "/etc/hostname"), LOCATION], "outside"),
    "a location that is not there": ([("location", "gone.bin")], "copy it beside"),
    "a link to a file outside": ([("location", "out.bin")], "outside"),
    "a link to a folder outside": ([("location", "away/w.bin")], "outside"),
    "a link in the same folder": ([("location", "inside.bin")], "link"),
    "a ring of links": ([("location", "ring.bin")], ""),
    "a pipe": ([("location", "pipe.bin")], "missing"),
}


@pytest.mark.parametrize(("entries", "words"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_and_nothing_outside_is_read(tmp_path, entries, words):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(16))
    path = write(folder, entries)
    os.mkfifo(folder / "pipe.bin")
    (folder / "out.bin").symlink_to(tmp_path / "w.bin")
    (folder / "inside.bin").symlink_to("w.bin")
    (folder / "away").symlink_to(tmp_path)
    (folder / "ring.bin").symlink_to("ring.bin")
    with fault_cases.untouched(folder):
        assert words in fault_cases.refusal(use, path)


@pytest.mark.parametrize("where", ["weight", "constant", "function", "branch", "sparse"])
@pytest.mark.parametrize("location", ["../w.bin", f"{UP}etc/hostname", "/etc/hostname", "w.bin\0", "gone.bin"])
def test_a_place_outside_is_refused_wherever_the_numbers_stand(tmp_path, where, location):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(16))
    path = write(folder, [("location", location)], where)
    fault_cases.refusal(check, path)
    fault_cases.refusal(take_digest, path)


GOOD = {
    "beside it": [LOCATION],
    "in a folder of its own": [("location", "sub/w.bin")],
    "through a folder and back": [("location", "sub/../w.bin")],
    "with an offset and a length": [LOCATION, ("offset", "0"), ("length", "16")],
    "with a checksum": [LOCATION, ("checksum", "00")],
}


@pytest.mark.parametrize("entries", GOOD.values(), ids=GOOD)
def test_what_lies_in_the_models_folder_is_used(tmp_path, entries):
    assert use(write(tmp_path, entries)).shape == (1, 4)


@pytest.mark.parametrize("where", ["constant", "function", "branch"])
def test_numbers_of_nodes_may_lie_beside_the_model_too(tmp_path, where):
    fault_cases.answer(use, write(tmp_path, [LOCATION], where))


@pytest.mark.parametrize("cut", [0, 1, 15])
def test_a_file_of_weights_that_was_cut_is_refused(tmp_path, cut):
    path = write(tmp_path, [LOCATION, ("offset", "0"), ("length", "16")])
    (tmp_path / "w.bin").write_bytes(bytes(cut))
    assert f"which has {cut}" in fault_cases.refusal(use, path)
