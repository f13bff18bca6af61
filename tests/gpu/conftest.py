"""Runs each test where its needs are met, and tells `scripts/record_gpu_run.py` what happened, test by test."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from gpu_support import missing_of  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--record", help="file to which each outcome is written as soon as it is known")


def write(config, **entry):
    path = config.getoption("--record")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def needs_of(item):
    names = [name for mark in item.iter_markers("needs") for name in mark.args]
    return names + (list(item.callspec.params.get("needs", ())) if hasattr(item, "callspec") else [])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    for item in items:
        write(config, event="found", test=item.name, id=item.nodeid, needs=["gpu", *needs_of(item)])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    write(item.config, event="start", id=item.nodeid)
    lacking = missing_of(needs_of(item))
    if lacking:
        write(item.config, event="missing", id=item.nodeid, need=lacking[0])
        pytest.skip(f"{lacking[0]}: {lacking[1]}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == "call" or report.outcome != "passed":
        reason = report.longrepr[2].removeprefix("Skipped: ") if report.skipped else ""
        if report.failed:
            reason = getattr(getattr(report.longrepr, "reprcrash", None), "message", str(report.longrepr))
        write(
            item.config,
            event="end",
            id=item.nodeid,
            outcome={"passed": "passed", "failed": "failed"}.get(report.outcome, "not run"),
            reason=" ".join(reason.split())[:300],
            seconds=round(report.duration, 3),
            measured=dict(report.user_properties),
        )
