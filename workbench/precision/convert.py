"""Write the precision that an engine is asked for into a network, unless the file has it already."""

import itertools
import os
from collections.abc import Iterable
from dataclasses import replace

from onnx import TensorProto

from workbench.core.errors import InputError
from workbench.onnx_graph import edit
from workbench.onnx_graph.file import check, read
from workbench.onnx_graph.input_values import input_values
from workbench.pictures.feeds import Feed, make_feeds
from workbench.precision import half, quantize
from workbench.precision.calibration import Calibration, calibrate
from workbench.precision.half_graph import HALVES
from workbench.precision.ranges import measure_ranges
from workbench.precision.spec import EIGHT_BITS, TYPE_OF, PrecisionReport, PrecisionSpec

PathLike = str | os.PathLike[str]

# Operators that TensorRT makes convolutions or matrix products of.
_WITH_WEIGHTS = ("Attention", "Conv", "ConvTranspose", "DeformConv", "GRU", "Gemm", "LSTM", "MatMul", "RNN")
# Operators that move or convert numbers.
_MOVES = {
    "Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "If", "Loop", "Pad",
    "Range", "Reshape", "Scan", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
_FLOAT8 = {TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ}


def measure_spec(
    path: PathLike,
    spec: PrecisionSpec,
    calibration: PathLike | Calibration | None = None,
    images: PathLike | None = None,
    preprocess: str = "unit",
    feeds: Iterable[tuple[str, Feed]] | None = None,
    *,
    progress: bool = True,
) -> PrecisionSpec:
    """Add what a conversion needs to know of the tensors, measured now on `images` (a folder) or `feeds`, or before.

    `calibration` has the scales of 8 bits, or is their file, which is written where there are images or feeds. Both, or
    some for a file that is not converted, or that the network does not take, are an InputError.
    """
    if images is not None and feeds is not None:
        raise InputError("got feeds and images; give one of them")
    if images is None and feeds is None:
        given = Calibration.load(calibration) if isinstance(calibration, str | os.PathLike) else calibration
        return replace(spec, calibration=given)
    if isinstance(calibration, Calibration):
        raise InputError(
            "got images or feeds and a calibration that is made; give one of them, or the file to write it to"
        )
    if read_precision(path) == spec.precision:
        raise InputError(f"{os.fspath(path)} is in {spec.precision} and taken as it is; leave the images or feeds out")
    if feeds is None:
        specs, known = {entry.name: entry for entry in check(path).inputs}, input_values(read(path))
        found = make_feeds(specs, images, preprocess, known=known)
        feeds = itertools.chain([next(found)], found)  # a folder without pictures is refused before any bar is shown
    if spec.precision == "fp16":
        return replace(spec, ranges=measure_ranges(path, feeds, progress=progress))
    measured = calibrate(path, feeds, preprocess=preprocess if images is not None else None, progress=progress)
    if calibration is not None:
        measured.save(calibration)
    return replace(spec, calibration=measured)


def to_precision(path: PathLike, out: PathLike, spec: PrecisionSpec) -> PrecisionReport | None:
    """Write a network in a precision from `measure_spec`; None where nothing is written, for it needs no change.

    8 bits without a calibration, or with one of another network, are an InputError.
    """
    if spec.precision not in TYPE_OF:
        return None
    if read_precision(path) == spec.precision:
        if spec.calibration is not None:
            raise InputError(f"got a calibration, but {path} is in {spec.precision} and taken as it is; leave it out")
        return None
    if spec.precision in EIGHT_BITS:
        return _quantize(path, out, spec)
    if spec.precision == "bf16":
        return half.to_bf16(path, out, keep=spec.keep)
    return half.to_fp16(path, out, ranges=spec.ranges, keep=spec.keep)


def read_precision(path: PathLike) -> str:
    """Return the precision that is written in an ONNX file: `"int8"`, `"fp8"`, `"fp16"`, `"bf16"`, else `"fp32"`.

    A file with pairs of QuantizeLinear and DequantizeLinear is `"int8"` or `"fp8"`, whatever is between them.
    """
    model = read(path)
    nodes, types = edit.all_nodes(model.graph), {tensor.name: tensor.data_type for tensor in half.stored(model)}
    pairs = [node for node in nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if pairs:
        return "fp8" if any(types.get(name) in _FLOAT8 for node in pairs for name in node.input) else "int8"
    found = [*types.values(), *(value.type.tensor_type.elem_type for value in model.graph.input)]
    found += [edit.attribute(node, "to") for node in nodes if node.op_type == "Cast"]
    return next((HALVES[kind].precision for kind in found if kind in HALVES), "fp32")


def find_nodes(path: PathLike, words: Iterable[str]) -> tuple[tuple[str, str, str], ...]:
    """Find the nodes of these names, outputs or operators, and those in their bodies, as in `PrecisionReport.kept`."""
    wanted = set(words)
    chosen = [node for node in edit.all_nodes(read(path).graph) if wanted & {node.name, node.op_type, *node.output}]
    nodes = [*chosen, *(inner for node in chosen for body in edit.inner_graphs(node) for inner in edit.all_nodes(body))]
    names = {node.name or next(filter(None, node.output), ""): node.op_type for node in nodes}
    return tuple((name, operator, "you keep it") for name, operator in names.items())


def taken_as_kept(path: PathLike, spec: PrecisionSpec) -> tuple[tuple[str, str, str], ...]:
    """Find what stays float32 in a file that is built as it is: the nodes of `keep`, and those the file has in float32.

    The latter count for a half float only, and only where other nodes compute in it; entries as `PrecisionReport.kept`.
    """
    kept = find_nodes(path, spec.keep)
    wanted = next((kind for kind, half in HALVES.items() if half.precision == spec.precision), None)
    if wanted is None:
        return kept
    graph = edit.inferred(read(path)).graph
    ends = (value for part in edit.graphs(graph) for value in (*part.input, *part.value_info, *part.output))
    types = {value.name: value.type.tensor_type.elem_type for value in ends}
    nodes = [node for node in edit.all_nodes(graph) if node.op_type not in _MOVES]
    if not any(types.get(node.output[0]) == wanted for node in nodes):
        return kept
    wide = [node for node in nodes if types.get(node.output[0]) == TensorProto.FLOAT]
    entries = [(node.name or node.output[0], node.op_type, "the file has it in float32") for node in wide]
    return (*kept, *(entry for entry in entries if entry[0] not in {name for name, *_ in kept}))


def _quantize(path: PathLike, out: PathLike, spec: PrecisionSpec) -> PrecisionReport:
    if spec.calibration is None:
        raise InputError(
            f"got precision={spec.precision!r} without the ranges of the tensors; give pictures with images "
            "(--images DIR), or what was measured on them with calibration (--calibration FILE)"
        )
    write = quantize.quantize_int8 if spec.precision == "int8" else quantize.quantize_fp8
    report = write(path, out, spec.calibration, exclude=spec.keep)
    left_out = set(_WITH_WEIGHTS) - set(quantize.DEFAULTS[spec.precision])
    names = {name for name, _, _ in report.kept}
    others = (entry for entry in find_nodes(out, left_out) if entry[1] in left_out and entry[0] not in names)
    why = f"{spec.precision} leaves this operator out"
    return replace(report, kept=(*report.kept, *((name, operator, why) for name, operator, _ in others)))
