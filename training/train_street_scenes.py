"""Train the narrow FCN-8s on generated street scenes and save its demonstration weights.

    KERAS_BACKEND=jax python training/train_street_scenes.py --out data/fcn_vgg16_street_scenes.npz

Needs Keras 3 with JAX and a CUDA GPU: some minutes on one H200. The scenes with seeds below
`UNSEEN_SEED` are trained on; those from `UNSEEN_SEED` upwards are only looked at in the end.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")

INPUT_SCALE = 1 / 58.0
UNSEEN_SEED = 1_000_000
IGNORE = 255


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
    from workbench.street_scenes import generate_scene

    scene = generate_scene(seed, height, width)
    return scene.image, scene.train_ids


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Weigh rare classes up: 1 / log(1.02 + frequency), mean 1 (Paszke et al.: ENet, 2016)."""
    counts = np.bincount(labels.ravel(), minlength=256)[:classes].astype(np.float64)
    weights = 1 / np.log(1.02 + counts / counts.sum())
    return (weights / weights[counts > 0].mean()).astype(np.float32)


def augment(key, image, label, size):
    """Zoom, shift, mirror and change the light of one scene on the GPU.

    Args:
        key: JAX random key.
        image: (H, W, 3) uint8.
        label: (H, W) uint8.
        size: (height, width) of the result.
    Returns:
        (3, h, w) float32 with the mean subtracted and scaled, (h, w) int32 with 255 outside the scene.
    """
    import jax
    import jax.numpy as jnp

    from workbench.images import CITYSCAPES_MEAN

    zoom_key, row_key, column_key, flip_key, gain_key, tint_key, offset_key = jax.random.split(key, 7)
    height, width = label.shape
    zoom = jnp.exp(jax.random.uniform(zoom_key, minval=jnp.log(0.6), maxval=jnp.log(1.25)))
    spans = jnp.array([height, width]) * zoom
    starts = jnp.array([jax.random.uniform(row_key), jax.random.uniform(column_key)]) * (
        jnp.array([height, width]) - spans
    )
    rows = starts[0] + (jnp.arange(size[0]) + 0.5) * spans[0] / size[0] - 0.5
    columns = starts[1] + (jnp.arange(size[1]) + 0.5) * spans[1] / size[1] - 0.5
    columns = jnp.where(jax.random.bernoulli(flip_key), columns[::-1], columns)
    grid = jnp.meshgrid(rows, columns, indexing="ij")
    sample = partial(jax.scipy.ndimage.map_coordinates, mode="constant")
    planes = [
        sample(image[..., c].astype(jnp.float32), grid, order=1, cval=float(CITYSCAPES_MEAN[c])) for c in range(3)
    ]
    labels = sample(label.astype(jnp.float32), grid, order=0, cval=float(IGNORE)).astype(jnp.int32)
    gain = jax.random.uniform(gain_key, minval=0.75, maxval=1.3)
    gain = gain * jax.random.uniform(tint_key, (3, 1, 1), minval=0.85, maxval=1.15)
    offset = jax.random.uniform(offset_key, minval=-15.0, maxval=15.0)
    picture = jnp.clip(jnp.stack(planes) * gain + offset, 0, 255)
    return (picture - jnp.array(CITYSCAPES_MEAN)[:, None, None]) * INPUT_SCALE, labels


def train(images: np.ndarray, labels: np.ndarray, iterations: int, batch: int, seed: int):
    """Train from scratch: AdamW, one-cycle learning rate, bfloat16 arithmetic. Returns the Keras model."""
    import jax
    import jax.numpy as jnp
    import keras

    from workbench.models import fcn_vgg16

    keras.utils.set_random_seed(seed)
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    size = images.shape[1:3]
    model = fcn_vgg16.build(
        keras,
        input_size=size,
        width=fcn_vgg16.DEMONSTRATION_WIDTH,
        fc_width=fcn_vgg16.DEMONSTRATION_FC_WIDTH,
        batch_norm=True,
        dropout=0.1,
    )
    optimizer = keras.optimizers.AdamW(one_cycle(keras, iterations, 2e-3), weight_decay=1e-4)
    optimizer.build(model.trainable_variables)
    weights = jnp.asarray(class_weights(labels, fcn_vgg16.CLASSES))
    data, truth = jax.device_put(images), jax.device_put(labels)

    def loss_of(trainable, state, x, y):
        logits, state = model.stateless_call(trainable, state, x, training=True)
        logp = jax.nn.log_softmax(logits.astype(jnp.float32), axis=1)
        known = y < fcn_vgg16.CLASSES
        target = jnp.where(known, y, 0)
        picked = jnp.take_along_axis(logp, target[:, None], axis=1)[:, 0]
        importance = weights[target] * known
        return -(picked * importance).sum() / importance.sum(), state

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(trainable, state, slots, key, data, truth):
        pick_key, augment_key = jax.random.split(key)
        index = jax.random.randint(pick_key, (batch,), 0, data.shape[0])
        x, y = jax.vmap(lambda k, i: augment(k, data[i], truth[i], size))(jax.random.split(augment_key, batch), index)
        (loss, state), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable, state, x, y)
        trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
        return trainable, state, slots, loss

    trainable = [variable.value for variable in model.trainable_variables]
    state = [variable.value for variable in model.non_trainable_variables]
    slots = [variable.value for variable in optimizer.variables]
    start = time.time()
    for iteration in range(iterations):
        key = jax.random.fold_in(jax.random.key(seed), iteration)
        trainable, state, slots, loss = step(trainable, state, slots, key, data, truth)
        if iteration % 250 == 0 or iteration == iterations - 1:
            print(f"iteration {iteration:5d}  loss {float(loss):.4f}  {time.time() - start:6.1f} s", flush=True)
    for variable, value in zip(model.trainable_variables, trainable, strict=True):
        variable.assign(value)
    for variable, value in zip(model.non_trainable_variables, state, strict=True):
        variable.assign(value)
    return model


def one_cycle(keras, iterations: int, peak: float):
    """Rise to the peak over the first tenth, then fall along a cosine to a hundredth of it."""
    warmup = iterations // 10
    return keras.optimizers.schedules.CosineDecay(
        peak / 20, iterations - warmup, alpha=0.01, warmup_target=peak, warmup_steps=warmup
    )


def evaluate(weights_path: Path, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Run the saved, folded float32 network on scenes and return the confusion matrix."""
    import keras

    from workbench.cityscapes import confusion_matrix
    from workbench.images import sub_mean_chw
    from workbench.models import fcn_vgg16

    keras.mixed_precision.set_dtype_policy("float32")
    model = fcn_vgg16.demonstration_model(keras, images.shape[1:3], weights_path)
    total = 0
    for start in range(0, len(images), 8):
        x = np.stack([sub_mean_chw(image.transpose(2, 0, 1)) for image in images[start : start + 8]])
        logits = np.asarray(model.predict_on_batch(x))
        total = total + confusion_matrix(labels[start : start + 8], logits.argmax(axis=1))
    return total


def main() -> None:
    """Generate, train, save, evaluate."""
    from fold import fold_batch_norm

    from workbench.cityscapes import CITYSCAPES, class_iou, mean_iou
    from workbench.models.weights import save_weights

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--report", type=Path, help="a .json file for the figures")
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--validation", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.time()
    images, labels = make_scenes(range(arguments.scenes), arguments.height, arguments.width)
    unseen = make_scenes(range(UNSEEN_SEED, UNSEEN_SEED + arguments.validation), arguments.height, arguments.width)
    print(f"{len(images)} scenes in {time.time() - start:.1f} s", flush=True)
    start = time.time()
    model = train(images, labels, arguments.iterations, arguments.batch, arguments.seed)
    seconds = time.time() - start
    save_weights(fold_batch_norm(model, INPUT_SCALE), arguments.out)
    confusion = evaluate(arguments.out, *unseen)
    iou = class_iou(confusion)
    report = {
        "mean_iou": mean_iou(confusion),
        "pixel_accuracy": float(np.trace(confusion) / confusion.sum()),
        "class_iou": {n: None if np.isnan(v) else float(v) for n, v in zip(CITYSCAPES.names, iou, strict=True)},
        "class_share": dict(zip(CITYSCAPES.names, (confusion.sum(1) / confusion.sum()).tolist(), strict=True)),
        "training_seconds": seconds,
        "arguments": {name: str(value) for name, value in vars(arguments).items()},
    }
    print(json.dumps(report, indent=1))
    if arguments.report:
        arguments.report.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
