"""What onnxslim finds is proved like every other rewrite, and dropped where it is wrong."""

import numpy as np
import onnx
import onnxruntime
import onnxslim
import pytest
from onnx import TensorProto, helper, numpy_helper

from workbench.onnx_graph.mend import fix


@pytest.fixture
def path(tmp_path):
    """An expression for a Gelu: one of the patterns that onnxslim knows and this package does not."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")]
    numbers = {"root": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5)}
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in numbers.items()]
    nodes = [
        helper.make_node("Div", ["x", "root"], ["a"]),
        helper.make_node("Erf", ["a"], ["b"]),
        helper.make_node("Add", ["b", "one"], ["c"]),
        helper.make_node("Mul", ["x", "c"], ["d"]),
        helper.make_node("Mul", ["d", "half"], ["e"]),
        helper.make_node("Identity", ["e"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, tmp_path / "in.onnx")
    return tmp_path / "in.onnx"


def test_onnxslim_is_one_more_rewrite(path, tmp_path):
    report = fix(path, tmp_path / "out.onnx", simplifier="onnxslim", progress=False)
    assert report.rewrites[0].name == "onnxslim"
    assert not report.dropped
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    before, after = (onnxruntime.InferenceSession(str(p)).run(None, {"x": x})[0] for p in (path, tmp_path / "out.onnx"))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)  # a few float32 operations in another order
    assert sum(report.operators_after.values()) < sum(report.operators_before.values())


def test_an_onnxslim_that_changes_the_answers_is_dropped(path, tmp_path, monkeypatch):
    def harm(model):
        model.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.float32(0.51), "half"))
        model.graph.node[0].name = "changed"
        return model

    monkeypatch.setattr(onnxslim, "slim", harm)
    report = fix(path, tmp_path / "out.onnx", simplifier="onnxslim", progress=False)
    assert [rewrite.name for rewrite in report.dropped] == ["onnxslim"]
    assert onnx.load(tmp_path / "out.onnx").graph.initializer[2].name == "half"
    assert numpy_helper.to_array(onnx.load(tmp_path / "out.onnx").graph.initializer[2]) == np.float32(0.5)
