"""The command line: demo, convert, build, verify, sweep, segment, doctor."""

import argparse
import contextlib
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from workbench import __version__
from workbench.core.errors import InputError, WorkbenchError

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
    for add in (_add_demo, _add_convert, _add_build, _add_verify, _add_sweep, _add_segment, _add_doctor):
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


def _add_verify(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    text = """Run every form of a network on the same inputs, compare neighbours, and name the stage and the layer at
fault. With MODEL alone the forms are made here: the framework, the frozen graph, the ONNX file as exported and as
fixed, and an engine where one can be built and run."""
    parser = commands.add_parser(
        "verify", parents=[common], help="which stage, and which layer, breaks a network", description=text
    )
    parser.add_argument(
        "model", help="the reference: .keras, .h5, SavedModel folder, .pb, .onnx, resnet50, fcn_vgg16 or unet"
    )
    parser.add_argument("others", nargs="*", metavar="other", help="what is judged, in this order, such as .onnx files")
    parser.add_argument("--images", type=Path, metavar="DIR", help="pictures to judge on; built-in ones by default")
    parser.add_argument(
        "--preprocess",
        choices=_PREPROCESSINGS,
        default="unit",
        help="pictures to inputs: -1..1, 0..255, minus Cityscapes' mean, or ResNet-50's BGR (default: unit)",
    )
    parser.add_argument(
        "--spatial", nargs=2, type=int, metavar=("H", "W"), help="pixels, for a model that leaves them open"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the files that are made on the way")
    _add_verify_precision(parser)
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the error over depth (.png), if they differ")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report as JSON")
    parser.set_defaults(run=_verify)


def _add_verify_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        type=_names,
        metavar="P[,P]",
        help="instead of the stages, judge precisions against float32: fp16, int8, tf32, bf16, fp8, or all",
    )
    parser.add_argument("--labels", type=Path, metavar="DIR", help="label maps named as the images; with --precision")
    parser.add_argument(
        "--max-miou-drop", type=float, metavar="X", help="with --precision: mIoU that may be lost (default: 0.01)"
    )
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="scales of 8 bits; with --precision")


def _verify(options: argparse.Namespace) -> int:
    from workbench.core.files import atomic_path

    if options.precision:
        return _verify_precision(options)
    if options.labels or options.calibration or options.max_miou_drop is not None:
        raise InputError("got --labels, --calibration or --max-miou-drop without --precision; add --precision all")
    from workbench.parity.stages import verify_stages

    report = verify_stages(
        options.model,
        *options.others,
        images=options.images,
        preprocess=options.preprocess,
        spatial=tuple(options.spatial) if options.spatial else None,
        work_folder=options.keep,
    )
    print(report.to_text())
    if options.json:
        with atomic_path(options.json) as temporary:
            temporary.write_text(report.to_json() + "\n", encoding="utf-8")
    if options.figure and report.divergence:
        from workbench.core.drawing import save_figure
        from workbench.parity.figures import divergence_figure

        save_figure(divergence_figure(report.divergence), options.figure)
    return EXIT_OK if report.passed else EXIT_DIFFERENT


def _verify_precision(options: argparse.Namespace) -> int:
    from workbench.core.files import atomic_path
    from workbench.measure.precision_sweep import PRECISIONS, precision_sweep

    if options.others:
        raise InputError(f"got {options.others[0]} beside --precision, expected one network; leave it out")
    with _onnx_form(options) as source:
        table = precision_sweep(
            source,
            images=options.images,
            preprocess=options.preprocess,
            labels=options.labels,
            precisions=PRECISIONS if options.precision == ["all"] else options.precision,
            max_miou_drop=0.01 if options.max_miou_drop is None else options.max_miou_drop,
            calibration=options.calibration,
            work_folder=options.keep,
        )
    print(table.to_text())
    if options.json:
        with atomic_path(options.json) as temporary:
            temporary.write_text(table.to_json(), encoding="utf-8")
    if options.figure:
        from workbench.core.drawing import save_figure
        from workbench.measure.precision_figures import sweep_figure

        save_figure(sweep_figure(table), options.figure)
    return EXIT_OK if table.passed else EXIT_DIFFERENT


@contextlib.contextmanager
def _onnx_form(options: argparse.Namespace) -> Iterator[Path]:
    """The model itself where it is an ONNX file, else its conversion: kept with --keep, or for a while."""
    if Path(options.model).suffix.lower() == ".onnx":
        yield Path(options.model)
        return
    from workbench.core.files import make_folder
    from workbench.export.conversion import convert

    with tempfile.TemporaryDirectory(prefix="workbench-precision-") as spare:
        path = make_folder(options.keep or spare) / f"{Path(options.model).stem}.onnx"
        convert(options.model, path, spatial=tuple(options.spatial) if options.spatial else None)
        yield path


def _add_sweep(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    text = """Measure every combination of precision, batch, size and backend, each in a process of its own, and add a
row for each to a file of JSON lines. The same command goes on where an earlier one was interrupted."""
    parser = commands.add_parser(
        "sweep", parents=[common], help="a grid of precisions, batches, sizes and backends", description=text
    )
    parser.add_argument("model", help="an .onnx file in float32, a Keras model's file, resnet50 or fcn_vgg16")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the .jsonl file of rows")
    parser.add_argument("--precision", nargs="+", default=["fp32"], metavar="P", help="fp32 tf32 fp16 bf16 int8 fp8")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], metavar="N", help="pictures in a call")
    parser.add_argument("--size", nargs="+", type=_size, default=[None], metavar="HxW", help="pixels, such as 256x512")
    parser.add_argument(
        "--backend",
        nargs="+",
        default=["onnxruntime"],
        metavar="B",
        help="onnxruntime, onnxruntime-cuda, keras (fp32 only), tensorrt",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="pictures to judge on; built-in ones by default")
    parser.add_argument("--preprocess", choices=_PREPROCESSINGS, default="unit", help="as in verify (default: unit)")
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="calls that are timed (default: 20)")
    parser.add_argument("--retry-failed", action="store_true", help="measure failed points again")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw error against time per picture (.png)")
    parser.set_defaults(run=_sweep)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected height and width in pixels, such as 256x512")
    return int(height), int(width)


def _sweep(options: argparse.Namespace) -> int:
    from workbench.measure.grid import grid, run_grid
    from workbench.measure.row_report import RowTable

    points = grid(
        {Path(options.model).stem: options.model}, options.precision, options.batch, options.size, options.backend
    )
    rows = run_grid(
        points,
        options.out,
        images=options.images,
        preprocess=options.preprocess,
        runs=options.runs,
        retry_failed=options.retry_failed,
    )
    print(RowTable(rows).to_text())
    if options.figure:
        from workbench.core.drawing import save_figure
        from workbench.measure.row_figures import pareto_figure

        save_figure(pareto_figure(rows), options.figure)
    return EXIT_OK if any(row.ok for row in rows) else EXIT_DIFFERENT


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
