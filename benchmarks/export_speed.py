"""Keras to ONNX: time and memory of `keras_to_onnx` against Keras's own `model.export(format="onnx")`, same graph.

Run it from the repository: `python benchmarks/export_speed.py` (Linux; about three minutes on two cores, 8 GB of
memory). Each conversion is a process of its own; both ways take turns, so that a busy moment falls on both. The time is
that of the one call, with the model built and TensorFlow loaded; the memory is that of the process and its children.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import onnx
import onnxruntime
from _process_tree import PeakMemory
from _record import write_record

WAYS = {"stock": 'model.export(format="onnx")', "ours": "keras_to_onnx"}
MEMORY_LIMIT_GIB = 16


def work(network: str, way: str, path: str) -> None:
    """Build a network, wait for the word, convert it and print the seconds; in a child process."""
    from workbench.core.packages import load_keras
    from workbench.export.keras_model import keras_to_onnx
    from workbench.models import fcn_vgg16

    keras = load_keras()
    keras.utils.set_random_seed(0)
    if network == "fcn_vgg16":
        model = fcn_vgg16.build(keras)
    else:
        model = keras.applications.ResNet50(weights=None, classifier_activation=None)
        model(np.zeros((1, 224, 224, 3), np.float32))  # the stock way refuses a model that was never called
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    if way == "stock":
        model.export(path, format="onnx", verbose=False)
    else:
        keras_to_onnx(model, path, progress=False)
    print(
        json.dumps({"seconds": round(time.perf_counter() - start, 2), "parameters": model.count_params()}), flush=True
    )


def measure(network: str, way: str, path: Path) -> dict[str, float]:
    """Convert a network in a child process; seconds of the call and of the whole process, its peak memory in GiB."""
    command = [sys.executable, __file__, "--worker", network, way, str(path)]
    start = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as child,
        PeakMemory(child.pid) as memory,
    ):
        answer, _ = child.communicate("go\n")
        errors.seek(0)
        log = errors.read()
    if child.returncode:
        raise SystemExit(f"{network}, {way}: ended with status {child.returncode}\n{log[-2000:]}")
    found = {
        **json.loads(answer.splitlines()[-1]),
        "process_seconds": round(time.perf_counter() - start, 2),
        "peak_gib": round(memory.peak_bytes / 2**30, 2),
    }
    print(f"{network:12}{way:8}{found}", flush=True)
    return found


def compare(stock: Path, ours: Path) -> dict[str, object]:
    """Node counts of both graphs, and how far apart their answers to one picture are."""
    counts = [Counter(node.op_type for node in onnx.load(path).graph.node) for path in (stock, ours)]
    picture = np.random.default_rng(0).standard_normal((1, 224, 224, 3), np.float32) * 50
    sessions = [onnxruntime.InferenceSession(path) for path in (stock, ours)]
    first, second = (session.run(None, {session.get_inputs()[0].name: picture})[0] for session in sessions)
    return {
        "nodes": counts[1].total(),
        "same_node_counts": counts[0] == counts[1],
        "max_relative_difference": float(np.abs(first - second).max() / np.ptp(first)),
    }


def main() -> None:
    """Measure both ways in turns and the large network once, print it all and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of both ways (default: 5)")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker)
        return
    with tempfile.TemporaryDirectory() as name:
        paths = {way: Path(name) / f"{way}.onnx" for way in WAYS}
        rounds = [{way: measure("resnet50", way, paths[way]) for way in WAYS} for _ in range(options.rounds)]
        graphs = compare(paths["stock"], paths["ours"])
        large = measure("fcn_vgg16", "ours", Path(name) / "fcn_vgg16.onnx")
    medians = {
        way: {key: statistics.median(turn[way][key] for turn in rounds) for key in rounds[0][way]} for way in WAYS
    }
    stock, ours = medians["stock"], medians["ours"]
    result = {
        "network": "ResNet-50 of keras.applications, 25.6 M parameters",
        "ways": WAYS,
        "rounds": rounds,
        "median": medians,
        "times_faster": round(stock["seconds"] / ours["seconds"], 2),
        "peak_memory_share": round(ours["peak_gib"] / stock["peak_gib"], 2),
        "graphs": graphs,
        "fcn_vgg16_full_width": {**large, "limit_gib": MEMORY_LIMIT_GIB},
    }
    print(f"{result['times_faster']} times faster, {result['peak_memory_share']} of the memory; {graphs}")
    path = write_record("export_speed", result, packages=("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime"))
    print(f"wrote {os.path.relpath(path)}")
    if not graphs["same_node_counts"] or large["peak_gib"] >= MEMORY_LIMIT_GIB:
        raise SystemExit("the graphs differ, or the large network took too much memory")


if __name__ == "__main__":
    main()
