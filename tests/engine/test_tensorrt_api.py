"""The door to TensorRT: what is missing is told apart, and the driver is asked before anything crashes."""

import ctypes
import importlib.util
import os
import types

import pytest

import workbench
from workbench.core.driver import Driver, Gpu, probe_driver, require_gpu
from workbench.core.errors import BackendUnavailableError, DriverError, InputError
from workbench.engine import tensorrt_api
from workbench.engine.tensorrt_api import Flavour, open_flavour, unsupported_gpu

H200 = Gpu("NVIDIA H200", (9, 0), 150 << 30)


class Members:
    """An enum of the bindings: all this package reads of it is `__members__`."""

    def __init__(self, *names):
        self.__members__ = dict.fromkeys(names)


def full_module(version="11.4.0.106"):
    return types.SimpleNamespace(__version__=version, Builder=1, OnnxParser=1)


def rtx_module():
    module = full_module("1.7.1.116")
    module.ComputeCapability = Members("NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
    return module


LEAN = types.SimpleNamespace(__version__="11.4.0.106", Runtime=1)


@pytest.fixture
def install(monkeypatch):
    """Say what importing each member of the family gives: a module, an error, or (unnamed) nothing."""

    def choose(**modules):
        def import_module(name):
            found = modules.get(name, ModuleNotFoundError(f"No module named {name!r}", name=name))
            if isinstance(found, BaseException):
                raise found
            return found

        monkeypatch.setattr(tensorrt_api.importlib, "import_module", import_module)

    yield choose
    monkeypatch.undo()


def test_the_real_builder_is_here():
    """CI names tensorrt_rtx as a backend it must test: where it is missing, CI is red, not yellow."""
    if not importlib.util.find_spec("tensorrt_rtx") and "CI" not in os.environ:
        pytest.skip("tensorrt_rtx is not installed; a must in CI only")
    flavour = open_flavour("tensorrt_rtx", for_building=True)
    assert flavour.builds_ahead_of_time
    assert {"sm75", "sm89", "sm120"} <= set(flavour.targets)


def test_the_first_flavour_that_can_be_imported_is_taken(install):
    install(tensorrt=full_module(), tensorrt_rtx=rtx_module())
    assert open_flavour().name == "tensorrt"
    install(tensorrt_rtx=rtx_module(), tensorrt_lean=LEAN)
    assert open_flavour().name == "tensorrt_rtx"
    install(tensorrt_lean=LEAN)
    assert open_flavour().name == "tensorrt_lean"


def test_the_lean_bindings_are_found_under_either_name(install):
    install(tensorrt_lean_bindings=LEAN)
    assert open_flavour("tensorrt_lean").module is LEAN


def test_capabilities_are_read_from_features_not_from_versions():
    full = Flavour("tensorrt", full_module("1.0"), "1.0")
    old = Flavour("tensorrt", full_module("99.0"), "99.0")
    rtx, lean = Flavour("tensorrt_rtx", rtx_module(), "1.7.1"), Flavour("tensorrt_lean", LEAN, "11.4")
    assert [flavour.can_build for flavour in (full, old, rtx, lean)] == [True, True, True, False]
    assert [flavour.builds_ahead_of_time for flavour in (full, old, rtx, lean)] == [False, False, True, False]
    assert rtx.targets == ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
    assert full.targets == lean.targets == ()


def test_not_installed_and_library_missing_are_different_sentences(install):
    install()
    with pytest.raises(BackendUnavailableError, match=r"TensorRT-RTX is not installed; .* pip install -e '\.\[rtx\]'"):
        open_flavour("tensorrt_rtx")
    install(tensorrt=ImportError("libnvonnxparser.so.11: cannot open shared object file: No such file or directory"))
    with pytest.raises(BackendUnavailableError, match=r"is installed, but a library .* \(libnvonnxparser\.so\.11"):
        open_flavour("tensorrt")
    install(tensorrt=OSError("libnvinfer.so.11: cannot open"))
    with pytest.raises(BackendUnavailableError, match=r"is installed, but a library"):
        open_flavour("tensorrt")
    install(tensorrt=ModuleNotFoundError("No module named 'tensorrt_bindings'", name="tensorrt_bindings"))
    with pytest.raises(BackendUnavailableError, match=r"is installed, but a library"):
        open_flavour("tensorrt")


def test_without_any_flavour_one_sentence_names_the_two_to_install(install):
    install()
    with pytest.raises(BackendUnavailableError, match=r"no TensorRT flavour that can build .*\[rtx\].*\[tensorrt\]"):
        open_flavour(for_building=True)
    install(tensorrt=ImportError("libnvinfer.so.11: cannot open"))
    with pytest.raises(BackendUnavailableError, match=r"can run engines is here: TensorRT is installed, but"):
        open_flavour()


def test_a_broken_flavour_does_not_hide_one_that_works(install):
    broken = ImportError("libnvinfer.so.11: cannot open")
    install(tensorrt=broken, tensorrt_rtx=rtx_module())
    assert open_flavour(for_building=True).name == "tensorrt_rtx"
    found, sentences = tensorrt_api.available_flavours()
    assert [flavour.name for flavour in found] == ["tensorrt_rtx"]
    assert len(sentences) == 1 and "libnvinfer" in sentences[0]


def test_the_lean_runtime_does_not_build(install):
    install(tensorrt_lean=LEAN)
    with pytest.raises(BackendUnavailableError, match=r"TensorRT lean runtime .* has no builder"):
        open_flavour("tensorrt_lean", for_building=True)


def test_an_unknown_flavour_is_refused():
    with pytest.raises(InputError, match=r"got the flavour 'trt', expected one of tensorrt, tensorrt_rtx"):
        open_flavour("trt")


class FakeCuda:
    """libcuda for one GPU: functions that write through pointers and return a status."""

    def __init__(self, init=0, count=1, broken=""):
        self._init, self._count, self._broken = init, count, broken

    def cuInit(self, flags):
        return self._init

    def cuDriverGetVersion(self, version):
        version._obj.value = 13000
        return 0

    def cuDeviceGetCount(self, count):
        count._obj.value = self._count
        return int(self._broken == "count")

    def cuDeviceGet(self, device, index):
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name, length, device):
        name.value = H200.name.encode()
        return int(self._broken == "name")

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0

    def cuDeviceTotalMem_v2(self, memory, device):
        memory._obj.value = H200.memory_bytes
        return 0


@pytest.fixture
def libcuda(monkeypatch):
    def choose(cuda):
        def load(name):
            assert name in ("libcuda.so.1", "nvcuda.dll")
            if isinstance(cuda, BaseException):
                raise cuda
            return cuda

        monkeypatch.setattr(ctypes, "CDLL", load)

    yield choose
    monkeypatch.undo()


def test_the_driver_tells_its_version_and_gpus(libcuda):
    libcuda(FakeCuda())
    assert probe_driver() == Driver(13000, (H200,), "")
    assert probe_driver().cuda == "13.0"
    assert require_gpu().capability == "9.0"


@pytest.mark.parametrize(
    ("cuda", "sentence"),
    [
        (OSError("libcuda.so.1: cannot open shared object file"), "no NVIDIA driver was found"),
        (types.SimpleNamespace(), "no NVIDIA driver was found"),
        (FakeCuda(init=100), "a driver is installed but shows no GPU|driver is installed but shows no GPU"),
        (FakeCuda(count=0), "shows no GPU; check nvidia-smi and that CUDA_VISIBLE_DEVICES"),
        (FakeCuda(broken="count"), "shows no GPU"),
        (FakeCuda(broken="name"), "shows no GPU"),
        (FakeCuda(init=34), "the CUDA toolkit's stub, not a driver"),
        (FakeCuda(init=803), r"does not start \(cuInit returned CUDA error 803\)"),
    ],
)
def test_no_driver_and_no_gpu_are_different_sentences(libcuda, cuda, sentence):
    libcuda(cuda)
    driver = probe_driver()
    assert driver.gpus == ()
    with pytest.raises(DriverError, match=sentence):
        require_gpu()


def test_a_gpu_the_flavour_does_not_support_is_a_third_sentence():
    rtx = Flavour("tensorrt_rtx", rtx_module(), "1.7.1")
    text = unsupported_gpu(rtx, H200)
    assert "does not support this GPU (NVIDIA H200, compute capability 9.0)" in text
    assert "7.5, 8.0, 8.6, 8.9, 12.0, 12.1 and newer" in text
    assert unsupported_gpu(rtx, Gpu("NVIDIA L4", (8, 9), 1)) == ""
    assert unsupported_gpu(rtx, Gpu("of next year", (13, 0), 1)) == ""
    assert unsupported_gpu(Flavour("tensorrt", full_module(), "11.4"), H200) == ""


def test_no_runtime_is_made_without_a_driver(libcuda):
    """The lean runtime crashes the process at any use where there is no driver."""
    libcuda(OSError("no libcuda"))

    def never(logger):
        raise AssertionError("the runtime was made")

    lean = Flavour("tensorrt_lean", types.SimpleNamespace(Runtime=never), "11.4")
    with pytest.raises(DriverError, match="no NVIDIA driver"):
        tensorrt_api.make_runtime(lean, tensorrt_api.CollectingLogger())


@pytest.mark.parametrize("outcome", [None, TypeError("pybind11::init(): factory function returned nullptr")])
def test_a_runtime_that_does_not_start_is_a_driver_error(libcuda, outcome):
    libcuda(FakeCuda())

    def make(logger):
        logger.log("ERROR", "Error Code 1: driver too old")
        if outcome is not None:
            raise outcome

    flavour = Flavour("tensorrt", types.SimpleNamespace(Runtime=make), "11.4")
    with pytest.raises(DriverError, match=r"TensorRT 11\.4 cannot start on this machine: driver too old"):
        tensorrt_api.make_runtime(flavour, tensorrt_api.CollectingLogger())


def test_the_logger_keeps_lines_but_not_the_verbose_ones():
    heard = []
    logger = tensorrt_api.CollectingLogger(sink=lambda severity, text: heard.append(severity))
    for severity in ("INFO", "VERBOSE", "ERROR"):
        logger.log(types.SimpleNamespace(name=severity), f"{severity.lower()} line ")
    assert logger.lines == [("INFO", "info line"), ("ERROR", "error line")]
    assert heard == ["INFO", "ERROR"]
    assert logger.texts == ("INFO: info line", "ERROR: error line")
    assert logger.reasons() == "error line"


def test_the_constant_line_about_a_missing_driver_is_dropped_only_where_there_is_none():
    noise = "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (... (cudaError 35: CUDA driver ...))"
    here, elsewhere = tensorrt_api.CollectingLogger(True), tensorrt_api.CollectingLogger(False)
    for logger in (here, elsewhere):
        logger.log("ERROR", noise)
    assert (len(here.lines), len(elsewhere.lines)) == (0, 1)


def test_the_real_bindings_take_the_logger():
    flavour = pytest.importorskip("tensorrt_rtx") and open_flavour("tensorrt_rtx")
    logger = tensorrt_api.make_logger(flavour)
    builder = flavour.module.Builder(logger)
    assert builder.logger is logger
    logger.log(flavour.module.ILogger.Severity.WARNING, "hello")
    assert logger.lines[-1] == ("WARNING", "hello")


def test_every_tensor_type_of_the_real_bindings_has_a_numpy_name():
    trt = pytest.importorskip("tensorrt_rtx")
    names = {tensorrt_api.dtype_name(member) for member in trt.DataType.__members__.values()}
    assert {"float32", "float16", "bfloat16", "int8", "int32", "int64", "uint8", "bool"} <= names
    with pytest.raises(InputError, match="no NumPy name"):
        tensorrt_api.dtype_name(types.SimpleNamespace(name="FP2"))


def test_the_last_errors_of_a_log_lose_their_positions():
    log = [
        "ERROR: first",
        "INFO: between",
        "ERROR: IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magicTag failed)",
        "INTERNAL_ERROR: twice",
        "ERROR: twice",
    ]
    assert tensorrt_api.summarise_log(log) == "Serialization (magicTag failed); twice"
    assert tensorrt_api.summarise_log(["INFO: all is well"]) == ""


def test_nothing_else_in_the_package_imports_tensorrt():
    package = os.path.dirname(workbench.__file__)
    for folder, _, files in os.walk(package):
        for file in files:
            if file.endswith(".py") and file != "tensorrt_api.py":
                with open(os.path.join(folder, file), encoding="utf-8") as stream:
                    lines = [line.strip() for line in stream]
                assert not [line for line in lines if line.startswith(("import tensorrt", "from tensorrt"))], file
