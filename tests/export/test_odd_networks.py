"""Networks that exporters get wrong: each keeps Keras's answer, or is refused by the name of its layer."""

import collections

import numpy as np
import onnx
import onnxruntime
import pytest
from conversions import convert_here, randomise, relative_error
from networks import random_input

from workbench.core.errors import ExportError
from workbench.core.packages import load_keras, load_tf_keras
from workbench.export.graph_rewrites import rewrite
from workbench.export.keras_model import keras_to_onnx
from workbench.models.freezing import flat_call, freeze, node_place, tensor_names

keras = load_keras()
import odd_networks as odd  # noqa: E402  (Keras must be loaded for TensorFlow first)

# Both compute the same float32 sums in another order: measured 5e-7 of the range and below on these small networks.
ROUNDING = 1e-5


def run_all(converted, arrays):
    """Every output of a model in memory, by name."""
    session = onnxruntime.InferenceSession(converted.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = dict(zip([spec.name for spec in session.get_inputs()], arrays, strict=True))
    return dict(zip([spec.name for spec in session.get_outputs()], session.run(None, feed), strict=True))


def agrees(model, converted=None, limit=ROUNDING):
    """Every answer of the ONNX model is Keras's own."""
    arrays = odd.feed(model)
    answers = run_all(converted or convert_here(model), arrays)
    for got, expected in zip(answers.values(), flat_call(model)(*arrays), strict=True):
        assert got.dtype == expected.dtype
        assert relative_error(got, np.asarray(expected)) < limit
    return answers


def operators(converted):
    return collections.Counter(node.op_type for node in converted.graph.node)


@pytest.mark.parametrize(
    ("size", "operator"),
    [((4, 6), "AveragePool"), ((8, 4), "AveragePool"), ((5, 7), "MatMul"), ((16, 3), "MatMul"), ((16, 24), "Resize")],
)
def test_a_resize_by_area_keeps_keras_answer(size, operator):
    model = odd.resizing("area", size)
    converted = convert_here(model)
    assert operators(converted)[operator]
    agrees(model, converted)


@pytest.mark.parametrize("kind", ["bicubic", "lanczos3", "lanczos5"])
@pytest.mark.parametrize("size", [(5, 7), (20, 9)])
def test_a_resize_with_a_smooth_kernel_keeps_keras_answer(kind, size):
    agrees(odd.resizing(kind, size))


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
def test_a_resize_against_aliasing_keeps_keras_answer(kind):
    agrees(odd.resizing(kind, (3, 5), antialias=True))


def test_a_resize_to_a_size_that_depends_on_the_input_is_refused_by_the_name_of_its_layer():
    import tensorflow as tf

    class Grow(keras.layers.Layer):
        def call(self, x):
            size = tf.cast(tf.reduce_max(x), tf.int32) * [1, 1]
            return tf.ensure_shape(tf.raw_ops.ResizeArea(images=x, size=size), (None, 5, 5, 3))

    image = keras.Input((8, 12, 3), batch_size=1)
    model = keras.Model(image, Grow(name="grow")(image))
    with pytest.raises(ExportError, match=r"the layer 'grow' resizes \(ResizeArea\).*not fixed.*; fix the sizes"):
        convert_here(model)


def test_a_bicubic_resize_of_an_open_size_is_left_to_onnx():
    picture = keras.Input((None, None, 3))
    model = keras.Model(picture, keras.layers.Resizing(5, 7, interpolation="bicubic")(picture))
    graph = freeze(model, spatial=(8, 12)).graph_def
    for node in graph.node:
        node.attr.pop("_output_shapes", None)
        for dim in node.attr["shape"].shape.dim[1:3] if node.op == "Placeholder" else ():
            dim.size = -1
    rewrite(graph, {})
    assert [node.op for node in graph.node].count("ResizeBicubic") == 1


@pytest.mark.parametrize("operation", [keras.ops.argmax, keras.ops.argmin], ids=["argmax", "argmin"])
def test_the_place_of_an_extreme_is_keras_own_also_among_zeros_of_both_signs_and_infinities(operation):
    scores = keras.Input((4,))
    model = keras.Model(scores, operation(scores, axis=-1))
    zero, infinite = 0.0, np.inf
    rows = [[-zero, zero, -zero, zero], [zero, -zero, zero, -zero], [1, -infinite, infinite, 0], [-infinite] * 4]
    rows = np.array([*rows, [-1, -zero, -2, zero], [1, -zero, 2, zero]], np.float32)
    (got,) = run_all(convert_here(model), [rows]).values()
    np.testing.assert_array_equal(got, np.asarray(model(rows)))
    agrees(odd.argmax(operation))


def test_a_choice_between_infinite_numbers_stays_a_number():
    x = keras.Input((4,))
    model = keras.Model(x, keras.ops.where(x > 0, x, keras.ops.zeros_like(x)))
    rows = np.array([[-np.inf, -1, 1, np.inf]], np.float32)
    (got,) = run_all(convert_here(model), [rows]).values()
    np.testing.assert_array_equal(got, [[0, 0, 1, np.inf]])


def test_an_operator_that_onnx_does_not_have_names_its_layer_also_inside_another_model(tmp_path):
    class Quantile(keras.layers.Layer):
        def call(self, x):
            return keras.ops.erfinv(x)

    vector = keras.Input((4,))
    inner = keras.Model(vector, Quantile(name="dense")(keras.layers.Dense(4, name="dense_1")(vector)), name="inner")
    for model in (inner, keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(2, name="end")])):
        with pytest.raises(ExportError, match=r"no ONNX form for the layer 'dense' \(Erfinv\); use another") as caught:
            keras_to_onnx(model, tmp_path / "x.onnx", progress=False)
        assert "\n" not in str(caught.value)
    model = keras.Model(vector, keras.ops.erfinv(vector))
    with pytest.raises(ExportError, match=r"no ONNX form for the operation '.*/Erfinv' \(Erfinv\)"):
        keras_to_onnx(model, tmp_path / "x.onnx", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_operator_of_tf_keras_that_onnx_does_not_have_names_its_layer(tmp_path):
    classic = load_tf_keras()
    import tensorflow as tf

    vector = classic.Input((4,))
    x = classic.layers.Dense(4, name="dense")(vector)
    model = classic.Model(vector, classic.layers.Lambda(tf.math.erfinv, name="dense_1")(x))
    with pytest.raises(ExportError, match=r"the layer 'dense_1' \(Erfinv\)"):
        keras_to_onnx(model, tmp_path / "x.onnx", progress=False)


def test_the_layer_of_a_node_is_the_last_before_its_own_scopes():
    layer_of = {"inner_1": "inner", "shrink_1": "shrink", "resize": "resize"}
    assert node_place("functional_1/inner_1/shrink_1/ops/resize/Cast", layer_of) == "the layer 'shrink'"
    assert node_place("functional_1/Bitcast", layer_of) == "the operation 'functional_1/Bitcast'"


def test_the_keys_of_dicts_name_the_inputs_and_the_outputs():
    model = odd.dicts()
    assert tensor_names(model) == (("left", "right"), ("cat", "dog"))
    answers = agrees(model)
    assert {name: array.shape for name, array in answers.items()} == {"cat": (2, 2), "dog": (2, 3)}


def test_dicts_keep_their_keys_whatever_they_hold():
    x = keras.Input((8,), name="image")
    double, parts = keras.layers.Dense(2)(x), [keras.layers.Dense(size)(x) for size in (3, 4)]
    ordered = collections.OrderedDict([("z", {"b": double, "a": double}), ("parts", parts), ("image", x * 2)])
    model = randomise(keras.Model(x, ordered))
    assert tensor_names(model) == (("input",), ("image", "parts_0", "parts_1", "z_a", "z_b"))
    assert [array.shape[1] for array in agrees(model).values()] == [8, 3, 4, 2, 2]
    assert tensor_names(keras.Model(x, {"cat": double})) == (("input",), ("cat",))
    assert tensor_names(keras.Model({"image": x}, {"image": double})) == (("image",), ("image_output",))
    assert tensor_names(keras.Model(x, [double])) == (("input",), ("output",))


@pytest.mark.parametrize("exporter", ["tf2onnx", "keras2onnx"])
def test_the_dicts_of_tf_keras_keep_their_keys(tmp_path, exporter):
    classic = load_tf_keras()
    right, left = classic.Input((8,), name="right"), classic.Input((8,), name="left")
    dog, cat = classic.layers.Dense(3, name="first")(right), classic.layers.Dense(2, name="second")(left)
    model = randomise(classic.Model({"right": right, "left": left}, {"dog": dog, "cat": cat}))
    path = keras_to_onnx(model, tmp_path / "x.onnx", exporter=exporter, progress=False)
    converted = onnx.load(path)
    assert [[value.name for value in ends] for ends in (converted.graph.input, converted.graph.output)] == [
        ["left", "right"], ["cat", "dog"],
    ]  # fmt: skip
    arrays = [random_input((2, 8), seed) for seed in (1, 2)]
    answers, expected = run_all(converted, arrays), model(dict(zip(("left", "right"), arrays, strict=True)))
    for name in ("cat", "dog"):
        assert relative_error(answers[name], np.asarray(expected[name])) < ROUNDING


# Steps of bfloat16 are 2**-8 of a number and of float16 2**-11; Keras rounds each activation to them and the ONNX file
# may not: measured 6e-4 to 3e-3 (bfloat16) and 1e-4 to 2e-4 (float16) of the range on these networks.
ACTIVATIONS = {"mixed_bfloat16": 2**-7, "mixed_float16": 2**-10}


@pytest.mark.parametrize("build", [odd.mixed, odd.mixed_upsampling])
def test_a_network_in_bfloat16_runs_in_float32_and_says_so(build):
    odd.require_bfloat16()
    model = build("mixed_bfloat16")
    with pytest.warns(UserWarning, match="weights, rounded to bfloat16, and computes in float32"):
        converted = convert_here(model)
    assert onnx.TensorProto.BFLOAT16 not in {tensor.data_type for tensor in converted.graph.initializer}
    agrees(model, converted, ACTIVATIONS["mixed_bfloat16"])


def test_the_weights_of_bfloat16_are_rounded_and_those_of_float32_layers_are_not():
    model, same = odd.mixed("mixed_bfloat16"), odd.mixed("float32")
    with pytest.warns(UserWarning, match="bfloat16"):
        converted = convert_here(model)
    import tensorflow as tf

    for layer in same.layers[:-1]:
        if not isinstance(layer, keras.layers.BatchNormalization):  # which Keras computes in float32
            layer.set_weights([np.asarray(tf.cast(tf.cast(w, "bfloat16"), "float32")) for w in layer.get_weights()])
    agrees(same, converted)


def test_what_a_bfloat16_network_answers_is_float32(tmp_path):
    odd.require_bfloat16()
    model = odd.mixed("mixed_bfloat16", last="mixed_bfloat16")
    with pytest.warns(UserWarning, match="bfloat16"):
        path = keras_to_onnx(model, tmp_path / "x.onnx", progress=False)
    (array,) = odd.feed(model)
    (got,) = run_all(onnx.load(path), [array]).values()
    assert got.dtype == np.float32
    assert relative_error(got, np.asarray(model(array)).astype(np.float32)) < ACTIVATIONS["mixed_bfloat16"]


@pytest.mark.parametrize("build", [odd.mixed, odd.mixed_upsampling])
def test_a_network_in_mixed_float16_keeps_keras_answer(build):
    model = build("mixed_float16")
    agrees(model, limit=ACTIVATIONS["mixed_float16"])


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize(("build", "pairs"), [(odd.quantised, (3, 6)), (odd.quantised_words, (1, 3))])
def test_what_keras_quantised_lies_between_pairs_and_keeps_keras_answer(build, pairs):
    model = build()
    converted = convert_here(model)
    found = operators(converted)
    assert found["MatMulInteger"] == 0
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == pairs
    # the whole numbers are Keras's own; what is left is the order of the division and the bias
    agrees(model, converted, 1e-6)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_the_reader_is_told_what_became_of_quantised_layers(tmp_path):
    with pytest.warns(UserWarning, match="Keras quantised 3 layers to 8 bits; .* same whole numbers between pairs"):
        keras_to_onnx(odd.quantised(), tmp_path / "x.onnx", progress=False)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_four_bits_become_float32_weights_and_keep_keras_answer():
    agrees(odd.quantised("int4"))
