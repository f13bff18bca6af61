"""Convert a float32 ONNX network to float16 or bfloat16, and say which nodes stay float32 and why."""

import contextlib
import os
from collections.abc import Collection, Iterator

import onnx
from onnx import inliner, version_converter

from workbench.core.errors import ExportError, InputError, ModelError, first_line
from workbench.core.files import check_outputs
from workbench.onnx_graph import edit
from workbench.onnx_graph.file import check, write
from workbench.onnx_graph.fold import fold_constants
from workbench.precision.custom import custom_schemas
from workbench.precision.half_graph import BFLOAT16, FLOAT16, HALVES, GraphConverter, Half, Rules
from workbench.precision.ranges import Ranges
from workbench.precision.spec import PrecisionReport

BFLOAT16_OPSET = 22  # the first in which convolutions and pooling take bfloat16

PathLike = str | os.PathLike[str]
Names = Collection[str]
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear")


def to_fp16(source: PathLike, out: PathLike, *, ranges: Ranges | None = None, keep: Names = ()) -> PrecisionReport:
    """Write a network whose layers compute in float16; its inputs and outputs keep their types.

    A node stays float32 where ONNX or TensorRT has no float16 for it, where one of its constants is too large or too
    small for float16, or where a tensor that it reads or writes was measured to be larger than 65504. Constants
    (weights too) are rounded to the nearest float16. A custom node is converted where its function takes float16.
    Nodes that calculate shapes stay as they are; the bodies of If and Loop are converted, what enters and leaves them
    is not.

    Args:
        source: a float32 `.onnx` file, not modified.
        out: the `.onnx` file to write, whole or not at all.
        ranges: what `measure_ranges` found for `source`; without it no overflow of a tensor is known.
        keep: names of nodes (or of what they write), or operators, that stay float32.
    Returns:
        How many nodes were converted, and the name, operator and reason of each that computes in float32.
    Raises:
        ModelError: not a valid ONNX model.
        InputError: already float16, bfloat16 or quantised, nothing to convert, ranges of another network, or a name
            in `keep` that the network does not have.
        ExportError: a network of more than 2 GB.
        OutputError: the file cannot be written.
    """
    return _convert(source, out, FLOAT16, ranges, keep)


def to_bf16(source: PathLike, out: PathLike, *, ranges: Ranges | None = None, keep: Names = ()) -> PrecisionReport:
    """Write a network whose layers compute in bfloat16: the span of float32, but 8 bits of mantissa for its 24.

    As `to_fp16`; the network is brought to opset 22 where its operators take no bfloat16 before. TensorRT has no
    bfloat16 ConvTranspose, so these nodes stay float32.
    """
    return _convert(source, out, BFLOAT16, ranges, keep)


def _convert(source: PathLike, out: PathLike, half: Half, ranges: Ranges | None, keep: Names) -> PrecisionReport:
    check_outputs([out], [source])
    check(source)
    model = onnx.load(os.fspath(source))
    _refuse_converted(source, model)
    if ranges is not None:
        ranges.check(source)
    before, model = edit.weight_bytes(stored(model)), _prepare(source, model, half)
    overflows = {} if ranges is None else ranges.overflows(half.name)
    valid = not _types_problem(model)
    values = edit.inferred_values(model)
    rules = Rules(half, edit.opset(model), overflows, _known_names(model, keep), custom_schemas(model, half, values))
    GraphConverter(model.graph, rules, values, edit.namer(model)).convert()
    if not rules.converted:
        kept = "; ".join(dict.fromkeys(reason for *_, reason in rules.kept))
        why = f" ({kept})" if kept else ""
        raise InputError(f"{source} has no node that can be converted to {half.name}{why}; build it as fp32")
    edit.tidy(model)
    if valid and (problem := _types_problem(model)):
        raise ExportError(f"{source} became a network of inconsistent types ({problem}); name that node in keep")
    write(model, out)
    after = edit.weight_bytes(stored(model))
    return PrecisionReport(half.precision, rules.converted, tuple(rules.kept), 0, before, after)


def stored(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The weights and constants of a network, those in the graphs inside its nodes too."""
    for graph in edit.graphs(model.graph):
        yield from ({tensor.name: tensor for tensor in graph.initializer} | edit.constants(graph)).values()


def _refuse_converted(source: PathLike, model: onnx.ModelProto) -> None:
    """Refuse a network in which somebody has chosen precisions before."""
    quantized = [node for node in edit.all_nodes(model.graph) if node.op_type in _QUANTIZED]
    if quantized:
        raise InputError(
            f"{source} is already quantised ({len(quantized)} Q/DQ nodes), expected a float32 network; "
            "convert the file it was made from"
        )
    if name := holds_half(model):
        raise InputError(
            f"{source} already holds {name} tensors, expected a float32 network; build it as it is, or convert "
            "the file it was made from"
        )


def holds_half(model: onnx.ModelProto) -> str:
    """The half float that some tensor of a network has; empty where none has."""
    kinds = {value.elem_type for value in edit.inferred_values(model).values()}
    kinds |= {tensor.data_type for tensor in stored(model)}
    return next((half.name for kind, half in HALVES.items() if kind in kinds), "")


def _prepare(source: PathLike, model: onnx.ModelProto, half: Half) -> onnx.ModelProto:
    """Bring a network into its form to convert: no functions but custom nodes', constants computed, nodes named."""
    if model.functions:  # custom nodes stay whole: a plugin may stand for them
        custom = [(item.domain, item.name) for item in model.functions if item.domain == edit.CUSTOM]
        model = inliner.inline_selected_functions(model, custom, exclude=True)
    if half is BFLOAT16:
        model = raise_opset(source, model, BFLOAT16_OPSET, "bfloat16")
    with contextlib.suppress(ModelError):  # constants that ONNX Runtime cannot compute stay nodes
        fold_constants(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    for index in reversed(range(len(model.graph.input))):
        if model.graph.input[index].name in weights:  # old exporters let a feed replace them
            del model.graph.input[index]
    model.ir_version = max(model.ir_version, 4)  # before, every weight had to be an input
    edit.name_nodes(model)
    return model


def raise_opset(source: PathLike, model: onnx.ModelProto, lowest: int, precision: str) -> onnx.ModelProto:
    """Bring a network to the opset that a precision needs, where its own is lower; an ExportError where ONNX cannot."""
    if edit.opset(model) >= lowest:
        return model
    try:
        raised = version_converter.convert_version(model, lowest)
        raised.functions.extend(model.functions)  # the converter leaves them out
        for part in (raised, *raised.functions):
            domains = {entry.domain: entry.version for entry in (*model.opset_import, *part.opset_import)}
            del part.opset_import[:]
            part.opset_import.extend(onnx.helper.make_opsetid(*entry) for entry in (domains | {"": lowest}).items())
        return raised
    except Exception as error:  # the converter raises what its C++ raises
        raise ExportError(
            f"{source} has opset {edit.opset(model)} and cannot be brought to {lowest}, which {precision} needs "
            f"({first_line(error)}); export it with opset {lowest}"
        ) from error


def _known_names(model: onnx.ModelProto, keep: Names) -> frozenset[str]:
    if isinstance(keep, str):
        raise InputError(f"got keep={keep!r}, expected a list of names, such as [{keep!r}]")
    nodes = edit.all_nodes(model.graph)
    known = {name for node in nodes for name in (node.name, node.op_type, *node.output)}
    unknown = [name for name in keep if name not in known]
    if unknown:
        kinds = ", ".join(sorted({node.op_type for node in nodes}))
        raise InputError(f"the network has no node {unknown[0]!r} to keep; give names of nodes or operators: {kinds}")
    return frozenset(keep)


def _types_problem(model: onnx.ModelProto) -> str:
    """What ONNX's inference says against the types of a network; empty where it agrees with all of them."""
    try:
        onnx.shape_inference.infer_shapes(edit.light_copy(model), check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        return " ".join(str(error).split())
    return ""
