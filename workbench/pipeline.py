"""Segment a folder of images: decode, resize, infer, colour and write, several images at a time."""

import contextlib
import errno
import io
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from tqdm.auto import tqdm

from workbench.cityscapes import color_map, train_ids_to_ids
from workbench.errors import ImageError, InputError, OutputError
from workbench.files import atomic_path, make_folder
from workbench.images import IMAGE_SUFFIXES, list_images, load_image
from workbench.runners import Runner
from workbench.street_network import open_street_network, segment_image

SAVES = {"color": ".png", "overlay": ".jpg", "trainids": ".png", "labelids": ".png"}
"""What can be written, and in which format: photographs as JPEG, label maps and flat colours without loss."""

SHOWN_FAILURES = 20
"""How many bad images a report lists in words; `FolderReport.failed` has all of them."""

_LAST_BYTES = {".png": b"IEND\xaeB`\x82", ".jpg": b"\xff\xd9"}
_STOPS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # the next image could not be written either

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Failure:
    """An image that was skipped, and why, in one sentence."""

    path: Path
    reason: str


@dataclass(frozen=True)
class FolderReport:
    """What `segment_folder` did.

    Attributes:
        out: the folder of results.
        written: results of this run, sorted.
        kept: results that an earlier run had written, sorted.
        failed: images that were skipped, sorted.
        runner: the name of what computed, such as `ONNX Runtime 1.31.1 (CPU)`.
        seconds: wall time of the images, without opening the network.
    """

    out: Path
    written: tuple[Path, ...]
    kept: tuple[Path, ...]
    failed: tuple[Failure, ...]
    runner: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every image has its result."""
        return not self.failed

    def to_text(self) -> str:
        """Say in a few lines what was written, what was there already and what was skipped and why."""
        rate = f", {len(self.written) / self.seconds:.1f} images/s" if self.written and self.seconds else ""
        lines = [f"written   {len(self.written)} in {self.out} by {self.runner}{rate}"]
        lines += [f"kept      {len(self.kept)} that were there already"] if self.kept else []
        lines += [f"skipped   {len(self.failed)}:"] if self.failed else []
        lines += [f"  {failure.reason}" for failure in self.failed[:SHOWN_FAILURES]]
        if len(self.failed) > SHOWN_FAILURES:
            lines.append(f"  and {len(self.failed) - SHOWN_FAILURES} more")
        return "\n".join(lines).encode("utf-8", "replace").decode()  # a file name need not be valid text


def segment_folder(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    save: str = "overlay",
    weights: str | os.PathLike[str] = "street-scenes",
    model: str | os.PathLike[str] | None = None,
    backend: str = "auto",
    progress: bool = True,
    workers: int = 2,
) -> FolderReport:
    """Segment every image of a folder; call it again after an interruption and it goes on where it stopped.

    `workers` images are in memory at a time, however many there are: while one is in the network, others are
    decoded, coloured or written. ONNX Runtime runs several at a time and shares the cores among them. A bad image is
    skipped and reported. A result that is there, whole and made of the same file by the same network, is kept.

    Args:
        folder: the images; not modified.
        out: the folder of results, made if missing: NAME_overlay.jpg, or NAME_color.png, NAME_trainids.png,
            NAME_labelids.png; each has the size of its image, seen upright.
        save: `"overlay"` (half image, half colours), `"color"`, `"trainids"` (255 is void) or `"labelids"` (what
            cityscapesScripts evaluates; 0 is void).
        weights: `"street-scenes"`, `"camvid"`, or an `.npz` file of the demonstration network. It is converted to
            ONNX once, which needs Keras, and kept in the cache.
        model: run this network instead, such as an `.onnx` file or a `.plan`; it needs no Keras.
        backend: see `open_runner`.
        progress: show a bar.
        workers: threads, each with one image at a time.
    Returns:
        What was written, kept and skipped.
    Raises:
        InputError: no images, `out` is `folder`, unknown options, or a network that does not segment street scenes.
        OutputError: results cannot be written, such as on a full disk; those that were written are whole.
        BackendUnavailableError: Keras is needed and missing.
    """
    _check_options(save, workers)
    paths = list_images(folder)
    target = _output_folder(Path(folder), Path(out))
    network = open_street_network(weights, model, backend, progress, at_once=workers)
    with warnings.catch_warnings(), network as (runner, digest):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # load_image refuses such a file in words
        one_at_a_time = runner.info.backend != "onnxruntime"
        lock = threading.Lock() if one_at_a_time else contextlib.nullcontext()
        return _run(_Job(runner, save, target, _output_names(paths), digest, lock), paths, workers, progress)


@dataclass(frozen=True)
class _Outcome:
    source: Path
    result: Path
    kind: str  # "written", "kept" or "failed"
    reason: str = ""


@dataclass(frozen=True)
class _Job:
    """What the threads share."""

    runner: Runner
    save: str
    out: Path
    names: dict[Path, str]
    network: str
    lock: contextlib.AbstractContextManager[Any]

    def segment(self, path: Path) -> _Outcome:
        """Do one image from reading to writing; only what would stop every other image too is raised."""
        target = self.out / f"{self.names[path]}_{self.save}{SAVES[self.save]}"
        try:
            before = _signature(path)
            stamp = f"workbench segment: network {self.network}, source {before}"
            if _is_whole(target, stamp):
                return _Outcome(path, target, "kept")
            encoded = self._encode(path, before, stamp)
        except (InputError, OSError, MemoryError) as error:
            return _failed(path, target, error)
        try:
            with atomic_path(target) as temporary:
                temporary.write_bytes(encoded)
        except OSError as error:
            if getattr(error.__cause__, "errno", None) in _STOPS:
                raise
            return _failed(path, target, error)
        return _Outcome(path, target, "written")

    def _encode(self, path: Path, before: str, stamp: str) -> bytes:
        """Read and segment one image; return the bytes of its result."""
        try:
            image = load_image(path)
        except ImageError:
            _check_unchanged(path, before)
            raise
        labels = segment_image(self.runner, image, self.lock)
        _check_unchanged(path, before)
        return _encoded(_picture(self.save, image, labels), SAVES[self.save], stamp)


def _run(job: _Job, paths: Sequence[Path], workers: int, progress: bool) -> FolderReport:
    outcomes: list[_Outcome] = []
    start = time.perf_counter()
    with (
        tqdm(total=len(paths), desc="segment", unit="image", disable=not progress) as bar,
        contextlib.closing(_map_bounded(job.segment, paths, workers)) as results,
    ):
        try:
            for outcome in results:
                outcomes.append(outcome)
                bar.update()
        except OutputError as error:
            done = sum(outcome.kind != "failed" for outcome in outcomes)
            raise OutputError(
                f"{error}; {done} of {len(paths)} results are written, and the same call goes on from there"
            ) from error
    outcomes.sort(key=lambda outcome: outcome.source)
    return FolderReport(
        out=job.out,
        written=tuple(outcome.result for outcome in outcomes if outcome.kind == "written"),
        kept=tuple(outcome.result for outcome in outcomes if outcome.kind == "kept"),
        failed=tuple(Failure(outcome.source, outcome.reason) for outcome in outcomes if outcome.kind == "failed"),
        runner=job.runner.info.name,
        seconds=time.perf_counter() - start,
    )


def _map_bounded(
    function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int
) -> Generator[_Result, None, None]:
    """Map in threads and yield as results come; at most `workers` run and `workers` wait.

    When the caller stops or something raises, what runs is finished, what waits is dropped.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="segment")
    pending: set[Future[_Result]] = set()
    try:
        for item in items:
            pending.add(pool.submit(function, item))
            if len(pending) >= 2 * workers:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        pool.shutdown(cancel_futures=True)


def _failed(path: Path, target: Path, error: BaseException) -> _Outcome:
    reason = str(error) or type(error).__name__
    return _Outcome(path, target, "failed", reason if str(path) in reason else f"{path}: {reason}")


def _picture(save: str, image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Image.Image:
    if save == "trainids":
        return Image.fromarray(labels)
    if save == "labelids":
        return Image.fromarray(train_ids_to_ids(labels))
    colors = Image.fromarray(color_map(labels))
    return colors if save == "color" else Image.blend(Image.fromarray(image), colors, 0.5)


def _encoded(picture: Image.Image, suffix: str, stamp: str) -> bytes:
    """Encode in memory: a full disk then shows as what it is when the bytes are written."""
    buffer = io.BytesIO()
    if suffix == ".jpg":
        picture.save(buffer, "JPEG", quality=92, comment=stamp)
    else:
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", stamp)
        picture.save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def _is_whole(path: Path, stamp: str) -> bool:
    """Whether a result is there to its last byte and carries this stamp."""
    last = _LAST_BYTES[path.suffix]
    try:
        with path.open("rb") as file, Image.open(file) as picture:
            found = picture.info.get("comment", picture.info.get("Comment", ""))
            file.seek(-len(last), os.SEEK_END)
            return file.read() == last and (found.decode() if isinstance(found, bytes) else found) == stamp
    except (OSError, ValueError):  # not there, or not an image: make it
        return False


def _signature(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror}); was it moved or deleted?") from error
    return f"{status.st_size} bytes of {status.st_mtime_ns}"


def _check_unchanged(path: Path, before: str) -> None:
    if _signature(path) != before:
        raise ImageError(f"{path} changed while it was read; run again when it is complete")


def _output_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Name results after their images: without the suffix, unless two images would then share a name."""
    stems = Counter(path.stem.casefold() for path in paths)
    ends_alike = [Path(path.stem).suffix.lower() in IMAGE_SUFFIXES for path in paths]
    return {
        path: path.name if alike or stems[path.stem.casefold()] > 1 else path.stem
        for path, alike in zip(paths, ends_alike, strict=True)
    }


def _output_folder(folder: Path, out: Path) -> Path:
    made = make_folder(out)
    if made.samefile(folder):
        raise InputError(f"got {out} for the results, which is the folder of the images; choose another folder")
    return made


def _check_options(save: str, workers: int) -> None:
    if save not in SAVES:
        raise InputError(f"got save={save!r}, expected one of {', '.join(SAVES)}")
    if workers < 1:
        raise InputError(f"got workers={workers}, expected 1 or more")
