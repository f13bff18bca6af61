"""One street frame of 1024 x 2048 pixels on one core: the tutorial's functions against ours, stage by stage.

Run it from the repository: `python benchmarks/street_frame.py`. The frame is generated and the logits are made; the
network is not part of it. Where both ways must give the same pixels, they are compared. The resize with Pillow gives
other pixels than the tutorial's, so its error is part of the record.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

# Before NumPy: color_map asks for one thread in every library.
from color_map import CHANNELS, HEIGHT, WIDTH, fastest_ms, make_logits, tutorial_color_map  # isort: skip
import numpy as np
import skimage.transform
from _record import write_record
from PIL import Image
from street_scenes import generate_scene

from workbench.pictures.cityscapes import argmax_classes, color_map
from workbench.pictures.images import CITYSCAPES_MEAN, load_image, rescale_image, sub_mean_chw

FRAME = (1024, 2048)
SEED = 1_000_000


def tutorial_load(path: Path) -> np.ndarray:
    """Decode as it is: (H, W, 3) uint8."""
    return np.asarray(Image.open(path))


def tutorial_rescale(image: np.ndarray) -> np.ndarray:
    """The tutorial's call: (H, W, 3) uint8 to (512, 1024, 3) float64."""
    return skimage.transform.resize(image, (HEIGHT, WIDTH), order=1, preserve_range=True, mode="reflect")


def tutorial_sub_mean_chw(image: np.ndarray) -> np.ndarray:
    """The tutorial's: (3, H, W) to (H, W, 3), subtract, and back; then what the network takes."""
    data = image.transpose((1, 2, 0))
    data = data - np.array(CITYSCAPES_MEAN)
    return data.transpose((2, 0, 1)).astype(np.float32)


def pillow_resize(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to (512, 1024, 3) uint8, linear with smoothing."""
    return np.asarray(Image.fromarray(image).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))


def resize_error(image: np.ndarray) -> dict[str, float]:
    """How far Pillow's pixels are from the tutorial's, in grey levels of 255."""
    difference = np.abs(pillow_resize(image) - tutorial_rescale(image))
    return {
        "mean": round(float(difference.mean()), 4),
        "p99": round(float(np.percentile(difference, 99)), 4),
        "largest": round(float(difference.max()), 4),
        "mean_of_rounding_alone": 0.25,
    }


def stages(path: Path, image: np.ndarray, logits: np.ndarray) -> dict[str, dict[str, Callable[[], object]]]:
    """Each stage with the ways to do it."""
    resized = tutorial_rescale(image)
    small, chw, labels = pillow_resize(image), resized.transpose(2, 0, 1), argmax_classes(logits)
    same = {
        "decode": (tutorial_load(path), load_image(path)),
        "rescale": (resized, rescale_image(image, (HEIGHT, WIDTH))),
        "colour": (tutorial_color_map(logits), color_map(logits)),
        "colour of labels": (tutorial_color_map(logits), color_map(labels)),
    }
    wrong = [name for name, (theirs, ours) in same.items() if not np.array_equal(theirs, ours)]
    mean = np.abs(tutorial_sub_mean_chw(chw) - sub_mean_chw(chw)).max()
    if wrong or mean > 2e-5:  # one step of float32 at 255 is 1.5e-5
        raise SystemExit(f"the answers differ ({', '.join(wrong) or f'mean by {mean}'}); the ratios would mean nothing")
    return {
        "decode": {"tutorial": lambda: tutorial_load(path), "ours": lambda: load_image(path)},
        "resize": {
            "tutorial": lambda: tutorial_rescale(image),
            "ours, rescale_image": lambda: rescale_image(image, (HEIGHT, WIDTH)),
            "ours, Pillow": lambda: pillow_resize(image),
        },
        "mean": {
            "tutorial": lambda: tutorial_sub_mean_chw(chw),
            "ours": lambda: sub_mean_chw(small.transpose(2, 0, 1)),
            "ours, fused": lambda: None,
        },
        "colour": {
            "tutorial": lambda: tutorial_color_map(logits),
            "ours, logits": lambda: color_map(logits),
            "ours, fused": lambda: color_map(labels),
        },
    }


def totals(times: dict[str, dict[str, float]]) -> dict[str, float]:
    """Whole frames: the tutorial's way, ours with the same pixels, and ours with Pillow and a fused graph."""
    pick = {
        "tutorial": ("tutorial", "tutorial", "tutorial", "tutorial"),
        "ours, same pixels": ("ours", "ours, rescale_image", "ours", "ours, logits"),
        "ours, Pillow": ("ours", "ours, Pillow", "ours", "ours, logits"),
        "ours, Pillow and fused graph": ("ours", "ours, Pillow", "ours, fused", "ours, fused"),
    }
    return {name: sum(times[stage][way] for stage, way in zip(times, ways, strict=True)) for name, ways in pick.items()}


def main() -> None:
    """Compare the answers, measure, print a table and write the record."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    image, logits = generate_scene(SEED, *FRAME).image, make_logits()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.png"
        Image.fromarray(image).save(path)
        ways = stages(path, image, logits)
        times = {
            stage: {name: fastest_ms(way, 3 if name == "tutorial" else 10) for name, way in functions.items()}
            for stage, functions in ways.items()
        }
    sums, error = totals(times), resize_error(image)
    for stage, row in {**times, "whole frame": sums}.items():
        print(f"{stage:12}" + "   ".join(f"{name} {value:.2f} ms" for name, value in row.items()))
    print(f"Pillow's resize is off by {error['mean']} grey levels on average, {error['largest']} at most")
    result = {
        "frame": [*FRAME, 3],
        "network_size": [HEIGHT, WIDTH],
        "channels": CHANNELS,
        "threads": 1,
        "fastest_ms": {stage: {name: round(ms, 3) for name, ms in row.items()} for stage, row in times.items()},
        "whole_frame_ms": {name: round(ms, 2) for name, ms in sums.items()},
        "times_faster": {name: round(sums["tutorial"] / ms, 1) for name, ms in sums.items() if name != "tutorial"},
        "pillow_resize_error_grey_levels": error,
    }
    record = write_record("street_frame", result, packages=("numpy", "pillow", "scikit-image", "cityscapesscripts"))
    print(f"\nwrote {os.path.relpath(record)}")


if __name__ == "__main__":
    main()
