"""Find the first layer at which two forms of a network differ, without holding all their tensors at once."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from workbench.core.errors import InputError
from workbench.core.report import count
from workbench.core.tolerance import Tolerance
from workbench.parity.layer_errors import LayerError, explain, short_error, tensor_error
from workbench.parity.pairs import Layers, Pairing, pair_tensors
from workbench.parity.probes import GraphProbe, open_probe
from workbench.parity.reports import AROUND, Divergence, Kind

BUDGET_BYTES = 256 << 20
ROUND = 16
"""Pairs compared in one round; a run costs the same for one tensor as for many, so more than two are asked for."""

FLOOR = 2e-7
"""Errors below this are rounding of float32 and count as none."""

JUMP = 8.0
"""An error that grows by this factor from one layer to the next is a jump. Rounding grows by 1 to 3 per layer."""


def first_divergence(
    reference: Any,
    candidate: Any,
    feed: Mapping[str, np.ndarray],
    *,
    tolerance: Tolerance | float | None = None,
    budget_bytes: int = BUDGET_BYTES,
    layers: Layers = (),
    progress: bool = True,
) -> Divergence:
    """Walk to the first layer whose error jumps.

    The tensors inside both networks are paired; a bisection over the graph compares some of them, then all the
    neighbours of the layer that it ends at.

    Args:
        reference: what is right by definition: a Keras or tf_keras model, a FrozenGraph, or a file of one of these
            or an `.onnx` file.
        candidate: what is judged, of the same kinds.
        feed: one array for each input, by name: one picture that shows the fault is enough.
        tolerance: the error from which a layer is wrong, as a share of its range, or the limits whose
            `max_relative_error` that is; that of `Tolerance()` when None.
        budget_bytes: how much of both networks' tensors may be held at a time; a single pair that is larger is
            compared alone.
        layers: names of the Keras layers, or the layer by tensor, where the reference does not know them (an ONNX
            file).
        progress: show a bar.
    Returns:
        The layer, the errors over depth, and what has no counterpart.
    Raises:
        InputError: a budget or tolerance of 0 or less, an engine, or a feed of another network.
        ModelError: a network cannot be opened.
    """
    allowed = tolerance if isinstance(tolerance, float | int) else (tolerance or Tolerance()).max_relative_error
    if not (math.isfinite(allowed) and allowed > 0 and budget_bytes > 0):
        raise InputError(f"got tolerance {allowed} and budget_bytes {budget_bytes}, expected numbers above 0")
    ours, theirs = open_probe(reference, feed), open_probe(candidate, feed)
    with tqdm(desc="look for the layer", unit="tensor", leave=False, disable=not progress) as bar:
        return _Search(ours, theirs, pair_tensors(ours, theirs, layers), float(allowed), budget_bytes, bar).run()


@dataclass
class _Search:
    """One bisection: what was compared, and how the networks are run for more; `bar` is moved by each tensor."""

    reference: GraphProbe
    candidate: GraphProbe
    pairing: Pairing
    allowed: float
    budget_bytes: int
    bar: Any
    errors: dict[int, LayerError | None] = field(default_factory=dict)
    false_pairs: set[int] = field(default_factory=set)
    runs: int = 0
    fetched_bytes: int = 0

    def __post_init__(self) -> None:
        self.parents = [pair.parents for pair in self.pairing.pairs]
        self.ancestors: list[int] = []  # all that a pair is computed from, as the bits of a number
        for ours in self.parents:
            closure = 0
            for parent in ours:
                closure |= self.ancestors[parent] | 1 << parent
            self.ancestors.append(closure)

    def run(self) -> Divergence:
        """Bisect, look at the neighbours, and say what was found."""
        everything = range(len(self.parents))
        self.compare([*self.pairing.outputs, *_spread(everything, ROUND)])
        wrong = [place for place in self.pairing.outputs if self.error(place) > self.allowed]
        if not wrong:  # whatever is wrong inside does no harm
            return self._report("none", None)
        start = max(wrong, key=self.error)
        found = self._earliest_wrong(start)
        while self._is_false_pair(found):
            self.false_pairs.add(found)
            found = self._earliest_wrong(start)
        self.compare(range(max(0, found - AROUND), min(len(everything), found + AROUND + 1)))
        found = self._steepest(found)
        if found in self.pairing.outputs and not self._compared_parents(found):
            return self._report("hidden", None)
        kind: Kind = "jump" if self._growth(found) >= JUMP else "growth"
        pair, entry = self.pairing.pairs[found], self.errors[found]
        ours, theirs = self.reference.fetch([pair.reference]), self.candidate.fetch([pair.candidate])
        self.runs += 1
        if entry is not None:
            self.errors[found] = replace(entry, remark=explain(ours[pair.reference], theirs[pair.candidate]))
        return self._report(kind, found)

    def compare(self, places: Iterable[int]) -> None:
        """Compare these pairs, as many at a time as the budget allows."""
        chunk: list[int] = []
        held = 0
        for place in dict.fromkeys(place for place in places if place not in self.errors):
            shape = self.reference.shape(self.pairing.pairs[place].reference)
            size = self.budget_bytes if shape is None else 8 * math.prod(shape)  # of both tensors
            if chunk and held + size > self.budget_bytes:
                self._compare_chunk(chunk)
                chunk, held = [], 0
            chunk.append(place)
            held += size
        if chunk:
            self._compare_chunk(chunk)

    def error(self, place: int) -> float:
        """The error of a pair that was compared; NaN where it was not, or could not be."""
        entry = self.errors.get(place)
        return math.nan if entry is None or place in self.false_pairs else entry.max_error_of_range

    def _compare_chunk(self, places: list[int]) -> None:
        pairs = [self.pairing.pairs[place] for place in places]
        ours = self.reference.fetch([pair.reference for pair in pairs])
        theirs = self.candidate.fetch([pair.candidate for pair in pairs])
        self.runs += 1
        held = sum(array.nbytes for array in (*ours.values(), *theirs.values()))
        self.fetched_bytes = max(self.fetched_bytes, held)
        for place, pair in zip(places, pairs, strict=True):
            left, right = ours.pop(pair.reference), theirs.pop(pair.candidate)
            self.errors[place] = tensor_error(pair, place, left, right)
            self.bar.update()

    def _earliest_wrong(self, start: int) -> int:
        """Bisect over the ancestors of a wrong pair, then walk up while something it is computed from is wrong."""
        wrong = start
        while True:
            bits = self.ancestors[wrong]
            for place in _places(bits):  # what a right pair is computed from is cleared
                if self.error(place) <= self.allowed:
                    bits &= ~(self.ancestors[place] | 1 << place)
            suspects = _places(bits)
            earlier = [place for place in suspects if self.error(place) > self.allowed]
            if earlier:
                wrong = earlier[0]
                continue
            unknown = [place for place in suspects if place not in self.errors]
            if not unknown:
                break
            self.compare(_spread(unknown, ROUND))
        while wrong_parents := [place for place in self._compared_parents(wrong) if self.error(place) > self.allowed]:
            wrong = min(wrong_parents)
        return wrong

    def _compared_parents(self, place: int) -> list[int]:
        """The nearest pairs that a pair is computed from and that can be compared; compared here if need be."""
        found: list[int] = []
        waiting = list(self.parents[place])
        while waiting:
            self.compare(waiting)
            known = [parent for parent in waiting if not math.isnan(self.error(parent))]
            found += known
            waiting = [old for parent in waiting if parent not in known for old in self.parents[parent]]
        return sorted(set(found))

    def _is_false_pair(self, place: int) -> bool:
        """Whether all that is computed from a wrong pair is right: then the two only share a name."""
        if place in self.pairing.outputs:
            return False
        readers = [reader for reader, parents in enumerate(self.parents) if place in parents]
        self.compare(readers)
        known = [self.error(reader) for reader in readers if not math.isnan(self.error(reader))]
        return bool(known) and max(known) <= self.allowed

    def _steepest(self, place: int) -> int:
        """Of a wrong pair and the few before it, the one at which the error grows most."""
        best, current = place, place
        for _ in range(AROUND):
            parents = self._compared_parents(current)
            current = max(parents, key=self.error, default=current)
            if not parents or self.error(current) < self.allowed / 10:
                break
            best = max((best, current), key=self._growth)
        return best

    def _growth(self, place: int) -> float:
        before = max((self.error(parent) for parent in self._compared_parents(place)), default=0.0)
        return self.error(place) / max(before, FLOOR)

    def _report(self, kind: Kind, found: int | None) -> Divergence:
        entries = []
        for place, entry in sorted(self.errors.items()):
            if entry is not None and place not in self.false_pairs:
                parents = [self.error(parent) for parent in self.parents[place]]
                known = [error for error in parents if not math.isnan(error)]
                entries.append(replace(entry, max_error_of_range_before=max(known, default=math.nan)))
        layer = next((entry for entry in entries if entry.depth == found), None)
        return Divergence(
            reference=self.reference.info, candidate=self.candidate.info, kind=kind,
            verdict=self._verdict(kind, layer, entries), layer=layer if kind == "jump" else None, layers=tuple(entries),
            pairs=len(self.parents), reference_only=self.pairing.reference_only,
            candidate_only=self.pairing.candidate_only, tolerance=self.allowed, runs=self.runs,
            fetched_bytes=self.fetched_bytes, notes=tuple(self._notes(kind, layer)),
        )  # fmt: skip

    def _verdict(self, kind: Kind, layer: LayerError | None, entries: Sequence[LayerError]) -> str:
        names = f"{self.candidate.info.name} and {self.reference.info.name}"
        compared = f"{count(len(entries), 'tensor')} compared"
        if kind == "none":
            worst = short_error(max((self.error(place) for place in self.pairing.outputs), default=0.0))
            return f"No layer is at fault: the outputs of {names} agree, largest error {worst} ({compared})."
        if layer is None:
            return f"The outputs of {names} differ, but nothing before them could be compared."
        after, before = layer.max_error_of_range, layer.max_error_of_range_before
        error = "a value that is not finite" if math.isinf(after) else f"{short_error(after)} of the range"
        if kind == "growth":
            return (
                f"No single layer is at fault: the error of {self.candidate.info.name} grows from layer to layer and "
                f"passes {self.allowed:.0e} at {layer.layer} ({error}); that is rounding, not a wrong layer."
            )
        remark = f" ({layer.remark})" if layer.remark else ""
        return (
            f"The error jumps at {layer.layer} ({layer.operator}): from "
            f"{short_error(0.0 if math.isnan(before) else before)} before it to {error} after it{remark}."
        )

    def _notes(self, kind: Kind, layer: LayerError | None) -> Iterable[str]:
        names = [self.pairing.pairs[place].layer for place in sorted(self.false_pairs)]
        if names:
            yield f"named alike, but not the same tensor, so left out: {', '.join(names)}."
        other = [self.pairing.pairs[place].layer for place, entry in self.errors.items() if entry is None]
        if other:
            yield f"of another size in the candidate, so not compared: {', '.join(other)}."
        harmless = [place for place in self.errors if kind == "none" and self.error(place) > self.allowed]
        if harmless:
            yield f"different inside, without harm to the outputs: {self.pairing.pairs[min(harmless)].layer}."
        if kind != "none" and any(sum(entry.nan[:1] + entry.inf[:1]) for entry in self.errors.values() if entry):
            yield "the reference itself holds values that are not finite; look at its input first."
        if layer is not None and " + " in layer.layer:
            yield "an exporter made one operator of the layers joined by +; any of them may be at fault."


def _places(bits: int) -> list[int]:
    return [place for place in range(bits.bit_length()) if bits >> place & 1]


def _spread(places: Sequence[int], number: int) -> list[int]:
    """About `number` of the places, evenly spread, the first and the last among them.

    >>> _spread(range(100), 5)
    [0, 25, 50, 74, 99]
    """
    if len(places) <= number:
        return list(places)
    return [places[round(index * (len(places) - 1) / (number - 1))] for index in range(number)]
