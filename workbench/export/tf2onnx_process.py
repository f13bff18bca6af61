"""The parent's side of a conversion with tf2onnx; its child starts TensorFlow while the model is being frozen."""

import os
import tempfile
from pathlib import Path
from typing import Any

from workbench.errors import ExportError
from workbench.export.conversion_process import ConversionProcess
from workbench.export.freezing import FrozenGraph
from workbench.export.graph_rewrites import forget_compilation, replace_erfc
from workbench.export.graph_weights import fold_constants, join_weights, split_weights, write_weights
from workbench.files import atomic_path
from workbench.optional import require_backend

CHILD = "workbench.export.tf2onnx_child"
DATA_SUFFIX = ".data"
STEPS = 4

_ENVIRONMENT = {
    # glibc gives each freed weight back to the system and fetches it again; it reads these only when it starts.
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}


class Tf2onnxProcess(ConversionProcess):
    """A child process with TensorFlow and tf2onnx, for one conversion; use it in a `with` block.

    Raises:
        BackendUnavailableError: tf2onnx is not installed.
    """

    def __init__(self) -> None:
        require_backend("tf2onnx", "keras")
        super().__init__(CHILD, _ENVIRONMENT)

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
            self.run({**order, "onnx": str(result), "opset": opset}, bar)
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
