"""Let a child process do TensorRT's work, with a bar that never goes back."""

from collections.abc import Callable, Mapping
from typing import Any

from tqdm.auto import tqdm

from workbench.core.errors import EngineBuildError
from workbench.core.process import Child
from workbench.engine.tensorrt_api import summarise_log

CHILD = "workbench.engine.child"

_LAYOUT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"


def run_child(
    order: Mapping[str, Any],
    work: str,
    *,
    title: str,
    progress: bool,
    timeout_s: float | None,
    environment: Mapping[str, str] | None = None,
    on_open: Callable[[str], object] = lambda title: None,
) -> dict[str, Any]:
    """Have `workbench.engine.child` build an engine, or only parse a network; return what it found.

    The work is `"build"` or `"parser"`, `title` that of the bar; `on_open` is given the name of the TensorRT opened.
    EngineBuildError, with TensorRT's lines as `log`: it refused, the child died, or the time was over.
    """
    part = f"TensorRT's {'builder' if work == 'build' else work}"
    advice = "give a larger timeout_s" + (", or a smaller largest shape in the profile" if work == "build" else "")

    def failure(text: str, log: list[str]) -> EngineBuildError:
        """The time is up for the whole work; a child that died had TensorRT's errors as its last words."""
        if " was killed by " in text and order["plugins"]:
            text = f"{text}; it had the plugins {', '.join(plugin['title'] for plugin in order['plugins'])}"
        head, mark, words = text.replace(f"{part} took", f"the {work} took").partition("; its last words: ")
        return EngineBuildError(f"{head}{mark}{(mark and summarise_log(log)) or words}", log)

    with (
        Child(CHILD, title=part, advice=advice, error=failure, environment=environment) as child,
        tqdm(total=1.0, desc=title, disable=not progress, leave=False, bar_format=_LAYOUT) as bar,
    ):
        moves = BuildProgress(bar)

        def take(event: Mapping[str, Any]) -> None:
            if event["event"] == "open":
                on_open(event["title"])
            else:
                moves.take(event)

        return child.run(order, take, timeout_s)


class BuildProgress:
    """Turns TensorRT's nested phases into one fraction that never goes back, for a tqdm bar with a total of 1."""

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
        # what is done of the outermost phase, 0..1
        fraction, share = float(kind == "finish" and not self._open), 1.0
        for _, done, steps in self._open:
            fraction += share * done / steps
            share /= steps
        if min(fraction, 1.0) > self._bar.n:
            self._bar.update(min(fraction, 1.0) - self._bar.n)
