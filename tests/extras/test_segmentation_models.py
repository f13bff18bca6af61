"""The networks of segmentation_models: each architecture, and U-Net on each family of encoders."""

import numpy as np
import onnx
import pytest
from street_scenes import generate_scene

from workbench.core.packages import load_tf_keras
from workbench.engine.build import build_engine
from workbench.export.keras_model import keras_to_onnx
from workbench.models import unet
from workbench.runners.backends import open_runner
from workbench.runners.compare import compare_runners

SIZE = (96, 192)  # divisible by 32, and by the 48 that PSPNet wants
NARROW = {"decoder_filters": (32, 24, 16, 12, 8)}

CASES = [
    ("Unet", unet.NARROW_BACKBONE, NARROW),
    ("Unet", unet.NARROW_BACKBONE, {**NARROW, "decoder_block_type": "transpose"}),
    ("Unet", "vgg16", NARROW),
    ("Unet", "resnet18", NARROW),
    ("Unet", "resnext50", NARROW),
    ("Unet", "seresnet18", NARROW),
    ("Unet", "densenet121", NARROW),
    ("Unet", "inceptionv3", NARROW),
    ("Unet", "mobilenet", NARROW),
    ("Unet", "efficientnetb0", NARROW),
    ("Linknet", unet.NARROW_BACKBONE, {}),
    ("Linknet", "resnet18", {}),
    ("FPN", unet.NARROW_BACKBONE, {"pyramid_block_filters": 32}),
    ("FPN", "resnet18", {"pyramid_block_filters": 32}),
    ("PSPNet", unet.NARROW_BACKBONE, {"psp_conv_filters": 32}),
    ("PSPNet", "resnet18", {"psp_conv_filters": 32, "downsample_factor": 16}),
]


@pytest.fixture(scope="module")
def pictures():
    return {f"scene {seed}": unet.preprocess(generate_scene(seed, *SIZE).image) for seed in range(4)}


def plant_shifted_resize(path, out):
    """Let every Resize take the pixel before the nearest one; returns how many there were."""
    network = onnx.load(path)
    resizes = [node for node in network.graph.node if node.op_type == "Resize"]
    for node in resizes:
        kept = [entry for entry in node.attribute if entry.name in ("mode", "cubic_coeff_a", "exclude_outside")]
        style = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "ceil"}
        del node.attribute[:]
        node.attribute.extend([*kept, *(onnx.helper.make_attribute(*entry) for entry in style.items())])
    onnx.save(network, out)
    return len(resizes)


def verdict(model, path, pictures):
    with open_runner(model) as reference, open_runner(path) as candidate:
        return compare_runners(reference, candidate, [(name, {"input": x}) for name, x in pictures.items()])


@pytest.mark.parametrize(
    ("architecture", "backbone", "options"),
    CASES,
    ids=["-".join([architecture, backbone, *map(str, options)]) for architecture, backbone, options in CASES],
)
def test_the_network_keeps_its_answers_and_tensorrt_takes_it(
    architecture, backbone, options, pictures, tmp_path, monkeypatch
):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    keras = load_tf_keras()
    keras.backend.clear_session()
    keras.utils.set_random_seed(7)
    size = SIZE if architecture == "PSPNet" else None
    model = unet.build(architecture, backbone=backbone, classes=3, input_size=size, **options)
    unet.calibrate(model, np.concatenate(list(pictures.values())))
    path = keras_to_onnx(model, tmp_path / "network.onnx", spatial=None if size else SIZE, progress=False)
    # logits of up to 400 layers in float32 stay far below the 1e-4 of the range that is allowed
    report = verdict(model, path, pictures)
    assert report.passed, report.to_text()
    resizes = plant_shifted_resize(path, tmp_path / "shifted.onnx")
    assert (resizes == 0) == (options.get("decoder_block_type") == "transpose")
    if resizes:
        assert verdict(model, tmp_path / "shifted.onnx", pictures).status == "fail"
    assert build_engine(path, progress=False).manifest.layers
