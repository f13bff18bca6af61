"""Settings that every test shares."""

import os

from hypothesis import settings

# They need an NVIDIA GPU: `make test-gpu` runs and records them, and says which could not run.
collect_ignore = ["gpu"]

# Before any test imports Keras or TensorFlow: a reader's own Keras settings must not change what is tested.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# No deadline: a busy machine is not a failure. In CI the examples are the same in every run.
settings.register_profile("workbench", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("workbench")
