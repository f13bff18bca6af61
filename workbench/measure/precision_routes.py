"""What runs a network of each precision on this machine: TensorRT's engines, or ONNX Runtime on the GPU or the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.contract import Runner
from workbench.core.driver import probe_driver
from workbench.core.errors import BackendUnavailableError, InputError
from workbench.engine.plan import Plan
from workbench.engine.tensorrt_api import Flavour, available_flavours, unsupported_gpu
from workbench.onnx_graph.session import prepare_cuda
from workbench.runners.onnxruntime_runner import OnnxRuntimeRunner

BACKENDS = ("auto", "tensorrt", "onnxruntime")


@dataclass(frozen=True)
class Built:
    """An engine, and how to keep it."""

    plan: Plan

    @property
    def size(self) -> int:
        """Bytes of the plan."""
        return self.plan.manifest.plan_bytes

    def save(self, path: Path) -> Path:
        """Write the plan and its manifest."""
        from workbench.engine.build import save_engine

        return save_engine(self.plan, path)


@dataclass(frozen=True)
class Route:
    """The way a network is run.

    Attributes:
        engines: whether TensorRT runs it; else ONNX Runtime does.
        device: ONNX Runtime's, `"cpu"` or `"cuda"`.
        flavour: what builds engines, for their size or to be run; None where nothing does.
    """

    engines: bool
    device: str
    flavour: Flavour | None

    @property
    def planner(self) -> str:
        """Name of what builds plans; empty where nothing does."""
        return self.flavour.title if self.flavour else ""

    @property
    def has_tf32(self) -> bool:
        """Whether a GPU computes."""
        return self.engines or self.device == "cuda"

    def open_reference(self, source: Path) -> Runner:
        """Open the network in float32, without TF32, in ONNX Runtime."""
        return OnnxRuntimeRunner(source, device=self.device)

    def open(self, path: Path, plan: Path | None, *, tf32: bool) -> Runner:
        """Open a network, or its engine where engines run."""
        if self.engines and plan is not None:
            from workbench.runners.tensorrt_runner import TensorRTRunner

            return TensorRTRunner(plan)
        runner: Any = OnnxRuntimeRunner
        return runner(path, device=self.device, **({"tf32": True} if tf32 else {}))

    def build(self, path: Path, precision: str, kept: Sequence[str]) -> Built:
        """Build an engine of a network that is in this precision, in which some nodes may stay wider."""
        from workbench.engine.build import build_engine

        name = self.flavour.name if self.flavour else None
        extra: dict[str, Any] = {"keep": list(kept)} if kept else {}
        return Built(build_engine(path, precision=precision, flavour=name, progress=False, **extra))

    def memory(self, plan: Path) -> int | None:
        """Bytes on the GPU that an engine's manifest tells of; None where it does not."""
        from workbench.engine.plan import PlanManifest, manifest_path

        told = PlanManifest.from_json(manifest_path(plan).read_text(encoding="utf-8")).memory
        return sum(told.values()) or None


def choose_route(backend: str = "auto") -> Route:
    """Find out what can run here.

    Args:
        backend: one of `BACKENDS`.
    Raises:
        InputError: another backend.
        BackendUnavailableError: TensorRT was asked for by name, and cannot run here.
    """
    if backend not in BACKENDS:
        raise InputError(f"got backend={backend!r}, expected one of {', '.join(BACKENDS)}")
    builders = [flavour for flavour in available_flavours()[0] if flavour.can_build]
    gpus = probe_driver().gpus
    running = [flavour for flavour in builders if gpus and not unsupported_gpu(flavour, gpus[0])]
    if backend == "tensorrt" and not running:
        raise BackendUnavailableError(
            f"no TensorRT runs here ({probe_driver().problem or 'none with a builder is installed'}); "
            "use backend='onnxruntime'"
        )
    device = "cuda" if gpus and _has_cuda() else "cpu"
    if running and backend != "onnxruntime":
        return Route(True, device, running[0])
    planners = [flavour for flavour in builders if flavour.builds_ahead_of_time] or running
    return Route(False, device, planners[0] if planners else None)


def _has_cuda() -> bool:
    """Whether ONNX Runtime has its CUDA provider."""
    from workbench.core.packages import require_backend

    try:
        prepare_cuda(require_backend("onnxruntime", "dev"))
    except BackendUnavailableError:
        return False
    return True
