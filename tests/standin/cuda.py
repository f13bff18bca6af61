"""Stand-ins for `cuda.bindings.runtime` and `pycuda.driver`: host memory that plays the GPU, and CUDA's error codes."""

import contextlib
import enum
import itertools
import sys
import threading
import types

import numpy as np

from standin.device import StandInError


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1


class FakeGpu:
    """Areas by address, streams with their queues, and what was called."""

    def __init__(self):
        self.device, self.host, self.streams, self.graphs, self.log = {}, {}, {}, {}, []
        self.fail = {}  # function -> error to return, once
        self.fail_in_queue = None
        self.capturing = None
        self.numbers = itertools.count(1)

    def new(self, areas, nbytes):
        data = np.full(max(nbytes, 1), 0xA5, np.uint8)
        areas[data.ctypes.data] = data
        return data.ctypes.data

    def view(self, areas, address, nbytes):
        for base, data in areas.items():
            if base <= address and address + nbytes <= base + data.size:
                return data[address - base : address - base + nbytes]
        raise StandInError("a copy from or to memory of the wrong kind, or beyond its end")

    def copy(self, target, source, nbytes, to_device, stream):
        areas = (self.device, self.host) if to_device else (self.host, self.device)
        into, out_of = self.view(areas[0], target, nbytes), self.view(areas[1], source, nbytes)
        queue = self.streams[stream] if self.capturing is None else self.capturing
        queue.append(lambda: into.__setitem__(slice(None), out_of))

    def synchronize(self, stream):
        queue, self.streams[stream] = self.streams[stream], []
        failure, self.fail_in_queue = self.fail_in_queue, None
        if failure is None:
            for run in queue:
                run()
        return failure

    @property
    def live(self):
        return len(self.device) + len(self.host) + len(self.streams) + len(self.graphs)


def make_cuda_runtime(gpu):
    """The functions of `cuda.bindings.runtime` that the package calls, over a FakeGpu."""
    ok, errors = cudaError_t.cudaSuccess, cudaError_t
    current = threading.local()

    def function(call):
        def wrapped(*arguments):
            gpu.log.append(call.__name__)
            failure = gpu.fail.pop(call.__name__, None)
            if failure is not None:
                return (failure, None)
            result = call(*arguments)
            return result if isinstance(result, tuple) else (ok, result)

        wrapped.__name__ = call.__name__
        return wrapped

    def cudaGetDevice():
        return getattr(current, "device", 0)

    def cudaSetDevice(device):
        current.device = device
        return (ok,)

    def cudaMalloc(size):
        return gpu.new(gpu.device, size)

    def cudaFree(devPtr):
        return (ok,) if gpu.device.pop(devPtr, None) is not None else (errors.cudaErrorInvalidValue,)

    def cudaHostAlloc(size, flags):
        return gpu.new(gpu.host, size)

    def cudaFreeHost(ptr):
        return (ok,) if gpu.host.pop(ptr, None) is not None else (errors.cudaErrorInvalidValue,)

    def cudaStreamCreateWithFlags(flags):
        if flags != 1:
            raise StandInError("a stream that waits for the default stream")
        stream = 1000 + next(gpu.numbers)
        gpu.streams[stream] = []
        return stream

    def cudaStreamDestroy(stream):
        del gpu.streams[stream]
        return (ok,)

    def cudaMemcpyAsync(dst, src, count, kind, stream):
        gpu.copy(dst, src, count, kind == cudaMemcpyKind.cudaMemcpyHostToDevice, stream)
        return (ok,)

    def cudaStreamSynchronize(stream):
        failure = gpu.synchronize(stream)
        return (ok,) if failure is None else (failure,)

    def cudaMemGetInfo():
        return ok, 10, 20

    def cudaStreamBeginCapture(stream, mode):
        if mode != cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal:
            raise StandInError("a capture that breaks when another thread allocates")
        gpu.capturing = []
        return (ok,)

    def cudaStreamEndCapture(stream):
        graph = next(gpu.numbers)
        gpu.graphs[graph], gpu.capturing = gpu.capturing, None
        return graph

    def cudaGraphInstantiate(graph, flags):
        executable = next(gpu.numbers)
        gpu.graphs[executable] = gpu.graphs[graph]
        return executable

    def cudaGraphLaunch(graphExec, stream):
        gpu.streams[stream] += gpu.graphs[graphExec]
        return (ok,)

    def cudaGraphDestroy(graph):
        del gpu.graphs[graph]
        return (ok,)

    def cudaGraphExecDestroy(graphExec):
        del gpu.graphs[graphExec]
        return (ok,)

    def cudaGetDeviceProperties(device):
        return types.SimpleNamespace(name=b"Fake GPU\0\0")

    calls = [value for value in list(locals().values()) if getattr(value, "__name__", "").startswith("cuda")]
    module = types.ModuleType("cuda.bindings.runtime")
    for call in calls:
        if isinstance(call, types.FunctionType):
            setattr(module, call.__name__, function(call))
    module.cudaGetErrorName = lambda error: (ok, cudaError_t(error).name.encode())
    module.cudaGetErrorString = lambda error: (ok, f"text of {int(error)}".encode())
    module.cudaGetLastError = lambda: gpu.log.append("cudaGetLastError") or (ok,)
    module.cudaMemcpyKind, module.cudaStreamCaptureMode = cudaMemcpyKind, cudaStreamCaptureMode
    module.cudaHostAllocDefault, module.cudaStreamNonBlocking = 0, 1
    return module


class FakePyCuda(types.ModuleType):
    """The part of `pycuda.driver` that the package calls, over a FakeGpu; strict about the context."""

    class Error(Exception):
        pass

    class LogicError(Error):
        pass

    class MemoryError(Error):
        pass

    def __init__(self, gpu):
        super().__init__("pycuda.driver")
        self.gpu, self.stacks, self.retained = gpu, threading.local(), 0
        module = self

        class Context:
            def push(self):
                module.stack.append(self)

            @staticmethod
            def pop():
                module.stack.pop()

        class Device:
            def __init__(self, number):
                self.number = number

            def retain_primary_context(self):
                module.retained += 1
                return Context()

            def name(self):
                return "Fake GPU"

        class Stream:
            def __init__(self, flags=0):
                module.enter("Stream")
                if flags != 1:
                    raise StandInError("a stream that waits for the default stream")
                self.handle = 1000 + next(gpu.numbers)
                gpu.streams[self.handle] = []

            def synchronize(self):
                module.enter("synchronize")
                if gpu.synchronize(self.handle) is not None:
                    raise module.LogicError("cuStreamSynchronize failed: an illegal memory access was encountered")

            def __del__(self):
                if hasattr(self, "handle"):
                    module.enter("~Stream")
                    del gpu.streams[self.handle]

        class Allocation:
            def __init__(self, nbytes):
                self.address = gpu.new(gpu.device, nbytes)

            def __int__(self):
                return self.address

            def free(self):
                module.enter("free")
                del gpu.device[self.address]

        class Pinned:
            def __init__(self, nbytes):
                self.address = gpu.new(gpu.host, nbytes)
                self.__array_interface__ = {
                    "shape": (nbytes,),
                    "typestr": "|u1",
                    "data": (self.address, False),
                    "version": 3,
                }

            def free(self):
                module.enter("free pinned")
                del gpu.host[self.address]

        self.Context, self.Device, self.Stream = Context, Device, Stream
        self._allocation, self._pinned = Allocation, Pinned

    @property
    def stack(self):
        if not hasattr(self.stacks, "contexts"):
            self.stacks.contexts = []
        return self.stacks.contexts

    def enter(self, name):
        if not self.stack:
            raise StandInError(f"{name} without a current context in this thread")
        self.gpu.log.append(name)
        failure = self.gpu.fail.pop(name, None)
        if failure is not None:
            raise failure

    def init(self):
        pass

    def mem_alloc(self, nbytes):
        self.enter("mem_alloc")
        return self._allocation(nbytes)

    def pagelocked_empty(self, shape, dtype):
        self.enter("pagelocked_empty")
        return np.asarray(self._pinned(shape))

    def memcpy_htod_async(self, dest, src, stream):
        self.enter("memcpy_htod_async")
        self.gpu.copy(dest, src.ctypes.data, src.nbytes, True, stream.handle)

    def memcpy_dtoh_async(self, dest, src, stream):
        self.enter("memcpy_dtoh_async")
        self.gpu.copy(dest.ctypes.data, src, dest.nbytes, False, stream.handle)

    def mem_get_info(self):
        self.enter("mem_get_info")
        return 10, 20


@contextlib.contextmanager
def installed(gpu):
    """Put both fakes where an import finds them."""
    from workbench.core.driver import Gpu
    from workbench.engine import memory as device_memory

    pycuda = FakePyCuda(gpu)
    names = {"cuda.bindings.runtime": make_cuda_runtime(gpu), "pycuda.driver": pycuda}
    before = {name: sys.modules.get(name) for name in names}
    require_gpu, contexts = device_memory.require_gpu, dict(device_memory._contexts)
    sys.modules.update(names)
    device_memory.require_gpu = lambda: Gpu("Fake GPU", (9, 0), 1 << 30)
    device_memory._contexts.clear()
    try:
        yield pycuda
    finally:
        device_memory.require_gpu = require_gpu
        device_memory._contexts.clear()
        device_memory._contexts.update(contexts)
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
