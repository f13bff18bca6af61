"""How long the second build of the same network takes: the plan comes from the cache, checked.

Run it from the repository: `python benchmarks/engine_cache.py`. It needs the extras `keras` and `rtx`, and no GPU.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from _record import write_record

from workbench.core.packages import load_keras
from workbench.engine.build import build_engine
from workbench.export.keras_model import keras_to_onnx
from workbench.models import fcn_vgg16

LIMIT_MS = 50
RUNS = 20
OPTIONS: dict[str, Any] = {"flavour": "tensorrt_rtx", "workspace_bytes": 1 << 30, "progress": False}
NEW_PROCESS = """
import sys, time
from workbench.engine.build import build_engine
start = time.perf_counter()
build_engine(sys.argv[1], flavour="tensorrt_rtx", workspace_bytes=1 << 30, progress=False)
print((time.perf_counter() - start) * 1e3)
"""


def make_networks(folder: Path) -> dict[str, Path]:
    """Write ResNet-50 with random weights (the time does not depend on them) and the demonstration network."""
    keras = load_keras()
    models = {
        "resnet50": keras.applications.ResNet50(weights=None, classifier_activation=None),
        "fcn_vgg16": fcn_vgg16.demonstration_model(keras, (512, 1024)),
    }
    return {name: keras_to_onnx(model, folder / f"{name}.onnx", progress=False) for name, model in models.items()}


def build_ms(path: Path, **options: Any) -> tuple[float, int]:
    """Milliseconds of one call, and the plan's size in bytes."""
    start = time.perf_counter()
    plan = build_engine(path, **{**OPTIONS, **options})
    return (time.perf_counter() - start) * 1e3, len(plan.data)


def measure(path: Path) -> dict[str, float]:
    """First and later builds of one network, in milliseconds."""
    first_ms, plan_bytes = build_ms(path)
    time.sleep(3)  # a file written less than two seconds ago is hashed again, to be sure
    build_ms(path)  # keeps the hash
    again = [build_ms(path)[0] for _ in range(RUNS)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", NEW_PROCESS, str(path)]
    fresh = [float(subprocess.check_output(command, env=environment)) for _ in range(5)]
    return {
        "plan_mb": round(plan_bytes / 1e6, 1),
        "first_ms": round(first_ms, 1),
        "second_median_ms": round(statistics.median(again), 2),
        "second_slowest_ms": round(max(again), 2),
        "second_in_a_new_process_median_ms": round(statistics.median(fresh), 1),
    }


def main() -> int:
    """Measure, print a table, write the record; 1 when a second build is slower than the limit."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["WORKBENCH_CACHE"] = str(Path(name) / "cache")
        networks = make_networks(Path(name))
        result = {network: measure(path) for network, path in networks.items()}
    for network, times in result.items():
        print(network, *(f"{key} {value}" for key, value in times.items()), sep="\n  ")
    record = {"limit_ms": LIMIT_MS, "runs": RUNS, "networks": result}
    path = write_record("engine_cache", record, packages=("tensorrt_rtx", "onnx"))
    print(f"wrote {os.path.relpath(path)}")
    slow = [network for network, times in result.items() if times["second_median_ms"] >= LIMIT_MS]
    if slow:
        print(f"slower than {LIMIT_MS} ms: {', '.join(slow)}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
