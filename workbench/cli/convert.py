"""`workbench convert`: a network to ONNX."""

import argparse
from pathlib import Path

from workbench.cli.options import SOURCES, add_feeds, add_overwrite, add_spatial, check_files, feeds_of, spatial_of

DESCRIPTION = """Convert a network to ONNX: batch dynamic, height and width fixed. An ONNX file is checked and mended.
What was written is run beside its source, and the verdict printed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("model", help=SOURCES)
    parser.add_argument("output", type=Path, help="the .onnx file to write")
    for ends in ("inputs", "outputs"):
        parser.add_argument(f"--{ends}", nargs="+", metavar="NAME", help=f"{ends} of a TensorFlow graph or checkpoint")
    add_spatial(parser)
    parser.add_argument(
        "--exporter",
        default="tf2onnx",
        help="tf2onnx, or keras2onnx: the original tutorial's, for tf_keras models (default: tf2onnx)",
    )
    parser.add_argument("--opset", type=int, help="ONNX operator set (default: 17; 15 with keras2onnx)")
    add_feeds(parser)
    parser.add_argument("--no-check", dest="check", action="store_false", help="do not run what was written")
    parser.add_argument("--timeout", type=float, metavar="S", help="give up after this many seconds (default: never)")
    parser.add_argument("--pb", type=Path, help="also keep the frozen TensorFlow graph in this file")
    parser.add_argument("--details", action="store_true", help="tell more than the verdict: ends, operators, changes")
    add_overwrite(parser)


def run(options: argparse.Namespace) -> int:
    """Convert, and say what came out."""
    check_files(options, "output", "pb")
    from workbench.export.conversion import convert

    summary = convert(
        options.model,
        options.output,
        exporter=options.exporter,
        spatial=spatial_of(options),
        inputs=options.inputs,
        outputs=options.outputs,
        opset=options.opset,
        pb_path=options.pb,
        feeds=feeds_of(options),
        check=options.check,
        timeout_s=options.timeout,
    )
    print(summary if options.details else summary.partition("\n")[0])
    return 0
