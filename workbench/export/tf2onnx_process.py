"""Say in operators that tf2onnx knows what Keras 3 says in others; each rewrite changes a GraphDef in place."""

import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

from workbench.core.errors import ExportError
from workbench.core.files import atomic_path
from workbench.core.packages import load_tensorflow, require_backend
from workbench.core.process import NO_GPU, Child, move_bar
from workbench.models.freezing import FrozenGraph

_COMPILED = "_XlaMustCompile"


def forget_compilation(graph_def: Any) -> None:
    """Make functions that Keras has compiled with XLA, such as its grouped convolutions, ordinary functions.

    TensorFlow never takes such a function apart, and tf2onnx cannot read it.
    """
    for node in graph_def.node:
        node.attr.pop(_COMPILED, None)
    for function in graph_def.library.function:
        function.attr.pop(_COMPILED, None)
        for node in function.node_def:
            node.attr.pop(_COMPILED, None)


def replace_erfc(graph_def: Any) -> int:
    """Write Erfc(x), which the exact GELU of Keras holds and ONNX does not have, as 1 - Erf(x).

    Returns:
        How many nodes were replaced.
    """
    tf = load_tensorflow()
    found = [node for node in graph_def.node if node.op == "Erfc"]
    for node in found:
        dtype = node.attr["T"].type
        one = graph_def.node.add(name=f"{node.name}/one", op="Const")
        one.attr["dtype"].type = dtype
        one.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1, dtype))
        erf = graph_def.node.add(name=f"{node.name}/erf", op="Erf", input=node.input)
        erf.attr["T"].type = dtype
        node.op = "Sub"
        node.input[:] = [one.name, erf.name]
    return len(found)


def fill_constants(graph_def: Any, contents: dict[str, bytes]) -> None:
    """Put contents into constants that were emptied, by node name, in place."""
    for node in graph_def.node:
        if node.name in contents:
            node.attr["value"].tensor.tensor_content = contents[node.name]


LARGE_GRAPH_BYTES = 1 << 30
_LARGE_WEIGHT_BYTES = 16 << 20
_SMALL_WEIGHT_BYTES = 1 << 16

Index = dict[str, tuple[int, int]]


def split_weights(graph_def: Any) -> tuple[Any, dict[str, bytes]]:
    """Take large constants out of a graph and leave placeholders of the same name, type and shape.

    Of a graph below 1 GiB only constants from 16 MiB on are taken, because TensorFlow folds batch normalisations
    into those that it can see; of a larger one all from 64 KiB on, because TensorFlow cannot pass on more than 2 GB.

    Args:
        graph_def: the frozen graph; not modified.
    Returns:
        A new GraphDef, and the bytes of each constant that was taken, by node name.
    """
    total = sum(len(_content(node)) for node in graph_def.node)
    limit = _LARGE_WEIGHT_BYTES if total < LARGE_GRAPH_BYTES else _SMALL_WEIGHT_BYTES
    light = load_tensorflow().compat.v1.GraphDef(versions=graph_def.versions, library=graph_def.library)
    weights = {}
    for node in graph_def.node:
        content = _content(node)
        if len(content) < limit:
            light.node.add().CopyFrom(node)
            continue
        weights[node.name] = content
        stand_in = light.node.add(name=node.name, op="Placeholder")
        stand_in.attr["dtype"].type = node.attr["dtype"].type
        stand_in.attr["shape"].shape.CopyFrom(node.attr["value"].tensor.tensor_shape)
    return light, weights


def join_weights(graph_def: Any, weights: dict[str, bytes]) -> None:
    """Turn the placeholders that `split_weights` left into constants again, in place.

    Args:
        graph_def: the graph.
        weights: the contents by node name; an empty content keeps the constant's type and shape only.
    """
    for node in graph_def.node:
        if node.name in weights and node.op == "Placeholder":
            shape, dtype = node.attr["shape"].shape, node.attr["dtype"].type
            tensor = node.attr["value"].tensor
            tensor.dtype = dtype
            tensor.tensor_shape.CopyFrom(shape)
            tensor.tensor_content = weights[node.name]
            node.op = "Const"
            del node.attr["shape"]


def fold_constants(frozen: FrozenGraph, graph_def: Any) -> Any:
    """Let TensorFlow calculate what is constant in a graph, with the settings of tf2onnx 1.17.

    Args:
        frozen: names the ends.
        graph_def: the graph to fold; not modified.
    Returns:
        The folded GraphDef.
    Raises:
        ImportError, AttributeError: TensorFlow's graph optimiser, which is not public, has moved.
    Source: tf2onnx.tf_loader.tf_optimize_grappler.
    """
    tf = load_tensorflow()
    optimizer = require_backend("tensorflow.python.grappler.tf_optimizer", "keras")
    config = tf.compat.v1.ConfigProto()
    config.graph_options.infer_shapes = True
    rewriting = config.graph_options.rewrite_options
    rewriting.optimizers[:] = ["constfold", "function", "dependency"]
    rewriting.experimental_disable_folding_quantization_emulation = True
    rewriting.function_optimization = rewriting.AGGRESSIVE  # takes apart the functions that XLA compiled before
    meta_graph = tf.compat.v1.MetaGraphDef()
    meta_graph.graph_def.CopyFrom(graph_def)
    ends = [f"{name}:0" for name in (*frozen.inputs, *frozen.outputs)]
    meta_graph.collection_def["train_op"].node_list.value.extend(ends)
    return optimizer.OptimizeGraph(config, meta_graph, verbose=False)


def write_weights(weights: dict[str, bytes], path: Path) -> Index:
    """Write contents one after another; return where each lies: (offset, length) in bytes."""
    index: Index = {}
    with open(path, "wb") as file:
        for name, content in weights.items():
            index[name] = (file.tell(), len(content))
            file.write(content)
    return index


def read_weights(path: Path, index: Index) -> dict[str, bytes]:
    """Read what `write_weights` wrote."""
    if not index:
        return {}
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return {name: mapped[offset : offset + length] for name, (offset, length) in index.items()}


def _content(node: Any) -> bytes:
    return node.attr["value"].tensor.tensor_content if node.op == "Const" else b""


CHILD = "workbench.export.tf2onnx_child"
DATA_SUFFIX = ".data"
STEPS = 4

_ENVIRONMENT = {
    # glibc gives each freed weight back to the system and fetches it again; it reads these only when it starts.
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}


class Tf2onnxProcess(Child):
    """A child process with TensorFlow and tf2onnx, for one conversion; use it in a `with` block.

    Raises:
        BackendUnavailableError: tf2onnx is not installed.
    """

    def __init__(self) -> None:
        require_backend("tf2onnx", "keras")
        super().__init__(CHILD, environment={**NO_GPU, **_ENVIRONMENT})

    def convert(self, frozen: FrozenGraph, path: str | os.PathLike[str], *, opset: int, bar: Any = None) -> Path:
        """Convert a frozen graph and check the result.

        Args:
            frozen: the graph.
            path: the `.onnx` file to write, whole or not at all; weights of more than 1 GiB go to `<path>.data`.
            opset: ONNX operator set.
            bar: a tqdm bar to move, four steps.
        Returns:
            `path`.
        Raises:
            ExportError: tf2onnx failed, or an operator has no ONNX counterpart.
            OutputError: the file cannot be written.
        """
        target = Path(path)
        with (
            atomic_path(target) as temporary,
            tempfile.TemporaryDirectory(prefix=f".{target.stem}-", dir=target.parent) as results,
            tempfile.TemporaryDirectory() as folder,
        ):
            order = _hand_over(frozen, Path(folder))
            result = Path(results) / target.name
            self.run({**order, "onnx": str(result), "opset": opset}, move_bar(bar))
            data = result.with_name(result.name + DATA_SUFFIX)
            if data.exists():
                os.replace(data, target.with_name(data.name))
            os.replace(result, temporary)
        return target


def prepare(frozen: FrozenGraph) -> tuple[Any, dict[str, bytes], bool]:
    """Bring a graph into the form that the child takes.

    Returns:
        The GraphDef, in which large constants are empty; their contents by node name; and whether TensorFlow's graph
        optimiser was there to fold it.
    """
    graph_def, weights = split_weights(frozen.graph_def)
    forget_compilation(graph_def)
    folded = True
    try:
        graph_def = fold_constants(frozen, graph_def)
    except (ImportError, AttributeError):
        folded = False  # the child says that it takes the slower way
    replace_erfc(graph_def)
    join_weights(graph_def, dict.fromkeys(weights, b""))
    return graph_def, weights, folded


def _hand_over(frozen: FrozenGraph, folder: Path) -> dict[str, Any]:
    """Write a graph and its weights for the child; return how to find them."""
    graph_def, weights, folded = prepare(frozen)
    graph, binary = folder / "graph.pb", folder / "weights.bin"
    try:
        graph.write_bytes(graph_def.SerializeToString())
    except ValueError as error:
        raise ExportError("the graph is larger than 2 GB even without its weights; split the network in two") from error
    return {
        "graph": str(graph),
        "weights": str(binary),
        "index": write_weights(weights, binary),
        "folded": folded,
        "inputs": frozen.inputs,
        "outputs": frozen.outputs,
    }
