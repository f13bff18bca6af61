"""Run tests/gpu on this machine and write down what ran, what failed and what could not run.

    python scripts/record_gpu_run.py [--output FILE] [--verification FILE] [--without NEED ...]

Each outcome is written as soon as it is known, so a crash of the process loses only the test that crashed it; the rest
runs in a new process. Exit status: 0 all ran and passed, 1 something failed or crashed, 3 nothing failed but some
tests did not run, 4 nothing ran at all.
"""

import argparse
import collections
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from _record import describe_machine  # noqa: E402

from workbench.core.driver import probe_driver  # noqa: E402
from workbench.core.files import atomic_path, make_folder  # noqa: E402

TESTS = ROOT / "tests" / "gpu"
OUTPUT = ROOT / "benchmarks" / "results" / "gpu_tests.json"
TITLE = "GPU tests"
NEW_TABLE = "# What ran where\n\n| what | command | machine | versions | date | result |\n|---|---|---|---|---|---|\n"
PACKAGES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "cuda-bindings",
    "pycuda",
    "tensorrt",
    "tensorrt_rtx",
    "tensorrt_lean",
    "torch",
    "jax",
)
FAILED, INCOMPLETE, NOTHING_RAN = 1, 3, 4


def run_tests(record: Path, chosen: list[str]) -> int:
    """Run pytest in a child process, over the whole folder or the chosen tests."""
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "pytest", "-c", str(TESTS / "pytest.ini"), f"--rootdir={ROOT}"]
    command += [f"--confcutdir={TESTS}", "-p", "no:cacheprovider", "-q", "-rs", f"--record={record}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run([*command, *(chosen or [str(TESTS)])], cwd=ROOT, env=environment).returncode


def collect(record: Path, wanted: str = "") -> dict[str, dict[str, Any]]:
    """Run until every test has an outcome; a test that ends its process is `crashed`."""
    tests: dict[str, dict[str, Any]] = {}
    chosen: list[str] = []
    while True:
        record.write_text("")
        status = run_tests(record, [*chosen, "-k", wanted, *([] if chosen else [str(TESTS)])] if wanted else chosen)
        started = read_events(record, tests)
        if started is None:
            break
        tests[started] |= {"outcome": "crashed", "reason": f"the process ended with status {status}"}
        chosen = [name for name, test in tests.items() if "outcome" not in test]
        if not chosen:
            break
    for test in tests.values():
        test.setdefault("outcome", "not run")
        test.setdefault("reason", "pytest ended before it")
    return tests


def read_events(record: Path, tests: dict[str, dict[str, Any]]) -> str | None:
    """Take over what the child wrote; return the test that it started and did not end."""
    running = None
    for line in record.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        kind, name = event.pop("event"), event.pop("id")
        if kind == "found":
            tests.setdefault(name, event)
        elif kind == "missing":
            tests[name]["missing"] = event["need"]
        elif kind == "start":
            running = name
        else:
            running = None
            if tests[name].get("outcome") != "failed":  # a failing test whose clean-up then passes stays failed
                tests[name] |= event
    return running


def describe_gpu() -> dict[str, Any]:
    """The first GPU, and the driver."""
    driver = probe_driver()
    if driver.problem:
        return {"problem": driver.problem}
    gpu = driver.gpus[0]
    return {
        "name": gpu.name,
        "compute_capability": gpu.capability,
        "memory_bytes": gpu.memory_bytes,
        "count": len(driver.gpus),
        "driver": driver_version(),
        "cuda": driver.cuda,
    }


def driver_version() -> str:
    """The driver's own version, as nvidia-smi tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.split("\n")[0].strip()
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def versions() -> dict[str, str]:
    """Installed versions of what the tests use."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def missing_needs(tests: dict[str, dict[str, Any]]) -> dict[str, int]:
    """How many tests did not run for want of what."""
    return dict(collections.Counter(test["missing"] for test in tests.values() if "missing" in test))


def verification_line(record: dict[str, Any]) -> str:
    """The row for the table in docs/verification.md."""
    gpu, counts = record["gpu"], record["counts"]
    where = f"{gpu['name']}, driver {gpu['driver']} (CUDA {gpu['cuda']})" if "name" in gpu else "no GPU"
    shown = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if name != "numpy")
    result = ", ".join(f"{counts.get(kind, 0)} {kind}" for kind in ("passed", "failed", "crashed", "not run"))
    missing = ", ".join(f"{need} ({count})" for need, count in record["missing"].items())
    result += f"; not run for want of: {missing}" if missing else ""
    bad = [test["test"] for test in record["tests"] if test["outcome"] in ("failed", "crashed")]
    result += f"; failed: {', '.join(bad)}" if bad else ""
    return f"| {TITLE} | `make test-gpu` | {where} | {shown} | {record['date']} | {result} |"


def write_line(path: Path, line: str) -> None:
    """Put the row at the end of a file's first table, in place of that of an earlier run; a new file gets a table."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if "|---" not in text:
        text += NEW_TABLE
    rows = [row for row in text.splitlines() if not row.startswith(f"| {TITLE} |")]
    last = next(index for index, row in enumerate(rows) if row.startswith("|---"))
    while last + 1 < len(rows) and rows[last + 1].startswith("|"):
        last += 1
    rows.insert(last + 1, line)
    with atomic_path(path, replace=True) as temporary:
        temporary.write_text("\n".join(rows) + "\n", encoding="utf-8")


def exit_status(tests: dict[str, dict[str, Any]], without: list[str]) -> int:
    """See the module's docstring; tests that lack only what `without` names are not counted as missing."""
    outcomes = [test["outcome"] for test in tests.values()]
    if any(outcome in ("failed", "crashed") for outcome in outcomes):
        return FAILED
    if "passed" not in outcomes:
        return NOTHING_RAN
    left_out = [test for test in tests.values() if test["outcome"] == "not run" and "missing" in test]
    return INCOMPLETE if any(test["missing"] not in without for test in left_out) else 0


def main() -> int:
    """Run, write the record, print the row."""
    import datetime

    parser = argparse.ArgumentParser(description="Run the tests that need a GPU, and record them.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the record, JSON")
    parser.add_argument("--verification", type=Path, help="also write the row into this file")
    parser.add_argument("--without", nargs="*", default=[], help="needs that may be missing, such as tensorrt")
    parser.add_argument("-k", dest="wanted", default="", help="run only tests whose names match")
    arguments = parser.parse_args()
    make_folder(arguments.output.parent)
    if arguments.verification:
        make_folder(arguments.verification.parent)
    with tempfile.TemporaryDirectory() as folder:
        tests = collect(Path(folder) / "events", arguments.wanted)
    record = {
        "benchmark": "gpu_tests",
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "gpu": describe_gpu(),
        "versions": versions(),
        "counts": dict(collections.Counter(test["outcome"] for test in tests.values())),
        "missing": missing_needs(tests),
        "tests": [{"file": name.split("::")[0].split("/")[-1], **test} for name, test in tests.items()],
    }
    with atomic_path(arguments.output, replace=True) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    line = verification_line(record)
    if arguments.verification:
        write_line(arguments.verification, line)
    status = exit_status(tests, arguments.without)
    print(f"\nwrote {os.path.relpath(arguments.output)}\n{line}")
    print(verdict(status, record))
    return status


def verdict(status: int, record: dict[str, Any]) -> str:
    """What the exit status means, in one sentence."""
    if status == NOTHING_RAN:
        reason = record["gpu"].get("problem") or ", ".join(record["missing"]) or "no test was found"
        return f"exit {status}: nothing ran, so nothing is proved: {reason}"
    if status == INCOMPLETE:
        return f"exit {status}: nothing failed, but tests did not run for want of {', '.join(record['missing'])}"
    return f"exit {status}: " + ("some tests failed" if status else "everything ran that was asked for, and passed")


if __name__ == "__main__":
    sys.exit(main())
