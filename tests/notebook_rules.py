"""What a committed notebook must look like; nbval alone lets a notebook without outputs pass."""

import ast
import json
import re
from pathlib import Path

MAXIMUM_BYTES = 2_000_000
CHECKED_CELLS = 3
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
    python = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())
    try:
        return any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(python)))
    except SyntaxError:
        return False


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
