"""The reference: Keras or TensorFlow itself, compiled to one graph, in full float32."""

from typing import Any

import numpy as np

from workbench.core.contract import Runner, RunnerInfo, TensorSpec
from workbench.core.errors import BackendUnavailableError, ModelError
from workbench.core.packages import load_tensorflow, require_backend
from workbench.core.time_limit import run_ended, time_left
from workbench.core.tolerance import CEILINGS, coarsest
from workbench.models.freezing import FrozenGraph, flat_call, is_tf_keras, named_tensors

_LOOPS = ("While", "StatelessWhile", "NextIteration")
_STEP = "run the TensorFlow graph"


def describe(model: Any) -> RunnerInfo:
    """Say what computes a Keras model or a `FrozenGraph` here."""
    tf = load_tensorflow()
    device = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    if isinstance(model, FrozenGraph):
        return RunnerInfo("tensorflow", tf.__version__, device)
    name, extra = ("tf_keras", "classic") if is_tf_keras(model) else ("keras", "keras")
    return RunnerInfo(name, require_backend(name, extra).__version__, f"TensorFlow, {device}")


class _TensorFlowRunner(Runner):
    """A function of tensors in order."""

    def __init__(self, model: Any, forward: Any, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        self._tf, self._forward = load_tensorflow(), forward
        super().__init__(describe(model), _specs(inputs), _specs(outputs))

    def _infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        errors = self._tf.errors
        try:
            answers = self._forward(*[self._tf.convert_to_tensor(feed[name]) for name in self.inputs])
        except (errors.AbortedError, errors.UnimplementedError) as error:  # no kernel for a type on this processor
            raise BackendUnavailableError(
                f"TensorFlow {self._tf.__version__} does not compute this network on this machine "
                f"({_last_line(error)}); run it on another processor, or in float32"
            ) from error
        except errors.OpError as error:
            raise ModelError(
                f"TensorFlow {self._tf.__version__} cannot run this network: {_last_line(error)}; if it is for the "
                "numbers of the input, give others, else mend the network"
            ) from error
        return {name: np.array(answer) for name, answer in zip(self.outputs, answers, strict=True)}

    def _close(self) -> None:
        self._forward = None


class KerasRunner(_TensorFlowRunner):
    """A Keras 3 or tf_keras model in inference mode, compiled with `tf.function` so that the baseline is fair.

    ExportError where the model has no input shapes yet.
    """

    def __init__(self, model: Any) -> None:
        tf = load_tensorflow()
        inputs, outputs = named_tensors(model)
        tf.config.experimental.enable_tensor_float_32_execution(False)
        forward = tf.function(flat_call(model), autograph=is_tf_keras(model), reduce_retracing=True)
        super().__init__(model, forward, inputs, outputs)
        types = {getattr(layer, "compute_dtype", "") for layer in model._flatten_layers()}
        self.unit = coarsest(*(types & CEILINGS.keys()))


class FrozenGraphRunner(_TensorFlowRunner):
    """A frozen TensorFlow graph, from a `.pb` file or a SavedModel."""

    def __init__(self, frozen: FrozenGraph) -> None:
        tf = load_tensorflow()
        tf.config.experimental.enable_tensor_float_32_execution(False)
        wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(frozen.graph_def, name=""), [])
        find = wrapped.graph.get_tensor_by_name
        inputs, outputs = ({name: find(f"{name}:0") for name in names} for names in (frozen.inputs, frozen.outputs))
        super().__init__(frozen, wrapped.prune([*inputs.values()], [*outputs.values()]), inputs, outputs)
        kinds = {item.type for node in frozen.graph_def.node for item in node.attr.values() if item.type}
        types = {tf.dtypes.as_dtype(kind).name for kind in kinds}
        self.unit = coarsest(*(types & CEILINGS.keys()))
        functions = frozen.graph_def.library.function
        nodes = (*frozen.graph_def.node, *(node for function in functions for node in function.node_def))
        self._may_loop = any(node.op in _LOOPS for node in nodes)

    def _infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Where a loop may never end, Ctrl-C and a time limit end it."""
        if not self._may_loop and time_left(_STEP) is None:
            return super()._infer(feed)
        cancellation = require_backend("tensorflow.python.eager.cancellation", "keras").CancellationManager()
        plain = self._forward
        self._forward = cancellation.get_cancelable_function(plain)
        try:
            return run_ended(lambda: super(FrozenGraphRunner, self)._infer(feed), cancellation.start_cancel, _STEP)
        finally:
            self._forward = plain


def _last_line(error: Exception) -> str:
    """What TensorFlow says of an operation; what stands before it is where it was written."""
    lines = [line.strip() for line in str(getattr(error, "message", error)).splitlines()]
    told = [line for line in lines if line and not line.startswith(("[[", "File ", "Detected", "Arguments"))]
    return told[-1] if told else "it gives no reason"


def _specs(tensors: dict[str, Any]) -> dict[str, TensorSpec]:
    for name, tensor in tensors.items():
        if getattr(tensor.shape, "rank", 0) is None:
            raise ModelError(f"{name} has no known number of axes, expected a network that has; export it with a shape")
    return {
        name: TensorSpec(name, tuple(tensor.shape), getattr(tensor.dtype, "name", tensor.dtype))
        for name, tensor in tensors.items()
    }
