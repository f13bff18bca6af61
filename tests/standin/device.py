"""A stand-in for a GPU's memory and streams: nothing queued runs before the stream is synchronised.

It is stricter than a GPU: what would be a wrong answer or a crash there is a StandInError here.
"""

import contextlib
import itertools
import threading

import numpy as np

from workbench.core.errors import DeviceError, InputError
from workbench.engine.memory import DeviceMemory, pinned_array

POISON = 0xA5
"""Fills every new area, so that what was never written is seen."""


class StandInError(AssertionError):
    """The code under test misused CUDA or TensorRT."""


class _Area:
    """Device memory: its bytes, and how many of them the latest copy or execution wrote."""

    def __init__(self, nbytes):
        self.data = np.full(nbytes, POISON, np.uint8)
        self.written = 0
        self.pending_on = None  # the stream on which something still to run writes here


class StandInMemory(DeviceMemory):
    """Counts and checks everything; `log` lists the calls, `live_*` what was not given back."""

    name = "stand-in"
    can_capture = True
    device_name = "stand-in of the tests, computed by ONNX Runtime on the CPU"

    def __init__(self, capacity=1 << 30):
        self.areas, self.pinned, self.queues, self.graphs = {}, {}, {}, {}
        self.log, self.allocations, self.capacity = [], 0, capacity
        self.fail_at = {}  # method name -> exception to raise there, once
        self.fail_in_queue = None  # exception that the next synchronisation meets
        self._addresses = itertools.count(0x7F00_0000_0000, 1 << 32)
        self._handles = itertools.count(0x51, 16)
        self._current = threading.local()
        self._capturing = None

    # What a test asks.
    @property
    def live(self):
        """Everything that was not given back: device areas, pinned areas, streams, graphs."""
        return len(self.areas) + len(self.pinned) + len(self.queues) + len(self.graphs)

    # DeviceMemory.
    @contextlib.contextmanager
    def active(self):
        depth = getattr(self._current, "depth", 0)
        self._current.depth = depth + 1
        try:
            yield
        finally:
            self._current.depth = depth

    def allocate_pinned(self, nbytes):
        self._enter("allocate_pinned")
        self.allocations += 1
        backing = np.full(nbytes, POISON, np.uint8)
        address = backing.ctypes.data
        self.pinned[address] = backing
        return pinned_array(address, nbytes, lambda: self.pinned.pop(address))

    def allocate(self, nbytes):
        self._enter("allocate")
        if nbytes <= 0:
            raise StandInError(f"cudaMalloc of {nbytes} bytes")
        if nbytes + sum(area.data.size for area in self.areas.values()) > self.capacity:
            raise DeviceError("cudaMalloc failed: cudaErrorMemoryAllocation (2), out of memory; take a smaller batch")
        self.allocations += 1
        address = next(self._addresses)
        self.areas[address] = _Area(nbytes)
        return address

    def free(self, address):
        self._enter("free")
        if address not in self.areas:
            raise StandInError("memory was freed twice, or was never allocated")
        if self.areas[address].pending_on is not None:
            raise StandInError("memory was freed while work on it was queued")
        del self.areas[address]

    def create_stream(self):
        self._enter("create_stream")
        stream = next(self._handles)
        self.queues[stream] = []
        return stream

    def destroy_stream(self, stream):
        self._enter("destroy_stream")
        if self.queue(stream):
            raise StandInError("the stream was destroyed while work was queued on it")
        del self.queues[stream]

    def copy_to_device(self, address, host, nbytes, stream):
        self._enter("copy_to_device")
        area = self._area(address, nbytes)
        self._require_pinned(host, nbytes)

        def run():
            area.data[:nbytes] = host[:nbytes]
            area.written = nbytes

        self.put(stream, run, area)

    def copy_to_host(self, host, address, nbytes, stream):
        self._enter("copy_to_host")
        area = self._area(address, nbytes)
        self._require_pinned(host, nbytes)
        self.require_stream(area, stream)

        def run():
            if area.written != nbytes:
                raise StandInError(f"{nbytes} bytes were copied out where {area.written} had been computed")
            host[:nbytes] = area.data[:nbytes]

        self.put(stream, run)

    def synchronize(self, stream):
        self._enter("synchronize")
        if self._capturing is not None:
            raise StandInError("synchronisation while a graph is recorded")
        queue = self.queue(stream)
        failure, self.fail_in_queue = self.fail_in_queue, None
        work, queue[:] = queue[:], []
        for area in self.areas.values():
            if area.pending_on == stream:
                area.pending_on = None
        if failure is not None:
            work.clear()  # the traceback keeps this frame, and the work would keep the pinned areas
            raise failure
        for run in work:
            run()

    def memory_info(self):
        self._enter("memory_info")
        return self.capacity - sum(area.data.size for area in self.areas.values()), self.capacity

    def capture(self, stream, enqueue):
        self._enter("capture")
        if self.queue(stream):
            raise StandInError("a graph is recorded while other work is queued on the stream")
        self._capturing = []
        try:
            enqueue()
            recorded = self._capturing
        finally:
            self._capturing = None
        graph = next(self._handles)
        self.graphs[graph] = recorded
        return graph

    def launch(self, graph, stream):
        self._enter("launch")
        if graph not in self.graphs:
            raise StandInError("a graph was launched that does not exist any more")
        for run, area in self.graphs[graph]:
            self.put(stream, run, area)

    def destroy_graph(self, graph):
        self._enter("destroy_graph")
        del self.graphs[graph]

    # For the stand-in of the execution context.
    @property
    def capturing(self):
        return self._capturing is not None

    def queue(self, stream):
        if stream not in self.queues:
            raise StandInError(f"work on stream {stream}, which was never created, or was destroyed")
        return self.queues[stream]

    def put(self, stream, run, area=None):
        queue = self.queue(stream)
        if self._capturing is not None:
            self._capturing.append((run, area))
            return
        if area is not None:
            area.pending_on = stream
        queue.append(run)

    def require_current(self):
        if not getattr(self._current, "depth", 0):
            raise StandInError("a call without the GPU being current in this thread: use memory.active()")

    def require_stream(self, area, stream):
        if area.pending_on not in (None, stream):
            raise StandInError("work on one stream uses what is still to come on another")

    def area_at(self, address):
        if address not in self.areas:
            raise StandInError(f"the address {address:#x} is not device memory, or was freed")
        return self.areas[address]

    def _area(self, address, nbytes):
        area = self.area_at(address)
        if not 0 <= nbytes <= area.data.size:
            raise StandInError(f"a copy of {nbytes} bytes for an area of {area.data.size}")
        return area

    def _require_pinned(self, host, nbytes):
        start = host.ctypes.data
        inside = any(base <= start and start + nbytes <= base + area.size for base, area in self.pinned.items())
        if host.dtype != np.uint8 or nbytes > host.size or not inside:
            raise StandInError("an asynchronous copy from or to memory that is not pinned")

    def _enter(self, method):
        self.require_current()
        self.log.append(method)
        failure = self.fail_at.pop(method, None)
        if failure is not None:
            raise failure


class NoGraphs(StandInMemory):
    """The same without graphs, as pycuda."""

    can_capture = False

    def capture(self, stream, enqueue):
        raise InputError("no graphs")
