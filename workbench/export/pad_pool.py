"""Keep ONNX Runtime from turning zeros around a picture into nothing before a maximum is taken.

ONNX Runtime 1.31 joins Pad and MaxPool into a MaxPool that pads by itself. That one never takes the padding for the
maximum, but a Pad puts zeros there, and a zero is more than any negative number: where all values of a window are
negative, the answer changes. It does not join them where the zero is written as -0.0, the same number.
"""

import numpy as np
import onnx
from onnx import numpy_helper


def keep_zero_padding(model: onnx.ModelProto) -> int:
    """Write the zeros of each Pad in front of a MaxPool as -0.0, in place, unless what is padded is never negative.

    Args:
        model: a network of opset 11 or later.
    Returns:
        How many Pad nodes were changed.
    Source: microsoft/onnxruntime, pull request 18136 (pad_fusion.cc) and the measurement in tests/test_pad_pool.py.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    pooled = {node.input[0] for node in model.graph.node if node.op_type == "MaxPool"}
    count = 0
    for node in model.graph.node:
        if node.op_type != "Pad" or node.output[0] not in pooled or len(node.input) < 2:
            continue
        source = makers.get(node.input[0])
        if (source is None or source.op_type != "Relu") and _pads_with_zero(node, constants):
            _write_negative_zero(model, node, constants)
            count += 1
    return count


def _pads_with_zero(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    mode = next((attribute.s for attribute in node.attribute if attribute.name == "mode"), b"constant")
    value = node.input[2] if len(node.input) > 2 else ""
    if mode != b"constant" or (value and value not in constants):
        return False
    if not value:
        return True
    number = numpy_helper.to_array(constants[value])
    return not number.any() and not np.signbit(number).any()


def _write_negative_zero(model: onnx.ModelProto, node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> None:
    value = constants.get(node.input[2]) if len(node.input) > 2 else None
    dtype = numpy_helper.to_array(value).dtype if value is not None else np.dtype(np.float32)
    name = f"{node.output[0]}_negative_zero"
    model.graph.initializer.append(numpy_helper.from_array(np.array(-0.0, dtype), name))
    rest = list(node.input[3:])
    node.input[:] = [*node.input[:2], name, *rest]
    if value is not None and not any(value.name in other.input for other in model.graph.node):
        model.graph.initializer.remove(value)
