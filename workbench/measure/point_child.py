"""Measure one point of a grid, in a process of its own: `python -m workbench.measure.point_child REQUEST.json`.

A process of its own has a peak of memory of its own, and its crash is one row's reason instead of the end of all.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench.core.contract import Runner
from workbench.core.errors import InputError, ModelError
from workbench.core.packages import load_tensorflow, require_backend
from workbench.core.process import Child, serve
from workbench.measure.latency import measure
from workbench.measure.memory import used_bytes
from workbench.measure.rows import time_columns
from workbench.precision.rounding import profile_types, rounded_copy
from workbench.precision.spec import EIGHT_BITS, TYPE_OF
from workbench.runners.backends import open_runner
from workbench.runners.onnxruntime_runner import OnnxRuntimeRunner

CHILD = "workbench.measure.point_child"
WARMUP, LEAST_RUNS = 2, 5

Feed = dict[str, np.ndarray]


def find_arithmetic(request: Mapping[str, Any]) -> dict[str, Any]:
    """Say what computes a network of a precision, and which file gives the answers of that precision.

    Args:
        request: `target` (an `.onnx` file), `device`, `precision`, `batch`, `pictures` (see `run_point`) and `rounded`
            (the `.onnx` file to write where this machine lacks the type).
    Returns:
        `real`, `arithmetic`, and `judged`: the target, or the file whose results are rounded to the type.
    """
    precision, target = request["precision"], request["target"]
    dtype = TYPE_OF[precision]
    try:
        found = profile_types(target, _feed(_load(request["pictures"]), 0, request["batch"]), device=request["device"])
    except ModelError:
        found = None  # such as bfloat16 on a CPU
    if found is not None and found.is_mostly(dtype):
        return {"real": True, "arithmetic": found.to_text(dtype), "judged": target}
    if precision in EIGHT_BITS:
        return {"real": False, "arithmetic": "float32 between Q/DQ pairs", "judged": target}
    rounded_copy(target, request["rounded"])
    return {"real": False, "arithmetic": f"float32, rounded to {dtype}", "judged": request["rounded"]}


def run_point(request: Mapping[str, Any]) -> dict[str, Any]:
    """Open a network, time it, and keep its answers.

    Args:
        request: `target` (the file, or a model's name), `backend`, `device`, `tf32`, `batch`, `timed` (False for the
            answers alone), `runs`, `seconds`, `pictures` (.npz with the same number of pictures for each input) and
            `answers` (the .npz to write).
    Returns:
        Columns of a row.
    Raises:
        WorkbenchError: it does not run here.
    """
    pictures, device = _load(request["pictures"]), request["device"]
    load_tensorflow() if request["backend"] == "keras" else require_backend("onnxruntime", "base")
    before = used_bytes(device, "VmRSS")
    with _open(request) as runner:
        columns = {"runner": runner.info.name}
        if request["timed"]:
            columns |= _time(runner, pictures, request)
            columns |= _memory(before, used_bytes(device, "VmHWM"), device)
        answers = _answers(runner, pictures, request["batch"])
    np.savez(request["answers"], **answers)  # type: ignore[arg-type]  # names of outputs are keyword arguments
    return columns


def _load(path: str) -> Feed:
    with np.load(path) as loaded:
        return {name: loaded[name] for name in loaded.files}


def _open(request: Mapping[str, Any]) -> Runner:
    if not request["backend"].startswith("onnxruntime"):
        return open_runner(request["target"], request["backend"])
    tf32: dict[str, Any] = {"tf32": True} if request["tf32"] else {}
    return OnnxRuntimeRunner(request["target"], device=request["device"], **tf32)


def _feed(pictures: Feed, first: int, batch: int) -> Feed:
    """A batch that begins at one picture; after the last comes the first again."""
    return {name: array.take(range(first, first + batch), axis=0, mode="wrap") for name, array in pictures.items()}


def _named(runner: Runner, feed: Feed) -> Feed:
    """The feed under the runner's names."""
    return feed if set(feed) == set(runner.inputs) else dict(zip(runner.inputs, feed.values(), strict=True))


def _time(runner: Runner, pictures: Feed, request: Mapping[str, Any]) -> dict[str, Any]:
    """Time calls until there are enough of them or the time is over."""
    feed = _named(runner, _feed(pictures, 0, request["batch"]))
    for _ in range(WARMUP):
        start = time.perf_counter()
        runner.infer(feed)
        seconds = time.perf_counter() - start
    runs = min(request["runs"], max(LEAST_RUNS, int(request["seconds"] / max(seconds, 1e-9))))
    timing = measure(lambda: runner.infer(feed), warmup=0, runs=runs)
    return {**time_columns(timing.samples_ms, request["batch"]), "timed": "arrays of the host in and out"}


def _memory(before: int | None, after: int | None, device: str) -> dict[str, Any]:
    if before is None or after is None:
        return {}
    kind = "memory on the GPU" if device == "cuda" else "memory of a fresh process, at its peak"
    return {"memory_mib": round(max(0, after - before) / 2**20, 1), "memory_of": f"growth of the {kind}"}


def _answers(runner: Runner, pictures: Feed, batch: int) -> Feed:
    """The answers to each picture once, in batches of the size that was timed."""
    count = len(next(iter(pictures.values())))
    parts = [runner.infer(_named(runner, _feed(pictures, first, batch))) for first in range(0, count, batch)]
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}


def run_child(request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    """Carry out a request in a process of its own.

    Args:
        request: see `run_point`, or `find_arithmetic` if it has `rounded`.
        timeout_s: end it after this many seconds.
    Returns:
        What the function gave.
    Raises:
        InputError: it failed, crashed or took too long; the message is the reason.
    """
    with Child(
        CHILD, title="the process", advice="use a smaller batch", error=lambda text, log: InputError(text)
    ) as child:
        return child.run(request, timeout_s=timeout_s)


def carry_out(request: dict[str, Any]) -> dict[str, Any]:
    """Carry out what the parent ordered."""
    return find_arithmetic(request) if "rounded" in request else run_point(request)


if __name__ == "__main__":
    sys.exit(serve(carry_out))
