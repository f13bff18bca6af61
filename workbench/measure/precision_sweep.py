"""Run one network in every precision that this machine can: how much accuracy it costs, and how much speed it gives."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from workbench.core.contract import Runner
from workbench.core.errors import BackendUnavailableError, EngineBuildError, ExportError, InputError, ModelError
from workbench.core.files import make_folder
from workbench.measure.accuracy import Exam, Grade, Truth
from workbench.measure.latency import compare_runners
from workbench.measure.memory import measure_memory
from workbench.measure.precision_routes import Route, choose_route
from workbench.measure.precision_table import PrecisionRow, PrecisionTable
from workbench.onnx_graph.file import check
from workbench.pictures.feeds import Feed
from workbench.precision.rounding import Arithmetic, profile_types, rounded_copy

if TYPE_CHECKING:
    from workbench.precision.calibration import Calibration
    from workbench.precision.ranges import Ranges
    from workbench.precision.spec import PrecisionReport

EIGHT_BITS = ("int8", "fp8")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", *EIGHT_BITS)
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "int8": "int8", "fp8": "float8"}
"""The type in which a network of this precision holds its numbers."""

PathLike = str | os.PathLike[str]


def precision_sweep(
    source: PathLike,
    feeds: Iterable[tuple[str, Feed]] | None = None,
    *,
    images: PathLike | None = None,
    preprocess: str = "unit",
    labels: PathLike | Mapping[str, Truth] | None = None,
    precisions: Sequence[str] = PRECISIONS,
    max_miou_drop: float = 0.01,
    calibration: "PathLike | Calibration | None" = None,
    backend: str = "auto",
    plans: bool = True,
    runs: int = 20,
    work_folder: PathLike | None = None,
    progress: bool = True,
) -> PrecisionTable:
    """Convert a network to each precision, judge its answers against float32 and the truth, and time what is real.

    A precision whose arithmetic this machine does not have is simulated, which its row says: every 16-bit result is
    rounded by a cast, 8-bit numbers by their Q/DQ pairs. Such a row has neither time nor memory.

    Args:
        source: a float32 `.onnx` file.
        feeds: (name, arrays by input name) pairs, one picture each; pictures of `images` when None.
        images: a folder of pictures; built-in ones when both are None.
        preprocess: how pictures become inputs, see `workbench.pictures.feeds.make_feeds`.
        labels: the truth: a folder of label maps named as the images are (train ids, 255 is void; Cityscapes' own
            names and ids are understood), or label maps (H, W) or class numbers by the name of the feed.
        precisions: some of `PRECISIONS`; fp32 is always there, and fp16 wherever int8 or fp8 is.
        max_miou_drop: how much of the measure may be lost: of mIoU or top-1 accuracy with `labels`; without them, how
            large a share of pixels or pictures may get another class.
        calibration: scales for 8 bits, or the file of them; measured on the judged pictures when None.
        backend: `"tensorrt"`, `"onnxruntime"`, or `"auto"`: TensorRT where it can run engines.
        plans: also build an engine of each precision, where a builder is installed, for its size.
        runs: how many calls are timed.
        work_folder: keep the converted networks here; they are deleted when None.
        progress: show a bar.
    Returns:
        The table, with one sentence of advice.
    Raises:
        InputError: an unknown precision, a network that is not float32, no image, a label without its image or an
            image without its label, a calibration of another network.
        ModelError: the file is not a whole, valid ONNX model.
        ImageError: an image or a label map cannot be read.
    """
    wanted = _check(source, precisions, max_miou_drop, runs)
    scales = _load(calibration)
    if scales is not None:
        scales.check(source)
    exam = Exam(check(source).inputs, feeds, images, preprocess, labels)
    route = choose_route(backend)
    with _folder(work_folder) as folder:
        sweep = _Sweep(Path(source), exam, route, folder, plans, scales)
        with tqdm(wanted, unit="precision", disable=not progress) as bar:
            for precision in bar:
                bar.set_description(precision)
                sweep.add(precision)
            bar.set_description("time")
            return sweep.finish(max_miou_drop, runs)


@dataclass
class _Entry:
    """One precision on its way into the table.

    Attributes:
        row: what is known so far.
        path: the network in this precision.
        plan: its engine, if one was built.
    """

    row: PrecisionRow
    path: Path
    plan: Path | None = None


@dataclass
class _Sweep:
    """The comparison; two networks are open at a time, until the timing opens all that are real."""

    source: Path
    exam: Exam
    route: Route
    folder: Path
    plans: bool
    calibration: "Calibration | None" = None
    ranges: "dict[str, Ranges]" = field(default_factory=dict)
    entries: list[_Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    grade: Grade | None = None

    def add(self, precision: str) -> None:
        """Convert, build and judge one precision; what cannot run is named with the reason."""
        entry = _Entry(PrecisionRow(precision), self.folder / f"{self.source.stem}_{precision}.onnx")
        self.entries.append(entry)
        self._measure(precision)
        try:
            entry.row = self._converted(entry)
            self._build(entry)
        except (BackendUnavailableError, EngineBuildError, ExportError, InputError) as error:
            if precision == "fp32":
                raise
            entry.row = PrecisionRow(precision, skipped=str(error))
        else:
            self._judge(entry)

    def finish(self, limit: float, runs: int) -> PrecisionTable:
        """Time what is real, in turn, and make the table."""
        real = [entry for entry in self.entries if entry.row.ran and entry.row.real]
        _, feed = next(iter(self.exam))
        with contextlib.ExitStack() as stack:
            runners = {entry.row.precision: stack.enter_context(self._open(entry)) for entry in real}
            timed = compare_runners(runners, feed, runs=runs)
        for entry, row in zip(real, timed.rows, strict=True):
            memory = self.route.memory(entry.plan) if entry.plan and self.route.engines else self._memory(entry, feed)
            entry.row = dataclasses.replace(entry.row, timing=row.timing, memory_bytes=memory)
        measure, against = self.exam.measure(self.grade)
        return PrecisionTable(
            self.source.name, tuple(entry.row for entry in self.entries), measure, against, limit, self.exam.count,
            self.route.planner if any(entry.row.plan_bytes for entry in self.entries) else "",
            (*self.notes, *self.exam.notes), timed.machine, timed.versions, timed.date,
        )  # fmt: skip

    def _converted(self, entry: _Entry) -> PrecisionRow:
        """Write the network in its precision."""
        row = entry.row
        if row.precision == "tf32" and not self.route.has_tf32:
            raise BackendUnavailableError("TF32 is arithmetic of NVIDIA GPUs, and none is used here")
        report = self._convert(row.precision, entry.path)
        if report is None:
            entry.path = self.source
            return dataclasses.replace(row, file_bytes=_file_bytes(self.source))
        return dataclasses.replace(
            row, kept=report.kept, qdq_pairs=report.qdq_pairs, file_bytes=_file_bytes(entry.path)
        )

    def _convert(self, precision: str, out: Path) -> "PrecisionReport | None":
        from workbench.precision.convert import convert
        from workbench.precision.spec import Wanted

        scales = self.calibration if precision in EIGHT_BITS else None
        if precision in EIGHT_BITS and scales is None:
            raise InputError("there is nothing to quantise: no convolution or product of matrices reads float32")
        return convert(self.source, out, Wanted(precision, calibration=scales, ranges=self.ranges.get(precision)))

    def _measure(self, precision: str) -> None:
        """Find what the conversion has to know of the tensors; what is wrong with the pictures is an error here."""
        if precision in EIGHT_BITS and self.calibration is None and self._can_quantise():
            from workbench.precision.calibration import calibrate

            preprocess = self.exam.preprocess or None
            self.calibration = calibrate(self.source, iter(self.exam), preprocess=preprocess, progress=False)
            self.notes.append(
                "The 8-bit scales come from the very images that are judged; calibrate on others for a fair figure."
            )
        if precision == "fp16":
            from workbench.precision.ranges import measure_ranges

            self.ranges[precision] = measure_ranges(self.source, iter(self.exam), progress=False)

    def _can_quantise(self) -> bool:
        from workbench.onnx_graph.file import read
        from workbench.precision.observing import observable

        return bool(observable(read(self.source)))

    def _build(self, entry: _Entry) -> None:
        """Build the engine: for its size, and to run it where engines run."""
        if not (self.route.engines or (self.plans and self.route.planner)):
            return
        try:
            plan = self.route.build(entry.path, entry.row.precision, [name for name, *_ in entry.row.kept])
        except (EngineBuildError, InputError) as error:
            if self.route.engines:
                raise
            entry.row = dataclasses.replace(entry.row, plan_note=str(error))
            return
        entry.plan = plan.save(self.folder / f"{self.source.stem}_{entry.row.precision}.plan")
        entry.row = dataclasses.replace(entry.row, plan_bytes=plan.size)

    def _judge(self, entry: _Entry) -> None:
        """Find out what computes here, and compare the answers with float32's."""
        arithmetic, real, path = self._arithmetic(entry)
        try:
            candidate = self._open(dataclasses.replace(entry, path=path))
        except ModelError as error:
            if entry.row.precision == "fp32":
                raise
            entry.row = PrecisionRow(entry.row.precision, skipped=str(error))
            return
        with candidate, self.route.open_reference(self.source) as reference:
            grade = self.exam.judge(reference, candidate)
            name = candidate.info.name
        if self.grade is None:
            self.grade = grade
        entry.row = dataclasses.replace(
            entry.row, computed_by=name, arithmetic=arithmetic, real=real, **grade.columns(self.exam.has_labels)
        )

    def _arithmetic(self, entry: _Entry) -> tuple[str, bool, Path]:
        """What computes, whether it is the precision's own arithmetic, and the file to judge."""
        precision = entry.row.precision
        if precision == "fp32":
            return "float32", True, entry.path
        if precision == "tf32":
            return "TF32 in heavy layers", True, entry.path
        dtype = DTYPES[precision]
        if self.route.engines:
            return f"{dtype}, by the engine's types", True, entry.path
        found = self._profile(entry.path)
        if found is not None and found.is_mostly(dtype):
            return found.to_text(dtype), True, entry.path
        if precision == "int8":
            some = f"{found.to_text(dtype)}, else " if found is not None and found.count(dtype) else ""
            return f"{some}float32 between Q/DQ pairs", False, entry.path
        rounded = rounded_copy(entry.path, self.folder / f"{self.source.stem}_{precision}_rounded.onnx")
        return f"float32, rounded to {dtype}", False, rounded

    def _profile(self, path: Path) -> Arithmetic | None:
        """What ONNX Runtime computes in; None where it cannot run the file, as bfloat16 on a CPU."""
        _, feed = next(iter(self.exam))
        try:
            return profile_types(path, feed, device=self.route.device)
        except ModelError:
            return None

    def _open(self, entry: _Entry) -> Runner:
        return self.route.open(entry.path, entry.plan, tf32=entry.row.precision == "tf32")

    def _memory(self, entry: _Entry, feed: Feed) -> int | None:
        return measure_memory(entry.path, feed, device=self.route.device)


def _check(source: PathLike, precisions: Sequence[str], limit: float, runs: int) -> list[str]:
    """Refuse what cannot be swept, and put the precisions in order: fp32 first, fp16 beside 8 bits."""
    from workbench.precision.convert import read_precision

    if isinstance(precisions, str):
        raise InputError(f"got precisions={precisions!r}, expected a list such as [{precisions!r}]")
    unknown = [name for name in precisions if name not in PRECISIONS]
    if unknown:
        raise InputError(f"got the precision {unknown[0]!r}, expected some of {', '.join(PRECISIONS)}")
    if not 0 <= limit <= 1:
        raise InputError(f"got max_miou_drop={limit}, expected a share of 0 to 1, such as 0.01 for one point")
    if runs < 1:
        raise InputError(f"got runs={runs}, expected 1 or more")
    if Path(source).suffix.lower() != ".onnx":
        raise InputError(f"got {source}, expected an .onnx file; run workbench convert first")
    found = read_precision(source)
    if found != "fp32":
        raise InputError(f"{source} is in {found} already, expected float32; give the file it was made from")
    wanted = {"fp32", *precisions} | ({"fp16"} if set(EIGHT_BITS) & set(precisions) else set())
    return [name for name in PRECISIONS if name in wanted]


def _load(calibration: "PathLike | Calibration | None") -> "Calibration | None":
    if not isinstance(calibration, str | os.PathLike):
        return calibration
    from workbench.precision.calibration import Calibration

    return Calibration.load(calibration)


def _file_bytes(path: Path) -> int:
    from workbench.onnx_graph.file import external_files

    return sum(file.stat().st_size for file in (path, *external_files(path)))


@contextlib.contextmanager
def _folder(path: PathLike | None) -> Iterator[Path]:
    if path is not None:
        yield make_folder(path)
        return
    with tempfile.TemporaryDirectory(prefix="workbench-precision-") as name:
        yield Path(name)
