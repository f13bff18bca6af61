"""Mend an ONNX network: safe rewrites only, each proved with ONNX Runtime to keep the answers, each told."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from tqdm.auto import tqdm

from workbench.core.compare import ParityReport
from workbench.core.errors import InputError
from workbench.core.files import atomic_path, check_outputs
from workbench.core.packages import require_backend
from workbench.core.report import Report, Status, Table, count
from workbench.core.tolerance import AnyTolerance
from workbench.onnx_graph import fold, rewrites
from workbench.onnx_graph.edit import copy_of
from workbench.onnx_graph.file import load
from workbench.onnx_graph.proof import Feeds, Proof

SIMPLIFIERS = ("onnxslim",)
HEADINGS = ("rewrite", "changed", "result", "why")
LARGEST_ROUNDS = 4  # how often the list is gone through at most: one rewrite may make another possible


@dataclass(frozen=True)
class Rewrite:
    """One kind of change."""

    name: str
    reason: str  # why it helps and why it is allowed, one clause
    apply: Callable[[onnx.ModelProto], int]  # in place; how many nodes, weights or ends it changed
    exact: bool = True  # the answers must stay the same to the last bit; otherwise to rounding


_RESIZE = "TensorRT refuses tf_half_pixel_for_nn; half_pixel takes the same pixels"
_SCALES = "a scale and an offset of each channel fit into the convolution before"
_BATCH = "one name for the open batch dimension of inputs and outputs"
REWRITES = (
    Rewrite("exact Resize", _RESIZE, rewrites.make_resize_exact),
    Rewrite("no-ops", "Identity, Dropout and the like hand their input on unchanged", rewrites.remove_no_ops),
    Rewrite("constants", "no input can change what these nodes compute", fold.fold_constants),
    Rewrite("scales", _SCALES, fold.fold_scales, exact=False),
    Rewrite("pads", "a convolution pads by zeros itself", fold.fold_pads, exact=False),
    Rewrite("Transposes", "they undo each other", rewrites.cancel_transposes),
    Rewrite("dead parts", "no output depends on these nodes and weights", rewrites.remove_dead),
    Rewrite("batch name", _BATCH, rewrites.name_open_batch),
)
"""Every rewrite, in the order in which `fix` tries them."""


@dataclass(frozen=True)
class AppliedRewrite:
    """What became of one rewrite.

    Attributes:
        name, reason: as in `Rewrite`.
        count: how many nodes, weights or ends it changed.
        dropped: why it was taken back, one clause; empty where it was proved and kept.
    """

    name: str
    reason: str
    count: int
    dropped: str = ""

    @property
    def kept(self) -> bool:
        """Whether the file that was written has it."""
        return not self.dropped


@dataclass(frozen=True)
class FixReport(Report):
    """What `fix` did.

    Attributes:
        path: the file that was written.
        rewrites: those that found something to do, in the order they were tried.
        operators_before, operators_after: how many nodes of each operator.
        parity: the written network against the one that was read.
    """

    path: Path
    rewrites: tuple[AppliedRewrite, ...]
    operators_before: Mapping[str, int]
    operators_after: Mapping[str, int]
    parity: ParityReport

    @property
    def status(self) -> Status:
        """`"pass"`, else `"inconclusive"`: what was kept is proved, so the parity has no fault to show."""
        return "pass" if self.parity.passed else "inconclusive"

    @property
    def kept(self) -> tuple[AppliedRewrite, ...]:
        """The rewrites that the written file has."""
        return tuple(rewrite for rewrite in self.rewrites if rewrite.kept)

    @property
    def dropped(self) -> tuple[AppliedRewrite, ...]:
        """The rewrites that were taken back."""
        return tuple(rewrite for rewrite in self.rewrites if not rewrite.kept)

    @property
    def verdict(self) -> str:
        """One sentence."""
        before, after = sum(self.operators_before.values()), sum(self.operators_after.values())
        if not self.kept:
            return f"{self.path.name}: nothing was changed, {count(before, 'node')}."
        inputs = count(self.parity.images, "input")
        proof = f"proved with ONNX Runtime on {inputs}"
        if not self.parity.passed:
            flaw = "the answers hold NaN or infinity" if self.parity.status == "fail" else "these hardly vary"
            proof = f"with the same answers in ONNX Runtime to {inputs}; but {flaw}: give other feeds"
        text = f"{self.path.name}: {before} nodes became {after}, {proof}"
        return f"{text}; {count(len(self.dropped), 'rewrite')} dropped." if self.dropped else f"{text}."

    def _tables(self) -> list[Table]:
        rows = [
            (item.name, str(item.count), "kept" if item.kept else "dropped", item.dropped or item.reason)
            for item in self.rewrites
        ]
        return [Table(HEADINGS, rows)] if rows else []

    def _remarks(self) -> list[str]:
        return [f"proof: {self.parity.verdict}"] if self.kept and self.parity.status != "fail" else []

    def _content(self) -> dict[str, Any]:
        return super()._content() | {"path": str(self.path), "verdict": self.verdict}


def fix(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    feeds: Feeds | None = None,
    simplifier: str | None = None,
    tolerance: AnyTolerance | None = None,
    progress: bool = True,
) -> FixReport:
    """Apply safe rewrites to an ONNX file and prove each one: same inputs, same answers, else it is dropped and named.

    Args:
        path: the `.onnx` file, not modified.
        out: the `.onnx` file to write, whole or not at all; not `path`.
        feeds: (name, feed) pairs to prove with, as `make_feeds` makes them; a picture and noise, or random numbers,
            when None, and both in one batch where the batch is open.
        simplifier: `"onnxslim"` to let that package work on the network first (extra `torch`); None does without.
        tolerance: what rounding may change where a rewrite calculates; measured when None.
        progress: show a bar.
    Returns:
        What was changed, how often and why, what was dropped, and the parity of the result.
    Raises:
        ModelError: not a valid ONNX model, or one that ONNX Runtime cannot run.
        InputError: an unknown simplifier, or feeds that the network does not take.
        BackendUnavailableError: onnxslim is not installed.
        ExportError: a network of more than 2 GB.
        OutputError: the file cannot be written.
    """
    if simplifier is not None and simplifier not in SIMPLIFIERS:
        raise InputError(f"got simplifier={simplifier!r}, expected {' or '.join(map(repr, SIMPLIFIERS))}, or None")
    check_outputs([out], [path])
    chosen = (*((_onnxslim(),) if simplifier else ()), *REWRITES)
    original = load(path)
    before = Counter(node.op_type for node in original.graph.node)
    proof = Proof(original, feeds, tolerance)
    model, applied = _apply(original, chosen, proof, progress)
    parity = proof.report(model)
    with atomic_path(out) as temporary:
        onnx.save(model, temporary)
    after = Counter(node.op_type for node in model.graph.node)
    return FixReport(Path(out), applied, dict(before.most_common()), dict(after.most_common()), parity)


def _apply(
    model: onnx.ModelProto, chosen: tuple[Rewrite, ...], proof: Proof, progress: bool
) -> tuple[onnx.ModelProto, tuple[AppliedRewrite, ...]]:
    """Go through the rewrites until none finds anything to do."""
    counts: Counter[str] = Counter()
    dropped: dict[str, AppliedRewrite] = {}
    candidate = copy_of(model)
    for _ in range(LARGEST_ROUNDS):
        before = counts.total()
        for rewrite in tqdm(chosen, "prove rewrites", leave=False, disable=not progress):
            if rewrite.name in dropped or not (number := rewrite.apply(candidate)):
                continue
            if problem := proof.judge(candidate, exact=rewrite.exact):
                dropped[rewrite.name] = AppliedRewrite(rewrite.name, rewrite.reason, number, problem)
            else:
                counts[rewrite.name] += number
                model = candidate
            candidate = copy_of(model)
        if counts.total() == before:
            break
    kept = [AppliedRewrite(item.name, item.reason, counts[item.name]) for item in chosen if counts[item.name]]
    return model, (*kept, *dropped.values())


def _onnxslim() -> Rewrite:
    onnxslim = require_backend("onnxslim", "torch")

    def slim(model: onnx.ModelProto) -> int:
        before = [node.SerializeToString() for node in model.graph.node]
        model.CopyFrom(onnxslim.slim(copy_of(model)))
        after = Counter(node.SerializeToString() for node in model.graph.node)
        return sum((Counter(before) - after).values())

    return Rewrite("onnxslim", "what the package onnxslim finds", slim, exact=False)
