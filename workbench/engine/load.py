"""Load an engine where it may be loaded: its manifest is compared with this machine before the plan is read."""

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from workbench.core.contract import TensorSpec
from workbench.core.driver import Gpu, require_gpu
from workbench.core.errors import BackendUnavailableError, EngineBuildError, EngineLoadError, InputError
from workbench.core.files import open_regular, read_regular
from workbench.engine.commands import build_command
from workbench.engine.custom import Plugin, PluginLike, check_library_name, read_plugins, register_plugins
from workbench.engine.plan import RTX_MAGIC, PathLike, PlanManifest, manifest_path
from workbench.engine.tensorrt_api import (
    CollectingLogger,
    Flavour,
    available_flavours,
    dtype_name,
    make_logger,
    make_runtime,
    open_flavour,
    unsupported_gpu,
)

_LARGEST_MANIFEST = 1 << 26  # bytes; it has a line for each kernel
_LARGEST_PLAN = 1 << 37  # bytes; as much as the memory of a GPU

if TYPE_CHECKING:
    import trt_types as trt  # the types of one flavour, from typings/; see tests/engine/test_tensorrt_stubs.py


class Engine:
    """An engine on this machine's GPU; use it in a `with` block.

    Args:
        keep: what must live as long as the engine: its logger, then its runtime.

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
        self.flavour = flavour
        self.manifest = manifest
        self._cuda_engine: trt.ICudaEngine | None = cuda_engine
        self.logger = next((item for item in keep if isinstance(item, CollectingLogger)), None)
        self._keep = list(keep)
        self.inputs: dict[str, TensorSpec] = {}
        self.outputs: dict[str, TensorSpec] = {}
        for index in range(cuda_engine.num_io_tensors):
            name = cuda_engine.get_tensor_name(index)
            shape = tuple(None if size < 0 else int(size) for size in cuda_engine.get_tensor_shape(name))
            is_input = cuda_engine.get_tensor_mode(name) == flavour.module.TensorIOMode.INPUT
            spec = TensorSpec(name, shape, dtype_name(cuda_engine.get_tensor_dtype(name)))
            (self.inputs if is_input else self.outputs)[name] = spec
        self.profiles = tuple(
            {name: _profile_shapes(cuda_engine, spec, index) for name, spec in self.inputs.items()}
            for index in range(cuda_engine.num_optimization_profiles)
        )

    @property
    def cuda_engine(self) -> "trt.ICudaEngine":
        """The flavour's own `ICudaEngine`; InputError where the engine is closed."""
        if self._cuda_engine is None:
            raise InputError("the engine is closed; load it again with load_engine(...)")
        return self._cuda_engine

    def close(self) -> None:
        """Release the engine and its GPU memory, engine before runtime; a second call does nothing."""
        self._cuda_engine = None
        while self._keep:
            self._keep.pop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        takes = ", ".join(f"{name} {spec.describe()}" for name, spec in self.inputs.items())
        gives = ", ".join(f"{name} {spec.describe()}" for name, spec in self.outputs.items())
        return f"<{self.flavour.title} engine: {takes} -> {gives}{' (closed)' if self._cuda_engine is None else ''}>"


def load_engine(path: PathLike, *, allow_host_code: bool = False, plugins: Sequence[PluginLike] = ()) -> Engine:
    """Load a plan, after comparing its manifest with this machine.

    A plan is code: load only what you or people you trust have built.

    Args:
        path: the plan; its manifest lies beside it as `path` + `.json`.
        allow_host_code: also load a plan that carries code for the processor: a version-compatible one, or one with
            plugin libraries in it.
        plugins: the libraries and functions that it was built with; their code runs in this process.
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
    given, embedded = read_plugins(plugins), manifest is not None and bool(manifest.options.get("embed_plugins"))
    if manifest is not None and (manifest.version_compatible or embedded) and not allow_host_code:
        kind = "holds plugin libraries" if embedded else "is version-compatible"
        raise EngineLoadError(
            f"{path} {kind} and carries code that would run on this machine's processor; if you trust who built it, "
            "pass allow_host_code=True"
        )
    if manifest is not None and not embedded:
        _compare_plugins(path, manifest.plugins, {plugin.title: plugin.digest for plugin in given})
    _check_gpu(path, flavour, require_gpu(), manifest)
    return _deserialize(path, data, flavour, manifest, allow_host_code, given)


def _read_plan(path: Path) -> tuple[bytes, PlanManifest | None]:
    """Read a plan and its manifest and compare the two."""
    beside, manifest = manifest_path(path), None
    try:
        if beside.is_file():
            manifest = PlanManifest.from_json(read_regular(beside, _LARGEST_MANIFEST, EngineLoadError).decode())
        with open_regular(path, _LARGEST_PLAN, EngineLoadError) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read() if manifest is None or size == manifest.plan_bytes else b""
    except FileNotFoundError as error:
        raise EngineLoadError(f"{path} does not exist; build it with: workbench build model.onnx -o {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise EngineLoadError(f"{path} cannot be read ({error}); give the path of a plan") from error
    damage = ""
    if not size:
        raise EngineLoadError(f"{path} is empty; {_rebuild(manifest, path)}")
    if manifest is None:
        warnings.warn(
            f"{path} has no manifest {beside.name}: its flavour, version and GPU cannot be compared with this machine",
            stacklevel=3,
        )
    elif size != manifest.plan_bytes:
        damage = f"got {size} bytes, expected {manifest.plan_bytes}; copy it again"
    elif hashlib.sha256(data).hexdigest() != manifest.plan_sha256:
        damage = "its bytes are not those of its manifest; copy both again"
    if damage:
        raise EngineLoadError(f"{path} is damaged: {damage}, or {_rebuild(manifest, path)}")
    return data, manifest


def _loading_flavour(path: Path, data: bytes, manifest: PlanManifest | None) -> Flavour:
    """The flavour that may load the plan."""
    if manifest is None:
        flavour = open_flavour("tensorrt_rtx" if data.startswith(RTX_MAGIC) else None)
        if flavour.name == "tensorrt_rtx" and not data.startswith(RTX_MAGIC):
            raise EngineLoadError(f"{path} is not a plan of {flavour.title}; {_rebuild(None, path)}")
        return flavour
    try:
        flavour = open_flavour(manifest.flavour)
    except (BackendUnavailableError, InputError) as error:
        others = available_flavours()[0]
        lean = next((other for other in others if other.name == "tensorrt_lean"), None)
        if lean is not None and manifest.version_compatible and manifest.flavour == "tensorrt":
            return lean
        if not others:
            raise
        builder = next((other.name for other in others if other.can_build), "tensorrt_rtx")
        raise EngineLoadError(
            f"{path} was built by {manifest.flavour} {manifest.version}, got {others[0].title}: plans are not "
            f"exchangeable; {_rebuild(manifest, path, builder)}"
        ) from error
    if flavour.version != manifest.version and not manifest.version_compatible:
        raise EngineLoadError(
            f"{path} was built by version {manifest.version}, got {flavour.title}; install that version, or "
            f"{_rebuild(manifest, path)}"
        )
    return flavour


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
    path: Path,
    data: bytes,
    flavour: Flavour,
    manifest: PlanManifest | None,
    allow_host_code: bool,
    plugins: Sequence[Plugin],
) -> Engine:
    logger = make_logger(flavour)
    creators = _register(path, flavour, plugins, logger) if plugins else {}
    runtime = make_runtime(flavour, logger)
    if allow_host_code:
        runtime.engine_host_code_allowed = True
    cuda_engine = runtime.deserialize_cuda_engine(data)  # None on any error; the reason is in the log only
    if cuda_engine is None:
        reason = logger.reasons() or "it gives no reason"
        if "host code" in reason.lower() and not allow_host_code:
            reason += "; if you trust who built it, pass allow_host_code=True"
        raise EngineLoadError(f"{flavour.title} refuses {path}: {reason}; {_rebuild(manifest, path)}")
    return Engine(flavour, cuda_engine, manifest, keep=(logger, creators, runtime))


def _compare_plugins(path: Path, built: Mapping[str, str], given: Mapping[str, str]) -> None:
    if missing := sorted(set(built) - set(given)):
        raise EngineLoadError(f"{path} needs the plugin {' and '.join(missing)}; give it in load_engine(plugins=[...])")
    if other := sorted(name for name in built if given[name] != built[name]):
        raise EngineLoadError(f"{path} was built with another {' and '.join(other)} than the one given; build it again")


def _register(path: Path, flavour: Flavour, plugins: Sequence[Plugin], logger: Any) -> dict[str, Any]:
    try:
        check_library_name(flavour.name)
        return register_plugins(flavour.module, flavour.module.get_plugin_registry(), map(asdict, plugins), logger)
    except EngineBuildError as error:
        raise EngineLoadError(f"{path} cannot be loaded: {error}") from error


def _profile_shapes(cuda_engine: "trt.ICudaEngine", spec: TensorSpec, index: int) -> tuple[Any, Any, Any]:
    if None not in spec.shape:
        return (spec.shape,) * 3
    smallest, usual, largest = cuda_engine.get_tensor_profile_shape(spec.name, index)
    return tuple(smallest), tuple(usual), tuple(largest)


def _rebuild(manifest: PlanManifest | None, path: Path, flavour: str = "") -> str:
    plain = f"workbench build model.onnx -o {path}"
    return f"build it again: {build_command(manifest, path, flavour=flavour) if manifest is not None else plain}"
