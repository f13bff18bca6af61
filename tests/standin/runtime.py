"""A stand-in for TensorRT's engine and execution context: the same methods, computed by ONNX Runtime.

It checks how the API is used. What it computes is ONNX Runtime's answer, and says nothing about TensorRT's.
"""

import enum
import types

import numpy as np
import onnx
import onnxruntime

from standin.device import StandInError, StandInMemory
from workbench.core.contract import TensorSpec
from workbench.engine.load import Engine
from workbench.engine.tensorrt_api import Flavour, make_logger

VERSION = "stand-in of the tests"


class DataType(enum.Enum):
    FLOAT = "float32"
    HALF = "float16"
    BF16 = "bfloat16"
    FP8 = "float8_e4m3fn"
    INT8 = "int8"
    INT32 = "int32"
    INT64 = "int64"
    UINT8 = "uint8"
    BOOL = "bool"


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class ILogger:
    """What `workbench.engine.tensorrt_api.make_logger` derives from."""

    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self):
        pass


class IExecutionContext:
    """The methods of `tensorrt.IExecutionContext` that the code under test may call."""

    def __init__(self, engine):
        self._engine = engine
        self._shapes, self._addresses, self._profile, self._prepared = {}, {}, 0, None

    def set_optimization_profile_async(self, profile_index, stream_handle):
        self._engine._memory.require_current()
        self._engine._memory.queue(stream_handle)
        self._profile, self._shapes = profile_index, {}
        return 0 <= profile_index < self._engine.num_optimization_profiles

    def set_input_shape(self, name, shape):
        self._engine._memory.require_current()
        shape = tuple(shape)
        if self._engine.get_tensor_mode(name) is not TensorIOMode.INPUT:
            raise StandInError(f"set_input_shape for {name}, which is no input")
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        if len(shape) != len(low) or not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            self._engine._say(f"[engine] set_input_shape: {name} {shape} does not satisfy the profile.")
            return False
        self._shapes[name] = shape
        return True

    def infer_shapes(self):
        return [name for name in self._engine._inputs if name not in self._shapes]

    def get_tensor_shape(self, name):
        if name in self._engine._inputs:
            return self._shapes.get(name, self._engine.get_tensor_shape(name))
        if self.infer_shapes():
            raise StandInError(f"the shape of {name} was asked for before every input shape was set")
        return self._engine._output_shape(name, self._shapes)

    def set_tensor_address(self, name, memory):
        if type(memory) is not int:
            raise StandInError(f"set_tensor_address takes an int, got {type(memory).__name__}")
        self._engine.get_tensor_mode(name)
        self._engine._memory.area_at(memory)
        self._addresses[name] = memory
        return True

    def get_tensor_address(self, name):
        return self._addresses.get(name, 0)

    def execute_async_v3(self, stream_handle):
        engine, memory = self._engine, self._engine._memory
        memory.require_current()
        for name in (*engine._inputs, *engine._outputs):
            if name not in self._addresses:
                raise StandInError(f"execute_async_v3 without an address for {name}")
        if self.infer_shapes():
            raise StandInError(f"execute_async_v3 without a shape for {', '.join(self.infer_shapes())}")
        if engine._refuse_execution:
            engine._say("IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (planted)")
            return False
        shapes = dict(self._shapes)
        if memory.capturing and self._prepared != shapes:
            raise StandInError("a graph was recorded without a run for these shapes before it")
        self._prepared = shapes
        areas = {name: memory.area_at(address) for name, address in self._addresses.items()}
        for name in engine._inputs:
            memory.require_stream(areas[name], stream_handle)
        outputs = {name: tuple(self.get_tensor_shape(name)) for name in engine._outputs}
        memory.put(stream_handle, lambda: self._run(areas, shapes, outputs), areas[next(iter(outputs))])
        return True

    def _run(self, areas, shapes, outputs):
        """What happens on the GPU, later."""
        engine, feed = self._engine, {}
        for name, shape in shapes.items():
            dtype = engine._inputs[name].dtype
            nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
            if areas[name].written != nbytes:
                raise StandInError(f"{name} needs {nbytes} bytes on the device, {areas[name].written} were copied")
            feed[name] = areas[name].data[:nbytes].view(dtype).reshape(shape).copy()
        answers = engine._session.run(list(outputs), feed)
        for (name, shape), answer in zip(outputs.items(), answers, strict=True):
            if answer.shape != shape:
                raise StandInError(f"{name} came out as {answer.shape}, foretold was {shape}")
            raw = np.ascontiguousarray(answer).reshape(-1).view(np.uint8)
            if raw.size > areas[name].data.size:
                raise StandInError(f"{name} needs {raw.size} bytes, its area has {areas[name].data.size}")
            areas[name].data[: raw.size], areas[name].written = raw, raw.size


class ICudaEngine:
    """The methods of `tensorrt.ICudaEngine` that the code under test may call."""

    def __init__(self, path, memory, profiles, logger, session=None):
        self._session = session or _open_session(path)
        self._model = onnx.load(path, load_external_data=False)
        self._memory, self._logger = memory, logger
        self._inputs = {value.name: _spec(value) for value in self._model.graph.input}
        self._outputs = {value.name: _spec(value) for value in self._model.graph.output}
        self._profiles = profiles or [_default_profile(self._inputs)]
        self._refuse_execution = self._refuse_context = False
        self._shapes_seen = {}

    @property
    def num_io_tensors(self):
        return len(self._inputs) + len(self._outputs)

    @property
    def num_optimization_profiles(self):
        return len(self._profiles)

    @property
    def num_layers(self):
        return len(self._model.graph.node)

    @property
    def name(self):
        return self._model.graph.name

    @property
    def device_memory_size_v2(self):
        return 0

    def get_tensor_name(self, index):
        return [*self._inputs, *self._outputs][index]

    def get_tensor_mode(self, name):
        if name in self._inputs:
            return TensorIOMode.INPUT
        if name in self._outputs:
            return TensorIOMode.OUTPUT
        raise StandInError(f"the engine has no tensor {name}")

    def get_tensor_shape(self, name):
        return tuple(-1 if size is None else size for size in self._find(name).shape)

    def get_tensor_dtype(self, name):
        return DataType(self._find(name).dtype)

    def get_tensor_location(self, name):
        self._find(name)
        return TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name, profile_index):
        shape = self.get_tensor_shape(name)
        return list(self._profiles[profile_index].get(name, (shape, shape, shape)))

    def create_execution_context(self):
        self._memory.require_current()
        if self._refuse_context:
            self._say("createExecutionContext: Error Code 2: OutOfMemory (planted)")
            return None
        return IExecutionContext(self)

    def _find(self, name):
        self.get_tensor_mode(name)
        return self._inputs.get(name) or self._outputs[name]

    def _say(self, text):
        self._logger.log(ILogger.Severity.ERROR, text)

    def _output_shape(self, name, shapes):
        """Shapes by shape inference, as TensorRT tells them before it runs; -1 where it cannot."""
        key = tuple(sorted(shapes.items()))
        if key not in self._shapes_seen:
            self._shapes_seen[key] = _infer_shapes(self._model, shapes)
        return self._shapes_seen[key][name]


def open_standin(path, *, profiles=None, memory=None, session=None):
    """Return (engine, memory) for an ONNX file: the package's own `Engine` over the stand-in.

    Args:
        path: the network.
        profiles: for each profile, (min, opt, max) of each dynamic input; 1, 4 and 8 pictures when None.
        memory: the stand-in of the GPU, a new one when None.
        session: computes instead of ONNX Runtime.
    """
    memory = memory or StandInMemory()
    module = types.SimpleNamespace(__version__=VERSION, ILogger=ILogger, DataType=DataType, TensorIOMode=TensorIOMode)
    flavour = Flavour("tensorrt", module, VERSION)
    logger = make_logger(flavour)
    return Engine(flavour, ICudaEngine(path, memory, profiles, logger, session), keep=(logger,)), memory


def _open_session(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _spec(value):
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return TensorSpec(value.name, shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name)


def _default_profile(inputs):
    dynamic = {name: spec.shape for name, spec in inputs.items() if None in spec.shape}
    return {name: tuple(_fill(shape, batch) for batch in (1, 4, 8)) for name, shape in dynamic.items()}


def _fill(shape, batch):
    return tuple(batch if axis == 0 and size is None else size or 16 for axis, size in enumerate(shape))


def _infer_shapes(model, shapes):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
            dim.dim_value = size
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        found = onnx.shape_inference.infer_shapes(copy, data_prop=True, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return {value.name: (-1,) for value in model.graph.output}
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim
        )
        for value in found.graph.output
    }
