"""One contract for every runner: the same questions, whatever computes."""

import threading
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import random_input, small_network, two_input_network
from standin.runtime import open_standin

from workbench.core.contract import Runner, RunnerInfo, TensorSpec
from workbench.core.driver import Gpu
from workbench.core.errors import (
    BackendUnavailableError,
    DeviceError,
    EngineLoadError,
    FeedError,
    InputError,
    ModelError,
)
from workbench.export.keras_model import keras_to_onnx, keras_to_pb
from workbench.onnx_graph import session
from workbench.onnx_graph.session import prepare_cuda, providers, weight_types
from workbench.parity.stages import verify
from workbench.runners import onnxruntime_runner, tensorrt_runner
from workbench.runners.backends import open_runner
from workbench.runners.compare import compare_runners, shared_specs
from workbench.runners.onnxruntime_runner import OnnxRuntimeRunner

KINDS = ("keras", "saved_model", "frozen_graph", "onnxruntime", "tensorrt")
BACKENDS = {
    "keras": "keras",
    "saved_model": "tensorflow",
    "frozen_graph": "tensorflow",
    "onnxruntime": "onnxruntime",
    "tensorrt": "tensorrt",
}


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contract")
    model = small_network()
    model.export(folder / "saved_model", verbose=False)
    keras_to_pb(model, folder / "small.pb")
    keras_to_onnx(model, folder / "small.onnx", progress=False)
    keras_to_onnx(two_input_network(), folder / "two.onnx", progress=False)
    return {
        "keras": model,
        "saved_model": folder / "saved_model",
        "frozen_graph": folder / "small.pb",
        "onnxruntime": folder / "small.onnx",
        "tensorrt": folder / "small.plan",
        "two inputs": folder / "two.onnx",
    }


@pytest.fixture(autouse=True)
def standin(monkeypatch):
    """In place of a GPU: `x.plan` opens `x.onnx` on the stand-in, so the runner is tested, and TensorRT is not."""
    memories = []

    def load_engine(path, plugins=()):
        if not Path(path).with_suffix(".onnx").exists():
            raise EngineLoadError(f"{path} does not exist")
        engine, memory = open_standin(Path(path).with_suffix(".onnx"))
        memories.append(memory)
        return engine

    monkeypatch.setattr(tensorrt_runner, "load_engine", load_engine)
    monkeypatch.setattr(tensorrt_runner, "open_memory", lambda name: memories[-1])
    return memories


@pytest.fixture(params=KINDS)
def runner(request, targets, standin):
    with open_runner(targets[request.param]) as runner:
        assert runner.info.backend == BACKENDS[request.param]
        yield runner


def test_it_says_what_it_is_and_why(runner):
    assert runner.info.version in runner.info.name
    assert runner.reason.startswith(runner.info.name)


def test_it_names_its_tensors(runner):
    assert runner.inputs["input"].shape == (None, 3, 32, 64)
    assert runner.inputs["input"].dtype == "float32"
    assert list(runner.outputs) == ["output"]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_it_takes_any_batch_and_gives_the_reference_answer(runner, batch):
    x = random_input((batch, 3, 32, 64), batch, scale=50)
    expected = np.asarray(small_network()(x, training=False))
    got = runner.infer({"input": x})["output"]
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    # float32 sums in another order: measured below 1e-6 of the range
    assert np.abs(got - expected).max() < 1e-5 * np.ptp(expected)


def test_it_gives_fresh_arrays_and_leaves_the_feed_alone(runner):
    x, y = random_input((1, 3, 32, 64), 1, 50), random_input((1, 3, 32, 64), 2, 50)
    kept = x.copy()
    first = runner.infer({"input": x})["output"]
    snapshot = first.copy()
    second = runner.infer({"input": y})["output"]
    np.testing.assert_array_equal(first, snapshot)
    np.testing.assert_array_equal(x, kept)
    assert not np.shares_memory(first, second)
    first[...] = 0  # the caller owns it


def test_it_takes_arrays_that_are_not_contiguous(runner):
    x = random_input((1, 32, 64, 3), 3, 50)
    view = x.transpose(0, 3, 1, 2)
    expected = runner.infer({"input": np.ascontiguousarray(view)})["output"]
    np.testing.assert_array_equal(runner.infer({"input": view})["output"], expected)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({}, "missing"),
        ({"input": np.zeros((1, 32, 64, 3), np.float32)}, "transpose"),
        ({"input": np.zeros((3, 32, 64), np.float32)}, r"x\[None\]"),
        ({"input": np.zeros((1, 3, 32, 64))}, "astype"),
        ({"input": np.full((1, 3, 32, 64), np.nan, np.float32)}, "NaN"),
    ],
)
def test_a_wrong_feed_is_refused_before_anything_runs(runner, feed, message):
    with pytest.raises(FeedError, match=message):
        runner.infer(feed)


def test_a_closed_runner_says_so(runner):
    runner.close()
    runner.close()
    with pytest.raises(InputError, match="closed; open it again"):
        runner.infer({"input": np.zeros((1, 3, 32, 64), np.float32)})


def test_outputs_come_by_name_from_a_network_with_two(targets):
    feed = {"left": random_input((1, 8), 1), "right": random_input((1, 8), 2)}
    with open_runner(two_input_network()) as keras, open_runner(targets["two inputs"]) as onnx:
        expected, got = keras.infer(feed), onnx.infer(feed)
    assert list(got) == list(expected)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "backend", "message"),
    [
        ("onnxruntime", "keras", "got an .onnx file for backend='keras'"),
        ("keras", "onnxruntime", "convert the model first"),
        ("tensorrt", "onnxruntime", "got a TensorRT plan for backend='onnxruntime'; use backend='tensorrt'"),
        ("onnxruntime", "tensorrt", "got an .onnx file for backend='tensorrt'"),
        ("keras", "abacus", "got backend='abacus', expected one of"),
    ],
)
def test_a_backend_that_cannot_run_the_target_is_refused(targets, kind, backend, message):
    with pytest.raises(InputError, match=message):
        open_runner(targets[kind], backend)


def test_an_onnx_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        open_runner(tmp_path / "nothing.onnx")


# The TensorRT runner on the stand-in: how it uses the API. What TensorRT would answer is not tested here.


def test_a_plan_with_several_inputs_and_outputs(targets):
    feed = {"left": random_input((3, 8), 1), "right": random_input((3, 8), 2)}
    with open_runner(targets["two inputs"]) as onnx, open_runner(targets["two inputs"].with_suffix(".plan")) as plan:
        expected, got = onnx.infer(feed), plan.infer(feed)
    assert list(got) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)


def test_a_plan_keeps_its_buffers_and_lets_them_grow(targets, standin):
    with open_runner(targets["tensorrt"]) as runner:
        memory = standin[-1]
        assert memory.live == 0  # nothing before the first batch is known
        counts = []
        for batch in (2, 1, 2, 4, 3, 4):
            runner.infer({"input": random_input((batch, 3, 32, 64), batch)})
            counts.append(memory.allocations)
        assert counts == [4, 4, 4, 8, 8, 8]
        assert len(memory.areas) == 2
    assert memory.live == 0


def test_a_batch_outside_the_profile_of_a_plan_is_refused(targets):
    with open_runner(targets["tensorrt"]) as runner:
        with pytest.raises(InputError, match="got batch_size=9, but this engine takes batches of 1 to 8"):
            runner.infer({"input": random_input((9, 3, 32, 64))})
        assert runner.infer({"input": random_input((8, 3, 32, 64))})["output"].shape == (8, 20, 32, 64)


def test_several_threads_may_use_one_plan(targets):
    inputs = [random_input((1 + seed % 3, 3, 32, 64), seed, 50) for seed in range(6)]
    with open_runner(targets["onnxruntime"]) as onnx:
        expected = [onnx.infer({"input": x})["output"] for x in inputs]
    with open_runner(targets["tensorrt"]) as runner:
        problems = []

        def work(index):
            try:
                for _ in range(3):
                    got = runner.infer({"input": inputs[index]})["output"]
                    np.testing.assert_array_equal(got, expected[index])
            except BaseException as error:  # reported below
                problems.append(error)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not problems


def test_a_plan_closes_after_an_error_of_the_gpu(targets, standin):
    with pytest.raises(DeviceError, match="planted"), open_runner(targets["tensorrt"]) as runner:
        runner.infer({"input": random_input((1, 3, 32, 64))})
        standin[-1].fail_in_queue = DeviceError("planted")
        runner.infer({"input": random_input((1, 3, 32, 64))})
    assert standin[-1].live == 0


def test_a_plan_without_gpu_memory_closes_its_engine(targets, monkeypatch):
    engines = []
    monkeypatch.setattr(tensorrt_runner, "open_memory", missing_memory)
    load = tensorrt_runner.load_engine
    monkeypatch.setattr(tensorrt_runner, "load_engine", lambda path, plugins: engines.append(load(path)) or engines[-1])
    with pytest.raises(BackendUnavailableError, match="cuda-python is not installed"):
        open_runner(targets["tensorrt"])
    assert repr(engines[0]).endswith("(closed)>")


def missing_memory(name):
    raise BackendUnavailableError("cuda-python is not installed; run: pip install cuda-python")


def test_a_plan_can_be_verified_like_any_other_form(targets):
    report = verify(targets["keras"], targets["tensorrt"], progress=False)
    assert report.passed
    assert "TensorRT stand-in of the tests" in report.to_text()


def test_the_stand_in_says_in_its_name_that_it_is_one(targets):
    with open_runner(targets["tensorrt"]) as runner:
        assert "stand-in" in runner.info.version and "computed by ONNX Runtime" in runner.info.device


# ONNX Runtime on a GPU, on a machine that has none; tests/gpu runs it where there is one.


def test_onnx_runtime_for_the_cpu_refuses_a_gpu(targets):
    with pytest.raises(BackendUnavailableError, match="is the build for the CPU; run: pip uninstall"):
        OnnxRuntimeRunner(targets["onnxruntime"], device="cuda")
    with pytest.raises(InputError, match="got device='tpu' and tf32=False, expected 'cpu', or 'cuda'"):
        OnnxRuntimeRunner(targets["onnxruntime"], device="tpu")
    with pytest.raises(InputError, match="got device='cpu' and tf32=True"):
        OnnxRuntimeRunner(targets["onnxruntime"], tf32=True)


def test_tf32_is_off_unless_asked_for_or_needed_by_float16_weights(tmp_path):
    assert providers("cuda")[0] == ("CUDAExecutionProvider", {"use_tf32": "0"})
    assert providers("cuda", tf32=True)[0] == ("CUDAExecutionProvider", {"use_tf32": "1"})
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT16, (3,), np.ones(3, np.float16))
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, ("batch", 3)) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "half.onnx")
    assert weight_types(onnx.load(tmp_path / "half.onnx")) == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("FLOAT", {"tf32": False, "optimise": "all"}),
        ("FLOAT16", {"tf32": True, "optimise": "all"}),
        ("FLOAT8E4M3FN", {"tf32": False, "optimise": "basic"}),
    ],
)
def test_onnx_runtime_is_opened_as_the_weights_need(tmp_path, monkeypatch, kind, expected):
    """Why: `workbench.onnx_graph.session.providers` and `FLOAT8`; nothing here has a GPU, so the call is caught."""
    asked = []

    def open_session(path, purpose, **options):
        asked.append(options)
        return types.SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider"])

    monkeypatch.setattr(onnxruntime_runner, "open_session", open_session)
    monkeypatch.setattr(onnxruntime_runner, "prepare_cuda", lambda runtime: "a GPU")
    weight = onnx.helper.make_tensor("w", getattr(onnx.TensorProto, kind), (3,), np.ones(3, np.float32))
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ("batch", 3)) for name in "xy"]
    nodes = [
        onnx.helper.make_node("Cast", ["w"], ["f"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    opsets = [onnx.helper.make_opsetid("", 19)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "w.onnx")
    OnnxRuntimeRunner(tmp_path / "w.onnx", device="cuda", threads=3)
    assert asked == [{"device": "cuda", "threads": 3, "loops": False, **expected}]


def test_the_cuda_libraries_of_other_packages_are_loaded_and_nothing_is_printed(tmp_path, monkeypatch, capsys):
    for folder in ("nvidia/cu13/lib", "nvidia/cudnn/lib", "nvidia/nccl/lib"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(session, "require_gpu", lambda: Gpu("Fake GPU", (9, 0), 1))
    loaded = []

    def preload_dlls(directory=None):
        print("Failed to load libcufft.so")
        loaded.append(directory and Path(directory).relative_to(tmp_path).as_posix())

    runtime = types.SimpleNamespace(
        __version__="1", preload_dlls=preload_dlls, get_available_providers=lambda: ["CUDAExecutionProvider"]
    )
    assert prepare_cuda(runtime) == "Fake GPU"
    assert loaded == ["nvidia/cu13/lib", "nvidia/cudnn/lib", None]
    assert capsys.readouterr().out == ""


def test_onnx_runtime_on_a_gpu_has_tf32_off():
    assert providers("cuda")[0] == ("CUDAExecutionProvider", {"use_tf32": "0"})
    assert providers("cpu") == ["CPUExecutionProvider"]


def test_onnx_runtime_that_falls_back_to_the_cpu_is_refused(targets, monkeypatch):
    monkeypatch.setattr(onnxruntime_runner, "prepare_cuda", lambda runtime: "a GPU")
    monkeypatch.setattr(session, "providers", lambda device, tf32: ["CPUExecutionProvider"])
    with pytest.raises(BackendUnavailableError, match="ONNX Runtime fell back to the CPU"):
        OnnxRuntimeRunner(targets["onnxruntime"], device="cuda")


# Two runners on the same feeds.


class Sum(Runner):
    """Adds twice its second input to its first, whatever they are called."""

    def __init__(self, names, shape=(None, 3)):
        specs = {name: TensorSpec(name, shape, "float32") for name in names}
        super().__init__(RunnerInfo("onnxruntime", "1", "CPU"), specs, {"y": TensorSpec("y", shape, "float32")})

    def _infer(self, feed):
        first, second = (feed[name] for name in self.inputs)
        return {"y": first + 2 * second}


def test_inputs_of_other_names_are_fed_by_position():
    feeds = [(str(seed), {"a": np.float32([[1, seed, 3]]), "b": np.float32([[seed, 5, 6]])}) for seed in range(3)]
    assert compare_runners(Sum(["a", "b"]), Sum(["left", "right"]), feeds).passed
    assert not compare_runners(Sum(["a", "b"]), Sum(["b", "a"]), feeds).passed  # by name, so the sum is another


def test_the_sizes_that_either_runner_fixes_are_shared():
    found = shared_specs(Sum(["a", "b"], (None, 3, None)), Sum(["left", "right"], (2, None, None)))
    assert [(spec.name, spec.shape) for spec in found.values()] == [("a", (2, 3, None)), ("b", (2, 3, None))]
    with pytest.raises(InputError, match="convert the model again for the same size"):
        shared_specs(Sum(["a", "b"], (1, 3)), Sum(["a", "b"], (2, 3)))
    with pytest.raises(InputError, match="are they the same network"):
        shared_specs(Sum(["a", "b"]), Sum(["a", "b", "c"]))
