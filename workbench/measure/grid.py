"""Measure a grid of networks, precisions, batches, sizes and backends into one file that can be taken up again."""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from workbench.core.driver import probe_driver
from workbench.core.errors import InputError, ModelError, WorkbenchError
from workbench.core.files import make_folder
from workbench.core.packages import package_version
from workbench.measure.networks import Prepared, prepare
from workbench.measure.point_child import run_child
from workbench.measure.rows import (
    FAILED,
    Row,
    append_row,
    describe_machine,
    describe_versions,
    load_rows,
    now,
    relative_l2,
)
from workbench.precision.spec import PRECISIONS, TYPE_OF

DEVICES = {"onnxruntime": "cpu", "onnxruntime-cuda": "cuda", "keras": "cpu", "tensorrt": "cuda"}
"""The backends, and where each one's memory is measured."""

BACKENDS = tuple(DEVICES)

PathLike = str | os.PathLike[str]
Answers = dict[str, np.ndarray]


@dataclass(frozen=True)
class Point:
    """One thing to measure; `grid` makes them.

    Attributes:
        network: its name in the rows.
        source: an `.onnx` file, or what `workbench.export.conversion` takes.
        precision: one of `PRECISIONS`.
        backend: one of `BACKENDS`.
        batch: pictures in a call.
        size: (height, width) in pixels; None for the network's own.
    """

    network: str
    source: Any
    precision: str
    backend: str
    batch: int
    size: tuple[int, int] | None


def grid(
    networks: Mapping[str, Any],
    precisions: Sequence[str] = ("fp32",),
    batches: Sequence[int] = (1,),
    sizes: Sequence[tuple[int, int] | None] = (None,),
    backends: Sequence[str] = ("onnxruntime",),
) -> list[Point]:
    """Make every combination.

    Args:
        networks: name to source: an `.onnx` file in float32, a Keras model or its file, or a model's name.
        precisions: some of `PRECISIONS`.
        batches: pictures in a call, 1 or more.
        sizes: (height, width) in pixels; None for the network's own. A network that fixes another size fails.
        backends: some of `BACKENDS`; `"keras"` takes part in fp32 only, and opens no `.onnx` file.
    Returns:
        The points; those that differ only in precision or backend follow each other, so that one spell of the
        machine meets them.
    Raises:
        InputError: an empty or unknown entry.

    >>> [(point.batch, point.precision) for point in grid({"net": "net.onnx"}, ("fp32", "fp16"), (1, 8))]
    [(1, 'fp32'), (1, 'fp16'), (8, 'fp32'), (8, 'fp16')]
    """
    for what, got, known in (("precisions", precisions, PRECISIONS), ("backends", backends, BACKENDS)):
        if isinstance(got, str) or not got or not set(got) <= set(known):
            raise InputError(f"got {what}={got!r}, expected a list of some of {', '.join(known)}")
    if not networks or not sizes or not batches or min(batches) < 1:
        raise InputError(
            f"got {len(networks)} networks, batches {list(batches)} and sizes {list(sizes)}, expected at least one of "
            "each, and batches of 1 or more"
        )
    combinations = itertools.product(networks.items(), sizes, batches, precisions, backends)
    return [
        Point(name, source, precision, backend, batch, size)
        for (name, source), size, batch, precision, backend in combinations
        if backend != "keras" or precision == "fp32"
    ]


def run_grid(
    points: Sequence[Point],
    out: PathLike,
    *,
    images: PathLike | None = None,
    preprocess: str = "unit",
    pictures: int = 4,
    runs: int = 20,
    seconds: float = 10,
    timeout_s: float = 600,
    resume: bool = True,
    retry_failed: bool = False,
    progress: bool = True,
) -> list[Row]:
    """Measure each point in a process of its own, and write its row before the next one begins.

    After Ctrl-C, or when points are added, the same call goes on where it was: a row of the same point, network,
    machine and versions is not measured again.

    Args:
        points: from `grid`.
        out: the file of JSON lines; rows are added to it.
        images: a folder of pictures; built-in ones when None.
        preprocess: how pictures become inputs, see `workbench.pictures.feeds.make_feeds`.
        pictures: how many are judged; 8 bits are calibrated on others where there are more.
        runs: calls that are timed, fewer (but 5) where they take longer than `seconds`.
        seconds: time for the calls of a point.
        timeout_s: a point that takes longer is ended, and fails.
        resume: False measures every point again.
        retry_failed: measure failed points again.
        progress: show a bar.
    Returns:
        The rows of these points, in their order; those that failed say why.
    Raises:
        InputError: no points, wrong counts, or a file that does not hold rows.
        ModelError: a file of a network does not exist; any other fault of a network is the reason of its rows.
        OutputError: the file cannot be written.
    """
    if not points or min(pictures, runs) < 1 or min(seconds, timeout_s) <= 0:
        raise InputError(f"got {len(points)} points, pictures={pictures}, runs={runs}, seconds={seconds} and "
                         f"timeout_s={timeout_s}, expected at least 1 of each, and times above 0")  # fmt: skip
    _check_sources(points)
    known = {row.key: row for row in load_rows(out)} if resume and Path(out).exists() else {}
    make_folder(Path(out).parent)
    rows = []
    with _Sweep(images, preprocess, pictures, runs, seconds, timeout_s) as sweep:
        for point in (bar := tqdm(points, unit="point", disable=not progress)):
            bar.set_description(f"{point.network} {point.precision} batch {point.batch}, {point.backend}")
            row = sweep.start(point)
            done = known.get(row.key)
            if done is None or (retry_failed and not done.ok):
                done = sweep.measure(point, row)
                append_row(out, done)
            rows.append(done)
    return rows


def _check_sources(points: Sequence[Point]) -> None:
    """Refuse a mistyped path before hours of rows that all say so."""
    for point in points:
        named = isinstance(point.source, str | os.PathLike) and Path(point.source).suffix
        if named and not Path(point.source).exists():
            raise ModelError(f"{point.source} does not exist; give the file of a network")


class _Sweep:
    """The networks of a grid in the forms that were needed so far, in a folder that is gone at the end."""

    def __init__(
        self, images: PathLike | None, preprocess: str, pictures: int, runs: int, seconds: float, timeout_s: float
    ) -> None:
        self._feeds = (images, preprocess, pictures)
        self._timing = {"runs": runs, "seconds": seconds}
        self._timeout_s = timeout_s
        self._prepared: dict[Any, Prepared | WorkbenchError] = {}
        self._untimed: dict[Any, tuple[dict[str, Any], Answers]] = {}
        self._known: dict[Any, dict[str, Any]] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "_Sweep":
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="workbench-sweep-")))
        return self

    def __exit__(self, *details: Any) -> None:
        self._stack.close()

    def start(self, point: Point) -> Row:
        """The row of a point before it is measured."""
        found = self._prepare(point)
        known = found if isinstance(found, Prepared) else None
        height, width = known.size if known else point.size or (None, None)
        gpus = probe_driver().gpus if point.backend in ("onnxruntime-cuda", "tensorrt") else ()
        return Row(
            point.network, known.digest if known else "", point.precision, point.backend, point.batch, height, width,
            describe_machine(gpus[0].name if gpus else ""), _versions(point.backend), now(),
        )  # fmt: skip

    def measure(self, point: Point, row: Row) -> Row:
        """Fill the row; what goes wrong becomes its reason."""
        try:
            network = self._prepare(point)
            if not isinstance(network, Prepared):
                raise network
            if network.batch not in (None, point.batch):
                raise InputError(f"the network takes batches of {network.batch} only; export it with an open batch")
            target, note = network.target(point.precision, point.backend, point.batch)
            how = self._arithmetic(network, target, point)
            columns, answers = self._run(network, how.pop("judged"), point, timed=how["real"])
            row = replace(row, **how, **columns, note=note, file_mib=_mebibytes(target))
            return judge(row, *self._reference(network), answers)
        except WorkbenchError as error:
            reason = str(error)
        except Exception as error:  # one point must not end a grid that runs all night
            reason = f"unexpected {type(error).__name__}: {error}"
        return replace(row, status=FAILED, reason=reason.replace(f"{self._folder}{os.sep}", ""))

    def _prepare(self, point: Point) -> Prepared | WorkbenchError:
        """Bring a network into ONNX once; a network that cannot be is an error of all its points."""
        key = (point.network, point.size)
        if key not in self._prepared:
            folder = make_folder(self._folder / f"{len(self._prepared)}")
            try:
                self._prepared[key] = prepare(point.source, point.size, folder, *self._feeds)
            except WorkbenchError as error:
                self._prepared[key] = error
        return self._prepared[key]

    def _arithmetic(self, network: Prepared, target: Any, point: Point) -> dict[str, Any]:
        """What computes there, whether that is the precision's own arithmetic, and the file that gives the answers."""
        if point.precision not in TYPE_OF:
            tf32 = ", rounded to TF32 in heavy layers" if point.precision == "tf32" else ""
            return {"real": True, "arithmetic": f"float32{tf32}", "judged": target}
        if point.backend == "tensorrt":
            words = f"{TYPE_OF[point.precision]}, by the engine's types"
            return {"real": True, "arithmetic": words, "judged": target}
        key = (network.pictures, target, point.backend)
        if key not in self._known:
            request = {"target": str(target), "device": DEVICES[point.backend], "precision": point.precision,
                       "batch": point.batch, "pictures": str(network.pictures),
                       "rounded": str(network.folder / f"{point.backend}_{point.precision}_rounded.onnx")}  # fmt: skip
            self._known[key] = run_child(request, self._timeout_s)
        return dict(self._known[key])

    def _reference(self, network: Prepared) -> tuple[str, Answers]:
        """Name of what gives the float32 answers, and these."""
        point = Point("", None, "fp32", "onnxruntime", network.batch or 1, None)
        columns, answers = self._run(network, network.path, point, timed=False)
        return f"float32, {columns['runner']}", answers

    def _run(self, network: Prepared, target: Any, point: Point, *, timed: bool) -> tuple[dict[str, Any], Answers]:
        """Run a point in a child; answers that are not timed are the same for every batch, and kept."""
        key = (network.pictures, target, point.backend)
        if not timed and key in self._untimed:
            return self._untimed[key]
        file = network.folder / "answers.npz"
        request = {"target": str(target), "backend": point.backend, "device": DEVICES[point.backend],
                   "tf32": point.precision == "tf32", "batch": point.batch, "timed": timed, "answers": str(file),
                   "pictures": str(network.pictures), **self._timing}  # fmt: skip
        columns = run_child(request, self._timeout_s)
        with np.load(file) as loaded:
            found = columns, {name: loaded[name] for name in loaded.files}
        return found if timed else self._untimed.setdefault(key, found)


def judge(row: Row, against: str, expected: Mapping[str, np.ndarray], answers: Mapping[str, np.ndarray]) -> Row:
    """Add the error of the answers to a row.

    Args:
        row: with everything else.
        against: what gave `expected`.
        expected: float32's answers by output name, one for each picture.
        answers: those of the row; under other names they are compared in their order.
    """
    ordered = [answers[name] for name in expected] if set(expected) == set(answers) else list(answers.values())
    shapes = [[array.shape for array in arrays] for arrays in (expected.values(), ordered)]
    if shapes[0] != shapes[1]:
        return replace(row, status=FAILED, reason=f"the answers are {shapes[1]}, those of float32 {shapes[0]}")
    bad = sum(int((~np.isfinite(array)).sum()) for array in ordered if array.dtype.kind == "f")
    if bad:
        total = sum(array.size for array in ordered)
        return replace(row, status=FAILED, reason=f"{bad:,} of {total:,} answers are NaN or infinite")
    return replace(row, error=float(f"{relative_l2(expected.values(), ordered):.5g}"), error_against=against)


def _mebibytes(target: Any) -> float | None:
    """Size of a file or of a folder's files; None for a model's name."""
    path = Path(target)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return float(f"{sum(file.stat().st_size for file in files) / 2**20:.5g}") if files else None


def _versions(backend: str) -> str:
    packages = {"keras": ("tensorflow", "keras"), "tensorrt": ("onnx", "tensorrt", "tensorrt-rtx")}
    names = packages.get(backend, ("onnx", "onnxruntime", "onnxruntime-gpu"))
    found = {name: package_version(name) for name in names}
    return describe_versions(**{name: version for name, version in found.items() if version})
