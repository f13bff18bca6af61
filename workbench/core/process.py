"""One protocol for work in a process of its own: its progress, its crash, its time limit and Ctrl-C as one sentence.

The parent sends one line of JSON, the order, and holds the child's standard input open: when the parent is gone, the
child ends. Nothing is imported from the current folder: a `json.py` there is not ours. The child answers with one JSON
object a line, each with an `event`: `note` becomes a warning, `log` is kept, `done` carries the result, `error` a kind
and a text; the others go to who started the child.
"""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from workbench.core.errors import BackendUnavailableError, ExportError, InputError, OutputError, WorkbenchError
from workbench.core.time_limit import time_left

Event = Mapping[str, Any]

_KINDS: dict[str, type[WorkbenchError]] = {
    "InputError": InputError,
    "OutputError": OutputError,
    "BackendUnavailableError": BackendUnavailableError,
}
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
"""Environment of a child that has no use for a GPU."""

STILL_S = 60.0
"""A child that has computed nothing for so many seconds waits for what never comes, and is ended."""

# Imports this very package, wherever it lies, whatever else is called so, and runs one of its modules.
_START = """
import importlib.util, runpy, sys
file, module = sys.argv[1:]
del sys.argv[1:]
spec = importlib.util.spec_from_file_location("workbench", file)
sys.modules["workbench"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
_LOOK_S = 1.0  # between two looks at a child
_STACK_LEVEL = 4  # of a child's warning: run, the exporter, its public function, and then who called that


class Child:
    """A child that runs `python -m module`, which calls `serve`, for one order; a `with` block ends it in any case.

    It starts at once, so that it can load its packages while the order is being prepared. `title` is what the work is
    called in an error, such as `"the conversion"`, `advice` what to do when it takes too long; `error` makes the
    exception from a text and the log, and `environment` is added to this process's.
    """

    def __init__(
        self,
        module: str,
        *,
        title: str = "the conversion",
        advice: str = "give it more time",
        error: Callable[[str, list[str]], WorkbenchError] = lambda text, log: ExportError(text),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log: list[str] = []  # the lines that the child logged, severity first
        self._title, self._advice, self._error = title, advice, error
        self._errors: IO[str] = _temporary_file()
        self._process = subprocess.Popen(
            command(module),
            stdin=subprocess.PIPE,  # closes when this process dies, and the child ends with it
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**child_environment(), **(environment or {})},
            start_new_session=True,  # Ctrl-C in a terminal reaches this process only, which ends the child
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._errors.close()

    def run(
        self, order: Mapping[str, Any], on_event: Callable[[Event], None] = lambda event: None,
        timeout_s: float | None = None,
    ) -> Any:  # fmt: skip
        """Send the order and wait for the child: the result of the function that it gave to `serve`.

        `on_event` takes each event that is not the protocol's own; after `timeout_s` seconds the child is ended. Where
        it fails, dies or takes too long, the WorkbenchError is of the kind that the child names, else that of `error`.
        """
        left = time_left(self._title)
        timeout_s = min((seconds for seconds in (timeout_s, left) if seconds is not None), default=None)
        over, reasons = threading.Event(), list[str]()
        watch = threading.Thread(target=self._watch, args=(over, reasons, timeout_s), daemon=True)
        try:
            watch.start()
            self._send(json.dumps(dict(order)))
            last: Event = {}
            for event in self._events():
                if event["event"] == "note":
                    warnings.warn(event["text"], stacklevel=_STACK_LEVEL)
                elif event["event"] in ("done", "error"):
                    last = event
                else:
                    on_event(event)
            status = self._process.wait()
        finally:  # also on Ctrl-C: the child never outlives this call
            over.set()
            self._process.kill()
        if reasons:
            time_left(self._title)
            raise self._error(f"{self._title} {reasons[0]}", self.log)
        if status or last.get("event") != "done":
            raise self._failure(status, last)
        return last["result"]

    def _watch(self, over: threading.Event, reasons: list[str], timeout_s: float | None) -> None:
        """End the child when its time is up, or when it stands still; `reasons` is then told why."""
        end = math.inf if timeout_s is None else time.monotonic() + timeout_s
        still, before = 0.0, None
        while not over.wait(max(0, min(_LOOK_S, end - time.monotonic()))):
            now = _computed(self._process.pid)
            still = still + _LOOK_S if now is not None and now == before else 0
            before = now
            if time.monotonic() >= end:
                reasons.append(f"took longer than {timeout_s:g} s and was ended; {self._advice}")
            elif still >= STILL_S:
                reasons.append(f"computed nothing for {still:g} s and was ended; the machine may be out of memory")
            if reasons:
                self._process.kill()
                return

    def _send(self, line: str) -> None:
        stdin = self._process.stdin
        if stdin is None or stdin.closed:
            raise InputError("got an order for a child that has ended, expected one order for each; make a new child")
        with contextlib.suppress(BrokenPipeError):  # the child ended before it read; its status and errors say why
            stdin.write(line + "\n")
            stdin.flush()

    def _events(self) -> Iterator[Event]:
        """The child's events, until it closes its output."""
        for line in self._process.stdout or ():
            try:
                event = json.loads(line)
                kind = event["event"]
            except (ValueError, KeyError, TypeError):
                self.log.append(line.rstrip())  # the child was killed in the middle of a line
                continue
            if kind == "log":
                self.log.append(f"{event['severity']}: {event['text']}")
            else:
                yield event

    def _failure(self, status: int, last: Event) -> WorkbenchError:
        if last.get("event") == "error":
            kind, text = last["kind"], last["text"]
            return _KINDS[kind](text) if kind in _KINDS else self._error(text, self.log)
        self._errors.seek(0)
        errors = self._errors.read().splitlines()
        said = [line for line in self.log if line.startswith(("ERROR: ", "INTERNAL_ERROR: "))]
        words = next((line.strip() for line in reversed([*errors, *said]) if line.strip()), "")
        end = f"; its last words: {words}" if words else ""
        if status >= 0:
            return self._error(f"{self._title} ended with status {status} and no result{end}", [*self.log, *errors])
        name = signal_name(-status)
        hint = "; the machine may be out of memory" if name == "SIGKILL" else ""
        return self._error(f"{self._title} was killed by {name}{hint}{end}", [*self.log, *errors])


def move_bar(bar: Any) -> Callable[[Event], None]:
    """Let each `step` of a child move a tqdm bar, which may be None."""

    def take(event: Event) -> None:
        if bar is not None and event["event"] == "step":
            bar.set_description(event["text"])
            bar.update()

    return take


def command(module: str) -> list[str]:
    """The command that starts a child."""
    return [sys.executable, "-c", _START, str(Path(__file__).parents[1] / "__init__.py"), module]


def child_environment() -> dict[str, str]:
    """This process's environment, but for the current folder, from which a child and its own children import nothing.

    It stands in the path by itself, and by an empty or relative entry of PYTHONPATH.
    """
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(path)]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, "PYTHONSAFEPATH": "1"}
    return environment | {"PYTHONPATH": os.pathsep.join(paths)}


def _computed(process: int) -> int | None:
    """Processor time of a process, in ticks of the clock.

    None where the system does not tell, and where it waits for a disk, for its own children, or was stopped by hand.
    """
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        children = any(path.read_text() for path in Path(f"/proc/{process}/task").glob("*/children"))
    except (OSError, ValueError):
        return None
    return None if children or state not in "RS" else int(fields[10]) + int(fields[11])


def signal_name(number: int) -> str:
    """Return a signal's name.

    >>> signal_name(9)
    'SIGKILL'
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder that is gone after the block; OutputError where the disk is full."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="workbench-")
    except OSError as error:
        raise OutputError(f"no folder for temporary files: {error.strerror or error}; free some space") from error
    with folder as name:
        yield Path(name)


def _temporary_file() -> IO[str]:
    try:
        return tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise OutputError(f"no place for temporary files: {error.strerror or error}; free some space") from error


_channel: IO[str] | None = None
_channel_lock = threading.Lock()


def send(event: str, **fields: Any) -> None:
    """Tell the parent of an event, in the child; without a parent nothing happens."""
    if _channel is not None:
        with _channel_lock, contextlib.suppress(BrokenPipeError):
            _channel.write(json.dumps({"event": event, **fields}) + "\n")
            _channel.flush()


def serve(
    work: Callable[[dict[str, Any]], Any],
    explain: Callable[[Exception], str] | None = None,
    prepare: Callable[[], object] = lambda: None,
) -> int:
    """Carry out, in the child, the one order that standard input brings; return the exit status.

    `work` takes the order and returns what JSON can hold; `explain` gives the sentence for an error that is not of this
    package, which ends the child without it; `prepare` does what can be done before the order comes.
    """
    global _channel
    _channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what native code prints on standard output goes to standard error instead
    try:
        prepare()
        order = sys.stdin.readline()
        _end_with_the_parent()
        if order:
            send("done", result=work(json.loads(order)))
    except KeyboardInterrupt:
        return 130
    except WorkbenchError as error:
        send("error", kind=type(error).__name__, text=str(error))
        return 1
    except MemoryError:
        send("error", kind="MemoryError", text="out of memory; use a smaller batch or a smaller network")
        return 1
    except Exception as error:
        if explain is None:
            raise
        send("error", kind=type(error).__name__, text=explain(error))
        return 1
    return 0


def _end_with_the_parent() -> None:
    """Let this process end when the parent is gone: only the parent holds the other end of standard input.

    Where the system can, it ends the process by itself, also in the middle of native code that lets no thread run.
    """
    if hasattr(signal, "SIGIO"):
        import fcntl

        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    threading.Thread(target=_wait_for_the_end, daemon=True).start()


def _wait_for_the_end() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1):  # not sys.stdin, whose lock this thread would hold when the process ends well
            pass
    os._exit(1)
