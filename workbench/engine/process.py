"""Run a build in a child process: its progress as a bar, its crash, its time limit and Ctrl-C as one sentence."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tqdm.auto import tqdm

from workbench.core.errors import BackendUnavailableError, EngineBuildError, InputError, OutputError, WorkbenchError
from workbench.core.process import signal_name, temporary_folder
from workbench.engine.tensorrt_api import summarise_log

COMMAND = (sys.executable, "-m", "workbench.engine.child")
PARSER_COMMAND = (sys.executable, "-m", "workbench.engine.parser_child")

_KINDS: dict[str, type[WorkbenchError]] = {
    "InputError": InputError,
    "OutputError": OutputError,
    "BackendUnavailableError": BackendUnavailableError,
}


@dataclass
class Outcome:
    """What a child said.

    Attributes:
        log: TensorRT's lines, severity first.
        facts: what it says of the engine; None unless the build ended well.
        error: kind and text of the child's own error.
    """

    log: list[str] = field(default_factory=list)
    facts: dict[str, Any] | None = None
    error: tuple[str, str] | None = None


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
    with temporary_folder() as folder:
        plan_path, request_path = folder / "engine.plan", folder / "request.json"
        request_path.write_text(json.dumps({**request, "plan_path": str(plan_path)}), encoding="utf-8")
        with _bar(title, progress) as bar:
            outcome = _run_child([*COMMAND, str(request_path)], BuildProgress(bar), timeout_s)
        assert outcome.facts is not None
        return plan_path.read_bytes(), outcome.facts


def run_parser(request: Mapping[str, Any], *, title: str, progress: bool, timeout_s: float | None) -> dict[str, Any]:
    """Let TensorRT's parser read a network in a child process.

    Args:
        request: for `workbench.engine.parser_child`.
        title: what the bar is called.
        progress: show a bar.
        timeout_s: end the parser after this many seconds; None for no limit.
    Returns:
        What the child says, see `workbench.engine.parser_child.parse`.
    Raises:
        EngineBuildError: the parser died, or the time was over. Its `log` has TensorRT's lines.
        OutputError: the disk for temporary files is full.
    """
    with temporary_folder() as folder:
        request_path = folder / "request.json"
        request_path.write_text(json.dumps(dict(request)), encoding="utf-8")
        with _bar(title, progress) as bar:
            outcome = _run_child([*PARSER_COMMAND, str(request_path)], BuildProgress(bar), timeout_s, "parser")
    assert outcome.facts is not None
    return outcome.facts


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


def _run_child(command: list[str], progress: BuildProgress, timeout_s: float | None, part: str = "builder") -> Outcome:
    expired = threading.Event()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        child = _start_child(command, errors)

        def expire() -> None:
            expired.set()
            child.kill()

        timer = threading.Timer(timeout_s or 0, expire)
        try:
            if timeout_s is not None:
                timer.start()
            outcome = _listen(child, progress)
            status = child.wait()
        finally:  # also on Ctrl-C: the child never outlives this call
            timer.cancel()
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        errors.seek(0)
        if status or outcome.facts is None:
            raise _failure(status, outcome, errors.read(), timeout_s if expired.is_set() else None, part)
    return outcome


def _start_child(command: list[str], errors: IO[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # closes when this process dies, and the child ends with it
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=_environment(),
        start_new_session=True,  # Ctrl-C in a terminal reaches this process only, which ends the child
    )


def _listen(child: subprocess.Popen[str], progress: BuildProgress) -> Outcome:
    """Read the child's events until it closes its output."""
    outcome = Outcome()
    assert child.stdout is not None
    for line in child.stdout:
        try:
            event = json.loads(line)
            kind = event["event"]
        except (ValueError, KeyError, TypeError):
            outcome.log.append(line.rstrip())  # the child was killed in the middle of a line
            continue
        if kind == "log":
            outcome.log.append(f"{event['severity']}: {event['text']}")
        elif kind == "done":
            outcome.facts = event["facts"]
        elif kind == "error":
            outcome.error = (event["kind"], event["text"])
        else:
            progress.take(event)
    return outcome


def _failure(status: int, outcome: Outcome, errors: str, expired_s: float | None, part: str) -> WorkbenchError:
    """The child's end as an exception."""
    if expired_s is not None:
        work, also = ("build", ", or a smaller largest shape in the profile") if part == "builder" else (part, "")
        text = f"the {work} took longer than {expired_s:g} s and was ended; give a larger timeout_s{also}"
        return EngineBuildError(text, outcome.log)
    if outcome.error is not None:
        kind, text = outcome.error
        return _KINDS[kind](text) if kind in _KINDS else EngineBuildError(text, outcome.log)
    said = summarise_log(outcome.log)
    last = next((line.strip() for line in reversed(errors.splitlines()) if line.strip()), "")
    words = f"; its last words: {said or last}" if said or last else ""
    log = [*outcome.log, *errors.splitlines()]
    if status < 0:
        name = signal_name(-status)
        hint = "; the machine may be out of memory" if name == "SIGKILL" else ""
        return EngineBuildError(f"TensorRT's {part} was killed by {name}{hint}{words}", log)
    return EngineBuildError(f"TensorRT's {part} ended with status {status} and no result{words}", log)


def _environment() -> dict[str, str]:
    """Let the child import this very package, from wherever it was imported here."""
    here = str(Path(__file__).parents[2])
    paths = [here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


@contextlib.contextmanager
def _bar(title: str, progress: bool) -> Iterator[Any]:
    layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
    with tqdm(total=1.0, desc=title, disable=not progress, leave=False, bar_format=layout) as bar:
        yield bar
