"""Quantise a network to 8 bits: which nodes, where Q/DQ pairs go, which numbers they hold, how weights are stored."""

import importlib.util
import os
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from workbench.core.errors import BackendUnavailableError, InputError, ModelError
from workbench.core.files import check_outputs
from workbench.core.packages import require_backend
from workbench.core.process import Child, temporary_folder
from workbench.onnx_graph.edit import all_nodes, attribute, inner_graphs, name_nodes, remove_nodes, weight_bytes
from workbench.onnx_graph.file import check, write
from workbench.pictures.feeds import random_feed
from workbench.precision.calibration import LARGEST, Calibration
from workbench.precision.half import raise_opset, stored
from workbench.precision.observing import OPERATORS
from workbench.precision.spec import PrecisionReport

MODELOPT_CHILD = "workbench.precision.modelopt_child"
TYPES = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
WEIGHTED = OPERATORS[:4]
DEFAULTS = {"int8": WEIGHTED, "fp8": ("Conv", "Gemm", "MatMul")}
"""What is quantised where nothing else is asked for: the operators that take nearly all of the time. NVIDIA's Model
Optimizer quantises no ConvTranspose to float8 either."""
QUANTISERS = ("onnxruntime", "modelopt")
QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul")
OPSETS = {"int8": 13, "fp8": 19}  # the first whose QuantizeLinear knows one scale for each channel, and float8
IR_VERSIONS = {"int8": 7, "fp8": 9}

PathLike = str | os.PathLike[str]
Names = Collection[str]
Peaks = Mapping[str, float]  # the largest magnitude of each tensor that 8 bits shall hold


def quantize_int8(
    source: PathLike,
    out: PathLike,
    calibration: Calibration,
    *,
    operators: Names | None = None,
    exclude: Names = (),
    backend: str = "onnxruntime",
) -> PrecisionReport:
    """Quantise a network to int8 with explicit, symmetric Q/DQ pairs.

    An activation has one scale, that of the calibration, a weight one for each output channel; biases stay float32.

    Args:
        source: the float32 `.onnx` file.
        out: the `.onnx` file to write, whole or not at all.
        calibration: of this very network.
        operators: which to quantise, of `OPERATORS`; `DEFAULTS` when None.
        exclude: nodes to leave in float32, by name, by the name of what they write, or by operator.
        backend: who places the pairs: `"onnxruntime"`, or NVIDIA's `"modelopt"`, which leaves out nodes that it
            expects to be slower in 8 bits (a matrix times a vector, convolutions of few channels).
    Returns:
        How many nodes were quantised, which were not and why, and the number of pairs.
    Raises:
        InputError: a calibration of another network, an unknown operator or node, a network that is quantised
            already or not float32, or nothing to quantise.
        ModelError: not a valid ONNX file.
        BackendUnavailableError: modelopt is not installed.
        ExportError: modelopt failed, an opset that cannot be raised, or a result of more than 2 GB.
        OutputError: `out` cannot be written.
    """
    return _quantize(source, out, calibration, "int8", operators, exclude, backend)


def quantize_fp8(
    source: PathLike,
    out: PathLike,
    calibration: Calibration,
    *,
    operators: Names | None = None,
    exclude: Names = (),
    backend: str = "onnxruntime",
) -> PrecisionReport:
    """Quantise a network to float8 (E4M3: 3 bits of mantissa, up to 448) with explicit Q/DQ pairs.

    The scale maps the largest value seen to 448 whatever the calibration's method: a float keeps small values without
    cutting large ones. Arguments, result and errors are those of `quantize_int8`; the file has opset 19 at least.
    """
    return _quantize(source, out, calibration, "fp8", operators, exclude, backend)


def count_pairs(model: onnx.ModelProto) -> int:
    """How many tensors a network holds in 8 bits: its DequantizeLinear nodes, one for each pair or stored weight."""
    return sum(node.op_type == "DequantizeLinear" for node in model.graph.node)


def _quantize(
    source: PathLike,
    out: PathLike,
    calibration: Calibration,
    precision: str,
    operators: Names | None,
    exclude: Names,
    backend: str,
) -> PrecisionReport:
    _check_arguments(operators, backend)
    check_outputs([out], [source])
    operators, file = tuple(operators or DEFAULTS[precision]), Path(source).name
    check(source)
    network = onnx.load(str(source))
    _refuse(network, file)
    calibration.check(source)
    before, network = weight_bytes(stored(network)), raise_opset(source, network, OPSETS[precision], precision)
    network.ir_version = max(network.ir_version, IR_VERSIONS[precision])
    thresholds = calibration.thresholds if precision == "int8" else calibration.largest
    nodes, kept = _choose(network, thresholds, operators, exclude)
    if not nodes:
        reasons = "; ".join(sorted({reason for *_, reason in kept})) or f"it has no {' or '.join(operators)}"
        raise InputError(f"got {file}, in which nothing can be quantised: {reasons}")
    if backend == "modelopt":
        result = insert_by_modelopt(network, thresholds, nodes, precision)
    else:
        result = insert_pairs(network, thresholds, nodes, operators)
        store(result, precision)
    pairs = {name for node in result.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    left_out = [node for node in result.graph.node if node.name in nodes and not pairs & set(node.input)]
    if len(left_out) == len(nodes):
        raise ModelError(f"{backend} put no Q/DQ pair into {file}; leave it in float16 or use another backend")
    write(result, out)
    kept += [(node.name, node.op_type, f"left out by {backend}") for node in left_out]
    sizes = before, weight_bytes(stored(result))
    return PrecisionReport(precision, len(nodes) - len(left_out), tuple(kept), count_pairs(result), *sizes)


def _check_arguments(operators: Names | None, backend: str) -> None:
    if isinstance(operators, str):
        raise InputError(f"got operators={operators!r}, expected a list such as [{operators!r}]")
    if unknown := [name for name in operators or () if name not in OPERATORS]:
        raise InputError(f"got the operator {unknown[0]!r}, expected some of {', '.join(OPERATORS)}")
    if backend not in QUANTISERS:
        raise InputError(f"got backend={backend!r}, expected one of {', '.join(QUANTISERS)}")


def _refuse(network: onnx.ModelProto, file: str) -> None:
    if kinds := {node.op_type for node in all_nodes(network.graph)} & set(QUANTISED):
        raise InputError(f"{file} is quantised already ({', '.join(sorted(kinds))}); give the float32 network")
    types = Counter(tensor.data_type for tensor in network.graph.initializer)
    if types[TensorProto.FLOAT16] + types[TensorProto.BFLOAT16] > types[TensorProto.FLOAT]:
        raise InputError(f"{file} is in half precision already; give the float32 network it was made from")


def _choose(
    network: onnx.ModelProto, thresholds: Peaks, operators: Names, exclude: Names
) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Split the nodes of the operators into what is quantised and what is kept."""
    name_nodes(network)  # the quantisers choose nodes by name
    weights = {tensor.name for tensor in network.graph.initializer}
    nodes, kept, unknown = [], [], set(exclude)
    for node in network.graph.node:
        names = {node.name, node.op_type, *node.output} & set(exclude)
        unknown -= names
        if node.op_type not in operators:
            continue
        if reason := "excluded" if names else _obstacle(node, thresholds, weights):
            kept.append((node.name, node.op_type, reason))
        else:
            nodes.append(node.name)
    if unknown:
        raise InputError(
            f"got {min(unknown)!r} to exclude, expected the name of a node or an operator; `inspect` of "
            "onnx_graph lists them"
        )
    bodies = (body for node in network.graph.node for body in inner_graphs(node))
    inner = [node for body in bodies for node in all_nodes(body) if node.op_type in operators]
    return nodes, kept + [(node.name or node.output[0], node.op_type, "inside a branch or a loop") for node in inner]


def _obstacle(node: onnx.NodeProto, thresholds: Peaks, weights: Names) -> str:
    """Why a node cannot be quantised; empty where it can."""
    activations = [name for name in node.input[:2] if name not in weights]
    if not activations:
        return "reads constants only"
    if node.op_type in WEIGHTED[:3] and node.input[1] not in weights:
        return "its weights are no initializer"
    if any(name not in thresholds for name in activations):
        return "reads a tensor without a scale: not float32, or of unknown type"
    if not all(thresholds[name] for name in activations):
        return "reads a tensor that was 0 in all samples"
    return ""


def insert_pairs(model: onnx.ModelProto, thresholds: Peaks, nodes: Names, operators: Names) -> onnx.ModelProto:
    """Let ONNX Runtime's quantiser put int8 pairs before the nodes, and before their weights, which stay float32.

    Outputs get no pair of their own: what follows (bias, ReLU, addition) then stays fused with the node.
    """
    quantization = require_backend("onnxruntime.quantization", "dev")
    calibrate = require_backend("onnxruntime.quantization.calibrate", "dev")
    quantizers = require_backend("onnxruntime.quantization.qdq_quantizer", "dev")
    ends = {name: np.float32(end) for name, end in thresholds.items()}
    ranges = {name: calibrate.TensorData(lowest=-end, highest=end) for name, end in ends.items()}
    options: dict[str, object] = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    options |= {"AddQDQPairToWeight": True, "OpTypesToExcludeOutputQuantization": list(operators)}
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
        extra_options=options,
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
    remove_nodes(model, weights)


def insert_by_modelopt(model: onnx.ModelProto, thresholds: Peaks, nodes: Names, precision: str) -> onnx.ModelProto:
    """Let NVIDIA's Model Optimizer place the pairs, in a child process, and write our scales into them."""
    if importlib.util.find_spec("modelopt") is None:  # its import takes seconds; the child has it
        raise BackendUnavailableError(
            "modelopt is not installed; in the project's folder run: pip install -e '.[modelopt]'"
        )
    with temporary_folder() as folder, Child(MODELOPT_CHILD) as child:
        source, result, data = (folder / name for name in ("model.onnx", "quantised.onnx", "data.npz"))
        onnx.save(model, source)
        # it insists on data to calibrate with; its scales are replaced by ours
        inputs = {spec.name: spec for spec in check(source).inputs}
        np.savez(data, allow_pickle=False, **random_feed(inputs, np.random.default_rng(0)))
        paths = {"onnx": str(source), "data": str(data), "result": str(result)}
        child.run({**paths, "precision": precision, "nodes": list(nodes)})
        quantised = onnx.load(result)
    _write_scales(quantised, thresholds, precision)
    return quantised


def _write_scales(model: onnx.ModelProto, thresholds: Peaks, precision: str) -> None:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in tensors:
            continue
        name, scale = node.input[0], tensors[node.input[1]]
        if name not in thresholds:
            raise ModelError(f"nvidia-modelopt quantised {name}, which has no scale; use backend='onnxruntime'")
        value = np.full(tuple(scale.dims), thresholds[name] / LARGEST[precision], np.float32)
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
    kind, shape = tensors[node.input[2]].data_type, [1] * weight.ndim
    if scale.ndim:
        shape[attribute(node, "axis", 1)] = scale.size
    steps, largest = weight / scale.reshape(shape), LARGEST["fp8"]
    if kind == TYPES["int8"]:
        steps, largest = np.rint(steps), LARGEST["int8"]
    numbers = np.clip(steps, -largest, largest)
    data = numbers.astype(onnx.helper.tensor_dtype_to_np_dtype(kind)).tobytes()
    return onnx.TensorProto(name=node.output[0], dims=weight.shape, data_type=kind, raw_data=data)
