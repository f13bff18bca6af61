"""ONNX to a TensorRT plan; the plan saved, loaded where it may be loaded, and run."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "build": ["build_engine", "save_engine"],
        "load": ["Engine", "load_engine"],
        "plan": ["Plan", "PlanManifest"],
        "inference": ["allocate_buffers", "load_images_to_buffer", "do_inference"],
        "parser": ["ask_parser"],
        "custom": ["make_creator"],
    },
)
