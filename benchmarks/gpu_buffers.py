"""Our buffers against the tutorial's way, on a GPU, with ONNX Runtime: the ratio of two medians of one run.

Run it from the repository, with ONNX files that take float32 pictures:
`python benchmarks/gpu_buffers.py resnet50.onnx fcn_vgg16.onnx`. Networks of the same shape with random weights are made
where no files are given.

Both ways run ONNX Runtime with TF32 off on the same input and must give the same answer.

- ours: `allocate_buffers` once, then `do_inference`: pinned memory, one stream, nothing allocated per call.
- the tutorial's: device memory for input and output allocated in each call, pageable host arrays copied with blocking
  copies on the default stream, a new array for the answer.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from _onnxruntime_engine import OnnxRuntimeEngine
from _record import write_record

from workbench.core.driver import probe_driver
from workbench.engine.inference import Buffers, allocate_buffers, do_inference
from workbench.engine.memory import open_memory
from workbench.onnx_graph.file import check
from workbench.onnx_graph.session import prepare_cuda, providers

Answers = dict[str, np.ndarray]


class TutorialWay:
    """The tutorial's `do_inference` on a kept session: memory made and copied without thought, in each call."""

    def __init__(self, path: str) -> None:
        import onnxruntime
        from cuda.bindings import runtime

        prepare_cuda(onnxruntime)
        self.cuda = runtime
        self.session = onnxruntime.InferenceSession(path, providers=providers("cuda"))
        self.outputs = [value.name for value in self.session.get_outputs()]

    def __call__(self, feed: Answers, shapes: dict[str, tuple[int, ...]]) -> Answers:
        addresses: list[int] = []
        binding = self.session.io_binding()
        for name, array in feed.items():
            address = self._allocate(array.nbytes, addresses)
            kind = self.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
            self._check(self.cuda.cudaMemcpy(address, array.ctypes.data, array.nbytes, kind))
            binding.bind_input(name, "cuda", 0, array.dtype, array.shape, address)
        answers = {name: np.empty(shapes[name], np.float32) for name in self.outputs}
        placed = {name: self._allocate(array.nbytes, addresses) for name, array in answers.items()}
        for name, array in answers.items():
            binding.bind_output(name, "cuda", 0, array.dtype, array.shape, placed[name])
        self.session.run_with_iobinding(binding)
        for name, array in answers.items():
            kind = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            self._check(self.cuda.cudaMemcpy(array.ctypes.data, placed[name], array.nbytes, kind))
        for address in addresses:
            self._check(self.cuda.cudaFree(address))
        return answers

    def _allocate(self, nbytes: int, addresses: list[int]) -> int:
        address = int(self._check(self.cuda.cudaMalloc(nbytes)))
        addresses.append(address)
        return address

    @staticmethod
    def _check(result: tuple[Any, ...]) -> Any:
        if int(result[0]):
            raise SystemExit(f"CUDA failed: {result[0]}")
        return result[1] if len(result) > 1 else None


def interleaved_ms(functions: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Time the functions in turn, so that a slow spell of the machine meets all of them."""
    for function in functions.values():
        for _ in range(10):
            function()
    samples: dict[str, list[float]] = {name: [] for name in functions}
    gc.disable()
    for _ in range(runs):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            samples[name].append((time.perf_counter() - start) * 1e3)
    gc.enable()
    return samples


def compute_only_ms(buffers: Buffers, runs: int) -> float:
    """The median of executing alone, on what is already on the GPU: what no way of copying can undercut."""
    samples = []
    with buffers.turn():
        for _ in range(runs):
            start = time.perf_counter()
            buffers._context.execute_async_v3(buffers._stream)
            buffers.memory.synchronize(buffers._stream)
            samples.append((time.perf_counter() - start) * 1e3)
    return float(np.median(samples))


def measure(path: str, runs: int, memory: str) -> dict[str, Any]:
    """Both ways on one network, batch 1."""
    engine, tutorial = OnnxRuntimeEngine(path, largest=1), TutorialWay(path)
    random = np.random.default_rng(0)
    feed = {
        name: random.standard_normal([size or 1 for size in spec.shape]).astype(np.float32)
        for name, spec in engine.inputs.items()
    }
    with allocate_buffers(engine, 1, memory=memory) as buffers:
        ours = {name: array.copy() for name, array in do_inference(engine, feed, buffers).items()}
        shapes = {name: array.shape for name, array in ours.items()}
        theirs = tutorial(feed, shapes)
        largest = max(float(np.abs(ours[name] - theirs[name]).max() / np.ptp(theirs[name])) for name in ours)
        if largest > 1e-4:  # float32; cuDNN may choose another algorithm in each of the two sessions
            raise SystemExit(f"{path}: the two ways differ by {largest:.1e} of the range; no ratio is meant")
        samples = interleaved_ms(
            {"ours": lambda: do_inference(engine, feed, buffers), "tutorial": lambda: tutorial(feed, shapes)}, runs
        )
        compute = compute_only_ms(buffers, runs)
    medians = {name: float(np.median(values)) for name, values in samples.items()}
    return {
        "input_bytes": sum(array.nbytes for array in feed.values()),
        "output_bytes": sum(array.nbytes for array in ours.values()),
        "runs": runs,
        "largest_difference_over_range": largest,
        "median_ms": {name: round(value, 4) for name, value in medians.items()},
        "p95_ms": {name: round(float(np.percentile(values, 95)), 4) for name, values in samples.items()},
        "compute_only_median_ms": round(compute, 4),
        "times_faster": round(medians["tutorial"] / medians["ours"], 3),
        "copies_ms": {name: round(value - compute, 4) for name, value in medians.items()},
    }


def make_networks(folder: Path) -> list[str]:
    """Write two networks with random weights, of the operations and sizes of ResNet-50 and FCN-8s."""
    from _networks import save_fcn8s, save_resnet50

    return [str(save_resnet50(folder / "resnet50.onnx")), str(save_fcn8s(folder / "fcn8s.onnx"))]


def main() -> None:
    """Measure each network, print a table and write the record."""
    parser = argparse.ArgumentParser(description="Our buffers against the tutorial's way, on a GPU.")
    parser.add_argument("models", nargs="*", help="ONNX files; made with random weights when none are given")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--memory", default="cuda-python", choices=("cuda-python", "pycuda"))
    arguments = parser.parse_args()
    driver = probe_driver()
    if driver.problem:
        print(f"not run: {driver.problem}")
        return
    import onnxruntime

    prepare_cuda(onnxruntime)
    with tempfile.TemporaryDirectory() as folder:
        results = {}
        for path in arguments.models or make_networks(Path(folder)):
            check(path)
            name = Path(path).stem
            results[name] = measure(path, arguments.runs, arguments.memory)
            times, ratio = results[name]["median_ms"], results[name]["times_faster"]
            print(f"{name:16} ours {times['ours']:8.3f} ms   tutorial's {times['tutorial']:8.3f} ms   {ratio:.2f}x")
            print(f"{'':16} bare compute {results[name]['compute_only_median_ms']:.3f} ms")
    gpu = driver.gpus[0]
    result = {
        "gpu": {"name": gpu.name, "compute_capability": gpu.capability, "cuda": driver.cuda},
        "onnxruntime": onnxruntime.__version__,
        "memory": open_memory(arguments.memory).name,
        "weights": "of the files given" if arguments.models else "random",
        "precision": "fp32, TF32 off",
        "networks": results,
    }
    path = write_record("gpu_buffers", result, packages=("numpy", "onnx"))
    print(f"\nwrote {os.path.relpath(path)}")


if __name__ == "__main__":
    main()
