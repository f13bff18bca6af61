"""The reference: Keras or TensorFlow itself, compiled to one graph, in full float32."""

from typing import Any

import numpy as np

from workbench.core.contract import Runner, RunnerInfo, TensorSpec
from workbench.core.packages import load_tensorflow, require_backend
from workbench.models.freezing import FrozenGraph, is_tf_keras, tensor_names


class _TensorFlowRunner(Runner):
    """What the two runners share: TensorFlow, and a function of tensors in order."""

    def __init__(self, names: tuple[str, str], forward: Any, inputs: Any, outputs: Any) -> None:
        self._tf, self._forward = load_tensorflow(), forward
        device = "GPU" if self._tf.config.list_physical_devices("GPU") else "CPU"
        info = RunnerInfo(*names, device if names[0] == "tensorflow" else f"TensorFlow, {device}")
        super().__init__(info, _specs(*inputs), _specs(*outputs))

    def _infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        answers = self._forward(*[self._tf.convert_to_tensor(feed[name]) for name in self.inputs])
        return {name: np.array(answer) for name, answer in zip(self.outputs, answers, strict=True)}

    def _close(self) -> None:
        self._forward = None


class KerasRunner(_TensorFlowRunner):
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
        name, extra = ("tf_keras", "classic") if is_tf_keras(model) else ("keras", "keras")

        @tf.function(autograph=is_tf_keras(model), reduce_retracing=True)
        def forward(*tensors: Any) -> list[Any]:
            return tf.nest.flatten(model(tensors[0] if len(tensors) == 1 else list(tensors), training=False))

        names = (name, require_backend(name, extra).__version__)
        super().__init__(names, forward, (inputs, model.inputs), (outputs, model.outputs))


class FrozenGraphRunner(_TensorFlowRunner):
    """A frozen TensorFlow graph, from a `.pb` file or a SavedModel.

    Args:
        frozen: the graph and the names of its ends.
    """

    def __init__(self, frozen: FrozenGraph) -> None:
        tf = load_tensorflow()
        tf.config.experimental.enable_tensor_float_32_execution(False)
        wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(frozen.graph_def, name=""), [])
        inputs, outputs = (
            [wrapped.graph.get_tensor_by_name(f"{n}:0") for n in names] for names in (frozen.inputs, frozen.outputs)
        )
        ends = (frozen.inputs, inputs), (frozen.outputs, outputs)
        super().__init__(("tensorflow", tf.__version__), wrapped.prune(inputs, outputs), *ends)


def _specs(names: tuple[str, ...], tensors: list[Any]) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(name, tuple(tensor.shape), getattr(tensor.dtype, "name", tensor.dtype))
        for name, tensor in zip(names, tensors, strict=True)
    }
