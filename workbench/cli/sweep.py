"""`workbench sweep`: every combination of precision, batch, size and backend, a row for each."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.cli.options import SOURCES, add_images, add_overwrite, check_files, feeds_of, pixels
from workbench.core.files import atomic_path, check_suffix, overwriting

if TYPE_CHECKING:
    from workbench.measure.rows import Rows
    from workbench.parity.reports import StagesReport

DESCRIPTION = """Measure every combination of precision, batch, size and backend, each in a process of its own, against
the answers of float32. With --output a row for each is added to a file of JSON lines, and the same command goes on
where an earlier one was interrupted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("model", help=SOURCES)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the .jsonl file of rows")
    add_precision(parser, "of fp32 tf32 fp16 bf16 int8 fp8, or all; fp32 is always there (default: fp32)", ["fp32"])
    parser.add_argument(
        "--batch", nargs="+", type=int, default=[1], metavar="N", help="pictures in a call (default: 1)"
    )
    parser.add_argument("--size", nargs="+", type=_size, default=[None], metavar="HxW", help="pixels, such as 256x512")
    parser.add_argument(
        "--backend",
        nargs="+",
        default=["onnxruntime"],
        metavar="B",
        help="onnxruntime, onnxruntime-cuda, keras (fp32 only), tensorrt, or auto (default: onnxruntime)",
    )
    add_images(parser, "pictures to judge on; built-in ones by default")
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="calls that are timed (default: 20)")
    parser.add_argument("--retry-failed", action="store_true", help="measure failed points again")
    add_reports(parser, "draw error against time, or accuracy against size where one batch is measured (.png)")


def add_precision(parser: argparse.ArgumentParser, text: str, default: list[str] | None = None) -> None:
    """Add the options of precisions and of how they are judged."""
    parser.add_argument("--precision", nargs="+", default=default, metavar="P", help=text)
    parser.add_argument("--labels", type=Path, metavar="DIR", help="the truth: label maps named as the images")
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="scales of 8 bits, as build writes them")
    parser.add_argument(
        "--max-miou-drop",
        type=float,
        metavar="X",
        help="how much a precision may lose of mIoU; without labels, of the agreement with float32 (default: 0.01)",
    )


def add_reports(parser: argparse.ArgumentParser, figure: str) -> None:
    """Add the options of what is written besides the text."""
    parser.add_argument("--figure", type=Path, metavar="FILE", help=figure)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report as JSON")
    add_overwrite(parser)


def check_reports(options: argparse.Namespace, folders: Iterable[Path | None] = ()) -> None:
    """Refuse, before the work, reports that cannot be written."""
    if options.figure:
        check_suffix(options.figure, ".png", "a figure")
    check_files(options, "json", "figure", folders=folders)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    try:
        return pixels(height), pixels(width)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"got {text[:40]!r}, expected height and width in pixels, such as 256x512"
        ) from error


def run(options: argparse.Namespace) -> int:
    """Carry out the command: 0 if any point was measured, else 1."""
    check_reports(options)
    with overwriting():  # rows are added to the file, and `sweep` reads it before
        check_files(options, "json", "figure", "output")
    rows = measure(
        options,
        precision=options.precision,
        batch=options.batch,
        size=options.size,
        backend=options.backend,
        runs=options.runs,
        out=options.output,
        retry_failed=options.retry_failed,
    )
    write(rows, options)
    return 0 if any(row.ok for row in rows) else 1


def measure(options: argparse.Namespace, *, precision: list[str], **more: Any) -> "Rows":
    """Call the engine with the options that both commands have."""
    from workbench.measure.sweep import sweep
    from workbench.precision.spec import PRECISIONS

    return sweep(
        options.model,
        precision=PRECISIONS if "all" in precision else precision,
        images=options.images,
        feeds=feeds_of(options),
        preprocess=options.preprocess,
        labels=options.labels,
        calibration=options.calibration,
        limit=0.01 if options.max_miou_drop is None else options.max_miou_drop,
        **more,
    )


def write(report: "Rows | StagesReport", options: argparse.Namespace) -> None:
    """Print a report, and write it as JSON and as a figure where that is asked for."""
    from workbench.core.drawing import save_figure

    print(report.to_text())
    if options.json:
        with atomic_path(options.json) as temporary:
            temporary.write_text(report.to_json(), encoding="utf-8")
    if options.figure:
        save_figure(report.figure(), options.figure)
