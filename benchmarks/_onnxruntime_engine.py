"""ONNX Runtime on a GPU shaped like an engine, so that `workbench.engine.inference` runs it without TensorRT.

It shows what our buffers do on a real GPU. It is ONNX Runtime, and says nothing about TensorRT.
"""

import os
from types import SimpleNamespace
from typing import Any

import numpy as np

from workbench.onnx_graph.file import check
from workbench.onnx_graph.session import prepare_cuda


class OnnxRuntimeEngine:
    """What `allocate_buffers` needs of an engine.

    Args:
        path: the network.
        largest: the largest batch.
    """

    def __init__(self, path: str | os.PathLike[str], largest: int = 8, *, tf32: bool = False) -> None:
        import onnxruntime

        self.runtime, self.path = onnxruntime, os.fspath(path)
        self.device = prepare_cuda(onnxruntime)
        summary = check(path)
        self.inputs = {spec.name: spec for spec in summary.inputs}
        self.outputs = {spec.name: spec for spec in summary.outputs}
        self.profiles = (
            {
                name: tuple(tuple(size or batch for size in spec.shape) for batch in (1, 1, largest))
                for name, spec in self.inputs.items()
            },
        )
        self.cuda_engine, self.logger, self.tf32 = self, None, tf32

    def create_execution_context(self) -> "OnnxRuntimeContext":
        """Return what queues the network on a stream."""
        return OnnxRuntimeContext(self)


class OnnxRuntimeContext:
    """The four methods of an execution context that `workbench.engine.inference` calls, through I/O binding."""

    def __init__(self, engine: OnnxRuntimeEngine) -> None:
        self.engine, self.session, self.binding = engine, None, None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name], self.binding = shape, None
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name], self.binding = memory, None
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        batch = next(iter(self.shapes.values()))[0]
        return tuple(batch if size is None else size for size in self.engine.outputs[name].shape)

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self.session is None:
            self.session = self._open(stream_handle)
        if self.binding is None:
            self.binding = self._bind()
        self.session.run_with_iobinding(self.binding, self.options)
        return True

    def _open(self, stream: int) -> Any:
        runtime = self.engine.runtime
        self.options = runtime.RunOptions()
        self.options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        cuda = ("CUDAExecutionProvider", {"use_tf32": str(int(self.engine.tf32)), "user_compute_stream": str(stream)})
        return runtime.InferenceSession(self.engine.path, providers=[cuda, "CPUExecutionProvider"])

    def _bind(self) -> Any:
        binding = self.session.io_binding()
        for name, spec in self.engine.inputs.items():
            binding.bind_input(name, "cuda", 0, np.dtype(spec.dtype), self.shapes[name], self.addresses[name])
        for name, spec in self.engine.outputs.items():
            shape = self.get_tensor_shape(name)
            binding.bind_output(name, "cuda", 0, np.dtype(spec.dtype), shape, self.addresses[name])
        return binding


class CopyEngine:
    """An identity network of bytes: one copy on the device, so that only the buffers are at work.

    Args:
        nbytes: of each image.
        largest: the largest batch.
    """

    def __init__(self, nbytes: int, largest: int = 8) -> None:
        from cuda.bindings import runtime

        from workbench.core.contract import TensorSpec

        self.cuda = runtime
        self.inputs = {"input": TensorSpec("input", (None, nbytes), "uint8")}
        self.outputs = {"output": TensorSpec("output", (None, nbytes), "uint8")}
        self.profiles = ({"input": ((1, nbytes), (1, nbytes), (largest, nbytes))},)
        self.cuda_engine, self.logger = self, None

    def create_execution_context(self) -> Any:
        """Return what queues the copy on a stream."""
        shapes, addresses = {}, {}

        def execute(stream: int) -> bool:
            kind = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
            size = int(np.prod(shapes["input"]))
            (error,) = self.cuda.cudaMemcpyAsync(addresses["output"], addresses["input"], size, kind, stream)
            return int(error) == 0

        return SimpleNamespace(
            set_input_shape=lambda name, shape: shapes.__setitem__(name, shape) is None,
            set_tensor_address=lambda name, memory: addresses.__setitem__(name, memory) is None,
            get_tensor_shape=lambda name: shapes["input"],
            execute_async_v3=execute,
        )
