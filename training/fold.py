"""Fold batch normalisation and input scaling into the convolutions before weights are saved."""

from typing import Any

import numpy as np


def fold_batch_norm(model: Any, input_scale: float, first: str = "block1_conv1") -> dict[str, np.ndarray]:
    """Return the weights of the same network without batch normalisation and without input scaling.

    Args:
        model: a trained Keras model in which `NAME_bn` normalises the output of the convolution `NAME`.
        input_scale: the factor that the training multiplied its mean-free input with.
        first: the convolution that reads the input; its kernel takes the factor over.
    Returns:
        Arrays by `layer/variable`, float32, for the model built with `batch_norm=False`.
    Source: Ioffe, Szegedy: Batch normalization, 2015, section 3.1: in inference it is an affine map.
    """
    layers = {layer.name: layer for layer in model.layers}
    weights: dict[str, np.ndarray] = {}
    for name, layer in layers.items():
        if name.endswith("_bn") or not layer.weights:
            continue
        kernel, bias = (np.asarray(variable, dtype=np.float64) for variable in layer.weights)
        if f"{name}_bn" in layers:
            kernel, bias = _fold_one(kernel, bias, layers[f"{name}_bn"])
        if name == first:
            kernel = kernel * input_scale
        weights[f"{name}/kernel"] = kernel.astype(np.float32)
        weights[f"{name}/bias"] = bias.astype(np.float32)
    return weights


def _fold_one(kernel: np.ndarray, bias: np.ndarray, norm: Any) -> tuple[np.ndarray, np.ndarray]:
    variables = (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    gamma, beta, mean, variance = (np.asarray(variable, dtype=np.float64) for variable in variables)
    gain = gamma / np.sqrt(variance + norm.epsilon)
    return kernel * gain, (bias - mean) * gain + beta
