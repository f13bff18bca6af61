"""How much memory a network takes: a fresh process opens it, runs it once, and tells how much it grew."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from workbench.core.errors import BackendUnavailableError

TIMEOUT_S = 300


def measure_memory(path: str | os.PathLike[str], feed: Mapping[str, np.ndarray], *, device: str = "cpu") -> int | None:
    """Open a network in ONNX Runtime in a process of its own, run it once, and return how much that process grew.

    Args:
        path: the `.onnx` file.
        feed: one array for each input, by name.
        device: `"cpu"`: the peak of resident memory; `"cuda"`: memory in use on the GPU afterwards.
    Returns:
        Bytes; None where the system does not tell (it must be Linux, or a GPU with cuda-python), or the run fails.
    """
    with tempfile.TemporaryDirectory(prefix="workbench-memory-") as folder:
        arrays = Path(folder) / "feed.npz"
        np.savez(arrays, **dict(feed))  # type: ignore[arg-type]  # names of inputs are keyword arguments
        command = [sys.executable, "-m", "workbench.measure.memory", os.fspath(path), str(arrays), device]
        package = str(Path(__file__).resolve().parents[2])
        search = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
        environment = os.environ | {"PYTHONPATH": search}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired):
            return None
    words = done.stdout.split()
    return int(words[-1]) if done.returncode == 0 and words else None


def _run(path: str, arrays: str, device: str) -> None:
    from workbench.runners.onnxruntime_runner import OnnxRuntimeRunner

    with np.load(arrays) as loaded:
        feed = {name: loaded[name] for name in loaded.files}
    before = used_bytes(device, "VmRSS")
    with OnnxRuntimeRunner(path, device=device) as runner:
        runner.infer(feed)
        after = used_bytes(device, "VmHWM")
    if before is not None and after is not None:
        print(max(0, after - before))


def used_bytes(device: str, line: str) -> int | None:
    """Memory of this process, or in use on the GPU; None where the system does not tell.

    Args:
        device: `"cpu"` or `"cuda"`.
        line: of Linux's `/proc/self/status`: `"VmRSS"` is now, `"VmHWM"` the most so far.
    """
    if device == "cuda":
        from workbench.engine.memory import open_memory

        try:
            free, total = open_memory().memory_info()
        except BackendUnavailableError:
            return None
        return total - free
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    kib = next((row.split()[1] for row in text.splitlines() if row.startswith(f"{line}:")), None)
    return None if kib is None else int(kib) * 1024


if __name__ == "__main__":
    _run(*sys.argv[1:])
