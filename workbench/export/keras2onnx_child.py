"""Import keras2onnx 1.7.0 on packages six years younger: what it expects of them is put in place first.

For a child process only: it changes NumPy, onnx, TensorFlow and tf_keras for everything in the process.
"""

import importlib
import importlib.util
import re
import sys
import types
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from workbench.core.errors import ExportError, ModelError, first_line
from workbench.core.packages import load_tensorflow, load_tf_keras, require_backend
from workbench.core.process import send, serve
from workbench.onnx_graph.edit import set_attribute
from workbench.onnx_graph.file import check, name_batch, rename_ends
from workbench.onnx_graph.rewrites import keep_zero_padding, make_resize_exact


def import_keras2onnx(keras: Any) -> ModuleType:
    """Import keras2onnx and make it read tf_keras, given as `keras`; eager execution must be off."""
    _restore_modules()
    _present_as_tensorflow_keras(keras)
    keras2onnx = require_backend("keras2onnx", "classic")
    _recognise_own_layers(keras)
    _read_one_output_of_batch_norm()
    _pad_transposed_as_tensorflow()
    keras.src.backend.set_learning_phase(0)
    return keras2onnx


def _module(name: str, **names: Any) -> ModuleType:
    module = sys.modules[name] = types.ModuleType(name)
    vars(module).update(names)
    return module


class _Version(tuple[int, ...]):
    """A version that compares as numbers, made from text."""

    def __new__(cls, text: Any) -> "_Version":
        return super().__new__(cls, (int(part) for part in re.findall(r"\d+", str(text))[:3]))


def _restore_modules() -> None:
    """Put back Python's types in NumPy (until 1.24), `onnx.mapping` (1.19), distutils (3.12), pkg_resources (82)."""
    for kind in (bool, object, int, float, str, complex):
        if kind.__name__ not in vars(np):
            setattr(np, kind.__name__, kind)
    numbers = range(TensorProto.FLOAT, TensorProto.BFLOAT16 + 1)
    types_of = {number: np.dtype(helper.tensor_dtype_to_np_dtype(number)) for number in numbers}
    numbers_of = {dtype: number for number, dtype in types_of.items() if number != TensorProto.BFLOAT16}
    mapping = _module("onnx.mapping", TENSOR_TYPE_TO_NP_TYPE=types_of, NP_TYPE_TO_TENSOR_TYPE=numbers_of)
    onnx.mapping = mapping  # type: ignore[attr-defined]
    # a version is all that keras2onnx asks of these two
    if importlib.util.find_spec("distutils") is None:
        version = _module("distutils.version", StrictVersion=_Version, LooseVersion=_Version)
        _module("distutils", version=version)
    if importlib.util.find_spec("pkg_resources") is None:
        newest = types.SimpleNamespace(parsed_version=_Version("99"))
        _module("pkg_resources", parse_version=_Version, get_distribution=lambda name: newest)


def _present_as_tensorflow_keras(keras: Any) -> None:
    """Put tf_keras where TensorFlow 2.3 had its Keras, with the layers under the module names of that time."""
    python = importlib.import_module("tensorflow.python")
    engine = importlib.import_module("tf_keras.src.engine")
    for name in ("engine.sequential", "layers.rnn.lstm", "layers.rnn.gru"):
        importlib.import_module(f"tf_keras.src.{name}")
    for name in ("advanced_activations", "wrappers", "recurrent", "recurrent_v2", "normalization_v2"):
        setattr(keras.layers, name, keras.layers)
    keras.engine, keras.__version__ = engine, "2.3.1"
    keras.backend.get_session = keras.src.backend.get_session
    python.keras = sys.modules["tensorflow.python.keras"] = keras  # type: ignore[attr-defined]


def _recognise_own_layers(keras: Any) -> None:
    """keras2onnx takes a layer for the reader's own by the name of its module, which was `tensorflow.python.keras`."""
    replacements = {
        "is_subclassed": lambda layer: not layer.__module__.startswith("tf_keras."),
        "is_subclassing": lambda model: not (model._is_graph_network or isinstance(model, keras.Sequential)),
    }
    for module in [module for name, module in sys.modules.items() if name.startswith("keras2onnx")]:
        vars(module).update({name: function for name, function in replacements.items() if hasattr(module, name)})


def _read_one_output_of_batch_norm() -> None:
    """FusedBatchNormV3 has six outputs today; the layer after it must see only the first, or it takes in all six."""
    parser = importlib.import_module("keras2onnx.parser")
    original = parser.on_parsing_keras_layer_v2

    def on_parsing_keras_layer_v2(graph: Any, info: Any, variables: Any, prefix: Any = None) -> Any:
        for side in ("inputs", "outputs"):
            tensors = getattr(info, side)
            setattr(info, side, [t for t in tensors if t.op.type != "FusedBatchNormV3" or t.value_index == 0])
        return original(graph, info, variables, prefix)

    parser.on_parsing_keras_layer_v2 = on_parsing_keras_layer_v2  # type: ignore[attr-defined]


def _pad_transposed_as_tensorflow() -> None:
    """keras2onnx forgets `output_padding`, and the zeros that a kernel smaller than its stride leaves at the end."""
    module = importlib.import_module("keras2onnx.ke2onnx.conv")
    original = module.convert_keras_conv_core

    def convert_keras_conv_core(scope: Any, operator: Any, container: Any, *rest: Any) -> None:
        before = len(container.nodes)
        original(scope, operator, container, *rest)
        for node in container.nodes[before:]:
            for name, value in _padding(operator.raw_operator).items() if node.op_type == "ConvTranspose" else ():
                set_attribute(node, name, value)

    module.convert_keras_conv_core = convert_keras_conv_core  # type: ignore[attr-defined]


def _padding(layer: Any) -> dict[str, Any]:
    """The padding of a transposed convolution in ONNX's words; at every size it is that of an input of one pixel."""
    length = importlib.import_module("tf_keras.src.utils.conv_utils").deconv_output_length
    more = layer.output_padding or (None,) * len(layer.kernel_size)
    axes = zip(layer.kernel_size, more, layer.strides, layer.dilation_rate, strict=True)
    totals = [
        (size - 1) * dilation + 1 - length(1, size, layer.padding, extra, stride, dilation=dilation)
        for size, extra, stride, dilation in axes
    ]
    cut = [max(total, 0) for total in totals]
    pads = [total // 2 for total in cut] + [total - total // 2 for total in cut]
    return {"auto_pad": "NOTSET", "pads": pads, "output_padding": [max(-total, 0) for total in totals]}


def convert(order: dict[str, Any]) -> None:
    """Convert one model; tells the parent of each step."""
    send("step", text="start TensorFlow and keras2onnx")
    tf, keras = load_tensorflow(), load_tf_keras()
    # keras2onnx reads the graph that TensorFlow 1 would have made
    tf.compat.v1.disable_eager_execution()
    keras2onnx = import_keras2onnx(keras)
    send("step", text="rebuild the model")
    with open(order["config"], encoding="utf-8") as file:
        model = keras.models.model_from_json(file.read())
    with np.load(order["weights"], allow_pickle=False) as arrays:
        model.set_weights([arrays[str(index)] for index in range(len(arrays.files))])
    send("step", text="convert to ONNX")
    converted = keras2onnx.convert_keras(model, model.name, target_opset=order["opset"])
    # the version follows from the operators; the weights are no inputs, which is valid from 4 on
    converted.ir_version = max(converted.ir_version, 4)
    rename_ends(converted, order["inputs"], order["outputs"])
    for mend in (name_batch, make_resize_exact, keep_zero_padding):
        mend(converted)
    send("step", text="write the file")
    onnx.save(converted, order["onnx"])
    send("step", text="check the graph")
    try:
        check(order["onnx"])
    except ModelError as error:
        reason = first_line(error.__cause__ or error)
        raise ExportError(f"keras2onnx wrote a graph that is not valid ({reason}); use exporter='tf2onnx'") from error


def _explain(error: Exception) -> str:
    reason = f"{type(error).__name__}: {first_line(error)}"
    return f"keras2onnx, archived in 2020, cannot convert this model ({reason}); use exporter='tf2onnx'"


if __name__ == "__main__":
    sys.exit(serve(convert, _explain))
