"""Train the narrow FCN-8s on a folder of photographs with labels, such as CamVid or Cityscapes, and save its weights.

    KERAS_BACKEND=jax python training/train_folder.py --data camvid --out data/fcn_vgg16_camvid.npz

The folder holds `train/` and `val/`, each with `images/NAME.jpg` (or .png) and `labels/NAME.png`: uint8 Cityscapes
train ids, 255 for pixels that are not learnt from; all pictures of one size. `val/` is only looked at in the end. For
Cityscapes, bring pictures and train ids to one size first (512 x 1024 fits the network's default) and give
`--height 512 --width 1024`.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from recipe import save_and_report, train

SUFFIXES = (".jpg", ".png")


def read_folder(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read pictures and their labels: (N, H, W, 3) uint8 and (N, H, W) uint8."""
    from PIL import Image

    from workbench.pictures.images import load_image

    paths = sorted(path for path in (folder / "images").iterdir() if path.suffix in SUFFIXES)
    images = np.stack([load_image(path) for path in paths])
    labels = np.stack([np.asarray(Image.open(folder / "labels" / f"{path.stem}.png")) for path in paths])
    return images, labels


def main() -> None:
    """Read, train, save, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with train/ and val/")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--report", type=Path, help="a .json file for the figures")
    parser.add_argument("--iterations", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--height", type=int, default=352, help="of the crops that are trained on")
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    images, labels = read_folder(arguments.data / "train")
    unseen = read_folder(arguments.data / "val")
    start = time.time()
    model = train(
        images,
        labels,
        size=(arguments.height, arguments.width),
        iterations=arguments.iterations,
        batch=arguments.batch,
        seed=arguments.seed,
        zooms=(0.5, 1.4),
        dropout=0.2,
    )
    save_and_report(model, arguments.out, arguments.report, unseen, time.time() - start, arguments)


if __name__ == "__main__":
    main()
