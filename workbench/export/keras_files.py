"""Open `.keras` and HDF5 files, with Keras 3 or with tf_keras, and without running code that they bring along."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.environment import load_keras, load_tf_keras
from workbench.errors import ModelError
from workbench.optional import require_backend

KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")


def read_keras_file(path: Path) -> Any:
    """Open a file with Keras 3, or with tf_keras where tf_keras wrote it and Keras 3 cannot read it.

    Raises:
        ModelError: neither can; the message says why and what to do.
        BackendUnavailableError: the file needs tf_keras, which is not installed.
    """
    keras = load_keras()
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:
        if saved_by_tf_keras(path) and "Lambda" not in str(error):
            return read_tf_keras_file(path)
        raise ModelError(_explain(path, error, "keras.saving")) from error


def read_tf_keras_file(path: Path) -> Any:
    """Open a file with tf_keras.

    Raises:
        ModelError: Keras 3 wrote it, it holds code, or it is damaged.
        BackendUnavailableError: tf_keras is not installed.
    """
    if not saved_by_tf_keras(path):
        raise ModelError(f"{path} was not saved by tf_keras, which keras2onnx needs; use exporter='tf2onnx'")
    classes = list(_layer_classes(json.loads(_config(path))))
    if "Lambda" in classes:  # tf_keras would run the code that an HDF5 file holds
        raise ModelError(_explain(path, ValueError("Lambda"), "tf_keras.utils"))
    keras = load_tf_keras()
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        unknown = next((name for name in classes if not hasattr(keras.layers, name)), None)
        reason = ValueError(f"Unknown layer: '{unknown}'") if unknown else error
        raise ModelError(_explain(path, reason, "tf_keras.utils")) from error


def saved_by_tf_keras(path: Path) -> bool:
    """Tell by the version that a file names whether tf_keras (Keras 2) wrote it; False for a damaged file."""
    try:
        if path.suffix.lower() == ".keras":
            with zipfile.ZipFile(path) as archive:
                version = json.loads(archive.read("metadata.json"))["keras_version"]
        else:
            version = _attribute(path, "keras_version")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return False
    return version.startswith("2.")


def _config(path: Path) -> str:
    """Return a file's description of its layers, as JSON."""
    try:
        if path.suffix.lower() == ".keras":
            with zipfile.ZipFile(path) as archive:
                return archive.read("config.json").decode()
        return _attribute(path, "model_config")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} holds weights only, or was cut short; give the file of a whole model") from error


def _layer_classes(config: Any) -> Iterator[str]:
    """Yield the class of every layer in a configuration, also of those inside other layers and models."""
    if isinstance(config, dict):
        if isinstance(config.get("class_name"), str) and "name" in (config.get("config") or {}):
            yield from () if config["class_name"] in ("Functional", "Model", "Sequential") else (config["class_name"],)
        config = list(config.values())
    for part in config if isinstance(config, list) else ():
        yield from _layer_classes(part)


def _attribute(path: Path, name: str) -> str:
    with require_backend("h5py", "keras").File(path, "r") as file:
        value = file.attrs[name]
        return value if isinstance(value, str) else value.decode()


def _explain(path: Path, error: Exception, module: str) -> str:
    """Turn what Keras raises into one sentence with a way out."""
    text = str(error)
    if "Lambda" in text or ("lambda" in text and "safe" in text):
        loader = "keras.saving.load_model" if module == "keras.saving" else "tf_keras.models.load_model"
        return (
            f"{path} holds a Lambda layer, which is code, so it is not loaded (safe_mode); replace the layer, "
            f"or, if you trust the file, call {loader}(..., safe_mode=False) and pass the model object"
        )
    for marker in ("Could not locate class '", "Unknown layer: '"):
        if marker in text:
            name = text.split(marker, 1)[1].split("'", 1)[0]
            return (
                f"{path} uses the layer {name}, which is defined nowhere here; import the code that defines it "
                f"(decorated with @{module}.register_keras_serializable()) and pass the model object, not the file"
            )
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"{path} is not a Keras model that can be read, or was cut short ({first}); save or copy it again"
