"""GPU memory, pinned host memory, streams and graphs, from cuda-python or from pycuda, behind one interface."""

import importlib
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core.driver import require_gpu
from workbench.core.errors import BackendUnavailableError, DeviceError, DriverError, InputError

Bytes = NDArray[np.uint8]

# Names of the CUDA runtime's errors, and the driver's words for the same, to what a reader can do.
_NO_DRIVER = ("cudaErrorInsufficientDriver", "cudaErrorNoDevice")
_NO_MEMORY = ("cudaErrorMemoryAllocation", "out of memory")
_CONTEXT_LOST: tuple[str, ...] = ("illegal memory access", "launch failure", "misaligned address", "device-side assert")
_CONTEXT_LOST += ("cudaErrorIllegalAddress", "cudaErrorLaunchFailure", "cudaErrorAssert", "cudaErrorMisalignedAddress")
_CONTEXT_LOST += ("cudaErrorHardwareStackError", "cudaErrorIllegalInstruction", "cudaErrorECCUncorrectable")

_contexts: dict[int, Any] = {}
_contexts_lock = threading.Lock()


class DeviceMemory(ABC):
    """Memory and streams of one GPU. Every method but `active` is called inside `with memory.active():`.

    Attributes:
        name: `"cuda-python"` or `"pycuda"`.
        device_name: the GPU's name, as people know it.
        can_capture: whether it offers CUDA graphs.
    """

    name: str
    device_name: str
    can_capture = False

    @abstractmethod
    def active(self) -> AbstractContextManager[None]:
        """Make this GPU current in the calling thread, and put back afterwards what was current before."""

    @abstractmethod
    def allocate_pinned(self, nbytes: int) -> Bytes:
        """Return page-locked host memory as an (nbytes,) uint8 array.

        It is given back when the last view of it is gone, so an array in use never points to freed memory.
        """

    @abstractmethod
    def allocate(self, nbytes: int) -> int:
        """Return the address of new device memory."""

    @abstractmethod
    def free(self, address: int) -> None:
        """Give device memory back."""

    @abstractmethod
    def create_stream(self) -> int:
        """Return a new stream that does not wait for the default stream."""

    @abstractmethod
    def destroy_stream(self, stream: int) -> None:
        """Give a stream back."""

    @abstractmethod
    def copy_to_device(self, address: int, host: Bytes, nbytes: int, stream: int) -> None:
        """Queue a copy of the first `nbytes` of pinned memory; it runs later."""

    @abstractmethod
    def copy_to_host(self, host: Bytes, address: int, nbytes: int, stream: int) -> None:
        """Queue a copy into the first `nbytes` of pinned memory; nothing may read them before `synchronize`."""

    @abstractmethod
    def synchronize(self, stream: int) -> None:
        """Wait for everything queued on a stream; errors of that work are raised here."""

    @abstractmethod
    def memory_info(self) -> tuple[int, int]:
        """Return (free, total) bytes of the GPU."""

    def capture(self, stream: int, enqueue: Callable[[], None]) -> Any:
        """Record what `enqueue` puts on the stream, without running it, as a graph for `launch`."""
        raise InputError(f"{self.name} offers no CUDA graphs; use memory='cuda-python', or cuda_graph=False")

    def launch(self, graph: Any, stream: int) -> None:
        """Queue everything that a graph recorded."""
        raise InputError(f"{self.name} offers no CUDA graphs")

    def destroy_graph(self, graph: Any) -> None:
        """Give a graph back."""
        raise InputError(f"{self.name} offers no CUDA graphs")


def open_memory(name: str = "auto") -> DeviceMemory:
    """Open the memory of the GPU that is current in this thread; `"auto"` takes the first package that is installed.

    InputError for another name, BackendUnavailableError without the package, DriverError without a driver or GPU.
    """
    openers: dict[str, Callable[[], DeviceMemory]] = {"cuda-python": _CudaPythonMemory, "pycuda": _PyCudaMemory}
    if name not in ("auto", *openers):
        raise InputError(f"got memory={name!r}, expected 'auto', {', '.join(map(repr, openers))}")
    missing = []
    for opener in openers.values() if name == "auto" else (openers[name],):
        try:
            return opener()
        except DriverError:
            raise
        except BackendUnavailableError as error:
            missing.append(str(error))
    raise BackendUnavailableError("; ".join(missing))


class _PinnedOwner:
    """What the base of every view of a pinned area is; the area is freed after it."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3}


def pinned_array(address: int, nbytes: int, free: Callable[[], None]) -> Bytes:
    """Show host memory at an address as an (nbytes,) uint8 array; `free` runs after the last view of it is gone."""
    owner = _PinnedOwner(address, nbytes)
    # At the end of the process the driver may be gone before us, and the system takes the memory back anyway.
    weakref.finalize(owner, free).atexit = False
    return np.asarray(owner)


class _CudaPythonMemory(DeviceMemory):
    """The CUDA runtime through NVIDIA's cuda-python: the primary context, which frameworks use too."""

    name = "cuda-python"
    can_capture = True

    def __init__(self) -> None:
        self._cuda = _import("cuda.bindings.runtime", "cuda-python", "pip install cuda-python")
        require_gpu()
        self._device = self._call("cudaGetDevice")
        self.device_name = _text(self._call("cudaGetDeviceProperties", self._device).name)

    @contextmanager
    def active(self) -> Iterator[None]:
        before = self._call("cudaGetDevice")
        if before == self._device:
            yield
            return
        self._call("cudaSetDevice", self._device)
        try:
            yield
        finally:
            self._call("cudaSetDevice", before)

    def allocate_pinned(self, nbytes: int) -> Bytes:
        flags = self._cuda.cudaHostAllocDefault
        address = self._call("cudaHostAlloc", nbytes, flags, about=_size_text(nbytes, "pinned host memory"))
        return pinned_array(int(address), nbytes, lambda: self._free_pinned(address))

    def _free_pinned(self, address: Any) -> None:
        with suppress(DeviceError, DriverError), self.active():
            self._call("cudaFreeHost", address)

    def allocate(self, nbytes: int) -> int:
        return int(self._call("cudaMalloc", nbytes, about=_size_text(nbytes, "GPU memory")))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def create_stream(self) -> int:
        return int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def copy_to_device(self, address: int, host: Bytes, nbytes: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, host.ctypes.data, nbytes, kind, stream)

    def copy_to_host(self, host: Bytes, address: int, nbytes: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", host.ctypes.data, address, nbytes, kind, stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def memory_info(self) -> tuple[int, int]:
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

    def capture(self, stream: int, enqueue: Callable[[], None]) -> Any:
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal  # other threads go on allocating
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            enqueue()
        except BaseException:
            with suppress(DeviceError):  # a stream that stays in capture could never be used again
                self._call("cudaGraphDestroy", self._call("cudaStreamEndCapture", stream))
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, function: str, *arguments: Any, about: str = "") -> Any:
        """Call the CUDA runtime; return what it gives besides the error code."""
        error, *values = getattr(self._cuda, function)(*arguments)
        if int(error):
            self._cuda.cudaGetLastError()  # so that no other library meets this error again
            name, text = (
                _text(getattr(self._cuda, ask)(error)[1]) for ask in ("cudaGetErrorName", "cudaGetErrorString")
            )
            raise _device_error(function, f"{name} ({int(error)}), {text}", about)
        return values[0] if len(values) == 1 else values


class _PyCudaMemory(DeviceMemory):
    """The CUDA driver through pycuda, as in the original tutorial, but on the primary context.

    `pycuda.autoinit` would make one of its own, where TensorFlow, PyTorch and TensorRT do not live; this one is pushed
    for each call, so any thread may call.
    """

    name = "pycuda"

    def __init__(self) -> None:
        self._cuda = _import(
            "pycuda.driver", "pycuda", "pip install pycuda (it is compiled here and needs nvcc), or use cuda-python"
        )
        require_gpu()
        self._call("cuInit", self._cuda.init)
        with _contexts_lock:
            if 0 not in _contexts:  # once per process, for pycuda keeps the thread that made it
                _contexts[0] = self._call("cuInit", lambda: self._cuda.Device(0).retain_primary_context())
        self._context = _contexts[0]
        self.device_name = str(self._call("cuDeviceGetName", lambda: self._cuda.Device(0).name()))
        self._allocations: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        self._call("cuCtxPushCurrent", self._context.push)
        try:
            yield
        finally:
            self._cuda.Context.pop()

    def allocate_pinned(self, nbytes: int) -> Bytes:
        about = _size_text(nbytes, "pinned host memory")
        area = self._call("cuMemHostAlloc", self._cuda.pagelocked_empty, nbytes, np.uint8, about=about)
        return pinned_array(area.ctypes.data, nbytes, lambda: self._free_pinned(area.base))

    def _free_pinned(self, allocation: Any) -> None:
        with suppress(DeviceError, DriverError), self.active():
            self._call("cuMemFreeHost", allocation.free)

    def allocate(self, nbytes: int) -> int:
        allocation = self._call("cuMemAlloc", self._cuda.mem_alloc, nbytes, about=_size_text(nbytes, "GPU memory"))
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, address: int) -> None:
        self._call("cuMemFree", self._allocations.pop(address).free)

    def create_stream(self) -> int:
        stream = self._call("cuStreamCreate", self._cuda.Stream, 1)  # CU_STREAM_NON_BLOCKING of cuda.h
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        del self._streams[stream]  # pycuda destroys it with its object

    def copy_to_device(self, address: int, host: Bytes, nbytes: int, stream: int) -> None:
        copy = self._cuda.memcpy_htod_async
        self._call("cuMemcpyHtoDAsync", copy, address, host[:nbytes], self._streams[stream])

    def copy_to_host(self, host: Bytes, address: int, nbytes: int, stream: int) -> None:
        copy = self._cuda.memcpy_dtoh_async
        self._call("cuMemcpyDtoHAsync", copy, host[:nbytes], address, self._streams[stream])

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", self._streams[stream].synchronize)

    def memory_info(self) -> tuple[int, int]:
        free, total = self._call("cuMemGetInfo", self._cuda.mem_get_info)
        return int(free), int(total)

    def _call(self, function: str, call: Callable[..., Any], *arguments: Any, about: str = "") -> Any:
        """Call pycuda, and turn its error into ours."""
        try:
            return call(*arguments)
        except self._cuda.Error as error:
            raise _device_error(function, f"{type(error).__name__}, {error}", about) from error


def _device_error(function: str, problem: str, about: str = "") -> DeviceError | DriverError:
    """Make the error for a failed CUDA call: which call, CUDA's name and text for it, and what to do."""
    if any(name in problem for name in _NO_DRIVER):
        return DriverError(f"{function} found no usable NVIDIA driver or GPU: {problem}; check nvidia-smi")
    if any(name in problem for name in _NO_MEMORY):
        advice = "take a smaller batch, close other buffers and engines, or end other programs on this GPU"
    elif any(name in problem for name in _CONTEXT_LOST):
        advice = "CUDA is unusable in this process from now on: restart it (in a notebook, restart the kernel)"
    else:
        advice = "check nvidia-smi, then run again with CUDA_LAUNCH_BLOCKING=1 to see which call is at fault"
    return DeviceError(f"{function} failed{f' for {about}' if about else ''}: {problem}; {advice}")


def numpy_dtype(name: str) -> np.dtype:
    """Return the NumPy dtype of a tensor type, some from ml_dtypes; InputError for one without whole bytes.

    >>> numpy_dtype("float16").itemsize
    2
    """
    packed = name.startswith(("int4", "uint4", "int2", "uint2", "float4", "float6"))
    if name.startswith(("bfloat16", "float8")):
        extra = _import("ml_dtypes", "ml_dtypes", "pip install ml_dtypes")
        if hasattr(extra, name):
            return np.dtype(getattr(extra, name))
    with suppress(TypeError):
        if not packed:  # ml_dtypes gives these a byte each, TensorRT packs them
            return np.dtype(name)
    raise InputError(
        f"got a tensor of type {name}, expected one with whole bytes, such as float32, float16, int8 or uint8; "
        "cast it inside the network"
    )


def _import(module: str, package: str, install: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        missing = isinstance(error, ModuleNotFoundError)
        state = "is not installed" if missing else "is installed, but a library it needs is missing"
        again = "" if missing else " again"
        raise BackendUnavailableError(f"{package} {state} ({error}); run{again}: {install}") from error


def _size_text(nbytes: int, what: str) -> str:
    return f"{nbytes / 2**20:,.1f} MiB of {what}"


def _text(name: bytes | str) -> str:
    return name.decode(errors="replace").rstrip("\0") if isinstance(name, bytes) else str(name)
