"""Conversions in this process, for tests that need many: the same steps, without a child to start."""

from unittest import mock

import numpy as np
import onnxruntime

from workbench.export import tf2onnx_child
from workbench.export.tf2onnx_process import prepare
from workbench.models.freezing import freeze


def convert_here(model, *, opset=17):
    """A Keras model to an ONNX model in memory, step by step as the exporter and its child do it."""
    frozen = freeze(model)

    def read():
        graph_def, weights, _ = prepare(frozen)
        return graph_def, weights

    with mock.patch.object(tf2onnx_child, "send", _tell):
        converted = tf2onnx_child.graph_to_onnx(read, frozen.inputs, frozen.outputs, opset)
    tf2onnx_child.repair(converted)
    return converted


def _tell(event, **fields):
    """Print what the child would send to its parent."""
    print(f"{event}: {fields.get('text')}")


def run_onnx(source, *arrays):
    """The first output of an ONNX file or of a model in memory."""
    content = source.SerializeToString() if hasattr(source, "SerializeToString") else str(source)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {spec.name: array for spec, array in zip(session.get_inputs(), arrays, strict=True)})[0]


def relative_error(got, expected):
    """The largest error as a share of the range of what is expected, which must have one."""
    spread = float(np.ptp(expected))
    assert spread > 0, "an output that is the same everywhere tells nothing"
    return float(np.abs(got - expected).max()) / spread


def randomise(model, seed=0):
    """Weights of every kind away from where Keras starts them: a zero bias or a variance of one hides a mistake."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        value = generator.standard_normal(tuple(variable.shape)) * 0.4
        if "variance" in variable.name or "gamma" in variable.name:
            value = np.abs(value) + 0.5
        variable.assign(value.astype(np.float32))
    return model
