"""Compile the plugins of workbench/engine/plugins for a test or a benchmark, where the tools are there."""

import os
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "workbench" / "engine" / "plugins"
ARCHITECTURES = ("80", "89", "90", "120")  # the default of CMakeLists.txt
NO_HEADERS = "TENSORRT_INCLUDE names no folder with TensorRT's NvInfer.h, which is in no Python package"


def find_nvcc():
    """The CUDA compiler on PATH, or that of CUDA_HOME or CUDA_PATH; None where there is none."""
    homes = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    return shutil.which("nvcc", path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, homes)]))


def missing_nvcc():
    """Why nothing can be compiled for a GPU here, in one sentence; empty where it can."""
    if os.name == "nt":
        return "the plugins are compiled on Linux only"
    return "" if find_nvcc() else "no nvcc, the compiler of the CUDA toolkit, is on PATH or in CUDA_HOME"


def missing_headers():
    """Why the plugins cannot be compiled here, in one sentence; empty where they can."""
    folder = os.environ.get("TENSORRT_INCLUDE")
    return "" if folder and (Path(folder) / "NvInfer.h").is_file() else NO_HEADERS


def compile_kernels(folder, architectures=ARCHITECTURES):
    """The kernels alone, without TensorRT's headers, as a library for ctypes; warnings are errors."""
    library = folder / "libkernels.so"
    _nvcc(*_shared(architectures), "-Werror", "all-warnings", SOURCES / "kernels.cu", "-o", library)
    return library


def compile_to_ptx(folder):
    """The kernels in the GPU's intermediate language, as text."""
    _nvcc("-ptx", "-O2", "-std=c++17", "-arch=sm_90", SOURCES / "kernels.cu", "-o", folder / "kernels.ptx")
    return (folder / "kernels.ptx").read_text(encoding="utf-8")


def compile_plugins(folder, architectures=ARCHITECTURES):
    """The library of plugins that TensorRT loads, and the program that runs them without it."""
    headers = ["-isystem", os.environ["TENSORRT_INCLUDE"]]
    library, harness = folder / "libworkbench_plugins.so", folder / "plugin_harness"
    _nvcc(*_shared(architectures), *headers, SOURCES / "kernels.cu", SOURCES / "plugins.cpp", "-o", library)
    _nvcc("-O2", "-std=c++17", "-cudart", "static", *headers, SOURCES / "harness.cpp", "-ldl", "-o", harness)
    return library, harness


def _shared(architectures):
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    host = "-fPIC,-fvisibility=hidden,-Wall,-Wno-deprecated-declarations"
    return ["-O2", "-std=c++17", "-shared", "-Xcompiler", host, "-cudart", "static", *targets]


def _nvcc(*arguments):
    done = subprocess.run([find_nvcc(), *map(str, arguments)], capture_output=True, text=True, timeout=280)
    if done.returncode:
        raise RuntimeError(f"nvcc failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
