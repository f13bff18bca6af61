"""The main job: two networks from Keras to ONNX to a runner, with pictures and a verdict."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from workbench.cli.options import add_overwrite, exit_status
from workbench.core.compare import ParityReport
from workbench.core.contract import Runner, RunnerInfo
from workbench.core.drawing import Panel, save_figure
from workbench.core.files import atomic_path, check_outputs, make_folder
from workbench.core.packages import load_keras
from workbench.export.keras_model import keras_to_onnx
from workbench.measure.figures import latency_figure
from workbench.measure.latency import time_runners
from workbench.models import fcn_vgg16, resnet50
from workbench.models.fcn_vgg16 import STREET_SIZE, segmentation_answer, street_input
from workbench.parity import figures
from workbench.pictures.images import photographs, rescale_image
from workbench.pictures.labels import Picture, fit_labels, read_folder, street_scenes
from workbench.runners.backends import open_runner
from workbench.runners.compare import compare_runners

DESCRIPTION = "Convert ResNet-50 and the segmentation network, run both forms, compare and draw."

SCENES = ("scene_1000025", "scene_1000022", "scene_1000014")
"""A sunny street, one in the rain, one at dusk."""


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration wrote, and whether both verdicts passed."""

    reports: dict[str, ParityReport]
    files: tuple[Path, ...]

    @property
    def passed(self) -> bool:
        """Whether every network's report passed."""
        return all(report.passed for report in self.reports.values())


def run_demo(
    out: str | os.PathLike[str] = "demo_output",
    images: str | os.PathLike[str] | None = None,
    *,
    weights: str = "imagenet",
    progress: bool = True,
) -> DemoResult:
    """Convert ResNet-50 and the segmentation network, run both forms, compare, draw and write everything to `out`.

    `images` is a folder of the reader's own pictures. ResNet-50's `weights` are `"imagenet"`, which falls back to
    calibrated random weights and says so, or `"random"`. ImageError for a file in `images` that is none, OutputError
    where `out` cannot be written to.
    """
    check_outputs((), [images], [out])
    folder = make_folder(out)
    own = None if images is None else list(read_folder(images))
    keras = load_keras()
    reports: dict[str, ParityReport] = {}
    files: list[Path] = []
    for name, job in {"resnet50": _resnet50, "fcn_vgg16": _segmentation}.items():
        with tqdm(total=4, desc=name, unit="step", disable=not progress) as bar:
            reports[name], written = job(keras, folder, own, weights, bar)
        files += written
    files += _write_reports(reports, folder)
    return DemoResult(reports, tuple(files))


def _resnet50(
    keras: Any, folder: Path, own: list[Picture] | None, weights: str, bar: Any
) -> tuple[ParityReport, list[Path]]:
    pictures = own or [Picture(name, image) for name, image in photographs().items()]
    bar.set_postfix_str("build")
    network = resnet50.build(keras, weights=weights)
    bar.update()
    onnx_path = _convert(network.model, folder / "resnet50.onnx", bar)
    feeds = [(p.name, {"input": resnet50.preprocess(p.image)[None]}) for p in pictures]
    with open_runner(network.model) as reference, open_runner(onnx_path) as candidate:
        report = compare_runners(reference, candidate, tqdm(feeds, desc="compare", leave=False, disable=bar.disable))
        report = replace(report, notes=(*report.notes, network.note))
        bar.update()
        answers = [np.concatenate([r.infer(feed)["output"] for _, feed in feeds]) for r in (reference, candidate)]
        figure = classification_figure(pictures[0], answers, network, (reference.info, candidate.info))
        table = time_runners([reference, candidate], feeds[0][1], runs=10)
    paths = [folder / "resnet50.png", folder / "resnet50_latency.png"]
    save_figure(figure, paths[0])
    save_figure(latency_figure(table), paths[1])
    bar.update()
    return report, [onnx_path, *paths]


def classification_figure(
    picture: Picture, logits: Sequence[np.ndarray], network: resnet50.ResNet50, infos: Sequence[RunnerInfo]
) -> Figure:
    """Draw the top-5 bars of the first picture of (N, 1000) logits where classes mean something, else all logits."""
    reference, candidate = logits
    if network.weights != "imagenet":
        return figures.logits_figure(reference, candidate, infos[0], infos[1], note=network.note)
    bars = [resnet50.top_classes(answer[0]) for answer in (reference, candidate)]
    return figures.top_classes_figure(picture.image, bars[0], bars[1], infos[0], infos[1])


def _segmentation(
    keras: Any, folder: Path, own: list[Picture] | None, weights: str, bar: Any
) -> tuple[ParityReport, list[Path]]:
    pictures = own or street_scenes(SCENES)
    bar.set_postfix_str("build")
    model = fcn_vgg16.demonstration_model(keras, STREET_SIZE)
    bar.update()
    onnx_path = _convert(model, folder / "fcn_vgg16.onnx", bar)
    feeds = ((p.name, {"input": street_input(p.image, STREET_SIZE)}) for p in pictures)
    with open_runner(model) as reference, open_runner(onnx_path) as candidate:
        bars = tqdm(feeds, desc="compare", leave=False, total=len(pictures), disable=bar.disable)
        report = compare_runners(reference, candidate, bars)
        bar.update()
        paths = [_draw(picture, reference, candidate, folder) for picture in pictures]
        first = pictures[0].image
        runners, feed = [reference, candidate], {"input": street_input(first, STREET_SIZE)}
        table = time_runners(runners, feed, end_to_end=lambda runner: segmentation_answer(runner, first), runs=10)
    paths.append(save_figure(latency_figure(table), folder / "fcn_vgg16_latency.png"))
    bar.update()
    return report, [onnx_path, *paths]


def _draw(picture: Picture, reference: Runner, candidate: Runner, folder: Path) -> Path:
    image = picture.image
    first, second = (Panel(runner.info, segmentation_answer(runner, image)) for runner in (reference, candidate))
    if image.shape[:2] != STREET_SIZE:
        image = np.clip(np.rint(rescale_image(image, (*STREET_SIZE, 3))), 0, 255).astype(np.uint8)
    truth = None if picture.truth is None else fit_labels(picture.truth, STREET_SIZE)
    figure = figures.side_by_side(image, truth, first, second)
    return save_figure(figure, folder / f"fcn_vgg16_{Path(picture.name).stem}.png")


def _convert(model: Any, path: Path, bar: Any) -> Path:
    bar.set_postfix_str("convert to ONNX")
    keras_to_onnx(model, path, progress=not bar.disable)
    bar.update()
    bar.set_postfix_str("run and compare")
    return path


def _write_reports(reports: dict[str, ParityReport], folder: Path) -> list[Path]:
    whole: dict[str, Any] = {"format": "workbench demonstration 1"}
    whole |= {name: json.loads(report.to_json()) for name, report in reports.items()}
    told = "\n\n".join(f"{name}\n{report.to_text()}" for name, report in reports.items())
    texts = {
        "parity.json": json.dumps(whole, indent=2) + "\n",
        "parity.txt": f"workbench demonstration\n\n{told}\n",
    }
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("--images", type=Path, metavar="DIR", help="your own pictures instead of the built-in ones")
    out = Path("demo_output")
    parser.add_argument("-o", "--output", type=Path, default=out, metavar="DIR", help=f"default: {out}")
    add_overwrite(parser)
    parser.add_argument(
        "--weights", choices=("imagenet", "random"), default="imagenet",
        help="of ResNet-50; imagenet comes from Keras's cache or the network, and falls back to random, saying so",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Run the demonstration, print its reports and name its files."""
    result = run_demo(options.output, options.images, weights=options.weights)
    for name, report in result.reports.items():
        print(f"\n{name}: {report.to_text()}")
    print("\nwritten:", *result.files, sep="\n  ")
    return exit_status(*(report.status for report in result.reports.values()))
