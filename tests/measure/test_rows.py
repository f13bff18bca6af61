"""Rows of a sweep: their files, what is read from them, the advice, two runs compared, and the figures."""

import dataclasses
import itertools
import json
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from workbench.core.errors import BackendUnavailableError, InputError
from workbench.core.files import data_file
from workbench.measure import rows as rows_module
from workbench.measure.figures import pareto_figure, precision_figure, throughput_figure
from workbench.measure.row import AXES, Row, append_row, pareto, time_columns, value_of
from workbench.measure.rows import Rows, advise, compare_runs, load_recording, load_rows


def made_row(**columns):
    """A row as a measurement would leave it, with the columns that matter to a test."""
    known = {
        "network": "net", "network_sha256": "00", "precision": "fp32", "backend": "onnxruntime", "batch": 1,
        "height": 16, "width": 24, "machine": "a machine", "versions": "some versions", "date": "2026-01-02T03:04:05",
        "runner": "ONNX Runtime 1.0 (CPU)", "latency_ms": 2.0, "minimum_ms": 1.9, "p95_ms": 2.2, "runs": 20,
        "images_per_s": 500.0, "relative_l2": 0.0,
    }  # fmt: skip
    return Row(**{**known, **columns})


# Rows


def test_rows_come_back_from_their_file_in_order(tmp_path):
    rows = [made_row(batch=2), made_row(batch=1, status="failed", reason='said "no"', latency_ms=None)]
    for row in rows:
        append_row(tmp_path / "rows.jsonl", row)
    assert list(load_rows(tmp_path / "rows.jsonl")) == rows
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert all(json.loads(line)["machine"] and json.loads(line)["versions"] for line in lines)


def test_of_a_repeated_measurement_the_last_row_counts(tmp_path):
    for latency in (1.0, 3.0):
        append_row(tmp_path / "rows.jsonl", made_row(latency_ms=latency))
    append_row(tmp_path / "rows.jsonl", made_row(latency_ms=5.0, machine="another machine"))
    assert [row.latency_ms for row in load_rows(tmp_path / "rows.jsonl")] == [3.0, 5.0]


def test_an_unfinished_line_is_not_read_and_is_cut_off_by_the_next_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, made_row())
    path.write_bytes(path.read_bytes() + path.read_bytes()[:40])
    assert list(load_rows(path)) == [made_row()]
    append_row(path, made_row(batch=2))
    assert [row.batch for row in load_rows(path)] == [1, 2]
    assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("line", ["not JSON", "[1, 2]", '{"network": "net"}'])
def test_a_damaged_line_is_named(tmp_path, line):
    append_row(tmp_path / "rows.jsonl", made_row())
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(InputError, match="line 2: got something that is not a row"):
        load_rows(tmp_path / "rows.jsonl")


def test_a_row_that_claims_an_impossible_batch_is_refused(tmp_path):
    append_row(tmp_path / "rows.jsonl", made_row(batch=0))
    with pytest.raises(InputError, match="line 1: got status 'ok' and batch 0"):
        load_rows(tmp_path / "rows.jsonl")


def test_a_figure_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(InputError, match="not finite"):
        append_row(tmp_path / "rows.jsonl", made_row(relative_l2=float("inf")))
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_missing_file_of_rows_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="run a sweep first"):
        load_rows(tmp_path / "rows.jsonl")


def test_no_row_puts_the_name_of_tensorrt_on_another_runner():
    with pytest.raises(InputError, match="not TensorRT"):
        made_row(runner="TensorRT 11.4 (GPU)")


def test_a_recording_says_so_in_every_row(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "data_file", lambda name: tmp_path)
    append_row(tmp_path / "far_away.jsonl", made_row())
    (row,) = load_recording("far_away")
    assert row.where == "ONNX Runtime 1.0 (CPU), recording"
    with pytest.raises(InputError, match="expected one of: far_away"):
        load_recording("nowhere")


# What is read from rows


def test_the_times_of_calls_become_columns():
    # 95 of 100 between three samples lie 0.9 of the way from the second to the third: 2 + 0.9 * 4
    columns = {"latency_ms": 2.0, "minimum_ms": 1.0, "p95_ms": 5.6, "runs": 3, "images_per_s": 2000.0}
    assert time_columns([2.0, 6.0, 1.0], batch=4) == columns


def test_the_time_of_a_picture_is_its_share_of_the_call():
    assert made_row(latency_ms=6.0, batch=4).ms_per_image == 1.5
    assert made_row(latency_ms=None).ms_per_image is None


@pytest.mark.parametrize(
    ("columns", "measure", "score", "loss"),
    [
        ({"miou": 0.7, "miou_change": -0.02, "top1_agreement": 0.9}, "mIoU", 0.7, 0.02),
        ({"accuracy": 0.9, "accuracy_change": 0.01, "top1_agreement": 0.95}, "top-1 accuracy", 0.9, -0.01),
        ({"top1_agreement": 0.75, "agreement_of": "pixels", "relative_l2": 0.5}, "pixel agreement", 0.75, 0.25),
        ({"top1_agreement": 0.75, "agreement_of": "pictures", "relative_l2": 0.5}, "top-1 agreement", 0.75, 0.25),
        ({"relative_l2": 0.25}, "1 - relative L2", 0.75, 0.25),
        ({"relative_l2": None}, "1 - relative L2", None, None),
    ],
)
def test_a_row_is_scored_by_the_best_that_is_known_of_it(columns, measure, score, loss):
    row = made_row(precision="fp16", **columns)
    assert (row.measure, row.score, row.loss) == (measure, score, loss)
    if loss is not None:
        assert row.within(loss) and not row.within(loss - 0.001)


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_answers_without_end_are_within_no_limit(bad):
    row = made_row(precision="fp16", relative_l2=0.0, **{bad: 1})
    assert row.broken and row.ran and not row.within(1.0)
    failed = made_row(precision="fp16", status="failed")
    assert not failed.ran and not failed.within(1.0)


def test_a_measurement_repeats_another_only_if_nothing_that_matters_has_changed():
    asked = {"network": "n", "precision": "fp16", "backend": "keras", "batch": 2, "height": 8, "width": 8}
    found = {"network_sha256": "1", "judged_on": "others", "calibration": "c", "machine": "m", "versions": "v"}
    assert made_row(date="2027", latency_ms=9.0).key == made_row().key
    for name, value in (asked | found).items():
        assert (made_row(**{name: value}).key != made_row().key) and (
            (made_row(**{name: value}).point != made_row().point) == (name in asked)
        ), name
        same_group = made_row(**{name: value}).group == made_row().group
        assert same_group == (name not in asked or name == "precision"), name


def test_pareto_keeps_what_nothing_beats():
    points = {"fp32": (8.0, 0.0), "tf32": (4.0, 6e-4), "fp16": (2.0, 7e-4), "bf16": (3.0, 6e-3), "int8": (2.5, 0.1)}
    rows = [made_row(precision=name, latency_ms=ms, relative_l2=error) for name, (ms, error) in points.items()]
    rows += [made_row(precision="fp8", latency_ms=None, relative_l2=0.0), made_row(status="failed", latency_ms=0.1)]
    assert [row.precision for row in pareto(rows)] == ["fp16", "tf32", "fp32"]


def test_more_pictures_per_second_are_better():
    rows = [made_row(batch=batch, images_per_s=speed, memory_mib=size) for batch, speed, size in
            ((1, 100.0, 10.0), (2, 300.0, 20.0), (4, 200.0, 30.0))]  # fmt: skip
    assert [row.batch for row in pareto(rows, "images_per_s", "memory_mib")] == [2, 1]


def test_errors_below_the_rounding_of_float32_decide_nothing():
    rows = [made_row(latency_ms=2.0, relative_l2=0.0), made_row(latency_ms=1.0, relative_l2=4e-7, backend="keras")]
    assert [row.backend for row in pareto(rows)] == ["keras"]


def test_pareto_refuses_two_networks_and_unknown_columns():
    with pytest.raises(InputError, match="2 networks or sizes"):
        pareto([made_row(), made_row(network="other")])
    with pytest.raises(InputError, match="expected one of latency_ms"):
        pareto([made_row()], x="speed")


figures = st.tuples(st.integers(1, 20), st.integers(1, 20))


@given(st.lists(figures, min_size=1, max_size=12))
def test_every_row_is_on_the_front_or_beaten_by_it(values):
    rows = [made_row(latency_ms=float(x), relative_l2=float(y), batch=i + 1) for i, (x, y) in enumerate(values)]
    front = [(value_of(row, "latency_ms"), value_of(row, "relative_l2")) for row in pareto(rows)]
    assert len(set(front)) == len(front)
    for row in rows:
        assert any(x <= row.latency_ms and y <= row.relative_l2 for x, y in front)
    for x, y in front:
        assert not any(
            row.latency_ms <= x and row.relative_l2 <= y and (row.latency_ms, row.relative_l2) != (x, y) for row in rows
        )


def test_runs_are_held_against_each_other_point_by_point():
    slow = {"latency_ms": 4.0, "minimum_ms": 3.5, "p95_ms": 4.4}
    near = {"latency_ms": 2.1, "minimum_ms": 2.0, "p95_ms": 2.5}
    first = [made_row(batch=batch) for batch in (1, 2, 4, 8, 16)]
    second = [made_row(batch=1, **slow), made_row(batch=2, **near), made_row(batch=4, relative_l2=0.01),
              made_row(batch=8, status="failed", latency_ms=None), made_row(batch=32)]  # fmt: skip
    second = [dataclasses.replace(row, machine="a new machine") for row in second]
    found = compare_runs(first, second)
    assert [pair[0].batch for pair in found.slower] == [1]
    assert [pair[0].batch for pair in found.changed_answers] == [4, 8]
    assert ([row.batch for row in found.only_first], [row.batch for row in found.only_second]) == ([16], [32])
    text = found.to_text()
    assert "4 points in both runs: 1 slower, 0 faster, 2 with other answers" in text
    assert "machine: a machine -> a new machine" in text
    assert "only in the second run: net 16x24, batch 32, fp32, onnxruntime" in text
    assert "fails now" in text
    assert [len(pairs) for pairs in (compare_runs(second, first).slower, compare_runs(first, first).slower)] == [0, 0]
    assert "a new machine" in found._repr_html_()


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ((2.0, 1.9, 2.2), (4.0, 3.5, 4.4), "1 slower, 0 faster"),
        ((4.0, 3.5, 4.4), (2.0, 1.9, 2.2), "0 slower, 1 faster"),
        ((2.0, 1.9, 2.2), (2.1, 2.05, 4.0), "0 slower, 0 faster"),
        ((2.0, 1.9, 2.2), (4.0, 1.5, 5.0), "0 slower, 0 faster"),  # the second run was as fast at times
        ((4.0, 3.5, 4.4), (2.0, 1.9, 4.5), "0 slower, 0 faster"),  # or as slow
    ],
)
def test_a_time_has_changed_only_beyond_the_scatter_of_both_runs(first, second, said):
    times = ("latency_ms", "minimum_ms", "p95_ms")
    found = compare_runs(*([made_row(**dict(zip(times, run, strict=True)))] for run in (first, second)))
    assert f"1 point in both runs: {said}, 0 with other answers" in found.to_text()
    assert f" {second[0] / first[0]:.2f} " in found.to_text()


@pytest.mark.parametrize(
    ("first", "second", "changed"),
    [
        ({"relative_l2": 1e-5}, {"relative_l2": 1.4e-5}, ""),  # another order of summation
        ({"relative_l2": 1e-5}, {"relative_l2": 1.6e-5}, "the error"),
        ({"relative_l2": 1.6e-5}, {"relative_l2": 1e-5}, "the error"),
        ({"relative_l2": 0.0}, {"relative_l2": 1e-6}, ""),  # float32's own rounding
        ({"relative_l2": None}, {"relative_l2": 0.5}, ""),
        ({"network_sha256": "00"}, {"network_sha256": "01"}, "another network of this name"),
        ({"status": "failed"}, {}, "failed before"),
    ],
)
def test_answers_have_changed_where_more_than_rounding_has(first, second, changed):
    found = compare_runs([made_row(**first)], [made_row(**second)])
    assert bool(found.changed_answers) == bool(changed)
    assert changed in found.to_text().splitlines()[4]


def test_runs_without_a_common_point_are_refused():
    with pytest.raises(InputError, match="none in common"):
        compare_runs([made_row()], [made_row(batch=2)])


def test_the_table_shows_reasons_and_recordings():
    rows = Rows(
        [made_row(recording="far_away"), made_row(batch=2, status="failed", reason="no memory", latency_ms=None)]
    )
    lines = rows.to_text().splitlines()
    assert lines[0] == "2 points, 1 failed."
    assert "ONNX Runtime 1.0 (CPU), recording" in lines[4]
    assert "failed" in lines[5]
    assert "net 16x24, batch 2, fp32, onnxruntime did not run: no memory." in lines
    assert "no memory" in rows._repr_html_()


def test_rows_are_taken_by_place_and_by_precision():
    rows = Rows([made_row(), made_row(precision="fp16"), made_row(precision="fp16", batch=2)])
    assert (len(rows), rows[0], next(iter(rows))) == (3, rows["fp32"], rows["fp32"])
    assert list(rows[1:]) == [rows[1], rows[2]]
    with pytest.raises(InputError, match="'fp16', which 2 rows have, expected one"):
        rows["fp16"]
    with pytest.raises(KeyError):
        rows["fp64"]


def test_a_frame_has_a_line_for_each_row_or_says_how_to_get_pandas(monkeypatch):
    rows = Rows([made_row(), made_row(batch=2)])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(BackendUnavailableError, match="run: pip install pandas"):
        rows.to_frame()
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=list))
    frame = rows.to_frame()
    assert [line["batch"] for line in frame] == [1, 2]
    assert list(frame[0]) == [column.name for column in dataclasses.fields(Row)]


# Advice


def made_rows(**others):
    """Rows of made-up precisions: precision to (loss of mIoU, milliseconds or None, MiB of the plan)."""
    common = {"runner": "ONNX Runtime 1 (CPU)", "file_mib": 100.0, "images": 9, "nan": 0, "inf": 0}
    base = {"miou": 0.8, "miou_change": 0.0, "latency_ms": 10.0, "plan_mib": 100.0, "plan_note": "a builder"}
    made = [made_row(**common, **base)]
    for precision, (loss, ms, size) in others.items():
        figures = {"miou": 0.8 - loss, "miou_change": -loss, "latency_ms": ms, "plan_mib": size}
        made.append(made_row(precision=precision, real=ms is not None, plan_note="a builder", **common, **figures))
    return Rows(made)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"fp16": (0.001, 5.0, 50), "int8": (0.002, 4.0, 30)}, "Take int8: it is 2.5 times as fast as fp32 (4.00 ag"),
        ({"fp16": (0.001, 5.0, 50), "int8": (0.002, 4.0, 30)}, "; fp16 takes 5.00 ms."),
        ({"fp16": (0.001, 5.0, 50), "int8": (0.002, 7.0, 30)}, "Take fp16: it is 2.0 times as fast as fp32"),
        ({"fp16": (0.001, 5.0, 50), "int8": (0.002, 7.0, 30)}, "int8 is slower than fp16 here (7.00 against 5.00 ms)"),
        ({"fp16": (0.001, 5.0, 50), "int8": (0.002, 4.9, 30)}, "Take fp16"),  # no faster than the noise
        ({"fp16": (0.001, 9.9, 50)}, "Stay with fp32 on this machine: fp16 takes 9.90 against 10.0 ms."),
        ({"fp16": (0.0, 5.0, 50), "int8": (0.03, 2.0, 30)}, "; not int8: it loses 0.0300 of mIoU (0.01 allowed)."),
        ({"fp16": (0.0, None, 50), "int8": (0.002, 4.0, 30)}, "has no float16 arithmetic, so compare it with fp16"),
        ({"fp16": (0.0, None, 50)}, "Take fp16: mIoU stays at 0.8000, and its plan takes 50 % of fp32's; how fast"),
        ({"fp16": (0.02, 5.0, 50), "int8": (0.03, 2.0, 30)}, "Stay with fp32: fp16 loses 0.0200 of mIoU (0.01 allowed"),
        ({}, "Nothing to advise: no precision but fp32 ran here."),
    ],
)
def test_advice_takes_the_fastest_that_keeps_its_answers_and_says_why(rows, said):
    advice = advise(made_rows(**rows).rows, 0.01)
    assert not rows or advice == made_rows(**rows).verdict
    assert said in advice
    assert advice.count(". ") == 0 and advice.endswith(".")  # one sentence


def test_a_change_is_told_with_its_sign():
    rows = made_rows(fp16=(0.001, 5.0, 50), bf16=(-0.002, 6.0, 50))
    lines = {
        line.split(",")[2].strip(): line.split() for line in rows.to_text().splitlines() if line.startswith("net ")
    }
    assert "-0.0010" in lines["fp16"] and "+0.0020" in lines["bf16"]
    assert "mIoU changes by -0.0010" in rows.verdict


def test_answers_without_end_fail_a_table_and_are_counted():
    broken = made_row(precision="int8", status="failed", nan=1, inf=2, relative_l2=None)
    rows = Rows([*made_rows(fp16=(0.001, 5.0, 50)), broken])
    assert rows.judged[-1] == broken and rows.status == "fail"
    assert rows.verdict.endswith("; not int8: it answers 3 NaN or infinite values.")


def test_a_table_passes_only_if_something_was_judged_and_all_of_it_is_within_the_limit():
    assert not made_rows().passed
    assert made_rows().status == "inconclusive"
    assert made_rows(fp16=(0.01, 5.0, 50)).passed
    assert not made_rows(fp16=(0.0, 5.0, 50), int8=(0.011, 5.0, 50)).passed


def test_the_front_is_what_nothing_beats_in_both():
    rows = made_rows(fp16=(0.0, 5.0, 50), bf16=(0.004, 6.0, 60), int8=(0.003, 4.0, 30))
    front = rows.pareto("plan_mib", "loss")
    assert [row.precision for row in front] == ["int8", "fp16"]  # fp32 and bf16 are larger and no better


# Figures


def texts(figure):
    return " ".join(" ".join(text.get_text() for text in figure.findobj(Text)).split())


def batches(**columns):
    return [made_row(batch=batch, **columns) for batch in (1, 2, 4)]


@pytest.mark.parametrize("draw", [pareto_figure, throughput_figure])
def test_a_figure_of_a_recording_says_so_in_its_title_and_caption(draw):
    figure = draw(batches(recording="far_away"))
    assert "(recording: far_away)" in figure.get_suptitle()
    assert "ONNX Runtime 1.0 (CPU), recording, on a machine" in texts(figure)
    assert "recording" not in texts(draw(batches()))


def test_simulated_points_are_hollow():
    rows = [
        made_row(file_mib=4.0),
        made_row(precision="fp16", real=False, latency_ms=None, relative_l2=5e-4, file_mib=2.0),
    ]
    (axes,) = pareto_figure(rows, "file_mib").axes
    points = {line.get_marker(): line for line in axes.lines if line.get_marker() not in ("None", "")}
    assert [points[marker].get_markerfacecolor() == "white" for marker in ("o", "D")] == [False, True]


@pytest.mark.parametrize("x", sorted(set(AXES) - {"relative_l2", "max_error_of_range", "loss"}))
def test_both_axes_are_labelled_with_their_unit(x):
    rows = [made_row(**{x: value} if x != "ms_per_image" else {"latency_ms": value}) for value in (1.0, 90.0)]
    (axes,) = pareto_figure(rows, x).axes
    assert axes.get_xlabel().startswith(AXES[x])
    assert axes.get_ylabel().startswith(AXES["relative_l2"])


def test_lines_of_several_runners_are_told_apart():
    rows = [*batches(), *batches(backend="keras", runner="Keras 3 (CPU)")]
    (axes,) = throughput_figure(rows).axes
    assert {line.get_linestyle() for line in axes.lines} >= {"-", "--"}
    assert "Keras 3 (CPU), on a machine" in texts(throughput_figure(rows))


@pytest.mark.parametrize("draw", [pareto_figure, throughput_figure])
def test_a_figure_without_a_single_figure_is_refused(draw):
    with pytest.raises(InputError, match="measure some first"):
        draw([made_row(status="failed")])


def test_a_figure_never_names_tensorrt_for_what_another_runner_computed():
    with pytest.raises(InputError, match="no TensorRT runner"):
        pareto_figure([made_row(network="tensorrt_net")])


# The recording in the repository


def test_the_recorded_gpu_run_has_every_precision_and_batch_and_names_its_gpu():
    rows = load_recording("h200_precision")
    networks, precisions = ("fcn8s", "resnet50"), ("fp32", "tf32", "fp16")
    assert {(row.network, row.precision) for row in rows if row.ok} == set(itertools.product(networks, precisions))
    assert {row.batch for row in rows if row.network == "resnet50" and row.ok} == {1, 2, 4, 8, 16, 32, 64}
    for row in rows:
        assert "H200" in row.machine
        assert "H200" in row.runner
        assert "/" not in row.reason  # no folder of that machine
    # 11 bits: one rounding is at most 2**-11; six of them bound what was measured before, 7e-4. Float32 sums in another
    # order differ by about 1e-7. One row is recorded as it came: cuDNN took 139 GB for an algorithm that is 6 % off.
    allowed = {"fp32": 1e-6, "tf32": 6 * 2**-11, "fp16": 6 * 2**-11}
    wrong = [
        (row.network, row.precision, row.batch) for row in rows if row.ok and row.relative_l2 > allowed[row.precision]
    ]
    assert wrong == [("fcn8s", "fp32", 8)]


@pytest.mark.parametrize("name", ["h200_precision"])
def test_a_recording_has_the_columns_of_a_row_and_what_was_not_measured_is_null(name):
    text = data_file(f"recordings/{name}.jsonl").read_text()
    for line in map(json.loads, text.splitlines()):
        assert list(line) == [column.name for column in dataclasses.fields(Row)]
        assert line["max_error_of_range"] is None and line["nan"] is None


def test_the_precision_figure_needs_a_precision_beside_the_reference():
    with pytest.raises(InputError, match="only the reference ran"):
        precision_figure(made_rows())
    with pytest.raises(InputError, match="several networks, batches, sizes or backends"):
        precision_figure([*made_rows(fp16=(0.0, 5.0, 50)), made_row(batch=2)])


@pytest.mark.parametrize(
    ("rows", "start"),
    [
        (made_rows(fp16=(0.0, 5.0, 50)), "net, 16 x 24 pixels, answers by ONNX Runtime 1 (CPU)"),
        (batches(), "Speed over batch"),
        ([*batches(), *batches(precision="fp16")], "net, 16 x 24 pixels"),
    ],
)
def test_rows_choose_the_figure_that_shows_them(rows, start):
    assert Rows(list(rows)).figure().get_suptitle() == start
    with pytest.raises(InputError, match="expected auto, precision, pareto or throughput"):
        Rows(list(rows)).figure("pie")
