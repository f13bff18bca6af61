"""Transposed convolutions keep Keras's answer: kernels smaller than their stride, and every output padding."""

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
from conversions import convert_here, randomise, relative_error, run_onnx
from networks import random_input

from workbench.core.packages import load_keras, load_tf_keras
from workbench.export.keras_model import keras_to_onnx

# Both add the same float32 products in another order: measured 3e-7 of the range and below.
ROUNDING = 1e-5


def transposed(keras, cases):
    """One picture in; a transposed convolution with a bias for each (kernel, stride, padding, output padding) out."""
    image = keras.Input((5, 4, 3))
    answers = [
        keras.layers.Conv2DTranspose(2, kernel, stride, padding=padding, output_padding=more, name=f"answer_{index}")(
            image
        )
        for index, (kernel, stride, padding, more) in enumerate(cases)
    ]
    return randomise(keras.Model(image, answers))


def output_paddings(kernel, stride, padding):
    """None, and those for which TensorFlow has a kernel: "same" cuts an even kernel so far that 0 is too little."""
    least = 1 if padding == "same" and kernel % 2 == 0 else 0
    return [None, *range(least, stride)]


def agrees(converted, model, cases):
    for node in converted.graph.node:
        for attribute in node.attribute:
            assert attribute.name != "pads" or min(attribute.ints) >= 0
    x = random_input((2, 5, 4, 3))
    answers = model(x, training=False)
    session = onnxruntime.InferenceSession(converted.SerializeToString(), providers=["CPUExecutionProvider"])
    for case, got, expected in zip(cases, session.run(None, {"input": x}), answers, strict=True):
        assert got.shape == expected.shape, case
        assert relative_error(got, np.asarray(expected)) < ROUNDING, case


def test_a_kernel_of_one_with_a_stride_of_two_runs_and_keeps_the_answer():
    # the smallest network for which tf2onnx 1.17 writes negative pads, which ONNX Runtime refuses
    keras = load_keras()
    line = keras.Input((1, 2, 1))
    model = randomise(keras.Model(line, keras.layers.Conv2DTranspose(1, 1, (1, 2), use_bias=False)(line)))
    converted = convert_here(model)
    (node,) = [node for node in converted.graph.node if node.op_type == "ConvTranspose"]
    attributes = {attribute.name: list(attribute.ints) for attribute in node.attribute}
    assert (attributes["pads"], attributes["output_padding"]) == ([0, 0, 0, 0], [0, 1])
    x = np.array([[[[1.0], [2.0]]]], np.float32)
    weight = float(np.asarray(model.weights[0]).item())
    np.testing.assert_allclose(run_onnx(converted, x).ravel(), [weight, 0, 2 * weight, 0], rtol=1e-6)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_every_kernel_stride_and_padding_keeps_keras_answer(kernel, stride, padding):
    cases = [(kernel, stride, padding, more) for more in output_paddings(kernel, stride, padding)]
    model = transposed(load_keras(), [*cases, (kernel, (stride, 4), padding, None)])
    agrees(convert_here(model), model, [*cases, "another stride across"])


@pytest.mark.parametrize("kind", ["Conv1DTranspose", "Conv3DTranspose"])
@pytest.mark.parametrize(("padding", "more"), [("valid", None), ("valid", 1), ("same", None), ("same", 2)])
def test_lines_and_volumes_keep_keras_answer(kind, padding, more):
    keras = load_keras()
    sizes = (4,) if kind == "Conv1DTranspose" else (4, 3, 2)
    thing = keras.Input((*sizes, 2))
    layer = getattr(keras.layers, kind)(2, 1, 3, padding=padding, output_padding=more)
    model = randomise(keras.Model(thing, layer(thing)))
    x = random_input((2, *sizes, 2))
    assert relative_error(run_onnx(convert_here(model), x), np.asarray(model(x, training=False))) < ROUNDING


def test_keras2onnx_pads_as_tensorflow_too(tmp_path):
    cases = [
        (kernel, stride, padding, more)
        for kernel, stride, padding in itertools.product((1, 2, 3), (2, 3), ("valid", "same"))
        for more in output_paddings(kernel, stride, padding)
    ]
    model = transposed(load_tf_keras(), cases)
    path = keras_to_onnx(model, tmp_path / "x.onnx", exporter="keras2onnx", progress=False)
    agrees(onnx.load(path), model, cases)
