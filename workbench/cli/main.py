"""The command line: one module for each command, of which only the one that is asked for is imported."""

import argparse
import contextlib
import importlib
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from workbench import __version__
from workbench.core.errors import AnswersDifferError, WorkbenchError

EXIT_DIFFERENT, EXIT_ERROR, EXIT_INTERRUPTED = 1, 2, 128  # the last and the number of the signal

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
inputs could not have shown a fault (INCONCLUSIVE); 130 interrupted (143 by SIGTERM). Errors are one sentence; --debug
adds the traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        arguments: the words after `workbench`; those of the process when None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser(words).parse_args(words)
    try:
        with _ended_in_order(), warnings.catch_warnings():
            warnings.showwarning = lambda message, *details: print(f"warning: {message}", file=sys.stderr)
            if getattr(options, "model", None) == "unet":  # before anything imports TensorFlow
                from workbench.models.unet import set_variables

                set_variables()
            return int(options.run(options))
    except KeyboardInterrupt as end:
        print("interrupted; nothing half-written was left behind", file=sys.stderr)
        return EXIT_INTERRUPTED + (end.args[0] if end.args else signal.SIGINT)
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        elif isinstance(error, WorkbenchError):
            print(f"error: {error}", file=sys.stderr)
        else:
            print(f"error: unexpected {type(error).__name__}: {error}; --debug shows where", file=sys.stderr)
        return EXIT_DIFFERENT if isinstance(error, AnswersDifferError) else EXIT_ERROR


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
