"""The matrix of networks and exporters: every backend that it names must be here, or the run fails."""

import importlib

import pytest

BACKENDS = (
    "tensorflow", "keras", "tf_keras", "tf2onnx", "keras2onnx", "segmentation_models", "tf_slim",
    "torch", "onnxscript", "onnxslim", "pnnx", "ncnn", "tvm", "modelopt", "tensorrt_rtx",
)  # fmt: skip


def pytest_sessionstart(session):
    """Fail at once, with the list, where `make test-extras` did not install everything."""
    missing = [name for name in BACKENDS if importlib.util.find_spec(name) is None]
    if missing:
        pytest.exit(f"missing: {', '.join(missing)}; run make test-extras, which installs them", returncode=3)
