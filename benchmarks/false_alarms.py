"""Is the verdict right on every machine? Healthy networks must pass under each instruction set, faulty ones must fail.

Each network is converted once; then Keras answers in one process for each setting of TensorFlow's oneDNN, and every
answer is judged against ONNX Runtime with 1 and 2 threads and at two levels of optimisation. After that subtle faults
are planted, one at a time. About 40 minutes on 2 cores; `--only NAME ...` and `--settings 2` take a part.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from _record import write_record
from networks_of_all_kinds import build, networks
from subtle_faults import FAULTS

from workbench.core.compare import FLOAT32, compare_batches
from workbench.core.packages import load_keras, package_version
from workbench.core.tolerance import RoundingNoise
from workbench.export.keras_model import keras_to_onnx
from workbench.models import unet
from workbench.onnx_graph.noise import rounding_noise
from workbench.onnx_graph.session import open_session, run_session
from workbench.runners.keras_runner import KerasRunner

INSTRUCTIONS = ("SSE41", "AVX2", "AVX512_CORE", "AVX512_CORE_AMX")
SETTINGS = tuple(itertools.product(("1", "0"), INSTRUCTIONS))
RUNTIMES = tuple(itertools.product((1, 2), ("all", "none")))

Answers = list[dict[str, np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=list(networks()), help="names of networks")
    parser.add_argument("--settings", type=int, default=len(SETTINGS), help="how many settings of oneDNN")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time; give each two cores")
    parser.add_argument("--folder", type=Path, help="keep what is made here, and use what is there")
    parser.add_argument("--answer", help=argparse.SUPPRESS)  # the child's part
    options = parser.parse_args()
    if options.answer:
        answer(options.only, options.folder, Path(options.answer))
        return
    with tempfile.TemporaryDirectory() as spare:
        folder = options.folder or Path(spare)
        folder.mkdir(exist_ok=True)
        faults = run_children(options.only, options.jobs, folder, "prepared", {})["faults"]
        rows = []
        for number, (onednn, instructions) in enumerate(SETTINGS[: options.settings]):
            environment = {"TF_ENABLE_ONEDNN_OPTS": onednn, "ONEDNN_MAX_CPU_ISA": instructions}
            found = run_children(options.only, options.jobs, folder, f"answers{number}", environment)
            rows += [{"onednn": int(onednn), "instructions": instructions, **row} for row in found["healthy"]]
        alarms = [row for row in rows if row["status"] == "fail"]
        summary = {
            "networks": len({row["network"] for row in rows}),
            "verdicts": len(rows),
            "false_alarms": len(alarms),
            "false_alarms_of_fixed_limits": sum(row["fixed"] == "fail" for row in rows),
            "largest_times_noise": max(row["times_noise"] for row in rows),
            "faults_planted": len(faults),
            "faults_found": sum(row["status"] == "fail" for row in faults),
            "faults_found_by_fixed_limits": sum(row["fixed"] == "fail" for row in faults),
        }
        print(json.dumps(summary, indent=2))
        for row in alarms:
            print("false alarm:", row)
        for row in (row for row in faults if row["status"] != "fail"):
            print("not found:", row)
        if options.only == list(networks()) and options.settings == len(SETTINGS):
            packages = ("tensorflow", "tensorflow-cpu", "keras", "tf_keras", "onnxruntime", "onnxruntime-gpu", "numpy")
            packages = tuple(name for name in packages if package_version(name))
            write_record("false_alarms", {"summary": summary, "healthy": worst_of(rows), "faults": faults}, packages)


def run_children(
    names: list[str], jobs: int, folder: Path, what: str, environment: dict[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """Share the networks out between child processes, and put their results together."""
    parts = [(names[job::jobs], folder / f"{what}-{job}.json") for job in range(jobs) if names[job::jobs]]
    if jobs > 1:
        environment = environment | {"OMP_NUM_THREADS": "2", "TF_NUM_INTRAOP_THREADS": "2"}
    with ThreadPoolExecutor(jobs) as pool:
        found = list(pool.map(lambda part: run_child(part[0], folder, part[1], environment), parts))
    return {kind: [row for part in found for row in part[kind]] for kind in ("healthy", "faults")}


def run_child(names: list[str], folder: Path, result: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run the child's part in a process of its own, for oneDNN reads its settings once."""
    if not result.exists():
        command = [sys.executable, __file__, "--folder", str(folder), "--answer", str(result), "--only", *names]
        subprocess.run(command, env=os.environ | environment, check=True)
    return json.loads(result.read_text())


def answer(names: list[str], folder: Path, result: Path) -> None:
    """Prepare the networks, or answer with Keras and judge every answer."""
    unet.set_variables()
    rows: dict[str, list[dict[str, Any]]] = {"healthy": [], "faults": []}
    for name in tqdm(names, result.stem, unit="network"):
        base = folder / name.replace(" ", "_").replace(",", "")
        if result.stem.startswith("prepared"):
            rows["faults"] += prepare(name, base)
        else:
            rows["healthy"] += judge(name, base)
        load_keras().backend.clear_session()
    result.write_text(json.dumps(rows))


def inputs_of(name: str, network: str | Path) -> list[tuple[str, dict[str, np.ndarray]]]:
    given = networks()[name][1]()
    (tensor,) = onnx.load(os.fspath(network), load_external_data=False).graph.input
    return [(str(number), {tensor.name: given[number : number + 1]}) for number in range(len(given))]


def load(name: str, base: Path) -> Any:
    """The network with the weights that it was converted with."""
    model = build(name, calibrated=False)
    with np.load(f"{base}.npz") as arrays:
        model.set_weights([arrays[f"arr_{number}"] for number in range(len(arrays.files))])
    return model


def prepare(name: str, base: Path) -> list[dict[str, Any]]:
    """Convert a network, run it in ONNX Runtime in all settings, measure its noise; then plant the faults."""
    file = Path(f"{base}.onnx")
    if not file.exists():
        model = build(name)
        np.savez(f"{base}.npz", *model.get_weights())
        spatial = (96, 96) if model.inputs[0].shape[1] is None else None
        keras_to_onnx(model, file, spatial=spatial, progress=False)
    feeds = inputs_of(name, file)
    for number, (threads, optimise) in enumerate(RUNTIMES):
        session = open_session(file, threads=threads, optimise=optimise)
        answers = [run_session(session, feed) for _, feed in feeds]
        np.savez(f"{base}.runtime{number}.npz", *[array for found in answers for array in found.values()])
    noise = rounding_noise(file, feeds)
    rows = []
    healthy = [run_session(open_session(file), feed) for _, feed in feeds]
    for fault, plant in FAULTS.items():
        faulty = plant(onnx.load(file), lambda: load(name, base))
        if faulty is not None:
            session = open_session(faulty)
            rows.append(row_of(name, noise, healthy, [run_session(session, feed) for _, feed in feeds], fault=fault))
    return rows


def judge(name: str, base: Path) -> Iterator[dict[str, Any]]:
    """Compare Keras, in this process, with every ONNX Runtime."""
    feeds = inputs_of(name, f"{base}.onnx")
    noise = rounding_noise(f"{base}.onnx", feeds)
    with KerasRunner(load(name, base)) as runner:
        (key,) = runner.inputs
        reference = [runner.infer({key: array}) for _, feed in feeds for array in feed.values()]
    given = np.concatenate([array for _, feed in feeds for array in feed.values()])
    answers = np.concatenate([array for found in reference for array in found.values()])
    np.savez(f"{base}.keras.npz", given=given, answers=answers)
    for number, (threads, optimise) in enumerate(RUNTIMES):
        with np.load(f"{base}.runtime{number}.npz") as arrays:
            candidate = [dict(zip(reference[0], [array], strict=True)) for array in arrays.values()]
        yield row_of(name, noise, reference, candidate, threads=threads, optimise=optimise)


def row_of(name: str, noise: RoundingNoise, reference: Answers, candidate: Answers, **more: Any) -> dict[str, Any]:
    names = {"reference_name": "Keras", "candidate_name": "ONNX Runtime"}
    pairs = list(zip(reference, candidate, strict=True))
    report, fixed = (compare_batches(pairs, tolerance=limits, **names) for limits in (noise, FLOAT32))
    (output,) = report.outputs
    return {
        "network": name, **more, "status": report.status, "fixed": fixed.status,
        "noise": float(f"{output.noise:.3g}"), "allowed": float(f"{output.allowed:.3g}"),
        "error": float(f"{output.max_relative_error:.3g}"),
        "times_noise": float(f"{output.max_relative_error / output.noise if output.noise else 0:.3g}"),
        "times_allowed": float(f"{output.max_relative_error / output.allowed:.3g}"),
    }  # fmt: skip


def worst_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each network the setting in which the error was largest beside what is allowed."""
    names = dict.fromkeys(row["network"] for row in rows)
    return [max((r for r in rows if r["network"] == name), key=lambda r: r["times_allowed"]) for name in names]


if __name__ == "__main__":
    main()
