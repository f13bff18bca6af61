"""Watch the memory of a process and all its children (Linux)."""

import contextlib
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int) -> int:
    """Memory in RAM of a process and everything it has started; pages that two of them share count twice."""
    total = 0
    with contextlib.suppress(OSError, IndexError):  # a process that ends while it is looked at
        total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        for task in os.listdir(f"/proc/{pid}/task"):
            children = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
            total += sum(resident_bytes(int(child)) for child in children)
    return total


class PeakMemory:
    """Sample a process tree a hundred times a second; use it in a `with` block.

    Attributes:
        peak_bytes: the largest sum that was seen.
    """

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak_bytes = max(self.peak_bytes, resident_bytes(self._pid))
