"""Run an ONNX file with ONNX's own reference evaluator: each operator as ONNX defines it, in NumPy, and slow."""

import os
from typing import Any

import numpy as np
import onnx

from workbench.core.contract import Runner, RunnerInfo
from workbench.core.errors import ModelError, WorkbenchError, first_line
from workbench.onnx_graph.file import check, load
from workbench.onnx_graph.operators import reference_operators


class ReferenceRunner(Runner):
    """The network in NumPy, with the operators of `register_operator`; a ModelError where an operator is missing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from onnx.reference import ReferenceEvaluator

        summary = check(path)
        self._path = path
        try:
            self._evaluator: Any = ReferenceEvaluator(load(path), new_ops=reference_operators())
        except Exception as error:  # it raises what its operators raise
            raise self._failure(error) from error
        info = RunnerInfo("reference", onnx.__version__, "NumPy")
        super().__init__(info, {s.name: s for s in summary.inputs}, {s.name: s for s in summary.outputs})

    def _infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            answers = self._evaluator.run(list(self.outputs), feed)
        except WorkbenchError:
            raise
        except Exception as error:  # it raises what its operators raise
            raise self._failure(error) from error
        return {name: np.asarray(answer) for name, answer in zip(self.outputs, answers, strict=True)}

    def _failure(self, error: Exception) -> ModelError:
        return ModelError(f"ONNX's reference evaluator cannot run {self._path}: {first_line(error)}")

    def _close(self) -> None:
        self._evaluator = None
