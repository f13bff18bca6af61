"""Images per second of `segment_folder` against plain loops, and its memory over 2,000 images.

Run it from the repository: `python benchmarks/segment_folder.py`. The demonstration network is converted first, which
needs Keras; without an argument it takes about four minutes on two cores.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import onnx
from _record import write_record
from onnx import helper, numpy_helper
from PIL import Image
from street_scenes import generate_scene

from workbench.cli.segment import open_street_network, segment_folder, segment_image
from workbench.core.contract import Runner
from workbench.models.fcn_vgg16 import segmentation_answer
from workbench.pictures.cityscapes import color_map
from workbench.pictures.images import list_images, load_image

SIZE = (1024, 2048)
SEEDS = tuple(range(1_000_000, 1_000_004))


def make_images(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write generated scenes as JPEG; each scene is written several times, for making one takes longer than reading."""
    folder.mkdir()
    scenes = [Image.fromarray(generate_scene(seed, *size).image) for seed in SEEDS]
    for index in range(count):
        scenes[index % len(scenes)].save(folder / f"{index:05}.jpg", quality=92)


def tutorial_loop(runner: Runner, folder: Path, out: Path) -> None:
    """One image after another with the functions of the notebooks: scikit-image resizes, the overlay is a PNG."""
    out.mkdir()
    for path in list_images(folder):
        image = load_image(path)
        labels = Image.fromarray(segmentation_answer(runner, image)).resize(
            image.shape[1::-1], Image.Resampling.NEAREST
        )
        overlay = Image.blend(Image.fromarray(image), Image.fromarray(color_map(np.asarray(labels))), 0.5)
        overlay.save(out / f"{path.stem}.png")


def plain_loop(runner: Runner, folder: Path, out: Path) -> None:
    """One image after another with exactly the functions that `segment_folder` calls: what overlapping alone gains."""
    out.mkdir()
    for path in list_images(folder):
        image = load_image(path)
        colors = color_map(segment_image(runner, image))
        Image.blend(Image.fromarray(image), Image.fromarray(colors), 0.5).save(out / f"{path.stem}.jpg", quality=92)


def rates(network: Path, folder: Path, scratch: Path, rounds: int, workers: int) -> dict[str, list[float]]:
    """Images per second of each way, in turns, so that a busy moment of the machine falls on all of them."""
    count = len(list_images(folder))
    with open_street_network(model=network) as (runner, _):
        ways: dict[str, Callable[[Path], object]] = {
            "loop with the notebooks' functions": lambda out: tutorial_loop(runner, folder, out),
            "loop with segment_folder's functions": lambda out: plain_loop(runner, folder, out),
            "segment_folder": lambda out: segment_folder(folder, out, model=network, progress=False, workers=workers),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                way(scratch / f"{len(name)}-{turn}")
                found[name].append(count / (time.perf_counter() - start))
    return found


def save_small_network(path: Path) -> Path:
    """One convolution at 512 x 1024 pixels: pictures, label maps and logits are as large as the real network's."""
    kernel = np.random.default_rng(0).standard_normal((20, 3, 1, 1)).astype(np.float32)
    shapes = {"input": ("batch", 3, 512, 1024), "output": ("batch", 20, 512, 1024)}
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    node = helper.make_node("Conv", ["input", "kernel"], ["output"])
    graph = helper.make_graph([node], "small", ends[:1], ends[1:], [numpy_helper.from_array(kernel, "kernel")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def resident_mib() -> float:
    """Memory of this process that is in RAM, MiB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def watch(out: Path, stop: threading.Event) -> Iterator[tuple[int, float]]:
    """Pairs of images done and MiB in RAM, 10 times a second."""
    while not stop.wait(0.1):
        yield sum(1 for _ in out.glob("*.png")) if out.is_dir() else 0, resident_mib()


def memory(scratch: Path, count: int, workers: int) -> dict[str, object]:
    """Peak memory in each tenth of a run over many images; the first tenth warms up."""
    folder, out, stop = scratch / "many", scratch / "many-out", threading.Event()
    make_images(folder, len(SEEDS), (512, 1024))
    for index in range(len(SEEDS), count):
        os.link(folder / f"{index % len(SEEDS):05}.jpg", folder / f"{index:05}.jpg")
    samples: list[tuple[int, float]] = []
    watcher = threading.Thread(target=lambda: samples.extend(watch(out, stop)))
    watcher.start()
    network = save_small_network(scratch / "small.onnx")
    report = segment_folder(folder, out, save="labelids", model=network, workers=workers)
    stop.set()
    watcher.join()
    peaks = [max(mib for done, mib in samples if done * 10 // (count + 1) == tenth) for tenth in range(10)]
    return {
        "images": len(report.written),
        "peak_mib_in_each_tenth": [round(peak, 1) for peak in peaks],
        "growth_mib_from_second_to_last_tenth": round(peaks[-1] - peaks[1], 1),
    }


def main() -> None:
    """Measure rates and memory, print both and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24, help="for the rates (default: 24)")
    parser.add_argument("--rounds", type=int, default=3, help="of the rates (default: 3)")
    parser.add_argument("--many", type=int, default=2000, help="images for the memory (default: 2000)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", type=Path, help="an ONNX file of the network, instead of converting it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        make_images(scratch / "images", options.images, SIZE)
        network = options.model or convert(scratch / "fcn_vgg16.onnx")
        found = rates(network, scratch / "images", scratch, options.rounds, options.workers)
        flat = memory(scratch, options.many, options.workers)
    medians = {way: statistics.median(samples) for way, samples in found.items()}
    ours = medians["segment_folder"]
    print("\n".join(f"{way:40}{rate:8.2f} images/s" for way, rate in medians.items()))
    print(f"memory: {flat}")
    result = {
        "network": "fcn_vgg16, width 0.25, 3x512x1024, ONNX Runtime on the CPU",
        "image_pixels": list(SIZE),
        "images": options.images,
        "workers": options.workers,
        "rounds": options.rounds,
        "median_images_per_second": {way: round(rate, 2) for way, rate in medians.items()},
        "times_faster_than": {way: round(ours / rate, 2) for way, rate in medians.items() if way != "segment_folder"},
        "memory": flat,
    }
    path = write_record("segment_folder", result, packages=("numpy", "onnxruntime", "pillow", "scikit-image"))
    print(f"wrote {os.path.relpath(path)}")


def convert(path: Path) -> Path:
    """Convert the demonstration network, in a child process: TensorFlow would be in this one's memory."""
    subprocess.run([sys.executable, "-m", "workbench.cli.main", "convert", "fcn_vgg16", str(path)], check=True)
    return path


if __name__ == "__main__":
    main()
