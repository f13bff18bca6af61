"""Build an engine from an ONNX file, in the precision asked for, or take it from the cache."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import TIMEOUT_MAX
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from workbench import __version__
from workbench.core.contract import BACKEND_NAMES
from workbench.core.driver import Gpu, probe_driver, require_gpu
from workbench.core.errors import DriverError, InputError, ModelError
from workbench.core.files import atomic_path, check_outputs
from workbench.core.process import temporary_folder
from workbench.engine import cache as engine_cache
from workbench.engine.commands import DEFAULT_WORKSPACE, polygraphy_command, trtexec_command
from workbench.engine.custom import Plugin, PluginLike, custom_order, library_environment, read_plugins
from workbench.engine.layer_types import types_text
from workbench.engine.plan import (
    DEFAULT_BATCH,
    MAX_RANK,
    PathLike,
    Plan,
    PlanManifest,
    Profile,
    manifest_path,
    profile_text,
    resolve_profile,
)
from workbench.engine.process import run_child
from workbench.engine.tensorrt_api import Flavour, available_flavours, open_flavour
from workbench.onnx_graph.file import check, known_digest, take_digest
from workbench.pictures.feeds import Feed
from workbench.precision.convert import measure_spec, taken_as_kept, to_precision
from workbench.precision.spec import PrecisionSpec, check_spec

if TYPE_CHECKING:
    from workbench.precision.calibration import Calibration

_MINIMUM_WORKSPACE = 1 << 20
_SHOWN = 4


@dataclass(frozen=True)
class _Job:
    """Everything that shapes a plan, but for the network itself; at the end what does not."""

    path: Path
    flavour: Flavour
    gpu: Gpu | None
    targets: tuple[str, ...]
    shape: Any
    profile: Any
    spec: PrecisionSpec
    options: dict[str, Any]
    plugins: tuple[Plugin, ...] = ()
    progress: bool = False
    timeout_s: float | None = None
    cache: bool = True

    @property
    def here(self) -> Gpu | None:
        """The GPU that the plan is for; none where it is built ahead of time."""
        return None if self.flavour.builds_ahead_of_time else self.gpu

    def key(self, digest: str) -> str:
        """The cache key, with the hash of the network."""
        parts = {
            "onnx": digest,
            "flavour": [self.flavour.name, self.flavour.version],
            "gpu": [self.gpu.name, self.gpu.capability] if self.gpu else None,
            "targets": self.targets,
            "shapes": [_plain(self.shape), _plain(self.profile), DEFAULT_BATCH],
            "precision": [self.spec.precision, self.spec.digest],
            "options": self.options,
            "plugins": [plugin.digest for plugin in self.plugins],
            "workbench": __version__,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def build_engine(
    onnx_path: PathLike,
    shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    *,
    precision: str = "fp32",
    calibration: "PathLike | Calibration | None" = None,
    images: PathLike | None = None,
    preprocess: str = "unit",
    feeds: Iterable[tuple[str, Feed]] | None = None,
    keep: Sequence[str] = (),
    workspace_bytes: int = DEFAULT_WORKSPACE,
    profile: Mapping[str, Any] | None = None,
    targets: Sequence[str] | None = None,
    progress: bool = True,
    flavour: str | None = None,
    timeout_s: float | None = None,
    cache: bool = True,
    version_compatible: bool = False,
    plugins: Sequence[PluginLike] = (),
    embed_plugins: bool = False,
) -> Plan:
    """Build a TensorRT engine in a child process, strongly typed: what the layers compute in is in the ONNX file.

    A float32 file is converted to the precision first, by `to_fp16`, `to_bf16`, `quantize_int8` or `quantize_fp8`; one
    that is in it already is taken as it is. The types that TensorRT gives the layers are then compared with what was
    asked for: types, not kernels, which are chosen on the GPU.

    Args:
        onnx_path: the model.
        shape: one shape for the only input, or a dict by name: inputs that never change their shape.
        precision: `"fp32"` (without TF32), `"tf32"`, `"fp16"`, `"bf16"`, `"int8"` or `"fp8"`.
        calibration: for 8 bits, what `calibrate` found, or its file; with `images`, the file to write.
        images: a folder of pictures, to calibrate 8 bits, or to find values that float16 cannot hold.
        preprocess: how the network was trained to see pictures; one of `feeds.PREPROCESSINGS`.
        feeds: (name, arrays by input name) pairs, instead of `images`.
        keep: names of nodes that stay in float32.
        workspace_bytes: scratch memory that one layer may use at most.
        profile: smallest, most usual and largest shape by input name; an open batch gets 1, 4 and 8.
        targets: GPU generations to build for ahead of time, such as `["sm89", "sm120"]`; RTX only.
        progress: show a bar, and print the profile.
        flavour: a key of `tensorrt_api.FLAVOURS`; the first that can build when None.
        timeout_s: end the build after this many seconds.
        cache: take an engine built before from the cache, and keep this one there.
        version_compatible: newer versions and the lean runtime may load it; full TensorRT only.
        plugins: what computes custom nodes: compiled libraries, and functions that take TensorRT's module and give a
            creator (see `engine.make_creator`). They run in the child process. One that no node uses is an error.
        embed_plugins: write the libraries into the plan, which else needs them again where it is loaded.
    Returns:
        The plan and its manifest.
    Raises:
        InputError: a wrong argument, profile, target, input type, calibration or plugin; or nothing that can be
            converted.
        ModelError: the file is not a whole, valid ONNX model.
        BackendUnavailableError: no TensorRT that can build is installed.
        DriverError: this TensorRT builds on a GPU only, and there is none.
        EngineBuildError: TensorRT refused, crashed or took too long, or its layers are not in the precision; its
            `log` has TensorRT's own lines. Or a plugin does not load, or no node uses it.
    """
    pictures = images if feeds is None else feeds
    check_arguments(precision, keep, calibration, pictures, workspace_bytes, timeout_s)
    chosen = _choose_flavour(flavour, targets)
    checked = _check_targets(chosen, targets)
    if pictures is not None:
        check_outputs([calibration], [onnx_path, images])
    options: dict[str, Any] = {"workspace_bytes": int(workspace_bytes), "tf32": precision == "tf32"}
    options |= {"version_compatible": bool(version_compatible), "keep": sorted(keep)}
    options |= {"embed_plugins": bool(embed_plugins)}
    read = read_plugins(plugins)
    if embed_plugins:
        _check_embedding(chosen, read)
    rest = (PrecisionSpec(precision, tuple(keep)), options, read, progress, timeout_s, cache)
    job = _Job(Path(onnx_path), chosen, _building_gpu(chosen), checked, shape, profile, *rest)
    if images is not None or feeds is not None:
        _check_model(job)  # before minutes are spent on the pictures
    spec = measure_spec(job.path, job.spec, calibration, images, preprocess, feeds, progress=progress)
    job = replace(job, spec=spec)
    return _take_or_build(job)


def check_arguments(
    precision: str, keep: Sequence[str], calibration: Any, pictures: Any, workspace_bytes: int, timeout_s: float | None
) -> None:
    """Refuse what `build_engine` cannot be asked for on any machine, before a network is converted for it."""
    check_spec(precision, keep, calibration, pictures)
    _check_numbers(workspace_bytes, timeout_s)


def _take_or_build(job: _Job) -> Plan:
    known = known_digest(job.path) if job.cache else None
    plan = engine_cache.read_entry(job.key(known)) if known else None
    if plan is None:
        resolved = _check_model(job)
        digest = take_digest(job.path)
        plan = engine_cache.read_entry(job.key(digest)) if job.cache and digest != known else None
    if job.progress:
        what, shapes = ("built before, from the cache", plan.manifest.profiles[0]) if plan else ("profile", resolved)
        tqdm.write(f"{job.path.name}: {what}\n{profile_text(shapes)}")
    if plan is not None:
        return replace(plan, manifest=replace(plan.manifest, onnx_name=job.path.name))
    plan = _build(job, resolved, digest)
    if job.cache:
        engine_cache.write_entry(job.key(digest), plan)
    return plan


def _check_numbers(workspace_bytes: int, timeout_s: float | None) -> None:
    if isinstance(workspace_bytes, bool) or not hasattr(workspace_bytes, "__index__"):
        raise InputError(f"got workspace_bytes={workspace_bytes!r}, expected a whole number of bytes")
    if workspace_bytes < _MINIMUM_WORKSPACE:
        raise InputError(f"got workspace_bytes={workspace_bytes}, expected at least {_MINIMUM_WORKSPACE} (1 MiB)")
    if timeout_s is not None and not 0 < timeout_s <= TIMEOUT_MAX:
        raise InputError(f"got timeout_s={timeout_s}, expected seconds above 0, or None for no limit")


def _choose_flavour(name: str | None, targets: Sequence[str] | None) -> Flavour:
    """With targets and no name, the first flavour that builds ahead of time."""
    if name is None and targets:
        for flavour in available_flavours()[0]:
            if flavour.builds_ahead_of_time:
                return flavour
    return open_flavour(name, for_building=True)


def _check_targets(flavour: Flavour, targets: Sequence[str] | None) -> tuple[str, ...]:
    if not targets:
        return ()
    if isinstance(targets, str):
        raise InputError(f"got targets={targets!r}, expected a list such as [{targets!r}]")
    if not flavour.builds_ahead_of_time:
        raise InputError(
            f"got targets for {flavour.title}, which builds for the GPU of this machine only; leave targets out, or "
            "use flavour='tensorrt_rtx'"
        )
    wanted = tuple(dict.fromkeys(str(target).lower() for target in targets))
    for target in wanted:
        if target not in flavour.targets:
            raise InputError(f"got the target {target!r}, expected some of {', '.join(flavour.targets)}")
    return wanted


def _check_embedding(flavour: Flavour, plugins: Sequence[Plugin]) -> None:
    if not hasattr(getattr(flavour.module, "IBuilderConfig", None), "plugins_to_serialize"):
        raise InputError(f"{flavour.title} writes no plugin library into a plan; leave embed_plugins out")
    if not plugins or not all(plugin.path for plugin in plugins):
        names = ", ".join(plugin.title for plugin in plugins if not plugin.path) or "no plugin"
        raise InputError(f"got embed_plugins for {names}, expected compiled libraries: Python stays outside a plan")


def _building_gpu(flavour: Flavour) -> Gpu | None:
    """The GPU that takes part in the build: none where the flavour builds ahead of time and none is here."""
    if flavour.builds_ahead_of_time:
        gpus = probe_driver().gpus
        return gpus[0] if gpus else None
    try:
        return require_gpu()
    except DriverError as error:
        raise DriverError(
            f"{flavour.title} builds on a GPU only: {error}; flavour='tensorrt_rtx' builds for RTX GPUs anywhere"
        ) from error


def _check_model(job: _Job) -> Profile:
    """Check the file and its inputs; return the whole profile."""
    summary = check(job.path)
    for spec in (*summary.inputs, *summary.outputs):
        what = f"{spec.name!r} of {job.path}"
        if spec.dtype == "object":
            raise ModelError(f"{what} holds text; TensorRT takes numbers only: convert it outside")
        if spec.dtype in ("float64", "complex64", "complex128"):
            raise ModelError(f"{what} is {spec.dtype}; TensorRT has no such type: export in float32")
        if len(spec.shape) > MAX_RANK:
            raise ModelError(f"{what} has {len(spec.shape)} axes; TensorRT takes {MAX_RANK} at most")
    return resolve_profile({spec.name: spec for spec in summary.inputs}, job.shape, job.profile)


def _build(job: _Job, profile: Profile, digest: str) -> Plan:
    with temporary_folder() as folder:
        converted, plan_path, timing = folder / job.path.name, folder / f"{job.path.name}.plan", ""
        report = to_precision(job.path, converted, job.spec)
        kept = report.kept if report is not None else taken_as_kept(job.path, job.spec)
        if job.cache and job.here:
            timing = str(engine_cache.timing_cache_path(job.flavour.name, job.flavour.version, job.here.name))
        order: dict[str, Any] = {"onnx_path": str(converted if report is not None else job.path.resolve())}
        order |= {"plan_path": str(plan_path), "timing_cache": timing, "profiles": [profile], "targets": job.targets}
        order |= {name: job.options[name] for name in ("workspace_bytes", "version_compatible")}
        order |= {"flavour": job.flavour.name, "precision": job.spec.precision, "whole": report is not None}
        order["kept"] = [name for name, _, _ in kept]
        order |= {"embed_plugins": job.options["embed_plugins"], **custom_order(order["onnx_path"], job.plugins)}
        env = library_environment(folder) if job.plugins else None
        bar: dict[str, Any] = {"title": f"build {job.path.name}", "progress": job.progress}
        facts = run_child(order, "build", timeout_s=job.timeout_s, environment=env, **bar)
        data = plan_path.read_bytes()
    manifest = _manifest(job, profile, digest, data, facts)
    words = tuple({"node": name, "operator": operator, "reason": reason} for name, operator, reason in kept)
    return Plan(data, replace(manifest, kept=words, converted=report is not None))


def _manifest(job: _Job, profile: Profile, digest: str, data: bytes, facts: Mapping[str, Any]) -> PlanManifest:
    return PlanManifest(
        flavour=job.flavour.name,
        version=job.flavour.version,
        compute_capability=job.here.capability if job.here else None,
        gpu_name=job.here.name if job.here else "",
        targets=job.targets,
        onnx_name=job.path.name,
        onnx_sha256=digest,
        plan_sha256=hashlib.sha256(data).hexdigest(),
        plan_bytes=len(data),
        precision=job.spec.precision,
        profiles=(profile,),
        options=job.options,
        layers=facts["layers"],
        types=facts["types"],
        qdq_pairs=facts["layers"].get("DEQUANTIZE", 0),
        calibration=job.spec.digest,
        plugins={plugin.title: plugin.digest for plugin in job.plugins},
        plugin_nodes=facts["plugins"],
        kernels=tuple(facts["kernels"]),
        memory=facts["memory"],
        workbench=__version__,
        built=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _plain(value: Any) -> Any:
    """Shapes and profiles as lists and numbers, whatever they are written with."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if np.ndim(value) == 0:
        return int(value) if hasattr(value, "__index__") else repr(value)
    return [_plain(entry) for entry in value]


def save_engine(plan: Plan, path: PathLike) -> Path:
    """Write a plan to `path`, and its manifest to `path` + `.json`, each whole or not at all.

    Returns:
        The path of the plan.
    Raises:
        OutputError: the folder does not exist or cannot be written to, or the disk is full.
    """
    target = Path(path)
    beside = manifest_path(target)
    check_outputs([target, beside])
    # The plan is put in place first: a plan beside an older manifest is refused as damaged, not run.
    with atomic_path(beside, replace=True) as manifest_file, atomic_path(target, replace=True) as plan_file:
        manifest_file.write_text(plan.manifest.to_json(), encoding="utf-8")
        plan_file.write_bytes(plan.data)
    return target


def check_plan_path(path: PathLike) -> None:
    """Refuse a plan's path before minutes are spent on building it: InputError, or OutputError as `check_outputs`."""
    path = Path(path)
    if path.suffix.lower() not in (".plan", ".engine"):
        raise InputError(f"got {path} as the plan to write, expected a name that ends in .plan or .engine")
    check_outputs([path, manifest_path(path)])


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
    size, title = f"{manifest.plan_bytes / 1e6:.1f} MB", f"{BACKEND_NAMES[manifest.flavour]} {manifest.version}"
    return (
        f"{os.fspath(path)}: {size}, {manifest.precision}, built by {title}\n"
        f"layers   {sum(manifest.layers.values())} before fusion ({layers})\n"
        f"{_found_text(manifest)}runs on  {where}\nmanifest {manifest_path(path)}"
    )


def _found_text(manifest: PlanManifest) -> str:
    """What the layers compute in, which were left wider, and what the builder made of them, where its log told."""
    text, reasons = "", dict[str, list[str]]()
    if manifest.types:
        pairs = f"; {manifest.qdq_pairs} pairs of Q and DQ" if manifest.qdq_pairs else ""
        text = f"types    {types_text(manifest.types)}{pairs}; types of the network, not kernels\n"
        for entry in manifest.kept:
            reasons.setdefault(entry["reason"], []).append(entry["node"])
    for reason, nodes in reasons.items():
        more = f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
        text += f"float32  {', '.join(nodes[:_SHOWN])}{more}: {reason}\n"
    for node, operator in manifest.plugin_nodes.items():
        text += f"plugin   {node}: {operator}\n"
    if manifest.kernels and manifest.memory:
        parts = (f"{name.removesuffix('_bytes')} {size / 1e6:.0f} MB" for name, size in manifest.memory.items())
        text += f"kernels  {len(manifest.kernels)} after fusion; memory on the GPU: {', '.join(parts)}\n"
    return text


def equivalent_commands(plan: Plan, onnx_path: PathLike, plan_path: PathLike) -> tuple[str, str]:
    """Return the trtexec and polygraphy lines that build the same engine; `onnx_path` is the converted file, if any."""
    of = (plan.manifest, onnx_path, plan_path)
    return trtexec_command(*of), polygraphy_command(*of)
