"""Train the narrow FCN-8s on generated street scenes and save its demonstration weights.

    KERAS_BACKEND=jax python training/train_street_scenes.py --out data/fcn_vgg16_street_scenes.npz

The scenes with seeds below `UNSEEN_SEED` are trained on; those from `UNSEEN_SEED` upwards are only looked at in the
end.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from recipe import save_and_report, train

UNSEEN_SEED = 1_000_000


def make_scenes(seeds: range, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Generate scenes on all cores: (N, H, W, 3) uint8 pictures and (N, H, W) uint8 train ids."""
    images = np.empty((len(seeds), height, width, 3), np.uint8)
    labels = np.empty((len(seeds), height, width), np.uint8)
    with ProcessPoolExecutor() as pool:
        scenes = pool.map(partial(_scene, height=height, width=width), seeds, chunksize=8)
        for index, (image, train_ids) in enumerate(scenes):
            images[index], labels[index] = image, train_ids
    return images, labels


def _scene(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    from street_scenes import generate_scene

    scene = generate_scene(seed, height, width)
    return scene.image, scene.train_ids


def main() -> None:
    """Generate, train, save, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--report", type=Path, help="a .json file for the figures")
    parser.add_argument("--scenes", type=int, default=5000)
    parser.add_argument("--validation", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    size = (arguments.height, arguments.width)
    images, labels = make_scenes(range(arguments.scenes), *size)
    unseen = make_scenes(range(UNSEEN_SEED, UNSEEN_SEED + arguments.validation), *size)
    start = time.time()
    model = train(
        images,
        labels,
        size=size,
        iterations=arguments.iterations,
        batch=arguments.batch,
        seed=arguments.seed,
        zooms=(0.6, 1.25),
        dropout=0.1,
    )
    save_and_report(model, arguments.out, arguments.report, unseen, time.time() - start, arguments)


if __name__ == "__main__":
    main()
