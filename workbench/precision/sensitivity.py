"""Round one layer of a network at a time, and see how much of the error of the answers comes from each."""

import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tqdm.auto import tqdm

from workbench.core.errors import InputError
from workbench.core.report import Report, Table
from workbench.onnx_graph.edit import Namer, attribute, constants, copy_of, namer
from workbench.onnx_graph.session import open_session, run_session
from workbench.pictures.feeds import Feed
from workbench.precision.calibration import Calibration
from workbench.precision.half_graph import HALVES
from workbench.precision.observing import Feeds, checked_feeds
from workbench.precision.ranges import measure_ranges

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # they hold nearly all the weights and the work
ROUNDED = ("int8", "fp16", "bf16")
INT8_LARGEST = 127
HEADINGS = ("layer", "operator", "error of the answers, this layer alone rounded")

Array = NDArray[Any]
_HALVES = {half.precision: half for half in HALVES.values()}


@dataclass(frozen=True)
class LayerSensitivity:
    """What rounding one layer does to the answers.

    `relative_l2` is the root of the summed squared differences of all outputs, as a share of the reference's; infinite
    where an answer is not finite.
    """

    node: str  # its name, or that of what it writes where it has none
    operator: str
    relative_l2: float


@dataclass(frozen=True)
class Sensitivity(Report):
    """The error that each layer causes alone.

    Attributes:
        precision: what the layers were rounded to.
        samples: how many feeds were run.
        layers: every layer, in the order of the graph.
    """

    precision: str
    samples: int
    layers: tuple[LayerSensitivity, ...]

    def total_error(self, keep: Collection[str] = ()) -> float:
        """The error to be expected when all layers are rounded but those in `keep`, if the errors are independent.

        >>> layers = (LayerSensitivity("a", "Conv", 0.03), LayerSensitivity("b", "Conv", 0.04))
        >>> Sensitivity("int8", 1, layers).total_error(), Sensitivity("int8", 1, layers).total_error(["b"])
        (0.05, 0.03)
        """
        return math.hypot(*(layer.relative_l2 for layer in self.layers if layer.node not in keep))

    @property
    def verdict(self) -> str:
        """One sentence."""
        worst, total = max(self.layers, key=lambda layer: layer.relative_l2), share_text(self.total_error())
        return (
            f"{self.precision}: rounding all {len(self.layers)} layers should cost {total} of the answers; the most "
            f"sensitive is {worst.node} ({worst.operator}) with {share_text(worst.relative_l2)} alone."
        )

    def _tables(self) -> list[Table]:
        worst_first = sorted(self.layers, key=lambda layer: -layer.relative_l2)
        return [Table(HEADINGS, [(layer.node, layer.operator, share_text(layer.relative_l2)) for layer in worst_first])]

    def _content(self) -> dict[str, Any]:
        return super()._content() | {"total_relative_l2": self.total_error()}


def share_text(error: float) -> str:
    """Write an error for people.

    >>> share_text(0.01064), share_text(0.00023), share_text(math.inf)
    ('1.06 %', '0.023 %', 'not finite')
    """
    return f"{100 * error:.3g} %" if math.isfinite(error) else "not finite"


def sensitivity(
    source: str | os.PathLike[str],
    feeds: Feeds,
    precision: str = "int8",
    *,
    operators: Collection[str] = OPERATORS,
    calibration: Calibration | None = None,
    progress: bool = True,
) -> Sensitivity:
    """Round what one layer reads, its weights too, and compare the answers; then the next layer.

    Everything else stays float32. int8 is symmetric, with one scale for the activations and one for each channel of
    the weights. With fp16 and bf16 the layer's result is rounded as well.

    Args:
        source: a float32 `.onnx` file.
        feeds: a few samples, feeds or (name, feed) pairs; all are held in memory, and run once for each layer.
        precision: `"int8"`, `"fp16"` or `"bf16"`.
        operators: which layers to look at.
        calibration: the scales for int8; the largest magnitudes on these samples when None.
        progress: show a bar.
    Raises:
        InputError: no feeds, an unknown precision, no such layers, or a calibration of another network.
        FeedError: a feed that the network does not take.
        ModelError: not a valid ONNX model, or one that ONNX Runtime does not run.
        ExportError: a network of more than 2 GB.
    """
    if precision not in ROUNDED:
        raise InputError(f"got precision={precision!r}, expected one of {', '.join(ROUNDED)}")
    samples = [feed for _, feed in checked_feeds(source, feeds, "read samples", progress=False)]
    peaks: dict[str, float] = {}
    if precision == "int8" and calibration is not None:
        calibration.check(source)
        peaks = calibration.thresholds
    elif precision == "int8":
        peaks = {entry.name: entry.absmax for entry in measure_ranges(source, samples, progress=False).tensors}
    model = onnx.load(os.fspath(source))
    reference, layers = _answers(model, samples), []
    for index in tqdm(_chosen(model, operators), f"round to {precision}", leave=False, disable=not progress):
        node = model.graph.node[index]
        error = _error(reference, _answers(_rounded(model, index, precision, peaks), samples))
        layers.append(LayerSensitivity(node.name or node.output[0], node.op_type, error))
    return Sensitivity(precision, len(samples), tuple(layers))


def layers_to_keep(measured: Sensitivity, target_error: float) -> tuple[str, ...]:
    """The fewest layers to leave in float32 so that the expected error stays within a target.

    Args:
        measured: what `sensitivity` found.
        target_error: of the answers, as a share; 0.01 for 1 percent.
    Returns:
        Names of nodes, the most sensitive first; for `keep` of `to_fp16` or `exclude` of `quantize_int8`.
    Raises:
        InputError: a target that is not positive.
    """
    if not target_error > 0:
        raise InputError(f"got target_error={target_error}, expected a positive share such as 0.01")
    kept: list[str] = []
    for layer in sorted(measured.layers, key=lambda layer: -layer.relative_l2):
        if measured.total_error(kept) <= target_error:
            break
        kept.append(layer.node)
    return tuple(kept)


def round_to_int8(array: NDArray[np.float32], peak: NDArray[np.float32] | float) -> NDArray[np.float32]:
    """Round to the nearest int8 without a zero point, and back; what is beyond -128 or 127 steps is cut.

    `peak` is the magnitude that becomes 127, broadcast against the array; where it is 0, nothing is rounded.

    >>> round_to_int8(np.array([0.0, 0.004, 0.3, 1.27, 9.0], np.float32), 1.27).round(3).tolist()
    [0.0, 0.0, 0.30000001192092896, 1.2699999809265137, 1.2699999809265137]
    """
    scale = np.where(np.asarray(peak) > 0, np.asarray(peak, np.float32) / np.float32(INT8_LARGEST), np.float32(1))
    return (np.clip(np.rint(array / scale), -INT8_LARGEST - 1, INT8_LARGEST) * scale).astype(np.float32)


def _chosen(model: onnx.ModelProto, operators: Collection[str]) -> list[int]:
    """The places of the nodes to round: of these operators, and reading what depends on the feed."""
    known = constants(model.graph)
    places = [
        place
        for place, node in enumerate(model.graph.node)
        if node.op_type in operators and not known.keys() >= set(node.input[:2])
    ]
    if not places:
        raise InputError(f"got a network without {' or '.join(operators)}, expected one at least; name other operators")
    return places


def _answers(model: onnx.ModelProto, samples: list[Feed]) -> list[Array]:
    """Every output for every sample, each pair of QuantizeLinear and DequantizeLinear doing nothing but round."""
    session = open_session(model, fuse_qdq=False)
    return [array for feed in samples for array in run_session(session, feed).values()]


def _error(reference: list[Array], rounded: list[Array]) -> float:
    """Difference of all answers relative to the reference, in the root of summed squares."""
    pairs = [pair for pair in zip(reference, rounded, strict=True) if pair[0].dtype.kind == "f"]
    if not pairs:
        raise InputError("got a network without floating point outputs, expected logits; cut its ArgMax off")
    with np.errstate(invalid="ignore", over="ignore"):
        wrong = sum(float(np.square(one.astype(np.float64) - other).sum()) for one, other in pairs)
    size = sum(float(np.square(one.astype(np.float64)).sum()) for one, _ in pairs)
    return math.sqrt(wrong / size) if math.isfinite(wrong) and size else (0.0 if wrong == 0 else math.inf)


def _rounded(model: onnx.ModelProto, index: int, precision: str, peaks: Mapping[str, float]) -> onnx.ModelProto:
    """A copy of the network in which one node reads rounded tensors and, in 16 bits, writes one."""
    trial = copy_of(model)
    graph, weights, fresh = trial.graph, constants(trial.graph), namer(trial)
    nodes, before, after = list(graph.node), list[onnx.NodeProto](), list[onnx.NodeProto]()
    node = nodes[index]
    for place, name in enumerate(node.input[:2]):
        node.input[place] = inner = fresh(f"{name}_rounded")
        if name in weights:
            array = _round_weight(node, place, numpy_helper.to_array(weights[name]), precision)
            graph.initializer.append(numpy_helper.from_array(array, inner))
        else:
            before += _rounding(graph, name, inner, precision, peaks.get(name, 0.0), fresh)
    if precision in _HALVES:
        result = node.output[0]
        node.output[0] = exact = fresh(f"{result}_exact")
        after += _rounding(graph, exact, result, precision, 0.0, fresh)
    del graph.node[:]
    graph.node.extend([*nodes[:index], *before, node, *after, *nodes[index + 1 :]])
    return trial


def _rounding(
    graph: onnx.GraphProto, name: str, result: str, precision: str, peak: float, fresh: Namer
) -> Iterator[onnx.NodeProto]:
    """Two nodes that round a tensor; one that hands it on where a tensor was always 0."""
    middle = fresh(f"{result}_{precision}")
    if precision in _HALVES:
        yield helper.make_node("Cast", [name], [middle], to=_HALVES[precision].kind)
        yield helper.make_node("Cast", [middle], [result], to=TensorProto.FLOAT)
    elif peak:
        scale, zero = fresh(f"{result}_scale"), fresh(f"{result}_zero")
        graph.initializer.append(numpy_helper.from_array(np.array(peak / INT8_LARGEST, np.float32), scale))
        graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), zero))
        yield helper.make_node("QuantizeLinear", [name, scale, zero], [middle])
        yield helper.make_node("DequantizeLinear", [middle, scale, zero], [result])
    else:
        yield helper.make_node("Identity", [name], [result])


def _round_weight(node: onnx.NodeProto, place: int, array: Array, precision: str) -> Array:
    if precision in _HALVES:
        with np.errstate(over="ignore"):
            return array.astype(_HALVES[precision].dtype).astype(np.float32)
    axis = _channel_axis(node, array.ndim) if place == 1 else None
    others = None if axis is None else tuple(other for other in range(array.ndim) if other != axis)
    return round_to_int8(array, np.abs(array).max(others, keepdims=True, initial=0))


def _channel_axis(node: onnx.NodeProto, rank: int) -> int | None:
    """The axis of a weight along which each output channel has its own numbers; None where there is none."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if attribute(node, "group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return rank - 1 if rank > 1 else None
