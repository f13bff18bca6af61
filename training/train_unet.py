"""Train the small U-Net to find the road on generated street scenes and save its demonstration weights.

    python training/train_unet.py --out data/unet_road_street_scenes.npz

Minutes on a CPU. The scenes with seeds below `UNSEEN_SEED` are trained on; those from `UNSEEN_SEED` upwards are only
looked at in the end.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image
from train_street_scenes import UNSEEN_SEED, make_scenes

from workbench.models import unet

ROAD = 0
SIZE = (128, 256)


def road_scenes(first: int, count: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Generate scenes: (N, H, W, 3) uint8 pictures and (N, H, W) uint8 masks, 1 on the road."""
    images, labels = make_scenes(range(first, first + count), *size)
    return images, (labels == ROAD).astype(np.uint8)


def augment(image, road, generator):
    """Cut a window out, bring it to `SIZE`, mirror it and change its light.

    Args:
        image: (256, 512, 3) uint8.
        road: (256, 512) uint8, 1 on the road.
        generator: NumPy's.
    Returns:
        (128, 256, 3) uint8 and (128, 256) uint8. The window is between a half and the whole of the picture, so that
        the network learns both sizes.
    """
    height, width = road.shape
    share = generator.uniform(0.5, 1.0)
    top, left = generator.uniform(0, 1 - share, 2) * (height, width)
    box = (left, top, left + share * width, top + share * height)
    size = SIZE[::-1]
    picture = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box), np.float32)
    mask = np.asarray(Image.fromarray(road).resize(size, Image.Resampling.NEAREST, box))
    if generator.random() < 0.5:
        picture, mask = picture[:, ::-1], mask[:, ::-1]
    gain = generator.uniform(0.75, 1.3) * generator.uniform(0.85, 1.15, 3)
    return np.clip(picture * gain + generator.uniform(-15, 15), 0, 255).astype(np.uint8), mask


def batches(images, roads, batch, generator):
    """Endless augmented batches, (N, 128, 256, 3) float32 in -1..1 and (N, 128, 256, 1) float32."""
    while True:
        order = generator.permutation(len(images))
        for start in range(0, len(order) - batch + 1, batch):
            chosen = order[start : start + batch]
            pairs = [augment(images[index], roads[index], generator) for index in chosen]
            x, y = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
            yield unet.preprocess(x), y[..., None].astype(np.float32)


def train(images, roads, *, steps, batch, seed, peak):
    """Train from scratch: Adam, one cycle of the learning rate, cross-entropy on the logits.

    Batch normalisation averages over 10 steps instead of MobileNetV2's 1000, which would never settle in a short run.
    """
    from workbench.core.packages import load_tf_keras

    unet.load_segmentation_models()  # before TensorFlow
    keras = load_tf_keras()
    keras.utils.set_random_seed(seed)
    model = unet.build(decoder_filters=unet.DEMONSTRATION_DECODER)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9
    warmup = steps // 10
    schedule = keras.optimizers.schedules.CosineDecay(
        peak / 20, steps - warmup, alpha=0.01, warmup_target=peak, warmup_steps=warmup
    )
    model.compile(keras.optimizers.Adam(schedule), keras.losses.BinaryCrossentropy(from_logits=True))
    lessons = batches(images, roads, batch, np.random.default_rng(seed))
    model.fit(lessons, steps_per_epoch=min(50, steps), epochs=max(1, steps // 50), verbose=2)
    return model


def score(model, images, roads) -> dict[str, float]:
    """IoU of the road and share of right pixels over all scenes together."""
    hits = union = right = 0
    for start in range(0, len(images), 8):
        truth = roads[start : start + 8].astype(bool)
        logits = np.asarray(model(unet.preprocess(images[start : start + 8]), training=False))
        found = unet.road_labels(logits) == ROAD
        hits, union = hits + (truth & found).sum(), union + (truth | found).sum()
        right += (truth == found).sum()
    return {"road_iou": float(hits / union), "pixel_accuracy": float(right / roads.size)}


def main() -> None:
    """Generate, train, save, read again, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--report", type=Path, help="a .json file for the figures")
    parser.add_argument("--scenes", type=int, default=800)
    parser.add_argument("--validation", type=int, default=200)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--peak", type=float, default=3e-3, help="largest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    images, roads = road_scenes(0, arguments.scenes, unet.DEMONSTRATION_SIZE)
    sizes = (unet.DEMONSTRATION_SIZE, SIZE)
    unseen = [road_scenes(UNSEEN_SEED, arguments.validation, size) for size in sizes]
    start = time.time()
    options = {"steps": arguments.steps, "batch": arguments.batch, "seed": arguments.seed, "peak": arguments.peak}
    model = train(images, roads, **options)
    seconds = time.time() - start
    from workbench.core.files import overwriting
    from workbench.models.weights import named_weights, save_weights

    with overwriting():
        save_weights({name: variable.numpy() for name, variable in named_weights(model).items()}, arguments.out)
    saved = unet.demonstration_model(arguments.out)
    figures: dict = {"parameters": saved.count_params(), "training_seconds": seconds}
    for size, (pictures, truth) in zip(sizes, unseen, strict=True):
        figures["x".join(map(str, size))] = score(saved, pictures, truth)
    print(json.dumps(figures, indent=1))
    if arguments.report:
        arguments.report.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
