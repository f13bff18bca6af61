"""Work in a folder of somebody else's files: none of its modules is imported, whatever it is called."""

import subprocess
import sys

import fault_cases
import pytest
from onnx_networks import save_picture_network

NAMES = ("json", "numpy", "onnx", "tensorflow", "tf2onnx", "workbench", "threading", "keras", "sitecustomize")
KERAS = """
import keras, sys
import workbench as wb

class Doubled(keras.layers.Layer):  # as a reader writes it in a cell
    def call(self, x):
        return 2 * x

x = keras.Input((4,))
print(wb.convert(keras.Model(x, Doubled()(keras.layers.Dense(3)(x))), sys.argv[1], progress=False).splitlines()[0])
"""
ONNX = {
    "build": "wb.build_engine(sys.argv[1], flavour='tensorrt_rtx', cache=False, progress=False)",
    "sweep": "print(wb.sweep(sys.argv[1], runs=1, progress=False).to_text())",
}


@pytest.fixture
def hostile(tmp_path):
    """The current folder; each of its modules leaves a trace when it is imported."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(
            f"open({str(folder / 'ran')!r} + __name__, 'w').close()\nraise SystemExit(9)"
        )
    return folder


def run(code, hostile, *words):
    """Run a script that lies elsewhere, from within the folder."""
    script = hostile.with_name("script.py")
    script.write_text(code)
    with fault_cases.untouched(hostile):
        done = subprocess.run(
            [sys.executable, script, *words], cwd=hostile, capture_output=True, text=True, timeout=250
        )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_network_with_a_layer_of_the_readers_own_is_converted(hostile, tmp_path):
    pytest.importorskip("keras")
    assert "PASS" in run(KERAS, hostile, str(tmp_path / "net.onnx"))


@pytest.mark.parametrize("work", ONNX)
def test_children_that_build_parse_and_measure_import_nothing_from_it(work, hostile, tmp_path):
    if work != "sweep":
        pytest.importorskip("tensorrt_rtx")
    run(f"import sys\nimport workbench as wb\n{ONNX[work]}", hostile, str(save_picture_network(tmp_path / "net.onnx")))
