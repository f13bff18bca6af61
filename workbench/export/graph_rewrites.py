"""Write what tf2onnx does not know, or gets wrong, in other operators of TensorFlow, in place."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from workbench.core.errors import ExportError
from workbench.core.packages import load_tensorflow
from workbench.models.freezing import node_place

_RESIZES = {
    "ResizeArea": ("align_corners",),
    "ResizeBicubic": ("align_corners", "half_pixel_centers"),  # from a table of 1024 steps, 3e-4 off ONNX's own
    "ScaleAndTranslate": ("kernel_type", "antialias"),
}
"""Operators that resize, and their attributes that matter."""

_ARITHMETIC = re.compile(
    "Add(V2)?|Cast|Ceil|ConcatV2|Const|Div|ExpandDims|Fill|Floor|FloorDiv|FloorMod|Gather(V2)?|Identity|Maximum|Minimum"
    "|Mul|Neg|Pack|Prod|Range|RealDiv|Reshape|Round|Shape|Slice|Split|SplitV|Squeeze|StopGradient|StridedSlice|Sub"
    "|Transpose|Unpack"
)
"""Operators that a size is calculated with."""


def rewrite(graph_def: Any, layer_of: Mapping[str, str]) -> None:
    """Do all of them; ExportError names the Keras layer, of `layer_of`, whose resize depends on more than is known."""
    _replace_erfc(graph_def)
    _replace_sign_bit(graph_def)
    _resize_in_float32(graph_def)
    _replace_resizes(graph_def, layer_of)


def widen_bfloat16(graph_def: Any) -> Any:
    """Return a graph that computes in float32 what this one does in bfloat16, which ONNX Runtime has not on a CPU.

    Weights are rounded to bfloat16, but for those of a cell in a loop; a graph without bfloat16 is returned as it is.
    """
    tf = load_tensorflow()
    narrow, wide = tf.bfloat16.as_datatype_enum, tf.float32.as_datatype_enum
    new = type(graph_def)()
    new.CopyFrom(graph_def)
    constants = {node.name: node.attr["value"].tensor for node in new.node if node.op == "Const"}
    functions, found = new.library.function, False
    for node in (*new.node, *(node for function in functions for node in function.node_def)):
        if node.op == "Cast" and node.attr["DstT"].type == narrow and node.input[0] in constants:
            _fill(node, tf.cast(tf.make_ndarray(constants[node.input[0]]), tf.bfloat16).numpy())
        for value in node.attr.values():
            found |= narrow in (value.type, value.tensor.dtype, *value.list.type)
            if value.type == narrow:
                value.type = wide
            if value.tensor.dtype == narrow:
                value.tensor.CopyFrom(tf.make_tensor_proto(tf.make_ndarray(value.tensor).astype(np.float32)))
            if narrow in value.list.type:
                value.list.type[:] = [wide if kind == narrow else kind for kind in value.list.type]
    for end in (
        end for function in functions for end in (*function.signature.input_arg, *function.signature.output_arg)
    ):
        end.type = wide if end.type == narrow else end.type
    return new if found else graph_def


def _fill(node: Any, value: Any) -> None:
    """Turn a node into a constant, in place."""
    tf = load_tensorflow()
    node.op = "Const"
    del node.input[:]
    node.attr.clear()
    node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))


def _replace_erfc(graph_def: Any) -> None:
    """Write Erfc(x), which the exact GELU of Keras holds and ONNX does not have, as 1 - Erf(x)."""
    tf = load_tensorflow()
    for node in [node for node in graph_def.node if node.op == "Erfc"]:
        with tf.Graph().as_default() as graph:
            x = tf.compat.v1.placeholder(node.attr["T"].type)
            tf.subtract(tf.ones((), x.dtype), tf.math.erf(x), name=node.name)
        _put(graph_def, node, graph, {x.op.name: node.input[0]})


def _replace_sign_bit(graph_def: Any) -> None:
    """Ask for the sign by 1 / x, which tells -0 from 0, where `keras.ops.argmax` looks at the bits of a float32."""
    tf = load_tensorflow()
    nodes = {node.name: node for node in graph_def.node}
    for node in [node for node in graph_def.node if node.op == "Less"]:
        mask, zero = (nodes.get(name) for name in node.input)
        if mask is None or zero is None or mask.op != "BitwiseAnd":
            continue
        bits, least = (nodes.get(name) for name in mask.input)
        if bits is None or bits.op != "Bitcast" or bits.attr["T"].type != tf.float32.as_datatype_enum:
            continue
        if _constant(least) == np.iinfo(np.int32).min and _constant(zero) == 0:
            with tf.Graph().as_default() as graph:
                x = tf.compat.v1.placeholder(tf.float32)
                tf.less(tf.minimum(x, 1 / x), 0.0, name=node.name)
            _put(graph_def, node, graph, {x.op.name: bits.input[0]})


def _constant(node: Any) -> Any:
    known = node is not None and node.op == "Const"
    return load_tensorflow().make_ndarray(node.attr["value"].tensor) if known else None


def _resize_in_float32(graph_def: Any) -> None:
    """Put a Cast before each resize of another type: TensorFlow gives float32, where ONNX gives what was given."""
    tf = load_tensorflow()
    for node in [node for node in graph_def.node if node.op == "ResizeBilinear"]:
        if node.attr["T"].type != tf.float32.as_datatype_enum:
            cast = graph_def.node.add(name=f"{node.name}/float32", op="Cast", input=node.input[:1])
            cast.attr["SrcT"].type = node.attr["T"].type
            cast.attr["DstT"].type = node.attr["T"].type = tf.float32.as_datatype_enum
            node.input[0] = cast.name


def _replace_resizes(graph_def: Any, layer_of: Mapping[str, str]) -> None:
    """Write resizes that ONNX has not (area, bicubic, Lanczos, against aliasing) as mean pools or matrix products.

    A resize is linear in each axis: its matrix is what TensorFlow itself makes of the unit matrix.
    """
    nodes = [node for node in graph_def.node if node.op in _RESIZES]
    if not nodes:
        return
    tf = load_tensorflow()
    for node, (height, width, channels), (size, *moves) in _read_numbers(graph_def, nodes, layer_of):
        plain = node.op == "ResizeArea" and not node.attr["align_corners"].b
        if plain and size[0] % height == size[1] % width == 0:
            continue  # each pixel becomes a block: the nearest pixel, as which tf2onnx takes it
        matrices = [_matrix(node, axis, side, size, moves) for axis, side in enumerate((height, width))]
        with tf.Graph().as_default() as graph:
            x = tf.compat.v1.placeholder(node.attr["T"].type, (None, height, width, channels))
            values = tf.cast(x, tf.float32)
            if plain and height % size[0] == width % size[1] == 0:
                block = height // size[0], width // size[1]
                tf.nn.avg_pool2d(values, block, block, "VALID", name=node.name)
            else:
                values = tf.matmul(matrices[0], tf.reshape(values, (-1, height, width * channels)))
                values = tf.reshape(values, (-1, size[0], width, channels))
                tf.matmul(matrices[1], values, name=node.name)
        _put(graph_def, node, graph, {x.op.name: node.input[0]})


def _read_numbers(graph_def: Any, nodes: list[Any], layer_of: Mapping[str, str]) -> list[Any]:
    """Each node, the (height, width, channels) that it is given, and its other inputs: size, scale and translation.

    Left out is a bicubic one from or to an open size: ONNX has nearly the same. The others are an ExportError.
    """
    tf = load_tensorflow()
    found = []
    config = tf.compat.v1.ConfigProto(device_count={"GPU": 0})
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(config=config) as session:
        tf.import_graph_def(graph_def, name="")
        sources = [operation for operation in graph.get_operations() if operation.type == "Shape"]
        shapes = {source.outputs[0]: source.inputs[0].shape for source in sources}
        # nothing else is fed, so what depends on more than shapes cannot be computed
        feed = {
            output: [1, *shape[1:]] for output, shape in shapes.items() if shape.rank and shape[1:].is_fully_defined()
        }
        for node in nodes:
            picture, *others = graph.get_operation_by_name(node.name).inputs
            try:
                _require_arithmetic(others, {tensor.ref() for tensor in feed})
                found.append((node, [int(side) for side in picture.shape[1:]], session.run(list(others), feed)))
            except (TypeError, ValueError, tf.errors.OpError) as error:
                if node.op == "ResizeBicubic":
                    continue
                raise ExportError(
                    f"{node_place(node.name, layer_of)} resizes ({node.op}) from or to a size that is not fixed, which "
                    "ONNX cannot express; fix the sizes, or use bilinear interpolation there"
                ) from error
    return found


def _require_arithmetic(tensors: Iterable[Any], known: set[Any]) -> None:
    """ValueError where tensors come from more than sums and shapes, which alone are run."""
    pending, seen = [tensor for tensor in tensors if tensor.ref() not in known], set()
    while pending:
        operation = pending.pop().op
        if operation.name not in seen:
            seen.add(operation.name)
            if not _ARITHMETIC.fullmatch(operation.type) or operation.control_inputs:
                raise ValueError(operation.type)
            pending += [tensor for tensor in operation.inputs if tensor.ref() not in known]


def _matrix(node: Any, axis: int, side: int, size: Any, moves: list[Any]) -> Any:
    """(new side, side) float32: how a resize makes the pixels of one axis out of the old ones."""
    tf = load_tensorflow()
    attributes = {name: node.attr[name] for name in _RESIZES[node.op]}
    options = {name: getattr(value, value.WhichOneof("value")) for name, value in attributes.items()}
    if moves:
        options |= {"scale": [moves[0][axis], 1.0], "translation": [moves[1][axis], 0.0]}
    unit = np.eye(side, dtype=np.float32)[None, :, :, None]
    return getattr(tf.raw_ops, node.op)(images=unit, size=[size[axis], side], **options).numpy()[0, :, :, 0]


def _put(graph_def: Any, node: Any, graph: Any, sources: Mapping[str, str]) -> None:
    """Put a small graph, whose placeholders stand for `sources`, in the place of a node, whose name its end has."""
    name = node.name
    graph_def.node.remove(node)
    for part in graph.as_graph_def(add_shapes=True).node:
        if part.name in sources:
            continue
        new = graph_def.node.add()
        new.CopyFrom(part)
        new.name = name if part.name == name else f"{name}/{part.name}"
        new.input[:] = [sources.get(given, given if given == name else f"{name}/{given}") for given in part.input]
