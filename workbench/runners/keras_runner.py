"""The reference: Keras or TensorFlow itself, compiled to one graph."""

from typing import Any

import numpy as np

from workbench.core.contract import Runner, RunnerInfo, TensorSpec
from workbench.core.packages import load_tensorflow, require_backend
from workbench.models.freezing import FrozenGraph, is_tf_keras, tensor_names


class KerasRunner(Runner):
    """A Keras 3 or tf_keras model in inference mode, compiled with `tf.function` so that the baseline is fair.

    Args:
        model: the Keras model.
    Raises:
        ExportError: the model has no input shapes yet.
    """

    def __init__(self, model: Any) -> None:
        tf = load_tensorflow()
        inputs, outputs = tensor_names(model)
        tf.config.experimental.enable_tensor_float_32_execution(False)

        @tf.function(autograph=is_tf_keras(model), reduce_retracing=True)
        def forward(tensors: list[Any]) -> list[Any]:
            return tf.nest.flatten(model(tensors[0] if len(tensors) == 1 else tensors, training=False))

        self._tf, self._forward = tf, forward
        info = RunnerInfo(*_keras(model), f"TensorFlow, {_device(tf)}")
        super().__init__(info, _specs(inputs, model.inputs), _specs(outputs, model.outputs))

    def _infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        answers = self._forward([self._tf.convert_to_tensor(feed[name]) for name in self.inputs])
        return {name: np.array(answer) for name, answer in zip(self.outputs, answers, strict=True)}

    def _close(self) -> None:
        self._forward = None


class FrozenGraphRunner(Runner):
    """A frozen TensorFlow graph, from a `.pb` file or a SavedModel.

    Args:
        frozen: the graph and the names of its ends.
    """

    def __init__(self, frozen: FrozenGraph) -> None:
        tf = load_tensorflow()
        tf.config.experimental.enable_tensor_float_32_execution(False)
        wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(frozen.graph_def, name=""), [])
        tensors = [
            [wrapped.graph.get_tensor_by_name(f"{n}:0") for n in names] for names in (frozen.inputs, frozen.outputs)
        ]
        self._tf, self._forward = tf, wrapped.prune(*tensors)
        info = RunnerInfo("tensorflow", tf.__version__, _device(tf))
        super().__init__(info, _specs(frozen.inputs, tensors[0]), _specs(frozen.outputs, tensors[1]))

    def _infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        answers = self._forward(*[self._tf.convert_to_tensor(feed[name]) for name in self.inputs])
        return {name: np.array(answer) for name, answer in zip(self.outputs, answers, strict=True)}

    def _close(self) -> None:
        self._forward = None


def _specs(names: tuple[str, ...], tensors: list[Any]) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(name, tuple(tensor.shape), getattr(tensor.dtype, "name", tensor.dtype))
        for name, tensor in zip(names, tensors, strict=True)
    }


def _keras(model: Any) -> tuple[str, str]:
    """Return the name and version of the Keras that made a model."""
    name, extra = ("tf_keras", "classic") if is_tf_keras(model) else ("keras", "keras")
    return name, require_backend(name, extra).__version__


def _device(tf: Any) -> str:
    return "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
