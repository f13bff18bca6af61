"""Files of rows: lines that are none, fields of another type, unfinished ends, places that cannot take a row."""

import dataclasses
import json
import os

import pytest
from fault_cases import DEEP, VALUES, answer, refusal, some, untouched, with_field
from onnx_networks import save_picture_network

from workbench.measure.row import LARGEST_FILE, Row, append_row
from workbench.measure.rows import load_rows
from workbench.measure.sweep import sweep

ROW = Row(
    "net", "00", "fp32", "onnxruntime", 1, 16, 24, "a machine", "some versions", "2026-01-02T03:04:05",
    worst=(("p0", 0.5),), kept=(("a", "Conv", "why"),), latency_ms=2.0,
)  # fmt: skip
FIELDS = json.loads(json.dumps(dataclasses.asdict(ROW)))
LINE = json.dumps(FIELDS).encode() + b"\n"
KINDS = ("a list", "an object", "nan", "infinity", "a deep one", "a huge one", "{}")
CASES = [(name, kind) for name in FIELDS for kind in KINDS]
WRONG = [
    *((name, '"text"') for name in ("batch", "height", "latency_ms", "runs", "real", "worst", "kept", "status")),
    *((name, "null") for name in ("network", "precision", "batch", "status", "reason", "real", "runs", "machine")),
    *((name, "true") for name in ("network", "batch", "height", "latency_ms", "worst")),
    ("batch", "0"), ("batch", "-1"), ("batch", "1.5"), ("runs", "0.5"), ("real", "1"), ("network", "5"),
    ("of_tomorrow", "1"), ("", "1"), ("worst", "[[1]]"), ("kept", '[["a", "Conv"]]'),
]  # fmt: skip


@pytest.fixture
def file(tmp_path):
    append_row(tmp_path / "r.jsonl", ROW)
    return tmp_path / "r.jsonl"


def test_a_whole_file_is_read(file):
    assert file.read_bytes() == LINE
    assert list(load_rows(file)) == [ROW]


@pytest.mark.parametrize(("name", "value"), [*some(CASES, 40), *WRONG])
def test_a_field_of_another_type_is_told_with_its_line(name, value, file):
    with file.open("ab") as rows:
        rows.write(with_field(FIELDS, name, VALUES.get(value, value)).encode() + b"\n")
    with untouched(file.parent):
        assert "line 2" in refusal(load_rows, file)


LINES = [
    "null",
    "5",
    '"x"',
    "[]",
    "{}",
    "{",
    DEEP,
    "\x00",
    "text",
    '{"network": "net"}',
    "[1, 2]",
    '{"network": ' + DEEP,
]


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_is_no_row_is_told(line, file):
    with file.open("ab") as rows:
        rows.write(line.encode() + b"\n")
    assert "line 2" in refusal(load_rows, file)


@pytest.mark.parametrize("end", ["text", "[1, 2]", '{"net": 5}', "{}", '{"network": 5', "\x00\x00\x00", " ", "null"])
@pytest.mark.parametrize("before", [b"", LINE], ids=["alone", "after a row"])
def test_an_end_that_is_no_unfinished_row_stays(end, before, tmp_path):
    (tmp_path / "r.jsonl").write_bytes(before + end.encode())
    network = save_picture_network(tmp_path / "net.onnx")
    with untouched(tmp_path):
        refusal(append_row, tmp_path / "r.jsonl", ROW)
        refusal(load_rows, tmp_path / "r.jsonl")
        for resume in (True, False):
            refusal(sweep, network, out=tmp_path / "r.jsonl", resume=resume, progress=False)


@pytest.mark.parametrize("end", [1, 2, 12, 30, len(LINE) - 1])
def test_an_unfinished_row_is_cut_off(end, file):
    file.write_bytes(LINE + LINE[:end])
    assert len(load_rows(file)) == 1
    append_row(file, ROW)
    assert file.read_bytes() == 2 * LINE


@pytest.mark.parametrize("end", [1, 12])
def test_alone_a_beginning_shorter_than_any_rows_stays(end, file):
    file.write_bytes(LINE[:end])
    with untouched(file.parent):
        refusal(append_row, file, ROW)
        refusal(load_rows, file)


def test_alone_an_unfinished_row_is_cut_off(file):
    file.write_bytes(LINE[:13])
    append_row(file, ROW)
    assert file.read_bytes() == LINE


PLACES = {
    "a pipe": os.mkfifo, "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a device": lambda path: path.symlink_to("/dev/null"), "a folder": lambda path: path.mkdir(),
    "a link to itself": lambda path: path.symlink_to(path),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file_is_told_at_once(place, tmp_path):
    PLACES[place](tmp_path / "r.jsonl")
    network = save_picture_network(tmp_path / "net.onnx")
    with untouched(tmp_path):
        for call in (load_rows, lambda path: append_row(path, ROW), lambda path: sweep(network, out=path)):
            assert "r.jsonl" in refusal(call, tmp_path / "r.jsonl")


def test_a_file_of_too_many_rows_is_told(file):
    os.truncate(file, LARGEST_FILE + 1)
    assert "r.jsonl" in refusal(load_rows, file)


@pytest.mark.parametrize("content", [b"\xff\xfe\n", b"\x80", LINE + b"\xff\n"])
def test_bytes_that_are_no_text_are_told(content, tmp_path):
    (tmp_path / "r.jsonl").write_bytes(content)
    assert "r.jsonl" in refusal(load_rows, tmp_path / "r.jsonl")


NUMBERS = [
    {"limit": float("nan")}, {"limit": 2}, {"limit": -1}, {"runs": 0}, {"runs": -1}, {"seconds": 0},
    {"seconds": float("nan")}, {"seconds": float("inf")}, {"timeout_s": float("nan")}, {"timeout_s": -1},
    {"timeout_s": float("inf")}, {"timeout_s": 1e300}, {"pictures": 0}, {"batch": [0]}, {"batch": [-1]}, {"batch": []},
    {"precision": []}, {"precision": ["fp3"]}, {"precision": "fp16"}, {"precision": [","]}, {"backend": []},
    {"backend": ["tpu"]}, {"backend": "keras"}, {"size": []},
]  # fmt: skip


@pytest.mark.parametrize("options", NUMBERS, ids=str)
def test_a_number_that_cannot_be_is_told_before_the_work(options, tmp_path):
    network = save_picture_network(tmp_path / "net.onnx")
    with untouched(tmp_path):
        refusal(sweep, network, out=tmp_path / "r.jsonl", progress=False, **options)


@pytest.mark.parametrize("name", ["nope", "nope.onnx", "nope/", "", ".", "resnet", "/dev/null"])
def test_a_network_that_is_none_is_told_before_the_work(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with untouched(tmp_path):
        assert answer(sweep, name, out=tmp_path / "r.jsonl", progress=False)
