"""Timings come from a clock that the test holds: nothing here depends on the speed of a machine."""

import json

import numpy as np
import pytest

from workbench.core.contract import Runner, RunnerInfo, TensorSpec
from workbench.core.errors import FeedError, InputError
from workbench.measure.latency import COMPUTE, END_TO_END, LatencyRow, Timing, format_ms, measure, time_runners

SPEC = TensorSpec("input", (None, 2), "float32")
FEED = {"input": np.zeros((1, 2), np.float32)}


class Clock:
    """A clock in nanoseconds that only moves when it is told to."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now

    def advance(self, milliseconds):
        self.now += round(milliseconds * 1e6)


class TimedRunner(Runner):
    """Takes a known time on the given clock and writes down each call."""

    def __init__(self, backend, clock, latency_ms, log):
        super().__init__(RunnerInfo(backend, "1.0", "CPU"), {"input": SPEC}, {"output": SPEC})
        self.clock, self.latency_ms, self.log = clock, latency_ms, log

    def _infer(self, feed):
        self.log.append(self.info.backend)
        self.clock.advance(self.latency_ms)
        return {"output": feed["input"] + 1}


@pytest.fixture
def clock(monkeypatch):
    """The test's clock; pauses only move it, so a pause that were timed would show in the samples."""
    clock = Clock()
    monkeypatch.setattr("time.sleep", lambda seconds: clock.advance(1000 * seconds))
    return clock


def two_runners(clock, log):
    return [TimedRunner("keras", clock, 8, log), TimedRunner("onnxruntime", clock, 2, log)]


def test_measure_leaves_out_the_warm_up(clock):
    latencies = iter([100, 50, 3, 1, 8])
    timing = measure(lambda: clock.advance(next(latencies)), name="f", warmup=2, runs=3, clock=clock)
    assert timing == Timing("f", (3.0, 1.0, 8.0))
    assert (timing.n, timing.median_ms, timing.minimum_ms) == (3, 3.0, 1.0)  # the mean is 4


def test_what_a_call_returns_is_let_go_after_the_clock_was_read(clock):
    class Slow:
        def __del__(self):
            clock.advance(100)

    def call():
        clock.advance(2)
        return Slow()

    assert measure(call, warmup=1, runs=2, clock=clock).samples_ms == (2.0, 2.0)


def test_the_verdict_is_on_the_first_stage(clock):
    table = time_runners(two_runners(clock, []), FEED, end_to_end=lambda runner: clock.advance(1), clock=clock)
    assert table.verdict == "ONNX Runtime 1.0 (CPU): 2.00 ms per call, compute, 4.00 times as fast as Keras 1.0 (CPU)."


def test_measure_uses_a_real_clock_by_default():
    timing = measure(lambda: None, runs=2)
    assert timing.n == 2 and timing.minimum_ms >= 0


def test_p95_is_linear_between_samples():
    # 0..100: the 95th percentile of 101 evenly spaced samples is 95 exactly.
    assert Timing("f", tuple(float(i) for i in range(101))).p95_ms == pytest.approx(95)


@pytest.mark.parametrize(("n", "given"), [(499, False), (500, True)])
def test_p99_needs_500_samples(n, given):
    assert (Timing("f", (1.0,) * n).p99_ms is not None) == given


@pytest.mark.parametrize(("warmup", "runs"), [(-1, 1), (0, 0)])
def test_bad_counts_are_refused(warmup, runs):
    with pytest.raises(InputError, match="expected warmup of 0 or more and runs of 1 or more"):
        measure(lambda: None, warmup=warmup, runs=runs)


def test_a_timing_without_samples_is_refused():
    with pytest.raises(InputError, match="got no samples for 'f'"):
        Timing("f", ())


def test_runners_are_timed_in_turn(clock):
    log = []
    time_runners(two_runners(clock, log), FEED, warmup=1, runs=2, clock=clock)
    assert log == ["keras", "onnxruntime"] * 3


def test_a_runner_rests_before_each_call_and_the_rest_is_not_timed(clock):
    table = time_runners(two_runners(clock, []), FEED, warmup=0, runs=2, pause_s=0.5, clock=clock)
    assert clock.now == 1e6 * (4 * 500 + 2 * (8 + 2))
    assert [row.timing.samples_ms for row in table.rows] == [(8.0, 8.0), (2.0, 2.0)]


def test_a_drifting_machine_meets_all_runners(clock):
    log = []
    a, b = two_runners(clock, log)
    a.latency_ms = b.latency_ms = 1

    def slow_down(done, total):
        a.latency_ms = b.latency_ms = 1 + done

    table = time_runners([a, b], FEED, warmup=0, runs=9, clock=clock, progress=slow_down)
    assert table.rows[0].timing.samples_ms == table.rows[1].timing.samples_ms


def test_compute_and_end_to_end_are_kept_apart(clock):
    def whole(runner):
        clock.advance(10)
        return runner.infer(FEED)["output"].argmax()

    table = time_runners(two_runners(clock, []), FEED, end_to_end=whole, runs=2, clock=clock)
    got = [(row.stage, row.info.backend, row.timing.median_ms, table.speedup(row)) for row in table.rows]
    assert got == [
        (COMPUTE, "keras", 8.0, 1.0),
        (COMPUTE, "onnxruntime", 2.0, 4.0),
        (END_TO_END, "keras", 18.0, 1.0),
        (END_TO_END, "onnxruntime", 12.0, 1.5),
    ]


def test_each_runner_may_have_its_own_feed_and_making_it_is_not_timed(clock):
    made = []

    def make_feed(runner):
        clock.advance(1000)
        made.append(runner.info.backend)
        return FEED

    table = time_runners(two_runners(clock, []), make_feed, runs=1, clock=clock)
    assert made == ["keras", "onnxruntime"]
    assert [row.timing.median_ms for row in table.rows] == [8.0, 2.0]


def test_progress_is_told_after_each_round(clock):
    told = []
    time_runners(two_runners(clock, []), FEED, warmup=1, runs=2, clock=clock, progress=lambda *seen: told.append(seen))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_wrong_feed_is_refused_before_anything_is_timed(clock):
    with pytest.raises(FeedError, match="expected float32"):
        time_runners(two_runners(clock, []), {"input": np.zeros((1, 3), np.float32)}, clock=clock)


def test_runners_of_one_name_need_a_note(clock):
    a, b = (TimedRunner("onnxruntime", clock, 1, []) for _ in range(2))
    with pytest.raises(InputError, match="got two runners named ONNX Runtime"):
        time_runners([a, b], FEED, clock=clock)
    table = time_runners({"fp32": a, "fp16": b}, FEED, runs=1, clock=clock)
    assert [row.name for row in table.rows] == [
        "ONNX Runtime 1.0 (CPU), fp32",
        "ONNX Runtime 1.0 (CPU), fp16",
    ]


def test_no_runner_is_refused():
    with pytest.raises(InputError, match="got no runners"):
        time_runners([], FEED)


def test_rows_carry_the_runners_own_name_whatever_the_dict_says(clock):
    keras, onnx = two_runners(clock, [])
    table = time_runners({"keras": keras, "fast": onnx}, FEED, runs=1, clock=clock)
    assert [row.name for row in table.rows] == ["Keras 1.0 (CPU)", "ONNX Runtime 1.0 (CPU), fast"]


def test_a_note_may_not_call_another_runner_tensorrt(clock):
    keras, onnx = two_runners(clock, [])
    with pytest.raises(InputError, match="expected no mention of TensorRT"):
        time_runners({"keras": keras, "TensorRT": onnx}, FEED, runs=1, clock=clock)
    row = LatencyRow(RunnerInfo("tensorrt", "10", "GPU"), "TensorRT fp16", COMPUTE, Timing("f", (1.0,)))
    assert row.name == "TensorRT 10 (GPU), TensorRT fp16"


def test_text_shows_each_figure_with_its_unit(clock):
    table = time_runners(two_runners(clock, []), FEED, runs=3, clock=clock)
    verdict, _, header, _, keras, onnx, _, machine = table.to_text().splitlines()
    assert verdict == "ONNX Runtime 1.0 (CPU): 2.00 ms per call, compute, 4.00 times as fast as Keras 1.0 (CPU)."
    assert header.split("  ")[0] == "stage" and "median ms" in header and "times as fast" in header
    assert " ".join(keras.split()) == "compute Keras 1.0 (CPU) 8.00 8.00 - 8.00 3 1.00x"
    assert " ".join(onnx.split()) == "compute ONNX Runtime 1.0 (CPU) 2.00 2.00 - 2.00 3 4.00x"
    assert machine.endswith(table.date)


def test_json_names_machine_versions_and_date_and_keeps_the_samples(clock):
    table = time_runners(two_runners(clock, []), FEED, runs=3, clock=clock)
    whole = json.loads(table.to_json())
    assert set(whole) == {"format", "date", "machine", "versions", "rows"}
    assert set(whole["machine"]) == {"processor", "cores", "system"}
    assert whole["versions"]["NumPy"] == np.__version__ and whole["versions"]["ONNX Runtime"] == "1.0"
    assert whole["rows"][0]["samples_ms"] == [8.0, 8.0, 8.0] and whole["rows"][0]["p99_ms"] is None


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0.0, "0.00"),
        (0.00012, "0.000120"),
        (0.5, "0.500"),
        (9.999, "10.00"),
        (99.5, "99.5"),
        (12345.6, "12346"),
    ],
)
def test_times_are_written_without_an_exponent(milliseconds, text):
    assert format_ms(milliseconds) == text
