"""Look into an ONNX file: is it whole and valid, and what does it hold."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from workbench.errors import ModelError
from workbench.runners.base import TensorSpec


@dataclass(frozen=True)
class OnnxSummary:
    """What an ONNX graph holds.

    Attributes:
        inputs: name, shape and dtype of each input that is not a weight.
        outputs: the same for the outputs.
        operators: how many nodes of each operator.
        parameters: how many numbers the weights have.
        opset: of the default operator domain.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: dict[str, int]
    parameters: int
    opset: int

    def to_text(self) -> str:
        """Return a few aligned lines for people."""
        kinds = ", ".join(f"{count} {name}" for name, count in self.operators.items())
        lines = [f"input   {spec.name}: {spec.describe()}" for spec in self.inputs]
        lines += [f"output  {spec.name}: {spec.describe()}" for spec in self.outputs]
        lines += [f"nodes   {sum(self.operators.values())} ({kinds})"]
        return "\n".join([*lines, f"weights {self.parameters:,} numbers, opset {self.opset}"])


def check(path: str | os.PathLike[str]) -> OnnxSummary:
    """Check that a file is a whole, valid ONNX model and tell what it holds.

    Args:
        path: the `.onnx` file.
    Returns:
        Inputs, outputs, operators, parameters and opset.
    Raises:
        ModelError: a directory, an empty, text or truncated file, an unknown operator or opset, a graph
            without nodes, missing weights, or weights outside the model's folder.
    """
    path = Path(path)
    model = read(path)
    _check_opset(path, model)
    if not model.graph.node or not model.graph.output:
        raise ModelError(f"{path} holds an empty graph; export the model again")
    _check_external_data(path, model)
    _check_operators(path, model)
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} is not a valid ONNX graph: {_first_line(error)}; export the model again") from error
    return _summary(model)


def read(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read an ONNX file without its external weights.

    Raises:
        ModelError: it is missing, a directory, empty, or not ONNX.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelError(f"got the directory {path}, expected an .onnx file")
    if not path.exists():
        raise ModelError(f"{path} does not exist; give the path of an .onnx file")
    if path.stat().st_size == 0:
        raise ModelError(f"{path} is empty; export the model again")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises DecodeError, which is not public
        raise ModelError(
            f"{path} is not an ONNX file, or was cut short ({_first_line(error)}); copy it again"
        ) from error
    if not model.ir_version or not model.HasField("graph"):
        raise ModelError(f"{path} is not an ONNX file: it has no graph; copy it again")
    return model


def _check_opset(path: Path, model: onnx.ModelProto) -> None:
    opset = _opset(model)
    known = onnx.defs.onnx_opset_version()
    if not 1 <= opset <= known:
        raise ModelError(f"{path} declares opset {opset}, expected 1 to {known}; export it with opset 17")


def _check_external_data(path: Path, model: onnx.ModelProto) -> None:
    folder = path.resolve().parent
    for tensor in model.graph.initializer:
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), None)
        if location is None:
            continue
        file = (folder / location).resolve()
        if not file.is_relative_to(folder):
            raise ModelError(
                f"{path} keeps {tensor.name} in {location}, outside its own folder; move it beside the model"
            )
        if not file.is_file():
            raise ModelError(f"{path} keeps {tensor.name} in {location}, which is missing; copy it beside the model")


def _check_operators(path: Path, model: onnx.ModelProto) -> None:
    local = {(function.domain, function.name) for function in model.functions}
    unknown = {
        f"{node.domain + '.' if node.domain else ''}{node.op_type}"
        for node in model.graph.node
        if (node.domain, node.op_type) not in local
        and node.domain in ("", "ai.onnx")
        and not onnx.defs.has(node.op_type)
    }
    if unknown:
        raise ModelError(
            f"{path} uses operators that ONNX does not have: {', '.join(sorted(unknown))}; "
            "replace the layers they come from, or write them as a plugin"
        )


def _summary(model: onnx.ModelProto) -> OnnxSummary:
    weights = {tensor.name for tensor in model.graph.initializer}
    counts = Counter(node.op_type for node in model.graph.node)
    return OnnxSummary(
        inputs=tuple(_spec(value) for value in model.graph.input if value.name not in weights),
        outputs=tuple(_spec(value) for value in model.graph.output),
        operators=dict(counts.most_common()),
        parameters=sum(_size(tensor.dims) for tensor in model.graph.initializer),
        opset=_opset(model),
    )


def _spec(value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    if not tensor.elem_type:
        raise ModelError(
            f"{value.name} of the network is a {value.type.WhichOneof('value') or 'value'} without an element type, "
            "expected a tensor; export the network with tensors as its inputs and outputs"
        )
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return TensorSpec(value.name, shape, str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)))


def _size(dims: Any) -> int:
    size = 1
    for dim in dims:
        size *= dim
    return size


def _opset(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
