"""Faults of a thousandth, which fixed limits let pass, and measured ones do not."""

import functools

import numpy as np
import onnx
import pytest
from conversions import convert_here, randomise
from subtle_faults import FAULTS

from workbench.core.packages import load_keras
from workbench.core.tolerance import Tolerance
from workbench.runners.backends import open_runner
from workbench.runners.compare import compare_runners

DAMPING = {
    "weights of a channel off by 1e-3": 1e-1, "bias of a channel dropped": 1e-2, "epsilon of a batch norm": 1e-2,
    "corner rule of a bilinear resize": 1e-4, "tanh form of a GELU": 1e-1,
}  # fmt: skip
"""How much the branch with the fault counts: so little that the error stays below 1e-4 of the range."""


@functools.cache
def network(damping):
    """Convolutions, and a branch of all that the faults are planted in, which counts for little."""
    keras = load_keras()
    keras.utils.set_random_seed(6)
    layers = keras.layers
    image = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(16, 3, padding="same", activation="relu", use_bias=False)(image)
    side = layers.Conv2D(16, 1, activation="gelu")(layers.AveragePooling2D(2)(x))
    side = layers.BatchNormalization(epsilon=1e-5)(layers.Conv2D(16, 3, padding="same", activation="relu")(side))
    side = layers.UpSampling2D(2, interpolation="bilinear")(side)
    x = layers.Add()([x, layers.Rescaling(damping)(side)])
    return randomise(keras.Model(image, layers.Conv2D(4, 1, use_bias=False)(x)), 3)


def pictures():
    draw = np.random.default_rng(0)
    return [
        (f"noise {number}", {"input": draw.standard_normal((1, 32, 32, 3)).astype(np.float32)}) for number in (1, 2)
    ]


def judge(damping, path, tolerance=None):
    with open_runner(network(damping)) as reference, open_runner(path) as candidate:
        return compare_runners(reference, candidate, pictures(), tolerance)


def rebuild(damping):
    model = load_keras().models.clone_model(network(damping))
    model.set_weights(network(damping).get_weights())
    return model


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_fixed_limits_let_pass_is_found(tmp_path, fault):
    damping = DAMPING[fault]
    healthy = convert_here(network(damping))
    onnx.save(healthy, tmp_path / "healthy.onnx")
    onnx.save(FAULTS[fault](healthy, lambda: rebuild(damping)), tmp_path / "faulty.onnx")
    report = judge(damping, tmp_path / "healthy.onnx")
    assert report.passed, report.to_text()
    assert report.outputs[0].noise < 1e-5
    report = judge(damping, tmp_path / "faulty.onnx")
    assert judge(damping, tmp_path / "faulty.onnx", Tolerance()).passed
    assert report.status == "fail", report.to_text()
