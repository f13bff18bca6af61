"""What the tests on a GPU need, and a sentence for each thing that is missing."""

import functools
import importlib
import os

from plugin_builds import missing_headers, missing_nvcc

from workbench.core.driver import probe_driver
from workbench.core.errors import WorkbenchError
from workbench.engine.tensorrt_api import open_flavour
from workbench.onnx_graph.session import prepare_cuda

# JAX would take three quarters of the GPU's memory at its first call.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


@functools.cache
def missing(name):
    """Why `name` cannot be used here, in one sentence; empty where it can."""
    try:
        return NEEDS[name]() or ""
    except (WorkbenchError, ImportError, OSError, RuntimeError) as error:
        return str(error).splitlines()[0]


def missing_of(names):
    """The first of several needs that is missing, as (name, sentence); a GPU is always needed."""
    for name in ("gpu", *names):
        if missing(name):
            return name, missing(name)
    return None


def _package(name):
    def find():
        importlib.import_module(name)

    return find


def _onnxruntime_cuda():
    import onnxruntime

    prepare_cuda(onnxruntime)


def _torch():
    import torch

    return "" if torch.cuda.is_available() else "this torch sees no GPU"


def _jax():
    import jax

    return "" if jax.default_backend() == "gpu" else "this JAX sees no GPU"


def _flavour(name):
    def find():
        open_flavour(name)

    return find


NEEDS = {
    "gpu": lambda: probe_driver().problem,
    "cuda-python": _package("cuda.bindings.runtime"),
    "pycuda": _package("pycuda.driver"),
    "onnxruntime-cuda": _onnxruntime_cuda,
    "torch": _torch,
    "jax": _jax,
    "lean": _flavour("tensorrt_lean"),
    "rtx": _flavour("tensorrt_rtx"),
    "tensorrt": _flavour("tensorrt"),
    "nvcc": missing_nvcc,
    "tensorrt-headers": missing_headers,
}
