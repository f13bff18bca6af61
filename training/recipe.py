"""The training recipe that all weights in data/ share: augmentation, loss, schedule, folding, evaluation.

Needs Keras 3 with JAX and a CUDA GPU: minutes on one H200.
"""

import json
import os
import time
from functools import partial
from pathlib import Path

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")

INPUT_SCALE = 1 / 58.0
IGNORE = 255


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Weigh rare classes up: 1 / log(1.02 + frequency), mean 1 (Paszke et al.: ENet, 2016)."""
    counts = np.bincount(labels.ravel(), minlength=256)[:classes].astype(np.float64)
    weights = 1 / np.log(1.02 + counts / counts.sum())
    return (weights / weights[counts > 0].mean()).astype(np.float32)


def augment(key, image, label, size, zooms):
    """Zoom, shift, mirror and change the light of one picture on the GPU.

    Args:
        key: JAX random key.
        image: (H, W, 3) uint8.
        label: (H, W) uint8.
        size: (height, width) of the result.
        zooms: smallest and largest number of source pixels per pixel of the result.
    Returns:
        (3, h, w) float32 with the mean subtracted and scaled, (h, w) int32 with 255 outside the picture.
    """
    import jax
    import jax.numpy as jnp

    from workbench.pictures.images import CITYSCAPES_MEAN

    zoom_key, row_key, column_key, flip_key, gain_key, tint_key, offset_key = jax.random.split(key, 7)
    height, width = label.shape
    zoom = jnp.exp(jax.random.uniform(zoom_key, minval=jnp.log(zooms[0]), maxval=jnp.log(zooms[1])))
    spans = jnp.array(size) * zoom
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


def train(images, labels, *, size, iterations, batch, seed, zooms, dropout):
    """Train from scratch: AdamW, one-cycle learning rate, bfloat16 arithmetic.

    Args:
        images: (N, H, W, 3) uint8 RGB.
        labels: (N, H, W) uint8 train ids, 255 is not learnt from.
        size: height and width in pixels of what the network sees, each divisible by 32.
        iterations: steps, each on `batch` pictures.
        batch: pictures in a step.
        seed: of the weights and the augmentation.
        zooms: see `augment`.
        dropout: rate before the score layer.
    Returns:
        The Keras model, with batch normalisation.
    """
    import jax
    import jax.numpy as jnp
    import keras

    from workbench.models import fcn_vgg16

    keras.utils.set_random_seed(seed)
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    model = fcn_vgg16.build(
        keras,
        input_size=size,
        width=fcn_vgg16.DEMONSTRATION_WIDTH,
        fc_width=fcn_vgg16.DEMONSTRATION_FC_WIDTH,
        batch_norm=True,
        dropout=dropout,
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
        x, y = jax.vmap(lambda k, i: augment(k, data[i], truth[i], size, zooms))(
            jax.random.split(augment_key, batch), index
        )
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
    """Run the saved, folded network in float32 and return the confusion matrix.

    A height or width that does not divide by 32 is padded with the mean colour, and the answer cut back.
    The argmax is over all 20 outputs, so a class that the data set does not have counts as wrong.
    """
    import keras

    from workbench.models import fcn_vgg16
    from workbench.pictures.cityscapes import confusion_matrix
    from workbench.pictures.images import sub_mean_chw

    keras.mixed_precision.set_dtype_policy("float32")
    height, width = images.shape[1:3]
    padded = fcn_vgg16.padded_size(height, width)
    model = fcn_vgg16.demonstration_model(keras, padded, weights_path)
    margins = ((0, 0), (0, 0), (0, padded[0] - height), (0, padded[1] - width))
    total = 0
    for start in range(0, len(images), 8):
        x = np.stack([sub_mean_chw(image.transpose(2, 0, 1)) for image in images[start : start + 8]])
        logits = np.asarray(model.predict_on_batch(np.pad(x, margins)))[:, :, :height, :width]
        total = total + confusion_matrix(labels[start : start + 8], logits.argmax(axis=1))
    return total


def save_and_report(model, out: Path, report: Path | None, unseen, seconds: float, arguments) -> None:
    """Fold, save, evaluate on the unseen pictures, and print (and write) the figures."""
    from fold import fold_batch_norm

    from workbench.core.files import overwriting
    from workbench.models.weights import save_weights
    from workbench.pictures.cityscapes import CITYSCAPES, class_iou, mean_iou

    with overwriting():
        save_weights(fold_batch_norm(model, INPUT_SCALE), out)
    confusion = evaluate(out, *unseen)
    iou = class_iou(confusion)
    present = confusion.sum(axis=1) > 0
    figures = {
        "mean_iou": mean_iou(confusion),
        "mean_iou_of_classes_in_the_truth": float(np.mean(iou[present])),
        "pixel_accuracy": float(np.trace(confusion) / confusion.sum()),
        "class_iou": {n: None if np.isnan(v) else float(v) for n, v in zip(CITYSCAPES.names, iou, strict=True)},
        "class_share": dict(zip(CITYSCAPES.names, (confusion.sum(1) / confusion.sum()).tolist(), strict=True)),
        "training_seconds": seconds,
        "arguments": {name: str(value) for name, value in vars(arguments).items()},
    }
    print(json.dumps(figures, indent=1))
    if report:
        report.write_text(json.dumps(figures, indent=1) + "\n")
