"""The Q/DQ pairs themselves: where a quantiser puts them, which numbers they hold, how weights are stored."""

import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from workbench.errors import BackendUnavailableError, ModelError
from workbench.export.conversion_process import ConversionProcess
from workbench.export.graph_edit import attribute, remove_nodes, tidy
from workbench.export.onnx_file import check
from workbench.feeds import random_array
from workbench.optional import require_backend
from workbench.precision.calibration import LARGEST

MODELOPT_CHILD = "workbench.precision.modelopt_child"

TYPES = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}


def insert_pairs(
    model: onnx.ModelProto, thresholds: Mapping[str, float], nodes: Sequence[str], operators: Sequence[str]
) -> onnx.ModelProto:
    """Let ONNX Runtime's quantiser put int8 pairs before the nodes, and before their weights, which stay float32.

    Outputs get no pair of their own: what follows (bias, ReLU, addition) then stays fused with the node.

    Args:
        model: a float32 network.
        thresholds: the magnitude that becomes 127, by tensor.
        nodes: which to quantise, by name.
        operators: their operators.
    Returns:
        Another network.
    """
    quantization = require_backend("onnxruntime.quantization", "dev")
    calibrate = require_backend("onnxruntime.quantization.calibrate", "dev")
    quantizers = require_backend("onnxruntime.quantization.qdq_quantizer", "dev")
    ranges = {
        name: calibrate.TensorData(lowest=np.float32(-end), highest=np.float32(end)) for name, end in thresholds.items()
    }
    quantizer = quantizers.QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=quantization.QuantType.QInt8,
        activation_qType=quantization.QuantType.QInt8,
        tensors_range=calibrate.TensorsData(quantization.CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=list(nodes),
        nodes_to_exclude=[],
        op_types_to_quantize=list(operators),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "AddQDQPairToWeight": True,
            "OpTypesToExcludeOutputQuantization": list(operators),
        },
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    result = quantizer.model.model
    del result.metadata_props[:]
    result.metadata_props.extend(model.metadata_props)
    return result


def store(model: onnx.ModelProto, precision: str) -> None:
    """Store each weight in 8 bits, so that only its DequantizeLinear stays, in place; pairs of int8 become float8."""
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    if precision == "fp8":
        for scale, zero in {(node.input[1], node.input[2]) for node in quantizers}:
            _to_float8(tensors[scale], tensors[zero])
    weights = [node for node in quantizers if node.input[0] in tensors]
    for node in weights:
        graph.initializer.append(_stored(node, tensors))
    remove_nodes(graph, weights)
    tidy(model)


def insert_by_modelopt(
    model: onnx.ModelProto, thresholds: Mapping[str, float], nodes: Sequence[str], precision: str
) -> onnx.ModelProto:
    """Let NVIDIA's Model Optimizer place the pairs, in a child process, and write our scales into them.

    Args:
        model: a float32 network.
        thresholds: the magnitude that becomes the largest 8-bit number, by tensor.
        nodes: which it may quantise, by name.
        precision: `"int8"` or `"fp8"`.
    Returns:
        Another network, weights stored in 8 bits.
    Raises:
        BackendUnavailableError: nvidia-modelopt is not installed.
        ExportError: it failed.
    """
    if importlib.util.find_spec("modelopt") is None:  # its import takes seconds; the child has it
        raise BackendUnavailableError(
            "modelopt is not installed; in the project's folder run: pip install -e '.[modelopt]'"
        )
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, ConversionProcess(MODELOPT_CHILD, {}) as process:
        source, result, data = (Path(folder) / name for name in ("model.onnx", "quantised.onnx", "data.npz"))
        onnx.save(model, source)
        # it insists on data to calibrate with; its scales are replaced by ours
        np.savez(data, allow_pickle=False, **{spec.name: random_array(spec, random) for spec in check(source).inputs})
        paths = {"onnx": str(source), "data": str(data), "result": str(result)}
        process.run({**paths, "precision": precision, "nodes": list(nodes)})
        quantised = onnx.load(result)
    _write_scales(quantised, thresholds, precision)
    return quantised


def _write_scales(model: onnx.ModelProto, thresholds: Mapping[str, float], precision: str) -> None:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in tensors:
            continue
        if node.input[0] not in thresholds:
            raise ModelError(
                f"nvidia-modelopt quantised {node.input[0]}, which has no scale; use backend='onnxruntime'"
            )
        scale = tensors[node.input[1]]
        value = np.full(tuple(scale.dims), thresholds[node.input[0]] / LARGEST[precision], np.float32)
        scale.CopyFrom(numpy_helper.from_array(value, scale.name))


def _to_float8(scale: onnx.TensorProto, zero: onnx.TensorProto) -> None:
    """Turn an int8 scale and its zero point into those of float8, in place."""
    array = numpy_helper.to_array(scale) * np.float32(LARGEST["int8"] / LARGEST["fp8"])
    scale.CopyFrom(numpy_helper.from_array(array, scale.name))
    data = bytes(array.size)  # float8's 0 is a byte of zeros
    zero.CopyFrom(onnx.TensorProto(name=zero.name, dims=zero.dims, data_type=TYPES["fp8"], raw_data=data))


def _stored(node: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto]) -> onnx.TensorProto:
    """Compute what a QuantizeLinear makes of a weight, under the name of its output."""
    weight, scale = (numpy_helper.to_array(tensors[name]) for name in node.input[:2])
    kind = tensors[node.input[2]].data_type
    shape = [1] * weight.ndim
    if scale.ndim:
        shape[attribute(node, "axis", 1)] = scale.size
    steps = weight / scale.reshape(shape)
    precision = "int8" if kind == TYPES["int8"] else "fp8"
    steps = np.rint(steps) if precision == "int8" else steps
    numbers = np.clip(steps, -LARGEST[precision], LARGEST[precision])
    data = numbers.astype(onnx.helper.tensor_dtype_to_np_dtype(kind)).tobytes()
    return onnx.TensorProto(name=node.output[0], dims=weight.shape, data_type=kind, raw_data=data)
