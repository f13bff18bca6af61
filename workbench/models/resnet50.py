"""ResNet-50 with ImageNet weights where they can be had, else with calibrated random weights."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.core.errors import InputError
from workbench.core.packages import require_backend
from workbench.models.weights import calibrate
from workbench.pictures.images import IMAGENET_MEAN_BGR, photographs, rescale_image

INPUT_SIZE = (224, 224)

_DOWNLOAD_TIMEOUT_S = 10
_LOGIT_SPREAD = 2.0


@dataclass(frozen=True)
class ResNet50:
    """A ResNet-50 and where its weights came from."""

    model: Any  # input (batch, 224, 224, 3) float32, output (batch, 1000) float32 logits
    weights: str  # "imagenet" or "random"
    note: str  # one sentence for reports and figures


def preprocess(image: np.ndarray) -> np.ndarray:
    """Turn an (H, W, 3) uint8 RGB photograph into ResNet-50's input: (224, 224, 3) float32, BGR.

    The largest centred square is used, ImageNet's mean subtracted. InputError for another shape.
    Source: the `caffe` mode of keras.applications.imagenet_utils, whose means these are.
    """
    return (central_square(image, INPUT_SIZE)[..., ::-1] - IMAGENET_MEAN_BGR).astype(np.float32)


def photograph_crops(count: int = 24, seed: int = 0) -> np.ndarray:
    """Cut random squares from scikit-image's photographs, as ResNet-50 input: (count, 224, 224, 3) float32."""
    return np.stack([preprocess(square) for square in random_squares(count, seed)])


def central_square(image: np.ndarray, size: tuple[int, int], share: float = 1.0) -> np.ndarray:
    """Cut the centre of an (H, W, 3) uint8 image, a share of its largest square, and scale it to (height, width)."""
    if image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"expected an (H, W, 3) RGB image, got {image.shape}; open it with load_image")
    side = max(1, round(share * min(image.shape[:2])))
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return rescale_image(image[top : top + side, left : left + side], (*size, 3))


def random_squares(count: int, seed: int) -> Iterator[np.ndarray]:
    """Yield squares of random size and place from scikit-image's photographs, in turn; (side, side, 3) uint8."""
    generator = np.random.default_rng(seed)
    pictures = list(photographs().values())
    for index in range(count):
        picture = pictures[index % len(pictures)]
        side = int(min(picture.shape[:2]) * generator.uniform(0.4, 1.0))
        top, left = (generator.integers(length - side + 1) for length in picture.shape[:2])
        yield picture[top : top + side, left : left + side]


def build(keras: Any, *, weights: str = "imagenet", seed: int = 0, crops: np.ndarray | None = None) -> ResNet50:
    """Build ResNet-50 with logits as output.

    `"imagenet"` takes Keras's cached or downloaded weights, and where neither can be had falls back to `"random"`,
    which the `note` says. Random weights are calibrated on `crops`, (N, 224, 224, 3) float32 preprocessed pictures; on
    crops of scikit-image's photographs when None. InputError for other weights.
    Source: He et al.: Deep residual learning for image recognition, CVPR 2016; keras.applications.ResNet50.
    """
    if weights not in ("imagenet", "random"):
        raise InputError(f"got weights={weights!r}, expected 'imagenet' or 'random'")
    reason = ""
    if weights == "imagenet":
        model, reason = _with_imagenet_weights(keras)
        if model is not None:
            return ResNet50(model, "imagenet", "ImageNet weights of keras.applications")
        reason = f"ImageNet weights could not be had from Keras's cache or the network ({reason}); "
    model = _calibrated(keras, seed, photograph_crops() if crops is None else crops)
    note = f"{reason}calibrated random weights, seed {seed}: good for comparing runners, not for naming objects"
    return ResNet50(model, "random", note)


def _with_imagenet_weights(keras: Any) -> tuple[Any, str]:
    """Return the model with Keras's cached or downloaded weights, or None and why there are none."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_S)
    try:
        return keras.applications.ResNet50(weights="imagenet", classifier_activation=None), ""
    except Exception as error:  # Keras raises a bare Exception when its download fails
        return None, str(error).rsplit(" -- ", 1)[-1].splitlines()[0]
    finally:
        socket.setdefaulttimeout(timeout)


def _calibrated(keras: Any, seed: int, crops: np.ndarray) -> Any:
    """Random kernels whose batch statistics and logits are set on real pictures, so that answers differ."""
    keras.utils.set_random_seed(seed)
    model = keras.applications.ResNet50(weights=None, classifier_activation=None)
    calibrate(model, crops)
    head = model.layers[-1]
    logits = np.asarray(model(crops, training=False))
    kernel = np.asarray(head.weights[0])
    scale = _LOGIT_SPREAD / logits.std(axis=0).mean()
    head.weights[0].assign(kernel * scale)
    head.weights[1].assign(-logits.mean(axis=0) * scale)
    return model


def top_classes(logits: np.ndarray, count: int = 5) -> list[tuple[str, float]]:
    """Name the most probable ImageNet classes of (1000,) logits: (class name, probability in 0..1), the best first.

    Source: keras.applications.imagenet_utils.decode_predictions, which fetches the names once.
    """
    utilities = require_backend("keras", "keras").applications.imagenet_utils
    exponentials = np.exp(logits - logits.max())
    probabilities = exponentials / exponentials.sum()
    decoded = utilities.decode_predictions(probabilities[None], top=count)[0]
    return [(name.replace("_", " "), float(probability)) for _, name, probability in decoded]
