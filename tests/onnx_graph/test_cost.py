"""Counts against hand arithmetic and against published figures of VGG-16."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from workbench.core.errors import ModelError
from workbench.onnx_graph.cost import inspect
from workbench.onnx_graph.file import check

FLOAT = TensorProto.FLOAT


def save(path, nodes, inputs, outputs, weights=None, **options):
    """Write a network; `inputs` and `outputs` map names to shapes, `weights` maps names to shapes of ones."""
    ends = [[helper.make_tensor_value_info(*value, shape) for value, shape in group] for group in (inputs, outputs)]
    tensors = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in (weights or {}).items()]
    graph = helper.make_graph(nodes, "net", *ends, tensors)
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in options.pop("domains", ()))]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8, **options), path)
    return path


def floats(**shapes):
    return [((name, FLOAT), shape) for name, shape in shapes.items()]


def one(path, operator, x, weight, y, **attributes):
    """A network of one node with one weight."""
    node = helper.make_node(operator, ["x", "w"], ["y"], "layer", **attributes)
    return inspect(save(path, [node], floats(x=x), floats(y=y), {"w": weight}))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.onnx"


def test_a_convolution_is_two_operations_for_each_tap_of_each_output(path):
    found = one(
        path, "Conv", ["batch", 3, 16, 24], (8, 3, 3, 3), ["batch", 8, 8, 12], pads=[1, 1, 1, 1], strides=[2, 2]
    )
    # 8 channels x 8 x 12 places, each a sum of 3 x 3 x 3 products
    assert found.flops == 2 * (8 * 8 * 12) * (3 * 3 * 3)
    assert found.parameters == 8 * 3 * 3 * 3


def test_a_depthwise_convolution_sees_one_channel_each(path):
    found = one(path, "Conv", [1, 32, 10, 10], (32, 1, 3, 3), [1, 32, 8, 8], group=32)
    assert found.flops == 2 * (32 * 8 * 8) * (3 * 3)


def test_a_grouped_convolution_sees_the_channels_of_its_group(path):
    found = one(path, "Conv", [1, 8, 5, 5], (6, 4, 1, 1), [1, 6, 5, 5], group=2)
    assert found.flops == 2 * (6 * 5 * 5) * 4


def test_a_transposed_convolution_spreads_each_input(path):
    found = one(path, "ConvTranspose", [1, 20, 7, 9], (20, 5, 4, 4), [1, 5, 16, 20], strides=[2, 2])
    # each of 20 x 7 x 9 numbers is multiplied by a kernel of 5 x 4 x 4
    assert found.flops == 2 * (20 * 7 * 9) * (5 * 4 * 4)


def test_a_transposed_convolution_in_groups(path):
    found = one(path, "ConvTranspose", [1, 6, 4, 4], (6, 2, 2, 2), [1, 4, 8, 8], strides=[2, 2], group=2)
    assert found.flops == 2 * (6 * 4 * 4) * (2 * 2 * 2)


def test_a_matrix_product_with_batches(path):
    found = one(path, "MatMul", [5, 7, 11], (11, 13), [5, 7, 13])
    assert found.flops == 2 * 5 * 7 * 11 * 13


@pytest.mark.parametrize(("flip_a", "flip_b"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_gemm_whichever_factor_is_turned(path, flip_a, flip_b):
    a, b = ([11, 7] if flip_a else [7, 11]), ((13, 11) if flip_b else (11, 13))
    assert one(path, "Gemm", a, b, [7, 13], transA=flip_a, transB=flip_b).flops == 2 * 7 * 11 * 13


def test_an_lstm_has_four_gates_at_each_step(path):
    nodes = [helper.make_node("LSTM", ["x", "w", "r"], ["y"], "lstm", hidden_size=6)]
    weights = {"w": (1, 24, 5), "r": (1, 24, 6)}
    found = inspect(save(path, nodes, floats(x=[9, 2, 5]), floats(y=[9, 1, 2, 6]), weights))
    # 9 steps x batch 2: 4 gates of 6 numbers, each a sum over 5 inputs and 6 states
    assert found.flops == 2 * 9 * 2 * (4 * 6) * (5 + 6)


@pytest.mark.parametrize(("operator", "gates"), [("GRU", 3), ("RNN", 1), ("LSTM", 4)])
def test_each_direction_of_a_recurrent_layer_counts(path, operator, gates):
    node = helper.make_node(operator, ["x", "w", "r"], ["y"], "layer", hidden_size=6, direction="bidirectional")
    weights = {"w": (2, gates * 6, 5), "r": (2, gates * 6, 6)}
    found = inspect(save(path, [node], floats(x=[7, 3, 5]), floats(y=[7, 2, 3, 6]), weights))
    # 7 steps of 3 rows, both ways: for each gate a 6 x 5 matrix for the input and a 6 x 6 one for the state
    assert found.flops == 2 * (7 * 3) * 2 * gates * (6 * 5 + 6 * 6)


def test_a_weight_that_a_node_reads_twice_is_there_once(path):
    node = helper.make_node("Gemm", ["x", "w", "w"], ["y"])
    found = inspect(save(path, [node], floats(x=[4, 4]), floats(y=[4, 4]), {"w": (4, 4)}))
    assert (found.layers[0].parameters, found.parameters) == (16, 16)


def test_an_open_batch_counts_as_one_or_as_asked(path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
    save(path, nodes, floats(x=["N", 4]), floats(y=["N", 2]), {"w": (4, 3), "v": (3, 2)})
    assert inspect(path).flops == 2 * (4 * 3 + 3 * 2)
    assert inspect(path, batch=8).flops == 8 * inspect(path).flops
    assert "for a batch of 1" in inspect(path).to_text()


def test_shapes_between_the_layers_are_inferred(path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["b", "v"], ["y"], "second", pads=[1, 1, 1, 1]),
    ]
    save(path, nodes, floats(x=[None, 3, 8, 8]), floats(y=[None, 4, 4, 4]), {"w": (4, 3, 3, 3), "v": (4, 4, 3, 3)})
    found = inspect(path)
    assert [(layer.name, layer.output) for layer in found.layers] == [("first", (1, 4, 8, 8)), ("second", (1, 4, 4, 4))]
    assert [layer.flops for layer in found.layers] == [2 * 4 * 64 * 27, 2 * 4 * 16 * 36]
    assert [layer.parameters for layer in found.layers] == [4 * 3 * 9, 4 * 4 * 9]


def test_sizes_that_the_graph_calculates_are_followed(path):
    # scales from a Concat of two constants, as torch.onnx.export writes them; shape inference alone gives up there
    scales = [
        numpy_helper.from_array(np.array(pair, np.float32), name) for name, pair in (("a", [1, 1]), ("b", [2, 2]))
    ]
    nodes = [
        *(helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in scales),
        helper.make_node("Concat", ["a", "b"], ["s"], axis=0),
        helper.make_node("Resize", ["x", "", "s"], ["r"], mode="nearest"),
        helper.make_node("Conv", ["r", "w"], ["y"], "conv"),
    ]
    save(path, nodes, floats(x=["n", 3, 4, 5]), floats(y=["n", 2, "rows", "columns"]), {"w": (2, 3, 1, 1)})
    found = inspect(path)
    assert (found.flops, found.uncounted) == (2 * (2 * 8 * 10) * 3, {})


def test_vgg16_costs_what_is_published(path):
    # 15.5 billion multiply-adds in every table of networks; the weights are inputs here, which cost no memory
    nodes, inputs, channels, side, last = [], floats(image=[None, 3, 224, 224]), 3, 224, "image"
    for stage, (depth, width) in enumerate([(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]):
        for index in range(depth):
            name = f"conv{stage}_{index}"
            inputs += floats(**{f"{name}_w": [width, channels, 3, 3]})
            nodes.append(helper.make_node("Conv", [last, f"{name}_w"], [name], name, pads=[1, 1, 1, 1]))
            last, channels = name, width
        nodes.append(helper.make_node("MaxPool", [last], [f"pool{stage}"], kernel_shape=[2, 2], strides=[2, 2]))
        last, side = f"pool{stage}", side // 2
    nodes.append(helper.make_node("Flatten", [last], ["flat"]))
    last, width = "flat", channels * side * side
    for index, size in enumerate([4096, 4096, 1000]):
        inputs += floats(**{f"fc{index}_w": [width, size]})
        nodes.append(helper.make_node("Gemm", [last, f"fc{index}_w"], [f"fc{index}"], f"fc{index}"))
        last, width = f"fc{index}", size
    found = inspect(save(path, nodes, inputs, floats(fc2=[None, 1000])))
    assert found.flops / 2 == pytest.approx(15.5e9, rel=0.005)  # the figure has three digits
    assert "cost    30.9 GFLOP for a batch of 1\n" in found.to_text()


def test_what_cannot_be_counted_is_named_and_the_sum_is_a_lower_bound(path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "known"),
        helper.make_node("Einsum", ["h", "h"], ["e"], "product", equation="ij,ij->i"),
        helper.make_node("Swirl", ["e"], ["y"], "mine", domain="my.own"),
    ]
    save(path, nodes, floats(x=[2, 4]), floats(y=[2]), {"w": (4, 3)}, domains=["my.own"])
    found = inspect(path)
    assert found.flops == 2 * 2 * 4 * 3
    assert found.uncounted == {"Einsum": 1, "Swirl": 1}
    assert "cost    at least 48 FLOP for a batch of 1 (not counted: 1 Einsum, 1 Swirl)" in found.to_text()


def test_an_open_height_is_not_guessed(path):
    found = one(path, "Conv", ["N", 3, "rows", 24], (8, 3, 1, 1), ["N", 8, "rows", 24])
    assert (found.flops, found.uncounted) == (0, {"Conv": 1})
    assert found.layers[0].output == (1, 8, None, 24)
    assert "1 x 8 x ? x 24" in found.to_text()


def test_a_function_of_the_model_counts_as_what_it_stands_for(path):
    body = [helper.make_node("MatMul", ["a", "b"], ["c"])]
    twice = helper.make_function("local", "Product", ["a", "b"], ["c"], body, [helper.make_opsetid("", 17)])
    nodes = [helper.make_node("Product", ["x", "w"], ["y"], domain="local")]
    save(path, nodes, floats(x=[2, 4]), floats(y=[2, 3]), {"w": (4, 3)}, domains=["local"], functions=[twice])
    assert inspect(path).flops == 2 * 2 * 4 * 3


def test_transposes_operators_and_sizes(path):
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[1, 0]),
        helper.make_node("MatMul", ["a", "w"], ["b"], "product"),
        helper.make_node("Transpose", ["b"], ["y"], perm=[1, 0]),
    ]
    save(path, nodes, floats(x=[4, 2]), floats(y=[3, 2]), {"w": (4, 3)})
    found = inspect(path)
    assert (found.transposes, found.operators) == (2, {"Transpose": 2, "MatMul": 1})
    assert (found.parameters, found.weight_bytes) == (12, 48)
    assert found.summary == check(path)
    assert "moves   2 Transposes" in found.to_text()
    assert json.loads(found.to_json())["weight_bytes"] == 48


def test_weights_in_another_file_are_counted_and_not_read(tmp_path, path):
    one(path, "MatMul", [2, 4], (4, 3), [2, 3])
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").write_bytes(bytes(48))
    found = inspect(path)
    assert (found.flops, found.parameters, found.weight_bytes) == (48, 12, 48)


def test_names_are_text_in_html(path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "<b>bold</b>")]
    page = inspect(save(path, nodes, floats(x=[2, 4]), floats(y=[2, 3]), {"w": (4, 3)}))._repr_html_()
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "<b>bold" not in page


def test_a_file_that_is_no_network_is_refused(tmp_path):
    (tmp_path / "bad.onnx").write_text("no network")
    with pytest.raises(ModelError, match="not an ONNX file"):
        inspect(tmp_path / "bad.onnx")
