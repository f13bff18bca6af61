"""From whatever a reader calls a model to an ONNX file, with a summary in words.

What a name, a path or an option alone can tell is refused before any framework is imported.
"""

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from workbench.core.errors import AnswersDifferError, BackendUnavailableError, ExportError, InputError, ModelError
from workbench.core.files import check_outputs
from workbench.core.time_limit import time_left, time_limit
from workbench.export.keras_model import check_opset, default_opset, keras_to_onnx, tf2onnx_command, write_pb
from workbench.export.tf2onnx_process import STEPS, Tf2onnxProcess
from workbench.models.files import freeze_model, model_kind, open_model, open_tf_keras_model
from workbench.models.tf1_checkpoint import PathLike
from workbench.models.torch_file import TORCH_SUFFIXES, is_torch

if TYPE_CHECKING:
    from workbench.pictures.feeds import Feed

CHECKED = 2
"""Pictures on which what was written is compared with its source."""


def convert(
    source: Any,
    path: PathLike,
    *,
    exporter: str = "tf2onnx",
    spatial: tuple[int, int] | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    opset: int | None = None,
    pb_path: PathLike | None = None,
    feeds: Iterable[tuple[str, "Feed"]] | None = None,
    check: bool = True,
    timeout_s: float | None = None,
    progress: bool = True,
) -> str:
    """Open a model, convert it to ONNX, compare the answers of both, and say what came out.

    Args:
        source: a Keras model, a model file, or a model name. An ONNX file is checked and mended.
        path: the `.onnx` file to write, whole or not at all.
        exporter: `"tf2onnx"`, or `"keras2onnx"` for tf_keras models, see `keras_to_onnx`.
        spatial: (height, width) in pixels for a model that leaves them open.
        inputs: names of the nodes that are fed, for a TensorFlow graph or checkpoint; found when None.
        outputs: names of the nodes that are answers, for the same; found when None.
        opset: ONNX operator set; 17 (15 for keras2onnx) when None.
        pb_path: also keep the frozen graph here.
        feeds: (name, feed) pairs to compare on; two pictures, or random numbers, when None.
        check: run the source and what was written, and compare the answers; False only writes.
        timeout_s: give up after this many seconds; None for no limit. The run of a TensorFlow graph is ended; to open a
            model, and to run one of Keras or PyTorch, is waited for.
        progress: show a bar.
    Returns:
        The summary. Its first line names the file and the verdict; then come inputs, outputs, operators, and the
        equivalent tf2onnx command line. Of an ONNX file: what the new one holds and costs, what was changed and why,
        the proof, and what TensorRT's parser says.
    Raises:
        InputError: `path` does not end in `.onnx`, or options that the source does not take.
        ModelError: the source cannot be opened.
        ExportError: it cannot be converted, or what was written does not load; an AnswersDifferError where it answers
            differently.
        TimeLimitError: it took longer than `timeout_s`; the message names the step.
        BackendUnavailableError: a package is missing, or Keras computes with another framework than TensorFlow.
        OutputError: a file cannot be written.
    """
    if Path(path).suffix.lower() != ".onnx":
        raise InputError(f"got the output file {path}, expected a name that ends in .onnx")
    check_outputs([path, pb_path], [source])
    if feeds is not None:
        from workbench.pictures.feeds import checked_feeds

        feeds = checked_feeds(feeds)
    with time_limit(timeout_s):
        return _convert(source, path, exporter, spatial, inputs, outputs, opset, pb_path, feeds, check, progress)


def _convert(
    source: Any, path: PathLike, exporter: str, spatial: Any, inputs: Any, outputs: Any, opset: int | None,
    pb_path: Any, feeds: Any, check: bool, progress: bool,
) -> str:  # fmt: skip
    """See `convert`."""
    suffix = Path(source).suffix.lower() if isinstance(source, (str, os.PathLike)) else None
    if suffix == ".onnx":
        if spatial is not None or pb_path is not None or opset is not None:
            raise InputError(f"{source} is an ONNX file: it keeps its sizes and opset; leave spatial, opset and pb out")
        return _mend(source, path, feeds, progress)
    frozen_only = bool(inputs or outputs) or pb_path is not None
    if suffix in TORCH_SUFFIXES or is_torch(source):
        if spatial is not None or frozen_only or exporter != "tf2onnx":
            raise InputError(
                "PyTorch writes ONNX itself, and a program keeps its sizes and ends; leave spatial, inputs, outputs, "
                "pb and exporter out"
            )
        return _convert_program(source, path, opset, feeds, check, progress)
    opset = default_opset(exporter, opset)
    if exporter == "keras2onnx":
        if frozen_only:
            raise InputError("keras2onnx makes no frozen graph; leave inputs, outputs and pb out")
        model = open_tf_keras_model(source)
        keras_to_onnx(model, path, exporter=exporter, spatial=spatial, opset=opset, progress=progress)
        return _written(path, _check_answers(model, path, feeds) if check else "")
    if suffix is not None:
        model_kind(source, ends_named=bool(inputs or outputs))
    ends = {"inputs": inputs, "outputs": outputs}
    model, text = _convert_graph(source, path, spatial, ends, opset, pb_path, progress)
    return _written(path, _check_answers(model, path, feeds) if check else "") + text


def _convert_program(source: Any, path: PathLike, opset: int | None, feeds: Any, check: bool, progress: bool) -> str:
    if isinstance(source, (str, os.PathLike)):
        model_kind(source)
    if opset is not None:
        check_opset("torch", opset)
    from workbench.export.torch_model import torch_to_onnx

    program = open_model(source)
    export = torch_to_onnx(program, None, path, opset=opset, progress=progress)
    return _written(path, _check_answers(program, path, feeds) if check else "", export.to_text().rstrip())


def _convert_graph(
    source: Any, path: PathLike, spatial: Any, ends: dict[str, Any], opset: int, pb_path: Any, progress: bool
) -> tuple[Any, str]:
    """Freeze a Keras or TensorFlow network and convert it with tf2onnx, which starts meanwhile.

    The network as it was opened, and the command line that does the same.
    """
    with Tf2onnxProcess() as process, tqdm(total=STEPS + 1, unit="step", leave=False, disable=not progress) as bar:
        bar.set_description("open and freeze the model")
        model = open_model(source, **ends)
        frozen = freeze_model(model, spatial=spatial)
        if pb_path is not None:
            write_pb(frozen, pb_path)
        time_left("open and freeze the model")
        bar.update()
        process.convert(frozen, path, opset=opset, bar=bar)
    graph_file = pb_path or Path(path).with_suffix(".pb")
    command = tf2onnx_command(graph_file, path, frozen.inputs, frozen.outputs, opset=opset)
    kept = "" if pb_path else f" (keep the frozen graph with --pb {graph_file})"
    return model, f"\n\nthe same with tf2onnx itself{kept}:\n{command}"


def _mend(source: Any, path: PathLike, feeds: Any, progress: bool) -> str:
    from workbench.engine.parser import ask_parser
    from workbench.onnx_graph.cost import inspect
    from workbench.onnx_graph.mend import fix

    report = fix(source, path, feeds=feeds, progress=progress)
    answer = ask_parser(path, progress=progress)
    told = f"{inspect(path).to_text()}\n{report.to_text()}\n{answer.to_text()}"
    return _written(path, f"{report.verdict} {answer.verdict}", told)


def _written(path: PathLike, verdict: str, details: str = "") -> str:
    """The summary; its details are what the file holds where nothing else is told."""
    from workbench.onnx_graph.file import check

    return f"written {path}{verdict and f': {verdict}'}\n{details or check(path).to_text()}"


def _check_answers(model: Any, path: PathLike, feeds: Iterable[tuple[str, "Feed"]] | None) -> str:
    """Run the source and what was written on the same inputs; the verdict, or an ExportError where they differ."""
    from workbench.onnx_graph.file import read
    from workbench.onnx_graph.input_values import input_values
    from workbench.pictures.feeds import make_feeds
    from workbench.runners.backends import open_runner
    from workbench.runners.compare import compare_runners, shared_specs

    with open_runner(model) as reference:
        try:
            candidate = open_runner(path)
        except ModelError as error:
            raise ExportError(f"{path} was written, but cannot be used: {error}") from error
        with candidate:
            specs = shared_specs(reference, candidate)
            try:
                made = itertools.islice(make_feeds(specs, known=input_values(read(path))), CHECKED)
                given = list(made if feeds is None else feeds)
            except InputError as error:
                return f"not compared with its source: {error}"
            try:
                report = compare_runners(reference, candidate, given)
            except BackendUnavailableError as error:  # such as bfloat16 on an older processor
                return f"not compared with its source: {error}"
    if report.status == "fail":
        raise AnswersDifferError(
            f"{path} was written, but answers differently: {report.verdict} Find the layer with: workbench verify"
        )
    return report.verdict
