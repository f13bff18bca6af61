"""Put the work before and after a segmentation network into its graph: pictures in, label maps out, 8 bits each.

A picture of 512 x 1024 pixels is 1.5 MB as uint8 and 6 MB as float32; its label map is 0.5 MB, its 20 channels
of logits are 42 MB. On a GPU those copies can cost more than the network.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from workbench.core.errors import InputError, ModelError
from workbench.core.files import check_outputs
from workbench.onnx_graph.edit import Namer, copy_of, dims, namer, opset, real_inputs, rename
from workbench.onnx_graph.file import load, write
from workbench.pictures.images import CITYSCAPES_MEAN

Model = onnx.ModelProto | str | os.PathLike[str]

OLDEST_OPSET = 12  # the first that says which channel an ArgMax takes on a tie: the lowest
_FLOATS = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}


def fuse_preprocessing(model: Model, out: str | os.PathLike[str], *, mean: ArrayLike = CITYSCAPES_MEAN) -> Path:
    """Let a network take pictures as they are: the graph turns the axes and subtracts the mean.

    The new graph computes what the old one does for `sub_mean_chw` of the same pictures, to the last bit.

    Args:
        model: an `.onnx` file or a loaded model, not modified; one input (batch, 3, H, W), float32 or float16.
        out: the `.onnx` file to write, whole or not at all; not the file that was read.
        mean: three numbers, RGB, 0..255.
    Returns:
        `out`. The input keeps its name and becomes (batch, H, W, 3) uint8, RGB; an open batch stays open.
    Raises:
        ModelError: not a valid ONNX model, several inputs, another layout or dtype.
        InputError: `mean` is not three numbers.
        ExportError: a network of more than 2 GB.
        OutputError: the file cannot be written.

    Cast comes before Transpose, because TensorRT does not transpose uint8.
    """
    check_outputs([out], [model])
    network = _open(model)
    value = _only(real_inputs(network.graph), "input")
    shape = dims(value.type.tensor_type)
    if len(shape) != 4 or shape[1] != 3:
        fix = "its layout is channels-last; export it channels-first" if shape[-1:] == (3,) else "give such a network"
        raise ModelError(f"{_text(value)}, expected a picture input (batch, 3, H, W); {fix}")
    _check_float(value, "the preprocessing may be in the graph already")
    offset = np.asarray(mean, np.float32)
    if offset.shape != (3,) or not np.isfinite(offset).all():
        raise InputError(f"got the mean {mean!r}, expected three numbers; pass (red, green, blue)")
    name, dtype, fresh = value.name, value.type.tensor_type.elem_type, namer(network)
    ready, number, chw, weight = (fresh(f"{name}_{part}") for part in ("ready", "float", "chw", "mean"))
    rename(network.graph, {name: ready})
    centred = ready if dtype == TensorProto.FLOAT else fresh(f"{name}_centred")
    nodes = [
        helper.make_node("Cast", [name], [number], fresh("cast_picture"), to=TensorProto.FLOAT),
        helper.make_node("Transpose", [number], [chw], fresh("picture_to_chw"), perm=[0, 3, 1, 2]),
        helper.make_node("Sub", [chw, weight], [centred], fresh("subtract_mean")),
    ]
    if centred != ready:
        nodes.append(helper.make_node("Cast", [centred], [ready], fresh("cast_centred"), to=dtype))
    for node in reversed(nodes):
        network.graph.node.insert(0, node)
    network.graph.initializer.append(numpy_helper.from_array(offset.reshape(1, 3, 1, 1), weight))
    batch, channels, height, width = value.type.tensor_type.shape.dim
    _set_type(value, TensorProto.UINT8, (batch, height, width, channels))
    return write(network, out)


def fuse_argmax(model: Model, out: str | os.PathLike[str], *, operator: str = "ArgMax") -> Path:
    """Let a network give label maps instead of logits: each pixel gets the number of its strongest channel.

    The labels are those of `argmax_classes`, so `color_map` paints both alike: on a tie the lowest channel wins, and
    a void channel keeps its number. But a NaN can no longer be seen: check the logits of the network before fusing.

    Args:
        model: an `.onnx` file or a loaded model, not modified; one output (batch, C, H, W), float32 or float16,
            C fixed and at most 256.
        out: the `.onnx` file to write, whole or not at all; not the file that was read.
        operator: `"ArgMax"`, which everything runs; or `"MaxPool"`, a maximum over the channels that tells where it
            was, for ONNX Runtime (TensorRT does not take it).
    Returns:
        `out`. The output keeps its name and becomes (batch, H, W) uint8; an open batch stays open.
    Raises:
        ModelError: not a valid ONNX model, an opset below 12, several outputs, another layout or dtype.
        InputError: another operator.
        ExportError: a network of more than 2 GB.
        OutputError: the file cannot be written.
    """
    if operator not in ("ArgMax", "MaxPool"):
        raise InputError(f"got operator={operator!r}, expected 'ArgMax' or 'MaxPool'")
    check_outputs([out], [model])
    network = _open(model)
    value = _only(network.graph.output, "output")
    _check_scores(value, network)
    name, fresh = value.name, namer(network)
    scores, strongest = fresh(f"{name}_scores"), fresh(f"{name}_strongest")
    rename(network.graph, {name: scores})
    nodes = [helper.make_node("ArgMax", [scores], [strongest], fresh("strongest_channel"), axis=1, keepdims=0)]
    if operator == "MaxPool":
        nodes = _max_pool(network.graph, value, scores, fresh)
    last = helper.make_node("Cast", [nodes[-1].output[0]], [name], fresh("cast_labels"), to=TensorProto.UINT8)
    network.graph.node.extend([*nodes, last])
    batch, _, height, width = value.type.tensor_type.shape.dim
    _set_type(value, TensorProto.UINT8, (batch, height, width))
    return write(network, out)


def _max_pool(graph: onnx.GraphProto, value: onnx.ValueInfoProto, scores: str, fresh: Namer) -> list[onnx.NodeProto]:
    """Pool (batch, 1, C, pixels) over C; the place of a maximum, counted through the whole batch, tells its channel."""
    channels, height, width = (dim.dim_value for dim in value.type.tensor_type.shape.dim[1:])
    if not height or not width:
        raise ModelError(f"{value.name} has an open height or width; fix them, or use operator='ArgMax'")
    pixels = height * width
    numbers = {"columns": [0, 1, channels, pixels], "pixels": pixels, "channels": channels, "rows": [0, height, width]}
    names = {key: fresh(f"{value.name}_{key}") for key in (*numbers, "table", "best", "place", "row", "label", "map")}
    nodes = [
        helper.make_node("Reshape", [scores, names["columns"]], [names["table"]]),
        helper.make_node("MaxPool", [names["table"]], [names["best"], names["place"]], kernel_shape=[channels, 1]),
        helper.make_node("Div", [names["place"], names["pixels"]], [names["row"]]),
        helper.make_node("Mod", [names["row"], names["channels"]], [names["label"]]),
        helper.make_node("Reshape", [names["label"], names["rows"]], [names["map"]]),
    ]
    for node in nodes:
        node.name = fresh(f"label_{node.op_type.lower()}")
    graph.initializer.extend(
        numpy_helper.from_array(np.array(number, np.int64), names[key]) for key, number in numbers.items()
    )
    return nodes


def _open(model: Model) -> onnx.ModelProto:
    """Read a checked model with its weights, or copy a loaded one."""
    if isinstance(model, onnx.ModelProto):
        return copy_of(model)
    return load(model)


def _only(values: Iterable[onnx.ValueInfoProto], kind: str) -> onnx.ValueInfoProto:
    values = list(values)
    if len(values) != 1:
        names = ", ".join(value.name for value in values) or "none"
        raise ModelError(f"the network has {len(values)} {kind}s ({names}), expected one; export it with one {kind}")
    return values[0]


def _check_scores(value: onnx.ValueInfoProto, network: onnx.ModelProto) -> None:
    used, shape, text = opset(network), dims(value.type.tensor_type), _text(value)
    if used < OLDEST_OPSET:
        raise ModelError(f"the network declares opset {used}, expected {OLDEST_OPSET} or more; export it with opset 17")
    _check_float(value, "the argmax may be in the graph already")
    if len(shape) != 4 or not shape[1] or shape[1] > 256:
        raise ModelError(f"{text}, expected logits (batch, C, H, W) with C fixed, 1 to 256; give such a network")
    sizes = [_picture_size(dims(given.type.tensor_type)) for given in real_inputs(network.graph)]
    if any(size and None not in size and shape[1:3] == size != shape[2:] for size in sizes):
        raise ModelError(f"{text}, whose layout is channels-last, expected (batch, C, H, W); transpose it first")


def _picture_size(shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """The rows and columns of an input; nothing when it is no picture."""
    if len(shape) != 4:
        return ()
    return shape[2:] if shape[1] == 3 else shape[1:3] if shape[3] == 3 else ()


def _check_float(value: onnx.ValueInfoProto, hint: str) -> None:
    if value.type.tensor_type.elem_type not in _FLOATS:
        raise ModelError(f"{_text(value)}, expected {' or '.join(_FLOATS.values())}; {hint}")


def _text(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    sizes = [str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in kind.shape.dim]
    return f"{value.name} is {dtype} ({', '.join(sizes)})"


def _set_type(value: onnx.ValueInfoProto, dtype: int, dims: Iterable[Any]) -> None:
    kind = helper.make_tensor_type_proto(dtype, [])
    kind.tensor_type.shape.dim.extend(dims)
    value.type.CopyFrom(kind)
