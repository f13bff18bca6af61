"""A sample of `benchmarks/false_alarms.py`: healthy networks pass under two instruction sets, faults are found."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# One of each kind; Linknet's rounding is the largest among the small ones, and FCN-8s's the smallest.
SAMPLE = [
    "Linknet mobilenetv2",
    "FCN-8s, street weights",
    "MobileNetV3Small",
    "LSTM",
    "words, transformer",
    "random graph 2",
]


@pytest.mark.timeout(600)
def test_healthy_networks_raise_no_alarm_and_subtle_faults_do(tmp_path):
    command = [
        sys.executable,
        "benchmarks/false_alarms.py",
        "--folder",
        str(tmp_path),
        "--settings",
        "2",
        "--jobs",
        "2",
    ]
    done = subprocess.run([*command, "--only", *SAMPLE], cwd=ROOT, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout[: done.stdout.index("}") + 1])
    assert summary["verdicts"] == len(SAMPLE) * 2 * 4  # two settings of oneDNN, four of ONNX Runtime
    assert summary["false_alarms"] == 0, done.stdout
    assert summary["faults_found"] > summary["faults_found_by_fixed_limits"]
