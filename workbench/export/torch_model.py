"""PyTorch networks to ONNX with today's exporter, simplified by onnxslim and compared with PyTorch itself."""

import contextlib
import io
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tqdm.auto import tqdm

from workbench.core.compare import ParityReport
from workbench.core.errors import ExportError
from workbench.core.files import atomic_path
from workbench.core.packages import require_backend
from workbench.core.report import Report
from workbench.export.keras_model import check_opset
from workbench.models.torch_file import first_line, is_program, is_script
from workbench.onnx_graph.file import OnnxSummary, check
from workbench.pictures.feeds import Feed
from workbench.runners.compare import compare_runners
from workbench.runners.onnxruntime_runner import OnnxRuntimeRunner
from workbench.runners.torch_runner import TorchRunner

BATCHES = (1, 2, 3)
SCRIPT_OPSET = 17
LARGEST_BYTES = 2_000_000_000
_STEPS = 5
_FIXED = "the batch is fixed, as in the program; torch.export.export(..., dynamic_shapes=...) can leave it open"
_NUMBER = "write x.shape[0] or -1 there instead of a number, or give dynamic_batch=False"


@dataclass(frozen=True)
class TorchExport(Report):
    """What came out of an export: the `.onnx` file `path`, and `summary`, what it holds.

    Attributes:
        report: ONNX Runtime against PyTorch, on the example and on random inputs.
        exported_nodes: how many nodes the exporter wrote; onnxslim left `summary.operators`.
        seconds: of the export and the simplification.
        notes: what the reader should know, such as a batch that is fixed.
    """

    path: Path
    report: ParityReport
    summary: OnnxSummary
    exported_nodes: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Whether the file answers like PyTorch, one sentence."""
        return self.report.verdict

    def _status(self) -> str:
        return "pass" if self.report.passed else "fail"

    def _remarks(self) -> list[str]:
        left = sum(self.summary.operators.values())
        slim = f"onnxslim left {left} of {self.exported_nodes} nodes; {self.seconds:.1f} s"
        return [*self.summary.to_text().splitlines(), slim, *self.notes]

    def _content(self) -> dict[str, Any]:
        return {**super()._content(), "path": str(self.path)}


def torch_to_onnx(
    model: Any,
    example: Any,
    path: str | os.PathLike[str],
    *,
    dynamic_batch: bool = True,
    opset: int | None = None,
    progress: bool = True,
) -> TorchExport:
    """Convert a PyTorch network to ONNX and compare the file with PyTorch itself.

    Args:
        model: a `torch.nn.Module` (left in the mode that it is in), an exported program, whose batch stays as it
            was exported, or a TorchScript module.
        example: the arguments of one call: a tensor or array, a tuple of them, or a dict of them by the name of the
            argument. Axis 0 of the first one is the batch; the other axes are fixed. None for an exported program.
        path: the `.onnx` file to write, whole or not at all.
        dynamic_batch: leave the batch open, under the name `batch`.
        opset: ONNX operator set; None takes the exporter's own.
        progress: show a bar.
    Returns:
        The path, the parity report and what the file holds. A single input is named `input`, a single output
        `output`; several inputs keep the names of the arguments, several outputs their keys, or get numbers.
    Raises:
        InputError: an example that the network does not take, or that holds no tensors; an opset that is none.
        ModelError: the program was exported in training mode.
        ExportError: control flow that depends on the data, an operator without an ONNX form, a batch that the network
            itself fixes, an opset that cannot be written, or more than 2 GB of weights.
        BackendUnavailableError: PyTorch, onnxscript or onnxslim is not installed.
        OutputError: the file cannot be written.
    """
    if opset is not None:
        check_opset("torch", opset)
    require_backend("onnxscript", "torch")
    slim = require_backend("onnxslim", "torch").slim
    with tqdm(total=_STEPS, unit="step", leave=False, disable=not progress) as bar:
        bar.set_description("run PyTorch")
        with TorchRunner(model, example, dynamic_batch=dynamic_batch) as reference:
            _step(bar, "export")
            start = time.perf_counter()
            exported = _export(reference, opset)
            _step(bar, "simplify")
            graph = slim(exported)
            for part in (graph, graph.graph, *graph.graph.node, *graph.graph.input, *graph.graph.output):
                del part.metadata_props[:]  # the exporter's notes hold paths and lines of the source code
            seconds = time.perf_counter() - start
            _step(bar, "write the file")
            with atomic_path(path) as temporary:
                onnx.save(graph, temporary)
                summary = check(temporary)
            _step(bar, "compare")
            report = _compare(reference, Path(path))
            fixed = dynamic_batch and not any(spec.shape[:1] == (None,) for spec in reference.inputs.values())
    return TorchExport(Path(path), report, summary, len(exported.graph.node), seconds, (_FIXED,) if fixed else ())


def make_feeds(reference: TorchRunner, seed: int = 0) -> Iterator[tuple[str, Feed]]:
    """Yield the example, then random inputs like it, in batches of 1, 2 and 3 where the batch is open.

    Random numbers have its mean and spread; integers stay between its smallest and largest, so that an index is valid.
    """
    generator = np.random.default_rng(seed)
    yield "the example", dict(reference.example)
    for batch in BATCHES:
        feed = {}
        for name, spec in reference.inputs.items():
            shape, example = tuple(batch if size is None else size for size in spec.shape), reference.example[name]
            values: np.ndarray
            if example.dtype.kind == "f":
                values = generator.standard_normal(shape) * (float(example.std()) or 1.0) + float(example.mean())
            else:
                values = generator.integers(int(example.min()), int(example.max()) + 1, shape)
            feed[name] = values.astype(example.dtype)
        yield f"random {batch}", feed


def _export(reference: TorchRunner, opset: int | None) -> onnx.ModelProto:
    """Run PyTorch's exporter and check that it wrote what was asked for."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in reference.tensors())
    if size > LARGEST_BYTES:
        raise ExportError(
            f"the network has {size / 1e9:.1f} GB of weights, and one ONNX file holds 2; export its parts"
        )
    try:
        with reference.settled(), _quiet():
            export = _export_script if is_script(reference.model) else _export_model
            graph = export(reference, opset, {"input_names": [*reference.inputs], "output_names": [*reference.outputs]})
    except Exception as error:  # the exporter wraps every cause in errors of its own
        raise ExportError(_explain(error)) from error
    written = next(entry.version for entry in graph.opset_import if entry.domain == "")
    if opset not in (None, written):
        raise ExportError(f"got opset={opset}, and PyTorch wrote {written}; give opset={written} or leave it out")
    _name_batch(graph, reference)
    return graph


def _export_model(reference: TorchRunner, opset: int | None, ends: dict[str, Any]) -> onnx.ModelProto:
    torch = require_backend("torch", "torch")
    batch = torch.export.Dim("batch", min=1)
    open_axes = [{0: batch} if spec.shape and spec.shape[0] is None else {} for spec in reference.inputs.values()]
    count = len(reference.arguments)
    shapes = dict(zip(reference.keywords, open_axes[count:], strict=True)) or tuple(open_axes)
    values = [*reference.arguments, *reference.keywords.values()]
    for index, axes in enumerate(open_axes):
        if axes and values[index].shape[0] == 1:  # `torch.export` takes a size of 1 for a constant
            values[index] = values[index].repeat(2, *[1] * (values[index].dim() - 1))
    keywords = dict(zip(reference.keywords, values[count:], strict=True))
    dynamic_shapes = None if is_program(reference.model) or (count and keywords) else shapes
    options = {"dynamo": True, "verbose": False, "dynamic_shapes": dynamic_shapes, "opset_version": opset, **ends}
    return torch.onnx.export(reference.model, tuple(values[:count]), kwargs=keywords, **options).model_proto


def _export_script(reference: TorchRunner, opset: int | None, ends: dict[str, Any]) -> onnx.ModelProto:
    """TorchScript goes through the exporter of 2018 to 2024, which PyTorch still has, as deprecated."""
    torch = require_backend("torch", "torch")
    arguments, buffer = (*reference.arguments, *reference.keywords.values()), io.BytesIO()
    names = [*reference.inputs.items(), *reference.outputs.items()]
    axes = {name: {0: "batch"} for name, spec in names if spec.shape and spec.shape[0] is None}
    options = {"dynamo": False, "dynamic_axes": axes, "opset_version": opset or SCRIPT_OPSET, **ends}
    torch.onnx.export(reference.model, arguments, buffer, **options)
    return onnx.load_from_string(buffer.getvalue())


def _name_batch(graph: onnx.ModelProto, reference: TorchRunner) -> None:
    """Give the open batch its name, and refuse a graph in which the network fixed it."""
    symbols = set()
    for value in graph.graph.input:
        spec = reference.inputs.get(value.name)
        if spec is None or not spec.shape or spec.shape[0] is not None:
            continue
        first = value.type.tensor_type.shape.dim[0]
        if first.HasField("dim_value"):
            raise ExportError(f"the network fixes the batch to {first.dim_value} in its own code; {_NUMBER}")
        symbols.add(first.dim_param)
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_param = "batch"


def _compare(reference: TorchRunner, path: Path) -> ParityReport:
    try:
        with OnnxRuntimeRunner(path) as candidate:
            return compare_runners(reference, candidate, make_feeds(reference))
    except RuntimeError as error:
        raise ExportError(
            f"{path} was written, but could not be compared: {first_line(error)}; if the network takes one batch size "
            "only, give dynamic_batch=False"
        ) from error


def _explain(error: BaseException) -> str:
    """Say in one sentence what the exporter could not do, where, and what to do."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    names, text = {type(link).__name__ for link in chain}, "\n".join(map(str, chain))
    if "GuardOnDataDependentSymNode" in names or "data-dependent" in text:
        where = re.search(r'File "([^"]+)", line (\d+), in .*\n\s*(.+)', text)
        file, number, code = where.groups() if where else ("", "", "")  # a notebook's cell has a number for a file name
        place = "" if Path(file).stem.isdigit() or file.startswith("<") else f"{Path(file).name}, "
        line = f" ({place}line {number}: {code.strip()})" if where else ""
        return (
            f"the network decides by the values of its data which way to go{line}, and a graph has one way; "
            "use torch.where for a choice between numbers, or torch.cond for one between layers"
        )
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", text)
    if missing:
        return (
            f"PyTorch's exporter has no ONNX form for the operator {missing.group(1)}; compute that part outside of "
            "the network, or write it with other operators"
        )
    if "Constraints violated" in text or "specialized" in text:
        return f"the network fixes the batch in its own code; {_NUMBER}"
    return f"PyTorch's exporter cannot convert the network: {first_line(chain[-1])}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the exporter logs, warns of and prints; what matters is in its errors and in the parity report."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript")]
    levels = [logger.level for logger in loggers]
    held = io.StringIO()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(held), contextlib.redirect_stderr(held):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _step(bar: Any, name: str) -> None:
    bar.update()
    bar.set_description(name)
