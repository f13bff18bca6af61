"""The command line: demo, convert, build, verify, sweep, segment, doctor."""

import argparse
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from workbench import __version__
from workbench.cli import sweep, verify
from workbench.core.errors import WorkbenchError

EXIT_OK, EXIT_DIFFERENT, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130
_PREPROCESSINGS = ("unit", "raw", "cityscapes", "imagenet")  # of workbench.pictures.feeds, which is slow to import

_EPILOG = """exit status: 0 all is well; 1 the answers differ, an image was skipped (segment), no point was measured
(sweep), or something needed is missing (doctor); 2 bad input or a missing package; 130 interrupted. Errors are one
sentence; --debug adds the traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        arguments: the words after `workbench`; those of the process when None.
    """
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *details: print(f"warning: {message}", file=sys.stderr)
            if getattr(options, "model", None) == "unet":  # before anything imports TensorFlow
                from workbench.models.unet import set_variables

                set_variables()
            return int(options.run(options))
    except KeyboardInterrupt:
        print("interrupted; nothing half-written was left behind", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        elif isinstance(error, WorkbenchError):
            print(f"error: {error}", file=sys.stderr)
        else:
            print(f"error: unexpected {type(error).__name__}: {error}; --debug shows where", file=sys.stderr)
        return EXIT_ERROR


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = argparse.ArgumentParser(
        prog="workbench",
        description="Keras networks to ONNX and TensorRT: convert, compare side by side, measure.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"workbench {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_demo, _add_convert, _add_build, verify.add, sweep.add, _add_segment, _add_doctor):
        add(commands, common)
    return parser


def _add_demo(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    text = "Convert ResNet-50 and the segmentation network, run both forms, compare and draw."
    parser = commands.add_parser(
        "demo", parents=[common], help="the main job on built-in or own pictures", description=text
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="your own pictures instead of the built-in ones")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("demo_output"), metavar="DIR", help="default: demo_output"
    )
    parser.add_argument(
        "--weights",
        choices=("imagenet", "random"),
        default="imagenet",
        help="of ResNet-50; imagenet comes from Keras's cache or the network, and falls back to random, saying so",
    )
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from workbench.cli.demo import run_demo

    result = run_demo(options.out, options.images, weights=options.weights)
    for name, report in result.reports.items():
        print(f"\n{name}: {report.to_text()}")
    print("\nwritten:")
    for path in result.files:
        print(f"  {path}")
    return EXIT_OK if result.passed else EXIT_DIFFERENT


def _add_convert(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    text = "Convert a network to ONNX: batch dynamic, height and width fixed."
    parser = commands.add_parser(
        "convert", parents=[common], help="a Keras or TensorFlow network to ONNX", description=text
    )
    parser.add_argument(
        "model",
        help=".keras, .h5, SavedModel, .pb, TensorFlow 1 checkpoint, PyTorch .pt2, .onnx to mend, or: resnet50, "
        "fcn_vgg16, unet",
    )
    parser.add_argument("output", type=Path, help="the .onnx file to write")
    for ends in ("inputs", "outputs"):
        parser.add_argument(
            f"--{ends}", type=_names, metavar="NAME[,NAME]", help=f"{ends} of a TensorFlow graph or checkpoint"
        )
    parser.add_argument(
        "--spatial", nargs=2, type=int, metavar=("H", "W"), help="pixels, for a model that leaves them open"
    )
    parser.add_argument(
        "--exporter",
        default="tf2onnx",
        help="tf2onnx, or keras2onnx: the original tutorial's, for tf_keras models (default: tf2onnx)",
    )
    parser.add_argument("--opset", type=int, help="ONNX operator set (default: 17; 15 with keras2onnx)")
    parser.add_argument("--pb", type=Path, help="also keep the frozen TensorFlow graph in this file")
    parser.set_defaults(run=_convert)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _convert(options: argparse.Namespace) -> int:
    from workbench.export.conversion import convert

    print(
        convert(
            options.model,
            options.output,
            exporter=options.exporter,
            spatial=tuple(options.spatial) if options.spatial else None,
            inputs=options.inputs,
            outputs=options.outputs,
            opset=options.opset,
            pb_path=options.pb,
        )
    )
    return EXIT_OK


def _add_build(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    text = "Build a TensorRT engine from an ONNX file: a plan, and a manifest that says where it may be loaded."
    parser = commands.add_parser("build", parents=[common], help="a TensorRT engine from ONNX", description=text)
    parser.add_argument("model", type=Path, help="the .onnx file")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .plan file to write")
    parser.add_argument(
        "--profile",
        nargs="+",
        metavar="NAME=MIN,OPT,MAX",
        help="shapes of dynamic inputs, such as input=1x3x224x224,4x3x224x224,8x3x224x224 (default: batch 1, 4, 8)",
    )
    parser.add_argument("--targets", nargs="+", metavar="SM", help="ahead of time, such as: sm89 sm120 (RTX only)")
    _add_build_precision(parser)
    parser.add_argument("--flavour", help="tensorrt or tensorrt_rtx (default: the first that is installed)")
    parser.add_argument(
        "--version-compatible",
        action="store_true",
        help="a plan that newer versions and the lean runtime load; it carries host code (full TensorRT only)",
    )
    parser.add_argument("--workspace-mib", type=int, default=1024, metavar="N", help="scratch memory (default: 1024)")
    parser.add_argument("--timeout", type=float, metavar="S", help="end the build after this many seconds")
    parser.add_argument("--no-cache", action="store_true", help="build even if the same engine was built before")
    parser.add_argument("--show-commands", action="store_true", help="also print the trtexec and polygraphy lines")
    parser.set_defaults(run=_build)


def _add_build_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        default="fp32",
        help="fp32 (without TF32), tf32, fp16, bf16, int8 or fp8; a float32 file is converted (default: fp32)",
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="for int8 and fp8; written if --images is given"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="calibrate on them; with fp16, find what overflows")
    parser.add_argument(
        "--preprocess", choices=_PREPROCESSINGS, default="unit", help="pictures to inputs, as in verify (default: unit)"
    )
    parser.add_argument("--keep", nargs="+", default=[], metavar="NODE", help="nodes that stay float32")


def _build(options: argparse.Namespace) -> int:
    from workbench.engine.build import build_engine, check_plan_path, engine_text, equivalent_commands, save_engine
    from workbench.engine.plan import parse_profile

    check_plan_path(options.output)
    plan = build_engine(
        options.model,
        precision=options.precision,
        calibration=options.calibration,
        images=options.images,
        preprocess=options.preprocess,
        keep=options.keep,
        workspace_bytes=options.workspace_mib << 20,
        profile=parse_profile(options.profile) if options.profile else None,
        targets=options.targets,
        flavour=options.flavour,
        timeout_s=options.timeout,
        cache=not options.no_cache,
        version_compatible=options.version_compatible,
    )
    save_engine(plan, options.output)
    print(engine_text(plan, options.output))
    if options.show_commands:
        of = ", given the converted network" if plan.manifest.converted else ""
        lines = equivalent_commands(plan, options.model, options.output)
        print(f"the same with NVIDIA's tools{of}:", *lines, sep="\n  ")
    return EXIT_OK


def _add_segment(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    text = """Segment every image of a folder. Bad images are skipped and listed at the end; the same command goes on
where an earlier run was interrupted. Results have the size of their image."""
    parser = commands.add_parser("segment", parents=[common], help="a folder of street images", description=text)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the images; they are not modified")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="the folder of results")
    parser.add_argument(
        "--save",
        choices=("color", "overlay", "trainids", "labelids"),
        default="overlay",
        help="half image and half colours, colours, numbers of the classes, or the numbers that cityscapesScripts "
        "evaluates (default: overlay)",
    )
    network = parser.add_mutually_exclusive_group()
    network.add_argument(
        "--weights",
        default="street-scenes",
        metavar="NAME",
        help="street-scenes, camvid, or a weights file (default: street-scenes); needs Keras the first time",
    )
    network.add_argument("--model", type=Path, metavar="FILE", help="another network: .onnx, .plan; needs no Keras")
    parser.add_argument("--backend", default="auto", help="auto, onnxruntime, tensorrt or keras (default: auto)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="images in memory at once (default: 2)")
    parser.set_defaults(run=_segment)


def _segment(options: argparse.Namespace) -> int:
    from workbench.cli.segment import segment_folder

    report = segment_folder(
        options.folder,
        options.out,
        save=options.save,
        weights=options.weights,
        model=options.model,
        backend=options.backend,
        workers=options.workers,
    )
    print(report.to_text())
    return EXIT_OK if report.passed else EXIT_DIFFERENT


def _add_doctor(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    text = "Tell what this machine has and which runners can be used on it."
    parser = commands.add_parser("doctor", parents=[common], help="what this machine has", description=text)
    parser.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from workbench.runners.machine import diagnose, report

    print(report())
    problems = diagnose()
    for problem in problems:
        print(f"missing: {problem}")
    return EXIT_DIFFERENT if problems else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
