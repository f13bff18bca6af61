"""Open whatever a reader calls a model: a Keras file, a SavedModel, a frozen graph, or a name."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.environment import load_keras, load_tensorflow
from workbench.errors import ModelError
from workbench.export.keras_model import FrozenGraph, freeze, freeze_function
from workbench.models import fcn_vgg16, resnet50

MODEL_NAMES = ("resnet50", "fcn_vgg16")
KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")


def open_model(source: Any) -> Any:
    """Open a Keras model or a frozen graph.

    Args:
        source: a Keras model (returned as it is), the path of a `.keras`, `.h5`, `.pb` file or SavedModel
            folder, or one of `MODEL_NAMES`.
    Returns:
        A Keras model, or a FrozenGraph for a `.pb` and a SavedModel. Warns when ResNet-50 has no ImageNet weights.
    Raises:
        ModelError: it cannot be opened; the message says what it is and what to do.
    """
    if not isinstance(source, (str, os.PathLike)):
        return source
    path = Path(source)
    if str(source) in MODEL_NAMES and not path.exists():
        return _named_model(str(source))
    if not path.exists():
        raise ModelError(f"{source} does not exist; give a model file or one of the names {', '.join(MODEL_NAMES)}")
    if path.is_dir():
        return _read_saved_model(path)
    if path.stat().st_size == 0:
        raise ModelError(f"{path} is empty; save or copy the model again")
    if path.suffix.lower() == ".pb":
        return read_frozen_graph(path)
    if path.suffix.lower() in KERAS_SUFFIXES:
        return _read_keras(path)
    raise ModelError(
        f"{path} is not a model this program opens; expected {', '.join(KERAS_SUFFIXES)}, .pb, .onnx "
        "or a SavedModel folder"
    )


def freeze_model(model: Any, *, spatial: tuple[int, int] | None = None) -> FrozenGraph:
    """Freeze what `open_model` returned; a graph that is frozen already stays as it is."""
    return model if isinstance(model, FrozenGraph) else freeze(model, spatial=spatial)


def read_frozen_graph(
    path: str | os.PathLike[str], inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None
) -> FrozenGraph:
    """Read a binary GraphDef.

    Args:
        path: the `.pb` file.
        inputs: names of its inputs; the placeholders when None.
        outputs: names of its outputs; the nodes that nothing reads when None.
    Raises:
        ModelError: not a GraphDef, one with variables, or without the named nodes.
    """
    path = Path(path)
    graph_def = load_tensorflow().compat.v1.GraphDef()
    if not path.is_file() or path.stat().st_size == 0:
        raise ModelError(f"{path} is missing, a directory or empty; give a frozen .pb graph")
    try:
        graph_def.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError is not public
        raise ModelError(f"{path} is not a binary GraphDef, or was cut short; freeze the model again") from error
    _check_graph(path, graph_def)
    names = {node.name for node in graph_def.node}
    inputs = tuple(inputs or (node.name for node in graph_def.node if node.op == "Placeholder"))
    outputs = tuple(outputs or _unread(graph_def))
    missing = [name for name in (*inputs, *outputs) if name not in names]
    if missing or not inputs or not outputs:
        raise ModelError(
            f"{path} has no node {', '.join(missing) or 'to feed'}; its ends are {', '.join(_ends(graph_def))}"
        )
    return FrozenGraph(graph_def, inputs, outputs)


def _named_model(name: str) -> Any:
    keras = load_keras()
    if name == "resnet50":
        network = resnet50.build(keras)
        if network.weights != "imagenet":
            warnings.warn(network.note, stacklevel=3)
        return network.model
    return fcn_vgg16.demonstration_model(keras)


def _read_keras(path: Path) -> Any:
    keras = load_keras()
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:
        raise ModelError(_explain(path, error)) from error


def _explain(path: Path, error: Exception) -> str:
    """Turn what Keras raises into one sentence with a way out."""
    text = str(error)
    if "Lambda" in text or ("lambda" in text and "safe" in text):
        return (
            f"{path} holds a Lambda layer, which is code, so it is not loaded (safe_mode); replace the layer, "
            "or, if you trust the file, call keras.saving.load_model(..., safe_mode=False) and pass the model object"
        )
    for marker in ("Could not locate class '", "Unknown layer: '"):
        if marker in text:
            name = text.split(marker, 1)[1].split("'", 1)[0]
            return (
                f"{path} uses the layer {name}, which is defined nowhere here; import the code that defines it "
                "(decorated with @keras.saving.register_keras_serializable()) and pass the model object, not the file"
            )
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"{path} is not a Keras model that can be read, or was cut short ({first}); save or copy it again"


def _read_saved_model(path: Path) -> FrozenGraph:
    if not (path / "saved_model.pb").is_file():
        raise ModelError(
            f"got the directory {path}, which is not a SavedModel (no saved_model.pb in it); give a model file"
        )
    tf = load_tensorflow()
    try:
        module = tf.saved_model.load(str(path))
    except Exception as error:
        raise ModelError(f"{path} is a damaged SavedModel ({str(error).splitlines()[0]}); export it again") from error
    function = module.signatures.get("serving_default")
    if function is None:
        raise ModelError(f"the SavedModel {path} has no signature 'serving_default'; export it with model.export(...)")
    inputs = tuple(function.structured_input_signature[1])
    outputs = tuple(sorted(function.structured_outputs))
    single = ("input",) if len(inputs) == 1 else inputs
    return freeze_function(function, single, ("output",) if len(outputs) == 1 else outputs)


def _check_graph(path: Path, graph_def: Any) -> None:
    if not graph_def.node:
        raise ModelError(
            f"{path} holds an empty graph (a SavedModel's saved_model.pb belongs in its folder); freeze the model again"
        )
    variables = [node.name for node in graph_def.node if node.op in ("Variable", "VariableV2", "VarHandleOp")]
    if variables:
        raise ModelError(
            f"{path} still has variables ({variables[0]}, ...); freeze it: keras_to_pb writes a frozen graph"
        )


def _ends(graph_def: Any) -> list[str]:
    return [node.name for node in graph_def.node if node.op == "Placeholder"] + _unread(graph_def)


def _unread(graph_def: Any) -> list[str]:
    read = {name.split(":")[0].lstrip("^") for node in graph_def.node for name in node.input}
    return [
        node.name
        for node in graph_def.node
        if node.name not in read and node.op not in ("NoOp", "Const", "Placeholder")
    ]
