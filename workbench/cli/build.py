"""`workbench build`: a TensorRT engine from a network."""

import argparse
from pathlib import Path

from workbench.cli.options import (
    SOURCES,
    add_images,
    add_overwrite,
    add_spatial,
    check_files,
    feeds_of,
    spatial_of,
)

DESCRIPTION = """Build a TensorRT engine: a plan, and a manifest that says where it may be loaded. What is not ONNX is
converted on the way, once."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("model", help=SOURCES)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .plan file to write")
    add_spatial(parser)
    parser.add_argument(
        "--profile",
        nargs="+",
        metavar="NAME=MIN,OPT,MAX",
        help="shapes of dynamic inputs, such as input=1x3x224x224,4x3x224x224,8x3x224x224 (default: batch 1, 4, 8)",
    )
    parser.add_argument("--targets", nargs="+", metavar="SM", help="ahead of time, such as: sm89 sm120 (RTX only)")
    parser.add_argument(
        "--precision",
        default="fp32",
        help="fp32 (without TF32), tf32, fp16, bf16, int8 or fp8; a float32 file is converted (default: fp32)",
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="for int8 and fp8; written if --images or --feeds is given"
    )
    add_images(parser, "calibrate on them; with fp16, find what overflows")
    parser.add_argument("--keep-nodes", nargs="+", default=[], metavar="NODE", help="nodes that stay float32")
    parser.add_argument("--flavour", help="tensorrt or tensorrt_rtx (default: the first that is installed)")
    parser.add_argument(
        "--version-compatible",
        action="store_true",
        help="a plan that newer versions and the lean runtime load; it carries host code (full TensorRT only)",
    )
    parser.add_argument("--plugins", nargs="+", default=[], metavar="LIB", help="plugin libraries for custom nodes")
    parser.add_argument("--embed-plugins", action="store_true", help="write the plugin libraries into the plan")
    parser.add_argument("--workspace-mib", type=int, default=1024, metavar="N", help="scratch memory (default: 1024)")
    parser.add_argument("--timeout", type=float, metavar="S", help="end the build after this many seconds")
    parser.add_argument("--no-cache", action="store_true", help="build even if the same engine was built before")
    parser.add_argument("--show-commands", action="store_true", help="also print the trtexec and polygraphy lines")
    add_overwrite(parser)


def run(options: argparse.Namespace) -> int:
    """Build, write the plan and its manifest, and say what it is."""
    from workbench.engine import build
    from workbench.engine.plan import manifest_path, parse_profile
    from workbench.export.cached import as_onnx

    build.check_plan_path(options.output)
    pictures = options.images or options.feeds
    written = ("output", "calibration") if pictures else ("output",)
    check_files(options, *written, also=[manifest_path(options.output)])
    asked = {
        "precision": options.precision, "keep": options.keep_nodes, "calibration": options.calibration,
        "workspace_bytes": options.workspace_mib << 20, "timeout_s": options.timeout,
    }  # fmt: skip
    build.check_arguments(pictures=pictures, **asked)
    profile = parse_profile(options.profile) if options.profile else None
    with as_onnx(options.model, spatial=spatial_of(options)) as onnx_path:
        plan = build.build_engine(
            onnx_path, **asked, images=options.images, feeds=feeds_of(options), preprocess=options.preprocess,
            profile=profile, targets=options.targets, flavour=options.flavour, cache=not options.no_cache,
            version_compatible=options.version_compatible, plugins=options.plugins, embed_plugins=options.embed_plugins,
        )  # fmt: skip
        build.save_engine(plan, options.output)
        print(build.engine_text(plan, options.output))
        if options.show_commands:
            of = ", given the converted network" if plan.manifest.converted else ""
            lines = build.equivalent_commands(plan, onnx_path, options.output)
            print(f"the same with NVIDIA's tools{of}:", *lines, sep="\n  ")
    return 0
