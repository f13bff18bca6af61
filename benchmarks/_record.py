"""Write what a benchmark measured, together with the machine and the versions it ran on."""

import datetime
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from workbench.core.files import atomic_path, make_folder

RESULTS = Path(__file__).parent / "results"


def write_record(name: str, result: dict[str, Any], packages: tuple[str, ...] = ("numpy",)) -> Path:
    """Write `results/<name>.json`, whole or not at all.

    Args:
        name: the benchmark's name.
        result: what was measured; strict JSON, with units in the keys.
        packages: installed packages whose versions matter.
    Returns:
        The path of the file.
    """
    return _write(name, {"result": result}, packages)


def write_rows(name: str, rows: list[dict[str, Any]], packages: tuple[str, ...]) -> Path:
    """Write a table as `results/<name>.json`, its rows under "rows"; see `write_record`."""
    return _write(name, {"rows": rows}, packages)


def _write(name: str, found: dict[str, Any], packages: tuple[str, ...]) -> Path:
    versions = {package: importlib.metadata.version(package) for package in packages}
    record = {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "versions": {"python": platform.python_version(), **versions},
        **found,
    }
    path = make_folder(RESULTS) / f"{name}.json"
    with atomic_path(path, replace=True) as temporary:
        temporary.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
    return path


def describe_machine() -> dict[str, Any]:
    """The processor, its cores and the operating system, without the machine's name."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}" if sys.platform != "linux" else "Linux",
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
