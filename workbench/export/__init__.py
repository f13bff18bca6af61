"""Conversion of networks to ONNX."""
