"""Networks that exporters get wrong, a row each: converted, held against Keras and built, or refused by a sentence."""

import functools

import pytest

from workbench.core.errors import ExportError
from workbench.core.packages import load_keras
from workbench.engine.build import build_engine
from workbench.export.conversion import convert
from workbench.runners.backends import open_runner
from workbench.runners.compare import compare_runners

keras = load_keras()
import odd_networks as odd  # noqa: E402  (Keras must be loaded for TensorFlow first)


def transposed(kernel, stride, **options):
    """A transposed convolution of an 8 x 12 picture."""
    image = keras.Input((8, 12, 3))
    return odd.randomise(keras.Model(image, keras.layers.Conv2DTranspose(2, kernel, stride, **options)(image)))


# network, precision of the engine, what is said
ROWS = {
    "kernel < stride, same": (functools.partial(transposed, 1, 2, padding="same"), "fp32", None),
    "kernel < stride, valid": (functools.partial(transposed, 2, 3), "fp32", None),
    "kernel == stride": (functools.partial(transposed, 2, 2), "fp32", None),
    "output padding, valid": (functools.partial(transposed, 3, 2, output_padding=1), "fp32", None),
    "dilated": (functools.partial(transposed, 3, 1, dilation_rate=2), "fp32", None),
    "stride of two sizes": (functools.partial(transposed, 2, (3, 2), padding="same"), "fp32", None),
    "area, whole": (functools.partial(odd.resizing, "area", (4, 6)), "fp32", None),
    "area": (functools.partial(odd.resizing, "area", (5, 7)), "fp32", None),
    "area, larger": (functools.partial(odd.resizing, "area", (16, 24)), "fp32", None),
    "bicubic": (functools.partial(odd.resizing, "bicubic", (5, 7)), "fp32", None),
    "lanczos3": (functools.partial(odd.resizing, "lanczos3", (5, 7)), "fp32", None),
    "lanczos5": (functools.partial(odd.resizing, "lanczos5", (20, 9)), "fp32", None),
    "argmax": (odd.argmax, "fp32", None),
    "dicts": (odd.dicts, "fp32", None),
    "mixed_float16": (functools.partial(odd.mixed, "mixed_float16"), "fp16", None),
    "mixed_float16, loops": (functools.partial(odd.mixed_upsampling, "mixed_float16"), "fp16", None),
    "mixed_bfloat16, last layer too": (
        functools.partial(odd.mixed, "mixed_bfloat16", "bfloat16"),
        "bf16",
        "computes in float32",
    ),
    "mixed_bfloat16": (functools.partial(odd.mixed, "mixed_bfloat16"), "bf16", "computes in float32"),
    "int8": (odd.quantised, "int8", "Keras quantised 3 layers"),
    "int8 words": (odd.quantised_words, "int8", "Keras quantised 2 layers"),
    "words": (odd.words, "fp32", None),
}


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize("row", ROWS)
def test_an_odd_network_converts_agrees_with_keras_and_builds(tmp_path, row, recwarn):
    build, precision, said = ROWS[row]
    model, path = build(), tmp_path / "m.onnx"
    recwarn.clear()
    convert(model, path, progress=False)
    assert said is None or any(said in str(warning.message) for warning in recwarn)
    with open_runner(model) as reference, open_runner(path) as candidate:
        feeds = [(str(batch), dict(zip(reference.inputs, odd.feed(model, batch), strict=True))) for batch in (1, 3)]
        report = compare_runners(reference, candidate, feeds)
    assert report.passed, report.to_text()
    assert build_engine(path, precision=precision, progress=False, flavour="tensorrt_rtx").manifest.layers


def unknown():
    """A layer whose operator ONNX does not have."""
    vector = keras.Input((4,))
    return keras.Model(vector, keras.layers.Activation(keras.ops.erfinv, name="quantile")(vector))


def eight_bit_floats():
    """A Dense in 8-bit floats of Keras's own kind."""
    vector = keras.Input((4,))
    model = keras.Model(vector, keras.layers.Dense(3)(vector))
    model.quantize("float8")
    return model


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize(
    ("build", "sentence"),
    [(unknown, r"no ONNX form for the layer 'quantile' \(Erfinv\); use"), (eight_bit_floats, "float8")],
)
def test_an_odd_network_that_onnx_cannot_hold_is_refused(tmp_path, build, sentence):
    with pytest.raises(ExportError, match=sentence) as caught:
        convert(build(), tmp_path / "m.onnx", progress=False)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
