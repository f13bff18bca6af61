"""Plans and their manifests, and the records of the cache: damaged, foreign, endless."""

import dataclasses
import hashlib
import json
import os

import pytest
from fault_cases import DEEP, VALUES, refusal, some, with_field

from workbench.core.errors import EngineLoadError
from workbench.engine import cache, load
from workbench.engine.build import save_engine
from workbench.engine.commands import build_command
from workbench.engine.plan import Plan, PlanManifest, manifest_path

DATA = b"vtrt" + bytes(range(256)) * 4
MANIFEST = PlanManifest(
    "tensorrt_rtx", "1.7.1.116", None, "", ("sm89",), "net.onnx", "ab" * 32, hashlib.sha256(DATA).hexdigest(),
    len(DATA), "int8", ({"input": ((1, 3, 8, 8), (4, 3, 8, 8), (8, 3, 8, 8))},),
    options={"workspace_bytes": 1 << 28, "tf32": False, "keep": ["a"], "version_compatible": False},
    layers={"CONVOLUTION": 3}, types={"CONVOLUTION": {"float16": 2}}, converted=True,
    kept=({"node": "last", "operator": "Conv", "reason": "you keep it"},), qdq_pairs=1, calibration="ef" * 32,
    kernels=({"name": "k", "kind": "conv", "nodes": ["last"]},), memory={"activation_bytes": 1}, workbench="0.1.0",
)  # fmt: skip
FIELDS = json.loads(MANIFEST.to_json())
# JSON of a value that the field may have: nothing is wrong with it.
FITTING = {
    ("compute_capability", "null"), ("compute_capability", "a text"), ("plan_bytes", "a number"),
    ("qdq_pairs", "a number"), ("converted", "true"),
    *((name, "a text") for name in (
        "flavour", "version", "gpu_name", "onnx_name", "onnx_sha256", "plan_sha256", "precision", "calibration",
        "workbench", "built",
    )),
    ("options", "an object"),
}  # fmt: skip
CASES = [(name, value) for name in FIELDS if name != "format" for value in VALUES if (name, value) not in FITTING]


@pytest.fixture
def plan(tmp_path):
    return save_engine(Plan(DATA, MANIFEST), tmp_path / "x.plan")


def test_a_whole_manifest_is_read():
    assert PlanManifest.from_json(json.dumps(FIELDS)) == PlanManifest.from_json(MANIFEST.to_json())
    assert build_command(PlanManifest.from_json(MANIFEST.to_json()), "x.plan").startswith("workbench build")


@pytest.mark.parametrize(("name", "value"), some(CASES, 70))
def test_a_field_of_another_type_is_told(name, value):
    refusal(PlanManifest.from_json, with_field(FIELDS, name, VALUES[value]))


@pytest.mark.parametrize("value", ["null", '"x"', "[]", "-0.5", "{}"])
@pytest.mark.parametrize("name", ["workspace_bytes", "keep", "version_compatible", "tf32"])
def test_an_option_of_another_type_is_told(name, value):
    if (name, value) == ("keep", "[]"):
        value = "[5]"
    changed = {**FIELDS, "options": {**FIELDS["options"], name: json.loads(value)}}
    refusal(PlanManifest.from_json, json.dumps(changed))


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(PlanManifest)][:11])
def test_a_field_that_is_missing_is_told(name):
    refusal(PlanManifest.from_json, json.dumps({key: value for key, value in FIELDS.items() if key != name}))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", '"x"', DEEP, "\0", '{"a":' * 50_000])
def test_a_text_that_is_no_manifest_is_told(text):
    refusal(PlanManifest.from_json, text)


@pytest.mark.parametrize(
    "profiles",
    ["[]", "[[]]", '[{"x": []}]', '[{"x": [1, 2, 3]}]', '[{"x": [["a"], ["a"], ["a"]]}]', '[{"x": [[1], [1]]}]', "{}"],
)
def test_profiles_that_are_none_are_told(profiles):
    refusal(PlanManifest.from_json, with_field(FIELDS, "profiles", profiles))


def grow(path):
    path.write_bytes(DATA + b"x")


def cut(path):
    path.write_bytes(DATA[:-1])


def flip(path):
    path.write_bytes(DATA[:100] + b"\xff" + DATA[101:])


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


def link_to(target):
    def link(path):
        path.unlink()
        path.symlink_to(target)

    return link


def make_folder(path):
    path.unlink()
    path.mkdir()


def make_huge(path):
    os.truncate(path, load._LARGEST_PLAN + 1)


def spoil_manifest(content):
    return lambda path: manifest_path(path).write_bytes(content)


def grow_manifest(path):
    os.truncate(manifest_path(path), load._LARGEST_MANIFEST + 1)


DAMAGES = {
    "longer": grow, "shorter": cut, "a flipped byte": flip, "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(), "a pipe": make_pipe, "a folder": make_folder, "huge": make_huge,
    "an endless device": link_to("/dev/zero"), "an empty device": link_to("/dev/null"),
    "a link to itself": lambda path: link_to(path)(path), "a manifest of bytes": spoil_manifest(b"\xff\xfe\x00"),
    "half a manifest": spoil_manifest(MANIFEST.to_json().encode()[:200]), "an empty manifest": spoil_manifest(b""),
    "a deep manifest": spoil_manifest(DEEP.encode()), "a huge manifest": grow_manifest,
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_plan_is_told_before_any_driver_is_asked(damage, plan):
    DAMAGES[damage](plan)
    with pytest.raises(EngineLoadError) as error:
        load._read_plan(plan)
    refusal(load.load_engine, plan)
    assert plan.name in str(error.value) or "manifest" in str(error.value)


def test_of_a_plan_of_another_size_than_its_manifest_says_nothing_is_read(plan, monkeypatch):
    os.truncate(plan, 1 << 36)
    with pytest.raises(EngineLoadError, match="damaged"):  # 64 GiB in memory would end the test
        load._read_plan(plan)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 0, -1, 1e300])
def test_a_time_limit_is_seconds(number, tmp_path):
    from workbench.engine.build import build_engine

    assert "seconds" in refusal(build_engine, tmp_path / "net.onnx", timeout_s=number)


RECORDS = {
    "empty": b"", "half": b'{"crc32": 1, "man', "deep": DEEP.encode(), "a list": b"[]", "null": b"null",
    "null manifest": b'{"crc32": CRC, "manifest": null}', "empty manifest": b'{"crc32": CRC, "manifest": {}}',
    "no manifest": b'{"crc32": CRC}', "no sum": b"{}", "bytes": b"\xff\xfe", "deep manifest": None,
    "null options": b'{"crc32": CRC, "manifest": %b}' % json.dumps({**FIELDS, "options": None}).encode(),
}  # fmt: skip


@pytest.mark.parametrize("content", RECORDS)
def test_a_damaged_record_of_the_cache_is_a_miss(content, tmp_path, monkeypatch):
    import zlib

    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    cache.write_entry("key", Plan(DATA, MANIFEST))
    assert cache.read_entry("key").data[:] == DATA
    deep = b'{"crc32": CRC, "manifest": {"options": ' + DEEP.encode() + b"}}"
    record = (deep if RECORDS[content] is None else RECORDS[content]).replace(b"CRC", str(zlib.crc32(DATA)).encode())
    (cache.cache_folder() / "key" / "entry.json").write_bytes(record)
    assert cache.read_entry("key") is None
