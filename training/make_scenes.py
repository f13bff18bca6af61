"""Write `data/street_scenes/`: generated pictures that no network here was trained on, with their labels.

    python training/make_scenes.py [--out FOLDER]

The pictures are WebP (quality 90), the labels PNG in Cityscapes' train ids; `x.webp` belongs to `x.png`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from street_scenes import generate_scene  # noqa: E402

FIRST_SEED, SCENES = 1_000_000, 64
"""The seeds from 1,000,000 were not trained on."""

SIZE = (512, 1024)
QUALITY = 90


def write_scene(seed: int, folder: Path) -> None:
    """Write one scene's picture and label map."""
    scene = generate_scene(seed, *SIZE)
    Image.fromarray(scene.image).save(folder / "images" / f"scene_{seed}.webp", quality=QUALITY, method=6)
    labels = Image.fromarray(scene.train_ids.astype(np.uint8))
    labels.save(folder / "labels" / f"scene_{seed}.png", optimize=True)


def main() -> None:
    """Write all scenes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "street_scenes")
    folder = parser.parse_args().out
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for seed in range(FIRST_SEED, FIRST_SEED + SCENES):
        write_scene(seed, folder)


if __name__ == "__main__":
    main()
