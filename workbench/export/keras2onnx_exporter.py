"""tf_keras models to ONNX through keras2onnx, the archived exporter of the original tutorial, for comparison.

keras2onnx reads the TensorFlow 1 graph behind the layers, so it needs a process of its own. What goes there is the
model's configuration and its weights: no code.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.errors import ExportError
from workbench.core.files import atomic_path
from workbench.core.packages import load_tensorflow, require_backend
from workbench.core.process import NO_GPU, Child, move_bar, temporary_folder
from workbench.models.freezing import fixed_shape, is_tf_keras, named_tensors
from workbench.models.tf1_checkpoint import PathLike

CHILD = "workbench.export.keras2onnx_child"
_OTHER = "use exporter='tf2onnx'"


def keras2onnx_to_onnx(model: Any, path: PathLike, *, spatial: tuple[int, int] | None, opset: int, bar: Any) -> Path:
    """Convert a model in a child process, which moves the bar five steps, and check the result; see `keras_to_onnx`.

    ExportError where keras2onnx cannot take this model; it says why and names the other exporter.
    """
    _check_model(model)
    # its own import needs packages of 2020, which only the child has; asking for its metadata is enough here
    require_backend("onnxconverter_common", "classic")
    inputs, outputs = named_tensors(model)
    with atomic_path(path) as temporary, temporary_folder() as folder:
        config, weights = folder / "model.json", folder / "weights.npz"
        config.write_text(json.dumps(_fixed_config(model, inputs, spatial)))
        np.savez(weights, allow_pickle=False, **{str(i): array for i, array in enumerate(model.get_weights())})
        order = {"config": str(config), "weights": str(weights), "onnx": str(temporary), "opset": opset}
        with Child(CHILD, environment={"TF_USE_LEGACY_KERAS": "1", "TF_KERAS": "1", **NO_GPU}) as child:
            child.run({**order, "inputs": [*inputs], "outputs": [*outputs]}, move_bar(bar))
    return Path(path)


def _check_model(model: Any) -> None:
    name = getattr(model, "name", type(model).__name__)
    if not is_tf_keras(model):
        kind = "a Keras 3 model" if hasattr(model, "layers") else f"a {type(model).__name__}"
        raise ExportError(f"keras2onnx takes tf_keras models only, got {kind} ({name!r}); {_OTHER}")
    named_tensors(model)
    keras = require_backend("tf_keras", "classic")
    if not (isinstance(model, keras.Sequential) or model._is_graph_network):
        raise ExportError(f"keras2onnx needs a functional or Sequential model, {name!r} is a subclass; {_OTHER}")
    for layer in _all_layers(model):
        kind = type(layer).__name__
        if kind == "Lambda" or not type(layer).__module__.startswith("tf_keras."):
            raise ExportError(
                f"keras2onnx runs in a process of its own, which does not get code, and the layer {layer.name!r} "
                f"({kind}) is code; {_OTHER}, which converts it here"
            )
    load_tensorflow()
    strings = [tensor.name for tensor in model.inputs if tensor.dtype == "string"]
    if strings:
        raise ExportError(f"the input {strings[0]!r} takes strings, expected numbers; read the text before the model")


def _all_layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        yield layer
        yield from _all_layers(layer) if hasattr(layer, "layers") else ()
        yield from filter(None, [getattr(layer, "layer", None) or getattr(layer, "forward_layer", None)])


def _fixed_config(model: Any, inputs: dict[str, Any], spatial: tuple[int, int] | None) -> dict[str, Any]:
    """Return the model's configuration with heights and widths filled in, which leaves the model alone."""
    config = json.loads(model.to_json())
    shapes = {
        tensor.name.split(":")[0]: fixed_shape(name, tuple(tensor.shape), spatial) for name, tensor in inputs.items()
    }
    for layer in config["config"]["layers"]:
        if layer["class_name"] == "InputLayer" and layer["config"]["name"] in shapes:
            layer["config"]["batch_input_shape"] = shapes[layer["config"]["name"]]
    return config
