"""Run an ONNX file with ONNX Runtime, in the types that the file names: its float32 is full float32, not TF32."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from workbench.core.contract import Runner, RunnerInfo
from workbench.core.errors import BackendUnavailableError, InputError
from workbench.core.packages import require_backend
from workbench.onnx_graph.file import check, read
from workbench.onnx_graph.session import FLOAT8, may_loop, open_session, prepare_cuda, run_session, weight_types


class OnnxRuntimeRunner(Runner):
    """ONNX Runtime on the CPU, or with `device="cuda"` on an NVIDIA GPU, which never falls back to the CPU as a whole.

    `threads` work inside one operator, 0 lets ONNX Runtime decide; `tf32`, on a GPU, rounds the inputs of float32's
    heavy layers to TF32. ModelError where the file cannot be run; BackendUnavailableError, DriverError without what a
    GPU needs.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, threads: int = 0, device: str = "cpu", tf32: bool = False
    ) -> None:
        if device not in ("cpu", "cuda") or (tf32 and device == "cpu"):
            raise InputError(f"got device={device!r} and tf32={tf32}, expected 'cpu', or 'cuda' with or without TF32")
        summary = check(path)
        runtime = require_backend("onnxruntime", "dev")
        where = prepare_cuda(runtime) if device == "cuda" else "CPU"
        network = read(path)
        types = weight_types(network)
        self._session: Any = open_session(
            path, f"run {path}", device=device, tf32=tf32 or onnx.TensorProto.FLOAT16 in types, threads=threads,
            optimise="basic" if types & FLOAT8 else "all", loops=may_loop(network),
        )  # fmt: skip
        if device == "cuda" and "CUDAExecutionProvider" not in self._session.get_providers():
            raise BackendUnavailableError(
                "ONNX Runtime fell back to the CPU: the libraries of its CUDA provider do not load; install the CUDA "
                "and cuDNN that it was built for, with pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
        self.onnx_file = Path(path)
        info = RunnerInfo("onnxruntime", runtime.__version__, where)
        super().__init__(info, {s.name: s for s in summary.inputs}, {s.name: s for s in summary.outputs})

    def _infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return run_session(self._session, feed, f"run {self.onnx_file}")

    def _close(self) -> None:
        self._session = None
