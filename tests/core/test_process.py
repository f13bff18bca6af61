"""Work in a process of its own: what it imports, when it is ended, and that it never outlives its parent."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import workbench
from workbench.core import process
from workbench.core.errors import ExportError
from workbench.core.process import Child

PACKAGE = Path(workbench.__file__).parent


@pytest.fixture
def child_of(tmp_path, monkeypatch):
    """A child module that does the given work, found by an absolute entry of PYTHONPATH."""

    def write(work: str, name: str = "the_child") -> str:
        folder = tmp_path / "modules"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(
            "import ctypes, os, subprocess, sys, threading, time\nimport workbench\n"
            f"from workbench.core.process import serve\nsys.exit(serve(lambda order: {work}))\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(folder))
        return name

    return write


def run(module: str, order=None, **options):
    with Child(module) as child:
        return child.run(order or {}, **options)


@pytest.mark.parametrize("path", ["", ":", ".", "hostile", None], ids=repr)
@pytest.mark.parametrize("name", ["json", "numpy", "workbench", "threading", "sitecustomize"])
def test_nothing_is_imported_from_the_current_folder(tmp_path, monkeypatch, path, name):
    hostile = tmp_path / "hostile"
    for folder in (tmp_path, hostile):
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.chdir(tmp_path)
    if path is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", path)
    with pytest.raises(ExportError, match="KeyError"):  # an empty order: the child itself ran
        run("workbench.measure.point_child")
    assert not (tmp_path / "ran").exists()


def test_the_child_is_of_this_very_package_also_where_another_is_installed(tmp_path, monkeypatch, child_of):
    copy = tmp_path / "copy"
    shutil.copytree(PACKAGE, copy / "workbench", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "json.py").write_text("raise SystemExit('a json.py beside the package ran')")
    code = (
        f"import json, sys; sys.path.insert(0, {str(copy)!r})\nfrom workbench.core.process import Child\n"
        f"with Child({child_of('workbench.__file__')!r}) as child: print(child.run({{}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
    assert done.stdout.strip() == str(copy / "workbench" / "__init__.py")


def test_what_the_user_put_in_the_path_stays_there(child_of, monkeypatch):
    name = child_of("__import__('the_users_own').VALUE")
    folder = Path(os.environ["PYTHONPATH"])
    (folder / "the_users_own.py").write_text("VALUE = 7")
    assert run(name) == 7


# A lock that is never released, as after an allocation that failed in the middle of TensorRT's builder.
STUCK = "threading.Lock().acquire() and (lock := threading.Lock()).acquire() and lock.acquire()"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell what a process computes")
def test_a_child_that_stands_still_is_ended(child_of, monkeypatch):
    monkeypatch.setattr(process, "STILL_S", 2.0)
    with pytest.raises(ExportError, match="computed nothing for 2 s and was ended; the machine may be out of memory"):
        run(child_of(STUCK))


@pytest.mark.parametrize(
    "work",
    [
        "[sum(range(1000)) for end in [time.time() + 4] for _ in iter(lambda: time.time() < end, False)] and 1",
        "subprocess.run([sys.executable, '-c', 'import time; time.sleep(4)']) and 1",  # a compiler, say
    ],
    ids=["computes", "waits for its own child"],
)
def test_a_child_that_works_is_not(child_of, monkeypatch, work):
    monkeypatch.setattr(process, "STILL_S", 2.0)
    assert run(child_of(work)) == 1


@pytest.mark.parametrize("seconds", [0.5, 2.5])
def test_a_child_is_ended_when_its_time_is_up(child_of, seconds):
    start = time.monotonic()
    with pytest.raises(ExportError, match=f"took longer than {seconds:g} s and was ended"):
        run(child_of("time.sleep(60)"), timeout_s=seconds)
    assert seconds <= time.monotonic() - start < 20


@pytest.mark.parametrize(
    "work",
    ["time.sleep(120)", "ctypes.PyDLL(None).sleep(120)"],
    ids=["python", "native code that lets no thread run"],
)
def test_a_child_ends_with_a_parent_that_was_killed(child_of, tmp_path, work):
    name = child_of(f"print(os.getpid(), file=open({str(tmp_path / 'pid')!r}, 'w'), flush=True) or {work}")
    code = f"from workbench.core.process import Child\nwith Child({name!r}) as child: child.run({{}})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=PACKAGE.parent) as parent:
        number = wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
        parent.kill()
    wait_for(lambda: not alive(int(number)))


def wait_for(happens, seconds: float = 30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := happens():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{number}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def test_sigterm_ends_a_child_too(child_of, tmp_path):
    name = child_of(f"print(os.getpid(), file=open({str(tmp_path / 'pid')!r}, 'w'), flush=True) or time.sleep(120)")
    with Child(name) as child:
        os.kill(child._process.pid, signal.SIGTERM)
        with pytest.raises(ExportError, match="killed by SIGTERM"):
            child.run({})
