import ast
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "setup_environment.py"


@pytest.fixture(scope="module")
def setup_environment():
    spec = importlib.util.spec_from_file_location("setup_environment", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_python_range_is_that_of_pyproject(setup_environment):
    accepted = SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])
    for minor in range(8, 16):
        if f"3.{minor}" in accepted:
            setup_environment.check_python((3, minor, 0))
        else:
            with pytest.raises(setup_environment.SetupError, match=rf"got Python 3\.{minor}, .* 3\.11, 3\.12 or 3\.13"):
                setup_environment.check_python((3, minor, 0))


def test_script_is_understood_by_the_pythons_that_it_refuses():
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 6))


def test_missing_venv_module_names_the_package(setup_environment, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ensurepip" else object())
    with pytest.raises(setup_environment.SetupError, match=r"no module ensurepip.*apt install python3\.\d+-venv"):
        setup_environment.check_venv_module()


def test_too_little_space_is_one_sentence_and_makes_nothing(tmp_path):
    done = run_script(tmp_path / "environment", "--needed-gb", "1e6")
    assert done.returncode == 1
    assert "GB free" in done.stderr and "free some space" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = run_script(tmp_path)
    assert done.returncode == 1
    assert "not a virtual environment" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            "WARNING: Retrying ... NewConnectionError('...')\nERROR: No matching distribution found",
            "cannot be reached",
        ),
        ("ReadTimeoutError: Read timed out.", "cannot be reached"),
        ("ERROR: Could not install: [Errno 28] No space left on device: 'x'", "the disk is full"),
        ("Collecting x\nERROR: x requires y", "ERROR: x requires y"),
        ("", "without saying why"),
    ],
)
def test_a_failed_pip_is_explained_in_one_sentence(setup_environment, log, said):
    assert said in setup_environment.explain_failure(log)


@pytest.fixture
def fake_environment(tmp_path, setup_environment, monkeypatch):
    """An environment whose Python is a shell script that stands for pip."""

    def make(shell):
        target = tmp_path / "environment"
        python = Path(setup_environment.environment_python(str(target)))
        python.parent.mkdir(parents=True)
        (target / "pyvenv.cfg").touch()
        python.write_text(f"#!/bin/sh\n{shell}\n")
        python.chmod(0o755)
        monkeypatch.setattr(setup_environment, "is_usable", lambda target: True)
        return target

    return make


def test_a_good_installation_leaves_the_stamp_and_the_log(fake_environment, setup_environment, capsys):
    target = fake_environment("echo Collecting numpy==2.4.6; echo Installing collected packages: numpy")
    setup_environment.install(str(target), needed_gb=0)
    assert (target / ".installed").exists()
    assert "Collecting numpy" in (target / "install.log").read_text()
    assert "is ready" in capsys.readouterr().out


def test_a_failed_installation_leaves_no_stamp_and_names_the_log(fake_environment, setup_environment):
    target = fake_environment("echo 'ERROR: broken'; exit 1")
    (target / ".installed").touch()  # of an earlier installation
    with pytest.raises(setup_environment.SetupError, match=r"ERROR: broken; what pip said is in .*install\.log"):
        setup_environment.install(str(target), needed_gb=0)
    assert not (target / ".installed").exists()


def test_this_python_s_environment_is_usable_and_an_empty_one_is_not(setup_environment, tmp_path):
    assert setup_environment.is_usable(sys.prefix)
    assert not setup_environment.is_usable(str(tmp_path))
