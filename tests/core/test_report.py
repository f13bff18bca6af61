"""What every report is made of: shares, counts, tables, and remarks that say nothing twice."""

import json
import math
from dataclasses import dataclass

import pytest

from workbench.core.report import Report, Table, count, finite_or_none, percent, text_table


@dataclass(frozen=True)
class Told(Report):
    verdict: str
    status: str
    value: float = math.nan

    def _tables(self):
        return [Table(("name", "n"), [("a", "10"), ("longer", "2")], "two rows")]

    def _remarks(self):
        return ["all is well", "a remark", "a remark"]


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100 %"), (1 - 1e-12, "99.9999 %"), (0.999, "99.9 %"), (0.123456789, "12.3457 %"), (0.0, "0 %")],
)
def test_a_share_has_six_digits_and_only_all_is_100_percent(share, text):
    assert percent(share) == text


def test_only_one_is_singular():
    assert [count(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]


def test_the_text_is_verdict_aligned_tables_and_each_remark_that_is_new():
    assert Told("PASS: all is well.", "pass").to_text().splitlines() == [
        "PASS: all is well.", "", "two rows", "name    n", "------  --", "a       10", "longer  2", "", "a remark",
    ]  # fmt: skip
    assert text_table(("a",), []) == ["a", "-"]


def test_only_a_pass_has_passed():
    assert [Told("", status).passed for status in ("pass", "fail", "inconclusive")] == [True, False, False]


def test_json_has_null_for_what_is_not_finite():
    assert finite_or_none({"a": [1.5, math.nan], "b": (math.inf, -math.inf, 2)}) == {
        "a": [1.5, None],
        "b": [None, None, 2],
    }
    content = json.loads(Told("v", "pass").to_json())
    assert content == {"format": "workbench report 1", "passed": True, "verdict": "v", "status": "pass", "value": None}
