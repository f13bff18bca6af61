import configparser
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from nbval.plugin import get_sanitize_patterns
from notebook_rules import find_problems

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SANITIZE = NOTEBOOKS / "nbval_sanitize.cfg"
EXPECTED = [
    "00_start_here",
    "01_resnet50",
    "02_semantic_segmentation",
    "03_unet",
    "04_your_own_network",
    "05_tf1_inception_v3",
    "06_precision",
    "07_custom_layers",
    "09_experiments",
]
NAMES = sorted({*EXPECTED, *(path.stem for path in NOTEBOOKS.glob("*.ipynb"))})


@pytest.mark.parametrize("name", NAMES)
def test_notebook_keeps_the_rules(name):
    path = NOTEBOOKS / f"{name}.ipynb"
    assert path.is_file(), f"{path.name} is missing"
    assert find_problems(path) == []


def printed(text):
    return [new_output("stream", name="stdout", text=text)]


def good_notebook():
    cells = [
        new_markdown_cell("# A title"),
        new_code_cell("size = 4", metadata={"tags": ["parameters"]}),
        new_code_cell("# NBVAL_CHECK_OUTPUT\nprint(1)", outputs=printed("1\n")),
        new_code_cell("# NBVAL_CHECK_OUTPUT\nprint(2)", outputs=printed("2\n")),
        new_markdown_cell("## The claim"),
        new_code_cell("# NBVAL_CHECK_OUTPUT\nprint(3)", outputs=printed("3\n")),
        new_code_cell("%time assert size\nassert size == 4"),
        new_markdown_cell("## Summary"),
    ]
    for count, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), 1):
        cell.execution_count = count
    return new_notebook(cells=cells)


def problems_of(notebook, folder):
    path = folder / "made.ipynb"
    nbformat.write(notebook, path)
    return find_problems(path)


def test_a_good_notebook_has_no_problems(tmp_path):
    assert problems_of(good_notebook(), tmp_path) == []


def without_outputs(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def with_an_error(notebook):
    notebook.cells[2].outputs.append(new_output("error", ename="ValueError", evalue="no", traceback=[]))


def out_of_order(notebook):
    notebook.cells[2].execution_count, notebook.cells[3].execution_count = 3, 2


def run_from_seven(notebook):
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 7):
        cell.execution_count = count


def too_large(notebook):
    notebook.cells[0].source += "x" * 2_000_000


def without_title(notebook):
    notebook.cells[0].source = "Text"


def without_settings(notebook):
    notebook.cells[1].metadata.tags = []


def with_two_checks(notebook):
    notebook.cells[2].source = "print(1)"


def with_a_check_of_a_picture(notebook):
    data = {"image/png": "aGVsbG8=", "text/plain": "<Figure size 640x480 with 1 Axes>"}
    notebook.cells[2].outputs = [new_output("display_data", data=data)]


def without_assert(notebook):
    notebook.cells[6].source = "print('assert')"


def with_a_path_of_a_machine(notebook):
    notebook.cells[2].outputs = printed("wrote /home/ada/work/model.onnx\n")


def with_a_long_cell(notebook):
    notebook.cells[2].source += "\nprint(1)" * 14


def with_a_name_that_is_not_public(notebook):
    notebook.cells[2].source += "\nwb.verify_stages(model)"


def with_an_import_that_fails(notebook):
    notebook.cells[2].source += "\nfrom workbench.core.files import make_folders"


def with_an_answer_that_fails(notebook):
    notebook.cells[-1].source += "\n```python\nfrom workbench.onnx_graphs import check\n```\n"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_outputs, "no cell has an output"),
        (with_an_error, "code cell 2 ended in an error: ValueError: no"),
        (out_of_order, "not one clean run"),
        (run_from_seven, "not one clean run"),
        (too_large, "expected less than 2000000"),
        (without_title, "not a markdown title"),
        (without_settings, "got 0 cells tagged `parameters`"),
        (with_two_checks, "got 2 cells marked NBVAL_CHECK_OUTPUT"),
        (with_a_check_of_a_picture, "prints nothing that can be compared"),
        (without_assert, "no assert"),
        (with_a_long_cell, "code cell 2 has 16 lines, expected at most 15"),
        (with_a_name_that_is_not_public, "wb.verify_stages is no public name"),
        (with_an_import_that_fails, "workbench.core.files has no make_folders"),
        (with_an_answer_that_fails, "workbench.onnx_graphs has no check"),
        (with_a_path_of_a_machine, "code cell 2 shows a path of one machine: /home/ada/work/model.onnx"),
    ],
)
def test_a_damaged_notebook_is_refused(damage, said, tmp_path):
    notebook = good_notebook()
    damage(notebook)
    assert any(said in problem for problem in problems_of(notebook, tmp_path))


def test_a_file_that_is_no_notebook_is_refused(tmp_path):
    path = tmp_path / "made.ipynb"
    path.write_text("not json")
    assert "not a notebook" in find_problems(path)[0]


def sanitize(text):
    for pattern, replacement in get_sanitize_patterns(SANITIZE.read_text()):
        text = re.sub(pattern, replacement, text)
    return text


def test_sanitize_file_is_read_whole_by_nbval():
    sections = configparser.ConfigParser(interpolation=None)
    sections.read(SANITIZE)
    assert all(set(sections[name]) == {"regex", "replace"} for name in sections.sections())
    assert len(get_sanitize_patterns(SANITIZE.read_text())) == len(sections.sections())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("median 12.5 ms, p95 14 ms", "median TIME, p95 TIME"),
        ("done in 3s", "done in TIME"),
        ("run on 2026-03-01 12:30", "run on DATE"),
        ("ONNX Runtime 1.31.1 (CPU)", "ONNX Runtime VERSION (CPU)"),
        ("wrote /srv/notebooks/output/model.onnx", "wrote PATH"),
        ("wrote C:\\Users\\ada\\model.onnx", "wrote PATH"),
    ],
)
def test_sanitize_file_hides_times_versions_and_paths(text, expected):
    assert sanitize(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "max 2.3e-09 of a range of 26.91",
        "(1, 20, 512, 1024) float32",
        "PASS: 99.98 % of 3 samples",
        "3/4 classes in demo_output/street/report.json",
    ],
)
def test_sanitize_file_leaves_results_alone(text):
    assert sanitize(text) == text
