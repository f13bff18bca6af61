"""What does it cost, and what does it give: networks in every precision, batch, size and backend, a row for each.

Each point is measured in a process of its own. Its row is written before the next point begins, so that the same call
goes on where an earlier one was interrupted.
"""

import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import TIMEOUT_MAX
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm.auto import tqdm

from workbench.core.driver import probe_driver
from workbench.core.errors import InputError, ModelError, WorkbenchError
from workbench.core.files import check_outputs, make_folder, overwriting
from workbench.core.process import temporary_folder
from workbench.measure.accuracy import Pictures, Truth, gather
from workbench.measure.backends import DEVICES, backend_versions, best_backend, find_builder
from workbench.measure.latency import now
from workbench.measure.point_child import run_child
from workbench.measure.points import Network, prepare
from workbench.measure.row import FAILED, Row, append_row, machine_text
from workbench.measure.rows import Rows, load_rows
from workbench.pictures.feeds import Feed
from workbench.precision.spec import EIGHT_BITS, PRECISIONS, TYPE_OF

if TYPE_CHECKING:
    from workbench.precision.calibration import Calibration

PathLike = str | os.PathLike[str]


class Point(NamedTuple):
    """One thing to measure; the batch and the size are None for the network's own."""

    network: str
    source: Any
    precision: str
    backend: str
    batch: int | None
    size: tuple[int, int] | None


def sweep(
    model: Any,
    *,
    precision: Sequence[str] = ("fp32",),
    batch: Sequence[int | None] = (1,),
    size: Sequence[tuple[int, int] | None] = (None,),
    backend: Sequence[str] = ("onnxruntime",),
    images: PathLike | None = None,
    labels: PathLike | Mapping[str, Truth] | None = None,
    feeds: Iterable[tuple[str, Feed]] | None = None,
    preprocess: str = "unit",
    calibration: "PathLike | Calibration | None" = None,
    limit: float = 0.01,
    pictures: int | None = None,
    runs: int = 20,
    seconds: float = 10,
    timeout_s: float = 600,
    out: PathLike | None = None,
    resume: bool = True,
    retry_failed: bool = False,
    plans: bool = False,
    work_folder: PathLike | None = None,
    progress: bool = True,
) -> Rows:
    """Measure time, memory and answers of every combination, each in a process of its own.

    float32 is always among the precisions: its answers in ONNX Runtime judge the others. A precision whose arithmetic
    this machine does not have is simulated, which its row says: every 16-bit or float8 result is rounded by a cast,
    int8 numbers by their Q/DQ pairs. Such a row has neither time nor memory.

    After Ctrl-C, or when points are added, the same call with the same `out` goes on where it was: a row of the same
    point, network, pictures, machine and versions is not measured again.

    Args:
        model: a float32 `.onnx` file, whatever `workbench.export.conversion.convert` takes, which is converted once, or
            several of them by name.
        precision: some of `workbench.precision.spec.PRECISIONS`.
        batch: pictures in a call, 1 or more; None for what the network fixes, else 1.
        size: (height, width) in pixels; None for the network's own. A network that fixes another size fails.
        backend: `"onnxruntime"`, `"onnxruntime-cuda"`, `"tensorrt"`, `"keras"` (in fp32 only; opens no `.onnx` file),
            or `"auto"`: TensorRT where it can run engines, else ONNX Runtime on the GPU, else on the CPU.
        images: a folder of pictures; built-in ones when None.
        labels: the truth: a folder of label maps named as the images are (train ids, 255 is void; Cityscapes' own
            names and ids are understood), or label maps (H, W) or class numbers by the name of the picture or feed.
        feeds: (name, arrays by input name) pairs of one picture each, instead of `images`.
        preprocess: how pictures become inputs, see `workbench.pictures.feeds.make_feeds`.
        calibration: scales for 8 bits, or the file of them; measured when None, on pictures that are not judged if
            `pictures` leaves enough of them.
        limit: how much of the measure may be lost, 0..1: of mIoU or top-1 accuracy with `labels`; without them, how
            large a share of pixels or pictures may get another class.
        pictures: how many are judged; all when None.
        runs: calls that are timed, fewer (but 5) where they take longer than `seconds`.
        seconds: time for the calls of a point.
        timeout_s: a point that takes longer is ended, and fails.
        out: the file of JSON lines that rows are added to; nothing is written when None.
        resume: False measures every point again.
        retry_failed: measure failed points again.
        plans: also build an engine of each point, where a builder is installed, for its size.
        work_folder: keep the converted networks here; they are deleted when None.
        progress: show a bar.
    Returns:
        The rows, in the order of the points: those that differ only in precision or backend follow each other, so that
        one spell of the machine meets them. Points that failed say why.
    Raises:
        InputError: unknown or empty arguments, pictures and labels that do not belong together, a file that does not
            hold rows; for a single network also what is wrong with it, or with its calibration. A fault of one of
            several networks, of a size, or of a point is the reason of its rows.
        ModelError: a file of a network does not exist.
        OutputError: a file cannot be written.
    """
    networks = dict(model) if isinstance(model, Mapping) else {_name(model): model}
    points = grid(networks, precision, batch, size, backend)
    timing = {"runs": runs, "seconds": seconds}
    _check(points, limit, pictures, {**timing, "timeout_s": timeout_s})
    with overwriting():  # rows are added to the file, if it is one of rows
        check_outputs([out], [*networks.values(), images, labels, calibration], [work_folder])
    there = load_rows(out) if out and Path(out).exists() else ()
    known = {row.key: row for row in there} if resume else {}
    rows = []
    with temporary_folder() as folder:
        judged = gather(folder, feeds, images, preprocess, labels, pictures)
        work = make_folder(work_folder) if work_folder is not None else folder
        single = len(networks) == 1
        running = _Sweep(folder, work, judged, _load(calibration), plans, single, timing, timeout_s)
        for point in (bar := tqdm(points, unit="point", disable=not progress)):
            bar.set_description(f"{point.network} {point.precision}, {point.backend}")
            row = running.start(point)
            done = known.get(row.key)
            unbuilt = plans and done is not None and done.ok and not done.plan_note and row.backend != "keras"
            if done is None or (retry_failed and not done.ok) or (unbuilt and find_builder()):
                done = running.measure(point, row)
                if out is not None:
                    append_row(out, done)
            rows.append(done)
    return Rows(rows, limit)


def grid(
    networks: Mapping[str, Any],
    precisions: Sequence[str],
    batches: Sequence[int | None] = (1,),
    sizes: Sequence[tuple[int, int] | None] = (None,),
    backends: Sequence[str] = ("onnxruntime",),
) -> list[Point]:
    """Make every combination; float32 is always there, and Keras takes part in it only.

    >>> [(point.batch, point.precision) for point in grid({"net": "net.onnx"}, ["fp16"], (1, 8))]
    [(1, 'fp32'), (1, 'fp16'), (8, 'fp32'), (8, 'fp16')]
    """
    allowed = {"precision": (precisions, PRECISIONS), "backend": (backends, ("auto", *DEVICES))}
    for what, (got, known) in allowed.items():
        if isinstance(got, str) or not got:
            raise InputError(f"got {what}={got!r}, expected a list such as [{got or known[0]!r}]")
        unknown = [name for name in got if name not in known]
        if unknown:
            raise InputError(f"got the {what} {unknown[0]!r}, expected some of {', '.join(known)}")
    if not networks or not sizes or not batches or min(batch or 1 for batch in batches) < 1 or 0 in batches:
        raise InputError(
            f"got {len(networks)} networks, batches {list(batches)} and sizes {list(sizes)}, expected at least one of "
            "each, and batches of 1 or more"
        )
    wanted = [name for name in PRECISIONS if name in {"fp32", *precisions}]
    named = dict.fromkeys(best_backend() if name == "auto" else name for name in backends)
    return [
        Point(name, source, precision, backend, batch, size)
        for (name, source), size, batch, precision, backend in itertools.product(
            networks.items(), sizes, batches, wanted, named
        )
        if backend != "keras" or precision == "fp32"
    ]


def _name(model: Any) -> str:
    """What a network is called that has no name in a mapping."""
    if isinstance(model, str | os.PathLike):
        return Path(model).stem
    return str(getattr(model, "name", "") or type(model).__name__)


def _check(points: Sequence[Point], limit: float, pictures: int | None, numbers: Mapping[str, float]) -> None:
    """Refuse wrong numbers, and a mistyped path before hours of rows that all say so."""
    if not 0 <= limit <= 1:
        raise InputError(f"got limit={limit}, expected a share of 0 to 1, such as 0.01 for one point")
    if min(1 if pictures is None else pictures, numbers["runs"]) < 1 or not all(
        0 < number <= TIMEOUT_MAX for number in numbers.values()
    ):
        got = ", ".join(f"{name}={number}" for name, number in numbers.items())
        raise InputError(f"got {got} and pictures={pictures}, expected at least 1 of each, and finite times above 0")
    for point in points:
        named = isinstance(point.source, str | os.PathLike) and Path(point.source).suffix
        if named and not Path(point.source).exists():
            raise ModelError(f"{point.source} does not exist; give the file of a network")


def _load(calibration: "PathLike | Calibration | None") -> "Calibration | None":
    if not isinstance(calibration, str | os.PathLike):
        return calibration
    from workbench.precision.calibration import Calibration

    return Calibration.load(calibration)


@dataclass
class _Sweep:
    """The networks of a sweep in the forms that were needed so far; `single`: there is but one."""

    folder: Path
    work: Path
    pictures: Pictures
    calibration: "Calibration | None"
    plans: bool
    single: bool
    timing: dict[str, float]
    timeout_s: float
    networks: dict[Any, Network | WorkbenchError] = field(default_factory=dict)
    found: dict[Any, dict[str, Any]] = field(default_factory=dict)

    def start(self, point: Point) -> Row:
        """The row of a point before it is measured."""
        found = self._prepare(point)
        known = found if isinstance(found, Network) else None
        gpus = probe_driver().gpus if DEVICES[point.backend] == "cuda" else ()
        height, width = known.size if known else point.size or (None, None)
        given = self.calibration.digest[:12] if self.calibration and point.precision in EIGHT_BITS else ""
        return Row(
            point.network, known.digest if known else "", point.precision, point.backend,
            point.batch or (known and known.batch) or 1, height, width, machine_text(gpus[0].name if gpus else ""),
            backend_versions(point.backend), now(), judged_on=self.pictures.text, calibration=given,
        )  # fmt: skip

    def measure(self, point: Point, row: Row) -> Row:
        """Fill the row; what goes wrong becomes its reason."""
        network = self._prepare(point)
        if self.single and isinstance(network, Network) and point.precision in EIGHT_BITS:
            network.scales()  # what is wrong with the only network's pictures or scales is an error of the whole call
        try:
            if not isinstance(network, Network):
                raise network
            target, columns = network.target(point.precision, point.backend, row.batch)
            row = replace(row, **columns)
            return replace(row, **self._run(network, target, row))
        except WorkbenchError as error:
            reason = str(error)
        except Exception as error:  # one point must not end a sweep that runs all night
            reason = f"unexpected {type(error).__name__}: {error}"
        return replace(row, status=FAILED, reason=reason.replace(f"{self.folder}{os.sep}", ""))

    def _prepare(self, point: Point) -> Network | WorkbenchError:
        """Bring a network into ONNX once; one of several that cannot be is an error of all its points."""
        key = (point.network, point.size)
        if key not in self.networks:
            stem = re.sub(r"[^\w.-]", "_", point.network) + ("_{}x{}".format(*point.size) if point.size else "")
            used = {known.stem for known in self.networks.values() if isinstance(known, Network)}
            stem = f"{stem}_{len(self.networks)}" if stem in used else stem
            try:
                self.networks[key] = prepare(
                    point.source, point.size, stem, self.work, self.pictures, self.calibration, self.plans
                )
            except WorkbenchError as error:
                if self.single and point.size is None:
                    raise
                self.networks[key] = error
        return self.networks[key]

    def _run(self, network: Network, target: Any, row: Row) -> dict[str, Any]:
        """Find out what computes, and run it in a child; what is not timed is the same for every batch, and kept."""
        whole = row.batch == 1 or network.batch is not None
        order = {
            "target": os.fspath(target), "backend": row.backend, "device": DEVICES[row.backend],
            "precision": row.precision, "batch": row.batch, "whole": whole, "reference": str(network.path),
            "first": str(network.first_file(self.folder / "first.npz", whole=whole)),
            "specs": {name: (spec.shape, spec.dtype) for name, spec in network.specs.items()},
            "pictures": asdict(self.pictures), **self.timing,
        }  # fmt: skip
        if row.precision not in TYPE_OF:
            words = "float32" + (", rounded to TF32 in heavy layers" if row.precision == "tf32" else "")
            return {"real": True, "arithmetic": words} | run_child(order, self.timeout_s)
        if row.backend == "tensorrt":
            words = f"{TYPE_OF[row.precision].partition('_')[0]}, by the engine's types"
            return {"real": True, "arithmetic": words} | run_child(order, self.timeout_s)
        key = (network.stem, row.precision, row.backend)
        if key not in self.found:
            rounded = str(self.folder / f"{network.stem}_{row.precision}_rounded.onnx")
            self.found[key] = run_child({**order, "rounded": rounded}, self.timeout_s)
        found = self.found[key]
        return found | run_child(order, self.timeout_s) if found["real"] else found
