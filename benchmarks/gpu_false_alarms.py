"""The verdict on a machine with a GPU: what Keras answered elsewhere against ONNX Runtime on this processor and GPU.

    python benchmarks/false_alarms.py --folder FOLDER --settings 1 --only NAME ...      (where Keras is)
    python benchmarks/gpu_false_alarms.py FOLDER                                        (where the GPU is)

The folder holds the networks, the inputs and Keras's answers. What rounding does is measured here, on this processor.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from _record import write_rows
from false_alarms import RUNTIMES, row_of

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
            rows.append(row_of(file.stem, noise, reference, candidate, **setting, gpu=gpu))
            print(json.dumps(rows[-1]), flush=True)
    alarms = [row for row in rows if row["status"] == "fail"]
    worst = max(row["times_noise"] for row in rows)
    print(f"{len(rows)} verdicts, {len(alarms)} false alarms, largest error {worst:g} times the noise")
    write_rows("gpu_false_alarms", rows, ("onnxruntime-gpu", "numpy"))


if __name__ == "__main__":
    main()
