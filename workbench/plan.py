"""What a built engine is on disk: the plan's bytes, and a manifest that says where it may be loaded."""

import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from workbench.errors import EngineLoadError

Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]

RTX_MAGIC = b"vtrt"  # how every plan of TensorRT-RTX 1.7 starts; seen in the plans it builds


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
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "PlanManifest":
        """Read a manifest.

        Raises:
            EngineLoadError: the text is not a manifest.
        """
        try:
            values = json.loads(text)
            known = {entry.name for entry in fields(cls)}
            values = {name: value for name, value in values.items() if name in known}
            values["targets"] = tuple(values["targets"])
            values["kernels"] = tuple(values.get("kernels", ()))
            values["kept"] = tuple(values.get("kept", ()))
            values["profiles"] = tuple(_read_profile(profile) for profile in values["profiles"])
            manifest = cls(**values)
            if not all(isinstance(value, str) for value in (manifest.flavour, manifest.version, manifest.plan_sha256)):
                raise TypeError("flavour, version and plan_sha256 must be text")
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


def manifest_path(path: str | os.PathLike[str]) -> Path:
    """Return where the manifest of a plan lies.

    >>> manifest_path("engines/resnet50.plan").as_posix()
    'engines/resnet50.plan.json'
    """
    return Path(f"{os.fspath(path)}.json")


def _read_profile(profile: Mapping[str, Any]) -> Profile:
    read = {}
    for name, (smallest, usual, largest) in profile.items():
        read[name] = (tuple(smallest), tuple(usual), tuple(largest))
    return read
