"""Run an engine: buffers that are made once, then copy in, execute and copy out on one stream."""

import math
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from workbench.core.contract import TensorSpec, check_feed
from workbench.core.errors import DeviceError, FeedError, InputError
from workbench.engine.memory import DeviceMemory, numpy_dtype, open_memory
from workbench.engine.plan import Shape, Shapes

if TYPE_CHECKING:
    import trt_types as trt  # the types of one flavour, from typings/

    from workbench.engine.load import Engine

Images = np.ndarray | Mapping[str, np.ndarray]
Ranges = Mapping[str, Shapes]


def allocate_buffers(
    engine: "Engine", batch_size: int = 1, *, memory: str | DeviceMemory = "auto", cuda_graph: bool = False
) -> "Buffers":
    """Make everything that inference needs, once: pinned host and GPU memory for each tensor, a stream, a context.

    Args:
        engine: from `load_engine`.
        batch_size: the largest batch that will be run; smaller ones may follow where the engine takes them.
        memory: `"cuda-python"`, `"pycuda"`, or `"auto"`: the first that is installed.
        cuda_graph: record the work once per input shape and replay it, which saves launch time on small networks.
    Returns:
        The buffers; use them in a `with` block, or call `close()`.
    Raises:
        InputError: the engine does not take this batch size, or has tensors that cannot be prepared.
        DriverError: no NVIDIA driver or GPU.
        DeviceError: the GPU has no room.
    """
    return Buffers(engine, batch_size, open_memory(memory) if isinstance(memory, str) else memory, cuda_graph)


def load_images_to_buffer(images: Images, buffers: "Buffers") -> None:
    """Copy images into pinned memory, where the next inference reads them.

    Args:
        images: an array for a network of one input, else a dict of arrays by input name; shape and dtype
            as in `engine.inputs`, batch first.
        buffers: from `allocate_buffers`.
    Raises:
        FeedError: wrong name, dtype, layout, shape or values, or more than the buffers were made for.
        InputError: the buffers are closed, or in use by another thread.
    """
    with buffers.turn():
        buffers.load(images)


def do_inference(engine: "Engine", images: Images, buffers: "Buffers") -> dict[str, np.ndarray]:
    """Run the network once; nothing is allocated on the GPU or pinned.

    Args:
        engine: the one the buffers were made for.
        images: as for `load_images_to_buffer`.
        buffers: from `allocate_buffers`.
    Returns:
        One array for each of `engine.outputs`, by name. They are **views of the buffers: the next call with
        the same buffers overwrites them**; `.copy()` what must stay.
    Raises:
        FeedError: as for `load_images_to_buffer`.
        InputError: buffers of another engine, closed, or in use by another thread.
        DeviceError: TensorRT or the GPU failed, in this call and in none before.
    """
    buffers.require(engine)
    with buffers.turn():
        buffers.load(images)
        return buffers.execute()


class _Slot:
    """One tensor: its pinned area, its device address, and the shape that is in them now."""

    def __init__(self, spec: TensorSpec, shape: Shape) -> None:
        self.spec = spec
        self.dtype = numpy_dtype(spec.dtype)
        self.shape = shape
        self.capacity = self.nbytes
        self.host = np.empty(0, np.uint8)
        self.address = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def array(self) -> np.ndarray:
        """The pinned area as an array of the current shape."""
        return self.host[: self.nbytes].view(self.dtype).reshape(self.shape)


class Buffers:
    """Memory, stream and execution context of one engine, for one thread at a time; see `allocate_buffers`.

    Attributes:
        batch_size: the largest batch they hold.
        memory: where the memory comes from.
        device_name: the GPU.
        replays: how many calls were replays of a recorded graph.
    """

    def __init__(self, engine: "Engine", batch_size: int, memory: DeviceMemory, cuda_graph: bool = False) -> None:
        self._profile, self._ranges, shapes = _choose_profile(engine, batch_size)
        if cuda_graph and not memory.can_capture:
            raise InputError(f"{memory.name} offers no CUDA graphs; use memory='cuda-python', or cuda_graph=False")
        self.batch_size, self.memory, self.replays = batch_size, memory, 0
        self._engine, self._cuda_graph = engine, cuda_graph
        self._lock = threading.Lock()
        self._ready: dict[str, Shape] = {}
        self._inputs: dict[str, _Slot] = {}
        self._outputs: dict[str, _Slot] = {}
        self._graph: list[Any] = []  # at most one; a list, so that the clean-up below sees the latest
        self.device_name = memory.device_name
        with memory.active(), self._explained("preparing the engine"), ExitStack() as stack:
            self._stream = memory.create_stream()
            stack.callback(memory.destroy_stream, self._stream)
            self._make_context(stack)
            self._make_slots(stack, shapes)
            stack.callback(_drop_graph, memory, self._graph)
            # First of all when closing: nothing may still run that uses what is given back after it.
            stack.callback(memory.synchronize, self._stream)
            self._release = weakref.finalize(self, _close_all, memory, stack.pop_all())

    @property
    def nbytes(self) -> int:
        """Bytes on the GPU, and as many again pinned on the host; the engine's own memory is not in it."""
        return sum(slot.capacity for slot in (*self._inputs.values(), *self._outputs.values()))

    def require(self, engine: "Engine") -> None:
        """Refuse another engine than the one these buffers were made for."""
        if engine is not self._engine:
            raise InputError("these buffers belong to another engine; call allocate_buffers(engine) for this one")
        _ = engine.cuda_engine  # refuses a closed engine

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Take the buffers for one piece of work in this thread, with their GPU current."""
        if not self._lock.acquire(blocking=False):
            raise InputError("these buffers are in use in another thread; call allocate_buffers once per thread")
        try:
            if not self._release.alive:
                raise InputError("the buffers are closed; call allocate_buffers(engine) again")
            with self.memory.active():
                yield
        finally:
            self._lock.release()

    def load(self, images: Images) -> None:
        """Copy images into the pinned areas; called within `turn`."""
        alone = isinstance(images, np.ndarray) and len(self._inputs) == 1
        feed: Any = {next(iter(self._inputs)): images} if alone else images
        check_feed({name: slot.spec for name, slot in self._inputs.items()}, feed)
        for name, array in feed.items():
            self._check_range(name, array.shape)
        for name, slot in self._inputs.items():
            slot.shape = feed[name].shape
            np.copyto(slot.array, feed[name])

    def execute(self) -> dict[str, np.ndarray]:
        """Run what is in the pinned areas and wait for the answer; called within `turn`."""
        with self._explained("inference"):
            try:
                self._submit()
                self.memory.synchronize(self._stream)
            except BaseException:
                self._ready = {}
                with suppress(DeviceError):  # no queued copy may touch the pinned areas later
                    self.memory.synchronize(self._stream)
                raise
        return {name: slot.array for name, slot in self._outputs.items()}

    def close(self) -> None:
        """Give everything back; a second call does nothing. Arrays that were returned stay readable."""
        with self._lock:
            self._inputs, self._outputs = {}, {}
            vars(self).pop("_context", None)
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Close; a failure of that does not hide the error that ended the block."""
        try:
            self.close()
        except DeviceError as failure:
            if error is None:
                raise
            error.add_note(f"closing the buffers failed too: {failure}")

    def __repr__(self) -> str:
        state = f"batch {self.batch_size}, {self.nbytes:,} bytes" if self._release.alive else "closed"
        return f"<Buffers on {self.device_name} through {self.memory.name}: {state}>"

    def _make_context(self, stack: ExitStack) -> None:
        cuda_engine = self._engine.cuda_engine
        context = cuda_engine.create_execution_context()
        if context is None:
            raise DeviceError("TensorRT made no execution context; free GPU memory, or load the engine again")
        self._context: trt.IExecutionContext = context
        # The stack lets go of the context while the stream and the engine still exist.
        stack.callback([context, cuda_engine].clear)
        if self._profile:
            _require(self._context.set_optimization_profile_async(self._profile, self._stream), "the profile")

    def _make_slots(self, stack: ExitStack, shapes: Mapping[str, Shape]) -> None:
        """Allocate for the largest shapes, and tell the context where each tensor is."""
        self._inputs = {name: _Slot(spec, shapes[name]) for name, spec in self._engine.inputs.items()}
        self._set_shapes()
        for name, spec in self._engine.outputs.items():
            self._outputs[name] = _Slot(spec, self._output_shape(name))
        for name, slot in (*self._inputs.items(), *self._outputs.items()):
            # A tensor without elements needs an address too.
            slot.host = self.memory.allocate_pinned(max(slot.capacity, 1))
            slot.address = self.memory.allocate(max(slot.capacity, 1))
            stack.callback(self.memory.free, slot.address)
            _require(self._context.set_tensor_address(name, slot.address), f"the address of {name}")

    def _set_shapes(self) -> None:
        for name, slot in self._inputs.items():
            _require(self._context.set_input_shape(name, slot.shape), f"the shape {slot.shape} of {name}")

    def _output_shape(self, name: str) -> Shape:
        shape = tuple(int(size) for size in self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise InputError(
                f"the size of output {name!r} cannot be told from the input shapes "
                f"{', '.join(f'{key} {slot.shape}' for key, slot in self._inputs.items())}{self._log_text()}; "
                "give inputs that fit together, or a network whose output sizes do not depend on values"
            )
        return shape

    def _submit(self) -> None:
        """Queue the work of one inference, by replaying the graph where there is one for these shapes."""
        shapes = {name: slot.shape for name, slot in self._inputs.items()}
        warm = shapes == self._ready
        if not warm:
            self._change_shapes()
        if not (self._cuda_graph and warm):
            self._ready = {}
            self._enqueue()
            self._ready = shapes
            return
        if not self._graph:
            # TensorRT-RTX can say that a network cannot be captured; the others are found out by trying.
            ask = getattr(self._context, "is_stream_capturable", None)
            if ask is not None and not ask(self._stream):
                raise DeviceError(
                    "this network cannot be recorded as a CUDA graph for these shapes; use cuda_graph=False"
                )
            self._graph.append(self.memory.capture(self._stream, self._enqueue))
        self.memory.launch(self._graph[0], self._stream)
        self.replays += 1

    def _change_shapes(self) -> None:
        _drop_graph(self.memory, self._graph)
        self._ready = {}
        self._set_shapes()
        for name, slot in self._outputs.items():
            slot.shape = self._output_shape(name)
            if slot.nbytes > slot.capacity:
                raise InputError(
                    f"output {name!r} became {slot.shape}, more than the buffers hold; allocate them again"
                )

    def _enqueue(self) -> None:
        """Queue copies in, execution and copies out; nothing of it has run when this returns."""
        for slot in self._inputs.values():
            self.memory.copy_to_device(slot.address, slot.host, slot.nbytes, self._stream)
        _require(self._context.execute_async_v3(self._stream), "the execution")
        for slot in self._outputs.values():
            self.memory.copy_to_host(slot.host, slot.address, slot.nbytes, self._stream)

    def _check_range(self, name: str, shape: Shape) -> None:
        """Refuse a shape outside the profile, or a larger one than the buffers hold."""
        slot = self._inputs[name]
        low, _, high = self._ranges.get(name, (shape, shape, shape))
        for axis, (size, least, most) in enumerate(zip(shape, low, high, strict=True)):
            if not least <= size <= most:
                got = f"got a batch of {size}" if axis == 0 else f"axis {axis} is {size}"
                raise FeedError(
                    f"input {name!r}: {got}, and this engine's profile takes {least} to {most}; "
                    "give that, or build the engine again with a wider profile"
                )
        if math.prod(shape) * slot.dtype.itemsize > slot.capacity:
            raise FeedError(
                f"input {name!r}: got a batch of {shape[0]}, and the buffers were made for batch_size="
                f"{self.batch_size}; call allocate_buffers(engine, batch_size={shape[0]})"
            )

    @contextmanager
    def _explained(self, work: str) -> Iterator[None]:
        """Name the work in an error of the GPU, and add what TensorRT logged meanwhile."""
        logger = self._engine.logger
        seen = len(logger.texts) if logger else 0
        try:
            yield
        except DeviceError as error:
            raise DeviceError(f"{work} failed: {error}{self._log_text(seen)}") from error

    def _log_text(self, seen: int = 0) -> str:
        """What TensorRT said since, errors only, ready to be put into a sentence."""
        lines = self._engine.logger.texts[seen:] if self._engine.logger else ()
        errors = [line for line in lines if line.startswith(("ERROR", "INTERNAL_ERROR"))]
        return f" (TensorRT said: {'; '.join(errors[-3:])})" if errors else ""


def _choose_profile(engine: "Engine", batch_size: int) -> tuple[int, Ranges, dict[str, Shape]]:
    """Find the first profile that takes the batch; return its number, its ranges and the largest shapes."""
    whole = isinstance(batch_size, int | np.integer) and not isinstance(batch_size, bool)  # type: ignore[redundant-expr]
    if not whole or batch_size < 1:
        raise InputError(f"got batch_size={batch_size!r}, expected a whole number of 1 or more")
    firsts = {name: spec.shape[0] for name, spec in engine.inputs.items() if spec.shape}
    dynamic = [name for name, size in firsts.items() if size is None]
    fixed = sorted(size for name, size in firsts.items() if size is not None and len(engine.inputs[name].shape) > 1)
    if fixed and not dynamic and batch_size not in fixed:
        raise InputError(
            f"got batch_size={batch_size}, but this engine takes batches of {fixed[0]} only; "
            f"call allocate_buffers(engine, batch_size={fixed[0]})"
        )
    taken = []
    for number, ranges in enumerate(engine.profiles or ({},)):
        batches = [(ranges[name][0][0], ranges[name][2][0]) for name in dynamic]
        if all(low <= batch_size <= high for low, high in batches):
            return number, ranges, _largest_shapes(engine, ranges, batch_size)
        taken.append(f"{max(low for low, _ in batches)} to {min(high for _, high in batches)}")
    raise InputError(
        f"got batch_size={batch_size}, but this engine takes batches of {' or '.join(taken)}; "
        "give that, or build the engine again with a wider profile"
    )


def _largest_shapes(engine: "Engine", ranges: Ranges, batch_size: int) -> dict[str, Shape]:
    shapes = {}
    for name, spec in engine.inputs.items():
        largest = ranges[name][2] if None in spec.shape else spec.shape
        shapes[name] = tuple(
            int(batch_size if axis == 0 and size is None else largest[axis] or 0)
            for axis, size in enumerate(spec.shape)
        )
    return shapes


def _require(accepted: bool, what: str) -> None:
    """Turn TensorRT's False into an error; `Buffers._explained` adds what TensorRT logged."""
    if not accepted:
        raise DeviceError(f"TensorRT refused {what}; load the engine again, or build it again for this machine")


def _drop_graph(memory: DeviceMemory, graph: list[Any]) -> None:
    while graph:
        memory.destroy_graph(graph.pop())


def _close_all(memory: DeviceMemory, stack: ExitStack) -> None:
    with memory.active():
        stack.close()
