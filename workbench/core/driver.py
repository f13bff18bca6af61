"""Ask the NVIDIA driver what it has, before anything native that crashes without one."""

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

from workbench.core.errors import DriverError, first_line

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
_NO_DEVICE, _STUB_LIBRARY = 100, 34  # CUDA_ERROR_NO_DEVICE and CUDA_ERROR_STUB_LIBRARY of cuda.h


@dataclass(frozen=True)
class Gpu:
    """One GPU that the driver shows."""

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int

    @property
    def capability(self) -> str:
        """The compute capability as people write it, such as `9.0`."""
        return "{}.{}".format(*self.compute_capability)


@dataclass(frozen=True)
class Driver:
    """What the NVIDIA driver says."""

    version: int | None  # the highest CUDA version it supports, 1000 * major + 10 * minor; None without a driver
    gpus: tuple[Gpu, ...]  # those that can be used, in CUDA's order
    problem: str  # why no GPU can be used, one sentence; empty where one can

    @property
    def cuda(self) -> str:
        """The CUDA version as people write it, such as `13.0`; empty without a driver."""
        return f"{self.version // 1000}.{self.version % 1000 // 10}" if self.version else ""


def probe_driver() -> Driver:
    """Ask the NVIDIA driver for its version and GPUs; never raises and never crashes."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
        status = cuda.cuInit(0)
    except (OSError, AttributeError) as error:
        return Driver(None, (), f"no NVIDIA driver was found ({first_line(error)}); install NVIDIA's driver")
    version = ctypes.c_int()
    known = cuda.cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value > 0
    number = version.value if known else None
    if status:
        return Driver(number, (), _init_problem(status))
    gpus = _list_gpus(cuda)
    return Driver(number, gpus, "" if gpus else _init_problem(_NO_DEVICE))


def require_gpu() -> Gpu:
    """Return the first GPU; DriverError where there is no driver, or it shows no GPU."""
    driver = probe_driver()
    if driver.problem:
        raise DriverError(driver.problem)
    return driver.gpus[0]


def _init_problem(status: int) -> str:
    if status == _NO_DEVICE:
        return (
            "an NVIDIA driver is installed but shows no GPU; check nvidia-smi and that CUDA_VISIBLE_DEVICES "
            "does not hide it"
        )
    if status == _STUB_LIBRARY:
        return "libcuda is the CUDA toolkit's stub, not a driver; take its folder out of LD_LIBRARY_PATH"
    return f"the NVIDIA driver does not start (cuInit returned CUDA error {status}); check nvidia-smi"


def _list_gpus(cuda: Any) -> tuple[Gpu, ...]:
    count = ctypes.c_int()
    if cuda.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    found = (_describe_gpu(cuda, index) for index in range(count.value))
    return tuple(gpu for gpu in found if gpu is not None)


def _describe_gpu(cuda: Any, index: int) -> Gpu | None:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    memory, name = ctypes.c_size_t(), ctypes.create_string_buffer(256)
    failed = (
        cuda.cuDeviceGet(ctypes.byref(device), index)
        or cuda.cuDeviceGetName(name, len(name), device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        or cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    )
    if failed:
        return None
    return Gpu(name.value.decode(errors="replace"), (major.value, minor.value), memory.value)
