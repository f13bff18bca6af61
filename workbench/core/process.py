"""One protocol for work in a process of its own: its progress, its crash, its time limit and Ctrl-C as one sentence.

The parent sends one line of JSON, the order, and holds the child's standard input open: when the parent is gone, the
child ends. The child answers with one JSON object a line, each with an `event`: `note` becomes a warning, `log` is
kept, `done` carries the result, `error` a kind and a text; the others go to who started the child.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
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
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._process.kill()

        timer = threading.Timer(timeout_s or 0, expire)
        try:
            if timeout_s is not None:
                timer.start()
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
            timer.cancel()
            self._process.kill()
        if expired.is_set():
            time_left(self._title)
            raise self._error(f"{self._title} took longer than {timeout_s:g} s and was ended; {self._advice}", self.log)
        if status or last.get("event") != "done":
            raise self._failure(status, last)
        return last["result"]

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
    return [sys.executable, "-m", module]


def child_environment() -> dict[str, str]:
    """This process's environment; the child imports this very package, from wherever it was imported here."""
    here = str(Path(__file__).parents[2])
    paths = [here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


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
        threading.Thread(target=_end_with_the_parent, daemon=True).start()
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
    """End this process when the parent is gone: only the parent holds the other end of standard input."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):  # not sys.stdin, whose lock this thread would hold when the process ends well
            pass
    os._exit(1)
