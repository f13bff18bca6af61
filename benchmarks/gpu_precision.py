"""What fp32, tf32 and fp16 take on a GPU: FCN-8s at full width and ResNet-50, batch 1 to 64, with ONNX Runtime.

Run it from the repository: `PYTHONPATH=. python benchmarks/gpu_precision.py`; `--cpu` tries the script itself on small
networks without a GPU. The networks have random weights, so errors are those of the arithmetic, not of any answers.

Inputs and outputs stay on the device, one call waits for the other. `fp32` has TF32 off; `tf32` is the same file with
TF32 on; `fp16` is converted by `workbench.precision.to_fp16`, with float32 ends. Each row is written as soon as it is
measured, small batches first, and what the time does not allow is named at the end.
"""

import argparse
import ctypes
import gc
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from _networks import save_fcn8s, save_resnet50

from workbench.core.contract import RunnerInfo
from workbench.core.driver import probe_driver
from workbench.core.files import data_file, make_folder
from workbench.measure.latency import now
from workbench.measure.points import network_digest
from workbench.measure.row import FAILED, Row, append_row, machine_text, time_columns, versions_text
from workbench.measure.rows import RECORDINGS
from workbench.onnx_graph.session import prepare_cuda

PRECISIONS = ("fp32", "tf32", "fp16")
ARITHMETIC = {
    "fp32": "float32, TF32 off",
    "tf32": "float32, rounded to TF32 in convolutions and matrix products",
    "fp16": "float16, with float32 ends",
}
BATCHES = (1, 2, 4, 8, 16, 32, 64)
WARMUP, LEAST_RUNS, MOST_RUNS, SECONDS_A_POINT = 3, 8, 60, 1.0


@dataclass(frozen=True)
class Network:
    """One network: its float32 file, the float16 file (None where the conversion failed), and what a call takes."""

    name: str
    sha256: str
    files: dict[str, Path]
    notes: dict[str, str]
    size: tuple[int, int]


class GpuMemory:
    """Memory in use on the first GPU, asked from the driver; None wherever it cannot tell."""

    def __init__(self) -> None:
        self._cuda = None
        try:
            cuda, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
            failed = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0)
            failed = failed or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
            if not failed and not cuda.cuCtxSetCurrent(context):
                self._cuda = cuda
        except (OSError, AttributeError) as error:
            print(f"GPU memory is not measured: {error}")

    def used_mib(self) -> float | None:
        if self._cuda is None:
            return None
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        failed = self._cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        return None if failed else (total.value - free.value) / 2**20


class Point:
    """A session with its input and output on the device; it is closed by `close`, which frees its memory."""

    def __init__(self, path: Path, device: str, tf32: bool, feed: np.ndarray) -> None:
        import onnxruntime

        cpu, options = "CPUExecutionProvider", onnxruntime.SessionOptions()
        options.log_severity_level = 3
        cuda = ("CUDAExecutionProvider", {"use_tf32": str(int(tf32)), "arena_extend_strategy": "kSameAsRequested"})
        providers: list[Any] = [cuda, cpu] if device == "cuda" else [cpu]
        self.session: Any = onnxruntime.InferenceSession(str(path), options, providers=providers)
        if device == "cuda" and "CUDAExecutionProvider" not in self.session.get_providers():
            raise SystemExit("ONNX Runtime fell back to the CPU: the libraries of its CUDA provider do not load")
        self.binding: Any = self.session.io_binding()
        given, answer = self.session.get_inputs()[0], self.session.get_outputs()[0]
        shape = (len(feed), *answer.shape[1:])
        self.input: Any = onnxruntime.OrtValue.ortvalue_from_numpy(feed, device, 0)
        self.output: Any = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, device, 0)
        self.binding.bind_ortvalue_input(given.name, self.input)
        self.binding.bind_ortvalue_output(answer.name, self.output)

    def run(self) -> float:
        """One call, waited for; milliseconds."""
        start = time.perf_counter()
        self.session.run_with_iobinding(self.binding)
        return (time.perf_counter() - start) * 1e3

    def answers(self) -> np.ndarray:
        return self.output.numpy()

    def close(self) -> None:
        self.session = self.binding = self.input = self.output = None
        gc.collect()


def make_networks(folder: Path, tiny: bool) -> list[Network]:
    """Write both networks in float32 and float16."""
    sizes = {"fcn8s": (64, 64) if tiny else (512, 1024), "resnet50": (64, 64) if tiny else (224, 224)}
    networks = []
    for name, size in sizes.items():
        start, path = time.perf_counter(), folder / f"{name}.onnx"
        save_resnet50(path, size[0]) if name == "resnet50" else save_fcn8s(path, size)
        files, notes = {"fp32": path, "tf32": path}, dict.fromkeys(PRECISIONS, "")
        try:
            from workbench.precision.half import to_fp16

            report = to_fp16(path, folder / f"{name}_fp16.onnx")
            files["fp16"] = folder / f"{name}_fp16.onnx"
            notes["fp16"] = f"{report.converted} nodes in float16, {len(report.kept)} kept in float32"
        except Exception as error:
            notes["fp16"] = f"the conversion failed: {first_line(error)}"
        networks.append(Network(name, network_digest(path), files, notes, size))
        print(f"{name}: made in {time.perf_counter() - start:.1f} s; {notes['fp16']}", flush=True)
    return networks


def prime(device: str, folder: Path) -> None:
    """Load the CUDA libraries before memory is measured: a small network that is let go at once."""
    path = save_resnet50(folder / "prime.onnx", 32)
    point = Point(path, device, True, np.zeros((1, 3, 32, 32), np.float32))
    point.run()
    point.close()


def time_calls(point: Point, seconds: float) -> list[float]:
    """Times in milliseconds, after a warm-up in which cuDNN tries its algorithms."""
    for _ in range(WARMUP):
        last = point.run()
    count = int(min(MOST_RUNS, max(LEAST_RUNS, seconds * 1e3 / max(last, 1e-3))))
    return [point.run() for _ in range(count)]


def judge(row: Row, answers: np.ndarray, expected: np.ndarray | None) -> Row:
    """Add the error of the first picture's answer against float32's to it alone, which may be missing."""
    if not np.isfinite(answers).all():
        return replace(row, status=FAILED, reason=f"{int((~np.isfinite(answers)).sum())} answers are not finite")
    if expected is None and row.precision == "fp32" and row.batch == 1:
        expected = answers
    if expected is None:
        return replace(row, note=f"{row.note}; no float32 answers to compare with".removeprefix("; "))
    error = relative_l2([expected[:1]], [answers[:1]])
    return replace(row, relative_l2=float(f"{error:.5g}"), against="the fp32 row of batch 1, same picture")


def relative_l2(reference: Iterable[np.ndarray], candidate: Iterable[np.ndarray]) -> float:
    """Norm of the difference over the norm of the reference, over all arrays, one picture at a time.

    Infinity where a candidate has NaN or infinity.
    """
    wrong = right = 0.0
    for first, second in zip(reference, candidate, strict=True):
        for one, other in zip(first, second, strict=True):
            difference = np.subtract(other, one, dtype=np.float64)
            wrong += float(np.vdot(difference, difference))
            right += float(np.square(one, dtype=np.float64).sum())
    if not np.isfinite(wrong):
        return float("inf")
    return float(np.sqrt(wrong / right)) if right else float(np.sqrt(wrong))


def first_line(error: BaseException) -> str:
    """Kind and first line of an error, without folders and the machine's name."""
    lines = str(error).strip().splitlines() or [""]
    return re.sub(r"/\S+/|hostname=\S+ ; ", "", f"{type(error).__name__}: {lines[0]}")[:240]


def grid(networks: list[Network], largest: int) -> list[tuple[Network, int]]:
    """Small batches first, so that a lack of time costs the largest ones."""
    pairs = [(network, batch) for network in networks for batch in BATCHES if batch <= largest]
    return sorted(pairs, key=lambda pair: (pair[1], pair[0].name))


def run_all(
    networks: list[Network], common: dict[str, Any], arguments: argparse.Namespace, late: Callable[[], bool]
) -> list[Row]:
    """Measure every point that the time allows; each row is in the file before the next one begins."""
    memory, rows, stopped = GpuMemory(), [], set()
    alone: dict[str, np.ndarray | None] = {}  # float32's answer to the first picture, by network
    for network, batch in grid(networks, arguments.largest):
        feed = np.random.default_rng(0).standard_normal((batch, 3, *network.size), np.float32)
        for precision in PRECISIONS:
            if (network.name, precision) in stopped:
                continue
            if late():
                print(f"not measured, the time is over: {network.name}, batch {batch}, {precision}", flush=True)
                continue
            row = empty_row(network, precision, batch, common)
            row, answers = one_point(network, row, feed, memory, alone.get(network.name), arguments.seconds_a_point)
            if precision == "fp32" and batch == 1:
                alone[network.name] = answers
            if not row.ok:
                stopped.add((network.name, precision))  # a larger batch would fail again
            append_row(arguments.partial, row)
            rows.append(row)
            print(f"{row.title:46} {row.latency_ms or 0:9.3f} ms {row.images_per_s or 0:9.1f} images/s "
                  f"{row.memory_mib or 0:8.0f} MiB  error {row.relative_l2}  {row.reason}", flush=True)  # fmt: skip
    return rows


def one_point(
    network: Network, row: Row, feed: np.ndarray, memory: GpuMemory, expected: np.ndarray | None, seconds: float
) -> tuple[Row, np.ndarray | None]:
    """Open, measure and close one point, and return its answers; whatever goes wrong is the row's reason."""
    path, point, before = network.files.get(row.precision), None, memory.used_mib()
    if path is None:
        return replace(row, status=FAILED, reason=network.notes[row.precision], note=""), None
    try:
        point = Point(path, "cuda" if row.recording else "cpu", row.precision != "fp32", feed)
        samples, after = time_calls(point, seconds), memory.used_mib()
        mib = None if before is None or after is None else round(after - before, 1)
        row = replace(row, **time_columns(samples, row.batch), memory_mib=mib)
        row = replace(row, file_mib=round(path.stat().st_size / 2**20, 2))
        answers = point.answers()
        return judge(row, answers, expected), answers
    except Exception as error:
        return replace(row, status=FAILED, reason=first_line(error)), None
    finally:
        if point is not None:
            point.close()


def empty_row(network: Network, precision: str, batch: int, common: dict[str, Any]) -> Row:
    return Row(
        network=network.name,
        network_sha256=network.sha256,
        precision=precision,
        batch=batch,
        height=network.size[0],
        width=network.size[1],
        date=now(),
        real=bool(common["gpu"]) or precision == "fp32",
        arithmetic=ARITHMETIC[precision] if common["gpu"] else "float32: a trial of the script on a CPU",
        note=network.notes[precision],
        timed="input and output on the device, each call waited for" if common["gpu"] else "I/O bound on the CPU",
        memory_of="memory in use on the GPU, less the CUDA context" if common["gpu"] else "",
        recording=common["gpu"] and recording_name(common["gpu"]),
        **{name: value for name, value in common.items() if name != "gpu"},
    )


def recording_name(gpu: str) -> str:
    """`h200_precision` for an NVIDIA H200."""
    return f"{gpu.split()[-1].lower()}_precision"


def recording_file(gpu: str) -> Path:
    return data_file(RECORDINGS) / f"{recording_name(gpu)}.jsonl"


def describe(device: str) -> dict[str, Any]:
    """Machine, versions and runner of every row."""
    import onnx
    import onnxruntime

    versions = {"onnx": onnx.__version__, "ONNX Runtime": onnxruntime.__version__}
    if device == "cpu":
        name = RunnerInfo("onnxruntime", onnxruntime.__version__, "CPU").name
        return {"backend": "onnxruntime", "runner": name, "machine": machine_text(), "gpu": "",
                "versions": versions_text(**versions)}  # fmt: skip
    gpu = prepare_cuda(onnxruntime)
    return {
        "backend": "onnxruntime-cuda",
        "runner": RunnerInfo("onnxruntime", onnxruntime.__version__, gpu).name,
        "machine": machine_text(gpu),
        "versions": versions_text(**versions, **{"CUDA driver": str(probe_driver().cuda)}),
        "gpu": gpu,
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="fp32, tf32 and fp16 on a GPU, batch 1 to 64.")
    parser.add_argument("--cpu", action="store_true", help="try the script on small pictures; nothing is recorded")
    parser.add_argument("--seconds", type=float, default=190, help="begin no point after this time (default: 190)")
    parser.add_argument("--largest", type=int, default=64, help="largest batch (default: 64)")
    parser.add_argument("--out", type=Path, help="default: data/recordings/<GPU>_precision.jsonl; a spare file with "
                        "--cpu")  # fmt: skip
    return parser.parse_args()


def main() -> None:
    """Measure and write the rows."""
    arguments, start = parse_arguments(), time.monotonic()
    problem = probe_driver().problem
    if problem and not arguments.cpu:
        print(f"not run: {problem}")
        return
    device = "cpu" if arguments.cpu else "cuda"
    common = describe(device)
    arguments.seconds_a_point = 0.05 if arguments.cpu else SECONDS_A_POINT
    with tempfile.TemporaryDirectory() as name:
        spare = Path(name) / "trial.jsonl"
        target = arguments.out or (spare if arguments.cpu else recording_file(common["gpu"]))
        arguments.partial = make_folder(target.parent) / f"{target.stem}.partial.jsonl"
        arguments.partial.unlink(missing_ok=True)
        networks = make_networks(Path(name), arguments.cpu)
        prime(device, Path(name))
        rows = run_all(networks, common, arguments, lambda: time.monotonic() - start > arguments.seconds)
        if not any(row.ok for row in rows):
            raise SystemExit("no point was measured; the rows above say why")
        arguments.partial.replace(target)  # an older recording stays until the new one is whole
    measured, seconds = sum(row.ok for row in rows), time.monotonic() - start
    print(f"\n{measured} of {len(rows)} rows measured in {seconds:.0f} s: {target.name}")


if __name__ == "__main__":
    main()
