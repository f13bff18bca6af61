"""`build_engine(precision=...)`: what TensorRT-RTX parses is in the precision asked for, or the build is refused."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from engine_checks import build, save_net
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from workbench.cli import main as cli
from workbench.core import process
from workbench.core.errors import EngineBuildError, InputError
from workbench.engine import build as engine_build
from workbench.engine import child as engine_child
from workbench.engine import tensorrt_api
from workbench.engine.build import engine_text, equivalent_commands
from workbench.engine.commands import build_command
from workbench.engine.layer_types import LayerType, check_types, types_text
from workbench.engine.plan import PlanManifest
from workbench.precision import half, quantize
from workbench.precision.calibration import Calibration, calibrate
from workbench.precision.convert import find_nodes, read_precision
from workbench.precision.half import to_bf16, to_fp16
from workbench.precision.quantize import quantize_fp8, quantize_int8
from workbench.precision.spec import PRECISIONS

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
COUNTS = {"CONVOLUTION": 2, "ACTIVATION": 1, "POOLING": 1, "DECONVOLUTION": 1, "SOFTMAX": 1}


@pytest.fixture(scope="module", autouse=True)
def builder_is_here():
    """The real builder; CI names it as one it must test, so there its absence is an error."""
    if not tensorrt_api.available_flavours()[0] and "CI" not in os.environ:
        pytest.skip("no TensorRT that can build is installed; a must in CI only")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))


def weights(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def mixed_net(path, seed=0):
    """Six layers of five kinds: input (batch, 3, 16, 16), output (batch, 4, 16, 16)."""
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["a"], "conv1", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "conv2", pads=[1] * 4),
        helper.make_node("MaxPool", ["c"], ["d"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("ConvTranspose", ["d", "w3"], ["e"], "up", strides=[2, 2]),
        helper.make_node("Softmax", ["e"], ["output"], "softmax", axis=1),
    ]
    kernels = [("w1", weights(8, 3, 3, 3, seed=seed)), ("w2", weights(8, 8, 3, 3)), ("w3", weights(8, 4, 2, 2))]
    shapes = ["batch", 3, 16, 16], ["batch", 4, 16, 16]
    return save_net(path, nodes, [("input", FLOAT, shapes[0])], [("output", FLOAT, shapes[1])], kernels)


def measure(path, seed=0):
    samples = [{"input": weights(1, 3, 16, 16, seed=seed + index)} for index in range(2)]
    return calibrate(path, samples, method="minmax", progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("networks")


@pytest.fixture(scope="module")
def net(folder):
    return mixed_net(folder / "net.onnx")


@pytest.fixture(scope="module")
def calibration(net):
    return measure(net)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(2):
        noise = np.random.default_rng(index).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    return folder


def never(*_, **__):
    pytest.fail("this was not to be called")


# What is asked for is what TensorRT reads.


def table(dtype, **others):
    return {kind: others.get(kind, {dtype: number}) for kind, number in COUNTS.items()}


KEPT = {"bf16": "TensorRT has no bfloat16 ConvTranspose", "fp8": "fp8 leaves this operator out"}
EXPECTED = {
    "fp32": table("float32"),
    "tf32": table("float32"),
    "fp16": table("float16"),
    "bf16": table("bfloat16", DECONVOLUTION={"float32": 1}),
    "int8": table("float32", CONVOLUTION={"int8 to float32": 2}, DECONVOLUTION={"int8 to float32": 1}),
    "fp8": table("float32", CONVOLUTION={"float8_e4m3fn to float32": 2}),
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_manifest_has_the_types_that_tensorrt_read(net, calibration, precision):
    scales = calibration if precision in ("int8", "fp8") else None
    manifest = build(net, precision=precision, calibration=scales, targets=["sm89"]).manifest
    assert manifest.types == EXPECTED[precision]
    assert manifest.precision == precision
    assert manifest.converted == (precision not in ("fp32", "tf32"))
    assert manifest.options["tf32"] == (precision == "tf32")
    assert manifest.calibration == (calibration.digest if scales else "")
    # what the layers in 8 bits read, and their weights
    assert manifest.qdq_pairs == {"int8": 6, "fp8": 4}.get(precision, 0)
    kept = [(entry["node"], entry["operator"], entry["reason"]) for entry in manifest.kept]
    assert kept == ([("up", "ConvTranspose", KEPT[precision])] if precision in KEPT else [])
    assert PlanManifest.from_json(manifest.to_json()) == manifest


def test_only_tf32_leaves_tf32_on():
    flavour = tensorrt_api.open_flavour("tensorrt_rtx")
    trt, logger = flavour.module, tensorrt_api.make_logger(flavour)
    builder = trt.Builder(logger)
    for precision in PRECISIONS:
        config = builder.create_builder_config()
        engine_child.configure(flavour, config, {"precision": precision, "workspace_bytes": 1 << 28, "targets": []})
        assert config.get_flag(trt.BuilderFlag.TF32) == (precision == "tf32")


# What is not what was asked for is refused, by name.


def test_a_conversion_that_changes_nothing_is_refused(net, monkeypatch):
    """fp16 that silently stays fp32."""

    def copy(source, out, **_):
        report = to_fp16(source, out)
        shutil.copy(source, out)
        return report

    monkeypatch.setattr(half, "to_fp16", copy)
    with pytest.raises(EngineBuildError, match=r"got precision='fp16', but .* in 6 of 6 layers: conv1 \(conv.*float32"):
        build(net, precision="fp16")


@pytest.fixture(scope="module")
def partly_half(net, folder):
    """In float16 but for one convolution, which nobody reports."""
    path = folder / "partly_half.onnx"
    to_fp16(net, path, keep=["conv2"])
    return path


def test_a_float16_file_with_a_float32_layer_is_built_as_it_is_and_the_layer_is_named(partly_half):
    manifest = build(partly_half, precision="fp16").manifest
    assert manifest.types["CONVOLUTION"] == {"float16": 1, "float32": 1}
    assert manifest.kept == ({"node": "conv2", "operator": "Conv", "reason": "the file has it in float32"},)


@pytest.mark.parametrize("name", ["conv2", "c"], ids=["node", "tensor"])
def test_a_layer_that_is_to_stay_float32_is_named_in_keep(partly_half, name, monkeypatch):
    monkeypatch.setattr(half, "to_fp16", never)
    manifest = build(partly_half, precision="fp16", keep=[name]).manifest
    assert manifest.types["CONVOLUTION"] == {"float16": 1, "float32": 1}
    assert manifest.kept == ({"node": "conv2", "operator": "Conv", "reason": "you keep it"},)
    assert not manifest.converted


def test_keep_reaches_the_conversions(net, calibration):
    for precision, scales, dtype in [("fp16", None, "float16"), ("int8", calibration, "int8 to float32")]:
        manifest = build(net, precision=precision, keep=["conv2"], calibration=scales).manifest
        assert manifest.types["CONVOLUTION"] == {dtype: 1, "float32": 1}
        assert [entry["node"] for entry in manifest.kept] == ["conv2"]


def test_what_tensorrt_itself_computes_wider_is_refused_by_name(tmp_path):
    """Its parser adds up the squares of a ReduceL2 in float32, whatever the file says."""
    node = helper.make_node("ReduceL2", ["x"], ["y"], "norm", keepdims=1)
    path = save_net(tmp_path / "norm.onnx", [node], [("x", HALF, [2, 4])], [("y", HALF, [1, 1])])
    with pytest.raises(EngineBuildError, match=r"norm \(reduce, float32\)"):
        build(path, precision="fp16")
    assert "float32" in build(path, precision="fp16", keep=["norm"]).manifest.types["REDUCE"]


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_a_file_of_another_precision_is_not_called_float32(partly_half, precision):
    with pytest.raises(EngineBuildError, match=r"in 5 of 6 layers: conv1 .*float16.*; .*ask for precision='fp16'"):
        build(partly_half, precision=precision)


@pytest.fixture(scope="module")
def partly_quantised(net, calibration, folder):
    """Two of three layers between pairs."""
    path = folder / "partly_quantised.onnx"
    quantize_int8(net, path, calibration, exclude=["conv2"])
    return path


def test_a_quantised_file_is_taken_as_it_is(partly_quantised, monkeypatch):
    monkeypatch.setattr(quantize, "quantize_int8", never)
    manifest = build(partly_quantised, precision="int8").manifest
    assert manifest.types["CONVOLUTION"] == {"int8 to float32": 1, "float32": 1}
    assert (manifest.qdq_pairs, manifest.converted, manifest.calibration) == (4, False, "")
    with pytest.raises(EngineBuildError, match=r"2 of 6 layers: conv1 .*int8.*ask for precision='int8'"):
        build(partly_quantised)


def test_a_quantiser_that_forgets_a_layer_is_refused_by_the_layer_s_name(net, calibration, monkeypatch):
    def forget(source, out, scales, **_):
        return replace(quantize_int8(source, out, scales, exclude=["conv2"]), kept=())

    monkeypatch.setattr(quantize, "quantize_int8", forget)
    with pytest.raises(EngineBuildError, match=r"another type in 1 of 3 layers: conv2 \(convolution, float32\)"):
        build(net, precision="int8", calibration=calibration)


def test_a_recurrent_layer_is_not_for_8_bits(tmp_path):
    """TensorRT makes matrix products of it; the manifest names it."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "dense"),
        helper.make_node("LSTM", ["a", "w2", "r"], ["y"], "lstm", hidden_size=4),
    ]
    values = [("w", weights(8, 8)), ("w2", weights(1, 16, 8)), ("r", weights(1, 16, 4))]
    ends = [("x", FLOAT, [5, 1, 8])], [("y", FLOAT, [5, 1, 1, 4])]
    path = save_net(tmp_path / "lstm.onnx", nodes, *ends, values)
    scales = calibrate(path, [{"x": weights(5, 1, 8)}], method="minmax", progress=False)
    manifest = build(path, precision="int8", calibration=scales).manifest
    assert manifest.kept == ({"node": "lstm", "operator": "LSTM", "reason": "int8 leaves this operator out"},)
    assert manifest.types["MATRIX_MULTIPLY"] == {"float32": 2, "int8 to float32": 1}


def test_pairs_that_no_convolution_reads_are_not_int8(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("Relu", ["d"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["y"], "conv"),
    ]
    values = [("scale", np.float32(0.1)), ("zero", np.int8(0)), ("w", weights(4, 3, 1, 1))]
    ends = [("x", FLOAT, [1, 3, 4, 4])], [("y", FLOAT, [1, 4, 4, 4])]
    path = save_net(tmp_path / "pairs.onnx", nodes, *ends, [(name, np.asarray(value)) for name, value in values])
    with pytest.raises(EngineBuildError, match="TensorRT finds none of 1 convolutions and matrix products between"):
        build(path, precision="int8")


def test_numbers_that_are_no_layer_s_work_need_no_precision(tmp_path):
    """A size computed in float32, and arithmetic of constants, which TensorRT does once: neither is a wide layer."""
    nodes = [
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Cast", ["size"], ["float_size"], to=FLOAT),
        helper.make_node("Mul", ["float_size", "twice"], ["float_larger"]),
        helper.make_node("Cast", ["float_larger"], ["larger"], to=TensorProto.INT64),
        helper.make_node("Resize", ["x", "", "", "larger"], ["r"], mode="nearest", nearest_mode="floor"),
        helper.make_node("Exp", ["log"], ["wide"]),
        helper.make_node("Cast", ["wide"], ["narrow"], to=HALF),
        helper.make_node("Add", ["r", "narrow"], ["y"]),
    ]
    values = [("twice", np.array([1, 1, 2, 2], np.float32)), ("log", np.zeros((1, 1, 1, 1), np.float32))]
    ends = [("x", HALF, ["batch", 3, 4, 4])], [("y", HALF, ["batch", 3, 8, 8])]
    nodes[4].attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
    manifest = build(save_net(tmp_path / "sizes.onnx", nodes, *ends, values), precision="fp16").manifest
    assert manifest.types == {"RESIZE": {"float16": 1}, "ELEMENTWISE": {"float16": 1}}


def test_a_node_in_a_branch_has_its_own_name(tmp_path):
    branches = {}
    for name, operator in [("then_branch", "Relu"), ("else_branch", "Tanh")]:
        node = helper.make_node(operator, ["x"], [operator], f"in_{name}")
        branches[name] = helper.make_graph([node], name, [], [helper.make_tensor_value_info(operator, HALF, None)])
    nodes = [
        helper.make_node("If", ["choice"], ["m"], "if", **branches),
        helper.make_node("Cast", ["m"], ["wide"], to=FLOAT),
        helper.make_node("Sigmoid", ["wide"], ["y"], "after"),
    ]
    ends = [("x", HALF, [1, 4]), ("choice", TensorProto.BOOL, [])], [("y", FLOAT, [1, 4])]
    path = save_net(tmp_path / "if.onnx", nodes, *ends)
    with pytest.raises(EngineBuildError, match=r"in 2 of 3 layers: in_then_branch .*float16\), in_else_branch \(act"):
        build(path)
    assert [entry["node"] for entry in build(path, precision="fp16").manifest.kept] == ["after"]


def test_a_layer_that_tensorrt_does_not_name_goes_with_its_node(tmp_path):
    """Its parser writes three layers for a GlobalLpPool, in float32, and names one."""
    node = helper.make_node("GlobalLpPool", ["x"], ["y"], "pool")
    path = save_net(tmp_path / "pool.onnx", [node], [("x", HALF, [1, 3, 4, 4])], [("y", HALF, [1, 3, 1, 1])])
    with pytest.raises(
        EngineBuildError, match=r"in 3 of 3 layers: pool \(elem\w+, float32\), pool \(reduce, float32\), pool "
    ):
        build(path, precision="fp16")
    types = build(path, precision="fp16", keep=["pool"]).manifest.types
    assert types == {"ELEMENTWISE": {"float32": 2}, "REDUCE": {"float32": 1}}


def test_at_most_five_layers_are_named():
    layers = [LayerType(f"n{index}", "ACTIVATION", "float32") for index in range(8)]
    with pytest.raises(EngineBuildError, match=r"in 8 of 8 layers: n0 .*, n4 \(activation, float32\) and 3 more;"):
        check_types(layers, "bf16")
    check_types(layers, "bf16", [layer.node for layer in layers])
    check_types([LayerType("node_of_y", "ACTIVATION", "float32")], "fp16", ["y"])  # TensorRT's name of a nameless node


def test_the_types_are_told_the_most_frequent_first():
    assert types_text({"A": {"float32": 1, "float16": 2}, "B": {"float16": 3}}) == (
        "float16 in 5 (3 b, 2 a); float32 in 1 (1 a)"
    )


# Calibration, and pictures.


def test_a_calibration_file_needs_no_pictures(net, calibration, tmp_path):
    path = calibration.save(tmp_path / "calibration.json")
    assert build(net, precision="int8", calibration=path).manifest.calibration == calibration.digest


def test_pictures_are_measured_and_the_file_serves_another_machine(net, pictures, tmp_path, monkeypatch):
    path = tmp_path / "calibration.json"
    first = build(net, precision="int8", images=pictures, calibration=path)
    assert Calibration.load(path).samples == 2
    assert first.manifest.calibration == Calibration.load(path).digest
    monkeypatch.setattr(process.subprocess, "Popen", never)
    assert build(net, precision="int8", calibration=path).manifest == first.manifest


def test_pictures_show_what_float16_cannot_hold(pictures, tmp_path):
    nodes = [
        helper.make_node("Mul", ["input", "large"], ["a"], "grow"),
        helper.make_node("Mul", ["a", "small"], ["b"], "shrink"),
        helper.make_node("Relu", ["b"], ["output"], "relu"),
    ]
    values = [("large", np.array([60000], np.float32)), ("small", np.array([1e-3], np.float32))]
    shape = ["batch", 3, 16, 16]
    path = save_net(tmp_path / "large.onnx", nodes, [("input", FLOAT, shape)], [("output", FLOAT, shape)], values)
    blind = build(path, precision="fp16").manifest
    assert (blind.kept, blind.types["ELEMENTWISE"]) == ((), {"float16": 2})
    seen = build(path, precision="fp16", images=pictures, preprocess="raw").manifest  # up to 255 * 60000
    assert [entry["node"] for entry in seen.kept] == ["grow", "shrink"]
    assert "65,504" in seen.kept[0]["reason"]
    assert seen.types == {"ELEMENTWISE": {"float32": 2}, "ACTIVATION": {"float16": 1}}
    assert seen.calibration


def test_a_calibration_of_another_network_is_refused(tmp_path, calibration, monkeypatch):
    monkeypatch.setattr(engine_build, "run_child", never)
    with pytest.raises(InputError, match=r"got a calibration of the network .*; calibrate this network again"):
        build(mixed_net(tmp_path / "other.onnx", seed=5), precision="int8", calibration=calibration)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, r"got precision='int8' without the ranges of the tensors; give pictures with images"),
        ({"precision": "fp16", "calibration": "x.json"}, "got a calibration for fp16; only int8 and fp8 take one"),
        (
            {"precision": "bf16", "images": "."},
            "got images or feeds for bf16, which needs no measured ranges; leave them out",
        ),
        ({"precision": "fp32", "feeds": []}, "got images or feeds for fp32"),
        ({"precision": "int8", "images": ".", "feeds": []}, "got feeds and images; give one of them"),
        ({"precision": "int8", "feeds": []}, "got no calibration sample"),
        ({"keep": ["conv1"]}, "for fp32, which converts nothing; leave it out"),
        ({"precision": "fp16", "keep": "conv1"}, r"expected a list of node names such as \['conv1'\]"),
        ({"precision": "fp16", "keep": ["conv7"]}, "has no node 'conv7' to keep"),
        ({"precision": "int8", "calibration": "missing.json"}, r"missing\.json is not a calibration"),
        ({"precision": "int8", "images": "no_folder"}, "expected a folder of images that exists"),
    ],
)
def test_arguments_that_do_not_fit_are_one_sentence(net, monkeypatch, options, message):
    monkeypatch.setattr(process.subprocess, "Popen", never)
    with pytest.raises(InputError, match=message) as caught:
        build(net, **options)
    assert "\n" not in str(caught.value)


def test_a_measured_file_leaves_nothing_to_measure(partly_quantised, calibration, pictures):
    with pytest.raises(InputError, match=r"is in int8 and taken as it is; leave it out"):
        build(partly_quantised, precision="int8", calibration=calibration)
    with pytest.raises(InputError, match=r"is in int8 and taken as it is; leave the images or feeds out"):
        build(partly_quantised, precision="int8", images=pictures)
    with pytest.raises(InputError, match="got images or feeds and a calibration that is made"):
        build(partly_quantised, precision="int8", images=pictures, calibration=calibration)


def test_a_network_in_a_third_precision_is_refused(partly_half, partly_quantised, calibration):
    with pytest.raises(InputError, match="already quantised"):
        build(partly_quantised, precision="fp16")
    with pytest.raises(InputError):
        build(partly_half, precision="int8", calibration=calibration)


# The cache.


def test_the_second_build_converts_nothing(net, monkeypatch):
    first = build(net, precision="fp16")
    monkeypatch.setattr(half, "to_fp16", never)
    monkeypatch.setattr(process.subprocess, "Popen", never)
    assert build(net, precision="fp16").manifest == first.manifest


def test_precision_keep_and_calibration_are_in_the_key(net, calibration, monkeypatch):
    build(net, precision="int8", calibration=calibration)

    def built(*_, **__):
        raise EngineBuildError("built again")

    monkeypatch.setattr(engine_build, "run_child", built)
    assert build(net, precision="int8", calibration=calibration).manifest.precision == "int8"
    for options in ({"calibration": measure(net, 7)}, {"keep": ["conv1"]}, {"precision": "fp8"}):
        with pytest.raises(EngineBuildError, match="built again"):
            build(net, **{"precision": "int8", "calibration": calibration, **options})


# Which precision a file has.


def test_the_precision_of_a_file_is_read_from_its_types(net, calibration, tmp_path):
    made = {
        "fp16": lambda path: to_fp16(net, path),
        "bf16": lambda path: to_bf16(net, path),
        "int8": lambda path: quantize_int8(net, path, calibration),
        "fp8": lambda path: quantize_fp8(net, path, calibration),
    }
    assert read_precision(net) == "fp32"
    for precision, make in made.items():
        make(tmp_path / f"{precision}.onnx")
        assert read_precision(tmp_path / f"{precision}.onnx") == precision


def test_a_type_in_a_constant_or_in_a_branch_is_read_too(tmp_path):
    one = numpy_helper.from_array(np.ones(1, np.float16), "one")
    constant = helper.make_node("Constant", [], ["c"], value=one)
    branch = helper.make_graph([constant], "branch", [], [helper.make_tensor_value_info("c", HALF, [1])])
    choice = helper.make_node("If", ["x"], ["y"], "choice", then_branch=branch, else_branch=branch)
    path = save_net(tmp_path / "if.onnx", [choice], [("x", TensorProto.BOOL, [])], [("y", HALF, [1])])
    assert read_precision(path) == "fp16"
    assert find_nodes(path, ["choice"]) == (("choice", "If", "you keep it"), ("c", "Constant", "you keep it"))


# For people.


def test_the_text_tells_types_from_kernels_and_names_what_is_wider(net, calibration):
    text = engine_text(build(net, precision="bf16"), "x.plan")
    assert "types    bfloat16 in 5 (2 convolution, 1 activation, 1 pooling, 1 softmax); float32 in 1 (1 decon" in text
    assert "types of the network, not kernels\n" in text
    assert "float32  up: TensorRT has no bfloat16 ConvTranspose\n" in text
    assert "; 6 pairs of Q and DQ;" in engine_text(build(net, precision="int8", calibration=calibration), "x.plan")


def test_the_commands_build_the_same_precision(net, calibration):
    plan = build(net, precision="int8", calibration=calibration, keep=["conv2"])
    assert "--precision int8 --calibration FILE --keep-nodes conv2 --profile" in build_command(plan.manifest, "x.plan")
    plan = build(net, precision="tf32")
    assert "--precision tf32 --profile" in build_command(plan.manifest, "x.plan")
    trtexec, polygraphy = equivalent_commands(plan, "net.onnx", "x.plan")
    assert "--noTF32" not in trtexec
    assert polygraphy.startswith("POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy")
    full = replace(plan, manifest=replace(plan.manifest, flavour="tensorrt"))
    assert "--tf32" in equivalent_commands(full, "net.onnx", "x.plan")[1]


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_the_command_line_calibrates_here_and_builds_there(net, pictures, tmp_path, capsys, monkeypatch):
    """The embedded workflow: pictures on this machine, only the network and the calibration on the target."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        shutil.copy(net, folder)
    monkeypatch.chdir(here)
    words = ["build", "net.onnx", "-o", "net.plan", "--precision", "int8", "--no-cache", "--calibration"]
    status, out, _ = run(capsys, *words, "calibration.json", "--images", pictures)
    assert (status, "int8 to float32 in 3 (2 convolution, 1 deconvolution)" in out) == (0, True)
    shutil.copy(here / "calibration.json", there)
    monkeypatch.chdir(there)
    status, out, _ = run(capsys, *words, "calibration.json", "--show-commands")
    assert status == 0
    assert "the same with NVIDIA's tools, given the converted network:" in out
    manifests = [json.loads((folder / "net.plan.json").read_text()) for folder in (here, there)]
    assert manifests[0]["calibration"] == manifests[1]["calibration"] != ""
    assert manifests[0]["types"] == manifests[1]["types"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int8"], "give pictures with images (--images DIR), or what was measured on them with"),
        (["--precision", "int8", "--calibration", "net.onnx"], "net.onnx is not a calibration of this package"),
        (["--precision", "int8", "--images", "."], "no image in ."),
        (["--precision", "fp16", "--keep", "conv1", "conv7"], "has no node 'conv7' to keep"),
    ],
)
def test_bad_input_on_the_command_line_is_one_sentence(net, tmp_path, monkeypatch, capsys, arguments, message):
    shutil.copy(net, tmp_path)
    monkeypatch.chdir(tmp_path)
    status, _, errors = run(capsys, "build", "net.onnx", "-o", "x.plan", *arguments)
    assert status == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1, errors
    assert message in errors
    assert not (tmp_path / "x.plan").exists()


def test_keep_on_the_command_line(net, tmp_path, capsys):
    status, out, _ = run(capsys, "build", net, "-o", tmp_path / "x.plan", "--precision", "fp16", "--keep", "softmax")
    assert (status, "float32  softmax: you keep it" in out) == (0, True)
    assert onnx.load(net).graph.node[5].name == "softmax"
