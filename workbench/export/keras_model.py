"""Keras 3 models, SavedModels and frozen TensorFlow graphs to ONNX, through tf2onnx's public functions.

A model is frozen in the caller's process, so layers defined in a notebook work; only the frozen
graph goes to a child process for the conversion, so a crash or a Ctrl-C there leaves nothing behind.
"""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from workbench.environment import load_tensorflow
from workbench.errors import ExportError
from workbench.files import atomic_path
from workbench.optional import require_backend

OPSET = 17
_CHILD_STEPS = 4


@dataclass(frozen=True)
class FrozenGraph:
    """A TensorFlow GraphDef without variables, and the names of the tensors that go in and out."""

    graph_def: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def keras_to_onnx(
    model: Any,
    path: str | os.PathLike[str],
    *,
    exporter: str = "tf2onnx",
    spatial: tuple[int, int] | None = None,
    opset: int = OPSET,
    progress: bool = True,
) -> Path:
    """Convert a Keras model to ONNX: batch dynamic, height and width fixed.

    Args:
        model: a Keras 3 model whose input shapes are known.
        path: the `.onnx` file to write, whole or not at all.
        exporter: only `"tf2onnx"`.
        spatial: (height, width) in pixels for a model that leaves them open.
        opset: ONNX operator set; 17 gives the cleanest graph.
        progress: show a bar.
    Returns:
        The path. A single input is named `input`, a single output `output`, several keep their
        Keras names; the first dimension of each is named `batch`.
    Raises:
        ExportError: the model cannot be frozen or converted; the message names the reason.
        OutputError: the file cannot be written.
    """
    if exporter != "tf2onnx":
        raise ExportError(f"got exporter={exporter!r}, expected 'tf2onnx'")
    with _bar(progress, _CHILD_STEPS + 1) as bar:
        bar.set_description("freeze the model")
        frozen = freeze(model, spatial=spatial)
        bar.update()
        return frozen_to_onnx(frozen, path, opset=opset, bar=bar)


def keras_to_pb(
    model: Any, path: str | os.PathLike[str], *, spatial: tuple[int, int] | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Freeze a Keras model to a TensorFlow `.pb` graph, the tutorial's first step.

    Args:
        model: a Keras 3 model whose input shapes are known.
        path: the `.pb` file to write, whole or not at all.
        spatial: (height, width) in pixels for a model that leaves them open.
    Returns:
        (input_names, output_names) of the graph.
    Raises:
        ExportError: the model cannot be frozen.
        OutputError: the file cannot be written.
    """
    frozen = freeze(model, spatial=spatial)
    write_pb(frozen, path)
    return frozen.inputs, frozen.outputs


def write_pb(frozen: FrozenGraph, path: str | os.PathLike[str]) -> None:
    """Write a frozen graph to a `.pb` file, whole or not at all."""
    with atomic_path(path) as temporary:
        _write_graph(frozen, temporary)


def pb_to_onnx(
    pb_path: str | os.PathLike[str],
    onnx_path: str | os.PathLike[str],
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    opset: int = OPSET,
    progress: bool = True,
) -> Path:
    """Convert a frozen TensorFlow graph to ONNX, the tutorial's second step.

    Args:
        pb_path: a binary GraphDef.
        onnx_path: the `.onnx` file to write, whole or not at all.
        inputs: names of the graph's inputs; its placeholders when None.
        outputs: names of its outputs; the nodes that nothing reads when None.
        opset: ONNX operator set.
        progress: show a bar.
    Returns:
        `onnx_path`.
    Raises:
        ModelError: `pb_path` is not a frozen graph.
        ExportError: an operator cannot be converted; the message names it.
        OutputError: the file cannot be written.
    """
    from workbench.export.model_files import read_frozen_graph

    frozen = read_frozen_graph(pb_path, inputs, outputs)
    with _bar(progress, _CHILD_STEPS) as bar:
        return frozen_to_onnx(frozen, onnx_path, opset=opset, bar=bar)


def tf2onnx_command(
    pb_path: str | os.PathLike[str],
    onnx_path: str | os.PathLike[str],
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    opset: int = OPSET,
) -> str:
    """Return the tf2onnx command line that does what `pb_to_onnx` does, but for the batch name and the Resize fix."""
    tensors = [",".join(f"{name}:0" for name in names) for names in (inputs, outputs)]
    command = ["python", "-m", "tf2onnx.convert", "--graphdef", str(pb_path), "--output", str(onnx_path)]
    command += ["--inputs", tensors[0], "--outputs", tensors[1], "--opset", str(opset)]
    command += ["--rename-inputs", ",".join(inputs), "--rename-outputs", ",".join(outputs)]
    return shlex.join(command)


def tensor_names(model: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names that a Keras model's inputs and outputs get in ONNX and in every runner.

    A single one is `input` or `output`; several keep the names of their Keras layers.

    Raises:
        ExportError: the model was never built, so it has no inputs.
    """
    if not getattr(model, "inputs", None):
        raise ExportError(
            f"the model {getattr(model, 'name', type(model).__name__)!r} has no input shapes yet; "
            "call it once on a batch, or build it with keras.Input, then convert it"
        )
    inputs = _clean([tensor.name for tensor in model.inputs], "input")
    return inputs, _clean(list(getattr(model, "output_names", ())) or [t.name for t in model.outputs], "output")


def freeze(model: Any, *, spatial: tuple[int, int] | None = None) -> FrozenGraph:
    """Turn a Keras model into a GraphDef whose weights are constants.

    Args:
        model: a Keras 3 model whose input shapes are known.
        spatial: (height, width) in pixels for a model that leaves them open.
    Raises:
        ExportError: unknown input shapes, or a forward pass that TensorFlow cannot trace.
    """
    tf = load_tensorflow()
    inputs, outputs = tensor_names(model)
    specs = [
        tf.TensorSpec(_fixed_shape(name, tuple(tensor.shape), spatial), tensor.dtype, name=name)
        for name, tensor in zip(inputs, model.inputs, strict=True)
    ]

    def forward(*tensors: Any) -> Any:
        answer = model(tensors[0] if len(tensors) == 1 else list(tensors), training=False)
        return tf.nest.flatten(answer)

    try:
        function = tf.function(forward, autograph=False).get_concrete_function(*specs)
    except Exception as error:
        raise ExportError(f"TensorFlow cannot trace {model.name!r}: {_first_line(error)}") from error
    return freeze_function(function, inputs, outputs)


def freeze_function(function: Any, inputs: Sequence[str], outputs: Sequence[str]) -> FrozenGraph:
    """Replace a concrete function's variables by constants and give its ends the names asked for.

    Args:
        function: a TensorFlow ConcreteFunction.
        inputs: new names, in the order of its placeholders.
        outputs: new names, in the order of its flat outputs.
    """
    module = require_backend("tensorflow.python.framework.convert_to_constants", "keras")
    frozen = module.convert_variables_to_constants_v2(function, lower_control_flow=False, aggressive_inlining=True)
    graph_def = frozen.graph.as_graph_def(add_shapes=True)
    old = [tensor.name.split(":")[0] for tensor in (*frozen.inputs, *frozen.outputs)]
    renames = dict(zip(old, (*inputs, *outputs), strict=True))
    for node in graph_def.node:
        node.name = renames.get(node.name, node.name)
        for index, name in enumerate(node.input):
            node.input[index] = renames.get(name, name)
    return FrozenGraph(graph_def, tuple(inputs), tuple(outputs))


def frozen_to_onnx(frozen: FrozenGraph, path: str | os.PathLike[str], *, opset: int = OPSET, bar: Any = None) -> Path:
    """Convert a frozen graph in a child process and check the result.

    Args:
        frozen: the graph.
        path: the `.onnx` file to write, whole or not at all.
        opset: ONNX operator set.
        bar: a tqdm bar to move, four steps.
    Raises:
        ExportError: tf2onnx failed, or an operator has no ONNX counterpart.
        OutputError: the file cannot be written.
    """
    require_backend("tf2onnx", "keras")
    with atomic_path(path) as temporary, tempfile.TemporaryDirectory() as folder:
        pb_path = Path(folder) / "model.pb"
        _write_graph(frozen, pb_path)
        names = [",".join(frozen.inputs), ",".join(frozen.outputs)]
        command = [
            sys.executable,
            "-m",
            "workbench.export.tf2onnx_child",
            pb_path,
            temporary,
            *names,
            str(opset),
        ]
        _run_child([str(part) for part in command], bar)
    return Path(path)


def _run_child(command: list[str], bar: Any) -> None:
    """Run the conversion; each line it prints is a step, the last lines of its errors are the reason."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        try:
            assert child.stdout is not None
            for line in child.stdout:
                if bar is not None and line.startswith("step: "):
                    bar.set_description(line.removeprefix("step: ").strip())
                    bar.update()
            status = child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise
        errors.seek(0)
        if status:
            raise ExportError(_child_failure(status, errors.read()))


def _child_failure(status: int, log: str) -> str:
    for line in reversed(log.splitlines()):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    if status < 0:
        return f"the conversion was killed by signal {-status}; free some memory or convert a smaller network"
    return f"the conversion ended with status {status}: {log.strip().splitlines()[-1] if log.strip() else 'no message'}"


def _write_graph(frozen: FrozenGraph, path: Path) -> None:
    try:
        path.write_bytes(frozen.graph_def.SerializeToString())
    except ValueError as error:
        raise ExportError(
            "the frozen graph is larger than the 2 GB a .pb file can hold; use a smaller network"
        ) from error


def _fixed_shape(name: str, shape: tuple[int | None, ...], spatial: tuple[int, int] | None) -> list[int | None]:
    """Keep the batch open, fill open heights and widths of a picture from `spatial`."""
    batch, *rest = shape
    if len(shape) != 4:
        return [batch, *rest]
    unknown = [axis for axis, size in enumerate(rest) if size is None]
    if unknown and spatial is None:
        raise ExportError(f"{name} is {shape}: its height and width are open; give spatial=(height, width)")
    if len(unknown) > 2 or len(unknown) == 1:
        raise ExportError(f"{name} is {shape}, expected an input whose height and width are both open or both fixed")
    for axis, size in zip(unknown, spatial or (), strict=False):
        rest[axis] = size
    if spatial and not unknown and list(spatial) not in (rest[:2], rest[1:]):
        raise ExportError(f"{name} is fixed to {shape}, got spatial={spatial}; build the model for that size instead")
    return [batch, *rest]


def _clean(names: list[str], single: str) -> tuple[str, ...]:
    """Make names that ONNX, TensorFlow and file systems all accept, without doubles."""
    if len(names) == 1:
        return (single,)
    cleaned: list[str] = []
    for name in names:
        name = re.sub(r"[^A-Za-z0-9_]", "_", name.split(":")[0])
        cleaned.append(name if name not in cleaned else f"{name}_{len(cleaned)}")
    return tuple(cleaned)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextlib.contextmanager
def _bar(progress: bool, steps: int) -> Iterator[Any]:
    with tqdm(total=steps, disable=not progress, unit="step", leave=False) as bar:
        yield bar
