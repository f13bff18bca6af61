"""A framework's model to ONNX."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "conversion": ["convert"],
        "keras_model": ["keras_to_onnx", "keras_to_pb", "pb_to_onnx", "frozen_to_onnx", "checkpoint_to_onnx"],
        "torch_model": ["torch_to_onnx"],
    },
)
