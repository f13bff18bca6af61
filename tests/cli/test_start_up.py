"""Commands answer at once: a mistake or a plain ONNX file imports no framework, and nobody else speaks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from onnx_networks import save_picture_network

ROOT = Path(__file__).parents[2]
FRAMEWORKS = {"keras", "matplotlib", "skimage", "tensorflow", "tf_keras", "torch", "tensorrt", "tensorrt_rtx"}
CODE = """
import json, sys
from workbench.cli.main import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
sys.stdout.flush()
print(json.dumps([status, sorted(sys.modules)]))
"""


def run(folder, *words):
    """Exit status, standard error, and the modules that the command imported."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{CODE}", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
    status, modules = json.loads(done.stdout.splitlines()[-1])
    return status, done.stderr, set(modules)


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "missing.keras", "out.onnx"],
        ["convert", "missing.onnx", "out.onnx"],
        ["convert", "net.onnx", "out.txt"],
        ["convert", "missing.pt2", "out.onnx"],
        ["build", "missing.keras", "-o", "x.plan"],
        ["build", "net.onnx", "-o", "x.engine.txt"],
        ["verify", "missing.keras", "net.onnx"],
        ["sweep", "missing.keras", "-o", "rows.jsonl"],
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_imports_no_framework(words, tmp_path):
    save_picture_network(tmp_path / "net.onnx")
    status, errors, modules = run(tmp_path, *words)
    assert (status, errors.count("\n"), errors[:7]) == (2, 1, "error: ")
    assert not modules & FRAMEWORKS


def test_help_imports_no_numpy(tmp_path):
    _, _, modules = run(tmp_path, "--help")
    assert not modules & (FRAMEWORKS | {"numpy", "onnx"})


def test_mending_an_onnx_file_imports_no_framework(tmp_path):
    save_picture_network(tmp_path / "net.onnx")
    status, _, modules = run(tmp_path, "convert", "net.onnx", "out.onnx")
    assert status == 0
    assert not modules & FRAMEWORKS - {"skimage"}  # the proof resizes a photograph of scikit-image


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04broken"])
def test_a_damaged_keras_file_is_one_line_without_the_words_of_tensorflow(content, tmp_path):
    (tmp_path / "broken.keras").write_bytes(content)
    status, errors, _ = run(tmp_path, "convert", "broken.keras", "out.onnx")
    lines = [line for line in errors.splitlines() if line.strip()]
    assert (status, [line[:7] for line in lines if "step/s" not in line and "it/s" not in line]) == (2, ["error: "])
