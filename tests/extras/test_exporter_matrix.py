"""The families of keras.applications through both exporters: answers on calibrated weights, and a real build."""

import functools

import numpy as np
import pytest
from conversions import relative_error, run_onnx
from street_scenes import generate_scene

from workbench.core.errors import ExportError
from workbench.core.packages import load_keras, load_tf_keras
from workbench.engine.build import build_engine
from workbench.export.keras_model import keras_to_onnx
from workbench.models import fcn_vgg16, unet
from workbench.models.resnet50 import photograph_crops
from workbench.onnx_graph.file import check
from workbench.pictures.images import rescale_image

# Float32 sums in another order, through up to 150 layers whose calibrated batch norms stretch each difference: measured
# 1e-7 to 1.7e-4 of the range of the logits. Swapped channels and a lost mean give 1e-1, see test_planted_faults.
ROUNDING = 5e-4

SIDE = 128
KERAS_3 = [
    "ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "MobileNet", "MobileNetV3Small",
    "Xception",
]  # fmt: skip
BOTH = ["ResNet50", "ResNet50V2", "InceptionV3", "MobileNetV2"]
KERAS2ONNX_REFUSES = {
    "MobileNet": "wrote a graph that is not valid .*topologically sorted",
    "ConvNeXtTiny": "archived in 2020, cannot convert this model .*'str' object is not callable",
}


@functools.cache
def photographs(count=16):
    """Squares cut from photographs, -1..1; batch norms need many, or a variance of nearly nothing blows up rounding."""
    crops = photograph_crops(count)
    return np.stack([rescale_image(crop, (SIDE, SIDE, 3)) / 127.5 for crop in crops]).astype(np.float32)


def classifier(keras, name):
    """Random weights with batch statistics of real pictures, and logits that differ between them."""
    keras.utils.set_random_seed(0)
    shape = (SIDE, SIDE, 3)
    model = getattr(keras.applications, name)(weights=None, input_shape=shape, classes=10, classifier_activation=None)
    unet.calibrate(model, photographs())
    for variable in model.weights:  # ConvNeXt starts with factors of 1e-6, which leave nearly nothing of its blocks
        if 0 < np.abs(np.asarray(variable)).max() < 1e-4:
            variable.assign(np.full(variable.shape, 0.3, np.float32))
    head = model.layers[-1].weights
    if len(head) == 2:
        logits = np.asarray(model(photographs(), training=False))
        scale = 1 / logits.std(axis=0).mean()
        head[0].assign(np.asarray(head[0]) * scale)
        head[1].assign(-logits.mean(axis=0) * scale)
    return model


def check_answers(model, path, batch):
    """Parity, and that the pictures give different answers, without which parity says little."""
    expected = np.asarray(model(batch, training=False))
    assert expected.std(axis=0).mean() > 0.01 * np.ptp(expected)
    assert relative_error(run_onnx(path, batch), expected) < ROUNDING


@pytest.mark.parametrize("name", KERAS_3 + BOTH)
def test_a_family_of_keras_3_converts_and_builds(tmp_path, name):
    model = classifier(load_keras(), name)
    path = keras_to_onnx(model, tmp_path / "m.onnx", progress=False)
    check_answers(model, path, photographs())
    assert build_engine(path, (1, SIDE, SIDE, 3), progress=False).manifest.onnx_sha256


def street_networks():
    scenes = np.stack([generate_scene(seed, 64, 128).image.astype(np.float32) - 100 for seed in (11, 12)])
    return {
        "FCN-8s": (lambda: fcn_vgg16.demonstration_model(load_tf_keras(), (64, 128)), scenes.transpose(0, 3, 1, 2)),
        "U-Net": (unet.demonstration_model, scenes / 100),
    }


@pytest.mark.parametrize("exporter", ["tf2onnx", "keras2onnx"])
@pytest.mark.parametrize("name", ["FCN-8s", "U-Net"])
def test_the_networks_of_the_tutorial_convert_with_both_exporters(tmp_path, name, exporter):
    build, batch = street_networks()[name]
    model = build()
    spatial = (64, 128) if name == "U-Net" else None
    path = keras_to_onnx(model, tmp_path / "m.onnx", exporter=exporter, spatial=spatial, progress=False)
    check_answers(model, path, np.ascontiguousarray(batch))


@pytest.mark.parametrize("exporter", ["tf2onnx", "keras2onnx"])
@pytest.mark.parametrize("name", BOTH)
def test_a_classifier_of_tf_keras_converts_with_both_exporters(tmp_path, name, exporter):
    model = classifier(load_tf_keras(), name)
    path = keras_to_onnx(model, tmp_path / "m.onnx", exporter=exporter, progress=False)
    check_answers(model, path, photographs())
    assert check(path).opset == {"tf2onnx": 17, "keras2onnx": 15}[exporter]


@pytest.mark.parametrize("name", KERAS2ONNX_REFUSES)
def test_keras2onnx_refuses_a_family_and_says_why(tmp_path, name):
    with pytest.raises(ExportError, match=KERAS2ONNX_REFUSES[name]) as caught:
        keras_to_onnx(classifier(load_tf_keras(), name), tmp_path / "m.onnx", exporter="keras2onnx", progress=False)
    assert "use exporter='tf2onnx'" in str(caught.value)
