"""The checks of inference are only worth something if they fail when they should: each fault below turns one red.

A mutation replaces one passage of the source of `workbench.engine.inference`; the checks run on the mutated module.
"""

import types
from pathlib import Path

import pytest
from inference_checks import CHECKS, make_networks

from workbench.engine import inference

SOURCE = Path(inference.__file__)

MUTATIONS = {
    "skip the copy in": (
        "self.memory.copy_to_device(slot.address, slot.host, slot.nbytes, self._stream)",
        "pass",
    ),
    "skip the copy out": (
        "self.memory.copy_to_host(slot.host, slot.address, slot.nbytes, self._stream)",
        "pass",
    ),
    "do not execute": ('_require(self._context.execute_async_v3(self._stream), "the execution")', "pass"),
    "copy the images in after executing": (
        "            self.memory.copy_to_device(slot.address, slot.host, slot.nbytes, self._stream)\n        _require("
        'self._context.execute_async_v3(self._stream), "the execution")',
        '            pass\n        _require(self._context.execute_async_v3(self._stream), "the execution")\n        '
        "for slot in self._inputs.values():\n"
        "            self.memory.copy_to_device(slot.address, slot.host, slot.nbytes, self._stream)",
    ),
    "copy the answers out before executing": (
        '        _require(self._context.execute_async_v3(self._stream), "the execution")\n'
        "        for slot in self._outputs.values():\n"
        "            self.memory.copy_to_host(slot.host, slot.address, slot.nbytes, self._stream)",
        "        for slot in self._outputs.values():\n"
        "            self.memory.copy_to_host(slot.host, slot.address, slot.nbytes, self._stream)\n"
        '        _require(self._context.execute_async_v3(self._stream), "the execution")',
    ),
    "swap the addresses of two inputs": (
        "_require(self._context.set_tensor_address(name, slot.address)",
        '_require(self._context.set_tensor_address({"left": "right", "right": "left"}.get(name, name), slot.address)',
    ),
    "forget the address of one output": (
        "            _require(self._context.set_tensor_address(name",
        '            name == "small" or _require(self._context.set_tensor_address(name',
    ),
    "forget every address": (
        '_require(self._context.set_tensor_address(name, slot.address), f"the address of {name}")',
        "pass",
    ),
    "forget the input shapes": (
        '_require(self._context.set_input_shape(name, slot.shape), f"the shape {slot.shape} of {name}")',
        "pass",
    ),
    "set the shape of the first input only": (
        'f"the shape {slot.shape} of {name}")',
        'f"the shape {slot.shape} of {name}")\n            break',
    ),
    "keep the shapes of the first call": ("        if not warm:", "        if not self._ready:"),
    "never set the shapes again": (
        "        self._ready = {}\n        self._set_shapes()\n",
        "        self._ready = {}\n",
    ),
    "keep the outputs' shapes of the first call": ("slot.shape = self._output_shape(name)\n", "pass\n"),
    "read before synchronising": (
        "                self._submit()\n                self.memory.synchronize(self._stream)",
        "                self._submit()",
    ),
    "synchronise before submitting": (
        "                self._submit()\n                self.memory.synchronize(self._stream)",
        "                self.memory.synchronize(self._stream)\n                self._submit()",
    ),
    "execute on the default stream": ("execute_async_v3(self._stream)", "execute_async_v3(0)"),
    "execute on a stream of its own": (
        "execute_async_v3(self._stream)",
        "execute_async_v3(self.memory.create_stream())",
    ),
    "copy in on another stream": (
        "self.memory.copy_to_device(slot.address, slot.host, slot.nbytes, self._stream)",
        "self.memory.copy_to_device(slot.address, slot.host, slot.nbytes, self.memory.create_stream())",
    ),
    "synchronise another stream": (
        "                self._submit()\n                self.memory.synchronize(self._stream)",
        "                self._submit()\n                self.memory.synchronize(self.memory.create_stream())",
    ),
    "copy elements instead of bytes": (
        "        return math.prod(self.shape) * self.dtype.itemsize",
        "        return int(np.prod(self.shape))",
    ),
    "copy the whole area instead of the batch": (
        "slot.host, slot.nbytes, self._stream)",
        "slot.host, slot.capacity, self._stream)",
    ),
    "copy out the largest batch": (
        "self.memory.copy_to_host(slot.host, slot.address, slot.nbytes, self._stream)",
        "self.memory.copy_to_host(slot.host, slot.address, slot.capacity, self._stream)",
    ),
    "allocate elements instead of bytes": (
        "self.memory.allocate(max(slot.capacity, 1))",
        "self.memory.allocate(max(slot.capacity // slot.dtype.itemsize, 1))",
    ),
    "allocate for one image": (
        "batch_size if axis == 0 and size is None else largest[axis] or 0",
        "1 if axis == 0 and size is None else largest[axis] or 0",
    ),
    "use memory that is not pinned": (
        "self.memory.allocate_pinned(max(slot.capacity, 1))",
        "np.empty(max(slot.capacity, 1), np.uint8)",
    ),
    "load the images of one input only": (
        "            np.copyto(slot.array, feed[name])",
        "            np.copyto(slot.array, feed[name])\n            break",
    ),
    "forget to load the images": ("np.copyto(slot.array, feed[name])", "pass"),
    "take the raw bytes of a view": (
        "np.copyto(slot.array, feed[name])",
        "slot.host[: slot.nbytes] = np.frombuffer(feed[name].tobytes(order='A'), np.uint8)",
    ),
    "allocate in every call": (
        "        return {name: slot.array for name, slot in self._outputs.items()}",
        "        self.memory.allocate(8)\n        return {name: slot.array for name, slot in self._outputs.items()}",
    ),
    "pin memory in every call": (
        "np.copyto(slot.array, feed[name])",
        "slot.host = self.memory.allocate_pinned(max(slot.capacity, 1)); np.copyto(slot.array, feed[name])",
    ),
    "make a stream in every call": (
        "        shapes = {name: slot.shape for name, slot in self._inputs.items()}",
        "        self._stream = self.memory.create_stream()\n"
        "        shapes = {name: slot.shape for name, slot in self._inputs.items()}",
    ),
    "never free device memory": ("            stack.callback(self.memory.free, slot.address)\n", ""),
    "never destroy the stream": ("            stack.callback(memory.destroy_stream, self._stream)\n", ""),
    "never destroy the graph": ("            stack.callback(_drop_graph, memory, self._graph)\n", ""),
    "keep the pinned memory": ("            self._inputs, self._outputs = {}, {}\n", ""),
    "free twice": (
        "            stack.callback(self.memory.free, slot.address)",
        "            stack.callback(self.memory.free, slot.address)\n"
        "            stack.callback(self.memory.free, slot.address)",
    ),
    "free without the GPU being current": (
        "    with memory.active():\n        stack.close()",
        "    stack.close()",
    ),
    "unwind a failed start without the GPU being current": (
        'with memory.active(), self._explained("preparing the engine"), ExitStack() as stack:',
        'with ExitStack() as stack, memory.active(), self._explained("preparing the engine"):',
    ),
    "run without the GPU being current": (
        "            with self.memory.active():\n                yield",
        "            yield",
    ),
    "free at once what a view still shows": (
        "            self._inputs, self._outputs = {}, {}\n",
        "            self.memory.pinned.clear()\n            self._inputs, self._outputs = {}, {}\n",
    ),
    "use closed buffers": ("            if not self._release.alive:", "            if False:"),
    "use the buffers of another engine": ("        if engine is not self._engine:", "        if False:"),
    "let two threads in": ("if not self._lock.acquire(blocking=False):", "if False:"),
    "take the first profile always": ("        if self._profile:", "        if False:"),
    "use the profile of one input": (
        "        if all(low <= batch_size <= high for low, high in batches):",
        "        if True:",
    ),
    "take any size": ("            if not least <= size <= most:", "            if False:"),
    "take more than there is room for": (
        "        if math.prod(shape) * slot.dtype.itemsize > slot.capacity:",
        "        if False:",
    ),
    "ignore that the execution was refused": ("    if not accepted:", "    if False:"),
    "leave work queued after a failure": (
        "                with suppress(DeviceError):  # no queued copy may touch the pinned areas later\n"
        "                    self.memory.synchronize(self._stream)\n",
        "",
    ),
    "record without a run before": ("        if not (self._cuda_graph and warm):", "        if not self._cuda_graph:"),
    "record for every call": ("        if not self._graph:", "        if True:"),
    "replay the graph of other shapes": (
        "        _drop_graph(self.memory, self._graph)\n        self._ready = {}\n",
        "        self._ready = {}\n",
    ),
    "record always": ("        if not (self._cuda_graph and warm):", "        if not warm:"),
    "never replay": ("        if not (self._cuda_graph and warm):", "        if True:"),
    "leave the log out of errors": (
        'raise DeviceError(f"{work} failed: {error}{self._log_text(seen)}") from error',
        'raise DeviceError(f"{work} failed: {error}") from error',
    ),
}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return make_networks(tmp_path_factory.mktemp("mutations"))


def mutated(before, after):
    """The module with one passage replaced; the source must hold it once, so that no mutation goes stale."""
    source = SOURCE.read_text(encoding="utf-8")
    assert source.count(before) == 1, f"the source holds this {source.count(before)} times: {before}"
    module = types.ModuleType("mutated_inference")
    exec(compile(source.replace(before, after), "mutated_inference.py", "exec"), vars(module))
    return module


def first_failure(module, networks):
    """The name of the first check that fails, or None."""
    for check in CHECKS:
        try:
            check(module, networks)
        except Exception:  # of whatever kind: the check is red
            return check.__name__
    return None


def test_the_module_itself_passes(networks):
    passage = next(iter(MUTATIONS.values()))[0]
    assert first_failure(mutated(passage, passage), networks) is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_noticed(name, networks):
    assert first_failure(mutated(*MUTATIONS[name]), networks) is not None
