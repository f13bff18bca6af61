"""The types of our TensorRT code against the real bindings of each flavour (typings/): use of the API, not inference.

The code names the library's types through the package `trt_types`, which exists only here: it gives the names of
the flavour under check, and as `Module` the imported library itself.
"""

import ast
import importlib.util
import io
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import mypy.api
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
TYPINGS = ROOT / "typings"
CHECKED = [
    "workbench/engine/tensorrt_api.py",
    "workbench/engine/build.py",
    "workbench/engine/load.py",
    "workbench/engine/child.py",
    "workbench/engine/custom.py",
    "workbench/engine/layer_types.py",
    "workbench/engine/inference.py",
    "workbench/runners/tensorrt_runner.py",
]


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


make_stubs = load_script("make_stubs")
FLAVOURS = {name: pin.module for name, pin in make_stubs.PINS.items()}
BUILDERS = tuple(name for name in FLAVOURS if name != "lean11.4")
# Never started for lean, which has no builder.
BUILD_ONLY = {"workbench/engine/child.py", "workbench/engine/layer_types.py"}
AHEAD_OF_TIME = "behind `builds_ahead_of_time` or a list of targets, which only RTX has"
NOT_RTX = {
    ("workbench/engine/tensorrt_api.py", 'Module has no attribute "ComputeCapability"'): AHEAD_OF_TIME,
    ("workbench/engine/child.py", 'Module has no attribute "ComputeCapability"'): AHEAD_OF_TIME,
    ("workbench/engine/child.py", '"IBuilderConfig" has no attribute "num_compute_capabilities"'): AHEAD_OF_TIME,
    ("workbench/engine/child.py", '"IBuilderConfig" has no attribute "set_compute_capability"'): AHEAD_OF_TIME,
}
# What a flavour does not have, used behind a test of the feature that mypy cannot follow: (file, words of the error) to
# the reason. One that is no longer needed fails.
ALLOWED = {
    "trt11.4": NOT_RTX,
    "trt10.16": NOT_RTX,
    "rtx1.7.1": {},
    "lean11.4": {key: reason for key, reason in NOT_RTX.items() if key[0] not in BUILD_ONLY},
}


def checked(flavour):
    return [path for path in CHECKED if flavour in BUILDERS or path not in BUILD_ONLY]


@dataclass(frozen=True)
class Report:
    path: str
    line: int
    message: str


def stub_of(flavour):
    return TYPINGS / flavour / FLAVOURS[flavour] / "__init__.pyi"


class Qualifier(ast.NodeTransformer):
    """Puts the library in front of the names of its classes, which class attributes of the same name would hide."""

    def __init__(self, names):
        self.names = names

    def visit_Name(self, node):
        return ast.Attribute(ast.Name("_library"), node.id) if node.id in self.names else node


def view_of(flavour):
    """The text of the package `trt_types` for one flavour."""
    library = FLAVOURS[flavour]
    tree = ast.parse(stub_of(flavour).read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    members = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            members.append(ast.Assign([ast.Name(node.name)], ast.parse(f"_library.{node.name}").body[0].value))
        elif isinstance(node, ast.AnnAssign):
            node.annotation = Qualifier(names).visit(node.annotation)
            members.append(node)
        elif isinstance(node, ast.FunctionDef):
            node.decorator_list = [ast.Name("staticmethod")]
            members.append(Qualifier(names).visit(node))
    imports = "import builtins, collections.abc, numpy, typing, typing_extensions"
    top = ast.parse(f"{imports}\nimport {library} as _library\nfrom {library} import *")
    top.body.append(ast.ClassDef("Module", [], [], members, [], type_params=[]))
    return ast.unparse(ast.fix_missing_locations(top)) + "\n"


@pytest.fixture(scope="session")
def check(tmp_path_factory):
    """Run mypy over files against the stubs of a flavour; return what it reports, notes included."""
    folder = tmp_path_factory.mktemp("types")
    for flavour in FLAVOURS:
        view = folder / flavour / "trt_types" / "__init__.pyi"
        view.parent.mkdir(parents=True)
        view.write_text(view_of(flavour), encoding="utf-8")

    def run(flavour, paths, root=ROOT):
        path = [root, folder / flavour, TYPINGS / flavour]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MYPYPATH", ":".join(map(str, path)))
            patch.chdir(root)
            out, err, _ = mypy.api.run([
                "--config-file", str(ROOT / "pyproject.toml"), "--python-version", "3.12", "--platform", "linux",
                "--cache-dir", str(folder / f"cache-{flavour}"), "--no-error-summary", "--no-pretty",
                "--no-warn-unused-configs", *map(str, paths),
            ])  # fmt: skip
        assert err == ""
        found = [re.fullmatch(r"([^:]+):(\d+): (?:error|note): (.*)", line) for line in out.splitlines()]
        assert all(found), out
        return [Report(match[1], int(match[2]), match[3]) for match in found]

    return run


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_mypy_accepts_the_stubs(check, flavour, tmp_path):
    path = tmp_path / "user.py"
    path.write_text(f"import trt_types\nimport {FLAVOURS[flavour]}\n")
    assert check(flavour, [stub_of(flavour), path]) == []


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_stubs_are_those_that_the_script_makes(flavour):
    assert make_stubs.PINS[flavour].requirement in stub_of(flavour).read_text(encoding="utf-8").splitlines()[0]
    assert {path.name for path in TYPINGS.iterdir()} == set(FLAVOURS)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_our_code_uses_the_api_of_each_flavour(check, flavour):
    reports = [report for report in check(flavour, checked(flavour)) if not report.message.startswith("See https")]
    allowed = ALLOWED[flavour]
    used = {key for report in reports for key in allowed if report.path == key[0] and key[1] in report.message}
    unexpected = [
        f"{report.path}:{report.line}: {report.message}"
        for report in reports
        if not any(report.path == path and words in report.message for path, words in allowed)
    ]
    assert unexpected == []
    assert used == set(allowed)


def api_names():
    """Every name of the API that no ordinary Python object has."""
    names = set()
    for flavour in FLAVOURS:
        for node in ast.walk(ast.parse(stub_of(flavour).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.AnnAssign):
                names.add(node.target.id)
    ordinary = {name for kind in (dict, list, str, io.StringIO, Path, np.ndarray) for name in dir(kind)}
    return {name for name in names if not name.startswith("_")} - ordinary - {"value", "major", "minor", "log"}


def annotations(tree):
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if isinstance(getattr(node, field, None), ast.expr):
                yield from ast.walk(getattr(node, field))


def reveal_bases(source, names):
    """Wrap what the names of the API are asked of in `reveal_type`; return the code and the lines that have some."""
    tree = ast.parse(source)
    skipped = set(map(id, annotations(tree)))
    lines = [line.encode() for line in source.splitlines()]
    places: list[tuple[int, int, bytes]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in names and id(node) not in skipped:
            base = node.value
            places.append((base.lineno, base.col_offset, b"reveal_type("))
            places.append((base.end_lineno, base.end_col_offset, b")"))
    found = {line for line, _, text in places if text != b")"}
    for line, column, text in sorted(places, reverse=True):
        lines[line - 1] = lines[line - 1][:column] + text + lines[line - 1][column:]
    return b"\n".join(lines).decode() + "\n", found


def copy_package(folder):
    shutil.copytree(ROOT / "workbench", folder / "workbench", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize("flavour", ["trt11.4", "rtx1.7.1"])
def test_mypy_knows_the_type_behind_every_use_of_the_api(check, flavour, tmp_path):
    copy_package(tmp_path)
    uses, names = set(), api_names()
    for path in CHECKED:
        text, lines = reveal_bases((ROOT / path).read_text(encoding="utf-8"), names)
        (tmp_path / path).write_text(text, encoding="utf-8")
        uses |= {(path, line) for line in lines}
    revealed = [r for r in check(flavour, CHECKED, tmp_path) if r.message.startswith("Revealed type is ")]
    known = {(r.path, r.line) for r in revealed}
    unknown = {(r.path, r.line) for r in revealed if re.search(r'"Any( \| None)?"$', r.message)}
    blind = {
        f"{path}:{line}: {(ROOT / path).read_text(encoding='utf-8').splitlines()[line - 1].strip()}"
        for path, line in unknown | (uses - known)  # mypy does not look at code that it takes for unreachable
    }
    assert len(uses) >= 40
    assert blind == set()


ALL = tuple(FLAVOURS)
SINCE_11 = tuple(name for name in FLAVOURS if name != "trt10.16")
RUNTIME_ARGUMENTS = "trt: Module, runtime: Runtime, engine: ICudaEngine, context: IExecutionContext"
BUILDER_ARGUMENTS = (
    "trt: Module, builder: Builder, network: INetworkDefinition, config: IBuilderConfig, parser: OnnxParser, "
    "layer: ILayer, profile: IOptimizationProfile, logger: ILogger"
)
# Code to the flavours that do not take it.
RUNTIME_CODE = {
    # left in 10
    "engine.get_binding_shape(0)": ALL,
    "engine.num_bindings": ALL,
    "engine.max_batch_size": ALL,
    "context.execute_async(bindings=[1], stream_handle=0)": ALL,
    "context.execute_async_v2([1], 0)": ALL,
    # left in 11
    "engine.device_memory_size": SINCE_11,
    "trt.BuilderFlag.FP16": SINCE_11,
    "trt.BuilderFlag.INT8": SINCE_11,
    # of some flavours
    "trt.EngineInspector": ("lean11.4",),
    "trt.Builder": ("lean11.4",),
    "trt.ComputeCapability.SM89": ("trt11.4", "trt10.16", "lean11.4"),
    # wrong types
    "context.execute_async_v3('0')": ALL,
    "context.set_tensor_address('x', b'')": ALL,
    "context.set_input_shape('x', 3)": ALL,
    "context.set_input_shape(['x'], (1, 3))": ALL,
    "engine.get_tensor_shape(0)": ALL,
    "engine.get_tensor_dtype('x') == 'float32'": ALL,
    "trt.Runtime('log')": ALL,
    "context.execute_async_v3()": ALL,
    # None, not checked
    "runtime.deserialize_cuda_engine(b'').num_io_tensors": ALL,
    "engine.create_execution_context().execute_async_v3(0)": ALL,
    # right
    "context.execute_async_v3(0)": (),
    "context.set_tensor_address('x', 1)": (),
    "context.set_input_shape('x', (1, 3))": (),
    "context.set_input_shape('x', [1, 3])": (),
    "engine.get_tensor_mode('x') == trt.TensorIOMode.INPUT": (),
    "engine.device_memory_size_v2": (),
    "trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(b'')": (),
    "[size for size in engine.get_tensor_shape('x')]": (),
}
BUILDER_CODE = {
    # left in 10 or before
    "builder.max_workspace_size": BUILDERS,
    "builder.max_batch_size": BUILDERS,
    "builder.fp16_mode": BUILDERS,
    "builder.int8_mode": BUILDERS,
    "builder.build_cuda_engine(network)": BUILDERS,
    "builder.build_engine(network, config)": BUILDERS,
    "config.max_workspace_size": BUILDERS,
    # left in 11
    "trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH": ("trt11.4", "rtx1.7.1"),
    "trt.IInt8EntropyCalibrator2": ("trt11.4", "rtx1.7.1"),
    "config.int8_calibrator": ("trt11.4", "rtx1.7.1"),
    "layer.precision": ("trt11.4", "rtx1.7.1"),
    "builder.platform_has_fast_fp16": ("trt11.4", "rtx1.7.1"),
    "parser.supports_model(b'')": ("trt11.4", "rtx1.7.1"),
    # wrong types
    "config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, '1G')": BUILDERS,
    "config.set_flag('TF32')": BUILDERS,
    "profile.set_shape('x', 1, 4, 8)": BUILDERS,
    "parser.parse_from_file(b'model.onnx')": BUILDERS,
    "trt.OnnxParser(network)": BUILDERS,
    "config.add_optimization_profile((1, 4, 8))": BUILDERS,
    # None, not checked
    "builder.create_network(0).num_layers": BUILDERS,
    "bytes(builder.build_serialized_network(network, config))": BUILDERS,
    "network.get_input(0).name": BUILDERS,
    # right
    "config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 28)": (),
    "config.clear_flag(trt.BuilderFlag.TF32)": (),
    "profile.set_shape('x', (1, 3), (4, 3), (8, 3))": (),
    "trt.OnnxParser(network, logger).parse_from_file('model.onnx')": (),
    "builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))": (),
}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_planted_misuse_is_reported_where_it_is_one(check, flavour, tmp_path):
    lines = ["from trt_types import *"]
    expected, last = {}, {}
    for arguments, snippets in [(RUNTIME_ARGUMENTS, RUNTIME_CODE), (BUILDER_ARGUMENTS, BUILDER_CODE)]:
        if snippets is BUILDER_CODE and flavour not in BUILDERS:
            continue
        lines.append(f"def planted_{len(lines)}({arguments}) -> None:")
        for code, wrong in snippets.items():
            lines.append(f"    {code}")
            expected[code] = flavour in wrong
            last[len(lines)] = code
    path = tmp_path / "planted.py"
    path.write_text("\n".join(lines) + "\n")
    reported = {report.line for report in check(flavour, [path])}
    assert {code: line in reported for line, code in last.items()} == expected
    assert reported <= set(last)


# What could go wrong in our own files: (file, what stands there, what is planted).
MUTATIONS = [
    ("workbench/engine/inference.py", ".execute_async_v3(", ".execute_async_v2("),
    (
        "workbench/engine/inference.py",
        ".set_tensor_address(name, slot.address)",
        ".set_tensor_address(slot.address, name)",
    ),
    ("workbench/engine/inference.py", ".get_tensor_shape(name)", ".get_binding_shape(name)"),
    ("workbench/engine/load.py", ".num_io_tensors", ".num_bindings"),
    (
        "workbench/engine/load.py",
        ".get_tensor_profile_shape(spec.name, index)",
        ".get_tensor_profile_shape(index, spec.name)",
    ),
    ("workbench/engine/child.py", "trt.BuilderFlag.TF32)", "trt.BuilderFlag.FP32)"),
    ("workbench/engine/child.py", ".set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, ", ".set_memory_pool_limit("),
    ("workbench/engine/child.py", ".parse_from_file(onnx_path)", ".parse_from_file(onnx_path, network)"),
    ("workbench/engine/child.py", "if network is None or config is None:", "if config is None:"),
    ("workbench/engine/layer_types.py", "layer.get_output(index)", "layer.get_output(str(index))"),
    ("workbench/engine/layer_types.py", "source.dtype) if source is not None else", "source.dtype) if True else"),
    ("workbench/engine/layer_types.py", "if layer.type.name not in _MOVES", "if layer.kind.name not in _MOVES"),
]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_mistakes_planted_in_our_own_code_are_reported(check, flavour, tmp_path):
    copy_package(tmp_path)
    places = set()
    for path, old, new in MUTATIONS:
        if path not in checked(flavour):
            continue
        lines = (tmp_path / path).read_text(encoding="utf-8").splitlines()
        number = next((number for number, line in enumerate(lines, 1) if old in line), None)
        assert number, f"{path} no longer has {old}: plant the mistake elsewhere"
        lines[number - 1] = lines[number - 1].replace(old, new)
        (tmp_path / path).write_text("\n".join(lines) + "\n", encoding="utf-8")
        # The missing check for None is reported where the value is used, a few lines later.
        places.add((path, range(number, number + (20 if "is None" in old else 1)), new))
    reports = check(flavour, checked(flavour), tmp_path)
    missed = [
        (path, new)
        for path, lines, new in places
        if not any(report.path == path and report.line in lines for report in reports)
    ]
    assert missed == []


RAW_STUB = """
from __future__ import annotations
import typing
__all__: list[str] = ['Kind']
class Kind:
    \"\"\"
    A kind.
    \"\"\"
    A: typing.ClassVar[Kind]
    __members__: typing.ClassVar[dict[str, Kind]]
    def __eq__(self, other: typing.Any) -> bool:
        ...
    @property
    def value(self) -> int:
        ...
class Builder:
    recorder: nvinfer1::v_1_0::IErrorRecorder
    def build_serialized_network(self, in: Kind = <Kind.A: 0>) -> bytes:
        ...
    def find(self, index: typing.SupportsInt) -> Kind:
        \"\"\"
        :arg index: Which.

        :returns: The kind, or :class:`None` if there is none.
        \"\"\"
    def get(self, name: str = None) -> nvinfer1::IBuilder:
        \"\"\"
        :arg name: The name, or :class:`None` .

        :returns: The builder.
        \"\"\"
class IErrorRecorder:
    pass
bool: Kind
"""


def test_what_the_generator_writes_is_corrected():
    stub = make_stubs.correct_stub(RAW_STUB, make_stubs.Pin("made-bindings==1.2", "made", ()))
    assert "class Kind(_Enum):\n    A: typing.ClassVar[Kind]\n    __members__: " in stub
    assert "def build_serialized_network(self, in_: Kind=...) -> bytes | None: ..." in stub
    assert "def find(self, index: int) -> Kind | None: ..." in stub
    assert "def get(self, name: str | None=None) -> Builder: ..." in stub
    assert "recorder: IErrorRecorder" in stub
    assert "__version__: str = '1.2'" in stub
    assert "A kind" not in stub


def test_a_flavour_that_does_not_exist_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make_stubs.py", "trt12"])
    with pytest.raises(SystemExit):
        make_stubs.main()
    assert "got trt12, expected some of trt11.4, " in capsys.readouterr().err
