"""Networks of all kinds with seeded random weights, for judging the verdict: they are healthy, so it must say so."""

from collections.abc import Callable
from typing import Any

import numpy as np

from workbench.core.packages import load_keras, load_tf_keras
from workbench.models import fcn_vgg16, unet
from workbench.models.resnet50 import photograph_crops
from workbench.models.weights import calibrate
from workbench.pictures.images import rescale_image

SIDE = 96
PICTURES = 4
STEPS, FEATURES, WORDS = 12, 16, 100

APPLICATIONS = (
    "ConvNeXtTiny", "DenseNet121", "DenseNet169", "EfficientNetB0", "EfficientNetB2", "EfficientNetV2B0",
    "EfficientNetV2S", "InceptionResNetV2", "InceptionV3", "MobileNet", "MobileNetV2", "MobileNetV3Large",
    "MobileNetV3Small", "NASNetMobile", "ResNet50", "ResNet50V2", "ResNet101", "ResNet101V2", "VGG16", "VGG19",
    "Xception",
)  # fmt: skip
SEGMENTERS = tuple(
    (architecture, backbone)
    for architecture in ("Unet", "FPN", "Linknet", "PSPNet")
    for backbone in ("mobilenetv2", "resnet18", "efficientnetb0")
)


def pictures(count: int = PICTURES) -> np.ndarray:
    """Squares cut from photographs: (count, SIDE, SIDE, 3) float32, -1..1."""
    return np.stack([rescale_image(crop, (SIDE, SIDE, 3)) / 127.5 for crop in photograph_crops(count)]).astype("f4")


def sequences() -> np.ndarray:
    """(PICTURES, STEPS, FEATURES) float32 of seeded normal numbers."""
    return np.random.default_rng(1).standard_normal((PICTURES, STEPS, FEATURES)).astype(np.float32)


def words() -> np.ndarray:
    """(PICTURES, STEPS) int32, numbers of words."""
    return np.random.default_rng(2).integers(0, WORDS, (PICTURES, STEPS)).astype(np.int32)


def networks() -> dict[str, tuple[Callable[[], Any], Callable[[], np.ndarray]]]:
    """Each network by name: a function that builds it, and one that makes its inputs."""
    found: dict[str, tuple[Callable[[], Any], Callable[[], np.ndarray]]] = {}
    for name in APPLICATIONS:
        found[name] = (lambda name=name: _application(name), pictures)
    for architecture, backbone in SEGMENTERS:
        options = {"backbone": backbone, "input_size": (SIDE, SIDE)}
        found[f"{architecture} {backbone}"] = (lambda a=architecture, o=options: unet.build(a, **o), pictures)
    found["U-Net, road weights"] = (unet.demonstration_model, pictures)
    segmenter = (lambda: fcn_vgg16.demonstration_model(load_keras(), (SIDE, SIDE)), _channels_first)
    found["FCN-8s, street weights"] = segmenter
    for name, build in _RECURRENT.items():
        found[name] = (lambda build=build: _recurrent(build), sequences)
    found["transformer"] = (_transformer, sequences)
    found["words, transformer"] = (_word_transformer, words)
    found["patches, transformer"] = (_patches, pictures)
    found["several dense layers"] = (_dense, sequences)
    for seed in range(8):
        found[f"random graph {seed}"] = (lambda seed=seed: _random_graph(seed), pictures)
    return found


def _channels_first() -> np.ndarray:
    return np.ascontiguousarray(pictures().transpose(0, 3, 1, 2)) * np.float32(127.5)


def _application(name: str) -> Any:
    keras = load_keras()
    options = {"include_preprocessing": False} if name.startswith(("MobileNetV3", "EfficientNetV2", "ConvNeXt")) else {}
    build = getattr(keras.applications, name)
    return build(weights=None, input_shape=(SIDE, SIDE, 3), classes=10, classifier_activation=None, **options)


_RECURRENT: dict[str, Callable[[Any, Any], Any]] = {
    "LSTM": lambda layers, x: layers.LSTM(24)(x),
    "two LSTMs": lambda layers, x: layers.LSTM(24)(layers.LSTM(24, return_sequences=True)(x)),
    "GRU": lambda layers, x: layers.GRU(24, return_sequences=True)(x),
    "both directions": lambda layers, x: layers.Bidirectional(layers.LSTM(16))(x),
    "simple recurrence": lambda layers, x: layers.SimpleRNN(24)(x),
    "convolutions in time": lambda layers, x: layers.LSTM(8)(layers.Conv1D(24, 3, activation="relu")(x)),
}


def _recurrent(build: Callable[[Any, Any], Any]) -> Any:
    keras = load_keras()
    x = keras.Input((STEPS, FEATURES))
    return keras.Model(x, keras.layers.Dense(5)(build(keras.layers, x)))


def _block(layers: Any, x: Any, width: int) -> Any:
    x = layers.Add()([x, layers.MultiHeadAttention(4, width // 4)(x, x)])
    x = layers.LayerNormalization()(x)
    y = layers.Dense(width)(layers.Dense(2 * width, activation="gelu")(x))
    return layers.LayerNormalization()(layers.Add()([x, y]))


def _transformer() -> Any:
    keras = load_keras()
    x = keras.Input((STEPS, FEATURES))
    y = _block(keras.layers, _block(keras.layers, keras.layers.Dense(32)(x), 32), 32)
    return keras.Model(x, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling1D()(y)))


def _word_transformer() -> Any:
    keras = load_keras()
    x = keras.Input((STEPS,), dtype="int32")
    y = _block(keras.layers, keras.layers.Embedding(WORDS, 32)(x), 32)
    return keras.Model(x, keras.layers.Dense(5)(y))


def _patches() -> Any:
    keras = load_keras()
    x = keras.Input((SIDE, SIDE, 3))
    y = keras.layers.Reshape((-1, 48))(keras.layers.Conv2D(48, 16, strides=16)(x))
    for _ in range(4):
        y = _block(keras.layers, y, 48)
    return keras.Model(x, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling1D()(y)))


def _dense() -> Any:
    keras = load_keras()
    x = keras.Input((STEPS, FEATURES))
    y = keras.layers.Flatten()(x)
    for width in (256, 128, 64):
        y = keras.layers.Dense(width, activation="tanh")(y)
    return keras.Model(x, keras.layers.Dense(7)(y))


def _random_graph(seed: int) -> Any:
    """Convolutions, batch norms, activations, pools and sums, drawn by a seed."""
    keras, draw = load_keras(), np.random.default_rng(seed)
    layers = keras.layers
    inputs = x = keras.Input((SIDE, SIDE, 3))
    for _ in range(int(draw.integers(4, 12))):
        width, kind = int(draw.choice([8, 16, 32])), int(draw.integers(0, 4))
        y = (
            layers.Conv2D(width, 3, padding="same", use_bias=False),
            layers.Conv2D(width, 1, padding="same"),
            layers.SeparableConv2D(width, 5, padding="same"),
            layers.Conv2D(width, 3, padding="same", dilation_rate=2),
        )[kind](x)
        y = layers.BatchNormalization()(y) if draw.random() < 0.6 else y
        y = layers.Activation(str(draw.choice(["relu", "swish", "gelu", "elu", "sigmoid", "tanh"])))(y)
        x = layers.Add()([x, y]) if x.shape[-1] == width and draw.random() < 0.6 else y
        if x.shape[1] > 12 and draw.random() < 0.4:
            x = (layers.MaxPooling2D() if draw.random() < 0.5 else layers.AveragePooling2D(2))(x)
    if draw.random() < 0.5:
        x = layers.UpSampling2D(2, interpolation=str(draw.choice(["nearest", "bilinear"])))(x)
        return keras.Model(inputs, layers.Conv2D(4, 3, padding="same")(x))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def build(name: str, *, calibrated: bool = True) -> Any:
    """Build a network; its weights depend on its name alone, the batch statistics also on the machine."""
    make, _ = networks()[name]
    for keras in (load_keras(), load_tf_keras()):
        keras.utils.set_random_seed(sum(map(ord, name)))
    model = make()
    if calibrated and "weights" not in name:
        if any(type(layer).__name__ == "BatchNormalization" for layer in model.layers):
            calibrate(model, pictures(16))
        for variable in model.weights:  # ConvNeXt starts with factors of 1e-6, which leave nearly nothing of its blocks
            if 0 < np.abs(np.asarray(variable)).max() < 1e-4:
                variable.assign(np.full(variable.shape, 0.3, np.float32))
    return model
