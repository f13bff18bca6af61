"""A child process for one conversion: it starts early, takes one order and says how far it is."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from workbench.core.errors import ExportError, OutputError, WorkbenchError


class ConversionProcess:
    """A child that runs `python -m module`; use it in a `with` block, which ends it whatever it is doing.

    The child reads one line of JSON from standard input. Each line `step: ...` that it prints moves the bar, each
    `note: ...` becomes a warning, and the last line `error: ...` of its standard error is the reason of a failure.

    Args:
        module: the module to run.
        environment: what is added to this process's environment.
    """

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, __exit__ closes it
        self._child = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", **environment},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the child."""
        self._child.kill()
        self._child.communicate()
        self._errors.close()

    def run(self, order: Mapping[str, Any], bar: Any = None) -> None:
        """Send the order and wait until the child has carried it out.

        Args:
            order: what JSON can hold.
            bar: a tqdm bar to move one step for each of the child's.
        Raises:
            ExportError: the child failed; the message is its own.
        """
        self._send(json.dumps(order))
        for line in self._child.stdout or ():
            kind, _, text = line.strip().partition(": ")
            if kind == "note":
                warnings.warn(text, stacklevel=4)
            elif kind == "step" and bar is not None:
                bar.set_description(text)
                bar.update()
        status = self._child.wait()
        if status:
            self._errors.seek(0)
            raise ExportError(_failure(status, self._errors.read()))

    def _send(self, line: str) -> None:
        stdin, self._child.stdin = self._child.stdin, None
        if stdin is None:
            raise ExportError("got a second order for one conversion process, expected one; make a new process")
        try:
            with stdin:
                stdin.write(line + "\n")
        except BrokenPipeError:
            pass  # the child ended before it read; its status and errors say why


def _failure(status: int, log: str) -> str:
    for line in reversed(log.splitlines()):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    if status < 0:
        return f"the conversion was killed by signal {-status}; free some memory or convert a smaller network"
    return f"the conversion ended with status {status}: {log.strip().splitlines()[-1] if log.strip() else 'no message'}"


def say(kind: str, text: str) -> None:
    """Print a line for the parent, in the child."""
    print(f"{kind}: {text}", flush=True)


def serve_order(
    work: Callable[[dict[str, Any]], None],
    explain: Callable[[Exception], str],
    prepare: Callable[[], object] = lambda: None,
) -> int:
    """Carry out what standard input orders, in the child.

    Args:
        work: carries out one order.
        explain: the sentence for an error that is not of this package.
        prepare: what can be done before the order comes.
    Returns:
        The exit status; the last line of standard error is the reason of a failure.
    """
    try:
        prepare()
        line = sys.stdin.readline()
        if line:
            work(json.loads(line))
    except KeyboardInterrupt:
        return 130
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 1
    return 0


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
    """Make a folder that is gone after the block.

    Raises:
        OutputError: the disk is full.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="workbench-build-")
    except OSError as error:
        raise OutputError(f"no folder for temporary files: {error.strerror or error}; free some space") from error
    with folder as name:
        yield Path(name)
