"""U-Net and its relatives from segmentation_models, and a small U-Net that was trained to find the road."""

import contextlib
import functools
import io
import os
import sys
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import BackendUnavailableError, InputError
from workbench.core.files import data_file
from workbench.core.packages import load_tensorflow, require_backend
from workbench.models.weights import calibrate as calibrate
from workbench.models.weights import load_weights
from workbench.pictures.cityscapes import Palette

VARIABLES = {"TF_USE_LEGACY_KERAS": "1", "SM_FRAMEWORK": "tf.keras"}
"""What must stand in the environment before TensorFlow is imported, so that segmentation_models finds its Keras 2."""

ARCHITECTURES = ("Unet", "FPN", "Linknet", "PSPNet")
NARROW_BACKBONE = "mobilenetv2_035"
"""MobileNetV2 with 35 % of its channels, which segmentation_models does not have by itself."""

DEMONSTRATION_SIZE = (256, 512)
DEMONSTRATION_DECODER = (64, 32, 24, 16, 8)
DEMONSTRATION_WEIGHTS = "unet_road_street_scenes.npz"
STRIDE = 32

PALETTE = Palette(("road", "everything else"), np.array([(128, 64, 128), (225, 225, 225)], np.uint8))
"""The two classes of the demonstration network; the road has Cityscapes' colour."""

_NARROW_ALPHA = 0.35
_PSPNET_REGIONS = 6


def set_variables() -> None:
    """Set `VARIABLES` where TensorFlow is not imported yet; afterwards it would be too late, and nothing is done.

    `tf.keras` is then tf_keras for the whole process. Keras 3 itself, `import keras`, is not touched.
    """
    if "tensorflow" not in sys.modules:
        for name, value in VARIABLES.items():
            os.environ.setdefault(name, value)


def load_segmentation_models() -> ModuleType:
    """Import segmentation_models, which then knows `NARROW_BACKBONE`, on tf_keras; calls `set_variables` first.

    BackendUnavailableError: a package is missing, or TensorFlow was imported without the two variables.
    """
    set_variables()
    tensorflow = load_tensorflow()
    # the first look at tf.keras decides for the whole process which Keras it is
    classic = all(name in os.environ for name in VARIABLES) and tensorflow.keras.Model.__module__.startswith("tf_keras")
    if not classic:
        wanted = " and ".join(f"{name}={value}" for name, value in VARIABLES.items())
        raise BackendUnavailableError(
            f"TensorFlow was imported before {wanted} stood in the environment, and segmentation_models needs both; "
            "restart Python (the kernel) and set them in os.environ in the first cell"
        )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its framework
        module = require_backend("segmentation_models", "classic")
    # MobileNetV2 with fewer channels goes into the table of backbones, which has no public door
    table = require_backend("segmentation_models.backbones.backbones_factory", "classic").BackbonesFactory
    full, preprocess_input = table._models["mobilenetv2"]
    table._models_update[NARROW_BACKBONE] = [functools.partial(full, alpha=_NARROW_ALPHA), preprocess_input]
    table._default_feature_layers[NARROW_BACKBONE] = table._default_feature_layers["mobilenetv2"]
    return module


def build(
    architecture: str = "Unet",
    *,
    backbone: str = NARROW_BACKBONE,
    classes: int = 1,
    activation: str | None = None,
    input_size: tuple[int, int] | None = None,
    **options: Any,
) -> Any:
    """Build a network of segmentation_models with random weights, none ever downloaded, as a tf_keras model.

    It takes (batch, H, W, 3) float32, as `preprocess` makes it, to (batch, H, W, classes) float32: logits, unless there
    is an `activation` such as `"sigmoid"`. An `input_size` of None leaves height and width open, best for all but
    PSPNet: they are given when it is converted, `keras_to_onnx(model, path, spatial=(height, width))`. Options are
    those of the architecture, such as `decoder_filters`. InputError: unknown names, a size it cannot take, or weights
    to download.
    Source: Iakubovskii: segmentation_models 1.0.1; Ronneberger, Fischer, Brox: U-Net, MICCAI 2015.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"got architecture={architecture!r}, expected one of {', '.join(ARCHITECTURES)}")
    if options.get("encoder_weights") is not None:
        raise InputError(
            f"got encoder_weights={options['encoder_weights']!r}, expected None: they would come from a "
            "third party's server; build the model and load your own file with model.load_weights"
        )
    module = load_segmentation_models()
    names = module.get_available_backbone_names()
    if backbone not in names:
        raise InputError(f"got backbone={backbone!r}, expected one of {', '.join(sorted(names))}")
    _check_size(architecture, input_size, options)
    return getattr(module, architecture)(
        backbone,
        input_shape=(*(input_size or (None, None)), 3),
        classes=classes,
        activation=activation or "linear",
        **{**options, "encoder_weights": None},
    )


def demonstration_model(weights: str | os.PathLike[str] | None = None) -> Any:
    """Build the small U-Net that finds the road of a generated street scene, see data/README.md.

    (batch, H, W, 3) float32 of `preprocess`, H and W divisible by 32, becomes (batch, H, W, 1) float32 logits, above 0
    for road. The weights are an `.npz` file of the same network, ModelError where they are not; that of `data/` when
    None.
    """
    model = build(decoder_filters=DEMONSTRATION_DECODER)
    load_weights(model, data_file(DEMONSTRATION_WEIGHTS) if weights is None else weights)
    return model


def preprocess(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn (H, W, 3) or (N, H, W, 3) uint8 RGB into the demonstration network's input: (N, H, W, 3) float32, -1..1.

    InputError for another shape or dtype, or sides that do not divide by 32.
    Source: the `tf` mode of keras_applications.imagenet_utils, which MobileNetV2 uses.

    >>> preprocess(np.full((32, 32, 3), 255, np.uint8)).max()
    np.float32(1.0)
    """
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3:
        raise InputError(f"expected (H, W, 3) or (N, H, W, 3) uint8, got {array.dtype} {array.shape}; use load_image")
    batch = array if array.ndim == 4 else array[None]
    _check_size("Unet", (batch.shape[1], batch.shape[2]), {})
    return (batch / np.float32(127.5) - 1).astype(np.float32)


def road_labels(logits: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Turn (H, W, 1) or (N, H, W, 1) logits into a label map for `PALETTE`: road where they are above 0.

    That is (H, W) or (N, H, W) uint8: 0 is road, as in Cityscapes' train ids, and 1 is everything else. InputError for
    another shape.

    >>> road_labels(np.array([[[-1.0], [2.0]]])).tolist()
    [[1, 0]]
    """
    if logits.ndim not in (3, 4) or logits.shape[-1] != 1:
        raise InputError(f"expected (H, W, 1) or (N, H, W, 1) logits, got {logits.shape}; give one network's output")
    return (logits[..., 0] <= 0).astype(np.uint8)


def road_truth(train_ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn the ground truth of a street scene, train ids, into what `road_labels` should be."""
    return np.minimum(train_ids, 1)


def _check_size(architecture: str, size: tuple[int, int] | None, options: dict[str, Any]) -> None:
    """Refuse a size that the architecture cannot take; say which one is next."""
    step = STRIDE
    if architecture == "PSPNet":
        step = _PSPNET_REGIONS * options.get("downsample_factor", 8)
        if size is None:
            raise InputError(
                f"got a PSPNet without input_size, expected (height, width), each divisible by {step}: its pooling "
                f"regions depend on it; pass for example input_size=({4 * step}, {8 * step})"
            )
    if size is not None and (any(side % step for side in size) or min(size) < step):
        padded = tuple(max(step, -(-side // step) * step) for side in size)
        raise InputError(
            f"got the size {tuple(size)} for {architecture}, expected height and width divisible by {step}; "
            f"pad or resize to {padded}"
        )
