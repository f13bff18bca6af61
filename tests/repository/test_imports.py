import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "workbench"
HEAVY = [
    "cuda",
    "jax",
    "jupyterlab",
    "keras",
    "keras2onnx",
    "onnxslim",
    "pycuda",
    "ray",
    "segmentation_models",
    "tensorflow",
    "tensorrt",
    "tensorrt_lean",
    "tensorrt_rtx",
    "tf2onnx",
    "tf_keras",
    "torch",
]
IMPORT_ALL = """
import importlib, json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in heavy or top.startswith("tensorrt"):
            raise ModuleNotFoundError(f"{name} is blocked by this test", name=name)

heavy, modules = map(json.loads, sys.argv[1:])
sys.meta_path.insert(0, Blocker())
failures = {}
for module in modules:
    try:
        importlib.import_module(module)
    except Exception as error:
        failures[module] = repr(error)
print(json.dumps(failures))
"""


def module_name(path, root):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def find_modules(package):
    return {module_name(path, package.parent): path for path in sorted(package.rglob("*.py"))}


MODULES = find_modules(PACKAGE)


def run_python(code, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def import_failures():
    names = [name for name in MODULES if not name.endswith("__main__")]
    return run_python(IMPORT_ALL, json.dumps(HEAVY), json.dumps(names))


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_without_heavy_packages(module, import_failures):
    assert import_failures.get(module) is None


@pytest.mark.parametrize("name", HEAVY)
def test_the_blocker_blocks(name):
    blocked = run_python(IMPORT_ALL, json.dumps(HEAVY), json.dumps([name]))
    assert "blocked by this test" in blocked[name]


def test_importing_the_package_imports_nothing_heavy():
    loaded = run_python(
        "import json, sys; before = set(sys.modules); import workbench; "
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    third_party = set(loaded) - set(sys.stdlib_module_names) - {"workbench"}
    assert third_party == set()


def top_level_imports(tree):
    """Import statements that run when the module is imported: not those in functions or for type checkers."""
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending += ast.iter_child_nodes(node)


def imported_names(node, module, is_package):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        parents = module.split(".") if is_package else module.split(".")[:-1]
        base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
    return [f"{base}.{alias.name}" for alias in node.names]


def import_graph(modules):
    """Each module of the package to the modules of the package that it names in its imports."""
    graph = {}
    for module, path in modules.items():
        graph[module] = set()
        for node in top_level_imports(ast.parse(path.read_text(encoding="utf-8"))):
            for name in imported_names(node, module, path.name == "__init__.py"):
                while name and name not in modules:
                    name = name.rpartition(".")[0]
                graph[module] |= {name} - {"", module}
    return graph


def test_the_package_has_no_import_cycles():
    graphlib.TopologicalSorter(import_graph(MODULES)).prepare()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("import made.b", "import made.a"),
        ("from made import b", "from made.a import f"),
        ("from . import b", "from .a import f"),
        ("try:\n    from made.b import g\nexcept ImportError:\n    pass", "class C:\n    import made.a"),
    ],
)
def test_a_planted_import_cycle_is_found(first, second, tmp_path):
    package = tmp_path / "made"
    package.mkdir()
    for name, text in {"__init__": "", "a": first, "b": second}.items():
        (package / f"{name}.py").write_text(text)
    with pytest.raises(graphlib.CycleError, match=r"made\.a"):
        graphlib.TopologicalSorter(import_graph(find_modules(package))).prepare()


def test_an_import_inside_a_function_is_not_a_cycle(tmp_path):
    package = tmp_path / "made"
    package.mkdir()
    (package / "a.py").write_text("import made.b")
    (package / "b.py").write_text("def f():\n    import made.a")
    assert import_graph(find_modules(package)) == {"made.a": {"made.b"}, "made.b": set()}
