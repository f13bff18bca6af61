"""Both exporters on five tf_keras networks: nodes, Transposes, seconds and the largest error on the logits.

Run it from the repository: `python benchmarks/exporters.py`; about three minutes on two cores. Notebook 04 shows it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import onnxruntime
from _record import write_rows
from street_scenes import generate_scene

from workbench.core.packages import load_tf_keras
from workbench.export.keras_model import EXPORTERS, keras_to_onnx
from workbench.models import fcn_vgg16, unet
from workbench.onnx_graph.file import check
from workbench.pictures.images import photographs, rescale_image

STREET_SIZE = (256, 512)


def photograph_batch(height: int, width: int) -> np.ndarray:
    """scikit-image's photographs as one batch: (4, height, width, 3) float32, -1..1."""
    pictures = [rescale_image(picture, (height, width, 3)) for picture in photographs().values()]
    return (np.stack(pictures) / 127.5 - 1).astype(np.float32)


def classifier(name: str, side: int) -> Any:
    """A classifier with random weights whose batch statistics are set on the photographs, so that answers differ."""
    keras = load_tf_keras()
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, classifier_activation=None, input_shape=(side, side, 3))
    unet.calibrate(model, photographs(side, side))
    return model


def scenes(channel_first: bool) -> np.ndarray:
    """Generated street scenes as one batch, 0..255 around 0."""
    pictures = [generate_scene(seed, *STREET_SIZE).image.astype(np.float32) - 100 for seed in (11, 12)]
    return np.stack([picture.transpose(2, 0, 1) if channel_first else picture for picture in pictures])


NETWORKS: dict[str, Callable[[], tuple[Any, np.ndarray]]] = {
    "ResNet50": lambda: (classifier("ResNet50", 224), photographs(224, 224)),
    "FCN-8s": lambda: (fcn_vgg16.demonstration_model(load_tf_keras(), STREET_SIZE), scenes(channel_first=True)),
    "U-Net": lambda: (unet.demonstration_model(), scenes(channel_first=False) / 100),
    "InceptionV3": lambda: (classifier("InceptionV3", 299), photographs(299, 299)),
    "MobileNetV2": lambda: (classifier("MobileNetV2", 224), photographs(224, 224)),
}


def work(network: str) -> None:
    """Convert one network with both exporters and print a row of the table for each; in a child process."""
    model, batch = NETWORKS[network]()
    spatial = STREET_SIZE if network == "U-Net" else None
    expected = np.asarray(model(batch, training=False))
    for exporter in EXPORTERS:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            path = keras_to_onnx(model, Path(folder) / "m.onnx", exporter=exporter, spatial=spatial, progress=False)
            seconds = time.perf_counter() - start
            answer = onnxruntime.InferenceSession(path).run(None, {"input": batch})[0]
            operators = check(path).operators
        error = float(np.abs(answer - expected).max() / np.ptp(expected))
        row = {"network": network, "exporter": exporter, "nodes": sum(operators.values())}
        row |= {"transposes": operators.get("Transpose", 0), "seconds": round(seconds, 2), "max_relative_error": error}
        print(f"row: {json.dumps(row)}", flush=True)


def rows_of(network: str) -> list[dict[str, Any]]:
    """Measure one network in a child process: TensorFlow keeps what it once took."""
    command = [sys.executable, __file__, "--worker", network]
    environment = {**os.environ, **unet.VARIABLES}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{network}: ended with status {done.returncode}\n{done.stderr[-2000:]}")
    rows = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("row: ")]
    for row in rows:
        print("  ".join(str(value) for value in row.values()), flush=True)
    return rows


def main() -> None:
    """Measure every network with both exporters and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", choices=NETWORKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker)
        return
    rows = [row for network in NETWORKS for row in rows_of(network)]
    packages = ("tensorflow", "tf_keras", "tf2onnx", "keras2onnx", "onnx", "onnxruntime")
    print(f"wrote {os.path.relpath(write_rows('exporters', rows, packages))}")


if __name__ == "__main__":
    main()
