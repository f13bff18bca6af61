"""FCN-8s in fp16 on a GPU: what it costs to get pictures in and label maps out, against the bare compute.

Run it from the repository: `PYTHONPATH=. python benchmarks/gpu_pipeline.py`. The network has the original's full width
and random weights; ONNX Runtime runs it, so the record says nothing about TensorRT.

- compute: the network alone, input and output on the device, queued one after the other. No way of copying can be
  faster on one stream.
- run: the plain call `session.run`, float32 host arrays in, float32 logits in host arrays out.
- ours: uint8 pictures in host arrays in, uint8 label maps in host arrays out: preprocessing and argmax fused into the
  graph, pinned buffers made once, and two of them that take turns, so that one copies while the other computes.

Each figure is the median over windows of `--window` pictures, and the windows of all ways take turns.
"""

import argparse
import gc
import itertools
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parents[1]))

from _networks import save_fcn8s
from _onnxruntime_engine import OnnxRuntimeEngine
from _record import write_record

from workbench.core.driver import probe_driver
from workbench.core.errors import DeviceError
from workbench.engine.inference import Buffers, allocate_buffers, do_inference
from workbench.onnx_graph.fuse import fuse_argmax, fuse_preprocessing
from workbench.onnx_graph.session import prepare_cuda
from workbench.pictures.images import sub_mean_chw

OPERATORS = ("ArgMax", "MaxPool")
LARGEST_DISAGREEMENT = 0.05
"""Share of pixels that two fp16 sessions may label differently: cuDNN may choose other algorithms in each, and random
weights leave many pixels close to a tie. More than that means that the ways do not compute the same."""

PROVIDERS = [("CUDAExecutionProvider", {"use_tf32": "1"}), "CPUExecutionProvider"]
"""With `use_tf32` 0 ONNX Runtime 1.31 keeps float16 off the tensor cores too: 20.6 ms instead of 2.6 ms on an H200."""

Window = Callable[[int], float]


class Lanes:
    """Two sets of buffers that take turns on two streams: while one computes, the other copies.

    Args:
        lanes: buffers of one network, each with its own stream.
    """

    def __init__(self, lanes: Iterable[Buffers]) -> None:
        self.lanes = list(lanes)

    def run(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Give a fresh label map for each picture, in order."""
        busy: list[Buffers] = []
        for image, buffers in zip(images, itertools.cycle(self.lanes)):  # the lanes have no end
            if len(busy) == len(self.lanes):
                yield self._finish(busy.pop(0))
            with buffers.turn():
                buffers.load(image)
                buffers._submit()
            busy.append(buffers)
        for buffers in busy:
            yield self._finish(buffers)

    @staticmethod
    def _finish(buffers: Buffers) -> np.ndarray:
        with buffers.turn():
            buffers.memory.synchronize(buffers._stream)
            return buffers._outputs["output"].array.copy()

    def window(self, images: list[np.ndarray], count: int) -> float:
        """Seconds for `count` pictures while the lanes are full before and after."""
        ahead = 2 * len(self.lanes)
        answers = self.run(itertools.islice(itertools.cycle(images), count + 2 * ahead))
        for _ in range(ahead):
            next(answers)
        start = time.perf_counter()
        for _ in range(count):
            next(answers)
        seconds = time.perf_counter() - start
        for _ in answers:
            pass
        return seconds


def make_pictures(count: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Pictures with large regions and noise, (1, height, width, 3) uint8."""
    random, (height, width) = np.random.default_rng(0), size
    pictures = []
    for _ in range(count):
        coarse = random.integers(0, 200, (height // 32, width // 32, 3)).repeat(32, axis=0).repeat(32, axis=1)
        pictures.append((coarse + random.integers(0, 56, (height, width, 3))).astype(np.uint8)[None])
    return pictures


def as_feed(picture: np.ndarray) -> np.ndarray:
    """What the network without fusions takes, (1, 3, height, width) float32."""
    return sub_mean_chw(picture[0].transpose(2, 0, 1))[None]


def make_networks(folder: Path, size: tuple[int, int]) -> dict[str, Path]:
    """Write the fp16 network bare, with float32 ends for `run`, and fused with each operator."""
    from onnxconverter_common.float16 import convert_float_to_float16

    full = onnx.load(save_fcn8s(folder / "fp32.onnx", size))
    paths = {name: folder / f"{name}.onnx" for name in ("bare", "float_ends", *OPERATORS)}
    for name, keep in (("bare", False), ("float_ends", True)):
        copy = onnx.ModelProto()
        copy.CopyFrom(full)
        with warnings.catch_warnings(action="ignore"):  # that the smallest of the random weights become 1e-7
            onnx.save(convert_float_to_float16(copy, keep_io_types=keep, disable_shape_infer=True), paths[name])
    prepared = fuse_preprocessing(paths["bare"], folder / "prepared.onnx")
    for operator in OPERATORS:
        fuse_argmax(prepared, paths[operator], operator=operator)
    return paths


def keep_scores(path: Path, out: Path) -> Path:
    """The fused network with its logits as a second output, to compare both from one run."""
    model = onnx.load(path)
    shape = ("batch", 20, *(dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim[1:]))
    scores = onnx.helper.make_tensor_value_info("output_scores", onnx.TensorProto.FLOAT16, shape)
    model.graph.output.append(scores)
    onnx.save(model, out)
    return out


def check_argmax(path: Path, picture: np.ndarray) -> int:
    """Count pixels whose label in the graph is not NumPy's argmax of the logits of the same run."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=PROVIDERS)
    labels, scores = session.run(["output", "output_scores"], {"input": picture})
    if not np.isfinite(scores).all():
        raise SystemExit("the logits are not finite in fp16; no time is meant")
    return int((labels[0] != np.argmax(scores[0], axis=0)).sum())


def compute_window(buffers: Buffers, count: int, synchronize: bool) -> float:
    """Seconds for executing `count` times what is on the device; waiting after each, or only after the last."""
    with buffers.turn():
        start = time.perf_counter()
        for _ in range(count):
            buffers._context.execute_async_v3(buffers._stream)
            if synchronize:
                buffers.memory.synchronize(buffers._stream)
        buffers.memory.synchronize(buffers._stream)
        return time.perf_counter() - start


def call_window(function: Callable[[np.ndarray], Any], pictures: list[np.ndarray], count: int) -> float:
    """Seconds for `count` calls, one after the other."""
    start = time.perf_counter()
    for picture in itertools.islice(itertools.cycle(pictures), count):
        function(picture)
    return time.perf_counter() - start


def median_ms(ways: dict[str, Window], rounds: int, window: int) -> dict[str, dict[str, float]]:
    """Median, least and greatest milliseconds per picture over windows that take turns."""
    for way in ways.values():
        way(window)
    samples: dict[str, list[float]] = {name: [] for name in ways}
    gc.disable()
    for _ in range(rounds):
        for name, way in ways.items():
            samples[name].append(way(window) / window * 1e3)
    gc.enable()
    return {
        name: {
            "median": round(float(np.median(values)), 4),
            "least": round(min(values), 4),
            "greatest": round(max(values), 4),
        }
        for name, values in samples.items()
    }


def disagreement(answers: Iterable[np.ndarray], expected: list[np.ndarray]) -> float:
    """Share of pixels that differ; stops the benchmark when it is too large to be fp16's."""
    share = float(np.mean([(answer[0] != truth).mean() for answer, truth in zip(answers, expected, strict=True)]))
    if share > LARGEST_DISAGREEMENT:
        raise SystemExit(f"{share:.1%} of the pixels differ from the plain run; no ratio is meant")
    return round(share, 6)


def prepare(paths: dict[str, Path], pictures: list[np.ndarray], stack: ExitStack) -> tuple[dict[str, Window], Any]:
    """Open everything, compare the answers, and return a window for each way and the disagreements."""
    import onnxruntime

    plain = onnxruntime.InferenceSession(str(paths["float_ends"]), providers=PROVIDERS)
    feeds = [as_feed(picture) for picture in pictures]
    expected = [np.argmax(plain.run(None, {"input": feed})[0][0], axis=0).astype(np.uint8) for feed in feeds]
    bare_engine = OnnxRuntimeEngine(paths["bare"], largest=1, tf32=True)
    bare = stack.enter_context(allocate_buffers(bare_engine, 1))
    do_inference(bare_engine, feeds[0].astype(np.float16), bare)
    ways: dict[str, Window] = {
        "compute": lambda count: compute_window(bare, count, synchronize=False),
        "compute, waiting each time": lambda count: compute_window(bare, count, synchronize=True),
        "run, float in, logits out": lambda n: call_window(lambda feed: plain.run(None, {"input": feed}), feeds, n),
    }
    answers: dict[str, Any] = {"labels_in_the_pictures": len(np.unique(np.stack(expected)))}
    for operator in OPERATORS:
        add_fused(ways, answers, operator, paths[operator], pictures, expected, stack)
    return ways, answers


def add_fused(
    ways: dict[str, Window],
    answers: dict[str, Any],
    operator: str,
    path: Path,
    pictures: list[np.ndarray],
    expected: list[np.ndarray],
    stack: ExitStack,
) -> None:
    """Add the ways of one fused network: plain call, one lane, two lanes, and its bare compute."""
    import onnxruntime

    wrong = check_argmax(keep_scores(path, path.with_name("scores.onnx")), pictures[0])
    session = onnxruntime.InferenceSession(str(path), providers=PROVIDERS)
    engine = OnnxRuntimeEngine(path, largest=1, tf32=True)
    pair = [stack.enter_context(allocate_buffers(engine, 1)) for _ in range(2)]
    lanes = Lanes(pair)
    answers[operator] = {
        "pixels_unlike_numpy_argmax_of_the_same_logits": wrong,
        "share_of_pixels_unlike_plain_run": disagreement(lanes.run(pictures), expected),
    }
    one = pair[0]
    ways[f"{operator}: fused compute"] = lambda count: compute_window(one, count, synchronize=False)
    ways[f"{operator}: fused run"] = lambda count: call_window(
        lambda picture: session.run(None, {"input": picture}), pictures, count
    )
    ways[f"{operator}: fused, one lane"] = lambda count: call_window(
        lambda picture: do_inference(engine, picture, one)["output"].copy(), pictures, count
    )
    ways[f"{operator}: ours, two lanes"] = lambda count: lanes.window(pictures, count)


def graph_lanes_ms(path: Path, pictures: list[np.ndarray], rounds: int, window: int) -> dict[str, Any]:
    """The two lanes once more, each replaying a recorded CUDA graph; ONNX Runtime may refuse to be recorded."""
    try:
        with ExitStack() as stack:
            engine = OnnxRuntimeEngine(path, largest=1, tf32=True)
            lanes = Lanes(stack.enter_context(allocate_buffers(engine, 1, cuda_graph=True)) for _ in range(2))
            return median_ms({"graph": lambda count: lanes.window(pictures, count)}, rounds, window)["graph"]
    except (DeviceError, RuntimeError) as error:
        return {"refused": str(error).splitlines()[0][:200]}


def summarise(times: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The ratios, with the operator whose two lanes are faster."""
    medians = {name: value["median"] for name, value in times.items()}
    operator = min(OPERATORS, key=lambda name: medians[f"{name}: ours, two lanes"])
    ours, run = medians[f"{operator}: ours, two lanes"], medians["run, float in, logits out"]
    return {
        "operator": operator,
        "ours_over_compute": round(ours / medians["compute"], 4),
        "ours_over_compute_waiting_each_time": round(ours / medians["compute, waiting each time"], 4),
        "ours_over_fused_compute": round(ours / medians[f"{operator}: fused compute"], 4),
        "run_over_compute": round(run / medians["compute"], 4),
        "times_faster_than_run": round(run / ours, 3),
    }


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the networks, measure every way, and print a table."""
    size, rounds, window = (512, 1024), arguments.rounds, arguments.window
    paths, pictures = make_networks(folder, size), make_pictures(8, size)
    with ExitStack() as stack:
        ways, answers = prepare(paths, pictures, stack)
        times = median_ms(ways, rounds, window)
    ratios = summarise(times)
    if arguments.cuda_graph:
        times["ours, two lanes, CUDA graphs"] = graph_lanes_ms(paths[ratios["operator"]], pictures, rounds, window)
    for name, value in times.items():
        print(f"{name:34} {value.get('median', value.get('refused'))!s:>9} ms")
    print("\n".join(f"{name:40} {value}" for name, value in ratios.items()))
    pixels = size[0] * size[1]
    return {
        "pictures_in_turn": len(pictures),
        "rounds": rounds,
        "pictures_per_window": window,
        "bytes_per_picture": {
            "run": {"in": 12 * pixels, "out": 80 * pixels},
            "ours": {"in": 3 * pixels, "out": pixels},
        },
        "ms_per_picture": times,
        "ratios": ratios,
        "answers": answers,
    }


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description="FCN-8s in fp16 on a GPU, host to host.")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--window", type=int, default=20, help="pictures per window")
    parser.add_argument("--cuda-graph", action="store_true", help="try recorded CUDA graphs too, last of all")
    arguments = parser.parse_args()
    driver = probe_driver()
    if driver.problem:
        print(f"not run: {driver.problem}")
        return
    import onnxruntime

    prepare_cuda(onnxruntime)
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), arguments)
    gpu = driver.gpus[0]
    result = {
        "gpu": {"name": gpu.name, "compute_capability": gpu.capability, "cuda": driver.cuda},
        "onnxruntime": onnxruntime.__version__,
        "network": "FCN-8s, full width, (1, 3, 512, 1024) to 20 channels, random weights",
        "precision": "fp16, converted with onnxconverter-common",
        **measured,
    }
    path = write_record("gpu_pipeline", result, packages=("numpy", "onnx", "onnxconverter-common"))
    print(f"\nwrote {os.path.relpath(path)}")


if __name__ == "__main__":
    main()
