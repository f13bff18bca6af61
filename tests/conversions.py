"""Conversions in this process, for tests that need many: the same steps, without a child to start."""

import contextlib

import numpy as np
import onnxruntime

from workbench.export import tf2onnx_child
from workbench.export.freezing import freeze
from workbench.export.graph_weights import fold_constants, join_weights, split_weights
from workbench.export.onnx_names import name_batch
from workbench.export.onnx_rewrites import make_resize_exact
from workbench.export.resize import give_exact_sizes


@contextlib.contextmanager
def restored_tf2onnx():
    """Undo what the child does to tf2onnx, which lives on in this process."""
    from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

    base = TransposeOptimizer.__base__
    original = base.optimize
    try:
        yield
    finally:
        base.optimize = original


def convert_here(model, *, opset=17, folded=True):
    """A Keras model to an ONNX model in memory, step by step as the exporter and its child do it."""
    frozen = freeze(model)
    graph_def, weights = split_weights(frozen.graph_def)
    graph_def = fold_constants(frozen, graph_def)
    join_weights(graph_def, dict.fromkeys(weights, b""))
    with restored_tf2onnx():
        onnx_model = tf2onnx_child.graph_to_onnx(
            graph_def, weights, list(frozen.inputs), list(frozen.outputs), opset, folded=folded
        )
    name_batch(onnx_model)
    make_resize_exact(onnx_model)
    give_exact_sizes(onnx_model)
    return onnx_model


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
