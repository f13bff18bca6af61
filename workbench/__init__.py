"""Keras to ONNX to TensorRT, with every conversion checked and measured."""

__version__ = "0.1.0"
