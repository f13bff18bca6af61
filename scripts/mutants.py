"""Plant bugs one at a time and see which of them the tests find: `make mutants`, or with `--sample 20` a few of them.

Every entry of tests/mutants.toml replaces one text of one module in a copy of the project, never here, and runs the
tests that stand beside that module. A bug that no test finds has survived; below `ENOUGH` the status is 1.
"""

import argparse
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "mutants.toml"
COPIED = ("workbench", "tests", "training", "benchmarks", "scripts", "data", "docs", "pyproject.toml", "README.md")
ENOUGH = 0.97
TEST_LIMIT_S, BUG_LIMIT_S = 120, 600  # of one test, for a bug may make it endless; of all tests of one bug
PASSED, FAILED, NOTHING_RAN = 0, (1, 2), 5  # exit statuses of pytest; 2 where a test file cannot be imported


@dataclass(frozen=True)
class Bug:
    """One entry of the list: the text that becomes wrong, where, the tests that must find it, and `why` if none can."""

    file: str
    text: str
    wrong: str
    why: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        """The place and the change on one line."""
        return f"{self.file}: {' '.join(self.text.split())}  ->  {' '.join(self.wrong.split()) or '(nothing)'}"


def read_list(path: Path = LIST) -> list[Bug]:
    """Read all bugs, in the order of the list."""
    modules = tomllib.loads(path.read_text(encoding="utf-8"))
    return [
        Bug(file, text, wrong, "".join(why), tuple(entry["tests"]))
        for file, entry in modules.items()
        for text, wrong, *why in entry["bugs"]
    ]


def find_stale(bugs: list[Bug], root: Path = ROOT) -> list[str]:
    """What is no longer as the list says, a sentence each: texts that must occur once, and tests that must exist."""
    found = []
    for bug in bugs:
        path = root / bug.file
        times = path.read_text(encoding="utf-8").count(bug.text) if path.is_file() else 0
        if times != 1 or bug.text == bug.wrong:
            found.append(f"the list is stale: expected the text once, got it {times} times: {bug}")
        gone = [test for test in bug.tests if not (root / test.partition("::")[0]).is_file()]
        found += [f"the list is stale: {name} of {bug.file} is not there" for name in gone]
    return list(dict.fromkeys(found))


def copy_project(folder: Path) -> Path:
    """Copy what the tests need."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return folder


def run_tests(root: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Run tests until the first fails; pytest's exit status and the name of that test."""
    environment = {name: value for name, value in os.environ.items() if name != "WORKBENCH_CACHE"}
    environment |= {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}  # stale bytecode would hide a bug
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # to load all of them takes longer than many a test
    plugins = ["-p", "no:cacheprovider", "-p", "pytest_timeout", "-p", "_hypothesis_pytestplugin"]
    options = ["-x", "-q", "--tb=no", *plugins, "--hypothesis-seed=0", f"--timeout={TEST_LIMIT_S}"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=BUG_LIMIT_S)
    except subprocess.TimeoutExpired:
        return FAILED[0], "the time limit"
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return done.returncode, lines[0].split(" ", 1)[1].split(" - ")[0] if lines else done.stdout[-2000:]


def plant(copies: "queue.Queue[Path]", bug: Bug) -> tuple[bool, bool]:
    """Plant a bug in a free copy, and print what became of it; whether it was found, or else explained."""
    root, start = copies.get(), time.monotonic()
    path = root / bug.file
    right = path.read_text(encoding="utf-8")
    try:
        path.write_text(right.replace(bug.text, bug.wrong), encoding="utf-8")
        status, test = run_tests(root, (*bug.tests, bug.file))  # with the examples in its docstrings
    finally:
        path.write_text(right, encoding="utf-8")
        copies.put(root)
    if status != PASSED and status not in FAILED:
        raise SystemExit(f"pytest could not run the tests of {bug} (status {status}):\n{test}")
    word = "killed" if status else "explained" if bug.why else "SURVIVED"
    print(f"{word:9} {bug}  [{test if status else bug.why}, {time.monotonic() - start:.0f} s]", flush=True)
    return status != PASSED, word == "explained"


def check_tests(copies: "queue.Queue[Path]", tests: tuple[str, ...]) -> bool:
    """Whether tests pass without a bug, for nothing else shows that a bug made one fail."""
    root = copies.get()
    status, test = run_tests(root, tests)
    copies.put(root)
    if status != PASSED:
        print(f"left out: {' '.join(tests)} fails without a bug: {test}", flush=True)
    return status == PASSED


def main() -> int:
    """Plant the bugs, print a line for each, and the share that was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, metavar="N", help="plant only so many, chosen by the seed")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    parser.add_argument("--only", default="", metavar="TEXT", help="plant only those whose module or text holds this")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="how many at a time")
    options = parser.parse_args()
    bugs = [bug for bug in read_list() if options.only in str(bug)]
    if stale := find_stale(bugs):
        raise SystemExit("\n".join(stale))
    if options.sample is not None:
        bugs = random.Random(options.seed).sample(bugs, min(options.sample, len(bugs)))
    if not bugs:
        raise SystemExit(f"got --only {options.only!r} and --sample {options.sample}, which leave no bug to plant")
    start, copies = time.monotonic(), queue.Queue[Path]()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(options.workers) as pool:
        for number in range(options.workers):
            copies.put(copy_project(Path(folder) / f"copy{number}"))
        wanted = list(dict.fromkeys((*bug.tests, bug.file) for bug in bugs))
        sound = dict(zip(wanted, pool.map(partial(check_tests, copies), wanted), strict=True))
        results = list(pool.map(partial(plant, copies), [bug for bug in bugs if sound[*bug.tests, bug.file]]))
    killed, explained = (sum(one) for one in zip(*results or [(0, 0)], strict=True))
    share = killed / max(1, len(results) - explained)
    minutes = (time.monotonic() - start) / 60
    print(f"{killed} of {len(results)} bugs found, {explained} explained: {share:.1%} in {minutes:.0f} minutes")
    return 0 if share >= ENOUGH and all(sound.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
