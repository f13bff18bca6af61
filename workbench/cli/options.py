"""Options that several commands share, so that they are spelt alike."""

import argparse
from pathlib import Path

PREPROCESSINGS = ("unit", "raw", "cityscapes", "imagenet")  # of workbench.pictures.feeds, which is slow to import

SOURCES = (
    ".keras, .h5, SavedModel folder, .pb, TensorFlow 1 checkpoint, PyTorch .pt2, .onnx, or: resnet50, fcn_vgg16, unet"
)
"""What every command takes as a network."""


def add_images(parser: argparse.ArgumentParser, use: str) -> None:
    """`--images DIR` and `--preprocess`."""
    parser.add_argument("--images", type=Path, metavar="DIR", help=use)
    parser.add_argument(
        "--preprocess",
        choices=PREPROCESSINGS,
        default="unit",
        help="pictures to inputs: -1..1, 0..255, minus Cityscapes' mean, or ResNet-50's BGR (default: unit)",
    )


def add_spatial(parser: argparse.ArgumentParser) -> None:
    """`--spatial H W`."""
    parser.add_argument(
        "--spatial", nargs=2, type=int, metavar=("H", "W"), help="pixels, for a model that leaves them open"
    )


def spatial_of(options: argparse.Namespace) -> tuple[int, int] | None:
    """What `--spatial` says."""
    return tuple(options.spatial) if options.spatial else None
