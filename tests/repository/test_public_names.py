"""`import workbench as wb`: which names there are, what they cost, and that each is what it says."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import workbench

ROOT = Path(__file__).parents[2]
TUTORIAL = {
    "allocate_buffers",
    "build_engine",
    "color_map",
    "do_inference",
    "keras_to_pb",
    "load_engine",
    "load_images_to_buffer",
    "pb_to_onnx",
    "rescale_image",
    "save_engine",
    "sub_mean_chw",
}
"""Names that readers of the original tutorial know."""

NAMES = TUTORIAL | {
    "Tolerance",
    "WorkbenchError",
    "calibrate",
    "compare_runners",
    "convert",
    "environment",
    "first_divergence",
    "fix",
    "fuse_argmax",
    "fuse_preprocessing",
    "inspect",
    "keras_to_onnx",
    "load_image",
    "load_recording",
    "mark_custom_layer",
    "open_runner",
    "overwriting",
    "quantize_int8",
    "register_operator",
    "rounding_noise",
    "read_folder",
    "segment_folder",
    "side_by_side",
    "street_scenes",
    "sweep",
    "time_runners",
    "to_fp16",
    "verify",
}
SIGNATURES = {
    "keras_to_pb": "(model, path, *, spatial=None)",
    "keras_to_onnx": "(model, path, *, exporter='tf2onnx', spatial=None, opset=None, progress=True)",
    "sub_mean_chw": "(image, mean=(71.60167789, 82.09696889, 72.30508881))",
    "rescale_image": "(image, output_shape, order=1)",
    "save_engine": "(plan, path)",
    "load_images_to_buffer": "(images, buffers)",
}


def python(code):
    done = subprocess.run([sys.executable, *code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


def test_the_public_names_are_these():
    assert set(workbench.__all__) == NAMES


def test_tab_shows_the_public_names():
    assert set(dir(workbench)) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_is_there_and_explained(name):
    assert len(getattr(workbench, name).__doc__.splitlines()[0]) > 10


@pytest.mark.parametrize("name", sorted(NAMES - {"Tolerance", "WorkbenchError"}))
def test_no_public_name_is_a_module(name):
    assert callable(getattr(workbench, name))


def test_importing_takes_less_than_100_ms_and_loads_no_numpy():
    code = "import sys, time; start = time.perf_counter(); import workbench; seconds = time.perf_counter() - start\n"
    code += "print([seconds, sorted(set(sys.modules) & {'numpy', 'onnx', 'matplotlib', 'tensorflow', 'keras'})])"
    runs = [json.loads(python(["-c", code]).stdout.replace("'", '"')) for _ in range(3)]
    assert [loaded for _, loaded in runs] == [[], [], []]
    assert min(seconds for seconds, _ in runs) < 0.1  # about 3 ms; the limit is the promise


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_tutorials_helpers_keep_their_signatures(name):
    import inspect

    parameters = inspect.signature(getattr(workbench, name)).parameters.values()
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    assert str(inspect.Signature(plain)) == SIGNATURES[name]


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "workbench" / "__init__.pyi").read_text(encoding="utf-8"))
    assert {alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names} == NAMES


def test_the_list_of_the_interface_is_up_to_date():
    python(["scripts/make_api.py", "--check"])
