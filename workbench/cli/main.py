"""The command line: one module for each command, of which only the one that is asked for is imported."""

import argparse
import contextlib
import importlib
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from workbench import __version__
from workbench.core.errors import AnswersDifferError, WorkbenchError
from workbench.core.files import overwriting

EXIT_DIFFERENT, EXIT_ERROR, EXIT_INTERRUPTED, EXIT_CLOSED = 1, 2, 128, 141  # 128 and the number of the signal

COMMANDS = {
    "demo": "the main job on built-in or own pictures",
    "convert": "a Keras, TensorFlow or PyTorch network to ONNX; an ONNX file mended",
    "build": "a TensorRT engine from a network",
    "verify": "which stage, and which layer, breaks a network; what a precision costs",
    "sweep": "a grid of precisions, batches, sizes and backends",
    "segment": "a folder of street images",
    "doctor": "what this machine has",
}
"""Each is a module of this folder: `DESCRIPTION`, `add_arguments(parser)`, and `run(options)` to the status."""

_EPILOG = """exit status: 0 all is well; 1 the answers differ, an image was skipped (segment), no point was measured
(sweep), or something needed is missing (doctor); 2 bad input or a missing package; 3 the answers agree, but these
inputs could not have shown a fault (INCONCLUSIVE); 130 interrupted (143 by SIGTERM); 141 nobody read the answer. Errors
are one sentence; --debug adds the traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        arguments: the words after `workbench`; those of the process when None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        return _run(_parser(words).parse_args(words))
    finally:
        _flush()


def _run(options: argparse.Namespace) -> int:
    """Carry out a command; an error becomes a sentence and an exit status."""
    try:
        with _ended_in_order(), warnings.catch_warnings():
            warnings.showwarning = lambda message, *details: print(f"warning: {message}", file=sys.stderr)
            if getattr(options, "model", None) == "unet":  # before anything imports TensorFlow
                from workbench.models.unet import set_variables

                set_variables()
            with overwriting(getattr(options, "overwrite", False)):
                status = int(options.run(options))
            sys.stdout.flush()
            return status
    except BrokenPipeError:  # whoever read the answer has read enough
        return EXIT_CLOSED
    except KeyboardInterrupt as end:
        print("interrupted; nothing half-written was left behind", file=sys.stderr)
        return EXIT_INTERRUPTED + (end.args[0] if end.args else signal.SIGINT)
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        else:
            print(f"error: {_sentence(error)}", file=sys.stderr)
        return EXIT_DIFFERENT if isinstance(error, AnswersDifferError) else EXIT_ERROR


def _sentence(error: Exception) -> str:
    """What a reader is told, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, WorkbenchError):
        return text
    if isinstance(error, MemoryError):
        return f"out of memory ({text or 'this process gets no more'}); close other programs, or give smaller inputs"
    if isinstance(error, RecursionError):
        return "something that was given is nested too deeply to be read; give another file"
    if isinstance(error, OSError) and error.strerror:
        where = f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, str | bytes) else ""
        return f"{error.strerror}{where}; check the place, its permissions and the space on the disk"
    return f"unexpected {type(error).__name__}: {text}; --debug shows where"


def _flush() -> None:
    """Write what was printed; where nobody takes it, let Python's own last attempt go nowhere."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let SIGTERM, and a terminal that is closed, end a command as Ctrl-C does: what is half-written is removed."""

    def end(number: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    main_thread = threading.current_thread() is threading.main_thread()
    taken = [number for number in numbers if main_thread and signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """All commands by name, with the arguments of the one that the words begin with."""
    parser = argparse.ArgumentParser(
        prog="workbench",
        description="Keras networks to ONNX and TensorRT: convert, compare side by side, measure.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"workbench {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    chosen = next((word for word in words if not word.startswith("-")), "")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name == chosen:
            module = importlib.import_module(f"workbench.cli.{name}")
            command.description, command.epilog = module.DESCRIPTION, _EPILOG
            module.add_arguments(command)
            command.add_argument("--debug", action="store_true", help="show the traceback of an error")
            command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
