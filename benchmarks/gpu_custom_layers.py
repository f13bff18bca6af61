"""The kernels of HardMish and Warp on a GPU: their rates against a copy's, and against the same arithmetic in PyTorch.

Run it from the repository, with nvcc on PATH: `python benchmarks/gpu_custom_layers.py`. PyTorch is optional.

Each time is the median of many launches, with an event of CUDA before and after each. The bytes of a layer are its
inputs read once and its answer written once; the copy is `cudaMemcpyAsync` on the device of half as many bytes, which
it reads and writes. A rate of 1 is what no kernel that uses the memory can pass by much. Warp's rate depends on the
flow: `smooth` is the motion of a camera, `noise` an independent one for each pixel, so neighbours read far apart.
"""

import argparse
import ctypes
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from _record import write_record
from custom_layers import hard_mish, warp
from plugin_builds import compile_kernels, find_nvcc, missing_nvcc

from workbench.core.driver import probe_driver
from workbench.engine.memory import open_memory

Arrays = tuple[np.ndarray, np.ndarray]
HARD_MISH = [  # (shape of x, shape of gain)
    ((16, 64, 224, 224), (64, 1, 1)),
    ((16, 224, 224, 64), (64,)),
    ((16, 63, 223, 225), (63, 1, 1)),
    ((1, 64, 224, 224), (64, 1, 1)),
]
WARP = [  # (shape of the image, flow)
    ((4, 1080, 1920, 3), "smooth"),
    ((4, 1080, 1920, 3), "noise"),
    ((4, 1080, 1920, 1), "smooth"),
    ((4, 1080, 1920, 4), "smooth"),
    ((4, 540, 960, 64), "smooth"),
    ((4, 540, 960, 64), "noise"),
]
CHECKED = 2  # pictures of each batch that are compared with NumPy


def numbers(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32).astype(dtype)


def make_flow(shape: tuple[int, ...], kind: str, dtype: type) -> np.ndarray:
    """A flow for an image of this shape, up to 8 pixels in each direction."""
    batch, height, width, _ = shape
    if kind == "noise":
        return np.random.default_rng(1).uniform(-8, 8, (batch, height, width, 2)).astype(dtype)
    row, column = np.linspace(0, 6, height)[:, None], np.linspace(0, 9, width)
    one = np.stack([8 * np.sin(row + column), 8 * np.cos(row - column)], -1)
    return np.broadcast_to(one, (batch, height, width, 2)).astype(dtype)


class Gpu:
    """One stream, the memory on the device, and CUDA's clock."""

    def __init__(self, runs: int) -> None:
        from cuda.bindings import runtime

        self.cuda, self.memory, self.runs = runtime, open_memory("cuda-python"), runs
        self.stream = self.memory.create_stream()
        self.events = [self.call("cudaEventCreate") for _ in range(2 * runs)]

    def call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self.cuda, name)(*arguments)
        if int(status):
            raise SystemExit(f"{name} failed: {status}")
        return values[0] if values else None

    def put(self, array: np.ndarray) -> int:
        address = self.memory.allocate(array.nbytes)
        self.memory.copy_to_device(address, array.reshape(-1).view(np.uint8), array.nbytes, self.stream)
        self.memory.synchronize(self.stream)
        return address

    def get(self, address: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        array = np.empty(shape, dtype)
        self.memory.copy_to_host(array.reshape(-1).view(np.uint8), address, array.nbytes, self.stream)
        self.memory.synchronize(self.stream)
        return array

    def median_us(self, work: Callable[[], object]) -> float:
        for _ in range(20):
            work()
        for before, after in zip(self.events[::2], self.events[1::2], strict=True):
            self.call("cudaEventRecord", before, self.stream)
            work()
            self.call("cudaEventRecord", after, self.stream)
        self.memory.synchronize(self.stream)
        pairs = zip(self.events[::2], self.events[1::2], strict=True)
        return float(np.median([self.call("cudaEventElapsedTime", before, after) for before, after in pairs])) * 1e3

    def copy_us(self, nbytes: int) -> float:
        """A copy on the device that reads and writes `nbytes` together."""
        source, target = self.memory.allocate(nbytes // 2), self.memory.allocate(nbytes // 2)
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        median = self.median_us(lambda: self.call("cudaMemcpyAsync", target, source, nbytes // 2, kind, self.stream))
        self.memory.free(source)
        self.memory.free(target)
        return median


def load(library: Path) -> ctypes.CDLL:
    kernels = ctypes.CDLL(str(library))
    address, size, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    kernels.hard_mish_launch.argtypes = [address] * 3 + [size] * 3 + [flag, address]
    kernels.warp_launch.argtypes = [address] * 3 + [size] * 4 + [flag, address]
    return kernels


def measure(gpu: Gpu, launch: Any, arrays: Arrays, sizes: tuple[int, ...], expected: np.ndarray) -> dict[str, Any]:
    """The kernel's time, a copy's, and the rate, after the first pictures of its answer were seen to be NumPy's."""
    first, second = arrays
    addresses = [gpu.put(array) for array in (first, second, np.full_like(first, np.nan))]
    half = int(first.dtype == np.float16)

    def work() -> None:
        if status := launch(*addresses, *sizes, half, gpu.stream):
            raise SystemExit(f"the launch answered {status}")

    work()
    answer = gpu.get(addresses[2], expected.shape, expected.dtype.type)
    np.testing.assert_array_equal(answer, expected)
    nbytes = 2 * first.nbytes + second.nbytes
    ours, copy = gpu.median_us(work), gpu.copy_us(nbytes)
    for address in addresses:
        gpu.memory.free(address)
    return {
        "bytes": nbytes,
        "median_us": round(ours, 2),
        "copy_median_us": round(copy, 2),
        "copy_gb_per_s": round(nbytes / copy / 1e3, 1),
        "of_copy_rate": round(copy / ours, 3),
    }


def torch_hard_mish(x: Any, gain: Any) -> Any:
    import torch

    x, gain, kind = x.float(), gain.float(), x.dtype
    return (0.5 * x * torch.clamp(x + 2, 0, 2) * gain).to(kind)


def torch_warp(image: Any, flow: Any) -> Any:
    import torch

    batch, height, width, _ = image.shape
    rows, columns = (torch.arange(size, device=image.device, dtype=torch.float32) for size in (height, width))
    down = torch.clamp(rows[:, None] + flow[..., 0].float(), 0, height - 1)
    along = torch.clamp(columns + flow[..., 1].float(), 0, width - 1)
    top, left = down.floor().long(), along.floor().long()
    bottom, right = torch.clamp(top + 1, max=height - 1), torch.clamp(left + 1, max=width - 1)
    one = torch.arange(batch, device=image.device)[:, None, None]
    share, across = (down - top)[..., None], (along - left)[..., None]
    above = image[one, top, left].float()
    above = above + (image[one, top, right].float() - above) * across
    below = image[one, bottom, left].float()
    below = below + (image[one, bottom, right].float() - below) * across
    return (above + (below - above) * share).to(image.dtype)


def measure_torch(gpu: Gpu, function: Callable[..., Any], arrays: Arrays, expected: np.ndarray) -> dict[str, Any]:
    """The same arithmetic by PyTorch, as it is written and compiled; empty where PyTorch is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    found: dict[str, Any] = {}
    with torch.cuda.stream(torch.cuda.ExternalStream(gpu.stream)), torch.no_grad():
        inputs = [torch.from_numpy(array).cuda() for array in arrays]
        torch._dynamo.reset()
        for name, call in (("eager", function), ("compiled", torch.compile(function, dynamic=False))):
            answer = call(*inputs)[: len(expected)].cpu().numpy()
            error = np.abs(answer.astype(np.float32) - expected.astype(np.float32)).max()
            found[f"torch_{name}_us"] = round(gpu.median_us(lambda call=call: call(*inputs)), 2)
            found[f"torch_{name}_largest_difference"] = float(error)
    torch.cuda.empty_cache()
    return found


def cases() -> Any:
    """Layer, what is special, arrays, sizes for the launcher and NumPy's first pictures, one after the other."""
    for dtype in (np.float32, np.float16):
        for shape, gain_shape in HARD_MISH:
            x, gain = numbers(shape, dtype), numbers(gain_shape, dtype)
            inner = math.prod(shape[len(shape) - len(gain_shape) + 1 :])
            expected = hard_mish(x[:CHECKED], gain)
            yield ("HardMish", f"gain {gain_shape}", (x, gain), (x.size, gain.size, inner), expected)
        for shape, kind in WARP:
            image, flow = numbers(shape, dtype), make_flow(shape, kind, dtype)
            yield "Warp", f"{kind} flow", (image, flow), shape, warp(image[:CHECKED], flow[:CHECKED])


def main() -> None:
    """Measure each case, print a table and write the record."""
    parser = argparse.ArgumentParser(description="The kernels of two layers against a copy and PyTorch, on a GPU.")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--library", type=Path, help="compiled kernels; compiled here when none are given")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    arguments = parser.parse_args()
    driver = probe_driver()
    if driver.problem or (not arguments.library and missing_nvcc()):
        print(f"not run: {driver.problem or missing_nvcc()}")
        return
    capability = driver.gpus[0].capability
    with tempfile.TemporaryDirectory() as folder:
        library = arguments.library or compile_kernels(Path(folder), (capability.replace(".", ""),))
        gpu, kernels = Gpu(arguments.runs), load(library)
    functions = {"HardMish": (kernels.hard_mish_launch, torch_hard_mish), "Warp": (kernels.warp_launch, torch_warp)}
    rows = []
    for name, about, arrays, sizes, expected in cases():
        launch, function = functions[name]
        found = {"layer": name, "type": arrays[0].dtype.name, "shape": list(arrays[0].shape), "about": about}
        found |= measure(gpu, launch, arrays, sizes, expected)
        if not arguments.no_torch:
            found |= measure_torch(gpu, function, arrays, expected)
        rows.append(found)
        print_row(found)
    result = {
        "gpu": {"name": driver.gpus[0].name, "compute_capability": capability, "cuda": driver.cuda},
        "driver": driver_version(),
        "nvcc": nvcc_version(),
        "runs": arguments.runs,
        "layers": rows,
    }
    torch = () if arguments.no_torch or not any("torch_eager_us" in row for row in rows) else ("torch",)
    path = write_record("gpu_custom_layers", result, packages=("numpy", *torch))
    print(f"\nwrote {os.path.relpath(path)}")


def print_row(row: dict[str, Any]) -> None:
    shape, kinds = "x".join(map(str, row["shape"])), ("eager", "compiled")
    torch = "".join(f"   torch {kind} {row[f'torch_{kind}_us']:8.1f}" for kind in kinds if f"torch_{kind}_us" in row)
    ours, copy = f"{row['median_us']:8.1f} us", f"copy {row['copy_median_us']:7.1f} us"
    rate = f"{row['of_copy_rate']:5.0%} of its rate"
    print(f"{row['layer']:8} {row['type']} {shape:16} {row['about']:16} {ours}, {copy}, {rate}{torch}", flush=True)


def first_line_of(*command: str, index: int = 0) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    lines = done.stdout.strip().splitlines() or ["unknown"]
    return lines[index].strip()


def driver_version() -> str:
    return first_line_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def nvcc_version() -> str:
    return first_line_of(find_nvcc() or "nvcc", "--version", index=-2)


if __name__ == "__main__":
    main()
