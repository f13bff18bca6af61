"""What a precision costs in mean IoU: the demonstration networks on unseen scenes and on CamVid's validation frames.

Run it from the repository on a machine with an NVIDIA GPU, with the files that `--make` wrote on one with Keras:

    python benchmarks/gpu_accuracy.py --make networks --camvid camvid        # converts, calibrates, quantises
    python benchmarks/gpu_accuracy.py --networks networks --camvid camvid    # on the GPU; --cpu tries the script

ONNX Runtime on CUDA computes `fp16` in float16 on the tensor cores. `int8` is a simulation there: Q/DQ pairs round to
int8, the convolutions between them compute in float32. Neither says anything about TensorRT's kernels.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from _record import write_record
from street_scenes import generate_scene

from workbench.core.files import make_folder
from workbench.pictures.cityscapes import confusion_matrix, mean_iou
from workbench.pictures.images import load_image, sub_mean_chw

UNSEEN = 1_000_000
CALIBRATION_SCENES = 64
SCENE_SIZE, FRAME_SIZE, PADDED_FRAME = (256, 512), (360, 480), (384, 480)
PRECISIONS = {
    "fp32": ("fp32.onnx", "0", "float32, TF32 off"),
    "tf32": ("fp32.onnx", "1", "float32, rounded to TF32 in convolutions"),
    "fp16": ("fp16.onnx", "1", "float16"),
    "int8": ("int8.onnx", "0", "Q/DQ simulation: rounded to int8, computed in float32"),
}

Sample = tuple[np.ndarray, np.ndarray]


def scenes(count: int) -> Iterator[Sample]:
    """Unseen generated scenes: input and train ids."""
    for seed in range(UNSEEN, UNSEEN + count):
        scene = generate_scene(seed, *SCENE_SIZE)
        yield sub_mean_chw(scene.image.transpose(2, 0, 1))[None], scene.train_ids


def frames(folder: Path, part: str = "val") -> Iterator[Sample]:
    """CamVid's frames, padded below with the mean colour to a height that divides by 32: input and train ids."""
    from PIL import Image

    below = PADDED_FRAME[0] - FRAME_SIZE[0]
    for path in sorted((folder / part / "images").iterdir()):
        image = sub_mean_chw(load_image(path).transpose(2, 0, 1))[None]
        labels = np.asarray(Image.open(folder / part / "labels" / f"{path.stem}.png"))
        yield np.pad(image, ((0, 0), (0, 0), (0, below), (0, 0))), labels


def make(folder: Path, camvid: Path | None) -> None:
    """Convert both networks, and calibrate them on pictures that are not judged later."""
    from workbench.core.packages import load_keras
    from workbench.export.keras_model import keras_to_onnx
    from workbench.models import fcn_vgg16
    from workbench.precision.calibration import calibrate
    from workbench.precision.half import to_fp16
    from workbench.precision.quantize import quantize_int8

    keras = load_keras()
    data: dict[str, tuple[tuple[int, int], list[np.ndarray]]] = {
        "street-scenes": (
            SCENE_SIZE,
            [
                sub_mean_chw(generate_scene(seed, *SCENE_SIZE).image.transpose(2, 0, 1))[None]
                for seed in range(2 * UNSEEN, 2 * UNSEEN + CALIBRATION_SCENES)
            ],
        )
    }
    if camvid is not None:
        data["camvid"] = (PADDED_FRAME, [image for image, _ in frames(camvid, "train")][:: 367 // CALIBRATION_SCENES])
    for weights, (size, images) in data.items():
        target = make_folder(folder / weights)
        fp32 = keras_to_onnx(fcn_vgg16.demonstration_model(keras, size, weights), target / "fp32.onnx")
        to_fp16(fp32, target / "fp16.onnx")
        feeds = [(f"picture {number}", {"input": image}) for number, image in enumerate(images)]
        calibration = calibrate(fp32, feeds, method="entropy")
        print(quantize_int8(fp32, target / "int8.onnx", calibration).to_text())


def judge(path: Path, tf32: str, samples: list[Sample], references: list[np.ndarray], cpu: bool) -> dict[str, Any]:
    """Run one file on all samples; the first file's logits become the references."""
    import onnxruntime

    from workbench.onnx_graph.session import prepare_cuda

    providers: list[Any] = ["CPUExecutionProvider"]
    if not cpu:
        prepare_cuda(onnxruntime)
        providers = [("CUDAExecutionProvider", {"use_tf32": tf32}), *providers]
    session = onnxruntime.InferenceSession(str(path), providers=providers)
    confusion, errors, same, pixels = 0, [], 0, 0
    first = not references
    for number, (image, truth) in enumerate(samples):
        logits = np.asarray(session.run(None, {"input": image})[0])[0, :, : truth.shape[0], : truth.shape[1]]
        confusion = confusion + confusion_matrix(truth, logits.argmax(axis=0))
        if first:
            references.append(logits.astype(np.float32))
        reference = references[number]
        errors.append(float(np.abs(logits - reference).max() / np.ptp(reference)))
        same += int((logits.argmax(axis=0) == reference.argmax(axis=0)).sum())
        pixels += truth.size
    return {
        "mean_iou": round(mean_iou(confusion), 5),
        "largest_error_share_of_range": float(f"{max(errors):.3g}"),
        "label_agreement": round(same / pixels, 6),
        "images": len(samples),
    }


def main() -> None:
    """Make the networks, or judge them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make", type=Path, metavar="DIR", help="write the networks here and end")
    parser.add_argument("--networks", type=Path, metavar="DIR", help="what --make wrote")
    parser.add_argument("--camvid", type=Path, metavar="DIR", help="the folder with train/ and val/")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--cpu", action="store_true", help="try the script without a GPU; nothing is recorded")
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.make, arguments.camvid)
        return
    results = {}
    for weights in sorted(path.name for path in arguments.networks.iterdir() if path.is_dir()):
        if weights == "camvid" and arguments.camvid is None:
            continue
        samples = list(frames(arguments.camvid) if weights == "camvid" else scenes(arguments.scenes))
        references: list[np.ndarray] = []
        for name, (file, tf32, arithmetic) in PRECISIONS.items():
            row = judge(arguments.networks / weights / file, tf32, samples, references, arguments.cpu)
            fp32 = results.setdefault(weights, {}).get("fp32", row)["mean_iou"]
            change = round(100 * (row["mean_iou"] - fp32), 3)
            results[weights][name] = {"arithmetic": arithmetic, **row, "mean_iou_change_points": change}
            print(weights, name, results[weights][name], flush=True)
    if not arguments.cpu:
        from workbench.core.driver import probe_driver

        gpu = probe_driver().gpus[0].name
        write_record("gpu_accuracy", {"gpu": gpu, "networks": results}, ("numpy", "onnxruntime-gpu"))


if __name__ == "__main__":
    main()
