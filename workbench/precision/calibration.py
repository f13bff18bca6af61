"""Find a scale for each tensor of a network from sample images, and keep the scales in a file for another machine."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx

from workbench.core.contract import TensorSpec
from workbench.core.errors import InputError
from workbench.core.files import atomic_path, check_fields, parse_json, read_regular
from workbench.core.report import count
from workbench.onnx_graph.file import check, read, take_digest
from workbench.pictures.feeds import Feed, channel_axis, picture_array
from workbench.precision import observing
from workbench.precision.observing import METHODS, Feeds, Histogram, Tap, checked_feeds

LARGEST = {"int8": 127.0, "fp8": 448.0}  # magnitude of a signed byte used symmetrically, and of float8 E4M3
LIMIT = 500
FORMAT = "workbench calibration 1"
_FIELDS = ("network", "data", "method", "samples", "preprocess")
_HINTS = {**dict.fromkeys(_FIELDS, str), "samples": int, "tensors": dict[str, tuple[float, float]]}
_LARGEST_FILE = 1 << 26  # bytes; a line of 100 for each of 600,000 tensors
_EMPTY = "got no calibration sample; give images like those that the network will see, 100 or more"


@dataclass(frozen=True)
class Calibration:
    """The magnitudes of a network's tensors on sample data, for symmetric 8-bit scales.

    Attributes:
        network, data: SHA-256 of the ONNX file, external data included, and of the samples.
        method: one of `METHODS`.
        samples: how many there were.
        preprocess: the one that the samples were compared with; empty where none was named.
        thresholds: for each tensor the magnitude that int8 represents as 127; larger values are cut.
        largest: for each tensor the largest magnitude seen.
    """

    network: str
    data: str
    method: str
    samples: int
    preprocess: str
    thresholds: dict[str, float]
    largest: dict[str, float]

    @property
    def scales(self) -> dict[str, float]:
        """The step from one int8 number to the next, by tensor; tensors that were always 0 have none."""
        return {name: value / LARGEST["int8"] for name, value in self.thresholds.items() if value}

    @property
    def digest(self) -> str:
        """SHA-256 of everything in it: equal for calibrations that give the same network."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def check(self, source: str | os.PathLike[str]) -> None:
        """Refuse another `.onnx` file than the one it was made from, or one that has changed, with an InputError."""
        network = take_digest(Path(source))
        if network != self.network:
            raise InputError(
                f"got a calibration of the network {self.network[:12]}, expected one of {Path(source).name}, "
                f"which is {network[:12]}; calibrate this network again"
            )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as JSON, whole or not at all, and return the path; an OutputError where that cannot be."""
        with atomic_path(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote, on any machine; an InputError where it is missing, damaged or something else."""
        try:
            fields = parse_json(read_regular(path, _LARGEST_FILE))
            if fields["format"] != FORMAT:
                raise ValueError(f"format {fields['format']!r}, expected {FORMAT!r}")
            check_fields(_HINTS, fields)
            pairs = {name: (float(one), float(other)) for name, (one, other) in fields["tensors"].items()}
            if not all(math.isfinite(one) and 0 <= one <= other < math.inf for one, other in pairs.values()):
                raise ValueError("a threshold is negative, not finite, or above the largest value")
            thresholds, largest = ({name: pair[place] for name, pair in pairs.items()} for place in (0, 1))
            return cls(**{key: fields[key] for key in _FIELDS}, thresholds=thresholds, largest=largest)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"{os.fspath(path)} is not a calibration of this package ({reason}); make one with calibrate(...).save"
            ) from error

    def to_json(self) -> str:
        """Return the text that `save` writes."""
        fields = {"format": FORMAT, **{name: getattr(self, name) for name in _FIELDS}}
        fields["tensors"] = {name: [value, self.largest[name]] for name, value in sorted(self.thresholds.items())}
        return json.dumps(fields, indent=1) + "\n"

    def to_text(self) -> str:
        """Write one line for people.

        >>> print(Calibration("a" * 64, "b" * 64, "minmax", 2, "unit", {"x": 1.0}, {"x": 1.0}).to_text(), end="")
        minmax calibration: scales of 1 tensor from 2 samples; network aaaaaaaaaaaa, data bbbbbbbbbbbb
        """
        return (
            f"{self.method} calibration: scales of {count(len(self.scales), 'tensor')} from "
            f"{count(self.samples, 'sample')}; network {self.network[:12]}, data {self.data[:12]}\n"
        )


def calibrate(
    source: str | os.PathLike[str],
    feeds: Feeds,
    *,
    method: str = "entropy",
    limit: int = LIMIT,
    preprocess: str | None = None,
    progress: bool = True,
) -> Calibration:
    """Run a network on samples and choose a symmetric scale for every tensor that 8 bits may hold.

    Args:
        source: the float32 `.onnx` file.
        feeds: the samples: dicts of arrays by input name, or pairs of a name and such a dict, as
            `workbench.pictures.feeds.make_feeds` yields them for a folder of images. They are taken one at a time.
        method: `"entropy"` cuts where 128 levels tell most about the values, `"percentile"` keeps 99.99 percent of
            them, `"minmax"` cuts nothing.
        limit: how many samples to take at most.
        preprocess: the preprocessing that the network was trained with, one of `feeds.PREPROCESSINGS`;
            the samples are then compared with the range that it gives.
        progress: show a bar.
    Raises:
        InputError: no samples, images of one colour only, another range than the preprocessing's, a value inside the
            network that is not finite, an unknown method or preprocessing.
        FeedError: a sample of another name, shape or dtype than the network takes.
        ModelError: not a valid ONNX file.
    """
    if method not in METHODS:
        raise InputError(f"got method={method!r}, expected one of {', '.join(METHODS)}")
    if limit < 1:
        raise InputError(f"got limit={limit}, expected 1 or more samples")
    source = Path(source)
    pictures = _InputRanges({spec.name: spec for spec in check(source).inputs}, preprocess)
    network, model, tap = take_digest(source), read(source), None
    digest, samples, largest, histograms = hashlib.sha256(), 0, dict[str, float](), dict[str, Histogram]()
    for sample, feed in checked_feeds(source, feeds, "calibrate", limit=limit, empty=_EMPTY, progress=progress):
        pictures.add(feed)
        for name, array in sorted(feed.items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        tap = tap or _tap(model, source, feed)
        for name, values in tap.fetch(feed):
            peak = observing.largest_magnitude(values)
            if not math.isfinite(peak):
                raise InputError(
                    f"got NaN or infinity in the tensor {name} on {sample}; mend the network or the sample"
                )
            largest[name] = max(largest.get(name, 0.0), peak)
            if method != "minmax":
                histograms.setdefault(name, Histogram()).add(values)
        samples += 1
    pictures.check()
    thresholds = {name: kept.threshold(method) for name, kept in histograms.items()} or dict(largest)
    return Calibration(network, digest.hexdigest(), method, samples, preprocess or "", thresholds, largest)


def _tap(model: onnx.ModelProto, source: Path, feed: Feed) -> Tap:
    tensors = observing.observable(observing.sized(model, feed))
    if not tensors:
        raise InputError(
            f"got {source.name}, in which no {', '.join(observing.OPERATORS)} reads a float32 tensor: there is nothing "
            "to quantise; give the float32 network"
        )
    return Tap(model, source, tensors)


class _InputRanges:
    """What the samples' pictures look like: range of each colour, and whether they show anything."""

    def __init__(self, specs: Mapping[str, TensorSpec], preprocess: str | None) -> None:
        self._axes = {name: axis for name, spec in specs.items() if (axis := channel_axis(spec)) is not None}
        self._bounds = {name: _bounds(axis, preprocess) for name, axis in self._axes.items() if preprocess}
        self._preprocess = preprocess
        self._low: dict[str, Any] = dict.fromkeys(self._axes, np.inf)
        self._high: dict[str, Any] = dict.fromkeys(self._axes, -np.inf)
        self._flat = True

    def add(self, feed: Feed) -> None:
        for name, axis in self._axes.items():
            others = tuple(other for other in range(4) if other != axis)
            low, high = feed[name].min(others), feed[name].max(others)
            self._flat = self._flat and bool((low == high).all())
            self._low[name] = np.minimum(self._low[name], low)
            self._high[name] = np.maximum(self._high[name], high)

    def check(self) -> None:
        if self._axes and self._flat:
            raise InputError(
                "got calibration images of one colour each, which reach no scale but their own; give photographs like "
                "those that the network will see"
            )
        for name, (black, white) in self._bounds.items():
            low, high, span = self._low[name], self._high[name], white - black
            inside = (low >= black - span / 100).all() and (high <= white + span / 100).all()
            # images of every kind have pixels darker and brighter than two fifths of the range
            if not inside or (low > black + 0.4 * span).all() or (high < black + 0.4 * span).all():
                raise InputError(
                    f"got calibration images from {low.min():.4g} to {high.max():.4g} for {name}, expected the range "
                    f"of preprocess={self._preprocess!r}, {black.min():.4g} to {white.max():.4g}, filled; prepare them "
                    "as the network's training did"
                )


def _bounds(axis: int, preprocess: str) -> list[np.ndarray]:
    """What the preprocessing makes of black and of white, by channel."""
    pixel = TensorSpec("pixel", (1, 3, 1, 1) if axis == 1 else (1, 1, 1, 3), "float32")
    levels = (np.full((1, 1, 3), level, np.uint8) for level in (0, 255))
    return [picture_array(level, pixel, preprocess).reshape(3) for level in levels]
