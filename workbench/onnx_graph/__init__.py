"""ONNX in, ONNX out: read, check, cost, mend with a proof, fuse, mark layers; the one place that opens ONNX Runtime."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "file": ["OnnxSummary", "check", "read", "name_batch", "take_digest"],
        "custom": ["MarkedLayer", "mark_custom_layer"],
        "operators": ["Operator", "register_operator"],
        "cost": ["LayerCost", "OnnxInspection", "inspect"],
        "mend": ["AppliedRewrite", "FixReport", "fix"],
        "noise": ["rounding_noise"],
        "rewrites": ["make_resize_exact"],
        "fuse": ["fuse_argmax", "fuse_preprocessing"],
        "session": ["open_session"],
    },
)
