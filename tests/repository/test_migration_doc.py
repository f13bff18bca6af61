import ast
import inspect
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

import workbench as wb

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
VARIABLES = {
    "trt": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "profile": "IOptimizationProfile",
    "layer": "ILayer",
    "registry": "IPluginRegistry",
}
STRUCK = re.compile(r"~~`([^`]+)`~~")
BUILDER_VERSIONS = ("trt11.4", "trt10.16")


def stub_names(flavour):
    """The qualified names of a stub, such as `Builder.create_network`."""
    (path,) = (ROOT / "typings" / flavour).rglob("__init__.pyi")
    names = set()

    def collect(body, prefix):
        for node in body:
            if isinstance(node, ast.ClassDef):
                names.add(prefix + node.name)
                collect(node.body, f"{prefix}{node.name}.")
                for base in node.bases:
                    inherited = [name for name in names if name.startswith(f"{ast.unparse(base)}.")]
                    names.update(prefix + node.name + name[name.index(".") :] for name in inherited)
            elif isinstance(node, ast.FunctionDef):
                names.add(prefix + node.name)
            elif isinstance(node, ast.AnnAssign):
                names.add(prefix + node.target.id)

    collect(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return names


NAMES = {flavour: stub_names(flavour) for flavour in (*BUILDER_VERSIONS, "rtx1.7.1")}


def rows():
    """The tables' rows: then, gone since, today, package, why."""
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("| ") else []
        if len(cells) == 5 and cells[0] != "then":
            yield cells


def parse(code):
    """The tree of a piece of code; an empty one for a command line or a single keyword."""
    try:
        return ast.parse(code)
    except SyntaxError:
        return ast.parse("")


def library_names(code):
    """What a piece of code uses of the library, such as `Builder.create_network`, the longest chains only."""
    found = set()
    tree = parse(code)
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        parts = ast.unparse(node).split(".")
        if parts[0] in VARIABLES and all(part.isidentifier() for part in parts):
            found.add(".".join([*filter(None, [VARIABLES[parts[0]]]), *parts[1:]]))
    return found


def package_names():
    """Every function, class and method of the package."""
    kinds = ast.ClassDef | ast.FunctionDef
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "workbench").rglob("*.py"))
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)}


ROWS = list(rows())
IDS = [re.sub(r"[^\w.]+", "-", row[0])[:50] for row in ROWS]


def test_every_row_of_the_page_is_read():
    assert len(ROWS) == sum(line.startswith("| ") for line in PAGE.splitlines()) - PAGE.count("| then |")
    assert len(ROWS) > 30
    assert all(cell for row in ROWS for cell in row)


@pytest.mark.parametrize("row", [row for row in ROWS if STRUCK.search(row[0])], ids=lambda row: row[0][:40])
def test_what_the_page_strikes_through_left_when_it_says(row):
    struck = {name for code in STRUCK.findall(row[0]) for name in library_names(code)}
    assert struck
    assert not struck & NAMES["trt11.4"]
    assert not struck & NAMES["rtx1.7.1"]
    assert row[1] in ("before 8.6", "10.0", "11.0")
    if row[1] == "11.0":
        assert struck <= NAMES["trt10.16"]
    else:
        assert not struck & NAMES["trt10.16"]


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_what_the_page_calls_todays_is_in_10_and_11(row):
    used = {name for code in re.findall(r"`([^`]+)`", row[2]) for name in library_names(code)}
    for flavour in (*BUILDER_VERSIONS, "rtx1.7.1"):
        assert used <= NAMES[flavour]


def test_what_is_not_struck_through_is_still_there():
    for row in ROWS:
        rest = STRUCK.sub("", row[0])
        used = {name for code in re.findall(r"`([^`]+)`", rest) for name in library_names(code)}
        assert used <= NAMES["trt11.4"]


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_the_packages_calls_exist(row):
    called = {
        node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        for code in re.findall(r"`([^`]+)`", row[3])
        for node in ast.walk(parse(code))
        if isinstance(node, ast.Call)
    }
    assert called <= package_names()


@pytest.mark.parametrize("row", [row for row in ROWS if "wb." in row[3]], ids=lambda row: row[0][:40])
def test_the_public_calls_are_public_and_take_these_arguments(row):
    for code in re.findall(r"`([^`]+)`", row[3]):
        for node in ast.walk(parse(code)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("wb."):
                assert node.func.attr in wb.__all__
                keywords = {keyword.arg: keyword.value for keyword in node.keywords}
                inspect.signature(getattr(wb, node.func.attr)).bind(*node.args, **keywords)


def test_a_public_call_is_written_as_one():
    bare = {
        node.func.id
        for row in ROWS
        for code in re.findall(r"`([^`]+)`", row[3])
        for node in ast.walk(parse(code))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not bare & set(wb.__all__)


def test_the_pages_links_lead_to_files():
    links = re.findall(r"\]\(([^)#:]+)\)", PAGE)
    assert links and [link for link in links if not (ROOT / "docs" / link).exists()] == []


ASKED_FOR = """
trt.Logger builder.create_network() EXPLICIT_BATCH builder.max_workspace_size max_batch_size fp16_mode int8_mode
builder.build_cuda_engine engine.serialize runtime.deserialize_cuda_engine get_binding_shape execute_async(bindings=
IInt8EntropyCalibrator2 uff.from_tensorflow infer32 pycuda.autoinit allocate_buffers trt_inference keras2onnx
freeze_session tf2onnx.convert color_map trt.lite.Engine
"""


@pytest.mark.parametrize("name", ASKED_FOR.split())
def test_the_tutorials_call_is_on_the_page(name):
    assert name in PAGE.replace("~~`", "").replace("`~~", "")


EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.S)[1:]  # the first is the calibrator that is gone


@pytest.mark.parametrize("code", EXAMPLES, ids=["onnxruntime", "workbench"])
def test_the_pages_quantisation_examples_run(tmp_path, monkeypatch, code):
    monkeypatch.chdir(tmp_path)
    weights = np.ones((4, 3, 3, 3), np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"])],
        "made",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4, 6, 6])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), "model.onnx")
    exec(code, {"batches": [np.random.default_rng(0).random((1, 3, 8, 8), np.float32)]})
    operators = [node.op_type for node in onnx.load("model_int8.onnx").graph.node]
    assert operators.count("DequantizeLinear") >= 2  # of the input and of the weight
