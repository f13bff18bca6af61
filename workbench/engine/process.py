"""Run TensorRT's builder and its parser in a child process, with a bar that never goes back."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from tqdm.auto import tqdm

from workbench.core.errors import EngineBuildError
from workbench.core.process import Child, temporary_folder

CHILD = "workbench.engine.child"


def run_build(
    request: Mapping[str, Any], *, title: str, progress: bool, timeout_s: float | None
) -> tuple[bytes, dict[str, Any]]:
    """Build an engine in a child process.

    Args:
        request: for `workbench.engine.child`, without `plan_path`.
        title: what the bar is called.
        progress: show a bar.
        timeout_s: end the build after this many seconds; None for no limit.
    Returns:
        The plan, and facts: `layers` (parsed, by kind), `kernels` and `memory` (see `workbench.engine.child`).
    Raises:
        EngineBuildError: TensorRT refused, the child died, or the time was over. Its `log` has TensorRT's lines.
        OutputError: the disk for temporary files is full.
    """
    advice = "give a larger timeout_s, or a smaller largest shape in the profile"
    with temporary_folder() as folder:
        plan_path = folder / "engine.plan"
        order = {**request, "plan_path": str(plan_path)}
        facts = _run(order, "TensorRT's builder", advice, title, progress, timeout_s)
        return plan_path.read_bytes(), facts


def run_parser(request: Mapping[str, Any], *, title: str, progress: bool, timeout_s: float | None) -> dict[str, Any]:
    """Let TensorRT's parser read a network in a child process.

    Args:
        request: for `workbench.engine.child.ask`.
        title: what the bar is called.
        progress: show a bar.
        timeout_s: end the parser after this many seconds; None for no limit.
    Returns:
        What the child says, see `workbench.engine.child.ask`.
    Raises:
        EngineBuildError: the parser died, or the time was over. Its `log` has TensorRT's lines.
        OutputError: the disk for temporary files is full.
    """
    return _run(request, "TensorRT's parser", "give a larger timeout_s", title, progress, timeout_s)


def _run(
    order: Mapping[str, Any], part: str, advice: str, title: str, progress: bool, timeout_s: float | None
) -> dict[str, Any]:
    with Child(CHILD, title=part, advice=advice, error=EngineBuildError) as child, _bar(title, progress) as bar:
        return child.run(order, BuildProgress(bar).take, timeout_s)


class BuildProgress:
    """Turns TensorRT's nested phases into one fraction that never goes back.

    Args:
        bar: a tqdm bar with a total of 1.
    """

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._open: list[list[Any]] = []  # phase, steps done, steps in all; the innermost last

    def take(self, event: Mapping[str, Any]) -> None:
        """Move the bar by one event of the child."""
        kind, phase = event["event"], event.get("phase")
        if kind == "start":
            self._open.append([phase, 0, max(1, int(event["steps"]))])
            self._bar.set_postfix_str(phase)
        for entry in self._open:
            if entry[0] == phase and kind == "step":
                entry[1] = min(int(event["step"]) + 1, entry[2])
        if kind == "finish":
            self._open = [entry for entry in self._open if entry[0] != phase]
            if not self._open:
                self._move_to(1.0)
        self._move_to(self.fraction)

    @property
    def fraction(self) -> float:
        """How much of the outermost phase is done, 0..1."""
        done, share = 0.0, 1.0
        for _, steps_done, steps in self._open:
            done += share * steps_done / steps
            share /= steps
        return min(done, 1.0)

    def _move_to(self, fraction: float) -> None:
        if fraction > self._bar.n:
            self._bar.update(fraction - self._bar.n)


@contextlib.contextmanager
def _bar(title: str, progress: bool) -> Iterator[Any]:
    layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
    with tqdm(total=1.0, desc=title, disable=not progress, leave=False, bar_format=layout) as bar:
        yield bar
