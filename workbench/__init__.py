"""Keras to ONNX to TensorRT, with every conversion checked and measured: `import workbench as wb`.

A name is imported when it is first used, so that `import workbench` itself costs nothing. `__init__.pyi` lists the
names, for this module and for editors; `docs/api.md` explains them.
"""

import os

import lazy_loader

# ONNX Runtime otherwise tells its makers of each network that it opens: what you work on stays on your machine.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
