"""The part of the GPU benchmark that needs no GPU: two lanes give every answer, in order."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from segmenters import SIZE, chw, labels_of, run, save_segmenter
from standin.runtime import open_standin

from workbench.engine.inference import allocate_buffers
from workbench.onnx_graph.fuse import fuse_argmax, fuse_preprocessing

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def pipeline():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("gpu_pipeline", FOLDER / "gpu_pipeline.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_two_lanes_give_the_labels_of_the_unfused_network_in_order(tmp_path, pipeline, count):
    path, fused = save_segmenter(tmp_path / "plain.onnx"), tmp_path / "fused.onnx"
    fuse_argmax(fuse_preprocessing(path, fused.with_name("half.onnx")), fused)
    images = np.random.default_rng(5).integers(0, 256, (count, 1, *SIZE, 3), np.uint8)
    engine, memory = open_standin(fused)
    with allocate_buffers(engine, memory=memory) as one, allocate_buffers(engine, memory=memory) as two:
        answers = list(pipeline.Lanes([one, two]).run(images))
        assert pipeline.Lanes([one, two]).window([*images, np.zeros((1, *SIZE, 3), np.uint8)], 3) > 0
    assert len(answers) == count
    for answer, image in zip(answers, images, strict=True):
        assert np.array_equal(answer, labels_of(run(path, input=chw(image))))
