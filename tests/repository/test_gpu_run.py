"""The recorder of the GPU tests, on a machine that has no GPU or hides it."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "record_gpu_run.py"
GPU_TESTS = ROOT / "tests" / "gpu"


@pytest.fixture(scope="module")
def recorder():
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("record_gpu_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """`make test-gpu` without a GPU."""
    folder = tmp_path_factory.mktemp("gpu")
    table = "# What ran where\n\n| what | command |\n|---|---|\n| another | run |\n\n## Never run\n"
    (folder / "verification.md").write_text(table)
    command = [sys.executable, str(SCRIPT), "--output", str(folder / "gpu.json")]
    command += ["--verification", str(folder / "verification.md")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    return folder, done


def test_without_a_gpu_nothing_ran_and_the_exit_status_says_so(dry_run):
    folder, done = dry_run
    assert done.returncode == 4, done.stdout + done.stderr
    assert "exit 4: nothing ran, so nothing is proved: " in done.stdout
    record = json.loads((folder / "gpu.json").read_text())
    assert record["counts"] == {"not run": len(record["tests"])}
    assert record["missing"] == {"gpu": len(record["tests"])}
    assert record["gpu"]["problem"]
    assert len(record["tests"]) >= 50
    assert {test["file"] for test in record["tests"]} == {path.name for path in GPU_TESTS.glob("test_*.py")}


def test_every_test_on_a_gpu_names_what_it_needs(dry_run):
    record = json.loads((dry_run[0] / "gpu.json").read_text())
    needed = {need for test in record["tests"] for need in test["needs"]}
    assert needed == {
        "gpu", "cuda-python", "pycuda", "onnxruntime-cuda", "torch", "jax", "lean", "rtx", "tensorrt", "nvcc",
        "tensorrt-headers"
    }  # fmt: skip
    full = [test for test in record["tests"] if "tensorrt" in test["needs"]]
    assert len(full) >= 10


def test_the_row_is_put_into_the_table_and_replaced_by_the_next_run(dry_run, recorder, tmp_path):
    folder, done = dry_run
    rows = (folder / "verification.md").read_text().splitlines()
    assert rows[4] == "| another | run |" and rows[5].startswith("| GPU tests | `make test-gpu` | no GPU | python 3")
    assert "0 passed, 0 failed, 0 crashed" in rows[5] and rows[5] in done.stdout
    recorder.write_line(folder / "verification.md", "| GPU tests | a later run |")
    after = (folder / "verification.md").read_text().splitlines()
    assert after == [*rows[:5], "| GPU tests | a later run |", *rows[6:]]


def test_the_gpu_tests_import_no_keras_and_no_tensorflow():
    """A machine with a GPU need not have them."""
    allowed = {"numpy", "onnx", "onnxruntime", "pytest", "torch", "jax", "cuda", "workbench", *sys.stdlib_module_names}
    ours = {path.stem for folder in ("tests", "tests/gpu", "benchmarks") for path in (ROOT / folder).glob("*.py")}
    benchmarks = [ROOT / "benchmarks" / name for name in ("gpu_buffers.py", "_networks.py", "_onnxruntime_engine.py")]
    for path in [*GPU_TESTS.glob("*.py"), ROOT / "tests" / "onnx_networks.py", *benchmarks, SCRIPT]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed | ours, path


def play(recorder, monkeypatch, tmp_path, runs):
    """`collect` with a child that writes these events, run after run."""
    given = []

    def run_tests(record, chosen):
        given.append(chosen)
        record.write_text("".join(json.dumps(event) + "\n" for event in runs[len(given) - 1]))
        return -11

    monkeypatch.setattr(recorder, "run_tests", run_tests)
    return recorder.collect(tmp_path / "events"), given


def found(*names):
    return [{"event": "found", "id": name, "test": name, "needs": ["gpu"]} for name in names]


def ended(name, outcome, **more):
    return [{"event": "start", "id": name}, {"event": "end", "id": name, "outcome": outcome, **more}]


def test_a_choice_of_names_is_made_among_the_gpu_tests(recorder, monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(recorder, "run_tests", lambda record, chosen: given.append(chosen))
    assert recorder.collect(tmp_path / "events", "custom_layers") == {}
    assert given == [["-k", "custom_layers", str(GPU_TESTS)]]


def test_a_test_that_ends_the_process_is_named_and_the_rest_runs(recorder, monkeypatch, tmp_path):
    runs = [
        [*found("a", "b", "c", "d"), *ended("a", "passed"), {"event": "start", "id": "b"}],
        [*found("c", "d"), *ended("c", "failed", reason="wrong"), *ended("d", "passed")],
    ]
    tests, given = play(recorder, monkeypatch, tmp_path, runs)
    assert given == [[], ["c", "d"]]
    assert {name: test["outcome"] for name, test in tests.items()} == {
        "a": "passed",
        "b": "crashed",
        "c": "failed",
        "d": "passed",
    }
    assert tests["b"]["reason"] == "the process ended with status -11"
    assert recorder.exit_status(tests, []) == 1


def test_a_test_that_pytest_never_reached_is_not_run(recorder, monkeypatch, tmp_path):
    tests, _ = play(recorder, monkeypatch, tmp_path, [[*found("a", "b"), *ended("a", "passed")]])
    assert tests["b"]["outcome"] == "not run" and tests["b"]["reason"] == "pytest ended before it"


@pytest.mark.parametrize(
    ("tests", "without", "status"),
    [
        ([("passed", None)], [], 0),
        ([("passed", None), ("not run", "tensorrt")], [], 3),
        ([("passed", None), ("not run", "tensorrt")], ["tensorrt"], 0),
        ([("passed", None), ("not run", "tensorrt"), ("not run", "rtx")], ["tensorrt"], 3),
        ([("not run", "gpu")], [], 4),
        ([("not run", "gpu")], ["gpu"], 4),
        ([], [], 4),
        ([("passed", None), ("failed", None)], [], 1),
        ([("crashed", None), ("not run", "rtx")], ["rtx"], 1),
    ],
)
def test_the_exit_status_never_hides_what_did_not_run(recorder, tests, without, status):
    made = {
        str(number): {"outcome": outcome, **({"missing": missing} if missing else {})}
        for number, (outcome, missing) in enumerate(tests)
    }
    assert recorder.exit_status(made, without) == status


def test_the_row_names_what_failed_and_what_was_missing(recorder):
    record = {
        "gpu": {"name": "NVIDIA H200", "driver": "580.1", "cuda": "13.0"},
        "versions": {"python": "3.12.3", "numpy": "2", "onnxruntime-gpu": "1.31.1"},
        "date": "2026-11-20",
        "counts": {"passed": 3, "failed": 1, "not run": 2},
        "missing": {"tensorrt": 2},
        "tests": [{"test": "test_a", "outcome": "failed"}, {"test": "test_b", "outcome": "passed"}],
    }
    assert recorder.verification_line(record) == (
        "| GPU tests | `make test-gpu` | NVIDIA H200, driver 580.1 (CUDA 13.0) | python 3.12.3, onnxruntime-gpu 1.31.1 "
        "| 2026-11-20 | 3 passed, 1 failed, 0 crashed, 2 not run; not run for want of: tensorrt (2); failed: test_a |"
    )


@pytest.mark.parametrize("text", [None, "", "# Notes\n\nNo table here.\n"])
def test_the_row_goes_into_a_file_that_is_not_there_or_has_no_table(recorder, tmp_path, text):
    path = tmp_path / "verification.md"
    if text is not None:
        path.write_text(text)
    for date in ("2026-01-01", "2026-01-02"):
        recorder.write_line(path, f"| {recorder.TITLE} | `make test-gpu` | no GPU | - | {date} | 1 passed |")
    written = path.read_text()
    assert written.startswith(text or "# What ran where")
    assert (written.count(f"| {recorder.TITLE} |"), "2026-01-02" in written) == (1, True)
