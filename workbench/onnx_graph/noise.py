"""Measure what rounding does to a network: move its inputs and weights by next to nothing, and see what its outputs do.

Two correct executors sum in another order, so that they differ by about as much.
"""

import itertools
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from workbench.core.compare import batch_size
from workbench.core.contract import ordered_feed
from workbench.core.errors import InputError
from workbench.core.output_errors import OutputSums
from workbench.core.tolerance import RoundingNoise, Tolerance, coarsest
from workbench.onnx_graph.edit import all_nodes, attribute, copy_of, real_inputs
from workbench.onnx_graph.file import load
from workbench.onnx_graph.session import open_session, run_session

FEEDS = 2
"""Feeds that are moved: the noise of one picture is that of another within a factor of two."""

SEEDS, COARSE_SEEDS = range(3), range(3, 5)
COARSE_UNITS = {"float32": 16, "float16": 4, "bfloat16": 4, "8 bits": 4096}
"""How far the coarse moves go: as far as the limits allow, with 8 bits so far that some values take another step."""

FEWEST = 8
"""A row of no more numbers may be a size or a scale, which no executor rounds."""

_LAYERS = frozenset({"BatchNormalization", "Conv", "ConvTranspose", "Gemm", "GroupNormalization"})
_LAYERS |= {"InstanceNormalization", "LayerNormalization", "MatMul", "PRelu"}
"""What they read are weights, however few: an executor may fold them into others."""

_BITS = {np.dtype(np.float32): 23, np.dtype(np.float16): 10, np.dtype(helper.tensor_dtype_to_np_dtype(16)): 7}
"""Bits of the fraction of each float type."""

_FLOATS = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
_UNIT_BITS = {"float32": 23, "float16": 10, "bfloat16": 7, "8 bits": 23}
_INTEGER_WORDS = ("Quantize", "QLinear", "Integer")

Array = NDArray[Any]
Feeds = Iterable[tuple[str, Mapping[str, Array]]]


def rounding_noise(
    network: str | os.PathLike[str] | onnx.ModelProto, feeds: Feeds, *, unit: str | None = None
) -> RoundingNoise:
    """Measure what rounding does to a network; give the result to `compare_runners` or `verify` as their `tolerance`.

    Every input and every weight moves up or down by one unit in the last place of its float type, or not at all, by a
    seeded draw, half a unit on average; the spread of the outputs is the noise. Neither the network nor its file is
    changed.

    Args:
        network: an `.onnx` file, or the network itself.
        feeds: (name, feed) pairs as for `compare_runners`; the first two are moved.
        unit: the coarsest type that the network's makers compute in, a key of `CEILINGS`; the network's own when None.
    Returns:
        The noise of each output, column by column where values stand in columns.
    Raises:
        InputError: no feeds, or another number of inputs than the network has.
        ModelError: not a valid ONNX model, or one that ONNX Runtime does not run.
        ExportError: a network of more than 2 GB.
    """
    model = copy_of(network) if isinstance(network, onnx.ModelProto) else load(network)
    unit = coarsest(unit, own_unit(model))
    names = [value.name for value in real_inputs(model.graph)]
    kept = [dict(zip(names, ordered_feed(names, feed), strict=True)) for _, feed in itertools.islice(feeds, FEEDS)]
    if not kept:
        raise InputError("got no feeds, expected at least one to measure what rounding does; give (name, feed) pairs")
    weights = _free_weights(model)
    session = open_session(model, "measure what rounding does to the network", optimise="none")
    del model
    answers = [run_session(session, feed) for feed in kept]
    sums = []
    for seeds, units in ((SEEDS, 1), (COARSE_SEEDS, COARSE_UNITS[unit])):
        totals = {
            name: OutputSums((name, name), "auto", Tolerance(), place)
            for place, name in enumerate(answers[0])
            if answers[0][name].dtype.kind in "biuf"
        }
        for seed in seeds:
            draw = np.random.default_rng(seed)
            moved = {name: move(array, draw, units, unit) for name, array in weights.items()}
            for number, (feed, answer) in enumerate(zip(kept, answers, strict=True)):
                others = {name: move(array, draw, units, unit) for name, array in feed.items()}
                found = run_session(session, {**others, **moved})
                for name, total in totals.items():
                    total.add_batch(answer[name], found[name], [f"{seed} {number}"] * batch_size(answer.values()))
        sums.append(totals)
    outputs = tuple(total.noise(sums[1][name]) for name, total in sums[0].items())
    return RoundingNoise(unit, outputs, len(SEEDS) * len(kept))


def own_unit(model: onnx.ModelProto) -> str:
    """The coarsest type in a network: a key of `CEILINGS`."""
    types = {tensor.data_type for tensor in model.graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    nodes = all_nodes(model.graph)
    types |= {attribute(node, "to") for node in nodes if node.op_type == "Cast"}
    units = [_FLOATS[kind] for kind in types if kind in _FLOATS]
    if any(word in node.op_type for node in nodes for word in _INTEGER_WORDS):
        units.append("8 bits")
    return coarsest(*units)


def move(array: Array, draw: np.random.Generator, units: int, unit: str = "float32") -> Array:
    """Move each float up or down by some units in the last place, or not at all: half of them on average.

    Zeros, numbers that are nearly zero, and those that are not finite stay; so do integers. In a network of a coarser
    type a unit is that type's.

    >>> moved = move(np.ones(16, np.float32), np.random.default_rng(0), 1)
    >>> sorted(set(((moved - 1) * 2**24).tolist()))
    [-1.0, 0.0, 2.0]
    """
    bits = _BITS.get(array.dtype)
    if bits is None:
        return array
    kind = np.dtype(f"i{array.dtype.itemsize}")
    whole, smallest = np.ascontiguousarray(array).view(kind), np.array(1, kind) << bits
    most = (np.iinfo(kind).max >> bits) << bits  # the bits of infinity
    scaled = units << max(0, bits - _UNIT_BITS[unit])
    steps = np.array([-scaled, 0, 0, scaled], kind)[draw.integers(0, 4, array.shape, np.uint8)]
    size = whole & np.iinfo(kind).max
    steps[(size <= smallest + scaled) | (size >= most - scaled)] = 0
    return np.asarray((whole + steps).view(array.dtype))


def _free_weights(model: onnx.ModelProto) -> dict[str, Array]:
    """Make inputs of the weights, in place, so that they can be given with each run; their numbers by name."""
    have, weights = {value.name for value in model.graph.input}, {}
    own = {name for node in all_nodes(model.graph) if node.op_type in _LAYERS for name in node.input}
    for tensor in model.graph.initializer:
        many = len(tensor.dims) > 1 or math.prod(tensor.dims) > FEWEST
        if tensor.data_type in _FLOATS and (many or tensor.name in own):
            weights[tensor.name] = numpy_helper.to_array(tensor)
            if tensor.name not in have:
                model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return weights
