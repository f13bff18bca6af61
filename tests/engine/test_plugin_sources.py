"""The sources of the plugins: they compile, list themselves, and the real TensorRT-RTX builds engines with them.

No GPU is needed; tests/gpu/test_custom_layers.py runs them on one.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from plugin_builds import (
    NO_HEADERS,
    SOURCES,
    compile_kernels,
    compile_plugins,
    compile_to_ptx,
    missing_headers,
    missing_nvcc,
)

NVCC = pytest.mark.skipif(bool(missing_nvcc()), reason=missing_nvcc())
HEADERS = pytest.mark.skipif(bool(missing_nvcc() or missing_headers()), reason=missing_nvcc() or missing_headers())
WITHOUT_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}

# Parses a graph with one custom node and its local function, once as it is and once with the flag; then builds a plan.
BUILD = """
import sys
import numpy as np
import tensorrt_rtx as trt
from onnx import TensorProto, helper, numpy_helper

library, plugin, kind = sys.argv[1:]
number = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[kind]
shapes = {"HardMish": (["N", 3, 8, 8], [1, 3, 1, 1]), "Warp": (["N", 8, 9, 3], ["N", 8, 9, 2])}[plugin]
names, opsets = ("first", "second"), [helper.make_opsetid("", 18), helper.make_opsetid("workbench.custom", 1)]
inputs = [helper.make_tensor_value_info(name, number, shape) for name, shape in zip(names, shapes)]
output = helper.make_tensor_value_info("answer", number, shapes[0])
node = helper.make_node(plugin, names, ["middle"], name="layer", domain="workbench.custom")
last = helper.make_node("Relu", ["middle"], ["answer"])
body = [helper.make_node("Identity", ["a"], ["y"])]  # stands for the layer's own operations
function = helper.make_function("workbench.custom", plugin, ["a", "b"], ["y"], body, opsets[:1])
graph = helper.make_graph([node, last], "graph", inputs, [output])
model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=[function]).SerializeToString()

log = trt.Logger(trt.Logger.WARNING)
builder = trt.Builder(log)
registry = builder.get_plugin_registry()
registry.load_library(library)
print("creators", sorted((c.name, c.plugin_version, c.plugin_namespace) for c in registry.all_creators))
for override in (False, True):
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if override:
        parser.set_flag(trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)
    assert parser.parse(model), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    types = [network.get_layer(i).type.name for i in range(network.num_layers)]
    print("override", override, "plugins", types.count("PLUGIN_V3"))
output = network.get_output(0)
print("answer", output.dtype.name, tuple(output.shape))
config, profile = builder.create_builder_config(), builder.create_optimization_profile()
for at in range(network.num_inputs):
    tensor = network.get_input(at)
    if -1 in tensor.shape:
        profile.set_shape(tensor.name, *((batch, *tuple(tensor.shape)[1:]) for batch in (1, 2, 4)))
config.add_optimization_profile(profile)
plan = builder.build_serialized_network(network, config)
print("plan", len(bytes(plan)) > 10_000)
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return compile_plugins(tmp_path_factory.mktemp("plugins"))


def harness(programs, *words, cwd=None):
    command = [programs[1], *words]
    return subprocess.run(command, cwd=cwd, env=WITHOUT_GPU, capture_output=True, text=True, timeout=120)


@NVCC
def test_the_kernels_compile_without_a_warning_for_all_architectures(tmp_path):
    library = compile_kernels(tmp_path)
    exported = library.read_bytes()
    assert b"hard_mish_launch" in exported and b"warp_launch" in exported


@NVCC
def test_the_compiler_makes_no_fused_multiply_add_of_the_kernels(tmp_path):
    """It would round once where NumPy rounds twice, and change the last bit."""
    intermediate = compile_to_ptx(tmp_path)
    assert "mul.rn.f32" in intermediate and "fma.rn.f32" not in intermediate


@HEADERS
def test_the_harness_lists_the_plugins_without_a_gpu(programs):
    done = harness(programs, programs[0])
    assert (done.returncode, done.stdout, done.stderr) == (0, "HardMish version 1\nWarp version 1\n", "")


@HEADERS
def test_the_harness_says_that_there_is_no_gpu(programs, tmp_path):
    np.zeros((2, 3, 8, 8), np.float32).tofile(tmp_path / "x")
    np.zeros(3, np.float32).tofile(tmp_path / "gain")
    words = [programs[0], "HardMish", "float32", "out", "x:2x3x8x8", "gain:3x1x1"]
    done = harness(programs, *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (77, "no NVIDIA GPU was found, so nothing was run\n")
    assert not (tmp_path / "out").exists()


@HEADERS
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "usage: plugin_harness LIBRARY"),
        (["missing.so"], "cannot load the library: ./missing.so: cannot open shared object file"),
        (["x"], "cannot load the library: ./x: "),
        (["LIBRARY", "HardMish"], "usage: plugin_harness LIBRARY"),
        (["LIBRARY", "Mish", "float32", "out", "x:2x3"], "the library has no plugin Mish"),
        (["LIBRARY", "Warp", "int8", "out", "x:2x3"], "got the type int8, expected float32 or float16"),
        (["LIBRARY", "Warp", "float32", "out", "x"], "got the tensor x, expected FILE:SHAPE"),
        (["LIBRARY", "Warp", "float32", "out", "x:2x"], "got the shape 2x, expected up to 8 sizes"),
        (["LIBRARY", "Warp", "float32", "out", "x:-2x3"], "got the shape -2x3, expected up to 8 sizes"),
        (["LIBRARY", "Warp", "float32", "out", "x:1x1x1x1x1x1x1x2x3"], "expected up to 8 sizes"),
        (["LIBRARY", "Warp", "float32", "out", "x:2x4"], "got 24 bytes in x, expected 32"),
        (["LIBRARY", "Warp", "float32", "out", "missing:2x3"], "got 0 bytes in missing, expected 24"),
        (["LIBRARY", "Warp", "float32", "out", "x:2x3", "--then", "out"], "got no tensor, expected OUT and at least"),
        (["LIBRARY", "Warp", "float32", "out", "x:2x3", "--repeat", "0"], "got --repeat 0, expected a number from 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_harness_refuses_a_bad_argument_in_one_sentence(programs, tmp_path, words, sentence):
    np.zeros((2, 3), np.float32).tofile(tmp_path / "x")
    done = harness(programs, *(str(programs[0]) if word == "LIBRARY" else word for word in words), cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""


@HEADERS
def test_the_harness_refuses_a_library_without_plugins(programs, tmp_path):
    library = compile_kernels(tmp_path, ["90"])
    done = harness(programs, library)
    sentence = f"{library} exports no getCreators, so it is no library of plugins\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)


@HEADERS
def test_a_plugin_refuses_another_number_of_inputs(programs, tmp_path):
    np.zeros((2, 3), np.float32).tofile(tmp_path / "x")
    done = harness(programs, programs[0], "Warp", "float32", "out", "x:2x3", cwd=tmp_path)
    assert done.returncode == 1 and "Warp got 1 inputs and 1 outputs, expected 2 and 1" in done.stderr


@pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not on PATH")
def test_cmake_says_which_folder_it_needs(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TENSORRT_INCLUDE"}
    command = ["cmake", "-S", SOURCES, "-B", tmp_path, f"-DTENSORRT_INCLUDE={tmp_path}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert f"NvInfer.h is not in TENSORRT_INCLUDE='{tmp_path}'" in " ".join(done.stderr.split())


@HEADERS
@pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not on PATH")
def test_cmake_builds_the_library_and_the_harness(tmp_path):
    environment = {**os.environ, "CUDACXX": shutil.which("nvcc") or os.environ.get("CUDACXX", "")}
    for command in (
        ["cmake", "-S", SOURCES, "-B", tmp_path, "-DCMAKE_CUDA_ARCHITECTURES=90"],
        ["cmake", "--build", tmp_path],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    done = harness((None, tmp_path / "plugin_harness"), tmp_path / "libworkbench_plugins.so")
    assert done.stdout == "HardMish version 1\nWarp version 1\n"


@HEADERS
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("plugin", ["HardMish", "Warp"])
def test_tensorrt_rtx_takes_the_library_and_builds_a_plan_with_the_plugin(programs, tmp_path, plugin, dtype):
    """In a process of its own, in which the library's unversioned name can be found: the wheel holds only `.so.1`."""
    libraries = pytest.importorskip("tensorrt_rtx_libs", reason="tensorrt_rtx is not installed")
    (tmp_path / "libtensorrt_rtx.so").symlink_to(Path(libraries.__file__).parent / "libtensorrt_rtx.so.1")
    environment = {**WITHOUT_GPU, "LD_LIBRARY_PATH": str(tmp_path)}
    command = [sys.executable, "-c", BUILD, str(programs[0]), plugin, dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("creators [") and f"('{plugin}', '1', '')" in lines[0]
    shape = {"HardMish": (-1, 3, 8, 8), "Warp": (-1, 8, 9, 3)}[plugin]
    kind = {"float32": "FLOAT", "float16": "HALF"}[dtype]
    assert lines[1:] == ["override False plugins 0", "override True plugins 1", f"answer {kind} {shape}", "plan True"]


def test_what_is_missing_is_said_in_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("TENSORRT_INCLUDE", str(tmp_path))
    assert missing_headers() == NO_HEADERS
    (tmp_path / "NvInfer.h").touch()
    assert missing_headers() == ""
    monkeypatch.delenv("TENSORRT_INCLUDE")
    assert missing_headers() == NO_HEADERS
    for name in ("PATH", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.setenv(name, str(tmp_path / "nowhere"))
    assert missing_nvcc() == "no nvcc, the compiler of the CUDA toolkit, is on PATH or in CUDA_HOME"
