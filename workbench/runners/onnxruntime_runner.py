"""Run an ONNX file with ONNX Runtime, in full float32."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import ModelError
from workbench.export.onnx_graph import check
from workbench.optional import require_backend
from workbench.runners.base import Runner, RunnerInfo


class OnnxRuntimeRunner(Runner):
    """ONNX Runtime on the CPU.

    Args:
        path: the `.onnx` file.
        threads: threads inside one operator; 0 lets ONNX Runtime decide.
    Raises:
        ModelError: the file is not a valid ONNX model, or ONNX Runtime cannot run it.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 0) -> None:
        summary = check(path)
        runtime = require_backend("onnxruntime", "dev")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session: Any = runtime.InferenceSession(str(Path(path)), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            raise ModelError(f"ONNX Runtime cannot run {path}: {str(error).splitlines()[0]}") from error
        info = RunnerInfo("onnxruntime", runtime.__version__, "CPU")
        super().__init__(info, {s.name: s for s in summary.inputs}, {s.name: s for s in summary.outputs})

    def _infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = list(self.outputs)
        return dict(zip(names, self._session.run(names, feed), strict=True))

    def _close(self) -> None:
        self._session = None
