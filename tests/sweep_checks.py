"""What the tests of sweeps share: a small segmentation network, its inputs, and points measured in this process."""

import json

import numpy as np
from networks import random_input
from onnx import helper
from onnx_networks import save_network
from PIL import Image

from workbench.measure.point_child import carry_out
from workbench.measure.sweep import sweep
from workbench.runners.backends import open_runner

SIZE, CLASSES = (16, 24), 5
LARGE = 2000.0


def save_segmenter(path, inner=1.0):
    """Three convolutions: (batch, 3, 16, 24) to logits (batch, 5, 16, 24); `inner` scales what the first gives."""
    random = np.random.default_rng(5)
    shapes = {"first": (8, 3, 3, 3), "second": (8, 8, 1, 1), "third": (CLASSES, 8, 1, 1)}
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    weights["first"], weights["second"] = weights["first"] * np.float32(inner), weights["second"] / np.float32(inner)
    nodes = [
        helper.make_node("Conv", ["input", "first"], ["features"], "encoder", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["features"], ["active"], "relu"),
        helper.make_node("Conv", ["active", "second"], ["small"], "squeeze"),
        helper.make_node("Conv", ["small", "third"], ["output"], "decoder"),
    ]
    shapes = {"output": ("float32", ("batch", CLASSES, *SIZE))}
    return save_network(path, nodes, {"input": ("float32", ("batch", 3, *SIZE))}, shapes, weights)


def scenes(count=3, scale=10.0):
    return [(f"scene {k}", {"input": random_input((1, 3, *SIZE), k, scale)}) for k in range(count)]


def answer(path, feed):
    with open_runner(path) as runner:
        return runner.infer(feed)["output"]


def truths(path, feeds):
    """The network's own classes, with every fifth row of pixels void and the left third wrong."""
    labels = {}
    for name, feed in feeds:
        found = answer(path, feed)[0].argmax(0)
        found[:, :8] = (found[:, :8] + 1) % CLASSES
        found[::5] = 255
        labels[name] = found.astype(np.uint8)
    return labels


def run_here(order, timeout_s):
    """Stands in for `run_child`: a process for each point takes two seconds."""
    return carry_out(json.loads(json.dumps(order)))


def quick(path, feeds=None, **options):
    """A sweep with one timed call, without a bar; the reference and every precision unless others are named."""
    options = {"precision": ("fp32", "tf32", "fp16", "bf16", "int8", "fp8"), "runs": 1, "progress": False} | options
    return sweep(path, feeds=feeds, **options)


def save_picture(path, array):
    Image.fromarray(array).save(path)


def save_folders(tmp_path):
    """Three pictures and their label maps."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    random = np.random.default_rng(0)
    for k in range(3):
        save_picture(images / f"{k}.jpg", random.integers(0, 256, (*SIZE, 3), np.uint8))
        save_picture(labels / f"{k}.png", random.integers(0, CLASSES, SIZE).astype(np.uint8))
    return images, labels
