"""How much faster `color_map` is than the original tutorial's loop, on one core and with identical pixels.

Run it from the repository: `python benchmarks/color_map.py`.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy is imported
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np  # noqa: E402
from _record import write_record  # noqa: E402
from cityscapesscripts.helpers.labels import id2label, trainId2label  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from workbench.pictures.cityscapes import argmax_classes, color_map  # noqa: E402

HEIGHT, WIDTH, CHANNELS = 512, 1024, 20


def tutorial_color_map(output: NDArray) -> NDArray[np.uint8]:
    """The tutorial's loop: (20, H, W) scores to (H, W, 3) uint8; it searches each pixel twice, as there."""
    _, rows, columns = output.shape
    picture = np.zeros((rows, columns, 3), np.uint8)
    for x in range(columns):
        for y in range(rows):
            if np.argmax(output[:, y, x]) != 19:
                picture[y, x] = id2label[trainId2label[int(np.argmax(output[:, y, x]))].id].color
    return picture


def tutorial_color_map_of_labels(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same loop for an (H, W) label map, so without the argmax."""
    rows, columns = labels.shape
    picture = np.zeros((rows, columns, 3), np.uint8)
    for x in range(columns):
        for y in range(rows):
            if labels[y, x] != 19:
                picture[y, x] = id2label[trainId2label[int(labels[y, x])].id].color
    return picture


def make_logits() -> NDArray[np.float32]:
    """Logits of a picture with regions, (20, 512, 1024) float32, always the same."""
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((CHANNELS, HEIGHT // 32, WIDTH // 32)).astype(np.float32)
    noise = rng.standard_normal((CHANNELS, HEIGHT, WIDTH)).astype(np.float32)
    return coarse.repeat(32, axis=1).repeat(32, axis=2) * 5 + noise


def fastest_ms(function: Callable[[], object], runs: int) -> float:
    """Shortest wall time of `runs` calls, in milliseconds: the one that other programs disturbed least."""
    samples = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        samples.append((time.perf_counter() - start) * 1e3)
    return min(samples)


def check_pixels(logits: NDArray, labels: NDArray) -> None:
    """Stop unless every way of painting gives the same pixels."""
    expected = tutorial_color_map(logits)
    for picture in (tutorial_color_map_of_labels(labels), color_map(logits), color_map(labels)):
        if not np.array_equal(picture, expected):
            raise SystemExit("the pixels differ from the tutorial's loop; the ratios would mean nothing")


def measure(logits: NDArray, labels: NDArray) -> dict[str, float]:
    """Time every way of painting, in milliseconds."""
    return {
        "logits, tutorial's loop": fastest_ms(lambda: tutorial_color_map(logits), 5),
        "logits, color_map": fastest_ms(lambda: color_map(logits), 100),
        "labels, tutorial's loop": fastest_ms(lambda: tutorial_color_map_of_labels(labels), 5),
        "labels, color_map": fastest_ms(lambda: color_map(labels), 100),
        "argmax only, numpy": fastest_ms(lambda: np.argmax(logits, axis=0), 20),
        "argmax only, argmax_classes": fastest_ms(lambda: argmax_classes(logits), 100),
    }


def main() -> None:
    """Compare the pixels, measure, print a table and write the record."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    logits = make_logits()
    labels = argmax_classes(logits)
    check_pixels(logits, labels)
    times_ms = measure(logits, labels)
    times = list(times_ms.values())
    ratios = {
        "from_logits": times[0] / times[1],
        "from_labels": times[2] / times[3],
        "from_labels_against_loop_from_logits": times[0] / times[3],
        "argmax": times[4] / times[5],
    }
    print(f"{CHANNELS} x {HEIGHT} x {WIDTH}, one core, identical pixels; fastest of several runs\n")
    print("\n".join(f"{name:40}{value:10.2f} ms" for name, value in times_ms.items()) + "\n")
    print("\n".join(f"{name.replace('_', ' '):40}{value:10.1f} times faster" for name, value in ratios.items()))
    result = {
        "shape": [CHANNELS, HEIGHT, WIDTH],
        "threads": 1,
        "identical_pixels": True,
        "fastest_ms": {name: round(value, 3) for name, value in times_ms.items()},
        "times_faster": {name: round(value, 1) for name, value in ratios.items()},
    }
    path = write_record("color_map", result, packages=("numpy", "cityscapesscripts"))
    print(f"\nwrote {os.path.relpath(path)}")


if __name__ == "__main__":
    main()
