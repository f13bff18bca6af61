"""A plan's manifest: what is written is what is read, and damage is told."""

import json
from dataclasses import replace

import pytest

from workbench.core.errors import EngineLoadError
from workbench.engine.plan import Plan, PlanManifest, manifest_path

MANIFEST = PlanManifest(
    flavour="tensorrt_rtx",
    version="1.7.1.116",
    compute_capability=None,
    gpu_name="",
    targets=("sm89", "sm120"),
    onnx_name="small.onnx",
    onnx_sha256="ab" * 32,
    plan_sha256="cd" * 32,
    plan_bytes=12,
    precision="fp32",
    profiles=({"input": ((1, 3, 8, 8), (4, 3, 8, 8), (8, 3, 8, 8))},),
    options={"workspace_bytes": 1 << 28, "tf32": False},
    layers={"CONVOLUTION": 3},
    types={"CONVOLUTION": {"float16": 2, "float32": 1}},
    converted=True,
    kept=({"node": "last", "operator": "Conv", "reason": "you keep it"},),
    qdq_pairs=1,
    calibration="ef" * 32,
    workbench="0.1.0",
    built="2026-01-01T00:00:00+00:00",
)


def test_a_manifest_survives_json():
    assert PlanManifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_a_manifest_with_entries_of_a_later_version_is_read():
    values = {**json.loads(MANIFEST.to_json()), "of_tomorrow": 1}
    assert PlanManifest.from_json(json.dumps(values)) == MANIFEST


def test_a_manifest_from_before_the_precisions_is_read():
    values = json.loads(MANIFEST.to_json())
    for name in ("types", "converted", "kept", "qdq_pairs", "calibration"):
        del values[name]
    old = PlanManifest.from_json(json.dumps(values))
    assert (old.types, old.converted, old.kept, old.qdq_pairs, old.calibration) == ({}, False, (), 0, "")


@pytest.mark.parametrize(
    "text",
    ["", "no json", "[]", "{}", "null", MANIFEST.to_json()[:-40], MANIFEST.to_json().replace('"tensorrt_rtx"', "3")],
)
def test_a_damaged_manifest_is_one_sentence(text):
    with pytest.raises(EngineLoadError, match=r"the manifest is damaged .*workbench build"):
        PlanManifest.from_json(text)


@pytest.mark.parametrize("profiles", ["three", [{"input": [[1], [2]]}], [{"input": 5}]])
def test_a_manifest_with_damaged_profiles_is_one_sentence(profiles):
    values = {**json.loads(MANIFEST.to_json()), "profiles": profiles}
    with pytest.raises(EngineLoadError, match="the manifest is damaged"):
        PlanManifest.from_json(json.dumps(values))


def test_host_code_is_in_version_compatible_plans_only():
    assert not MANIFEST.version_compatible
    assert replace(MANIFEST, options={"version_compatible": True}).version_compatible


def test_the_manifest_lies_beside_the_plan(tmp_path):
    assert manifest_path(tmp_path / "x.plan") == tmp_path / "x.plan.json"


def test_a_plan_does_not_print_its_bytes():
    assert "data" not in repr(Plan(b"secret weights", MANIFEST))
