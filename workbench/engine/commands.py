"""The command lines that do the same as our own calls: NVIDIA's trtexec, Polygraphy, and `workbench build`."""

import os
import shlex

from workbench.engine.plan import ROLES, PathLike, PlanManifest, shape_text

# Room for the demonstration network, eight pictures of 512 x 1024 at once.
DEFAULT_WORKSPACE = 1 << 30


def trtexec_command(manifest: PlanManifest, onnx_path: PathLike, plan_path: PathLike) -> str:
    """Return the line for NVIDIA's tool, which builds what a manifest tells: `trtexec`, or `tensorrt_rtx` for RTX."""
    rtx = manifest.flavour == "tensorrt_rtx"  # always strongly typed, so its tool has no such option
    words = ["tensorrt_rtx" if rtx else "trtexec", f"--onnx={os.fspath(onnx_path)}"]
    words += [f"--saveEngine={os.fspath(plan_path)}", *([] if rtx else ["--stronglyTyped"])]
    words += [] if manifest.precision == "tf32" else ["--noTF32"]
    profile = manifest.profiles[0]
    for index, role in enumerate(ROLES if profile else ()):
        shapes = ",".join(f"{name}:{shape_text(shapes[index])}" for name, shapes in profile.items())
        words.append(f"--{role}Shapes={shapes}")
    words.append(f"--memPoolSize=workspace:{_workspace(manifest)}B")
    if manifest.targets:
        words.append(f"--computeCapabilities={','.join(target.removeprefix('sm') for target in manifest.targets)}")
    return shlex.join([*words, "--skipInference"])


def polygraphy_command(manifest: PlanManifest, onnx_path: PathLike, plan_path: PathLike) -> str:
    """Return the line for Polygraphy, which has no targets, and takes RTX from a variable in front.

    Polygraphy 0.53.6 leaves TF32 on for RTX: there NVIDIA's variable forbids it, also needed when the plan runs.
    """
    rtx, tf32 = manifest.flavour == "tensorrt_rtx", manifest.precision == "tf32"
    words = ["polygraphy", "convert", os.fspath(onnx_path), "--convert-to", "trt", "-o", os.fspath(plan_path)]
    words += ["--strongly-typed", *(["--tf32"] if tf32 and not rtx else [])]
    words += ["--pool-limit", f"workspace:{_workspace(manifest)}"]
    profile = manifest.profiles[0]
    for index, role in enumerate(ROLES if profile else ()):
        shapes = (f"{name}:[{shape_text(of[index], ',')}]" for name, of in profile.items())
        words += [f"--trt-{role}-shapes", *shapes]
    variables = [*([] if tf32 else ["NVIDIA_TF32_OVERRIDE=0"]), "POLYGRAPHY_USE_TENSORRT_RTX=1"] if rtx else []
    return " ".join([*variables, shlex.join(words)])


def build_command(manifest: PlanManifest, plan_path: PathLike, *, flavour: str = "") -> str:
    """Return the `workbench build` line that makes a plan again at `plan_path`, of another `flavour` if named.

    Where the conversion used measured ranges, their file or the pictures are named by a word in capitals.
    """
    chosen = flavour or manifest.flavour
    chosen = "tensorrt" if chosen == "tensorrt_lean" else chosen  # lean only runs what the full TensorRT built
    words = ["workbench", "build", manifest.onnx_name or "model.onnx", "-o", os.fspath(plan_path)]
    words += ["--flavour", chosen]
    words += [] if manifest.precision == "fp32" else ["--precision", manifest.precision]
    if manifest.calibration:
        words += ["--calibration", "FILE"] if manifest.precision in ("int8", "fp8") else ["--images", "DIR"]
    keep = manifest.options.get("keep")
    words += ["--keep-nodes", *keep] if keep else []
    for profile in filter(None, manifest.profiles):
        words.append("--profile")
        words += [f"{name}={','.join(map(shape_text, shapes))}" for name, shapes in profile.items()]
    if manifest.targets and chosen == manifest.flavour:
        words += ["--targets", *manifest.targets]
    if manifest.version_compatible or manifest.flavour == "tensorrt_lean":
        words.append("--version-compatible")
    workspace = _workspace(manifest)
    return shlex.join([*words, *([] if workspace == DEFAULT_WORKSPACE else ["--workspace-mib", str(workspace >> 20)])])


def _workspace(manifest: PlanManifest) -> int:
    return int(manifest.options.get("workspace_bytes", DEFAULT_WORKSPACE))
