"""Settings that every test shares."""

import atexit
import os
import shutil
import tempfile

from hypothesis import settings

# They need an NVIDIA GPU: `make test-gpu` runs and records them, and says which could not run.
collect_ignore = ["gpu"]


def pytest_ignore_collect(collection_path, config):
    """`make test` is the core; `make test-extras` names the folder of the large matrix itself."""
    named = any("extras" in argument for argument in config.args)
    return True if collection_path.name == "extras" and not named else None


def pytest_terminal_summary(terminalreporter):
    """A table of the hostile and damaged files that were tried, by family: a file of tests/faults/ each."""
    families = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, ()):
            folder, _, file = report.nodeid.split("::")[0].rpartition("/")
            if folder.endswith("tests/faults") and (report.when == "call" or outcome != "passed"):
                row = families.setdefault(file.removeprefix("test_").removesuffix(".py").replace("_", " "), [0, 0, 0.0])
                row[0] += 1
                row[1] += outcome == "passed"
                row[2] += report.duration
    if families:
        families["all"] = [sum(column) for column in zip(*families.values(), strict=True)]
        terminalreporter.section("hostile and damaged files")
        for name, (tried, answered, seconds) in families.items():
            terminalreporter.write_line(f"{name:<24} {tried:5d} tried {answered:5d} answered {seconds:7.1f} s")


# Before any test imports Keras or TensorFlow: a reader's own Keras settings must not change what is tested.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# segmentation_models reads them when it is imported, after TensorFlow; Keras 3 does not look at them.
os.environ.update(TF_USE_LEGACY_KERAS="1", SM_FRAMEWORK="tf.keras")

# What tests build and convert on the way stays out of the reader's own cache.
if "WORKBENCH_CACHE" not in os.environ:
    os.environ["WORKBENCH_CACHE"] = tempfile.mkdtemp(prefix="workbench-tests-")
    atexit.register(shutil.rmtree, os.environ["WORKBENCH_CACHE"], ignore_errors=True)

# No deadline: a busy machine is not a failure. In CI the examples are the same in every run.
settings.register_profile("workbench", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("workbench")
