"""Keras to ONNX to TensorRT, with every conversion checked and measured: `import workbench as wb`.

A name is imported when it is first used, so that `import workbench` itself costs nothing. `__init__.pyi` lists the
names, for this module and for editors; `docs/api.md` explains them.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
