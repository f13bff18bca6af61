"""Measure one point of a grid, in a process of its own: `python -m workbench.measure.point_child REQUEST.json`.

A process of its own has a peak of memory of its own, and its crash is one row's reason instead of the end of all.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.contract import Runner
from workbench.core.errors import InputError, ModelError, WorkbenchError
from workbench.core.packages import load_tensorflow, require_backend
from workbench.core.process import signal_name
from workbench.measure.latency import measure
from workbench.measure.memory import used_bytes
from workbench.measure.rows import time_columns
from workbench.precision.rounding import profile_types, rounded_copy
from workbench.precision.spec import EIGHT_BITS, TYPE_OF
from workbench.runners.backends import open_runner
from workbench.runners.onnxruntime_runner import OnnxRuntimeRunner

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


def run_child(request: Mapping[str, Any], folder: Path, timeout_s: float) -> dict[str, Any]:
    """Carry out a request in a process of its own, which ends with this call, on Ctrl-C too.

    Args:
        request: see `run_point`, or `find_arithmetic` if it has `rounded`.
        folder: for files in between.
        timeout_s: end it after this many seconds.
    Returns:
        What the function gave.
    Raises:
        InputError: it failed, crashed or took too long; the message is the reason.
    """
    order = folder / "request.json"
    order.write_text(json.dumps(dict(request)), encoding="utf-8")
    search = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "workbench.measure.point_child", str(order)]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, "PYTHONPATH": search}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"it took longer than {timeout_s:g} s and was ended; use a smaller batch") from error
    result = _result(done)
    if "reason" in result:
        raise InputError(result["reason"])
    return result


def _result(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """The last line that the child printed, or how it died."""
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode < 0:
        return {
            "reason": f"the process was killed by {signal_name(-done.returncode)}; the machine may be out of memory"
        }
    words = [line for line in done.stderr.splitlines() if line.strip()]
    return {"reason": f"the process ended with status {done.returncode}: {words[-1] if words else 'no message'}"}


def main() -> None:
    """Carry out the request of the command line; the last line of standard output is the result."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        result = find_arithmetic(request) if "rounded" in request else run_point(request)
    except (WorkbenchError, MemoryError) as error:
        result = {"reason": str(error) or "out of memory; use a smaller batch"}
    print(f"\n{json.dumps(result)}", flush=True)


if __name__ == "__main__":
    main()
