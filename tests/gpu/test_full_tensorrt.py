"""Build, save, load and run with the full TensorRT, against ONNX Runtime on the CPU.

They need the `tensorrt` package with its libraries. Where they have not been run, docs/verification.md says so.
"""

import threading
from dataclasses import replace

import numpy as np
import pytest
from onnx_networks import mixed_feed, picture, save_mixed_network, save_picture_network

from workbench.core.errors import EngineLoadError, InputError
from workbench.engine.build import build_engine, save_engine
from workbench.engine.inference import allocate_buffers, do_inference
from workbench.engine.load import load_engine
from workbench.runners.backends import open_runner
from workbench.runners.onnxruntime_runner import OnnxRuntimeRunner

pytestmark = pytest.mark.needs("tensorrt", "cuda-python")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Each network with its plan beside it."""
    folder = tmp_path_factory.mktemp("plans")
    networks = [save_picture_network(folder / "picture.onnx"), save_mixed_network(folder / "mixed.onnx")]
    for path in networks:
        plan = build_engine(path, flavour="tensorrt", progress=False, cache=False)
        save_engine(plan, path.with_suffix(".plan"))
    return {path.stem: path for path in networks}


def require_close(got, expected):
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].shape == array.shape and got[name].dtype == array.dtype
        # float32 in another order and with other kernels, TF32 off
        np.testing.assert_allclose(
            got[name].astype(np.float64), array.astype(np.float64), atol=1e-5 * max(np.ptp(array.astype(np.float64)), 1)
        )


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("memory", ["cuda-python", pytest.param("pycuda", marks=pytest.mark.needs("pycuda"))])
@pytest.mark.parametrize("name", ["picture", "mixed"])
def test_a_plan_gives_the_answer_of_onnx_runtime(paths, name, memory, graph):
    if graph and memory == "pycuda":
        pytest.skip("pycuda: offers no CUDA graphs")
    feeds = [
        {"input": picture(batch, seed)} if name == "picture" else mixed_feed(batch, seed)
        for seed, batch in enumerate((4, 1, 1, 1, 3, 4))
    ]
    with (
        OnnxRuntimeRunner(paths[name]) as cpu,
        load_engine(paths[name].with_suffix(".plan")) as engine,
        allocate_buffers(engine, 4, memory=memory, cuda_graph=graph) as buffers,
    ):
        for feed in feeds:
            require_close(do_inference(engine, feed, buffers), cpu.infer(feed))


def test_the_runner_keeps_the_contract(paths):
    path = paths["picture"].with_suffix(".plan")
    with OnnxRuntimeRunner(paths["picture"]) as cpu, open_runner(path) as runner:
        assert runner.info.backend == "tensorrt"
        assert runner.inputs["input"].shape == (None, 3, 16, 24)
        first = runner.infer({"input": picture(1, 1)})
        kept = first["output"].copy()
        for batch in (2, 5):
            require_close(runner.infer({"input": picture(batch)}), cpu.infer({"input": picture(batch)}))
        np.testing.assert_array_equal(first["output"], kept)
        with pytest.raises(InputError, match="takes batches of 1 to 8"):
            runner.infer({"input": picture(9)})


def test_two_threads_share_an_engine(paths):
    problems = []
    with (
        OnnxRuntimeRunner(paths["picture"]) as cpu,
        load_engine(paths["picture"].with_suffix(".plan")) as engine,
    ):
        expected = [cpu.infer({"input": picture(2, seed)}) for seed in range(2)]

        def work(seed):
            try:
                with allocate_buffers(engine, 2) as buffers:
                    for _ in range(100):
                        require_close(do_inference(engine, picture(2, seed), buffers), expected[seed])
            except BaseException as error:  # reported below
                problems.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert not problems


def test_a_plan_of_another_compute_capability_is_refused(paths, tmp_path):
    plan = build_engine(paths["picture"], flavour="tensorrt", progress=False, cache=False)
    other = replace(plan, manifest=replace(plan.manifest, compute_capability="1.0", gpu_name="another GPU"))
    with pytest.raises(EngineLoadError, match=r"was built on another GPU with 1\.0"):
        load_engine(save_engine(other, tmp_path / "other.plan"))


def test_a_plan_cut_short_is_refused(paths, tmp_path):
    plan = build_engine(paths["picture"], flavour="tensorrt", progress=False, cache=False)
    path = save_engine(plan, tmp_path / "short.plan")
    path.write_bytes(bytes(plan.data)[:-100])
    with pytest.raises(EngineLoadError, match="damaged"):
        load_engine(path)
