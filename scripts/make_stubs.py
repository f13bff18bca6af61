"""Make typings/ again: the type stubs of the real TensorRT bindings, one folder for each flavour.

Only the bindings are downloaded. A small C library stands in for TensorRT itself, so that they can be imported on a
machine without TensorRT and without a GPU; pybind11-stubgen then reads their signatures, and what it writes is
corrected until a type checker accepts it and finds every misuse that it can.

It needs Linux, a C compiler and the package index: `python scripts/make_stubs.py`, or with the folder names of the
flavours to make, or with `--check` to compare what is made with typings/ instead of writing it.
"""

import argparse
import ast
import builtins
import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TYPINGS = ROOT / "typings"
IMPORT_STUB = Path(__file__).with_name("import_stub.c")


@dataclass(frozen=True)
class Pin:
    """Where the stubs of one flavour come from.

    `requirement` is the wheel with the bindings, `module` what users import, and `libraries` what the bindings
    ask the dynamic linker for.
    """

    requirement: str
    module: str
    libraries: tuple[str, ...]

    @property
    def package(self) -> str:
        """The package of the wheel."""
        return f"{self.module}_bindings"


TOOLS = ("pybind11-stubgen==3.0.0", "typing_extensions==4.16.0")
PINS = {
    "trt11.4": Pin(
        "tensorrt-cu13-bindings==11.4.0.106",
        "tensorrt",
        ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11"),
    ),
    "trt10.16": Pin(
        "tensorrt-cu13-bindings==10.16.1.11",
        "tensorrt",
        ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10"),
    ),
    "rtx1.7.1": Pin(
        "tensorrt-rtx-cu13-bindings==1.7.1.116",
        "tensorrt_rtx",
        ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"),
    ),
    "lean11.4": Pin("tensorrt-lean-cu13-bindings==11.4.0.106", "tensorrt_lean", ("libnvinfer_lean.so.11",)),
}

# Return None instead of raising, although their documentation does not say so: seen with tensorrt_rtx 1.7.1, or made by
# a C++ factory, whose answer to a failure is a null pointer.
RETURN_NONE = {
    "Builder.create_builder_config",
    "Builder.build_engine_with_config",
    "Builder.build_serialized_network",
    "Builder.create_network",
    "IBuilderConfig.create_timing_cache",
    "ICudaEngine.create_engine_inspector",
    "ICudaEngine.create_execution_context",
    "ICudaEngine.serialize",
    "ITimingCache.serialize",
    "Runtime.deserialize_cuda_engine",
}
# The bindings convert these from plain Python values.
CONVERSIONS = {
    "FallbackString": "FallbackString | str",
    "Dims": "Dims | collections.abc.Sequence[int]",
    "DimsHW": "DimsHW | collections.abc.Sequence[int]",
    "Permutation": "Permutation | collections.abc.Sequence[int]",
    "Weights": "Weights | numpy.ndarray",
}
DOTTED = {
    # The bindings take anything that can become a number; asking for one finds mistakes.
    "typing.SupportsInt": "int",
    "typing.SupportsFloat": "float",
    # Their names depend on the Python that reads the bindings.
    "collections.abc.Buffer": "typing_extensions.Buffer",
    "types.CapsuleType": "typing_extensions.CapsuleType",
}
# Python's own types, which module variables of the same name hide (tensorrt.bool is a DataType).
HIDDEN = {"bool": "builtins.bool"}
# What Python's `object` has anyway, what only pickle and the interpreter call, and what EXTRAS says with types.
LEFT_OUT = {
    "__buffer__",
    "__del__",
    "__getstate__",
    "__ne__",
    "__release_buffer__",
    "__repr__",
    "__setstate__",
    "__str__",
}
# What the enumerations of pybind11 have; written once, as base classes. Without `__eq__` mypy finds comparisons that
# can never be true.
ENUM_METHODS = {"__eq__", "__hash__", "__index__", "__init__", "__int__", "name", "value"}
ORDER_METHODS = {"__ge__", "__gt__", "__le__", "__lt__"}
ENUM_CLASSES = """
class _Enum:
    def __init__(self, value: int) -> None: ...
    def __index__(self) -> int: ...
    def __int__(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> int: ...

class _OrderedEnum(_Enum):
    def __ge__(self, other: typing.Self | int) -> builtins.bool: ...
    def __gt__(self, other: typing.Self | int) -> builtins.bool: ...
    def __le__(self, other: typing.Self | int) -> builtins.bool: ...
    def __lt__(self, other: typing.Self | int) -> builtins.bool: ...

"""
# Written in Python, without types.
FUNCTIONS = """

def nptype(trt_type: DataType) -> typing.Any: ...
def volume(iterable: collections.abc.Iterable[int]) -> int: ...
"""
# What the bindings have besides: the C buffer protocol, and iteration by index.
EXTRAS = {
    "Dims": "def __iter__(self) -> collections.abc.Iterator[int]: ...",
    "IHostMemory": "def __buffer__(self, flags: int, /) -> memoryview: ...",
}
# The context managers that the package adds in Python; deprecated, they do nothing.
CONTEXT_MANAGER = {
    "__enter__": "def __enter__(self) -> typing.Self: ...",
    "__exit__": "def __exit__(self, *exception: object) -> None: ...",
}
HEADER = """# The types of {requirement}; written by scripts/make_stubs.py.
# mypy: disable-error-code="{codes}"
"""
# Faults of the bindings themselves, which a stub can only repeat.
FAULTS = ("assignment", "misc", "overload-cannot-match", "overload-overlap", "override")


IMPORTS = ("builtins", "collections.abc", "numpy", "typing", "typing_extensions")
MODULES = {name.partition(".")[0] for name in IMPORTS} | {"types"}


class StubError(Exception):
    """The stubs cannot be made; the message says why."""


def main() -> None:
    """Make the stubs that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("flavours", nargs="*", metavar="flavour", help=f"of {', '.join(PINS)}; all by default")
    parser.add_argument("--check", action="store_true", help="compare with typings/, write nothing")
    options = parser.parse_args()
    unknown = set(options.flavours) - set(PINS)
    if unknown:
        parser.error(f"got {', '.join(sorted(unknown))}, expected some of {', '.join(PINS)}")
    with tempfile.TemporaryDirectory(prefix="stubs-") as folder:
        try:
            different = make_stubs(options.flavours or list(PINS), Path(folder), options.check)
        except StubError as error:
            sys.exit(f"error: {error}")
    sys.exit(1 if different else 0)


def make_stubs(flavours: list[str], folder: Path, check: bool) -> list[str]:
    """Make or compare the stubs of these flavours; return those that differ from typings/."""
    python = make_environment(folder / "environment")
    different = []
    for name in flavours:
        stub = make_stub(PINS[name], folder / name, python)
        target = TYPINGS / name / PINS[name].module / "__init__.pyi"
        old = target.read_text(encoding="utf-8") if target.exists() else ""
        print(f"{name}: {len(stub.splitlines())} lines, {'as in typings/' if stub == old else 'differs from typings/'}")
        if stub == old:
            continue
        different.append(name)
        if check:
            lines = difflib.unified_diff(old.splitlines(), stub.splitlines(), "typings/", "made", lineterm="", n=0)
            print("\n".join(lines))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(stub, encoding="utf-8")
    return different if check else []


def make_environment(folder: Path) -> Path:
    """Install the tools into a virtual environment of their own; return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run([python, "-m", "pip", "install", "--quiet", *TOOLS], "the tools cannot be installed")
    return python


def make_stub(pin: Pin, folder: Path, python: Path) -> str:
    """Return the text of the stub of one flavour."""
    unpack_bindings(pin, folder, python)
    compile_import_stub(pin, folder)
    module = f"{pin.package}.{pin.module}"
    locations = [f"{pattern}:{where}" for pattern, where in {"Severity": f"{module}.ILogger", r"\w+": module}.items()]
    command = [python, "-m", "pybind11_stubgen", pin.package, "--output-dir", folder / "out"]
    command += ["--print-invalid-expressions-as-is", *(f"--enum-class-locations={text}" for text in locations)]
    environment = {**os.environ, "PYTHONPATH": str(folder), "LD_LIBRARY_PATH": ""}
    run(command, f"the signatures of {pin.requirement} cannot be read", env=environment)
    raw = (folder / "out" / pin.package / f"{pin.module}.pyi").read_text(encoding="utf-8")
    return correct_stub(raw, pin)


def unpack_bindings(pin: Pin, folder: Path, python: Path) -> None:
    """Download the wheel of the bindings, without what it depends on, and unpack it."""
    command = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    run([*command, "--dest", folder, pin.requirement], f"{pin.requirement} cannot be had for this Python and machine")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


def compile_import_stub(pin: Pin, folder: Path) -> None:
    """Put the stand-in under the names of the libraries beside the bindings, which look there first."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise StubError("no C compiler was found; install one, or name it in the variable CC")
    for library in pin.libraries:
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / pin.package / library]
        run([*command, IMPORT_STUB], f"{IMPORT_STUB.name} cannot be compiled")


def run(command: Sequence[object], problem: str, env: dict[str, str] | None = None) -> None:
    """Run a command; `problem` says what its failure means."""
    done = subprocess.run([str(part) for part in command], env=env, capture_output=True, text=True)
    if done.returncode:
        raise StubError(f"{problem}: {' '.join((done.stderr or done.stdout).split())[-600:]}")


def correct_stub(raw: str, pin: Pin) -> str:
    """Turn what pybind11-stubgen wrote into a stub that a type checker accepts; see each step."""
    tree = ast.parse(correct_syntax(raw))
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    tree = ast.fix_missing_locations(Corrector(classes).visit(tree))
    rest = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AnnAssign)]
    rest = [node for node in rest if not is_assignment_to(node, "__all__")]
    version = f"__version__: str = {pin.requirement.partition('==')[2]!r}"
    text = ENUM_CLASSES + unparse_compactly(rest) + FUNCTIONS + version + "\n"
    used = [f"import {name}" for name in IMPORTS if re.search(rf"\b{re.escape(name)}\b", text)]
    header = HEADER.format(requirement=pin.requirement, codes=", ".join(FAULTS))
    return header + "\n".join(used) + "\n" + text


def correct_syntax(text: str) -> str:
    """Make the text Python: C++ names, default values that are not expressions, parameters named by keywords.

    >>> correct_syntax("def f(in: nvinfer1::v_1_0::IErrorRecorder, other: int = <object at 0x1>) -> None: ...")
    'def f(in_: IErrorRecorder, other: int = ...) -> None: ...'
    """
    classes = set(re.findall(r"^class (\w+)", text, re.M))

    def translate(match: re.Match[str]) -> str:
        name = match[1]
        return name.removeprefix("I") if classes and name not in classes else name

    text = re.sub(r"\bdetail::accessor<[\w:]+>", "typing.Any", text)
    text = re.sub(r"\b(?:nvinfer1|nvonnxparser)::(?:v_\d+_\d+::)?(\w+)", translate, text)
    text = re.sub(r"= <bound method .*? of <[^<>]*(?:<[^<>]*>[^<>]*)*>>", "= ...", text)
    text = re.sub(r"= <[^>\n]*>", "= ...", text)
    text = re.sub(r"(?<=[(,] )in(?=: )|(?<=\()in(?=: )", "in_", text)
    return "\n".join(require_earlier_arguments(line) for line in text.split("\n"))


def require_earlier_arguments(line: str) -> str:
    """Drop the defaults before an argument that has none: Python's syntax has no word for them.

    >>> require_earlier_arguments("def f(a: int, b: int = None, c: int) -> None:")
    'def f(a: int, b: int, c: int) -> None:'
    """
    if not line.lstrip().startswith("def "):
        return line
    try:
        ast.parse(f"{line.strip()} ..." if line.rstrip().endswith(":") else line.strip())
    except SyntaxError as error:
        if "default" in str(error):
            start, _, last = line.rpartition(", ")
            return f"{re.sub(r' = None', '', start)}, {last}"
    return line


class Corrector(ast.NodeTransformer):
    """Corrects the classes and functions of one stub."""

    def __init__(self, classes: set[str]) -> None:
        self.classes = classes
        self.path: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Drop what goes without saying; give enumerations their base class."""
        self.path.append(node.name)
        is_enum = any(is_assignment_to(child, "__members__") for child in node.body)
        methods = {child.name for child in node.body if isinstance(child, ast.FunctionDef)}
        if is_enum:
            node.bases = [ast.Name("_OrderedEnum" if methods >= ORDER_METHODS else "_Enum")]
        left_out = LEFT_OUT | (ENUM_METHODS | ORDER_METHODS if is_enum else set())
        body = [child for child in node.body if not is_docstring(child) and getattr(child, "name", "") not in left_out]
        node.body = [self.visit(child) for child in body] or [ast.Expr(ast.Constant(...))]
        if node.name in EXTRAS:
            node.body.insert(0, parse_statement(EXTRAS[node.name]))
        self.path.pop()
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Correct the annotations of a function and drop its docstring."""
        if node.name in CONTEXT_MANAGER:
            return parse_statement(CONTEXT_MANAGER[node.name])
        returns_none = self.returns_none(node)
        self.correct_arguments(node.args)
        if node.returns is not None:
            node.returns = self.correct(node.returns)
            if returns_none:
                node.returns = optional(node.returns)
        elif node.name == "itemsize":
            node.returns = ast.Name("int")
        node.body = [ast.Expr(ast.Constant(...))]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """Correct the annotation of a variable."""
        node.annotation = self.correct(node.annotation)
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Drop the module's docstring."""
        return None if is_docstring(node) else node

    def returns_none(self, node: ast.FunctionDef) -> bool:
        """Whether a function returns None instead of raising, by its documentation or by what was seen."""
        words = " ".join((ast.get_docstring(node) or "").split())
        returned = re.search(r":returns?:(.*?)(?=:\w+[^:]*: |$)", words)
        said = returned is not None and re.search(r"(?:or|,) (?::class:)?`+None`+", returned[1]) is not None
        return said or ".".join([*self.path, node.name]) in RETURN_NONE

    def correct_arguments(self, arguments: ast.arguments) -> None:
        """Correct the annotations of arguments; those with the default None may be None."""
        defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + list(arguments.defaults)
        for argument, default in zip(arguments.args, defaults, strict=True):
            if argument.arg == "self":
                argument.annotation = None  # some bindings name a class there that the method does not belong to
            if argument.annotation is not None:
                argument.annotation = self.correct(argument.annotation, CONVERSIONS)
                if isinstance(default, ast.Constant) and default.value is None:
                    argument.annotation = optional(argument.annotation)

    def correct(self, annotation: ast.expr, conversions: dict[str, str] | None = None) -> ast.expr:
        """Correct one annotation."""
        return AnnotationCorrector(self.classes, {**HIDDEN, **(conversions or {})}).visit(annotation)


class AnnotationCorrector(ast.NodeTransformer):
    """Replaces names in an annotation."""

    def __init__(self, classes: set[str], replacements: dict[str, str]) -> None:
        self.classes = classes
        self.replacements = replacements

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Replace a plain name; one that this flavour does not have says nothing."""
        known = node.id in self.classes or hasattr(builtins, node.id) or node.id in MODULES
        text = self.replacements.get(node.id) if known else "typing.Any"
        return ast.parse(text, mode="eval").body if text else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        """Replace a name with dots."""
        text = DOTTED.get(ast.unparse(node))
        return ast.parse(text, mode="eval").body if text else node


def unparse_compactly(body: Sequence[ast.stmt]) -> str:
    """Return the text of these statements, one line for each function."""
    text = ast.unparse(ast.Module(list(body), []))
    text = re.sub(r":\n +\.\.\.(?=\n|$)", ": ...", text)
    text = re.sub(r"\n{2,}(?= )", "\n", text)
    return re.sub(r"\n+(?=class |@|def )", "\n\n", "\n" + text).lstrip("\n")


def parse_statement(text: str) -> ast.stmt:
    """Parse one statement."""
    return ast.parse(text).body[0]


def optional(annotation: ast.expr) -> ast.expr:
    """Return the annotation that also allows None."""
    return ast.BinOp(annotation, ast.BitOr(), ast.Constant(None))


def is_docstring(node: ast.AST) -> bool:
    """Whether a statement is a text on its own."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def is_assignment_to(node: ast.AST, name: str) -> bool:
    """Whether a statement annotates this name."""
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name


if __name__ == "__main__":
    main()
