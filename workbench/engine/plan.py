"""What a built engine is on disk: the plan's bytes, and a manifest that says where it may be loaded.

The profiles in it are the shapes that each dynamic input may have: the smallest, the most usual and the largest.
"""

import json
import mmap
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from workbench.core.contract import TensorSpec
from workbench.core.errors import EngineLoadError, InputError
from workbench.core.files import check_fields, parse_json

PathLike = str | os.PathLike[str]
Shape = tuple[int, ...]
Shapes = tuple[Shape, Shape, Shape]
Profile = dict[str, Shapes]

ROLES = ("min", "opt", "max")
DEFAULT_BATCH = (1, 4, 8)
MAX_RANK = 8  # TensorRT's Dims.MAX_DIMS, the same in 10, 11 and RTX
RTX_MAGIC = b"vtrt"  # how every plan of TensorRT-RTX 1.7 starts; seen in the plans it builds

_OPTIONS = {
    "workspace_bytes": int,
    "keep": tuple[str, ...],
    "version_compatible": bool,
    "tf32": bool,
    "embed_plugins": bool,
}


@dataclass(frozen=True)
class PlanManifest:
    """How a plan was built, and for which machines.

    Attributes:
        flavour: a key of `tensorrt_api.FLAVOURS`.
        version: of that flavour.
        compute_capability: of the GPU it was built on, such as `"9.0"`; None when it was built ahead of time.
        gpu_name: that GPU; empty when it was built ahead of time.
        targets: GPU generations it was built for ahead of time; empty for the flavour's own choice.
        onnx_name: file name of the ONNX model, without its folder.
        onnx_sha256: hash of the ONNX file and of its external data.
        plan_sha256: hash of the plan's bytes.
        plan_bytes: size of the plan.
        precision: asked for and found in the network, such as `"fp32"`.
        profiles: smallest, most usual and largest shape of each dynamic input.
        options: the builder's settings.
        layers: how many layers of each kind TensorRT parsed, before it fused them.
        types: what the computing layers of each kind give, such as `"float16"`, or `"int8 to float32"` between pairs
            of QuantizeLinear and DequantizeLinear. Types of the network, not kernels: those are chosen on the GPU.
        converted: the ONNX file was in float32, and what was built is a copy in this precision.
        kept: `node`, `operator` and `reason` of what was left in float32.
        qdq_pairs: how many such pairs the network has.
        calibration: digest of the measured ranges that the conversion used; empty where it used none.
        plugins: the SHA-256 of each plugin library or function that the plan needs, by its file's or its own name.
        plugin_nodes: the operator of each ONNX node that a plugin computes, by the node's name.
        kernels: `name`, `kind` and ONNX `nodes` of each kernel after fusion, as far as the builder's log tells.
        memory: `activation_bytes` (at the largest shapes) and `weights_bytes` on the GPU, likewise.
        workbench: version of this package.
        built: date and time, UTC.
    """

    flavour: str
    version: str
    compute_capability: str | None
    gpu_name: str
    targets: tuple[str, ...]
    onnx_name: str
    onnx_sha256: str
    plan_sha256: str
    plan_bytes: int
    precision: str
    profiles: tuple[Profile, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, int] = field(default_factory=dict)
    types: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    converted: bool = False
    kept: tuple[Mapping[str, str], ...] = ()
    qdq_pairs: int = 0
    calibration: str = ""
    plugins: Mapping[str, str] = field(default_factory=dict)
    plugin_nodes: Mapping[str, str] = field(default_factory=dict)
    kernels: tuple[Mapping[str, Any], ...] = ()
    memory: Mapping[str, int] = field(default_factory=dict)
    workbench: str = ""
    built: str = ""

    @property
    def version_compatible(self) -> bool:
        """Whether newer versions and the lean runtime may load it; such a plan carries host code."""
        return bool(self.options.get("version_compatible"))

    def to_json(self) -> str:
        """Return the manifest as JSON text."""
        return json.dumps({"format": "workbench plan 1", **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "PlanManifest":
        """Read a manifest; EngineLoadError where the text is none."""
        try:
            known = {entry.name for entry in fields(cls)}
            values = {name: value for name, value in parse_json(text).items() if name in known}
            check_fields(get_type_hints(cls), values)
            check_fields(_OPTIONS, values.get("options", {}))
            values |= {name: tuple(values.get(name, ())) for name in ("kernels", "kept")}
            values["targets"] = tuple(values["targets"])
            values["profiles"] = tuple(
                {name: (tuple(low), tuple(usual), tuple(high)) for name, (low, usual, high) in profile.items()}
                for profile in values["profiles"]
            )
            if not values["profiles"]:
                raise ValueError("it has no profile")
            manifest = cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise EngineLoadError(
                f"the manifest is damaged ({error}); build the engine again with: workbench build"
            ) from error
        return manifest


@dataclass(frozen=True)
class Plan:
    """A built engine.

    Attributes:
        data: the plan; bytes, or a read-only map of a file that reads like bytes.
        manifest: how it was built.
    """

    data: bytes | mmap.mmap = field(repr=False)
    manifest: PlanManifest


def manifest_path(path: PathLike) -> Path:
    """Return where the manifest of a plan lies: `x.plan.json` beside `x.plan`."""
    return Path(f"{os.fspath(path)}.json")


def resolve_profile(
    specs: Mapping[str, TensorSpec],
    shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    profile: Mapping[str, Any] | None = None,
) -> Profile:
    """Give every dynamic input (None in its spec) a smallest, most usual and largest shape; empty where all are fixed.

    `shape` is one for the only input, or by name: such inputs keep it always. `profile` has (min, opt, max) by name. An
    open batch that neither names gets 1, 4, 8. InputError: an unknown name, a wrong rank, a size that is fixed, below 1
    or out of order, or an open height or width without a size.

    >>> resolve_profile({"x": TensorSpec("x", (None, 3), "float32")})
    {'x': ((1, 3), (4, 3), (8, 3))}
    """
    fixed, given = _fixed_shapes(specs, shape), _given_shapes(profile)
    for name in sorted(set(fixed) & set(given)):
        raise InputError(f"input {name!r} has both a shape and a profile; give one of them")
    wanted = fixed | given
    for name in wanted:
        if name not in specs:
            raise InputError(f"the profile names {name!r}, expected an input of the network: {', '.join(specs)}")
    resolved = {}
    for name, spec in specs.items():
        shapes = wanted.get(name) or _default_shapes(spec)
        _check_shapes(spec, shapes)
        if None in spec.shape:
            resolved[name] = shapes
    return resolved


def parse_profile(words: Sequence[str]) -> dict[str, Shapes]:
    """Read `name=MINxSHAPE,OPTxSHAPE,MAXxSHAPE`, or `name=SHAPE` for an input that keeps one shape; else InputError.

    >>> parse_profile(["x=1x3,4x3,8x3", "y=2x5"])
    {'x': ((1, 3), (4, 3), (8, 3)), 'y': ((2, 5), (2, 5), (2, 5))}
    """
    profile = {}
    for word in words:
        name, mark, text = word.rpartition("=")
        parts = text.split(",")
        sound = mark and name and len(parts) in (1, 3) and all(re.fullmatch(r"\d+(x\d+)*", part) for part in parts)
        if not sound:
            raise InputError(f"got the profile {word!r}, expected name=1x3x224x224,4x3x224x224,8x3x224x224")
        shapes = [tuple(int(size) for size in part.split("x")) for part in parts]
        profile[name] = (shapes[0], shapes[len(shapes) // 2], shapes[-1])
    return profile


def profile_text(profile: Profile) -> str:
    """Return the profile for people, one line for each input.

    >>> profile_text({"x": ((1, 3), (4, 3), (8, 3))})
    'x: min 1x3, opt 4x3, max 8x3'
    """
    lines = []
    for name, shapes in profile.items():
        sizes = [f"{role} {shape_text(shape)}" for role, shape in zip(ROLES, shapes, strict=True)]
        lines.append(f"{name}: {', '.join(sizes)}")
    return "\n".join(lines) or "every shape is fixed, no profile is needed"


def shape_text(shape: Sequence[int], mark: str = "x") -> str:
    """Write a shape the way TensorRT's tools do: `1x3x224x224`."""
    return mark.join(map(str, shape))


def _fixed_shapes(specs: Mapping[str, TensorSpec], shape: Any) -> Profile:
    if shape is None:
        return {}
    if not isinstance(shape, Mapping):
        if len(specs) != 1:
            raise InputError(
                f"got one shape for {len(specs)} inputs, expected a dict of shapes by name: {', '.join(specs)}"
            )
        shape = {next(iter(specs)): shape}
    return {name: (_shape(name, sizes),) * 3 for name, sizes in shape.items()}


def _given_shapes(profile: Any) -> Profile:
    if not isinstance(profile, Mapping | None):
        raise InputError(f"got {type(profile).__name__} as the profile, expected a dict: input name to (min, opt, max)")
    given = {}
    for name, shapes in (profile or {}).items():
        if isinstance(shapes, str) or not isinstance(shapes, Sequence) or len(shapes) != 3:
            raise InputError(f"the profile of {name!r} is {shapes!r}, expected three shapes: (min, opt, max)")
        given[name] = (_shape(name, shapes[0]), _shape(name, shapes[1]), _shape(name, shapes[2]))
    return given


def _shape(name: str, sizes: Any) -> Shape:
    try:
        shape = tuple(sizes)
    except TypeError:
        shape = ("",)
    if not all(hasattr(size, "__index__") and not isinstance(size, bool) for size in shape):
        raise InputError(f"the shape of {name!r} is {sizes!r}, expected whole numbers such as (4, 3, 224, 224)")
    return tuple(map(int, shape))


def _default_shapes(spec: TensorSpec) -> Shapes:
    """Open batches get `DEFAULT_BATCH`; any other open axis is for the caller to decide."""
    for axis in reversed(range(1, len(spec.shape))):
        if spec.shape[axis] is None:
            raise InputError(
                f"input {spec.name!r} is {spec.describe()}: axis {axis} is open; say how large it gets with "
                f"profile={{{spec.name!r}: (min, opt, max)}}, or fix it with shape="
            )
    low, usual, high = (tuple(batch if size is None else size for size in spec.shape) for batch in DEFAULT_BATCH)
    return low, usual, high


def _check_shapes(spec: TensorSpec, shapes: Shapes) -> None:
    for role, shape in zip(ROLES, shapes, strict=True):
        if len(shape) != len(spec.shape):
            raise InputError(f"{role} of {spec.name!r} is {shape}, expected {len(spec.shape)} axes: {spec.describe()}")
        for axis, (got, fixed) in enumerate(zip(shape, spec.shape, strict=True)):
            if fixed is not None and got != fixed:
                raise InputError(f"{role} of {spec.name!r} is {got} on axis {axis}, which the network fixes to {fixed}")
            if got < 1:
                raise InputError(f"{role} of {spec.name!r} is {got} on axis {axis}, expected 1 or more")
    for axis, sizes in enumerate(zip(*shapes, strict=True)):
        if list(sizes) != sorted(sizes):
            raise InputError(
                f"axis {axis} of {spec.name!r} is min {sizes[0]}, opt {sizes[1]}, max {sizes[2]}; "
                "expected min <= opt <= max"
            )
