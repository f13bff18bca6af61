"""Open whatever a reader calls a model: a Keras file, a SavedModel, a frozen graph, or a name."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from workbench.environment import load_keras, load_tf_keras
from workbench.errors import InputError, ModelError
from workbench.export.graph_files import open_graph, read_frozen_graph
from workbench.export.keras_files import KERAS_SUFFIXES, read_keras_file, read_tf_keras_file
from workbench.export.keras_model import FrozenGraph, freeze
from workbench.export.tf1_edit import fix_size
from workbench.export.torch_file import open_torch_file
from workbench.models import fcn_vgg16, resnet50, unet
from workbench.runners.torch_runner import TORCH_SUFFIXES

__all__ = ["KERAS_SUFFIXES", "MODEL_NAMES", "freeze_model", "open_model", "open_tf_keras_model", "read_frozen_graph"]

MODEL_NAMES = ("resnet50", "fcn_vgg16", "unet")


def open_model(source: Any, *, inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None) -> Any:
    """Open a Keras model or a TensorFlow graph.

    Args:
        source: a Keras model (returned as it is), the path of a `.keras`, `.h5`, `.pb` file, a SavedModel folder or a
            TensorFlow 1 checkpoint (its prefix, one of its files or its folder), a PyTorch `.pt2`, or one of
            `MODEL_NAMES`.
        inputs: names of the nodes that are fed, for a TensorFlow graph; found when None.
        outputs: names of the nodes that are answers, for a TensorFlow graph; found when None.
    Returns:
        A Keras model, a FrozenGraph for a TensorFlow graph, or a program of PyTorch. Warns when ResNet-50 has no
        ImageNet weights, and when the output of a checkpoint was found.
    Raises:
        ModelError: it cannot be opened; the message says what it is and what to do.
    """
    if not isinstance(source, (str, os.PathLike)):
        return source
    path = Path(source)
    if str(source) in MODEL_NAMES and not path.exists():
        return _named_model(str(source), load_keras)
    graph = open_graph(path, inputs, outputs)
    if graph is not None:
        return graph
    if inputs or outputs:
        raise InputError(
            f"{source} keeps the inputs and outputs it was made with; name them for a TensorFlow graph only"
        )
    if not path.exists():
        raise ModelError(f"{source} does not exist; give a model file or one of the names {', '.join(MODEL_NAMES)}")
    if path.stat().st_size == 0:
        raise ModelError(f"{path} is empty; save or copy the model again")
    if path.suffix.lower() in TORCH_SUFFIXES:
        return open_torch_file(path)
    if path.suffix.lower() in KERAS_SUFFIXES:
        return read_keras_file(path)
    raise ModelError(
        f"{path} is not a model this program opens; expected {', '.join(KERAS_SUFFIXES)}, .pb, .onnx, .pt2, "
        "a SavedModel folder or a TensorFlow 1 checkpoint"
    )


def freeze_model(model: Any, *, spatial: tuple[int, int] | None = None) -> FrozenGraph:
    """Freeze what `open_model` returned; a graph that is frozen already only gets the size that it leaves open."""
    if not isinstance(model, FrozenGraph):
        return freeze(model, spatial=spatial)
    if spatial:
        fix_size(model.graph_def, model.inputs, spatial)
    return model


def open_tf_keras_model(source: Any) -> Any:
    """Open what keras2onnx takes: a model object as it is, a file of tf_keras, or a named network built with it.

    Raises:
        ModelError: the file is not one of tf_keras, or cannot be read.
    """
    if not isinstance(source, (str, os.PathLike)):
        return source
    path = Path(source)
    if str(source) in MODEL_NAMES and not path.exists():
        return _named_model(str(source), load_tf_keras)
    if path.is_file() and path.suffix.lower() in KERAS_SUFFIXES:
        return read_tf_keras_file(path)
    raise ModelError(
        f"got {source} for keras2onnx, expected a file of tf_keras ({', '.join(KERAS_SUFFIXES)}) or a name of "
        f"{', '.join(MODEL_NAMES)}; use exporter='tf2onnx' for anything else"
    )


def _named_model(name: str, load: Callable[[], Any]) -> Any:
    if name == "unet":  # a network of segmentation_models, which must come before TensorFlow
        return unet.demonstration_model()
    keras = load()
    if name == "resnet50":
        network = resnet50.build(keras)
        if network.weights != "imagenet":
            warnings.warn(network.note, stacklevel=3)
        return network.model
    return fcn_vgg16.demonstration_model(keras)
