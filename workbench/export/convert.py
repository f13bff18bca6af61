"""From whatever a reader calls a model to an ONNX file, with a summary in words."""

import os
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from workbench.errors import InputError
from workbench.export.keras_model import OPSET, frozen_to_onnx, tf2onnx_command, write_pb
from workbench.export.model_files import freeze_model, open_model
from workbench.export.onnx_graph import check


def convert(
    source: Any,
    path: str | os.PathLike[str],
    *,
    spatial: tuple[int, int] | None = None,
    opset: int = OPSET,
    pb_path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> str:
    """Open a model, convert it to ONNX and say what came out.

    Args:
        source: a Keras model, a model file, or a model name.
        path: the `.onnx` file to write, whole or not at all.
        spatial: (height, width) in pixels for a model that leaves them open.
        opset: ONNX operator set.
        pb_path: also keep the frozen graph here.
        progress: show a bar.
    Returns:
        The summary: inputs, outputs, operators, and the equivalent tf2onnx command line.
    Raises:
        InputError: `path` does not end in `.onnx`, or the source is ONNX already.
        ModelError: the source cannot be opened.
        ExportError: it cannot be converted.
        OutputError: a file cannot be written.
    """
    if Path(path).suffix.lower() != ".onnx":
        raise InputError(f"got the output file {path}, expected a name that ends in .onnx")
    if isinstance(source, (str, os.PathLike)) and Path(source).suffix.lower() == ".onnx":
        raise InputError(f"{source} is an ONNX file already; compare it with: workbench verify MODEL {source}")
    with tqdm(total=5, unit="step", leave=False, disable=not progress) as bar:
        bar.set_description("open and freeze the model")
        frozen = freeze_model(open_model(source), spatial=spatial)
        if pb_path is not None:
            write_pb(frozen, pb_path)
        bar.update()
        frozen_to_onnx(frozen, path, opset=opset, bar=bar)
    graph_file = pb_path or Path(path).with_suffix(".pb")
    command = tf2onnx_command(graph_file, path, frozen.inputs, frozen.outputs, opset=opset)
    kept = "" if pb_path else f" (keep the frozen graph with --pb {graph_file})"
    return f"{check(path).to_text()}\nwritten {path}\n\nthe same with tf2onnx itself{kept}:\n{command}"
