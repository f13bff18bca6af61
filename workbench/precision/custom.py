"""Which types a custom node takes: those for which ONNX's inference carries them through its function."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper

from workbench.onnx_graph import edit
from workbench.precision.half_graph import FLOAT, Half

_NAMES = {kind: f"tensor({name.lower()})" for name, kind in TensorProto.DataType.items()}


def custom_schemas(model: onnx.ModelProto, half: Half, values: edit.Values) -> dict[str, Any]:
    """A schema for each custom operator with a function: its float tensors are float32, or all the half float."""
    functions = {item.name: item for item in model.functions if item.domain == edit.CUSTOM}
    found = {}
    for node in edit.all_nodes(model.graph):
        if node.domain == edit.CUSTOM and node.op_type in functions and all(name in values for name in node.input):
            kinds = [values[name].elem_type for name in node.input]
            schema = _schema(model, functions[node.op_type], node, kinds, half)
            if schema is not None:
                found[node.op_type] = schema
    return found


def _schema(
    model: onnx.ModelProto, function: onnx.FunctionProto, node: onnx.NodeProto, kinds: list[int], half: Half
) -> Any:
    """None where ONNX's inference does not get through the function."""
    outputs = _infer(model, function, node, kinds)
    if not outputs or 0 in (*kinds, *outputs):
        return None
    halves = _infer(model, function, node, [half.kind if kind == FLOAT else kind for kind in kinds])
    wanted = [half.kind if kind == FLOAT else kind for kind in outputs]
    takes = halves == wanted and _holds(function, half)
    allowed = [_NAMES[FLOAT], *([_NAMES[half.kind]] if takes else [])]

    def formal(kinds: list[int]) -> list[Any]:
        names = ("T" if kind == FLOAT else _NAMES.get(kind, "") for kind in kinds)
        return [defs.OpSchema.FormalParameter(f"x{place}", name) for place, name in enumerate(names)]

    return defs.OpSchema(
        function.name, edit.CUSTOM, 1, inputs=formal(kinds), outputs=formal(outputs),
        type_constraints=[("T", allowed, "")],
    )  # fmt: skip


def _infer(model: onnx.ModelProto, function: onnx.FunctionProto, node: onnx.NodeProto, kinds: list[int]) -> list[int]:
    """The types of what a node gives when it reads these; none where the function does not take them."""
    inputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(node.input, kinds, strict=True)]
    unique = list({value.name: value for value in inputs}.values())
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    alone = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    alone.graph.CopyFrom(helper.make_graph([node], "alone", unique, outputs))
    try:
        inferred = onnx.shape_inference.infer_shapes(alone, check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, ValueError):
        return []
    return [value.type.tensor_type.elem_type for value in inferred.graph.output]


def _holds(function: onnx.FunctionProto, half: Half) -> bool:
    """Whether the float numbers in a function fit into the half float."""
    for node in function.node:
        tensor = edit.attribute(node, "value") if node.op_type == "Constant" else None
        if isinstance(tensor, TensorProto) and tensor.data_type == FLOAT:
            array = np.abs(numpy_helper.to_array(tensor))
            if array.max(initial=0, where=np.isfinite(array)) > half.largest:
                return False
    return True
