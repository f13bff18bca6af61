"""Build an engine from an ONNX file, save it with its manifest, and load it where it may be loaded."""

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from tqdm.auto import tqdm

from workbench import __version__, engine_cache
from workbench.engine_commands import DEFAULT_WORKSPACE, build_command, polygraphy_command, trtexec_command
from workbench.engine_process import run_build
from workbench.errors import BackendUnavailableError, DriverError, EngineLoadError, InputError, ModelError, OutputError
from workbench.export import onnx_graph
from workbench.files import atomic_path
from workbench.plan import RTX_MAGIC, Plan, PlanManifest, Profile, manifest_path
from workbench.profiles import DEFAULT_BATCH, MAX_RANK, profile_text, resolve_profile
from workbench.runners.base import BACKEND_NAMES, TensorSpec
from workbench.tensorrt_api import (
    CollectingLogger,
    Flavour,
    Gpu,
    available_flavours,
    dtype_name,
    make_logger,
    make_runtime,
    open_flavour,
    probe_driver,
    require_gpu,
    unsupported_gpu,
)

if TYPE_CHECKING:
    import trt_types as trt  # the types of one flavour, from typings/; see tests/test_tensorrt_stubs.py

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
_MINIMUM_WORKSPACE = 1 << 20


class Engine:
    """An engine on this machine's GPU; use it in a `with` block.

    Attributes:
        flavour: what loaded it.
        manifest: how it was built; None where the plan came without one.
        inputs: the tensors it takes, by name; None for an open dimension.
        outputs: the tensors it gives, by name.
        profiles: for each optimization profile, (min, opt, max) shapes of each input, by name.
        logger: keeps what TensorRT says about this engine; None where it came without one.
    """

    def __init__(
        self,
        flavour: Flavour,
        cuda_engine: "trt.ICudaEngine",
        manifest: PlanManifest | None = None,
        keep: Sequence[Any] = (),
    ) -> None:
        """Describe a loaded engine.

        Args:
            flavour: what loaded it.
            cuda_engine: the flavour's `ICudaEngine`.
            manifest: how it was built.
            keep: what must live as long as the engine: its logger, then its runtime.
        """
        self.flavour = flavour
        self.manifest = manifest
        self._cuda_engine: trt.ICudaEngine | None = cuda_engine
        self.logger = next((item for item in keep if isinstance(item, CollectingLogger)), None)
        self._keep = list(keep)
        self.inputs, self.outputs = _describe_tensors(flavour, cuda_engine)
        self.profiles = tuple(
            {name: _profile_shapes(cuda_engine, spec, index) for name, spec in self.inputs.items()}
            for index in range(cuda_engine.num_optimization_profiles)
        )

    @property
    def cuda_engine(self) -> "trt.ICudaEngine":
        """The flavour's own `ICudaEngine`.

        Raises:
            InputError: the engine is closed.
        """
        if self._cuda_engine is None:
            raise InputError("the engine is closed; load it again with load_engine(...)")
        return self._cuda_engine

    def close(self) -> None:
        """Release the engine and its GPU memory, engine before runtime; a second call does nothing."""
        self._cuda_engine = None
        while self._keep:
            self._keep.pop()

    def __enter__(self) -> Self:
        """Return the open engine."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the engine, whatever happened in the block."""
        self.close()

    def __repr__(self) -> str:
        """Flavour, inputs and outputs in one line."""
        takes = ", ".join(f"{name} {spec.describe()}" for name, spec in self.inputs.items())
        gives = ", ".join(f"{name} {spec.describe()}" for name, spec in self.outputs.items())
        return f"<{self.flavour.title} engine: {takes} -> {gives}{' (closed)' if self._cuda_engine is None else ''}>"


@dataclass(frozen=True)
class _Job:
    """Everything that shapes a plan, but for the network itself."""

    path: Path
    flavour: Flavour
    gpu: Gpu | None
    targets: tuple[str, ...]
    shape: Any
    profile: Any
    precision: str
    options: dict[str, Any]

    def key(self, digest: str) -> str:
        """The cache key, with the hash of the network."""
        return engine_cache.make_key(
            onnx=digest,
            flavour=[self.flavour.name, self.flavour.version],
            gpu=[self.gpu.name, self.gpu.capability] if self.gpu else None,
            targets=self.targets,
            shapes=[_plain(self.shape), _plain(self.profile), DEFAULT_BATCH],
            precision=self.precision,
            options=self.options,
            workbench=__version__,
        )


def build_engine(
    onnx_path: PathLike,
    shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    *,
    precision: str = "fp32",
    workspace_bytes: int = DEFAULT_WORKSPACE,
    profile: Mapping[str, Any] | None = None,
    targets: Sequence[str] | None = None,
    progress: bool = True,
    flavour: str | None = None,
    timeout_s: float | None = None,
    cache: bool = True,
    version_compatible: bool = False,
) -> Plan:
    """Build a TensorRT engine in a child process: strongly typed, and float32 without TF32.

    Args:
        onnx_path: the model.
        shape: one shape for the only input, or a dict by name: inputs that never change their shape.
        precision: `"fp32"`.
        workspace_bytes: scratch memory that one layer may use at most.
        profile: smallest, most usual and largest shape by input name; an open batch gets 1, 4 and 8.
        targets: GPU generations to build for ahead of time, such as `["sm89", "sm120"]`; RTX only.
        progress: show a bar, and print the profile.
        flavour: a key of `tensorrt_api.FLAVOURS`; the first that can build when None.
        timeout_s: end the build after this many seconds.
        cache: take an engine built before from the cache, and keep this one there.
        version_compatible: newer versions and the lean runtime may load it; full TensorRT only.
    Returns:
        The plan and its manifest.
    Raises:
        InputError: a wrong argument, profile, target or input type.
        ModelError: the file is not a whole, valid ONNX model.
        BackendUnavailableError: no TensorRT that can build is installed.
        DriverError: this TensorRT builds on a GPU only, and there is none.
        EngineBuildError: TensorRT refused, crashed or took too long; its `log` has TensorRT's own lines.
    """
    _check_arguments(precision, workspace_bytes, timeout_s)
    chosen = _choose_flavour(flavour, targets)
    wanted = _check_targets(chosen, targets)
    options = {"workspace_bytes": int(workspace_bytes), "tf32": False, "version_compatible": bool(version_compatible)}
    job = _Job(Path(onnx_path), chosen, _building_gpu(chosen), wanted, shape, profile, precision, options)
    known = engine_cache.known_digest(job.path) if cache else None
    plan = engine_cache.read_entry(job.key(known)) if known else None
    if plan is None:
        resolved = _check_model(job)
        digest = engine_cache.take_digest(job.path)
        plan = engine_cache.read_entry(job.key(digest)) if cache and digest != known else None
    if plan is not None:
        _say(progress, f"{job.path.name}: built before, from the cache\n{profile_text(plan.manifest.profiles[0])}")
        return replace(plan, manifest=replace(plan.manifest, onnx_name=job.path.name))
    _say(progress, f"{job.path.name}: profile\n{profile_text(resolved)}")
    plan = _build(job, resolved, digest, progress=progress, timeout_s=timeout_s, cache=cache)
    if cache:
        engine_cache.write_entry(job.key(digest), plan)
    return plan


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
        f"layers   {sum(manifest.layers.values())} before fusion ({layers})\n{_kernels_text(manifest)}"
        f"runs on  {where}\n"
        f"manifest {manifest_path(path)}"
    )


def _kernels_text(manifest: PlanManifest) -> str:
    """What the builder made of the layers, where its log told."""
    if not manifest.kernels or not manifest.memory:
        return ""
    sizes = ", ".join(f"{name.removesuffix('_bytes')} {size / 1e6:.0f} MB" for name, size in manifest.memory.items())
    return f"kernels  {len(manifest.kernels)} after fusion; memory on the GPU: {sizes}\n"


def equivalent_commands(plan: Plan, onnx_path: PathLike, plan_path: PathLike) -> tuple[str, str]:
    """Return the trtexec and polygraphy lines that build the same engine."""
    manifest = plan.manifest
    workspace, flavour, profile = int(manifest.options["workspace_bytes"]), manifest.flavour, manifest.profiles[0]
    return (
        trtexec_command(
            onnx_path, plan_path, profile, workspace_bytes=workspace, targets=manifest.targets, flavour=flavour
        ),
        polygraphy_command(onnx_path, plan_path, profile, workspace_bytes=workspace, flavour=flavour),
    )


def load_engine(path: PathLike, *, allow_host_code: bool = False) -> Engine:
    """Load a plan, after comparing its manifest with this machine.

    A plan is code: load only what you or people you trust have built.

    Args:
        path: the plan; its manifest lies beside it as `path` + `.json`.
        allow_host_code: also load a version-compatible plan, which carries code for the processor.
    Returns:
        The engine; close it, or use it in a `with` block.
    Raises:
        EngineLoadError: the plan is missing, damaged, or for another flavour, version or GPU; the message has the
            command that builds it again.
        BackendUnavailableError: no TensorRT is installed.
        DriverError: there is no NVIDIA driver or GPU.
    """
    path = Path(path)
    data, manifest = _read_plan(path)
    flavour = _loading_flavour(path, data, manifest)
    if manifest is not None and manifest.version_compatible and not allow_host_code:
        raise EngineLoadError(
            f"{path} is version-compatible and carries code that would run on this machine's processor; if you trust "
            "who built it, pass allow_host_code=True"
        )
    gpu = require_gpu()
    _check_gpu(path, flavour, gpu, manifest)
    return _deserialize(path, data, flavour, manifest, allow_host_code)


def _check_arguments(precision: str, workspace_bytes: int, timeout_s: float | None) -> None:
    if precision != "fp32":
        raise InputError(
            f"got precision={precision!r}, expected 'fp32': the precision is a property of the ONNX file, and this "
            "version does not yet write others into it"
        )
    if isinstance(workspace_bytes, bool) or not hasattr(workspace_bytes, "__index__"):
        raise InputError(f"got workspace_bytes={workspace_bytes!r}, expected a whole number of bytes")
    if workspace_bytes < _MINIMUM_WORKSPACE:
        raise InputError(f"got workspace_bytes={workspace_bytes}, expected at least {_MINIMUM_WORKSPACE} (1 MiB)")
    if timeout_s is not None and not timeout_s > 0:
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
    summary = onnx_graph.check(job.path)
    for spec in (*summary.inputs, *summary.outputs):
        if spec.dtype == "object":
            raise ModelError(f"{spec.name!r} of {job.path} holds text; TensorRT takes numbers only: convert it outside")
        if spec.dtype in ("float64", "complex64", "complex128"):
            raise ModelError(
                f"{spec.name!r} of {job.path} is {spec.dtype}; TensorRT has no such type: export in float32"
            )
        if len(spec.shape) > MAX_RANK:
            raise ModelError(
                f"{spec.name!r} of {job.path} has {len(spec.shape)} axes; TensorRT takes {MAX_RANK} at most"
            )
    return resolve_profile({spec.name: spec for spec in summary.inputs}, job.shape, job.profile)


def _build(job: _Job, profile: Profile, digest: str, *, progress: bool, timeout_s: float | None, cache: bool) -> Plan:
    ahead = job.flavour.builds_ahead_of_time
    gpu = None if ahead else job.gpu
    request = {
        "onnx_path": str(job.path.resolve()),
        "flavour": job.flavour.name,
        "profiles": [profile],
        "targets": job.targets,
        "workspace_bytes": job.options["workspace_bytes"],
        "version_compatible": job.options["version_compatible"],
        "timing_cache": _timing_cache(job.flavour, gpu) if cache and gpu else "",
    }
    data, facts = run_build(request, title=f"build {job.path.name}", progress=progress, timeout_s=timeout_s)
    manifest = PlanManifest(
        flavour=job.flavour.name,
        version=job.flavour.version,
        compute_capability=gpu.capability if gpu else None,
        gpu_name=gpu.name if gpu else "",
        targets=job.targets,
        onnx_name=job.path.name,
        onnx_sha256=digest,
        plan_sha256=hashlib.sha256(data).hexdigest(),
        plan_bytes=len(data),
        precision=job.precision,
        profiles=(profile,),
        options=job.options,
        layers=facts["layers"],
        kernels=tuple(facts["kernels"]),
        memory=facts["memory"],
        workbench=__version__,
        built=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return Plan(data, manifest)


def _timing_cache(flavour: Flavour, gpu: Gpu) -> str:
    return str(engine_cache.timing_cache_path(flavour.name, flavour.version, gpu.name))


def _read_plan(path: Path) -> tuple[bytes, PlanManifest | None]:
    """Read a plan and its manifest and compare the two."""
    try:
        data = path.read_bytes()
        beside = manifest_path(path)
        manifest = PlanManifest.from_json(beside.read_text(encoding="utf-8")) if beside.is_file() else None
    except FileNotFoundError as error:
        raise EngineLoadError(f"{path} does not exist; build it with: workbench build model.onnx -o {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise EngineLoadError(f"{path} cannot be read ({error}); give the path of a plan") from error
    if not data:
        raise EngineLoadError(f"{path} is empty; {_rebuild(manifest, path)}")
    if manifest is None:
        warnings.warn(
            f"{path} has no manifest {beside.name}: its flavour, version and GPU cannot be compared with this machine",
            stacklevel=3,
        )
    elif len(data) != manifest.plan_bytes:
        raise EngineLoadError(
            f"{path} is damaged: got {len(data)} bytes, expected {manifest.plan_bytes}; copy it again, or "
            f"{_rebuild(manifest, path)}"
        )
    elif hashlib.sha256(data).hexdigest() != manifest.plan_sha256:
        raise EngineLoadError(
            f"{path} is damaged: its bytes are not those of its manifest; copy both again, or "
            f"{_rebuild(manifest, path)}"
        )
    return data, manifest


def _loading_flavour(path: Path, data: bytes, manifest: PlanManifest | None) -> Flavour:
    """The flavour that may load the plan."""
    if manifest is None:
        flavour = open_flavour("tensorrt_rtx" if data.startswith(RTX_MAGIC) else None)
        if flavour.name == "tensorrt_rtx" and not data.startswith(RTX_MAGIC):
            raise EngineLoadError(f"{path} is not a plan of {flavour.title}; {_rebuild(None, path)}")
        return flavour
    flavour = _matching_flavour(path, manifest)
    if flavour.version != manifest.version and not manifest.version_compatible:
        raise EngineLoadError(
            f"{path} was built by version {manifest.version}, got {flavour.title}; install that version, or "
            f"{_rebuild(manifest, path)}"
        )
    return flavour


def _matching_flavour(path: Path, manifest: PlanManifest) -> Flavour:
    try:
        return open_flavour(manifest.flavour)
    except (BackendUnavailableError, InputError) as error:
        others = available_flavours()[0]
        if manifest.version_compatible and manifest.flavour == "tensorrt":
            for other in others:
                if other.name == "tensorrt_lean":
                    return other
        if not others:
            raise
        builder = next((other.name for other in others if other.can_build), "tensorrt_rtx")
        raise EngineLoadError(
            f"{path} was built by {manifest.flavour} {manifest.version}, got {others[0].title}: plans are not "
            f"exchangeable; {_rebuild(manifest, path, builder)}"
        ) from error


def _check_gpu(path: Path, flavour: Flavour, gpu: Gpu, manifest: PlanManifest | None) -> None:
    unsupported = unsupported_gpu(flavour, gpu)
    if unsupported:
        raise EngineLoadError(f"{path} cannot run here: {unsupported}")
    if manifest is None:
        return
    here = f"got {gpu.name} with compute capability {gpu.capability}"
    if manifest.compute_capability not in (None, gpu.capability):
        built_on = f"{manifest.gpu_name} with {manifest.compute_capability}"
        raise EngineLoadError(f"{path} was built on {built_on}, {here}; on this machine, {_rebuild(manifest, path)}")
    target = "sm{}{}".format(*gpu.compute_capability)
    if manifest.targets and target not in manifest.targets:
        command = build_command(replace(manifest, targets=(*manifest.targets, target)), path)
        raise EngineLoadError(f"{path} was built for {', '.join(manifest.targets)}, {here}; build it again: {command}")
    if manifest.gpu_name and manifest.gpu_name != gpu.name:
        warnings.warn(
            f"{path} was built on {manifest.gpu_name}, {here}: it runs, but its kernels were chosen for the other GPU",
            stacklevel=3,
        )


def _deserialize(
    path: Path, data: bytes, flavour: Flavour, manifest: PlanManifest | None, allow_host_code: bool
) -> Engine:
    logger = make_logger(flavour)
    runtime = make_runtime(flavour, logger)
    if allow_host_code:
        runtime.engine_host_code_allowed = True
    cuda_engine = runtime.deserialize_cuda_engine(data)  # None on any error; the reason is in the log only
    if cuda_engine is None:
        reason = logger.reasons() or "it gives no reason"
        if "host code" in reason.lower() and not allow_host_code:
            reason += "; if you trust who built it, pass allow_host_code=True"
        raise EngineLoadError(f"{flavour.title} refuses {path}: {reason}; {_rebuild(manifest, path)}")
    return Engine(flavour, cuda_engine, manifest, keep=(logger, runtime))


def _describe_tensors(
    flavour: Flavour, cuda_engine: "trt.ICudaEngine"
) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    """Name, shape and dtype of each input and output, in the engine's order."""
    inputs: dict[str, TensorSpec] = {}
    outputs: dict[str, TensorSpec] = {}
    for index in range(cuda_engine.num_io_tensors):
        name = cuda_engine.get_tensor_name(index)
        shape = tuple(None if size < 0 else int(size) for size in cuda_engine.get_tensor_shape(name))
        spec = TensorSpec(name, shape, dtype_name(cuda_engine.get_tensor_dtype(name)))
        is_input = cuda_engine.get_tensor_mode(name) == flavour.module.TensorIOMode.INPUT
        (inputs if is_input else outputs)[name] = spec
    return inputs, outputs


def _profile_shapes(cuda_engine: "trt.ICudaEngine", spec: TensorSpec, index: int) -> tuple[Any, Any, Any]:
    if None not in spec.shape:
        return (spec.shape,) * 3
    smallest, usual, largest = cuda_engine.get_tensor_profile_shape(spec.name, index)
    return tuple(smallest), tuple(usual), tuple(largest)


def _rebuild(manifest: PlanManifest | None, path: Path, flavour: str = "") -> str:
    if manifest is None:
        return f"build it again: workbench build model.onnx -o {path}"
    return f"build it again: {build_command(manifest, path, flavour=flavour)}"


def _plain(value: Any) -> Any:
    """Shapes and profiles as lists and numbers, whatever they are written with."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if np.ndim(value) == 0:
        return int(value) if hasattr(value, "__index__") else repr(value)
    return [_plain(entry) for entry in value]


def _say(progress: bool, text: str) -> None:
    if progress:
        tqdm.write(text)
