"""Options that several commands share, so that they are spelt alike."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.core.files import check_outputs

if TYPE_CHECKING:
    from workbench.pictures.feeds import Feed

PREPROCESSINGS = ("unit", "raw", "cityscapes", "imagenet")  # of workbench.pictures.feeds, which is slow to import

SOURCES = (
    ".keras, .h5, SavedModel folder, .pb, TensorFlow 1 checkpoint, PyTorch .pt2, .onnx, or: resnet50, fcn_vgg16, unet"
)
"""What every command takes as a network."""

_READ = ("model", "images", "feeds", "labels", "calibration")  # the options that name what a command reads


def exit_status(*verdicts: str) -> int:
    """That of a command whose reports have these statuses: 0 pass, 1 where one fails, else 3 for inconclusive."""
    return 1 if "fail" in verdicts else 3 if "inconclusive" in verdicts else 0


def add_images(parser: argparse.ArgumentParser, use: str) -> None:
    """`--images DIR` or `--feeds FILE`, and `--preprocess`."""
    inputs = parser.add_mutually_exclusive_group()
    inputs.add_argument("--images", type=Path, metavar="DIR", help=use)
    add_feeds(inputs)
    parser.add_argument(
        "--preprocess",
        choices=PREPROCESSINGS,
        default="unit",
        help="pictures to inputs: -1..1, 0..255, minus Cityscapes' mean, or ResNet-50's BGR (default: unit)",
    )


def add_feeds(parser: "argparse._ActionsContainer") -> None:
    """`--feeds FILE`."""
    parser.add_argument(
        "--feeds",
        type=Path,
        metavar="FILE",
        help="your own inputs instead of made-up ones: an .npz file with an array for each input, by its name, as "
        "np.savez writes it; or a folder of such files, one feed each",
    )


def feeds_of(options: argparse.Namespace) -> "list[tuple[str, Feed]] | None":
    """What is in the files of `--feeds`."""
    from workbench.pictures.feeds import read_feeds

    return read_feeds(options.feeds) if options.feeds else None


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """`--overwrite`."""
    parser.add_argument("--overwrite", action="store_true", help="also replace files that workbench did not write")


def check_files(
    options: argparse.Namespace, *written: str, also: Iterable[Path] = (), folders: Iterable[Path | None] = ()
) -> None:
    """Refuse, before the work, what the options of these names must not write; OutputError as `check_outputs`."""
    read = [getattr(options, name, None) for name in _READ if name not in written]
    outputs = [*(getattr(options, name) for name in written), *also]
    check_outputs(outputs, [*read, *getattr(options, "others", ())], folders)


def pixels(text: str) -> int:
    """A height or a width: 1 or more, and no more than an axis of a tensor can have."""
    if not (text.isascii() and text.isdecimal() and 0 < int(text[:12]) < 1 << 31):
        raise argparse.ArgumentTypeError(f"got {text[:40]!r}, expected pixels, 1 or more")
    return int(text)


def add_spatial(parser: argparse.ArgumentParser) -> None:
    """`--spatial H W`."""
    parser.add_argument(
        "--spatial", nargs=2, type=pixels, metavar=("H", "W"), help="pixels, for a model that leaves them open"
    )


def spatial_of(options: argparse.Namespace) -> tuple[int, int] | None:
    """What `--spatial` says."""
    return tuple(options.spatial) if options.spatial else None
