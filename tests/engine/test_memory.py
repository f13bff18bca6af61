"""Both back ends of GPU memory on stand-ins of their libraries; tests/gpu runs them on a GPU."""

import ast
import functools
import gc
import inspect
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from inference_checks import make_networks, reference, require_equal
from onnx_networks import mixed_feed
from standin.cuda import FakeGpu, cudaError_t, installed
from standin.device import StandInError

from workbench.core.errors import BackendUnavailableError, DeviceError, DriverError, InputError
from workbench.engine import memory as device_memory
from workbench.engine.memory import _CudaPythonMemory, _PyCudaMemory, open_memory


@pytest.fixture
def gpu():
    return FakeGpu()


@pytest.fixture
def pycuda(gpu):
    with installed(gpu) as module:
        yield module
        assert not module.stack  # every push was popped


@pytest.fixture(params=["cuda-python", "pycuda"])
def memory(request, pycuda):
    return open_memory(request.param)


def round_trip(memory, data):
    """Through the GPU and back."""
    nbytes = data.nbytes
    with memory.active():
        stream = memory.create_stream()
        first, second, address = memory.allocate_pinned(nbytes), memory.allocate_pinned(nbytes), memory.allocate(nbytes)
        first[:] = data.reshape(-1).view(np.uint8)
        second[:] = 0
        memory.copy_to_device(address, first, nbytes, stream)
        memory.copy_to_host(second, address, nbytes, stream)
        before = second.copy()
        memory.synchronize(stream)
        memory.free(address)
        memory.destroy_stream(stream)
    assert not before.any()  # the copies are asynchronous
    return second


def test_bytes_come_back_and_everything_is_given_back(memory, gpu):
    data = np.random.default_rng(0).standard_normal(1001)
    back = round_trip(memory, data)
    np.testing.assert_array_equal(back.view(np.float64), data)
    assert not gpu.device and not gpu.streams
    assert len(gpu.host) == 1  # the view keeps it
    view = back[3:5]
    del back
    gc.collect()
    assert len(gpu.host) == 1
    del view
    gc.collect()
    assert gpu.live == 0


def test_it_names_its_gpu_and_tells_the_free_memory(memory):
    assert memory.device_name == "Fake GPU"
    with memory.active():
        assert memory.memory_info() == (10, 20)


def test_every_thread_may_use_it(memory):
    data, problems = np.arange(1000.0), []

    def work():
        try:
            for _ in range(5):
                np.testing.assert_array_equal(round_trip(memory, data).view(np.float64), data)
        except BaseException as error:  # reported below
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not problems


def test_pinned_memory_that_a_thread_leaves_behind_is_freed_in_another(memory, gpu):
    kept = []

    def work():
        with memory.active():
            kept.append(memory.allocate_pinned(100))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert len(gpu.host) == 1
    kept.clear()
    gc.collect()
    assert gpu.live == 0


@pytest.mark.parametrize(("function", "pinned"), [("cudaMalloc", False), ("cudaHostAlloc", True)])
def test_a_full_gpu_is_an_error_that_says_what_to_do(pycuda, gpu, function, pinned):
    memory = _CudaPythonMemory()
    gpu.fail[function] = cudaError_t.cudaErrorMemoryAllocation
    what = "pinned host memory" if pinned else "GPU memory"
    message = rf"{function} failed for 2.0 MiB of {what}: cudaErrorMemoryAllocation \(2\), text of 2; take a smaller"
    with memory.active(), pytest.raises(DeviceError, match=message):
        (memory.allocate_pinned if pinned else memory.allocate)(2 << 20)
    assert "cudaGetLastError" in gpu.log  # so that no other library meets it


def test_an_error_of_queued_work_says_that_the_process_must_restart(pycuda, gpu):
    memory = _CudaPythonMemory()
    with memory.active():
        stream = memory.create_stream()
        gpu.fail_in_queue = cudaError_t.cudaErrorIllegalAddress
        with pytest.raises(DeviceError, match=r"cudaErrorIllegalAddress \(700\).*restart the kernel"):
            memory.synchronize(stream)


def test_an_error_of_pycuda_is_translated(pycuda, gpu):
    memory = _PyCudaMemory()
    with memory.active():
        stream = memory.create_stream()
        gpu.fail_in_queue = "anything"
        with pytest.raises(DeviceError, match=r"cuStreamSynchronize failed: LogicError, .*illegal.*restart the kernel"):
            memory.synchronize(stream)
        gpu.fail["mem_alloc"] = pycuda.MemoryError("cuMemAlloc failed: out of memory")
        with pytest.raises(DeviceError, match=r"cuMemAlloc failed for 1.0 MiB of GPU memory: .*take a smaller batch"):
            memory.allocate(1 << 20)
        memory.destroy_stream(stream)


def test_a_driver_that_is_too_old_is_a_driver_error(pycuda, gpu):
    gpu.fail["cudaGetDevice"] = cudaError_t.cudaErrorInsufficientDriver
    with pytest.raises(DriverError, match="cudaGetDevice found no usable NVIDIA driver or GPU: cudaErrorInsufficient"):
        _CudaPythonMemory()


def test_the_gpu_that_was_current_is_current_again(pycuda, gpu):
    memory = _CudaPythonMemory()
    runtime = sys.modules["cuda.bindings.runtime"]
    runtime.cudaSetDevice(3)
    with memory.active():
        assert runtime.cudaGetDevice()[1] == 0
    assert runtime.cudaGetDevice()[1] == 3


def test_pycuda_retains_the_primary_context_once(pycuda):
    for _ in range(3):
        _PyCudaMemory()
    assert pycuda.retained == 1


def test_pycuda_without_a_current_context_is_noticed(pycuda):
    with pytest.raises(StandInError, match="without a current context"):
        _PyCudaMemory().allocate(1)


def test_a_graph_replays_what_was_recorded(pycuda, gpu):
    memory = _CudaPythonMemory()
    with memory.active():
        stream = memory.create_stream()
        host, address = memory.allocate_pinned(4), memory.allocate(4)
        host[:] = 1
        graph = memory.capture(stream, functools.partial(memory.copy_to_device, address, host, 4, stream))
        memory.synchronize(stream)
        assert gpu.device[address][0] == 0xA5  # recorded, not run
        for value in (2, 3):
            host[:] = value
            memory.launch(graph, stream)
            memory.synchronize(stream)
            assert gpu.device[address].tolist() == [value] * 4
        memory.destroy_graph(graph)
        memory.free(address)
        memory.destroy_stream(stream)
    del host
    gc.collect()  # the recorded copy in the fake held a view
    assert gpu.live == 0


def test_a_failed_recording_leaves_the_stream_usable(pycuda, gpu):
    memory = _CudaPythonMemory()

    def fail():
        raise KeyError("anything")

    with memory.active():
        stream = memory.create_stream()
        with pytest.raises(KeyError):
            memory.capture(stream, fail)
        assert gpu.capturing is None and not gpu.graphs
        memory.destroy_stream(stream)


def test_pycuda_has_no_graphs(pycuda):
    memory = _PyCudaMemory()
    assert not memory.can_capture
    for use in (
        lambda: memory.capture(1, lambda: None),
        lambda: memory.launch(None, 1),
        lambda: memory.destroy_graph(None),
    ):
        with pytest.raises(InputError, match="pycuda offers no CUDA graphs"):
            use()


@pytest.mark.parametrize("name", ["cuda-python", "pycuda"])
def test_a_whole_inference_on_each_back_end(name, pycuda, gpu, tmp_path):
    """The engine is a function here: it shows that addresses, sizes and order reach the library as they must."""
    from workbench.engine.inference import allocate_buffers, do_inference

    path = make_networks(tmp_path) / "mixed.onnx"
    engine = FunctionEngine(path, gpu)
    for graph in (False, True) if name == "cuda-python" else (False,):
        with allocate_buffers(engine, 4, memory=name, cuda_graph=graph) as buffers:
            for seed, batch in enumerate((4, 2, 2, 2, 1, 4)):
                feed = mixed_feed(batch, seed)
                require_equal(do_inference(engine, feed, buffers), reference(path, feed))
            assert buffers.replays == (2 if graph else 0)
        gc.collect()
        assert gpu.live == 0


class FunctionEngine:
    """An engine whose context computes with ONNX Runtime on the fake GPU's memory."""

    def __init__(self, path, gpu):
        from standin.runtime import open_standin

        described, _ = open_standin(path)
        self.inputs, self.outputs, self.profiles = described.inputs, described.outputs, described.profiles
        self.cuda_engine, self.logger, self._path, self._gpu = self, None, path, gpu

    def create_execution_context(self):
        return FunctionContext(self)


class FunctionContext:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses = engine, {}, {}

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name, memory):
        self.addresses[name] = memory
        return True

    def get_tensor_shape(self, name):
        return tuple(self.shapes["left"][0] if size is None else size for size in self.engine.outputs[name].shape)

    def execute_async_v3(self, stream_handle):
        gpu, engine, shapes = self.engine._gpu, self.engine, dict(self.shapes)

        def run():
            feed = {}
            for name, shape in shapes.items():
                dtype = np.dtype(engine.inputs[name].dtype)
                raw = gpu.view(gpu.device, self.addresses[name], int(np.prod(shape)) * dtype.itemsize)
                feed[name] = raw.view(dtype).reshape(shape)
            for name, answer in reference(engine._path, feed).items():
                raw = answer.reshape(-1).view(np.uint8)
                gpu.view(gpu.device, self.addresses[name], raw.size)[:] = raw

        (gpu.streams[stream_handle] if gpu.capturing is None else gpu.capturing).append(run)
        return True


def test_auto_takes_cuda_python_first_and_pycuda_where_that_is_missing(pycuda, monkeypatch):
    assert open_memory().name == "cuda-python"
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    assert open_memory().name == "pycuda"
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(BackendUnavailableError, match=r"cuda-python is not installed.*; pycuda is not installed.*nvcc"):
        open_memory()


def test_an_unknown_back_end_is_refused():
    with pytest.raises(InputError, match="got memory='cupy', expected 'auto', 'cuda-python', 'pycuda'"):
        open_memory("cupy")


@pytest.mark.parametrize("name", ["cuda-python", "auto"])
def test_without_a_driver_the_sentence_is_about_the_driver(name, pycuda, monkeypatch):
    def no_gpu():
        raise DriverError("no NVIDIA driver was found")

    monkeypatch.setattr(device_memory, "require_gpu", no_gpu)
    with pytest.raises(DriverError, match="no NVIDIA driver was found"):
        open_memory(name)


def test_a_library_that_does_not_load_is_told_from_a_missing_package(monkeypatch):
    def broken(name):
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(device_memory, "importlib", types.SimpleNamespace(import_module=broken))
    with pytest.raises(BackendUnavailableError, match="pycuda is installed, but a library it needs is missing"):
        open_memory("pycuda")


def test_cuda_python_has_every_function_that_is_called():
    """Signatures of NVIDIA's own package, which imports without a GPU."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    calls = [
        (node.args[0].value, len(node.args) - 1)
        for node in ast.walk(ast.parse(inspect.getsource(_CudaPythonMemory)))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "_call"
    ]
    assert len(calls) >= 18
    for name, given in calls:
        documented = (getattr(runtime, name).__doc__ or "").splitlines()[0]
        expected = [part for part in documented.partition("(")[2].rpartition(")")[0].split(", ") if part]
        assert given == len(expected), f"{documented} is called with {given} arguments"
    for name in ("cudaHostAllocDefault", "cudaStreamNonBlocking"):
        assert isinstance(int(getattr(runtime, name)), int)
    assert runtime.cudaMemcpyKind.cudaMemcpyHostToDevice and runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
    assert runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal


MUTATIONS = {
    "swap the directions": ("cudaMemcpyKind.cudaMemcpyHostToDevice", "cudaMemcpyKind.cudaMemcpyDeviceToHost"),
    "swap the directions on pycuda": (
        "copy, address, host[:nbytes], self._streams[stream])",
        "self._cuda.memcpy_dtoh_async, host[:nbytes], address, self._streams[stream])",
    ),
    "copy all of it on pycuda": (
        "copy, host[:nbytes], address",
        "copy, host, address",
    ),
    "never pop the context": ("            self._cuda.Context.pop()", "            pass"),
    "never push the context": ('self._call("cuCtxPushCurrent", self._context.push)', "pass"),
    "do not wait": ('self._call("cudaStreamSynchronize", stream)', "pass"),
    "do not wait on pycuda": ('self._call("cuStreamSynchronize", self._streams[stream].synchronize)', "pass"),
    "never free": ('self._call("cudaFree", address)', "pass"),
    "never free on pycuda": ('self._call("cuMemFree", self._allocations.pop(address).free)', "pass"),
    "never free pinned memory": ('self._call("cudaFreeHost", address)', "pass"),
    "free pinned memory on pycuda without its context": (
        'self.active():\n            self._call("cuMemFreeHost", allocation.free)',
        'suppress():\n            self._call("cuMemFreeHost", allocation.free)',
    ),
    "free pinned memory at once": ("weakref.finalize(owner, free).atexit = False", "free()"),
    "ignore errors": ("        if int(error):", "        if False:"),
    "wait for the default stream": ("self._cuda.cudaStreamNonBlocking)", "0)"),
    "never destroy a stream": ('self._call("cudaStreamDestroy", stream)', "pass"),
    "capture what other threads do": ("cudaStreamCaptureModeThreadLocal", "cudaStreamCaptureModeGlobal"),
    "keep the recorded graph": (
        '        finally:\n            self._call("cudaGraphDestroy", graph)',
        "        finally:\n            pass",
    ),
}


def check_memory(module, gpu, pycuda, folder):
    """A short run of both back ends, red for every mutation above."""
    from workbench.engine import inference

    for kind in (module._CudaPythonMemory, module._PyCudaMemory):
        memory = kind()
        with memory.active():  # larger than the copy, so that a copy of all of it is seen
            stream, address, host = memory.create_stream(), memory.allocate(8), memory.allocate_pinned(8)
            host[:] = range(8)
            memory.copy_to_device(address, host, 8, stream)
            memory.synchronize(stream)
            host[:] = 99
            memory.copy_to_host(host, address, 4, stream)
            memory.synchronize(stream)
            assert host.tolist() == [0, 1, 2, 3, 99, 99, 99, 99]
            memory.free(address)
            memory.destroy_stream(stream)
        del host
        engine = FunctionEngine(folder / "mixed.onnx", gpu)
        with inference.allocate_buffers(engine, 4, memory=memory, cuda_graph=memory.can_capture) as buffers:
            for seed in range(3):
                feed = mixed_feed(4, seed)
                require_equal(inference.do_inference(engine, feed, buffers), reference(folder / "mixed.onnx", feed))
        gc.collect()
        assert gpu.live == 0 and not pycuda.stack
    gpu.fail["cudaMalloc"] = cudaError_t.cudaErrorMemoryAllocation
    memory = module._CudaPythonMemory()
    with memory.active(), pytest.raises(DeviceError):
        memory.allocate(8)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["none", *MUTATIONS])
def test_each_fault_planted_in_a_back_end_is_noticed(name, tmp_path, monkeypatch):
    source = Path(device_memory.__file__).read_text(encoding="utf-8")
    before, after = MUTATIONS.get(name, ("self", "self"))
    assert name == "none" or source.count(before) == 1, before
    module = types.ModuleType("mutated_memory")
    exec(compile(source.replace(before, after), "mutated_memory.py", "exec"), vars(module))
    module.require_gpu = lambda: None
    gpu = FakeGpu()
    with installed(gpu) as pycuda:
        if name == "none":
            check_memory(module, gpu, pycuda, make_networks(tmp_path))
            return
        with pytest.raises(Exception):  # noqa: B017  (of whatever kind: the check is red)
            check_memory(module, gpu, pycuda, make_networks(tmp_path))
