"""What `check` refuses, and what it tells of a good file."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from workbench.core.errors import ModelError
from workbench.onnx_graph.file import check
from workbench.onnx_graph.rewrites import make_resize_exact


def model_of(nodes, weights=(), opset=17):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.fixture
def good(tmp_path):
    weight = numpy_helper.from_array(np.ones((1, 4), np.float32), "w")
    path = tmp_path / "good.onnx"
    onnx.save(model_of([helper.make_node("Add", ["x", "w"], ["y"])], [weight]), path)
    return path


def test_check_tells_inputs_outputs_operators_and_parameters(good):
    summary = check(good)
    assert [(spec.name, spec.shape, spec.dtype) for spec in summary.inputs] == [("x", (None, 4), "float32")]
    assert summary.operators == {"Add": 1}
    assert (summary.parameters, summary.opset) == (4, 17)
    assert "x: float32 (batch, 4)" in summary.to_text()


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"got the directory .* expected an \.onnx file"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty; export the model again"), (b"this is plain text\n" * 20, "not an ONNX file")],
)
def test_an_empty_and_a_text_file_are_refused(tmp_path, content, message):
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        check(tmp_path / "bad.onnx")


def test_a_truncated_file_is_refused(good, tmp_path):
    content = good.read_bytes()
    for end in range(1, len(content), 7):
        (tmp_path / "cut.onnx").write_bytes(content[:end])
        with pytest.raises(ModelError):
            check(tmp_path / "cut.onnx")


def test_an_opset_of_the_future_is_refused(good, tmp_path):
    model = onnx.load(good)
    model.opset_import[0].version = 99
    onnx.save(model, tmp_path / "new.onnx")
    with pytest.raises(ModelError, match="declares opset 99, expected 1 to"):
        check(tmp_path / "new.onnx")


def test_an_operator_that_onnx_does_not_have_is_named(tmp_path):
    onnx.save(model_of([helper.make_node("Frobnicate", ["x"], ["y"])]), tmp_path / "odd.onnx")
    with pytest.raises(ModelError, match="operators that ONNX does not have: Frobnicate"):
        check(tmp_path / "odd.onnx")


def test_an_empty_graph_is_refused(tmp_path):
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [])), tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="holds an empty graph"):
        check(tmp_path / "none.onnx")


def test_a_graph_that_reads_what_nothing_writes_is_refused(tmp_path):
    onnx.save(model_of([helper.make_node("Relu", ["nowhere"], ["y"])]), tmp_path / "open.onnx")
    with pytest.raises(ModelError, match="not a valid ONNX graph"):
        check(tmp_path / "open.onnx")


def external(tmp_path, location):
    weight = numpy_helper.from_array(np.ones((1, 4), np.float32), "w")
    onnx.external_data_helper.set_external_data(weight, location)
    weight.ClearField("raw_data")
    model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], [weight])
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "model.onnx"


def test_missing_external_weights_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"keeps w in weights\.bin, which is missing"):
        check(external(tmp_path, "weights.bin"))


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname"])
def test_weights_outside_the_models_folder_are_refused(tmp_path, location):
    with pytest.raises(ModelError, match="outside its own folder"):
        check(external(tmp_path, location))


def test_a_list_of_tensors_as_an_output_is_refused(tmp_path):
    ends = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    pack = helper.make_node("SequenceConstruct", ["x", "x"], ["y"])
    outputs = [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [1, 4])]
    onnx.save(helper.make_model(helper.make_graph([pack], "g", [ends], outputs)), tmp_path / "list.onnx")
    with pytest.raises(ModelError, match=r"y of the network is a sequence_type .*, expected a tensor"):
        check(tmp_path / "list.onnx")


def test_make_resize_exact_touches_only_tf2onnx_s_form():
    sizes = numpy_helper.from_array(np.array([1, 8], np.int64), "sizes")

    def resize(mode):
        return helper.make_node(
            "Resize",
            ["x", "", "", "sizes"],
            ["y"],
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode=mode,
        )

    changed = model_of([resize("tf_half_pixel_for_nn")], [sizes])
    untouched = model_of([resize("asymmetric")], [sizes])
    before = untouched.SerializeToString()
    assert make_resize_exact(changed) == 1
    assert make_resize_exact(untouched) == 0
    assert untouched.SerializeToString() == before
