"""Hand a frozen graph to the child that converts it, in operators that tf2onnx knows, its large weights apart."""

import importlib.util
import mmap
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from workbench.core.errors import ExportError
from workbench.core.files import atomic_path, check_outputs
from workbench.core.packages import load_tensorflow, require_backend
from workbench.core.process import NO_GPU, Child, move_bar, temporary_folder
from workbench.export.graph_rewrites import rewrite, widen_bfloat16
from workbench.models.freezing import FrozenGraph

CHILD = "workbench.export.tf2onnx_child"
STEPS = 3
LARGE_GRAPH_BYTES = 1 << 30
_LARGE_WEIGHT_BYTES = 16 << 20
_SMALL_WEIGHT_BYTES = 1 << 16
_WIDENED = (
    "the network computes in bfloat16, which ONNX Runtime does not on a CPU: the ONNX file has its weights, rounded to "
    "bfloat16, and computes in float32; precision='bf16' (--precision bf16) builds an engine that computes in bfloat16"
)

# glibc gives each freed weight back to the system and fetches it again; it reads these only when it starts.
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(8 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}
_ENVIRONMENT["MALLOC_TOP_PAD_"] = str(256 << 20)

Index = dict[str, tuple[int, int]]


class Tf2onnxProcess(Child):
    """A child process with TensorFlow and tf2onnx, for one conversion; use it in a `with` block."""

    def __init__(self) -> None:
        if importlib.util.find_spec("tf2onnx") is None:  # only the child imports it: it brings all of TensorFlow
            require_backend("tf2onnx", "keras")
        super().__init__(CHILD, environment={**NO_GPU, **_ENVIRONMENT})

    def convert(self, frozen: FrozenGraph, path: str | os.PathLike[str], *, opset: int, bar: Any = None) -> Path:
        """Convert a frozen graph and check the result; a tqdm bar moves `STEPS` steps.

        The file is written whole or not at all; weights of more than 1 GiB go to `<path>.data`. ExportError: tf2onnx
        failed, or an operator has no ONNX counterpart. OutputError: the file cannot be written.
        """
        target = Path(path)
        with (
            atomic_path(target) as temporary,
            tempfile.TemporaryDirectory(prefix=f".{target.stem}-", dir=target.parent) as results,
            temporary_folder() as folder,
        ):
            graph_def, weights, folded = prepare(frozen)
            graph, binary, result = folder / "graph.pb", folder / "weights.bin", Path(results) / target.name
            try:
                graph.write_bytes(graph_def.SerializeToString())
            except ValueError as error:
                text = "the graph is larger than 2 GB even without its weights; split the network in two"
                raise ExportError(text) from error
            files = {"graph": str(graph), "weights": str(binary), "index": write_weights(weights, binary)}
            del graph_def, weights  # the child has them
            order = {"inputs": frozen.inputs, "outputs": frozen.outputs, "opset": opset, "folded": folded}
            order |= {"layer_of": frozen.layer_of}
            self.run({**files, **order, "onnx": str(result)}, move_bar(bar))
            data = result.with_name(f"{result.name}.data")
            if data.exists():
                check_outputs([target.with_name(data.name)])
                os.replace(data, target.with_name(data.name))
            os.replace(result, temporary)
        return target


def prepare(frozen: FrozenGraph) -> tuple[Any, dict[str, bytes], bool]:
    """Bring a graph into the form that the child takes: a GraphDef in which large constants are empty.

    With it come their contents by node name, and whether TensorFlow's graph optimiser was there to fold it.
    """
    graph_def = widen_bfloat16(frozen.graph_def)
    if graph_def is not frozen.graph_def:
        warnings.warn(_WIDENED, stacklevel=4)
    graph_def, weights = split_weights(graph_def)
    functions = graph_def.library.function
    for part in (*graph_def.node, *functions, *(node for function in functions for node in function.node_def)):
        # TensorFlow never takes apart what Keras compiled with XLA, such as its grouped convolutions
        part.attr.pop("_XlaMustCompile", None)
    folded = True
    try:
        graph_def = fold_constants(frozen, graph_def)
    except (ImportError, AttributeError):
        folded = False  # the child says that it takes the slower way
    rewrite(graph_def, frozen.layer_of)
    join_weights(graph_def, dict.fromkeys(weights, b""))
    return graph_def, weights, folded


def split_weights(graph_def: Any) -> tuple[Any, dict[str, bytes]]:
    """Take large constants out of a graph, for placeholders; return a new GraphDef and their bytes by node name.

    Of a graph below 1 GiB only constants from 16 MiB on are taken, because TensorFlow folds batch normalisations
    into those that it can see; of a larger one all from 64 KiB on, because TensorFlow cannot pass on more than 2 GB.
    """
    contents = [node.attr["value"].tensor.tensor_content if node.op == "Const" else b"" for node in graph_def.node]
    limit = _LARGE_WEIGHT_BYTES if sum(map(len, contents)) < LARGE_GRAPH_BYTES else _SMALL_WEIGHT_BYTES
    light = load_tensorflow().compat.v1.GraphDef(versions=graph_def.versions, library=graph_def.library)
    weights = {}
    for node, content in zip(graph_def.node, contents, strict=True):
        if len(content) < limit:
            light.node.add().CopyFrom(node)
            continue
        weights[node.name] = content
        stand_in = light.node.add(name=node.name, op="Placeholder")
        stand_in.attr["dtype"].type = node.attr["dtype"].type
        stand_in.attr["shape"].shape.CopyFrom(node.attr["value"].tensor.tensor_shape)
    return light, weights


def join_weights(graph_def: Any, weights: dict[str, bytes]) -> None:
    """Turn the placeholders of `split_weights` into constants again, in place; an empty one keeps type and shape."""
    for node in graph_def.node:
        if node.name in weights and node.op == "Placeholder":
            tensor = node.attr["value"].tensor
            tensor.dtype = node.attr["dtype"].type
            tensor.tensor_shape.CopyFrom(node.attr["shape"].shape)
            tensor.tensor_content = weights[node.name]
            node.op = "Const"
            del node.attr["shape"]


def fold_constants(frozen: FrozenGraph, graph_def: Any) -> Any:
    """Let TensorFlow calculate what is constant, as `tf_optimize_grappler` of tf2onnx 1.17 does.

    ImportError or AttributeError where TensorFlow's graph optimiser, which is not public, has moved.
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
