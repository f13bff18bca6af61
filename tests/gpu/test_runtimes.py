"""What TensorRT's own runtimes refuse on this GPU, in the words of this package."""

import hashlib

import pytest
from onnx_networks import save_picture_network

from workbench.core.driver import require_gpu
from workbench.core.errors import DriverError, EngineLoadError
from workbench.engine.build import build_engine, save_engine
from workbench.engine.load import load_engine
from workbench.engine.plan import Plan, PlanManifest
from workbench.engine.tensorrt_api import make_logger, make_runtime, open_flavour, unsupported_gpu


def plan_for(flavour, data):
    """A plan of any bytes, with a manifest that lets it pass as far as the runtime."""
    return Plan(
        data,
        PlanManifest(
            flavour=flavour.name,
            version=flavour.version,
            compute_capability=None,
            gpu_name="",
            targets=(),
            onnx_name="model.onnx",
            onnx_sha256="0" * 64,
            plan_sha256=hashlib.sha256(data).hexdigest(),
            plan_bytes=len(data),
            precision="fp32",
            profiles=({},),
            options={"workspace_bytes": 1 << 28},
        ),
    )


@pytest.fixture
def lean():
    return open_flavour("tensorrt_lean")


@pytest.fixture(scope="module")
def rtx_plan(tmp_path_factory):
    """A real plan of TensorRT-RTX for another GPU generation, built here ahead of time."""
    path = save_picture_network(tmp_path_factory.mktemp("rtx") / "picture.onnx")
    return build_engine(path, flavour="tensorrt_rtx", targets=["sm89"], progress=False, cache=False)


@pytest.mark.needs("lean")
def test_the_lean_runtime_starts(lean):
    try:
        assert make_runtime(lean, make_logger(lean)) is not None
    except DriverError as error:  # its sentence is what a reader would see
        pytest.fail(str(error))


@pytest.mark.needs("lean")
def test_the_lean_runtime_refuses_an_empty_plan(lean, tmp_path, record_property):
    path = save_engine(plan_for(lean, b""), tmp_path / "empty.plan")
    with pytest.raises(EngineLoadError, match=r"empty\.plan is empty; build it again") as caught:
        load_engine(path)
    record_property("our text", str(caught.value).replace(str(tmp_path), ""))


@pytest.mark.needs("lean")
@pytest.mark.parametrize("size", [16, 4096])
def test_the_lean_runtime_refuses_garbage(lean, tmp_path, size, record_property):
    path = save_engine(plan_for(lean, bytes(range(16)) * (size // 16)), tmp_path / "garbage.plan")
    with pytest.raises(EngineLoadError, match=r"refuses .*garbage\.plan: .*; build it again") as caught:
        load_engine(path)
    assert "gives no reason" not in str(caught.value)
    record_property("our text", str(caught.value).replace(str(tmp_path), ""))


@pytest.mark.needs("lean", "rtx")
def test_the_lean_runtime_refuses_a_plan_of_rtx(lean, rtx_plan, tmp_path, record_property):
    path = save_engine(plan_for(lean, bytes(rtx_plan.data)), tmp_path / "rtx.plan")
    with pytest.raises(EngineLoadError, match=r"refuses .*rtx\.plan: .*; build it again") as caught:
        load_engine(path)
    record_property("our text", str(caught.value).replace(str(tmp_path), ""))


@pytest.mark.needs("rtx")
def test_rtx_refuses_a_gpu_that_it_does_not_support(rtx_plan, tmp_path, record_property):
    flavour, gpu = open_flavour("tensorrt_rtx"), require_gpu()
    if not unsupported_gpu(flavour, gpu):
        pytest.skip(f"gpu: {flavour.title} supports {gpu.name}")
    path = save_engine(rtx_plan, tmp_path / "rtx.plan")
    message = rf"cannot run here: TensorRT-RTX .* does not support this GPU .*compute capability {gpu.capability}"
    with pytest.raises(EngineLoadError, match=message) as caught:
        load_engine(path)
    record_property("our text", str(caught.value).replace(str(tmp_path), ""))


@pytest.mark.needs("rtx")
def test_rtx_itself_says_the_same(rtx_plan, record_property):
    """Past our own check, so that the list of GPUs in it is held against the runtime's."""
    flavour, gpu = open_flavour("tensorrt_rtx"), require_gpu()
    if not unsupported_gpu(flavour, gpu):
        pytest.skip(f"gpu: {flavour.title} supports {gpu.name}")
    logger = make_logger(flavour)
    runtime = make_runtime(flavour, logger)
    assert runtime.deserialize_cuda_engine(bytes(rtx_plan.data)) is None
    record_property("its text", logger.reasons())
    assert gpu.capability in logger.reasons()


@pytest.mark.needs("rtx")
def test_rtx_builds_for_other_gpus_on_this_one(rtx_plan):
    assert rtx_plan.manifest.targets == ("sm89",)
    assert bytes(rtx_plan.data[:4]) == b"vtrt"
