"""Measure one point of a sweep, in a process of its own: `python -m workbench.measure.point_child`.

A process of its own has a peak of memory of its own, and its crash is one row's reason instead of the end of all.
"""

import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.compare import compare_batches
from workbench.core.contract import Runner, TensorSpec
from workbench.core.errors import BackendUnavailableError, InputError, ModelError
from workbench.core.packages import load_tensorflow, require_backend
from workbench.core.process import Child, serve
from workbench.measure.accuracy import LOOSE, Accuracy, Pictures
from workbench.measure.latency import measure
from workbench.measure.row import time_columns
from workbench.onnx_graph.file import read
from workbench.onnx_graph.input_values import input_values
from workbench.pictures.feeds import Feed, load_arrays
from workbench.precision.rounding import profile_types, rounded_copy
from workbench.precision.spec import TYPE_OF
from workbench.runners.backends import open_runner
from workbench.runners.onnxruntime_runner import OnnxRuntimeRunner

CHILD = "workbench.measure.point_child"
WARMUP, LEAST_RUNS = 2, 5

Order = Mapping[str, Any]


def run_child(order: Order, timeout_s: float) -> dict[str, Any]:
    """Carry out an order in a process of its own.

    Args:
        order: `target` (the file, or a model's name), `backend`, `device`, `precision`, `batch`, `whole` (each feed is
            a call of its own; else they are stacked to the batch), `first` (.npz of the feed that is timed),
            `reference` (the float32 `.onnx` file), `specs` (shape and dtype of its inputs), `pictures` (the fields of
            `Pictures`), `runs`, `seconds`; and `rounded`, the `.onnx` file to write where this machine lacks the
            precision's type, if that has to be found out.
        timeout_s: end it after this many seconds.
    Returns:
        Columns of a row: all of them, or `real` and `arithmetic` of a network that has to be timed next.
    Raises:
        InputError: it failed, crashed or took too long; the message is the reason.
    """
    with Child(
        CHILD, title="the process", advice="use a smaller batch", error=lambda text, log: InputError(text)
    ) as child:
        return child.run(order, timeout_s=timeout_s)


def carry_out(order: dict[str, Any]) -> dict[str, Any]:
    """Carry out what the parent ordered."""
    if "rounded" not in order:
        return _run(order, timed=True)
    found, target = _find_arithmetic(order)
    return found if found["real"] else found | _run({**order, "target": target}, timed=False)


def _find_arithmetic(order: Order) -> tuple[dict[str, Any], str]:
    """Say what computes a network of a precision, and which file gives the answers of that precision."""
    precision, target = order["precision"], order["target"]
    dtype = TYPE_OF[precision].partition("_")[0]
    try:
        found = profile_types(target, _first(order), device=order["device"])
    except ModelError:
        found = None  # such as bfloat16 on a CPU
    if found is not None and found.is_mostly(dtype):
        return {"real": True, "arithmetic": found.to_text(dtype)}, target
    if precision == "int8":  # what ONNX Runtime does between Q/DQ pairs is what int8 would answer
        some = f"{found.to_text(dtype)}, else " if found is not None and found.count(dtype) else ""
        return {"real": False, "arithmetic": f"{some}float32 between Q/DQ pairs"}, target
    rounded_copy(target, order["rounded"])
    return {"real": False, "arithmetic": f"float32, rounded to {dtype}"}, order["rounded"]


def _run(order: Order, *, timed: bool) -> dict[str, Any]:
    """Open a network, time it, and judge its answers."""
    feed, device = _first(order), order["device"]
    load_tensorflow() if order["backend"] == "keras" else require_backend("onnxruntime", "base")
    before = used_bytes(device, "VmRSS")
    with _open(order) as runner:
        columns: dict[str, Any] = {"runner": runner.info.name}
        if timed:
            columns |= _time(runner, _named(runner.inputs, feed), order)
            columns |= _memory(before, used_bytes(device, "VmHWM"), device)
        return columns | _judge(runner, order)


def _first(order: Order) -> Feed:
    """The feed that is timed."""
    arrays = load_arrays(order["first"])
    return arrays if order["whole"] else _repeat(arrays, order["batch"])


def _open(order: Order) -> Runner:
    if not order["backend"].startswith("onnxruntime"):
        return open_runner(order["target"], order["backend"])
    return OnnxRuntimeRunner(order["target"], device=order["device"], tf32=order["precision"] == "tf32")


def _repeat(arrays: Feed, batch: int) -> Feed:
    """A batch of pictures; after the last comes the first again."""
    return {name: array.take(range(batch), axis=0, mode="wrap") for name, array in arrays.items()}


def _named(names: Sequence[str] | Mapping[str, Any], arrays: Feed) -> Feed:
    """The arrays under these names, in their order, where they have others."""
    if set(arrays) == set(names) or len(arrays) != len(names):
        return arrays
    return dict(zip(names, arrays.values(), strict=True))


def _time(runner: Runner, feed: Feed, order: Order) -> dict[str, Any]:
    """Time calls until there are enough of them or the time is over."""
    for _ in range(WARMUP):
        start = time.perf_counter()
        runner.infer(feed)
        seconds = time.perf_counter() - start
    runs = min(order["runs"], max(LEAST_RUNS, int(order["seconds"] / max(seconds, 1e-9))))
    timing = measure(lambda: runner.infer(feed), warmup=0, runs=runs)
    return {**time_columns(timing.samples_ms, order["batch"]), "timed": "arrays of the host in and out"}


def _memory(before: int | None, after: int | None, device: str) -> dict[str, Any]:
    if before is None or after is None:
        return {}
    kind = "memory on the GPU" if device == "cuda" else "memory of a fresh process, at its peak"
    return {"memory_mib": round(max(0, after - before) / 2**20, 1), "memory_of": f"growth of the {kind}"}


def used_bytes(device: str, line: str) -> int | None:
    """Memory in use on the GPU, or of this process: Linux's `VmRSS` is now, `VmHWM` the most so far; None elsewhere."""
    try:
        if device == "cuda":
            from workbench.engine.memory import open_memory

            free, total = open_memory().memory_info()
            return total - free
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except (BackendUnavailableError, OSError):
        return None
    kib = next((row.split()[1] for row in text.splitlines() if row.startswith(f"{line}:")), None)
    return None if kib is None else int(kib) * 1024


def _judge(runner: Runner, order: Order) -> dict[str, Any]:
    """Compare the answers to all pictures with float32's, one picture of each at a time."""
    accuracy, pictures = Accuracy(), Pictures(**order["pictures"])
    specs = {name: TensorSpec(name, tuple(shape), dtype) for name, (shape, dtype) in order["specs"].items()}
    known = input_values(read(order["reference"]))

    with _open_reference(order) as reference:

        def answers() -> Iterator[tuple[str, Feed, Feed]]:
            for name, feed, other in _candidate_answers(runner, pictures.judged(specs, known), order):
                one = reference.infer(feed)
                other = _named(one, other)
                accuracy.add(name, one, other, pictures.truth(name))
                yield name, one, other

        one, other = reference.info.name, runner.info.name
        report = compare_batches(answers(), reference_name=one, candidate_name=other, tolerance=LOOSE)
        return accuracy.columns(report)


def _open_reference(order: Order) -> Runner:
    """Float32 in ONNX Runtime, without TF32: on the GPU if the candidate computes there and it can."""
    try:
        return OnnxRuntimeRunner(order["reference"], device=order["device"])
    except BackendUnavailableError:
        return OnnxRuntimeRunner(order["reference"])


def _candidate_answers(
    runner: Runner, feeds: Iterator[tuple[str, Feed]], order: Order
) -> Iterator[tuple[str, Feed, Feed]]:
    """Name, feed and answer of each picture, computed in batches of the size that was timed."""
    if order["whole"]:
        for name, feed in feeds:
            yield name, feed, runner.infer(_named(runner.inputs, feed))
        return
    while some := list(itertools.islice(feeds, order["batch"])):
        ones = [{key: array[:1] for key, array in feed.items()} for _, feed in some]
        stacked = {key: np.concatenate([feed[key] for feed in ones]) for key in ones[0]}
        found = runner.infer(_named(runner.inputs, _repeat(stacked, order["batch"])))
        for place, ((name, _), feed) in enumerate(zip(some, ones, strict=True)):
            yield name, feed, {key: array[place : place + 1] for key, array in found.items()}


if __name__ == "__main__":
    sys.exit(serve(carry_out))
