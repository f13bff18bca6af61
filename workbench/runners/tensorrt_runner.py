"""Run a TensorRT plan: `load_engine`, `allocate_buffers` and `do_inference` behind the contract of all runners."""

import os
import threading
from collections.abc import Sequence

import numpy as np

from workbench.core.contract import Runner, RunnerInfo
from workbench.engine.custom import PluginLike
from workbench.engine.inference import Buffers, allocate_buffers, do_inference
from workbench.engine.load import load_engine
from workbench.engine.memory import DeviceMemory, open_memory


class TensorRTRunner(Runner):
    """A plan on the GPU, through TensorRT, TensorRT-RTX or the lean runtime.

    Options as in `allocate_buffers`, plugins as in `load_engine`.

    Several threads may call `infer`; the calls run one after the other. Buffers grow to the largest batch seen and are
    kept, so from then on a call allocates its answers only. EngineLoadError where the plan is damaged or does not fit
    this machine; BackendUnavailableError, DriverError without what it needs.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        memory: str | DeviceMemory = "auto",
        cuda_graph: bool = False,
        plugins: Sequence[PluginLike] = (),
    ) -> None:
        self._engine = load_engine(path, plugins=plugins)
        try:
            self._memory = open_memory(memory) if isinstance(memory, str) else memory
            info = RunnerInfo(self._engine.flavour.name, self._engine.flavour.version, self._memory.device_name)
        except BaseException:
            self._engine.close()
            raise
        self._cuda_graph = cuda_graph
        self._buffers: Buffers | None = None
        self._lock = threading.Lock()
        super().__init__(info, self._engine.inputs, self._engine.outputs)

    def _infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with self._lock:
            self._require_open()  # another thread may have closed it while this one waited
            answers = do_inference(self._engine, feed, self._buffers_for(self._batch(feed)))
            return {name: array.copy() for name, array in answers.items()}

    def _batch(self, feed: dict[str, np.ndarray]) -> int:
        """The batch of the first input that has one; of a network with a fixed batch, that one."""
        for name, spec in self.inputs.items():
            if len(spec.shape) > 1 or None in spec.shape:
                return feed[name].shape[0]
        return 1

    def _buffers_for(self, batch: int) -> Buffers:
        if self._buffers is None or self._buffers.batch_size < batch:
            kept, self._buffers = self._buffers, None
            if kept is not None:
                kept.close()
            self._buffers = allocate_buffers(self._engine, batch, memory=self._memory, cuda_graph=self._cuda_graph)
        return self._buffers

    def _close(self) -> None:
        with self._lock:
            try:
                if self._buffers is not None:
                    self._buffers.close()
            finally:
                self._engine.close()
