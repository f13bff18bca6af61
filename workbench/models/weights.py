"""Weights as plain `.npz` files, one array per variable, named `layer/variable`; and random ones set on pictures."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core.errors import ModelError
from workbench.core.files import atomic_path
from workbench.models.untrusted import check_archive


def named_weights(model: Any) -> dict[str, Any]:
    """Return a Keras model's variables by `layer/variable`, the same names for Keras 3 and tf_keras."""
    return {
        f"{layer.name}/{variable.name.rsplit('/', 1)[-1].removesuffix(':0')}": variable
        for layer in model.layers
        for variable in layer.weights
    }


def save_weights(weights: dict[str, np.ndarray], path: str | os.PathLike[str], dtype: str = "float16") -> None:
    """Save arrays by `layer/variable` to an `.npz` file, whole or not at all; ModelError where one overflows.

    float16 halves the file and costs at most 2**-11 of each value.
    """
    arrays = {name: np.asarray(value).astype(dtype) for name, value in weights.items()}
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise ModelError(f"{', '.join(bad)} overflow {dtype}; save them as float32")
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_weights(model: Any, path: str | os.PathLike[str]) -> None:
    """Load an `.npz` file of `save_weights` into a model that `build` made; ModelError where it is not its own."""
    assign_weights(model, read_weights(path), path)


def assign_weights(model: Any, arrays: dict[str, np.ndarray], path: str | os.PathLike[str]) -> None:
    """Put arrays that were read from `path` into a model that `build` made; ModelError where they are not its own."""
    variables = named_weights(model)
    if set(arrays) != set(variables):
        odd = ", ".join(sorted(set(arrays) ^ set(variables))[:4])
        raise ModelError(f"{path} is for another network ({odd} differ); build the model it was saved from")
    for name, variable in variables.items():
        if tuple(arrays[name].shape) != tuple(variable.shape):
            raise ModelError(
                f"{path}: {name} is {arrays[name].shape}, the model has {tuple(variable.shape)}; "
                "build the model with the width the weights were saved with"
            )
    for name, variable in variables.items():
        variable.assign(arrays[name].astype(np.float32))


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the arrays of an `.npz` file by `layer/variable`; ModelError where it is missing or damaged."""
    if not Path(path).is_file():
        raise ModelError(f"the weights {path} do not exist; give the path of an .npz file")
    if zipfile.is_zipfile(path):
        check_archive(Path(path))
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is not a readable .npz file ({error}); copy it again") from error


def calibrate(model: Any, batch: np.ndarray) -> None:
    """Set the batch statistics of random weights on real pictures, in place, so that answers differ between pictures.

    Args:
        model: a Keras 3 or tf_keras model.
        batch: (N, H, W, 3) float32, preprocessed.
    """
    layers = [layer for layer in model.layers if type(layer).__name__ == "BatchNormalization"]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    model(batch, training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
