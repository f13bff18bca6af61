"""Commands that are ended from outside at any moment: no half file, no hidden file, no folder for temporary files."""

import os
import signal
import subprocess
import sys
import time

import fault_cases
import pytest
from onnx_networks import save_picture_network

pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends signals")

ENDS = {"SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129}
COMMANDS = {
    "build": ["build", "{onnx}", "-o", "{out}/x.plan", "--no-cache", "--flavour", "tensorrt_rtx"],
    "convert": ["convert", "{onnx}", "{out}/x.onnx"],
    "sweep": ["sweep", "{onnx}", "-o", "{out}/x.jsonl", "--precision", "fp16", "int8", "--runs", "2000"],
    "verify": ["verify", "{onnx}", "--keep-files", "{out}/kept", "--json", "{out}/x.json"],
}
MOMENTS = (0.3, 0.6, 0.9, 1.2, 1.6, 2.0, 2.5, 3.0, 4.0)  # seconds: from the start of Python to the last step
CASES = [(command, end, moment) for moment in MOMENTS for command in COMMANDS for end in ENDS]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The good file that every command is given."""
    return save_picture_network(tmp_path_factory.mktemp("given") / "network.onnx")


@pytest.mark.parametrize(("command", "end", "moment"), fault_cases.some(CASES, 14))
def test_nothing_half_is_left(command, end, moment, network, tmp_path):
    folders = {name: tmp_path / name for name in ("out", "temporary")}
    for folder in folders.values():
        folder.mkdir()
    words = [word.format(onnx=network, out=folders["out"]) for word in COMMANDS[command]]
    started = ["import signal, sys", "signal.signal(signal.SIGINT, signal.default_int_handler)"]
    started += ["from workbench.cli.main import main", "print('go', flush=True)", f"sys.exit(main({words!r}))"]
    environment = {**os.environ, "TMPDIR": str(folders["temporary"]), "WORKBENCH_CACHE": str(tmp_path / "cache")}
    with fault_cases.untouched(network.parent), subprocess.Popen(
        [sys.executable, "-c", "\n".join(started)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "go\n"
        time.sleep(moment)
        process.send_signal(getattr(signal, end))
        _, errors = process.communicate(timeout=60)
    hidden = [path for path in folders["out"].rglob("*") if path.name.startswith(".")]
    assert not hidden, hidden
    left = [path for path in folders["temporary"].rglob("*") if path.is_file() or "workbench" in path.name]
    assert not left, left
    done = any(path.is_file() for path in folders["out"].iterdir()) and "error" not in errors
    if process.returncode not in ((0, -getattr(signal, end)) if done else ()):  # else Python itself was ending
        assert process.returncode == ENDS[end], errors
        assert "Traceback" not in errors and "interrupted" in errors, errors
