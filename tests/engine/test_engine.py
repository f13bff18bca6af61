"""Real builds by TensorRT-RTX on a machine without a GPU, everything that must be refused, and what a load compares."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from engine_checks import build, save_net, small_net, use_child
from onnx import TensorProto, helper, numpy_helper

from workbench.core import driver, process
from workbench.core.driver import Driver, Gpu, probe_driver
from workbench.core.errors import (
    BackendUnavailableError,
    DriverError,
    EngineBuildError,
    EngineLoadError,
    InputError,
    ModelError,
    OutputError,
    WorkbenchError,
)
from workbench.core.files import cache_folder
from workbench.core.packages import load_keras
from workbench.core.process import signal_name
from workbench.engine import build as engine
from workbench.engine import build as engine_build
from workbench.engine import cache as engine_cache
from workbench.engine import child as engine_child
from workbench.engine import commands, tensorrt_api
from workbench.engine import load as engine_load
from workbench.engine import process as engine_process
from workbench.engine.build import build_engine, save_engine
from workbench.engine.load import load_engine
from workbench.engine.plan import Plan, manifest_path
from workbench.engine.tensorrt_api import Flavour
from workbench.onnx_graph import file as onnx_file
from workbench.onnx_graph.file import _hash_file, known_digest, take_digest
from workbench.precision.calibration import calibrate
from workbench.precision.spec import PrecisionSpec

FLOAT = TensorProto.FLOAT
L4, RTX_4090, H200 = (
    Gpu("NVIDIA L4", (8, 9), 1),
    Gpu("NVIDIA GeForce RTX 4090", (8, 9), 1),
    Gpu("NVIDIA H200", (9, 0), 1),
)
NO_DRIVER = Driver(None, (), "no NVIDIA driver was found (libcuda.so.1); install NVIDIA's driver")


@pytest.fixture(scope="module", autouse=True)
def builder_is_here():
    """The real builder; CI names it as one it must test, so there its absence is an error."""
    if not tensorrt_api.available_flavours()[0] and "CI" not in os.environ:
        pytest.skip("no TensorRT that can build is installed; a must in CI only")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """An empty cache for every test, and the temporary folder of child processes where the test can look at it."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("WORKBENCH_CACHE", str(folder))
    return folder / "engines"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_net(tmp_path_factory.mktemp("nets") / "small.onnx")


# Builds that must succeed.


def test_a_small_network_builds_and_tells_how(small):
    plan = build(small)
    assert plan.data[:4] == b"vtrt"
    manifest = plan.manifest
    assert (manifest.flavour, manifest.precision) == ("tensorrt_rtx", "fp32")
    assert manifest.version == tensorrt_api.open_flavour("tensorrt_rtx").version
    assert manifest.profiles == ({"input": ((1, 3, 16, 16), (4, 3, 16, 16), (8, 3, 16, 16))},)
    assert manifest.layers == {"CONVOLUTION": 1, "ACTIVATION": 1}
    assert (manifest.compute_capability, manifest.gpu_name, manifest.targets) == (None, "", ())
    assert (manifest.onnx_name, manifest.plan_bytes) == ("small.onnx", len(plan.data))
    assert manifest.onnx_sha256 == _hash_file(small)
    assert not manifest.options["tf32"]


def test_targets_go_into_the_plan_and_the_manifest(small):
    both = build(small, targets=["SM89", "sm120"])
    assert both.manifest.targets == ("sm89", "sm120")
    one = build(small, targets=["sm75"], flavour=None)
    assert one.manifest.flavour == "tensorrt_rtx"
    assert one.manifest.targets == ("sm75",)


def test_a_network_with_fixed_shapes_needs_no_profile(tmp_path):
    assert build(small_net(tmp_path / "fixed.onnx", batch=2)).manifest.profiles == ({},)


def test_one_shape_for_the_only_input_fixes_the_batch(small):
    assert build(small, (2, 3, 16, 16)).manifest.profiles == ({"input": ((2, 3, 16, 16),) * 3},)


def test_external_data_is_read_and_hashed(tmp_path):
    model = onnx.load(small_net(tmp_path / "whole.onnx"))
    path = tmp_path / "apart.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    first = build(path)
    (tmp_path / "weights.bin").write_bytes(np.ones((3, 3, 3, 3), np.float32).tobytes())
    second = build(path)
    assert first.manifest.onnx_sha256 != second.manifest.onnx_sha256


def test_the_demonstration_network_builds_with_a_dynamic_batch(tmp_path):
    from workbench.export.keras_model import keras_to_onnx
    from workbench.models import fcn_vgg16

    model = fcn_vgg16.demonstration_model(load_keras(), (512, 1024))
    path = keras_to_onnx(model, tmp_path / "fcn.onnx", progress=False)
    with pytest.raises(EngineBuildError, match=r"OutOfMemory .*allow more memory with workspace_bytes"):
        build(path, workspace_bytes=1 << 28)
    plan = build(path, targets=["sm89"])
    # each convolution took its Relu in: 18 + 15 nodes in 18 kernels
    pairs = [kernel["nodes"] for kernel in plan.manifest.kernels if any(n.endswith("Relu") for n in kernel["nodes"])]
    assert len(pairs) == 15
    assert all(len(nodes) == 2 for nodes in pairs)
    assert plan.manifest.memory["weights_bytes"] == pytest.approx(4 * model.count_params(), rel=0.05)
    assert plan.manifest.profiles[0]["input"] == ((1, 3, 512, 1024), (4, 3, 512, 1024), (8, 3, 512, 1024))
    assert plan.manifest.layers["CONVOLUTION"] >= 15
    assert plan.manifest.layers["DECONVOLUTION"] == 3


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory):
    from workbench.export.keras_model import keras_to_onnx

    model = load_keras().applications.ResNet50(weights=None, classifier_activation=None)
    return keras_to_onnx(model, tmp_path_factory.mktemp("resnet") / "resnet50.onnx", progress=False)


def test_resnet_50_builds_with_a_dynamic_batch_and_shrinks_with_its_precision(resnet50):
    plan = build(resnet50, cache=False)
    assert plan.manifest.layers["CONVOLUTION"] == 53  # the paper's 49 and the first, and 3 more shortcuts
    assert plan.manifest.profiles[0]["input"][2] == (8, 224, 224, 3)
    assert len(plan.data) > 100_000_000  # 25.6 million float32 weights
    picture = np.random.default_rng(0).standard_normal((1, 224, 224, 3)).astype(np.float32)
    scales = calibrate(resnet50, [{"input": picture}], method="minmax", progress=False)
    half = build(resnet50, precision="fp16", cache=False)
    byte = build(resnet50, precision="int8", calibration=scales, cache=False)
    # half and a quarter of the weights, and room for kernels, which no precision makes smaller
    assert len(half.data) < 0.6 * len(plan.data)
    assert len(byte.data) < 0.45 * len(plan.data)
    assert half.manifest.types["CONVOLUTION"] == {"float16": 53}
    assert byte.manifest.types["CONVOLUTION"] == {"int8 to float32": 53}


def test_the_bar_and_the_profile_are_shown_on_request_only(small, capsys):
    build(small, progress=True)
    shown = capsys.readouterr()
    assert "small.onnx: profile\ninput: min 1x3x16x16, opt 4x3x16x16, max 8x3x16x16" in shown.out
    assert "build small.onnx" in shown.err
    build(small, cache=False)
    assert capsys.readouterr() == ("", "")


# Networks that must be refused, each in one sentence.


def relu(path, dtype=FLOAT, shape=(1, 4), **options):
    node = helper.make_node("Relu", ["x"], ["y"])
    return save_net(path, [node], [("x", dtype, shape)], [("y", dtype, shape)], **options)


def write_empty(path):
    path.write_bytes(b"")


def write_text(path):
    path.write_text("this is not a network\n" * 20)


def write_truncated(path):
    small_net(path)
    path.write_bytes(path.read_bytes()[:-60])


def write_without_nodes(path):
    save_net(path, [], [("x", FLOAT, [1])], [("x", FLOAT, [1])])


def write_without_external_data(path):
    model = onnx.load(small_net(path))
    onnx.save(model, path, save_as_external_data=True, location="gone.bin", size_threshold=0)
    (path.parent / "gone.bin").unlink()


def write_with_data_outside(path):
    (path.parent / "inner").mkdir()
    model = onnx.load(small_net(path))
    onnx.save(model, path, save_as_external_data=True, location="inside.bin", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    (path.parent / "inside.bin").rename(path.parent.parent / "outside.bin")
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../outside.bin"
    onnx.save(model, path)


def write_with_a_constant_outside(path):
    """The same, hidden in a Constant's attribute instead of a weight."""
    tensor = numpy_helper.from_array(np.ones((1, 4), np.float32), "c")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../outside.bin")
    nodes = [helper.make_node("Constant", [], ["c"], value=tensor), helper.make_node("Add", ["x", "c"], ["y"])]
    (path.parent.parent / "outside.bin").write_bytes(bytes(16))
    save_net(path, nodes, [("x", FLOAT, [1, 4])], [("y", FLOAT, [1, 4])])


def write_unknown_operator(path):
    node = helper.make_node("Nonsense", ["x"], ["y"])
    save_net(path, [node], [("x", FLOAT, [1])], [("y", FLOAT, [1])])


def write_operator_of_another_domain(path):
    node = helper.make_node("Swirl", ["x"], ["y"], domain="my.ops", name="swirl_3")
    save_net(path, [node], [("x", FLOAT, [1])], [("y", FLOAT, [1])], domains=["my.ops"])


def write_cycle(path):
    nodes = [helper.make_node("Relu", ["b"], ["a"]), helper.make_node("Add", ["a", "x"], ["b"])]
    save_net(path, nodes, [("x", FLOAT, [1])], [("b", FLOAT, [1])])


def write_opset_99(path):
    relu(path, opset=99)


def write_text_tensors(path):
    node = helper.make_node("Identity", ["x"], ["y"])
    save_net(path, [node], [("x", TensorProto.STRING, [1])], [("y", TensorProto.STRING, [1])])


def write_text_inside(path):
    nodes = [
        helper.make_node("Cast", ["x"], ["s"], to=TensorProto.STRING),
        helper.make_node("Cast", ["s"], ["y"], to=1),
    ]
    save_net(path, nodes, [("x", FLOAT, [1])], [("y", FLOAT, [1])])


def write_rank_9(path):
    relu(path, shape=[1] * 9)


def write_rank_9_inside(path):
    nodes = [helper.make_node("Reshape", ["x", "nine"], ["r"]), helper.make_node("Reshape", ["r", "two"], ["y"])]
    weights = [("nine", np.array([1] * 8 + [4])), ("two", np.array([1, 4]))]
    save_net(path, nodes, [("x", FLOAT, [1, 4])], [("y", FLOAT, [1, 4])], weights)


def write_float64(path):
    relu(path, TensorProto.DOUBLE)


def write_uint8_transpose(path):
    nodes = [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("Cast", ["t"], ["y"], to=FLOAT)]
    save_net(path, nodes, [("x", TensorProto.UINT8, [2, 4])], [("y", FLOAT, [4, 2])])


def write_uint8_sum(path):
    node = helper.make_node("Add", ["x", "x"], ["y"])
    save_net(path, [node], [("x", TensorProto.UINT8, [2])], [("y", TensorProto.UINT8, [2])])


def write_resize_of_tf2onnx(path):
    attributes = {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": "floor", "mode": "nearest"}
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], **attributes)
    values = [("x", FLOAT, [1, 1, 4, 4])], [("y", FLOAT, [1, 1, 8, 8])]
    save_net(path, [node], *values, [("s", np.array([1, 1, 2, 2], np.float32))], opset=13)


def write_unsupported(path):
    save_net(path, [helper.make_node("Det", ["x"], ["y"])], [("x", FLOAT, [4, 4])], [("y", FLOAT, [])])


def write_input_as_shape(path):
    node = helper.make_node("Reshape", ["x", "s"], ["y"])
    save_net(path, [node], [("x", FLOAT, [1, 4]), ("s", TensorProto.INT64, [2])], [("y", FLOAT, ["a", "b"])])


REFUSED = {
    write_empty: (ModelError, "is empty; export the model again"),
    write_text: (ModelError, "is not an ONNX file"),
    write_truncated: (ModelError, "is not an ONNX file, or was cut short"),
    write_without_nodes: (ModelError, "holds an empty graph"),
    write_without_external_data: (ModelError, "which is missing; copy it beside the model"),
    write_with_data_outside: (ModelError, "outside its own folder; move it beside the model"),
    write_with_a_constant_outside: (ModelError, "outside.bin"),
    write_unknown_operator: (ModelError, "operators that ONNX does not have: Nonsense"),
    write_operator_of_another_domain: (EngineBuildError, r"node swirl_3 \(Swirl\): .*Plugin not found.*as a plugin"),
    write_cycle: (ModelError, "is not a valid ONNX graph: Nodes in a graph must be topologically sorted"),
    write_opset_99: (ModelError, "declares opset 99, expected 1 to"),
    write_text_tensors: (ModelError, "'x' of .* holds text; TensorRT takes numbers only"),
    write_text_inside: (EngineBuildError, r"node 0 \(Cast\): .*has no text, float64 or complex tensors"),
    write_rank_9: (ModelError, "'x' of .* has 9 axes; TensorRT takes 8 at most"),
    write_rank_9_inside: (EngineBuildError, r"node 0 \(Reshape\): .*takes 8 axes at most: merge some"),
    write_float64: (ModelError, "'x' of .* is float64; TensorRT has no such type: export in float32"),
    write_uint8_transpose: (EngineBuildError, r"\(Transpose\): .*put the Cast to float before the Transpose"),
    write_uint8_sum: (EngineBuildError, r"\(Add\): .*Cast right after the input"),
    write_resize_of_tf2onnx: (EngineBuildError, r"\(Resize\): .*convert with workbench convert"),
    write_unsupported: (EngineBuildError, r"\(Det\): no reason given .*replace the layer, or write it as a plugin"),
    write_input_as_shape: (EngineBuildError, "an input is used as a shape: make it a constant"),
}


@pytest.mark.parametrize("write", REFUSED, ids=lambda write: write.__name__.removeprefix("write_"))
def test_a_bad_network_is_refused_in_one_sentence(write, tmp_path, capfd):
    folder = tmp_path / "net"
    folder.mkdir()
    kind, message = REFUSED[write]
    write(folder / "bad.onnx")
    with pytest.raises(kind, match=message) as caught:
        build(folder / "bad.onnx", timeout_s=60)
    assert "\n" not in str(caught.value)
    assert "cudaError 35" not in str(caught.value)
    assert "/_src/" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        build(tmp_path / "nothing.onnx")
    with pytest.raises(ModelError, match="got the directory"):
        build(tmp_path)


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_is_refused_in_one_sentence_or_builds(seed, small, tmp_path):
    data = bytearray(small.read_bytes())
    random = np.random.default_rng(seed)
    for position in random.integers(0, len(data), 3):
        data[position] ^= 1 << random.integers(0, 8)
    path = tmp_path / "flipped.onnx"
    path.write_bytes(data)
    try:
        plan = build(path, timeout_s=60, cache=False)
    except WorkbenchError as error:
        assert "killed by" not in str(error)
        assert "\n" not in str(error)
    else:
        assert plan.data[:4] == b"vtrt"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "half"}, "got precision='half', expected one of fp32, tf32, fp16, bf16, int8, fp8"),
        ({"workspace_bytes": 1 << 10}, "got workspace_bytes=1024, expected at least 1048576"),
        ({"workspace_bytes": "256M"}, "expected a whole number of bytes"),
        ({"timeout_s": 0}, "expected seconds above 0"),
        ({"targets": ["sm90"]}, "got the target 'sm90', expected some of sm75, sm80, sm86, sm89, sm120, sm121"),
        ({"targets": "sm89"}, r"expected a list such as \['sm89'\]"),
        ({"flavour": "trt"}, "got the flavour 'trt'"),
        ({"profile": {"inputt": [(1, 3, 16, 16)] * 3}}, "names 'inputt', expected an input of the network: input"),
        ({"profile": {"input": [(4, 3, 16, 16), (2, 3, 16, 16), (8, 3, 16, 16)]}}, "expected min <= opt <= max"),
        ({"shape": (1, 3, 16, 17)}, "which the network fixes to 16"),
    ],
)
def test_a_wrong_argument_is_refused_before_any_child_starts(small, monkeypatch, options, message):
    monkeypatch.setattr(process.subprocess, "Popen", lambda *_, **__: pytest.fail("a child was started"))
    with pytest.raises(InputError, match=message):
        build(small, **options)


def test_a_version_compatible_plan_needs_the_full_tensorrt(small):
    with pytest.raises(EngineBuildError, match="this flavour builds no version-compatible plans"):
        build(small, version_compatible=True)


def test_the_error_holds_the_builder_s_own_lines(tmp_path):
    write_unsupported(tmp_path / "det.onnx")
    with pytest.raises(EngineBuildError) as caught:
        build(tmp_path / "det.onnx")
    assert any(line.startswith("INFO: ") and "Opset version:    17" in line for line in caught.value.log)
    assert any(line.startswith("ERROR: ") for line in caught.value.log)


def test_the_parser_s_yes_to_nothing_is_not_believed():
    """The parser says yes to an empty file; the checks before it would not let one through."""
    parser = types.SimpleNamespace(parse_from_file=lambda path: True, num_errors=0)
    network = types.SimpleNamespace(num_inputs=0, num_layers=0, num_outputs=0, get_layer=None)
    answer = engine_child.ask(parser, network, "x.onnx", {})
    assert answer["parsed"]
    with pytest.raises(EngineBuildError, match=r"found 0 layers and 0 outputs in x\.onnx, expected at least one"):
        engine_child.refuse(answer, "x.onnx")
    with pytest.raises(EngineBuildError, match="found 1 layers and 0 outputs"):
        engine_child.refuse({**answer, "layers": {"ACTIVATION": 1}}, "x.onnx")


def test_a_full_tensorrt_without_a_gpu_is_one_sentence(small, monkeypatch):
    full = types.SimpleNamespace(Builder=1, OnnxParser=1)
    monkeypatch.setattr(engine_build, "open_flavour", lambda *_, **__: Flavour("tensorrt", full, "11.4"))
    monkeypatch.setattr(driver, "probe_driver", lambda: NO_DRIVER)
    with pytest.raises(DriverError, match=r"TensorRT 11\.4 builds on a GPU only: no NVIDIA driver was found"):
        build_engine(small)
    with pytest.raises(InputError, match="builds for the GPU of this machine only"):
        build_engine(small, flavour="tensorrt", targets=["sm89"])


# The child process: crashes, limits, Ctrl-C.


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals")
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL"])
def test_a_killed_child_is_an_error_that_names_the_signal(small, monkeypatch, name):
    said = json.dumps({"event": "log", "severity": "ERROR", "text": "Error Code 2: the last thing I saw"})
    use_child(
        monkeypatch,
        f"import os, resource, signal; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); print({said!r}, flush=True); "
        f"os.kill(os.getpid(), signal.{name})",
    )
    with pytest.raises(EngineBuildError, match=rf"killed by {name}.*its last words: the last thing I saw") as caught:
        build(small)
    assert caught.value.log[0] == "ERROR: Error Code 2: the last thing I saw"
    assert ("out of memory" in str(caught.value)) == (name == "SIGKILL")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit(3)", "ended with status 3 and no result"),
        ("pass", "ended with status 0 and no result"),
        ("raise ValueError('native nonsense')", "status 1 and no result; its last words: ValueError: native nonsense"),
        ("print('no json'); print('[]'); print('{}')", "ended with status 0 and no result"),
    ],
)
def test_a_child_without_a_result_is_an_error(small, monkeypatch, code, message):
    use_child(monkeypatch, code)
    with pytest.raises(EngineBuildError, match=message):
        build(small)


def test_an_unknown_signal_has_its_number():
    assert signal_name(300) == "signal 300"


def watch_temporary_folder(monkeypatch, tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(process.tempfile, "tempdir", str(folder))
    return folder


def test_a_build_past_its_time_limit_is_ended_and_leaves_nothing(tmp_path, monkeypatch):
    folder = watch_temporary_folder(monkeypatch, tmp_path)
    path = small_net(tmp_path / "deep.onnx", depth=4000)  # builds for minutes
    start = time.monotonic()
    with pytest.raises(
        EngineBuildError, match=r"took longer than 3 s and was ended; give a larger timeout_s"
    ) as caught:
        build(path, timeout_s=3)
    assert time.monotonic() - start < 20
    assert any("Opset version" in line for line in caught.value.log)  # it was really building
    assert list(folder.iterdir()) == []


INTERRUPTED = """
import sys
from workbench.engine.build import build_engine
try:
    build_engine(sys.argv[1], progress=False, flavour="tensorrt_rtx")
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups with SIGINT")
@pytest.mark.parametrize("whole_group", [True, False], ids=["terminal", "notebook"])
def test_ctrl_c_ends_the_child_and_leaves_nothing(tmp_path, own_cache, whole_group):
    """A terminal sends SIGINT to the whole process group, Jupyter to the kernel only."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    path = small_net(tmp_path / "deep.onnx", depth=4000)
    parent = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        start_new_session=True,
    )
    try:
        children = wait_for_children(parent.pid)
        time.sleep(1)  # into the native part
        (os.killpg if whole_group else os.kill)(parent.pid, signal.SIGINT)
        out, errors = parent.communicate(timeout=20)
    finally:
        parent.kill()
    assert (out, errors) == ("interrupted\n", "")
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert list(temporary.iterdir()) == []
    assert [entry for entry in own_cache.glob("*") if entry.name != "digests"] == []


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_child_does_not_outlive_a_killed_parent(tmp_path):
    path = small_net(tmp_path / "deep.onnx", depth=4000)
    parent = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(path)], env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    try:
        children = wait_for_children(parent.pid)
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 20
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline, "the child builds on without its parent"
        time.sleep(0.1)


def wait_for_children(pid):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return children
        time.sleep(0.05)
    raise AssertionError("no child was started")


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_progress_never_goes_back_and_ends_at_one():
    bar = types.SimpleNamespace(n=0.0, set_postfix_str=lambda text: None)

    def update(step):
        assert step > 0
        bar.n += step

    bar.update = update
    progress = engine_process.BuildProgress(bar)
    seen = []
    for event, phase, number in [
        ("start", "build", 4),
        ("step", "build", 0),
        ("start", "inner", 2),
        ("step", "inner", 0),
        ("step", "inner", 7),
        ("finish", "inner", 0),
        ("step", "build", 1),
        ("step", "unknown", 1),
        ("finish", "build", 0),
    ]:
        progress.take({"event": event, "phase": phase, "steps": number, "step": number})
        seen.append(bar.n)
    assert seen == pytest.approx([0, 0.25, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 1.0])


def test_a_full_disk_for_temporary_files_is_an_output_error(small, monkeypatch, tmp_path):
    def no_folder(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(process.tempfile, "TemporaryDirectory", no_folder)
    with pytest.raises(OutputError, match="no folder for temporary files: No space left on device"):
        build(small, cache=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_in_the_child_is_an_output_error(small):
    request = {"onnx_path": str(small), "flavour": "tensorrt_rtx", "profiles": [{"input": [[1, 3, 16, 16]] * 3}]}
    request |= {"targets": [], "workspace_bytes": 1 << 28, "plan_path": "/dev/full"}
    request |= {"precision": "fp32", "kept": [], "whole": False, "custom": {}, "plugins": [], "embed_plugins": False}
    with subprocess.Popen(
        process.command(engine_process.CHILD),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=process.child_environment(),
        text=True,
    ) as child:
        child.stdin.write(json.dumps(request) + "\n")
        child.stdin.flush()
        lines = list(child.stdout)
    assert child.returncode == 1
    assert json.loads(lines[-1]) == {
        "event": "error",
        "kind": "OutputError",
        "text": "cannot write the plan: No space left on device",
    }


def test_the_timing_cache_calls_exist_in_the_real_bindings(tmp_path):
    """On RTX they do nothing; on the full TensorRT they keep what was timed on the GPU."""
    trt = tensorrt_api.open_flavour("tensorrt_rtx").module
    logger = tensorrt_api.make_logger(tensorrt_api.open_flavour("tensorrt_rtx"))
    builder = trt.Builder(logger)
    config = builder.create_builder_config()
    path = tmp_path / "timing.cache"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert engine_child.load_timing_cache(config, str(path)) is not None
        engine_child.save_timing_cache(config, str(path))
        assert path.stat().st_size > 0
        assert engine_child.load_timing_cache(config, str(path)) is not None
    assert engine_child.load_timing_cache(types.SimpleNamespace(), str(path)) is None


# The cache.


def test_the_second_build_starts_no_child(small, monkeypatch):
    first = build(small)
    monkeypatch.setattr(process.subprocess, "Popen", lambda *_, **__: pytest.fail("a child was started"))
    second = build(small)
    assert bytes(second.data) == first.data
    assert second.manifest == first.manifest


def test_the_cache_follows_the_content_not_the_name(small, tmp_path, monkeypatch):
    build(small)
    copy = tmp_path / "other_name.onnx"
    shutil.copy(small, copy)
    monkeypatch.setattr(engine_build, "run_child", lambda *_, **__: pytest.fail("it was built again"))
    assert build(copy).manifest.onnx_name == "other_name.onnx"


@pytest.mark.parametrize(
    "options",
    [
        {"shape": (2, 3, 16, 16)},
        {"profile": {"input": [(1, 3, 16, 16), (2, 3, 16, 16), (3, 3, 16, 16)]}},
        {"targets": ["sm89"]},
        {"workspace_bytes": 1 << 27},
        {"cache": False},
    ],
)
def test_whatever_shapes_a_plan_is_in_its_key(small, monkeypatch, options):
    build(small)

    def built(*arguments, **keywords):
        raise EngineBuildError("built again")

    monkeypatch.setattr(engine_build, "run_child", built)
    with pytest.raises(EngineBuildError, match="built again"):
        build(small, **options)


def test_another_version_or_gpu_is_another_key(small):
    rtx = tensorrt_api.open_flavour("tensorrt_rtx")
    job = engine_build._Job(small, rtx, None, (), None, None, PrecisionSpec("fp32"), {})
    keys = {
        job.key("a"),
        job.key("b"),
        replace(job, gpu=L4).key("a"),
        replace(job, gpu=RTX_4090).key("a"),
        replace(job, flavour=replace(rtx, version="1.8")).key("a"),
        replace(job, shape={"input": np.array([1, 3, 16, 16])}).key("a"),
        replace(job, spec=PrecisionSpec("fp16")).key("a"),
    }
    assert len(keys) == 7
    lists = replace(job, shape={"input": [1, 3, 16, 16]}).key("a")
    assert lists == replace(job, shape={"input": np.array([1, 3, 16, 16])}).key("a")


def age(path, seconds=60):
    """Make a file look settled: its modification a minute ago. Its change time is now, so wait for the clock, too."""
    os.utime(path, (time.time() - seconds,) * 2)


def test_a_kept_hash_is_never_used_for_other_bytes(tmp_path, monkeypatch):
    """Same name, size and modification time, other weights: only the change time tells."""
    monkeypatch.setattr(onnx_file, "_SETTLED_NS", 0)
    path = small_net(tmp_path / "net.onnx", seed=1)
    age(path)
    first = take_digest(path)
    assert known_digest(path) == first
    status = path.stat()
    data = small_net(tmp_path / "second.onnx", seed=2).read_bytes()
    assert len(data) == status.st_size
    time.sleep(0.02)
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert known_digest(path) is None
    assert take_digest(path) != first


def test_a_hash_taken_just_after_a_write_is_not_kept(tmp_path):
    path = small_net(tmp_path / "net.onnx")
    take_digest(path)
    assert known_digest(path) is None


def test_a_kept_hash_is_of_the_external_data_too(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "_SETTLED_NS", 0)
    model = onnx.load(small_net(tmp_path / "whole.onnx"))
    path = tmp_path / "apart.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    time.sleep(0.02)
    first = take_digest(path)
    assert known_digest(path) == first
    (tmp_path / "weights.bin").write_bytes(bytes(324))
    assert known_digest(path) is None
    (tmp_path / "weights.bin").unlink()
    assert known_digest(path) is None


def only_entry(cache):
    entries = [path for path in cache.iterdir() if len(path.name) == 64]
    assert len(entries) == 1
    return entries[0]


def damage_flip(entry):
    data = bytearray((entry / "engine.plan").read_bytes())
    data[len(data) // 2] ^= 1
    (entry / "engine.plan").write_bytes(data)


def damage_cut(entry):
    (entry / "engine.plan").write_bytes((entry / "engine.plan").read_bytes()[:1000])


def damage_empty(entry):
    (entry / "engine.plan").write_bytes(b"")


def damage_no_plan(entry):
    (entry / "engine.plan").unlink()


def damage_record(entry):
    (entry / "entry.json").write_text("{")


def damage_manifest(entry):
    (entry / "entry.json").write_text(json.dumps({**json.loads((entry / "entry.json").read_text()), "manifest": {}}))


@pytest.mark.parametrize(
    "damage", [damage_flip, damage_cut, damage_empty, damage_no_plan, damage_record, damage_manifest]
)
def test_a_damaged_entry_is_built_again(damage, small, own_cache):
    first = build(small)
    damage(only_entry(own_cache))
    second = build(small)
    assert second.manifest.built >= first.manifest.built
    assert _hash_file(only_entry(own_cache) / "engine.plan") == second.manifest.plan_sha256


def test_two_builds_into_one_cache_at_once_are_safe(small, own_cache):
    plans, errors = [], []

    def work():
        try:
            plans.append(build(small))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(plans) == 3
    entry = only_entry(own_cache)
    assert {path.name for path in entry.iterdir()} == {"engine.plan", "entry.json"}
    assert not list(own_cache.glob(".new-*"))
    assert bytes(build(small).data) in [bytes(plan.data) for plan in plans]


def test_a_cache_that_cannot_be_written_is_a_warning(small, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="the engine is built but not cached in"):
        assert build(small).data[:4] == b"vtrt"


def test_the_cache_is_in_the_user_s_cache_folder(monkeypatch):
    monkeypatch.delenv("WORKBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME" if os.name != "nt" else "LOCALAPPDATA", "somewhere")
    assert cache_folder() == Path("somewhere/workbench/engines")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if os.name != "nt":
        assert cache_folder() == Path.home() / ".cache" / "workbench" / "engines"


def test_the_timing_cache_is_one_for_each_version_and_gpu():
    paths = {
        engine_cache.timing_cache_path("tensorrt", version, gpu)
        for version in ("10.16", "11.4")
        for gpu in (L4.name, H200.name)
    }
    assert len(paths) == 4
    assert all(path.parent.is_dir() for path in paths)


# Saving.


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """A small plan, built once, and its ONNX file."""
    return build(small_net(tmp_path_factory.mktemp("plan") / "small.onnx"), cache=False)


def test_a_saved_plan_is_the_plan_and_its_manifest(plan, tmp_path):
    path = save_engine(plan, tmp_path / "x.plan")
    assert path.read_bytes() == plan.data
    assert json.loads(manifest_path(path).read_text())["plan_sha256"] == plan.manifest.plan_sha256
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.plan", "x.plan.json"]


@pytest.mark.parametrize("name", ["write_text", "write_bytes"])
def test_a_full_disk_while_saving_leaves_the_old_plan(plan, tmp_path, monkeypatch, name):
    path = save_engine(plan, tmp_path / "x.plan")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(self, *arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, name, full)
    with pytest.raises(OutputError, match=r"cannot write .*No space left on device; free some space"):
        save_engine(Plan(b"new", replace(plan.manifest, plan_bytes=3)), path)
    monkeypatch.undo()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_missing_folder_is_an_output_error(plan, tmp_path):
    with pytest.raises(OutputError, match="does not exist; create it first"):
        save_engine(plan, tmp_path / "no" / "x.plan")


# Loading.


class FakeRuntime:
    """A runtime that takes every plan, or says why not."""

    def __init__(self, logger, refusal=""):
        self.logger, self.refusal, self.engine_host_code_allowed = logger, refusal, False

    def deserialize_cuda_engine(self, data):
        if self.refusal:
            self.logger.log("ERROR", f"IRuntime::deserializeCudaEngine: Error Code 1: {self.refusal}")
            return None
        return FakeEngine()


class FakeEngine:
    num_io_tensors, num_optimization_profiles = 2, 1

    def get_tensor_name(self, index):
        return ("input", "output")[index]

    def get_tensor_shape(self, name):
        return (-1, 3, 16, 16) if name == "input" else (2,)

    def get_tensor_dtype(self, name):
        return types.SimpleNamespace(name="FLOAT" if name == "input" else "INT64")

    def get_tensor_mode(self, name):
        return name

    def get_tensor_profile_shape(self, name, index):
        return [(1, 3, 16, 16), (4, 3, 16, 16), (8, 3, 16, 16)]


@pytest.fixture
def machine(monkeypatch):
    """A machine with these flavours and this GPU; `refusal` is what its runtime says to every plan."""

    def choose(*flavours, gpu=L4, refusal="", targets=True):
        def make_flavour(name):
            module = types.SimpleNamespace(
                TensorIOMode=types.SimpleNamespace(INPUT="input"), ILogger=object, Runtime=lambda log: runtimes(log)
            )
            if name == "tensorrt_rtx":
                real = tensorrt_api.open_flavour("tensorrt_rtx")
                module.Builder = module.OnnxParser = 1
                module.ComputeCapability = real.module.ComputeCapability
                return Flavour(name, module, real.version)
            if name == "tensorrt":
                module.Builder = module.OnnxParser = 1
            return Flavour(name, module, "11.4.0.106")

        def runtimes(logger):
            made.append(FakeRuntime(logger, refusal))
            return made[-1]

        made = []
        found = [make_flavour(name) for name in flavours]

        def open_flavour(name=None, **_):
            for flavour in found:
                if name in (None, flavour.name):
                    return flavour
            raise BackendUnavailableError(f"{name} is not installed")

        found_driver = Driver(13000, (gpu,), "") if gpu else NO_DRIVER
        monkeypatch.setattr(engine_load, "open_flavour", open_flavour)
        monkeypatch.setattr(engine_load, "available_flavours", lambda: (found, []))
        for module in (driver, tensorrt_api):
            monkeypatch.setattr(module, "probe_driver", lambda: found_driver)
        return made

    return choose


@pytest.fixture
def saved(plan, tmp_path):
    return save_engine(plan, tmp_path / "x.plan")


def rewrite(path, **changes):
    """Change the manifest of a saved plan."""
    file = manifest_path(path)
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_without_a_driver_nothing_native_is_tried(saved):
    """The real flavour of this machine: loading ends before its runtime is made."""
    if not probe_driver().problem:
        pytest.skip("this machine has a GPU")
    with pytest.raises(DriverError, match=r"no NVIDIA driver was found|shows no GPU"):
        load_engine(saved)


def test_a_loaded_engine_tells_its_tensors_and_profiles(saved, machine):
    machine("tensorrt_rtx")
    with load_engine(saved) as loaded:
        assert loaded.inputs["input"].describe() == "float32 (batch, 3, 16, 16)"
        assert loaded.outputs["output"].dtype == "int64"
        assert loaded.profiles == ({"input": ((1, 3, 16, 16), (4, 3, 16, 16), (8, 3, 16, 16))},)
        assert loaded.manifest.onnx_name == "small.onnx"
        assert loaded.cuda_engine.num_io_tensors == 2
        assert repr(loaded).startswith("<TensorRT-RTX 1.")
    loaded.close()
    assert "(closed)" in repr(loaded)
    with pytest.raises(InputError, match="the engine is closed; load it again"):
        _ = loaded.cuda_engine


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[5000] ^= 4
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


def break_manifest(path):
    manifest_path(path).write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"is damaged: got \d+ bytes, expected \d+; copy it again, or build it again: workbench build small.onnx"),
        (flip, "is damaged: its bytes are not those of its manifest"),
        (empty, "is empty; build it again: workbench build small.onnx"),
        (remove, "does not exist; build it with: workbench build"),
        (break_manifest, "the manifest is damaged"),
    ],
)
def test_a_damaged_plan_is_refused_before_the_driver_is_asked(saved, machine, damage, message):
    made = machine("tensorrt_rtx", gpu=None)
    damage(saved)
    with pytest.raises(EngineLoadError, match=message):
        load_engine(saved)
    assert made == []


def test_a_folder_is_not_a_plan(tmp_path):
    with pytest.raises(EngineLoadError, match="cannot be read"):
        load_engine(tmp_path)


def test_a_plan_of_another_flavour_is_refused_with_the_command(saved, machine):
    made = machine("tensorrt", gpu=None)
    with pytest.raises(EngineLoadError) as caught:
        load_engine(saved)
    assert "was built by tensorrt_rtx 1.7" in str(caught.value)
    assert "got TensorRT 11.4.0.106: plans are not exchangeable" in str(caught.value)
    command = f"workbench build small.onnx -o {saved} --flavour tensorrt --profile "
    assert command + "input=1x3x16x16,4x3x16x16,8x3x16x16" in str(caught.value)
    assert made == []


def test_without_any_flavour_the_missing_package_is_named(saved, machine):
    machine()
    with pytest.raises(BackendUnavailableError, match="tensorrt_rtx is not installed"):
        load_engine(saved)


def test_a_plan_of_another_version_is_refused_with_the_command(saved, machine):
    made = machine("tensorrt_rtx", gpu=None)
    rewrite(saved, version="1.6.0")
    with pytest.raises(EngineLoadError, match=r"built by version 1\.6\.0, got TensorRT-RTX 1\.7.*workbench build"):
        load_engine(saved)
    assert made == []


def test_a_plan_of_another_compute_capability_is_refused_with_the_command(saved, machine):
    made = machine("tensorrt", gpu=L4)
    rewrite(saved, flavour="tensorrt", version="11.4.0.106", compute_capability="9.0", gpu_name="NVIDIA H200")
    with pytest.raises(EngineLoadError) as caught:
        load_engine(saved)
    assert "was built on NVIDIA H200 with 9.0, got NVIDIA L4 with compute capability 8.9" in str(caught.value)
    assert "workbench build small.onnx" in str(caught.value)
    assert made == []


def test_a_plan_for_other_targets_is_refused_with_the_command_for_this_one(saved, machine):
    made = machine("tensorrt_rtx", gpu=L4)
    rewrite(saved, targets=["sm120"])
    with pytest.raises(EngineLoadError, match=r"was built for sm120, got NVIDIA L4 .*--targets sm120 sm89"):
        load_engine(saved)
    rewrite(saved, targets=["sm120", "sm89"])
    load_engine(saved).close()
    assert len(made) == 1


def test_a_gpu_the_flavour_does_not_support_is_refused(saved, machine):
    made = machine("tensorrt_rtx", gpu=H200)
    with pytest.raises(
        EngineLoadError, match=r"cannot run here: TensorRT-RTX .* does not support this GPU \(NVIDIA H200"
    ):
        load_engine(saved)
    assert made == []


def test_another_gpu_of_the_same_capability_is_a_warning(saved, machine):
    machine("tensorrt", gpu=RTX_4090)
    rewrite(saved, flavour="tensorrt", version="11.4.0.106", compute_capability="8.9", gpu_name="NVIDIA L4")
    with pytest.warns(UserWarning, match="was built on NVIDIA L4, got NVIDIA GeForce RTX 4090"):
        load_engine(saved).close()


def test_a_plan_without_a_manifest_is_a_warning(saved, machine):
    machine("tensorrt_rtx")
    manifest_path(saved).unlink()
    with pytest.warns(UserWarning, match=r"has no manifest x\.plan\.json"):
        loaded = load_engine(saved)
    assert loaded.manifest is None


def test_garbage_without_a_manifest_is_refused(tmp_path, machine):
    made = machine("tensorrt_rtx")
    (tmp_path / "x.plan").write_bytes(b"garbage" * 100)
    with (
        pytest.warns(UserWarning, match="no manifest"),
        pytest.raises(EngineLoadError, match="is not a plan of TensorRT-RTX"),
    ):
        load_engine(tmp_path / "x.plan")
    assert made == []


def test_host_code_runs_only_on_request(saved, machine):
    made = machine("tensorrt_lean")
    rewrite(
        saved,
        flavour="tensorrt",
        version="10.16",
        compute_capability="8.9",
        gpu_name="NVIDIA L4",
        options={"version_compatible": True},
    )
    with pytest.raises(EngineLoadError, match="if you trust who built it, pass allow_host_code=True"):
        load_engine(saved)
    assert made == []
    load_engine(saved, allow_host_code=True).close()
    assert made[0].engine_host_code_allowed


def test_host_code_is_off_otherwise(saved, machine):
    made = machine("tensorrt_rtx")
    load_engine(saved).close()
    assert not made[0].engine_host_code_allowed


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ("Serialization (Serialization assertion magicTag failed.)", "magicTag failed"),
        ("host code is not allowed", r"host code is not allowed; .*pass allow_host_code=True"),
    ],
)
def test_what_the_runtime_says_is_in_the_error(saved, machine, refusal, message):
    machine("tensorrt_rtx", refusal=refusal)
    with pytest.raises(
        EngineLoadError, match=rf"TensorRT-RTX 1.* refuses .*{message}.*build it again: workbench build"
    ):
        load_engine(saved)


# Commands.


def test_the_equivalent_commands_are_lines_a_shell_takes(plan, tmp_path):
    import shlex

    trtexec, polygraphy = engine.equivalent_commands(plan, "my nets/small.onnx", "x.plan")
    words = shlex.split(trtexec)
    assert words[:3] == ["tensorrt_rtx", "--onnx=my nets/small.onnx", "--saveEngine=x.plan"]
    assert {"--noTF32", "--minShapes=input:1x3x16x16", "--maxShapes=input:8x3x16x16", "--skipInference"} <= set(words)
    words = shlex.split(polygraphy)
    assert words[:2] == ["NVIDIA_TF32_OVERRIDE=0", "POLYGRAPHY_USE_TENSORRT_RTX=1"]
    assert words[2:5] == ["polygraphy", "convert", "my nets/small.onnx"]
    assert words[words.index("--trt-opt-shapes") + 1] == "input:[4,3,16,16]"
    assert "--strongly-typed" in words


def test_the_trtexec_line_of_the_full_tensorrt_is_strongly_typed(plan):
    manifest = replace(plan.manifest, flavour="tensorrt", profiles=({},), options={"workspace_bytes": 1 << 30})
    line = commands.trtexec_command(manifest, "m.onnx", "m.plan")
    assert line == (
        "trtexec --onnx=m.onnx --saveEngine=m.plan --stronglyTyped --noTF32 --memPoolSize=workspace:1073741824B "
        "--skipInference"
    )
    manifest = replace(manifest, flavour="tensorrt_rtx", targets=("sm89", "sm120"))
    assert "--computeCapabilities=89,120" in commands.trtexec_command(manifest, "m.onnx", "m.plan")


def test_the_shapes_of_a_profile_follow_each_other_in_the_trtexec_line(plan):
    manifest = replace(plan.manifest, profiles=({"x": ((1, 3), (4, 3), (8, 3))},))
    words = commands.trtexec_command(manifest, "m.onnx", "m.plan").split()
    assert words[4:7] == ["--minShapes=x:1x3", "--optShapes=x:4x3", "--maxShapes=x:8x3"]


def test_a_plan_for_the_lean_runtime_is_built_again_by_the_full_tensorrt(plan):
    manifest = replace(plan.manifest, flavour="tensorrt_lean", profiles=(), options={"version_compatible": True})
    assert commands.build_command(manifest, "x.plan") == (
        "workbench build small.onnx -o x.plan --flavour tensorrt --version-compatible"
    )


def test_the_command_that_builds_again_names_everything(plan):
    manifest = replace(plan.manifest, targets=("sm89",), options={"workspace_bytes": 1 << 29})
    assert commands.build_command(manifest, "x.plan") == (
        "workbench build small.onnx -o x.plan --flavour tensorrt_rtx "
        "--profile input=1x3x16x16,4x3x16x16,8x3x16x16 --targets sm89 --workspace-mib 512"
    )
