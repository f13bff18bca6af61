"""Small networks for Cityscapes' classes, and pictures for them."""

import numpy as np
from onnx import TensorProto, helper
from onnx_networks import save_network
from PIL import Image

from workbench.pictures.images import CITYSCAPES_MEAN

SIZE = (32, 64)


def street_nodes(fused):
    """A network of one convolution for Cityscapes' classes; fused takes uint8 pictures and gives labels."""
    before = [
        helper.make_node("Cast", ["input"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["first", "mean"], ["signed"]),
    ]
    after = [
        helper.make_node("ArgMax", ["logits"], ["long"], axis=1, keepdims=0),
        helper.make_node("Cast", ["long"], ["output"], to=TensorProto.UINT8),
    ]
    ends = ("signed", "logits") if fused else ("input", "output")
    middle = [helper.make_node("Conv", [ends[0], "kernel", "bias"], [ends[1]])]
    return before + middle + after if fused else middle


def save_street_network(path, fused=False):
    random = np.random.default_rng(5)
    weights = {
        "kernel": random.standard_normal((20, 3, 1, 1)).astype(np.float32),
        "bias": (random.standard_normal(20) * 40).astype(np.float32),
    }
    if fused:
        weights["mean"] = np.array(CITYSCAPES_MEAN, np.float32)[None, :, None, None]
        shapes = {"input": ("uint8", ("batch", *SIZE, 3))}, {"output": ("uint8", ("batch", *SIZE))}
    else:
        shapes = {"input": ("float32", ("batch", 3, *SIZE))}, {"output": ("float32", ("batch", 20, *SIZE))}
    return save_network(path, street_nodes(fused), *shapes, weights)


def picture(height=40, width=60, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
