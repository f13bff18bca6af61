"""The report on this machine, quiet imports, and missing packages in one sentence."""

import subprocess
import sys

import pytest

from workbench.core.errors import BackendUnavailableError
from workbench.core.packages import require_backend
from workbench.runners import machine
from workbench.runners.machine import diagnose, environment


def test_the_report_names_python_packages_and_what_is_not_installed(monkeypatch):
    versions = {"keras": "9.9.9"}
    monkeypatch.setattr(machine, "package_version", versions.get)
    text = environment()
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in text
    assert f"{'keras':<20}9.9.9" in text
    assert f"{'tensorrt':<20}not installed" in text


def test_the_diagnosis_is_empty_where_everything_needed_is_there():
    assert diagnose() == []


def test_the_diagnosis_names_what_is_missing(monkeypatch):
    def missing(name, extra):
        raise BackendUnavailableError(f"{name} cannot be imported")

    monkeypatch.setattr(machine, "require_backend", missing)
    monkeypatch.setattr(machine, "load_tensorflow", lambda: None)
    assert diagnose() == [f"{name} cannot be imported" for name in ("onnxruntime", "keras", "tf2onnx")]


def test_a_missing_package_is_one_sentence_with_the_command():
    sentence = r"nothing_like_it cannot be imported .*pip install -e '\.\[keras\]'"
    with pytest.raises(BackendUnavailableError, match=sentence):
        require_backend("nothing_like_it", "keras")


def test_an_interrupt_while_native_code_is_loaded_is_no_missing_package(monkeypatch):
    def load(name):
        raise ImportError("initialization failed") from KeyboardInterrupt(1)  # as modules of pybind11 answer

    monkeypatch.setattr("importlib.import_module", load)
    with pytest.raises(KeyboardInterrupt) as caught:
        require_backend("onnxruntime", "dev")
    assert caught.value.args == (1,)


def test_tensorflow_starts_without_a_word():
    code = "from workbench.core.packages import load_keras; print(load_keras().__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("keras\n", "")


def test_what_an_import_says_is_shown_when_it_fails():
    code = (
        "import os\nfrom workbench.core import packages\n"
        "def fail(*_):\n    os.write(2, b'native words')\n    raise RuntimeError('no')\n"
        "packages.require_backend = fail\npackages.load_tensorflow()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "native words" in done.stderr
