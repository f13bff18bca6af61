"""Small segmentation networks and their pictures, for the tests of fused graphs."""

import numpy as np
import onnxruntime
from onnx import helper
from onnx_networks import save_network

from workbench.pictures.cityscapes import argmax_classes
from workbench.pictures.images import CITYSCAPES_MEAN, sub_mean_chw

SIZE = (8, 12)
OPERATORS = ("ArgMax", "MaxPool")
# On a CPU ONNX Runtime leaves out the rounding to float16 between two nodes, so there the mean needs no rounding.
MEANS = {"float32": CITYSCAPES_MEAN, "float16": (72.0, 82.5, 72.25)}


def save_segmenter(path, batch="batch", dtype="float32", channels=20):
    """Two convolutions: `input` (batch, 3, 8, 12) to `output` (batch, 20, 8, 12)."""
    random = np.random.default_rng(3)
    weights = {
        "kernel": random.standard_normal((8, 3, 3, 3)).astype(dtype),
        "head": random.standard_normal((channels, 8, 1, 1)).astype(dtype),
    }
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("Conv", ["active", "head"], ["output"]),
    ]
    ends = {"input": (dtype, (batch, 3, *SIZE))}, {"output": (dtype, (batch, channels, *SIZE))}
    return save_network(path, nodes, *ends, weights)


def save_scores(path, shape, dtype="float32"):
    """`scores` unchanged to `output`."""
    node = helper.make_node("Identity", ["scores"], ["output"])
    return save_network(path, [node], {"scores": (dtype, shape)}, {"output": (dtype, shape)})


def run(path, **feed):
    (answer,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed)
    return answer


def pictures(batch):
    return np.random.default_rng(batch).integers(0, 256, (batch, *SIZE, 3), np.uint8)


def chw(images, dtype="float32"):
    return np.stack([sub_mean_chw(image.transpose(2, 0, 1), MEANS[dtype]) for image in images]).astype(dtype)


def labels_of(scores):
    return np.stack([argmax_classes(score) for score in scores])
