"""The clock of a call: whose end an error is, and what it says."""

import threading

import pytest

from workbench.core.errors import TimeLimitError
from workbench.core.time_limit import run_ended, time_limit


def test_the_end_of_the_limit_is_told_also_where_the_clock_lags_behind_the_wait(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    with time_limit(0.05), pytest.raises(TimeLimitError, match=r"limit of 0\.05 s .*: run the network;"):
        run_ended(ended.wait, ended.set, "run the network")


def test_a_timeout_of_the_work_itself_is_passed_on():
    def work():
        raise TimeoutError("of the work")

    with time_limit(60), pytest.raises(TimeoutError, match="of the work") as caught:
        run_ended(work, lambda: None, "run the network")
    assert not isinstance(caught.value, TimeLimitError)
