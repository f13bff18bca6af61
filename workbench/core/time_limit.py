"""A time limit for all that one call does: whoever waits in it asks how many seconds are left."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextvars import ContextVar
from typing import TypeVar

from workbench.core.errors import InputError, TimeLimitError

Result = TypeVar("Result")

_ENDING_S = 2.0
"""How long work that is told to end may take for the operation that it is at."""

# The seconds, and where the clock then stands.
_limit: ContextVar[tuple[float, float]] = ContextVar("limit", default=(math.inf, math.inf))


@contextlib.contextmanager
def time_limit(timeout_s: float | None) -> Iterator[None]:
    """Limit the block to this many seconds, none where it is None; InputError for what is no time to wait for."""
    if timeout_s is not None and not 0 < timeout_s <= threading.TIMEOUT_MAX:
        raise InputError(f"got a time limit of {timeout_s} s, expected seconds above 0; leave it out for no limit")
    token = _limit.set(_limit.get() if timeout_s is None else (timeout_s, time.monotonic() + timeout_s))
    try:
        yield
    finally:
        _limit.reset(token)


def time_left(step: str) -> float | None:
    """The seconds that are left for a step, such as `"run the network"`; None where there is no limit.

    TimeLimitError, which names the step, where none are left.
    """
    left = _limit.get()[1] - time.monotonic()
    if left <= 0:
        raise _over(step)
    return None if left == math.inf else left


def _over(step: str) -> TimeLimitError:
    return TimeLimitError(
        f"the time limit of {_limit.get()[0]:g} s was over before this was done: {step}; give more time with "
        "--timeout S (timeout_s= in Python), or look for a part of the network that never ends"
    )


def run_ended(work: Callable[[], Result], end: Callable[[], object], step: str) -> Result:
    """Do native work in a thread while this one waits, so that it hears Ctrl-C and the clock; `end` ends the work.

    TimeLimitError, as `time_left`, at the end of a `time_limit`.
    """
    left = time_left(step)
    result: Future[Result] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except Exception as error:
            result.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        if not wait([result], left).done:
            raise _over(step)
        return result.result()
    finally:
        end()
        thread.join(_ENDING_S)
