"""What a committed notebook must look like; nbval alone lets a notebook without outputs pass."""

import ast
import importlib
import json
import re
from pathlib import Path

import workbench

MAXIMUM_BYTES = 2_000_000
CHECKED_CELLS = 3
LONGEST_CELL = 15
# Code in the text: the answers of the exercises.
ANSWER = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
# Folders of one machine. The lookbehind leaves addresses such as https://host/home/ alone.
MACHINE_PATH = re.compile(r"(?<![\w.:/-])(?:[A-Za-z]:\\Users\\|/(?:home|root|Users|work|tmp|private)/)[^\s'\"<>)]*")
OBJECT_NAME = re.compile(r"<[\w. ]+ (?:size|at|object)[^>]*>")


def find_problems(path):
    """Every rule that a notebook breaks, one sentence each; an empty list for a good notebook."""
    path = Path(path)
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError) as error:
        return [f"got a file that is not a notebook: {error!r}"]
    code = [cell for cell in cells if cell["cell_type"] == "code" and _source(cell).strip()]
    return [
        *_size_problems(path),
        *_opening_problems(cells),
        *_length_problems(cells),
        *_name_problems(cells),
        *_run_problems(code),
        *_check_problems(code),
        *_ending_problems(cells),
        *_path_problems(code),
    ]


def _source(cell):
    return "".join(cell["source"])


def _size_problems(path):
    size = path.stat().st_size
    if size >= MAXIMUM_BYTES:
        yield f"got {size} bytes, expected less than {MAXIMUM_BYTES}; show smaller pictures"


def _opening_problems(cells):
    if not cells or cells[0]["cell_type"] != "markdown" or not _source(cells[0]).startswith("# "):
        yield "the first cell is not a markdown title"
    settings = sum("parameters" in cell["metadata"].get("tags", []) for cell in cells)
    if settings != 1:
        yield f"got {settings} cells tagged `parameters`, expected 1"


def _length_problems(cells):
    """The first code cell, which imports, may be longer."""
    code = [_source(cell) for cell in cells if cell["cell_type"] == "code"]
    for number, source in enumerate(code[1:], 2):
        lines = len(source.splitlines())
        if lines > LONGEST_CELL:
            yield f"code cell {number} has {lines} lines, expected at most {LONGEST_CELL}; move plumbing to the package"


def _name_problems(cells):
    """Names of the package that are not there, also in the answers of the exercises."""
    for cell in cells:
        for source in [_source(cell)] if cell["cell_type"] == "code" else ANSWER.findall(_source(cell)):
            for node in ast.walk(_tree(source)):
                if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "wb":
                    if node.attr not in workbench.__all__:
                        yield f"wb.{node.attr} is no public name of workbench"
                elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "workbench":
                    yield from (
                        f"{node.module} has no {name.name}" for name in node.names if not _has(node.module, name.name)
                    )


def _has(module, name):
    try:
        if hasattr(importlib.import_module(module), name):
            return True
        importlib.import_module(f"{module}.{name}")
    except ImportError:
        return False
    return True


def _tree(source):
    """The tree of a cell without its magics; an empty one where it is no Python."""
    try:
        return ast.parse(
            "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())
        )
    except SyntaxError:
        return ast.parse("")


def _run_problems(code):
    counts = [cell["execution_count"] for cell in code]
    if counts != list(range(1, len(code) + 1)):
        yield f"not one clean run: got the execution counts {counts}, expected 1 to {len(code)} in order"
    if not any(cell["outputs"] for cell in code):
        yield "no cell has an output; run the notebook before committing it"
    for number, cell in enumerate(code, 1):
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                yield f"code cell {number} ended in an error: {output['ename']}: {output['evalue']}"


def _check_problems(code):
    checked = [(number, cell) for number, cell in enumerate(code, 1) if _is_checked(cell)]
    if len(checked) < CHECKED_CELLS:
        yield f"got {len(checked)} cells marked NBVAL_CHECK_OUTPUT, expected at least {CHECKED_CELLS}"
    for number, cell in checked:
        if not OBJECT_NAME.sub("", _compared_text(cell)).strip():
            yield f"code cell {number} is marked NBVAL_CHECK_OUTPUT but prints nothing that can be compared"


def _is_checked(cell):
    return "NBVAL_CHECK_OUTPUT" in _source(cell) or "nbval-check-output" in cell["metadata"].get("tags", [])


def _compared_text(cell):
    """The text of a cell's outputs that nbval compares: it never looks at pictures."""
    texts = []
    for output in cell["outputs"]:
        if output.get("name") == "stdout":
            texts.append("".join(output["text"]))
        texts += ["".join(output.get("data", {}).get(kind, "")) for kind in ("text/plain", "text/html")]
    return "\n".join(texts)


def _ending_problems(cells):
    sections = [[]]
    for cell in cells:
        if cell["cell_type"] == "markdown" and re.search(r"^#+ ", _source(cell), re.M):
            sections.append([])
        if cell["cell_type"] == "code" and _source(cell).strip():
            sections[-1].append(cell)
    last = next((section for section in reversed(sections) if section), [])
    if not any(_has_assert(_source(cell)) for cell in last):
        yield "the last section with code has no assert: the notebook's claim is not checked"


def _has_assert(source):
    return any(isinstance(node, ast.Assert) for node in ast.walk(_tree(source)))


def _path_problems(code):
    for number, cell in enumerate(code, 1):
        for output in cell["outputs"]:
            texts = [
                output.get("text", ""),
                *(v for k, v in output.get("data", {}).items() if k.startswith("text/")),
            ]
            found = MACHINE_PATH.search("\n".join("".join(text) for text in texts))
            if found:
                yield f"code cell {number} shows a path of one machine: {found.group(0)}"
