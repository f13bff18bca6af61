import ast
import graphlib
import importlib
import json
import re
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
    assert third_party == {"lazy_loader"}


def every_import(tree, lazy):
    """Import statements: those that run with the module, those inside functions if `lazy`; none for type checkers."""
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending += ast.iter_child_nodes(node)


def imported_names(node, module, is_package):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        parents = module.split(".") if is_package else module.split(".")[:-1]
        base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
    return [f"{base}.{alias.name}" for alias in node.names]


def import_graph(modules, lazy=False):
    """Each module of the package to the modules of the package that it names in its imports."""
    graph = {}
    for module, path in modules.items():
        graph[module] = set()
        for node in every_import(ast.parse(path.read_text(encoding="utf-8")), lazy):
            for name in imported_names(node, module, path.name == "__init__.py"):
                while name and name not in modules:
                    name = name.rpartition(".")[0]
                graph[module] |= {name} - {"", module}
    return graph


ORDER = (
    "core",
    "pictures",
    "onnx_graph",
    "precision",
    "engine",
    "models",
    "runners",
    "export",
    "parity",
    "measure",
    "cli",
)
"""The entries of the package; each imports only from those before it, inside functions too."""


def entry_of(module):
    return module.split(".")[1] if "." in module else "__init__"


def upward_imports(graph):
    """Imports against the order: (module, what it imports)."""
    ranks = {entry: rank for rank, entry in enumerate(("__init__", *ORDER))}
    pairs = ((module, other) for module, others in graph.items() for other in others)
    return sorted((a, b) for a, b in pairs if ranks[entry_of(b)] > ranks[entry_of(a)])


def test_the_package_has_its_twelve_entries():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(ORDER)
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == {"__init__.py", "__init__.pyi", "py.typed"}


def test_every_entry_imports_only_from_those_before_it():
    assert upward_imports(import_graph(MODULES, lazy=True)) == []


def test_a_planted_upward_import_is_found():
    graph = import_graph(MODULES, lazy=True)
    graph["workbench.core.files"] |= {"workbench.cli.main"}
    assert upward_imports(graph) == [("workbench.core.files", "workbench.cli.main")]


def test_the_tests_mirror_the_package():
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(ORDER) <= folders


@pytest.mark.parametrize("entry", ORDER)
def test_every_entry_says_its_job_and_hides_no_name_behind_a_module(entry):
    path = PACKAGE / entry / "__init__.py"
    assert (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").count(".") >= 1
    public = run_python(f"import json, workbench.{entry} as entry; print(json.dumps(getattr(entry, '__all__', [])))")
    modules = {module.rpartition(".")[2] for module in MODULES}
    assert not set(public) & {file.stem for file in path.parent.glob("*.py")}
    assert not set(public) & (modules & set(ORDER))


def test_the_package_has_no_import_cycles():
    graphlib.TopologicalSorter(import_graph(MODULES, lazy=True)).prepare()


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


SCRIPTS = sorted(path for folder in ("benchmarks", "scripts", "training") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_script_takes_from_the_package_is_there(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = [node for node in every_import(tree, lazy=True) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if (node.module or "").partition(".")[0] == "workbench"]
    missing = [
        f"{node.module}.{alias.name}"
        for node in ours
        for alias in node.names
        if not hasattr(importlib.import_module(node.module), alias.name)
        and f"{node.module}.{alias.name}" not in MODULES
    ]
    assert missing == []


def test_no_test_or_notebook_is_skipped_where_a_module_of_ours_is_broken():
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "notebooks").glob("*.ipynb")]
    skips = re.compile(r"importorskip\(\W*workbench")
    assert [path.name for path in files if skips.search(path.read_text(encoding="utf-8"))] == []
