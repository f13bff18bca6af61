"""A time limit for all that one call does: whoever waits in it asks how many seconds are left."""

import contextlib
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar

from workbench.core.errors import InputError, TimeLimitError

_limit: ContextVar[tuple[float, float] | None] = ContextVar("limit", default=None)  # seconds, and the clock's end


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
    limit = _limit.get()
    if limit is None:
        return None
    left = limit[1] - time.monotonic()
    if left <= 0:
        raise TimeLimitError(
            f"the time limit of {limit[0]:g} s was over before this was done: {step}; give more time with "
            "--timeout S (timeout_s= in Python), or look for a part of the network that never ends"
        )
    return left
