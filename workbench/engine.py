"""Build an engine from an ONNX file, save it with its manifest, and load it where it may be loaded."""

import os
from pathlib import Path
from typing import Any

from workbench.engine_build import build_engine
from workbench.engine_commands import build_command, polygraphy_command, trtexec_command
from workbench.engine_load import Engine, load_engine
from workbench.errors import InputError, OutputError
from workbench.files import atomic_path
from workbench.plan import Plan, PlanManifest, manifest_path
from workbench.precision.typed import types_text
from workbench.runners.base import BACKEND_NAMES

__all__ = [
    "Engine",
    "Plan",
    "build_command",
    "build_engine",
    "check_plan_path",
    "engine_text",
    "equivalent_commands",
    "load_engine",
    "polygraphy_command",
    "save_engine",
    "trtexec_command",
]

PathLike = str | os.PathLike[str]
_SHOWN = 4


def save_engine(plan: Plan, path: PathLike) -> Path:
    """Write a plan to `path`, and its manifest to `path` + `.json`, each whole or not at all.

    Returns:
        The path of the plan.
    Raises:
        OutputError: the folder does not exist or cannot be written to, or the disk is full.
    """
    target = Path(path)
    # The plan is put in place first: a plan beside an older manifest is refused as damaged, not run.
    with atomic_path(manifest_path(target)) as manifest_file, atomic_path(target) as plan_file:
        manifest_file.write_text(plan.manifest.to_json(), encoding="utf-8")
        plan_file.write_bytes(plan.data)
    return target


def check_plan_path(path: PathLike) -> None:
    """Refuse a plan's path before minutes are spent on building it.

    Raises:
        InputError: the name is that of a model.
        OutputError: the folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() in (".onnx", ".json"):
        raise InputError(f"got {path} as the plan to write, expected a name that ends in .plan")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")


def engine_text(plan: Plan, path: PathLike) -> str:
    """Return a few lines for people: the plan's size, layers, and where it runs."""
    manifest = plan.manifest
    layers = ", ".join(f"{count} {kind.lower()}" for kind, count in manifest.layers.items())
    if manifest.targets:
        where = f"GPUs of {', '.join(manifest.targets)}"
    elif manifest.gpu_name:
        where = f"{manifest.gpu_name}, compute capability {manifest.compute_capability}"
    else:
        where = f"the GPUs that {BACKEND_NAMES[manifest.flavour]} builds for by itself"
    return (
        f"{os.fspath(path)}: {manifest.plan_bytes / 1e6:.1f} MB, {manifest.precision}, "
        f"built by {BACKEND_NAMES[manifest.flavour]} {manifest.version}\n"
        f"layers   {sum(manifest.layers.values())} before fusion ({layers})\n"
        f"{_types_text(manifest)}{_kernels_text(manifest)}"
        f"runs on  {where}\n"
        f"manifest {manifest_path(path)}"
    )


def _types_text(manifest: PlanManifest) -> str:
    """What the layers compute in, and which were left wider."""
    if not manifest.types:
        return ""
    pairs = f"; {manifest.qdq_pairs} pairs of Q and DQ" if manifest.qdq_pairs else ""
    text = f"types    {types_text(manifest.types)}{pairs}; types of the network, not kernels\n"
    reasons: dict[str, list[str]] = {}
    for entry in manifest.kept:
        reasons.setdefault(entry["reason"], []).append(entry["node"])
    for reason, nodes in reasons.items():
        more = f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
        text += f"float32  {', '.join(nodes[:_SHOWN])}{more}: {reason}\n"
    return text


def _kernels_text(manifest: PlanManifest) -> str:
    """What the builder made of the layers, where its log told."""
    if not manifest.kernels or not manifest.memory:
        return ""
    sizes = ", ".join(f"{name.removesuffix('_bytes')} {size / 1e6:.0f} MB" for name, size in manifest.memory.items())
    return f"kernels  {len(manifest.kernels)} after fusion; memory on the GPU: {sizes}\n"


def equivalent_commands(plan: Plan, onnx_path: PathLike, plan_path: PathLike) -> tuple[str, str]:
    """Return the trtexec and polygraphy lines that build the same engine.

    Args:
        plan: what was built.
        onnx_path: the network that was built; where `plan.manifest.converted`, the converted one.
        plan_path: the plan to write.
    """
    manifest = plan.manifest
    same: dict[str, Any] = {
        "workspace_bytes": int(manifest.options["workspace_bytes"]),
        "flavour": manifest.flavour,
        "tf32": manifest.precision == "tf32",
    }
    profile = manifest.profiles[0]
    return (
        trtexec_command(onnx_path, plan_path, profile, targets=manifest.targets, **same),
        polygraphy_command(onnx_path, plan_path, profile, **same),
    )
