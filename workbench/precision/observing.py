"""Watch the tensors that 8 bits may hold while a network runs on samples, in bounded memory."""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from workbench.errors import InputError, ModelError
from workbench.export.graph_edit import constants, fixed_shape, inferred_values, light_copy, real_inputs
from workbench.export.onnx_file import read
from workbench.optional import require_backend
from workbench.precision.thresholds import Histogram, largest_magnitude

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add")
"""The operators whose inputs can be quantised."""

BUDGET_BYTES = 1 << 30
"""Size of the tensors that one run keeps at most; a network with more of them runs several times for each sample."""

UNKNOWN_BYTES = 64 << 20


def observable(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """The float32 tensors that are no weights and that an operator of `OPERATORS` reads, in the order of the graph."""
    values, known = inferred_values(model), constants(model.graph)
    weights = {tensor.name for tensor in model.graph.initializer} | set(known)
    names = (name for node in model.graph.node if node.op_type in OPERATORS for name in node.input[:2])
    return {
        name: values[name]
        for name in dict.fromkeys(names)
        if name not in weights and name in values and values[name].elem_type == onnx.TensorProto.FLOAT
    }


class TensorObserver:
    """Runs samples and keeps, for each observable tensor, the largest magnitude or a histogram.

    Args:
        source: a checked `.onnx` file.
        feed: one sample: its shapes stand for all when the memory is planned.
        histograms: also keep histograms, which thresholds other than the largest value need.
    Raises:
        InputError: nothing in the network can be quantised.
        ModelError: ONNX Runtime does not open the network.
    """

    def __init__(self, source: str | os.PathLike[str], feed: Mapping[str, np.ndarray], *, histograms: bool) -> None:
        model = read(source)
        tensors = observable(sized(model, feed))
        if not tensors:
            raise InputError(
                f"got {Path(source).name}, in which no {', '.join(OPERATORS)} reads a float32 tensor: there is nothing "
                "to quantise; give the float32 network"
            )
        self._fed = {value.name for value in real_inputs(model.graph)}
        groups = list(tensor_groups({name: value for name, value in tensors.items() if name not in self._fed}))
        self._sessions = [(names, open_with_outputs(model, Path(source), names)) for names in groups]
        self._given = [name for name in tensors if name in self._fed]
        self._histograms = {name: Histogram() for name in tensors} if histograms else {}
        self._largest = dict.fromkeys(tensors, 0.0)

    def add(self, sample: str, feed: Mapping[str, np.ndarray]) -> None:
        """Run one sample.

        Raises:
            InputError: a tensor inside the network is NaN or infinite.
        """
        for name in self._given:
            self._observe(sample, name, feed[name])
        for names, session in self._sessions:
            for name, values in zip(names, session.run(names, dict(feed)), strict=True):
                self._observe(sample, name, values)

    def largest(self) -> dict[str, float]:
        """The largest magnitude of each tensor."""
        return dict(self._largest)

    def thresholds(self, method: str) -> dict[str, float]:
        """See `Histogram.threshold`."""
        return {name: kept.threshold(method) for name, kept in self._histograms.items()} or self.largest()

    def _observe(self, sample: str, name: str, values: np.ndarray) -> None:
        largest = largest_magnitude(values)
        if not math.isfinite(largest):
            raise InputError(f"got NaN or infinity in the tensor {name} on {sample}; mend the network or the sample")
        self._largest[name] = max(self._largest[name], largest)
        if self._histograms:
            self._histograms[name].add(values)


def sized(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A copy without large weights whose inputs have the feed's shapes, so that the sizes of tensors are known."""
    light = light_copy(model)
    for value in real_inputs(light.graph):
        kind = onnx.helper.np_dtype_to_tensor_dtype(feed[value.name].dtype)
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, feed[value.name].shape))
    return light


def tensor_groups(tensors: Mapping[str, onnx.TypeProto.Tensor]) -> Iterator[list[str]]:
    """Split tensors so that each group fits into the budget; one that is larger stands alone."""
    group: list[str] = []
    used = 0
    for name, value in tensors.items():
        shape = fixed_shape(value)
        size = UNKNOWN_BYTES if shape is None else math.prod(shape) * 4
        if group and used + size > BUDGET_BYTES:
            yield group
            group, used = [], 0
        group, used = [*group, name], used + size
    if group:
        yield group


def open_with_outputs(model: onnx.ModelProto, source: Path, names: list[str]) -> Any:
    """Open the network with these tensors as its outputs."""
    runtime = require_backend("onnxruntime", "dev")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    folder = str(source.resolve().parent)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    outputs = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    try:
        return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no public base
        reason = str(error).splitlines()[0]
        raise ModelError(f"ONNX Runtime cannot show the tensors inside {source}: {reason}") from error
    finally:
        del model.graph.output[:]
        model.graph.output.extend(outputs)
