"""Keras 3 models, tf_keras models and frozen TensorFlow graphs to ONNX, through tf2onnx or keras2onnx.

A model is frozen in the caller's process, so layers defined in a notebook work; only the frozen
graph goes to a child process for the conversion, so a crash or a Ctrl-C there leaves nothing behind.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from workbench.core.errors import ExportError, InputError
from workbench.core.files import atomic_path, check_outputs
from workbench.export.tf2onnx_process import STEPS, Tf2onnxProcess
from workbench.models.freezing import FrozenGraph, freeze
from workbench.models.tf1_checkpoint import PathLike, open_checkpoint
from workbench.models.tf1_graph import fix_size, take_channels_first

OPSET = 17
EXPORTERS = {"tf2onnx": OPSET, "keras2onnx": 15}
"""Each exporter, and the opset that it writes when none is asked for."""

OPSETS = {"tf2onnx": (7, 18), "keras2onnx": (7, 15), "torch": (7, 23)}
"""The first and the last opset that tf2onnx 1.17, keras2onnx 1.7 and PyTorch 2.13 write."""


def keras_to_onnx(
    model: Any,
    path: PathLike,
    *,
    exporter: str = "tf2onnx",
    spatial: tuple[int, int] | None = None,
    opset: int | None = None,
    progress: bool = True,
) -> Path:
    """Convert a Keras model to ONNX: batch dynamic, height and width fixed.

    Args:
        model: a Keras 3 or tf_keras model whose input shapes are known.
        path: the `.onnx` file to write, whole or not at all; weights of more than 1 GiB go to `<path>.data`.
        exporter: `"tf2onnx"`, or `"keras2onnx"` for tf_keras models: the original tutorial's, for comparison.
        spatial: (height, width) in pixels for a model that leaves them open.
        opset: ONNX operator set; when None 17 (15 for keras2onnx), which give the cleanest graphs.
        progress: show a bar.
    Returns:
        The path. A single input is named `input`, a single output `output`, several keep their
        Keras names; the first dimension of each is named `batch`.
    Raises:
        InputError: an opset that the exporter does not write.
        ExportError: the model cannot be frozen or converted; the message names the reason.
        OutputError: the file cannot be written.
    """
    opset = default_opset(exporter, opset)
    with tqdm(total=STEPS + 1, unit="step", leave=False, disable=not progress) as bar:
        if exporter == "keras2onnx":
            from workbench.export.keras2onnx_exporter import keras2onnx_to_onnx

            return keras2onnx_to_onnx(model, path, spatial=spatial, opset=opset, bar=bar)
        bar.set_description("freeze the model")
        with Tf2onnxProcess() as process:
            frozen = freeze(model, spatial=spatial)
            bar.update()
            return process.convert(frozen, path, opset=opset, bar=bar)


def default_opset(exporter: str, opset: int | None = None) -> int:
    """Return the opset asked for, or the one that this exporter writes best.

    ExportError for an unknown exporter; InputError for an opset that it does not write.
    """
    if exporter not in EXPORTERS:
        raise ExportError(f"got exporter={exporter!r}, expected one of {', '.join(EXPORTERS)}")
    return EXPORTERS[exporter] if opset is None else check_opset(exporter, opset)


def check_opset(exporter: str, opset: int) -> int:
    """Return an opset that this key of `OPSETS` writes; InputError for any other."""
    first, last = OPSETS[exporter]
    if type(opset) is not int or not first <= opset <= last:
        raise InputError(f"got opset={opset!r}, expected {first} to {last}, which {exporter} writes; leave it out")
    return opset


def keras_to_pb(
    model: Any, path: PathLike, *, spatial: tuple[int, int] | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Freeze a Keras model to a TensorFlow `.pb` graph, the tutorial's first step.

    Args:
        model: a Keras 3 or tf_keras model whose input shapes are known.
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


def write_pb(frozen: FrozenGraph, path: PathLike) -> None:
    """Write a frozen graph to a `.pb` file, whole or not at all."""
    with atomic_path(path) as temporary:
        try:
            temporary.write_bytes(frozen.graph_def.SerializeToString())
        except ValueError as error:
            text = "the frozen graph is larger than the 2 GB a .pb file can hold; use a smaller network"
            raise ExportError(text) from error


def pb_to_onnx(
    pb_path: PathLike,
    onnx_path: PathLike,
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
        InputError: an opset that tf2onnx does not write.
        ModelError: `pb_path` is not a frozen graph.
        ExportError: an operator cannot be converted; the message names it.
        OutputError: the file cannot be written.
    """
    from workbench.models.files import read_frozen_graph

    check_outputs([onnx_path], [pb_path])
    check_opset("tf2onnx", opset)
    frozen = read_frozen_graph(pb_path, inputs, outputs)
    with tqdm(total=STEPS, unit="step", leave=False, disable=not progress) as bar:
        return frozen_to_onnx(frozen, onnx_path, opset=opset, bar=bar)


def tf2onnx_command(
    pb_path: PathLike, onnx_path: PathLike, inputs: Sequence[str], outputs: Sequence[str], *, opset: int = OPSET
) -> str:
    """Return the tf2onnx command line that does what `pb_to_onnx` does, but for its names and repairs."""
    tensors = [",".join(f"{name}:0" for name in names) for names in (inputs, outputs)]
    command = ["python", "-m", "tf2onnx.convert", "--graphdef", str(pb_path), "--output", str(onnx_path)]
    command += ["--inputs", tensors[0], "--outputs", tensors[1], "--opset", str(opset)]
    command += ["--rename-inputs", ",".join(inputs), "--rename-outputs", ",".join(outputs)]
    return shlex.join(command)


def frozen_to_onnx(frozen: FrozenGraph, path: PathLike, *, opset: int = OPSET, bar: Any = None) -> Path:
    """Convert a frozen graph in a child process and check the result, see `Tf2onnxProcess.convert`."""
    with Tf2onnxProcess() as process:
        return process.convert(frozen, path, opset=opset, bar=bar)


def checkpoint_to_onnx(
    path: PathLike,
    onnx_path: PathLike,
    *,
    outputs: Sequence[str] | None = None,
    inputs: Sequence[str] | None = None,
    spatial: tuple[int, int] | None = None,
    inputs_as_nchw: bool = False,
    opset: int = OPSET,
    progress: bool = True,
) -> Path:
    """Convert a TensorFlow 1 checkpoint to ONNX.

    Args:
        path: as for `open_checkpoint`.
        onnx_path: the `.onnx` file to write, whole or not at all.
        outputs: as for `open_checkpoint`.
        inputs: as for `open_checkpoint`.
        spatial: (height, width) in pixels for a graph that leaves them open.
        inputs_as_nchw: let picture inputs be (N, C, H, W) although the network was built for (N, H, W, C).
        opset: ONNX operator set.
        progress: show a bar.
    Returns:
        `onnx_path`; its inputs and outputs have the names of the TensorFlow nodes.
    Raises:
        ModelError: as for `open_checkpoint`.
        ExportError: an operator cannot be converted; the message names it.
        OutputError: the file cannot be written.
    """
    frozen = open_checkpoint(path, outputs, inputs)
    if spatial:
        fix_size(frozen.graph_def, frozen.inputs, spatial)
    if inputs_as_nchw:
        take_channels_first(frozen.graph_def, frozen.inputs)
    with tqdm(total=STEPS, unit="step", leave=False, disable=not progress) as bar:
        return frozen_to_onnx(frozen, onnx_path, opset=opset, bar=bar)
