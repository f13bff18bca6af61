"""What really computed: the types that ONNX Runtime's profile shows, and rounding where a machine lacks a type.

ONNX Runtime on most CPUs runs a float16 network in float32, without the roundings and overflows of float16: its
answers say nothing about a GPU. `rounded_copy` puts them back.
"""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from workbench.errors import ModelError
from workbench.files import atomic_path
from workbench.optional import require_backend
from workbench.runners.onnxruntime_runner import prepare_cuda, providers

HALVES = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
"""The 16-bit types of ONNX that a CPU does not compute in."""

FLOAT8 = (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2)

_HEAVY = ("Conv", "Gemm", "MatMul")
_BETWEEN = ("Cast", "QuantizeLinear", "DequantizeLinear", "Identity", "Reorder", "Memcpy", "Transpose")
_NAMES = {"float": "float32", "uint8": "int8", "double": "float64"}


@dataclass(frozen=True)
class Arithmetic:
    """The types in which the heavy layers of a network were computed.

    Attributes:
        types: how many layers in each type, such as `{"float16": 20, "float32": 1}`.
        heavy: whether these are convolutions and products of matrices; else all layers, for there were none of those.
    """

    types: Mapping[str, int]
    heavy: bool = True

    def is_mostly(self, dtype: str) -> bool:
        """Whether more than half of the layers were computed in this type."""
        return self.count(dtype) * 2 > sum(self.types.values())

    def to_text(self, dtype: str) -> str:
        """Say in how many layers a type computed.

        >>> Arithmetic({"int8": 14, "float32": 7}).to_text("int8")
        'int8 in 14 of 21 heavy layers'
        """
        total, kind = sum(self.types.values()), "heavy layers" if self.heavy else "layers"
        return dtype if self.count(dtype) == total else f"{dtype} in {self.count(dtype)} of {total} {kind}"

    def count(self, dtype: str) -> int:
        """How many layers computed in this type, or in one whose name begins so."""
        return sum(number for name, number in self.types.items() if name.startswith(dtype))


def profile_types(path: str | os.PathLike[str], feed: Mapping[str, np.ndarray], *, device: str = "cpu") -> Arithmetic:
    """Run a network once under ONNX Runtime's profiler, and read which types its layers computed in.

    Args:
        path: the `.onnx` file.
        feed: one array for each input, by name.
        device: `"cpu"` or `"cuda"`.
    Raises:
        ModelError: ONNX Runtime does not run this network.
    """
    runtime = require_backend("onnxruntime", "dev")
    if device == "cuda":
        prepare_cuda(runtime)
    with tempfile.TemporaryDirectory(prefix="workbench-profile-") as folder:
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "run")
        try:
            session = runtime.InferenceSession(str(path), options, providers=providers(device))
            session.run(None, dict(feed))
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise ModelError(f"ONNX Runtime cannot run {path}: {str(error).splitlines()[0]}") from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    layers = list(_kernels(events))
    heavy = [dtype for operator, dtype in layers if any(word in operator for word in _HEAVY)]
    rest = [dtype for operator, dtype in layers if not operator.startswith(_BETWEEN)]
    return Arithmetic(Counter(heavy or rest), bool(heavy))


def _kernels(events: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The operator and the type of the first input of every kernel that ran."""
    for event in events:
        what = event.get("args", {})
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            for entry in what.get("input_type_shape", [])[:1]:
                dtype = next(iter(entry))
                yield what.get("op_name", ""), _NAMES.get(dtype, dtype)


def rounded_copy(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write a network whose results are those of smaller floats, on a machine that computes in float32.

    Every 16-bit tensor becomes a float32 one that is rounded to 16 bits and back after the node that makes it: a value
    beyond the range becomes infinite, as on a GPU. The sums inside a node stay float32, as in a GPU's tensor cores.
    Q/DQ pairs of float8 become casts, for ONNX Runtime would fuse the pairs to operators that it does not have.

    Args:
        source: an `.onnx` file with float16, bfloat16 or float8 tensors.
        out: the `.onnx` file to write, without external data.
    Returns:
        `out`.
    """
    model = onnx.load(os.fspath(source))
    known = onnx.shape_inference.infer_shapes(model, data_prop=False)
    _round_graph(model.graph, known.graph, {})
    with atomic_path(out) as temporary:
        onnx.save(model, os.fspath(temporary))
    return Path(out)


def _round_graph(graph: onnx.GraphProto, known: onnx.GraphProto, outer: Mapping[str, int]) -> None:
    """Rewrite one graph and the bodies inside it; `outer` holds the types of the tensors around it."""
    types = dict(outer) | _element_types(known)
    nodes = []
    for node, twin in zip(graph.node, known.node, strict=True):
        for attribute, same in zip(node.attribute, twin.attribute, strict=True):
            if attribute.type == onnx.AttributeProto.GRAPH:
                _round_graph(attribute.g, same.g, types)
            elif attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t)
            elif attribute.name in ("to", "dtype") and attribute.i in HALVES:
                attribute.i = TensorProto.FLOAT
        nodes += [*_without_pairs(node, types, graph), *_roundings(node, types)]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    for tensor in graph.initializer:
        _widen(tensor)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in HALVES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def _element_types(graph: onnx.GraphProto) -> dict[str, int]:
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _roundings(node: onnx.NodeProto, types: Mapping[str, int]) -> Iterator[onnx.NodeProto]:
    """Rename the 16-bit outputs of a node, and yield the casts that round them under their old names."""
    for place, name in enumerate(node.output):
        if types.get(name) in HALVES:
            node.output[place] = f"{name}/exact"
            yield helper.make_node("Cast", [f"{name}/exact"], [f"{name}/rounded"], to=types[name])
            yield helper.make_node("Cast", [f"{name}/rounded"], [name], to=TensorProto.FLOAT)


def _without_pairs(node: onnx.NodeProto, types: Mapping[str, int], graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield a node as it is, or the division, product and cast that one half of a float8 pair stands for."""
    name, middle = node.output[0] if node.output else "", f"{node.output[0]}/between" if node.output else ""
    if node.op_type == "QuantizeLinear" and types.get(node.input[-1]) in FLOAT8:
        yield helper.make_node("Div", list(node.input[:2]), [middle])
        yield helper.make_node("Cast", [middle], [name], to=types[node.input[-1]])
    elif node.op_type == "DequantizeLinear" and types.get(node.input[-1]) in FLOAT8:
        yield helper.make_node("Cast", [node.input[0]], [middle], to=TensorProto.FLOAT)
        yield helper.make_node("Mul", [middle, _column(node, graph)], [name])
    else:
        yield node


def _column(node: onnx.NodeProto, graph: onnx.GraphProto) -> str:
    """The name of a pair's scale, brought to the axis of the tensor that it scales."""
    known = {tensor.name: tensor for tensor in graph.initializer}
    scale, scaled = known.get(node.input[1]), known.get(node.input[0])
    if scale is None or scaled is None or len(scale.dims) != 1:
        return node.input[1]
    axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1) % len(scaled.dims)
    shape = [-1 if place == axis else 1 for place in range(len(scaled.dims))]
    name = f"{node.output[0]}/scale"
    graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(scale).reshape(shape), name))
    return name


def _widen(tensor: onnx.TensorProto) -> None:
    """Turn a 16-bit constant into float32; every value stays as it is."""
    if tensor.data_type in HALVES:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
