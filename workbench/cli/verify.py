"""`workbench verify`: which stage and layer breaks a network, or what each precision costs it."""

import argparse
from pathlib import Path

from workbench.cli import sweep
from workbench.cli.options import SOURCES, add_images, add_spatial, exit_status, feeds_of, spatial_of
from workbench.core.errors import InputError

DESCRIPTION = """Run every form of a network on the same inputs, compare neighbours, and name the stage and the layer
at fault. With MODEL alone the forms are made here: the framework, the frozen graph, the ONNX file as exported and as
fixed, and an engine where one can be built and run. With --precision one network is judged in each precision."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("model", help=f"the reference: {SOURCES}")
    parser.add_argument("others", nargs="*", metavar="other", help="what is judged, in this order, such as .onnx files")
    add_images(parser, "pictures to judge on; built-in ones by default")
    add_spatial(parser)
    parser.add_argument("--keep-files", type=Path, metavar="DIR", help="keep the files that are made on the way")
    parser.add_argument("--timeout", type=float, metavar="S", help="give up after this many seconds (default: never)")
    sweep.add_precision(
        parser, "instead of the stages, judge precisions against float32: fp16 int8 tf32 bf16 fp8, or all"
    )
    sweep.add_reports(parser, "draw the error of each stage, over depth at the one at fault, or the precisions (.png)")


def run(options: argparse.Namespace) -> int:
    """Carry out the command: 0 if the answers agree, 1 if they differ, 3 if that cannot be told."""
    sweep.check_reports(options, folders=[options.keep_files])
    if options.precision:
        return _run_precision(options)
    if options.labels or options.calibration or options.max_miou_drop is not None:
        raise InputError("got --labels, --calibration or --max-miou-drop without --precision; add --precision all")
    from workbench.parity.stages import verify

    report = verify(
        options.model,
        *options.others,
        images=options.images,
        feeds=feeds_of(options),
        preprocess=options.preprocess,
        spatial=spatial_of(options),
        work_folder=options.keep_files,
        timeout_s=options.timeout,
    )
    sweep.write(report, options)
    return exit_status(report.status)


def _run_precision(options: argparse.Namespace) -> int:
    """Judge each precision; fp16 stands beside 8 bits even if nobody asked for it."""
    from workbench.precision.spec import EIGHT_BITS

    if options.timeout is not None:
        raise InputError("got --timeout beside --precision, which has a limit for each point; leave it out")
    if options.others:
        raise InputError(f"got {options.others[0]} beside --precision, expected one network; leave it out")
    beside = ["fp16"] if set(EIGHT_BITS) & set(options.precision) else []
    rows = sweep.measure(
        options,
        precision=[*options.precision, *beside],
        batch=[None],
        size=[spatial_of(options)],
        backend=["auto"],
        plans=True,
        work_folder=options.keep_files,
    )
    if not rows["fp32"].ran:
        raise InputError(rows["fp32"].reason)
    sweep.write(rows, options)
    return exit_status(rows.status)
