"""InceptionV3 of tf-slim, the classifier of the TensorFlow 1 tutorial: checkpoints to try, or built again for use."""

import importlib
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from workbench.core.errors import InputError, ModelError
from workbench.core.files import make_folder
from workbench.core.packages import load_tensorflow, load_tf_keras, require_backend
from workbench.models.resnet50 import central_square, random_squares
from workbench.models.tf1_checkpoint import require_checkpoint
from workbench.models.tf1_graph import without_deprecations

INPUT_SIZE = (299, 299)
INPUT, OUTPUT = "input", "InceptionV3/Logits/SpatialSqueeze"
NAME = "inception_v3.ckpt"
LAYOUTS = ("NHWC", "NCHW")

_SMALLEST = 107  # pixels; below, the auxiliary head pools 5 x 5 values of a smaller map
_CENTRE = 0.875
_LOGIT_SPREAD = 2.0
_HEAD = "InceptionV3/Logits/Conv2d_1c_1x1/"


def preprocess(image: np.ndarray, size: tuple[int, int] = INPUT_SIZE) -> np.ndarray:
    """Turn an (H, W, 3) uint8 RGB photograph into InceptionV3's input: (height, width, 3) float32, RGB, -1..1.

    It is the central 87.5 % of its largest square, scaled to `size` in pixels. InputError for another shape.
    Source: the evaluation branch of inception_preprocessing.py of TensorFlow's slim models, which crops a rectangle; we
        crop a square, so that nothing is squeezed.
    """
    return (central_square(image, size, _CENTRE) / 127.5 - 1).astype(np.float32)


def load_slim() -> ModuleType:
    """Import tf_slim and its InceptionV3 on today's TensorFlow.

    TensorFlow's old batch normalisation looks for `tf_keras.legacy_tf_layers`, which has moved to `tf_keras.src`.
    """
    load_tf_keras()
    for name in ("legacy_tf_layers", "legacy_tf_layers.normalization"):
        sys.modules.setdefault(f"tf_keras.{name}", importlib.import_module(f"tf_keras.src.{name}"))
    slim = require_backend("tf_slim", "classic")
    require_backend("tf_slim.nets.inception_v3", "classic")
    return slim


def build_graph(
    *,
    classes: int = 1001,
    training: bool = False,
    size: tuple[int, int] = INPUT_SIZE,
    depth_multiplier: float = 1.0,
    layout: str = "NHWC",
    batch_norm_decay: float = 0.9997,
    keep: float = 0.8,
) -> Any:
    """Build tf-slim's InceptionV3 in a new `tf.Graph`; variables have the names of the published checkpoint.

    The placeholder `input` is float32 of `size`, (height, width) in pixels; `layout` `"NCHW"` is turned inside, because
    tf-slim joins the branches along the last axis. The logits are `InceptionV3/Logits/SpatialSqueeze`; the published
    checkpoint has 1001 classes, class 0 is the background. `training` means the statistics of the batch, which the
    moving ones follow with `batch_norm_decay`, and dropout, which keeps a share of `keep`. `depth_multiplier` scales
    the channels. InputError: another layout, or a size that is too small.
    Source: Szegedy et al.: Rethinking the Inception Architecture for Computer Vision, CVPR 2016; tf_slim.nets.
    """
    if layout not in LAYOUTS:
        raise InputError(f"got layout={layout!r}, expected one of {', '.join(LAYOUTS)}")
    if min(size) < _SMALLEST:
        raise InputError(f"got size={size}, expected {_SMALLEST} pixels or more on each side; give a larger size")
    slim = load_slim()
    network, tf = slim.nets.inception_v3, load_tensorflow().compat.v1
    shape = (None, 3, *size) if layout == "NCHW" else (None, *size, 3)
    scope = network.inception_v3_arg_scope(batch_norm_decay=batch_norm_decay)
    with tf.Graph().as_default() as graph, slim.arg_scope(scope), without_deprecations():
        pictures = tf.placeholder(tf.float32, shape, name=INPUT)
        pictures = tf.transpose(pictures, (0, 2, 3, 1)) if layout == "NCHW" else pictures
        network.inception_v3(
            pictures, classes, is_training=training, depth_multiplier=depth_multiplier, dropout_keep_prob=keep
        )
    return graph


def make_checkpoint(
    folder: str | os.PathLike[str],
    *,
    classes: int = 1001,
    training: bool = False,
    size: tuple[int, int] = INPUT_SIZE,
    depth_multiplier: float = 1.0,
    layout: str = "NHWC",
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write a checkpoint of InceptionV3 with calibrated random weights, as TensorFlow 1 does; return its prefix.

    The weights know nothing of ImageNet. Their batch statistics and logits are set on real pictures, so that answers
    differ. The same `seed` gives the same weights, for training and for use; the other options are those of
    `build_graph`.
    """
    form: dict[str, Any] = {"classes": classes, "size": size, "depth_multiplier": depth_multiplier}
    with tqdm(total=2, desc="calibrate", unit="step", leave=False, disable=not progress) as bar:
        graph = build_graph(training=True, batch_norm_decay=0.0, keep=1.0, **form)
        values = _calibrate(graph, _random_weights(graph, seed), photograph_crops(size))
        bar.update()
        bar.set_description("write the checkpoint")
        return _save(build_graph(training=training, layout=layout, **form), values, make_folder(folder))


def rebuild(
    checkpoint: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    size: tuple[int, int] = INPUT_SIZE,
    depth_multiplier: float = 1.0,
    layout: str = "NHWC",
) -> Path:
    """Build InceptionV3 for use with the weights of a checkpoint that cannot be converted itself; return its prefix.

    That is one made in training, or without a `.meta` file, such as the published one. The number of classes is read
    from the weights; the options are those of `build_graph`. ModelError where files are missing or of another network,
    InputError where the new checkpoint would overwrite the old one.
    """
    prefix = require_checkpoint(checkpoint, graph=False)
    if Path(folder).resolve() == prefix.resolve().parent:
        raise InputError(f"got the folder of the checkpoint itself, {folder}; give another folder")
    try:
        reader = load_tensorflow().train.load_checkpoint(str(prefix))
        shapes = reader.get_variable_to_shape_map()
    except Exception as error:
        raise ModelError(f"the weights of {prefix} cannot be read ({error}); copy the checkpoint again") from error
    if f"{_HEAD}weights" not in shapes:
        raise ModelError(f"{prefix} does not hold tf-slim's InceptionV3 (no {_HEAD}weights); give one of that network")
    classes = shapes[f"{_HEAD}weights"][-1]
    graph = build_graph(classes=classes, depth_multiplier=depth_multiplier, size=size, layout=layout)
    wanted = {name: tuple(variable.shape) for name, variable in _variables(graph).items()}
    odd = [name for name, shape in wanted.items() if tuple(shapes.get(name, ())) != shape]
    if odd:
        raise ModelError(
            f"{len(odd)} of InceptionV3's {len(wanted)} variables are missing from {prefix} or have another shape "
            f"({odd[0]} is {tuple(shapes.get(odd[0], ()))}, expected {wanted[odd[0]]}); give one of that network"
        )
    return _save(graph, {name: reader.get_tensor(name) for name in wanted}, make_folder(folder))


def photograph_crops(size: tuple[int, int] = INPUT_SIZE, count: int = 24, seed: int = 0) -> np.ndarray:
    """Cut random squares from scikit-image's photographs, as InceptionV3's input: (count, height, width, 3) float32."""
    return np.stack([preprocess(square, size) for square in random_squares(count, seed)])


def _random_weights(graph: Any, seed: int) -> dict[str, np.ndarray]:
    """He's initial weights for the kernels (a sum of n inputs after a ReLU keeps its size), 0 and 1 for the rest."""
    generator, values = np.random.default_rng(seed), {}
    for name, variable in _variables(graph).items():
        shape = tuple(variable.shape)
        if name.endswith("/weights"):
            spread = np.sqrt(2 / np.prod(shape[:-1]))
            values[name] = generator.standard_normal(shape, np.float32) * np.float32(spread)
        else:
            values[name] = np.full(shape, float(name.endswith("moving_variance")), np.float32)
    return values


def _calibrate(graph: Any, values: dict[str, np.ndarray], crops: np.ndarray) -> dict[str, np.ndarray]:
    """Set the moving statistics to those of these pictures, and the last layer for logits that differ between them."""
    tf = load_tensorflow().compat.v1
    with graph.as_default(), tf.Session(graph=graph) as session:
        _assign(session, graph, values)
        updates = graph.get_collection(tf.GraphKeys.UPDATE_OPS)  # with a decay of 0, one pass is enough
        logits, _ = session.run([f"{OUTPUT}:0", updates], {f"{INPUT}:0": crops})
        values = dict(session.run(_variables(graph)))
    scale = np.float32(_LOGIT_SPREAD / logits.std(axis=0).mean())
    values |= {f"{_HEAD}weights": values[f"{_HEAD}weights"] * scale, f"{_HEAD}biases": -logits.mean(axis=0) * scale}
    return values


def _variables(graph: Any) -> dict[str, Any]:
    return {variable.op.name: variable for variable in graph.get_collection("variables")}


def _assign(session: Any, graph: Any, values: dict[str, np.ndarray]) -> None:
    """Run every variable's initialiser with our value in the place of its own."""
    initialisers = {name: variable.initializer for name, variable in _variables(graph).items()}
    session.run(list(initialisers.values()), {each.inputs[1]: values[name] for name, each in initialisers.items()})


def _save(graph: Any, values: dict[str, np.ndarray], folder: Path) -> Path:
    """Write the three files of a checkpoint; each is complete before it gets its place, the graph last."""
    tf = load_tensorflow().compat.v1
    with (
        tempfile.TemporaryDirectory(prefix=".checkpoint-", dir=folder) as temporary,
        graph.as_default(),
        tf.Session(graph=graph) as session,
        without_deprecations(),
    ):
        _assign(session, graph, values)
        tf.train.Saver().save(session, f"{temporary}/{NAME}", write_state=False)
        for file in sorted(Path(temporary).iterdir()):  # .data, .index, .meta
            os.replace(file, folder / file.name)
    return folder / NAME
