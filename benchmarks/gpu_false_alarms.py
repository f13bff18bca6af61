"""The verdict on a machine with a GPU: what Keras answered elsewhere against ONNX Runtime on this processor and GPU.

    python benchmarks/false_alarms.py --folder FOLDER --settings 1 --only NAME ...      (where Keras is)
    python benchmarks/gpu_false_alarms.py FOLDER                                        (where the GPU is)

The folder holds the networks, the inputs and Keras's answers. What rounding does is measured here, on this processor.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from _record import write_record
from false_alarms import RUNTIMES, row_of, worst_of

from workbench.core.packages import require_backend
from workbench.onnx_graph.noise import rounding_noise
from workbench.onnx_graph.session import open_session, prepare_cuda, run_session


def main() -> None:
    gpu = prepare_cuda(require_backend("onnxruntime", "cuda"))
    settings = [{"device": "cpu", "threads": threads, "optimise": optimise} for threads, optimise in RUNTIMES]
    settings += [{"device": "cuda", "optimise": optimise} for optimise in ("all", "none")]
    rows = []
    for file in sorted(Path(sys.argv[1]).glob("*.onnx")):
        (tensor,) = onnx.load(file).graph.input
        with np.load(file.with_suffix(".keras.npz")) as arrays:
            given, right = arrays["given"], arrays["answers"]
        feeds = [(str(number), {tensor.name: given[number : number + 1]}) for number in range(len(given))]
        noise = rounding_noise(file, feeds)
        reference = [{"output": right[number : number + 1]} for number in range(len(right))]
        for setting in settings:
            session = open_session(file, **setting)
            assert setting["device"] == "cpu" or "CUDAExecutionProvider" in session.get_providers()
            candidate = [{"output": next(iter(run_session(session, feed).values()))} for _, feed in feeds]
            rows.append(row_of(file.stem, noise, reference, candidate, **setting))
            print(json.dumps(rows[-1]), flush=True)
    summary = summarise(rows)
    print(json.dumps(summary, indent=2))
    write_record("gpu_false_alarms", {"gpu": gpu, **summary}, ("onnxruntime-gpu", "numpy"))


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many verdicts and false alarms there were, and for each network and device the largest error."""
    devices = dict.fromkeys(row["device"] for row in rows)
    return {
        "verdicts": len(rows),
        "false_alarms": sum(row["status"] == "fail" for row in rows),
        "false_alarms_of_fixed_limits": sum(row["fixed"] == "fail" for row in rows),
        "largest_times_noise": max(row["times_noise"] for row in rows),
        "worst": [row for device in devices for row in worst_of([r for r in rows if r["device"] == device])],
    }


if __name__ == "__main__":
    main()
