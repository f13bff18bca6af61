"""Calibrations and ranges: fields of another type, numbers that are no scales, files that are none."""

import json
import os

import pytest
from fault_cases import DEEP, VALUES, command, refusal, some, untouched, with_field
from onnx_networks import save_picture_network

from workbench.precision import calibration as module
from workbench.precision.calibration import Calibration
from workbench.precision.ranges import Ranges

GOOD = Calibration("a" * 64, "b" * 64, "minmax", 2, "unit", {"x": 1.0, "y": 0.0}, {"x": 2.0, "y": 0.0})
FIELDS = json.loads(GOOD.to_json())
CASES = [
    (name, value) for name in FIELDS for value in VALUES
    if (name, value) not in {("samples", "a number"), *((name, "a text") for name in FIELDS if name not in (
        "format", "samples", "tensors"))}
]  # fmt: skip
SCALES = [
    "[NaN, 1]", "[1, NaN]", "[-1, 1]", "[1, Infinity]", "[-Infinity, 1]", "[1e999, 1e999]", "[2, 1]", "[1]",
    "[1, 2, 3]", "[]", "1", "null", '["1", "2"]', "[true, true]", "[null, 1]", "[[1], [2]]", "{}",
]  # fmt: skip


@pytest.fixture
def file(tmp_path):
    GOOD.save(tmp_path / "scales.json")
    return tmp_path / "scales.json"


def test_a_whole_calibration_is_read(file):
    assert Calibration.load(file) == GOOD


@pytest.mark.parametrize(("name", "value"), some(CASES, 50))
def test_a_field_of_another_type_is_told(name, value, file):
    file.write_text(with_field(FIELDS, name, VALUES[value]))
    assert "scales.json" in refusal(Calibration.load, file)


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_is_missing_is_told(name, file):
    file.write_text(json.dumps({key: value for key, value in FIELDS.items() if key != name}))
    refusal(Calibration.load, file)


@pytest.mark.parametrize("scale", SCALES)
def test_what_is_no_scale_is_told(scale, file):
    file.write_text(with_field(FIELDS, "tensors", f'{{"x": {scale}}}'))
    assert "scales.json" in refusal(Calibration.load, file)


CONTENTS = {
    "nothing": b"", "a half": GOOD.to_json().encode()[:80], "bytes": b"\xff\xfe\0", "a list": b"[]", "null": b"null",
    "a number": b"5", "deep": DEEP.encode(), "deep objects": b'{"format":' * 50_000, "zeros": bytes(1000),
    "TensorRT's cache": b"TRT-100500-EntropyCalibration2\ninput: 3c010a14\n", "two": GOOD.to_json().encode() * 2,
    "another format": GOOD.to_json().replace("calibration 1", "calibration 2").encode(),
}  # fmt: skip


@pytest.mark.parametrize("content", CONTENTS)
def test_a_file_that_is_no_calibration_is_told(content, file):
    file.write_bytes(CONTENTS[content])
    assert "scales.json" in refusal(Calibration.load, file)


def test_a_calibration_cut_anywhere_is_told(file):
    content = file.read_bytes()
    for end in range(0, len(content) - 2, 5):
        file.write_bytes(content[:end])
        refusal(Calibration.load, file)


PLACES = {
    "a pipe": os.mkfifo, "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "an empty device": lambda path: path.symlink_to("/dev/null"), "a folder": lambda path: path.mkdir(),
    "nothing": lambda path: None, "a link to itself": lambda path: path.symlink_to(path),
    "a huge file": lambda path: (path.touch(), os.truncate(path, module._LARGEST_FILE + 1)),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file_of_a_sane_size_is_told_at_once(place, tmp_path):
    PLACES[place](tmp_path / "scales.json")
    assert "scales.json" in refusal(Calibration.load, tmp_path / "scales.json")


@pytest.mark.parametrize("place", ["a pipe", "an endless device", "nothing", "a folder"])
@pytest.mark.parametrize("words", ["build net.onnx -o x.plan --precision int8", "sweep net.onnx --precision int8"])
def test_the_commands_tell_it_too(place, words, tmp_path, capsys, monkeypatch):
    from workbench.engine import build

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "_choose_flavour", lambda name, targets: None)  # whatever is installed here
    monkeypatch.setattr(build, "_building_gpu", lambda flavour: None)
    save_picture_network(tmp_path / "net.onnx")
    PLACES[place](tmp_path / "scales.json")
    with untouched(tmp_path):
        status, text = command(capsys, *words.split(), "--calibration", "scales.json")
    assert status == 2
    assert "scales.json" in text


RANGE = {
    "name": "x", "node": "", "operator": "", "minimum": -1.0, "maximum": 2.0, "low": 0.1, "median": 1.0, "high": 2.0,
    "zeros": 0.0, "underflow": 0.0, "int8_lost": 0.0, "beyond": 0.0, "not_finite": 0,
}  # fmt: skip


def test_whole_ranges_are_read():
    assert Ranges.from_json(json.dumps({"network": "a", "samples": 1, "tensors": [RANGE]})).tensors[0].maximum == 2.0


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "null", "[]", DEEP, '{"network": "a"}', '{"network": "a", "samples": 1, "tensors": null}',
        '{"network": "a", "samples": 1, "tensors": [null]}', '{"network": "a", "samples": "x", "tensors": []}',
        '{"network": "a", "samples": 1, "tensors": [{}]}', '{"network": "a", "samples": null, "tensors": []}',
        '{"network": "a", "samples": 1, "tensors": ' + DEEP + "}",
        *(json.dumps({"network": "a", "samples": 1, "tensors": [{**RANGE, name: None}]}) for name in RANGE),
        *(json.dumps({"network": "a", "samples": 1, "tensors": [{**RANGE, "maximum": value}]}) for value in (
            float("nan"), float("inf"), "5", True, [1], {}
        )),
    ],
)  # fmt: skip
def test_ranges_that_are_none_are_told(text):
    refusal(Ranges.from_json, text)
