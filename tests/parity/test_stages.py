"""The chain of stages: which ones there are, in which order they are compared, and what is said of the others."""

import json
import shutil

import numpy as np
import onnx
import pytest
import tf1_networks
from networks import small_network, two_input_network, upsampling_network
from odd_networks import mixed
from onnx import helper, numpy_helper
from onnx_networks import save_network

from workbench.cli import main as cli
from workbench.core.errors import BackendUnavailableError, EngineBuildError, ExportError, FeedError, InputError
from workbench.core.tolerance import Tolerance
from workbench.export.keras_model import keras_to_onnx, keras_to_pb, write_pb
from workbench.models.freezing import freeze
from workbench.parity import stages
from workbench.parity.stages import verify


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The small network's ONNX file, and copies whose answers are off by 1, 2 and 3 steps."""
    folder = tmp_path_factory.mktemp("stages")
    path = keras_to_onnx(small_network(), folder / "step0.onnx", progress=False)
    paths = [path]
    for step in (1, 2, 3):
        model = onnx.load(path)
        last = next(node for node in model.graph.node if "output" in node.output)
        last.output[0] = "scores"
        model.graph.node.append(helper.make_node("Add", ["scores", "step"], ["output"]))
        model.graph.initializer.append(numpy_helper.from_array(np.float32(step * BIAS_STEP), "step"))
        onnx.save(model, folder / f"step{step}.onnx")
        paths.append(folder / f"step{step}.onnx")
    return paths


BIAS_STEP = 0.002


def judge(*targets, **options):
    return verify(*targets, progress=False, **options)


@pytest.fixture
def no_engine(monkeypatch):
    """A machine without a GPU."""

    def build(*arguments):
        raise BackendUnavailableError("no NVIDIA driver was found; install NVIDIA's driver")

    monkeypatch.setattr(stages, "_build", build)


def test_an_onnx_file_alone_is_compared_with_its_fixed_form(files, no_engine):
    report = judge(files[0])
    assert report.passed, report.to_text()
    assert [stage.name for stage in report.stages] == ["ONNX", "fixed ONNX", "engine"]
    assert report.stages[-1].skipped.startswith("no NVIDIA driver")
    assert "Not run: engine." in report.verdict
    assert "no NVIDIA driver" in report.to_text()


def test_a_network_with_two_inputs_and_outputs_goes_through_every_stage(no_engine):
    report = judge(two_input_network())
    assert report.passed, report.to_text()
    assert all({output.name for output in parity.outputs} == {"total", "product"} for parity in report.reports)


def test_small_errors_that_add_up_are_not_blamed_on_a_stage(files):
    """Each step is within the limit, the sum of three is not."""
    ends = judge(files[0], files[3])
    step = judge(files[0], files[1]).reports[0].outputs[0].max_relative_error
    assert ends.reports[0].outputs[0].max_relative_error > 2.5 * step
    allowed = Tolerance(1.5 * step, 1.5 * step, 0.0)
    report = judge(*files, tolerance=allowed)
    assert [parity.status for parity in report.reports] == ["pass"] * 3
    assert report.status == "fail"
    assert report.stage_at_fault is None
    assert "add up" in report.verdict


def test_the_first_of_two_stages_at_fault_is_named(files):
    report = judge(files[0], files[3], files[1])
    assert report.stage_at_fault == "step3.onnx"
    assert "differs from step0.onnx" in report.verdict


def test_a_network_that_cannot_be_converted_names_the_stage_and_the_reason(monkeypatch):
    def refuse(frozen, path):
        raise ExportError("tf2onnx cannot convert this graph: no operator for Strange")

    monkeypatch.setattr(stages, "frozen_to_onnx", refuse)
    report = judge(two_input_network())
    assert (report.status, report.stage_at_fault) == ("fail", "raw ONNX")
    assert "no operator for Strange" in report.verdict
    assert [parity.status for parity in report.reports] == ["pass"], "the frozen graph was still compared"


def save_strange(path):
    """A valid ONNX file with an operator that ONNX Runtime does not have."""
    shape = ("float32", ("batch", 8))
    node = helper.make_node("Strange", ["input"], ["output"], domain="my.own")
    save_network(path, [helper.make_node("Neg", ["input"], ["output"])], {"input": shape}, {"output": shape}, {})
    model = onnx.load(path)
    model.graph.node[0].CopyFrom(node)
    model.opset_import.append(helper.make_opsetid("my.own", 1))
    onnx.save(model, path)
    return path


def test_an_exported_file_that_onnx_runtime_refuses_is_the_stage_at_fault(tmp_path, monkeypatch, no_engine, capsys):
    monkeypatch.setattr(stages, "frozen_to_onnx", lambda frozen, path: save_strange(path))
    two_input_network().save(tmp_path / "my.keras")
    assert cli.main(["verify", str(tmp_path / "my.keras")]) == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("FAIL: the stage raw ONNX could not be made: ONNX Runtime cannot run")


@pytest.mark.parametrize("names", [("strange",), ("step0", "strange"), ("strange", "step0"), ("step0", "cut")])
def test_a_file_that_cannot_be_loaded_never_ends_in_a_pass(files, tmp_path, no_engine, capsys, names):
    (tmp_path / "cut.onnx").write_bytes(files[0].read_bytes()[:-1000])
    save_strange(tmp_path / "strange.onnx")
    shutil.copy(files[0], tmp_path)
    assert cli.main(["verify", *(str(tmp_path / f"{name}.onnx") for name in names)]) in (1, 2)
    told = capsys.readouterr()
    assert "PASS" not in told.out
    assert "Strange" in told.out + told.err or "cut.onnx" in told.err


def test_an_engine_that_tensorrt_refuses_is_the_stage_at_fault(files, monkeypatch):
    def refuse(*arguments):
        raise EngineBuildError("TensorRT cannot take the node Strange")

    monkeypatch.setattr(stages, "_build", refuse)
    report = judge(files[0])
    assert (report.status, report.stage_at_fault) == ("fail", "engine")
    assert "TensorRT cannot take the node Strange" in report.verdict


def test_the_report_reads_as_text_html_and_json(files):
    report = judge(files[0], files[0], files[3])
    content = json.loads(report.to_json())
    assert (content["status"], content["passed"], content["stage_at_fault"]) == ("fail", False, "step3.onnx")
    assert content["divergence"]["layer"]["layer"] == report.divergence.layer.layer
    assert report.verdict in report.to_text().splitlines()[0]
    html = report._repr_html_()
    assert "step3.onnx" in html
    assert "<table" in html


def test_the_files_made_on_the_way_are_kept_where_asked(tmp_path, no_engine):
    judge(two_input_network(), work_folder=tmp_path / "kept")
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["fixed.onnx", "raw.onnx"]


def test_an_open_height_and_width_is_asked_for_before_a_stage_is_blamed(no_engine):
    with pytest.raises(InputError, match="give --spatial H W"):
        judge(upsampling_network())
    report = judge(upsampling_network(), spatial=(40, 56))
    assert len(report.reports) == 3


def test_an_engine_alone_is_refused():
    with pytest.raises(InputError, match="give that first"):
        judge("model.plan")


def test_a_stage_that_was_built_and_cannot_run_here_says_both(files, monkeypatch):
    def build(onnx_path, path):
        path.write_bytes(b"x" * 12_100_000)
        return path

    def open_runner(target):
        if str(target).endswith(".plan"):
            raise BackendUnavailableError("no NVIDIA GPU")
        return opened(target)

    opened = stages.open_runner
    monkeypatch.setattr(stages, "_build", build)
    monkeypatch.setattr(stages, "open_runner", open_runner)
    report = judge(files[0])
    assert report.passed and "Not run: engine." in report.verdict
    row = next(line for line in report.to_text().splitlines() if line.startswith("engine"))
    assert "not run " in row and "built, 12.1 MB, not run: no NVIDIA GPU" in row
    assert json.loads(report.to_json())["stages"][-1]["made"] == "built, 12.1 MB"


def test_the_report_is_one_table_and_says_nothing_twice(files, no_engine):
    report = judge(files[0])
    lines = [line for line in report.to_text().splitlines() if line]
    assert len(lines) == len(set(lines))
    assert lines[0] == report.verdict
    assert lines[1].split() == ["stage", "computed", "by", "result", "max", "error", "rounding", "allowed", "note"]
    assert sum(line.startswith("---") for line in lines) == 1


def test_the_full_table_of_two_neighbours_stands_only_where_they_differ(files):
    text = judge(*files[:2], files[3], tolerance=Tolerance(1.0, 1.0, 0.0)).to_text()
    assert "relative L2" not in text
    failed = judge(files[0], files[0], files[3])
    text = failed.to_text()
    assert text.count("relative L2") == 1
    assert text.index("stage ") < text.index(failed.reports[1].verdict) < text.index("relative L2")
    assert text.count(failed.divergence.verdict) == 1


def test_the_figure_shows_the_layers_or_else_the_chain(files, no_engine):
    passed, failed = judge(*files[:2], tolerance=Tolerance(1.0, 1.0, 0.0)), judge(files[0], files[3])
    chain, layers = passed.figure().axes[0], failed.figure().axes[0]
    assert [label.get_text() for label in chain.get_yticklabels()] == ["step1.onnx"]
    assert "depth" in layers.get_xlabel() and failed.divergence.reference.name in layers.get_title(loc="left")
    assert "largest error" in chain.get_xlabel()


def test_no_key_of_the_json_is_just_called_error(files):
    def keys(value):
        if isinstance(value, dict):
            yield from value
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from keys(inner)

    found = set(keys(json.loads(judge(files[0], files[3]).to_json())))
    assert {"max_error_of_range", "max_error_of_range_before", "max_relative_error"} <= found
    assert "error" not in found


def test_two_models_without_an_onnx_file_are_measured_on_one_that_is_made():
    report = judge(two_input_network(), two_input_network())
    assert report.passed and all(output.noise > 0 for output in report.reports[0].outputs)


def test_where_nothing_can_be_measured_the_limits_are_fixed_and_a_note_says_so(monkeypatch):
    def refuse(*arguments, **options):
        raise ExportError("no operator for Strange")

    monkeypatch.setattr(stages, "convert", refuse)
    report = judge(two_input_network(), two_input_network())
    assert report.passed and report.reports[0].outputs[0].noise is None
    assert "was not measured, so the limits are fixed: neither of the two is an ONNX file" in report.to_text()


def test_a_network_in_half_floats_is_judged_by_the_rounding_of_half_floats(no_engine):
    report = judge(mixed("mixed_float16"))
    assert report.passed, report.to_text()
    assert {parity.tolerance.unit for parity in report.reports} == {"float16"}
    assert report.reports[1].outputs[0].max_relative_error > 2e-6  # what float32 would be allowed at least


def test_a_misspelt_input_of_a_feed_is_refused_and_not_taken_by_position():
    feed = {name: np.ones((1, 8), np.float32) for name in ("left", "rihgt")}
    with pytest.raises(FeedError, match="'right' is missing"):
        judge(two_input_network(), two_input_network(), feeds=[("mine", feed)])


@pytest.fixture(scope="module")
def graph_files(tmp_path_factory):
    """The small network as a frozen graph, as a SavedModel and as a checkpoint of TensorFlow 1."""
    folder = tmp_path_factory.mktemp("graphs")
    keras_to_pb(small_network(), folder / "graph.pb")
    small_network().export(folder / "saved", verbose=False)
    checkpoint = tf1_networks.save(tf1_networks.build(), folder)
    return {"graph": folder / "graph.pb", "saved": folder / "saved", "checkpoint": checkpoint}


@pytest.mark.parametrize("kind", ["graph", "saved", "checkpoint"])
def test_a_tensorflow_graph_alone_goes_through_every_stage(graph_files, kind, no_engine, capsys):
    report = judge(graph_files[kind])
    assert report.passed, report.to_text()
    assert [stage.name for stage in report.stages] == ["TensorFlow graph", "raw ONNX", "fixed ONNX", "engine"]
    assert cli.main(["verify", str(graph_files[kind])]) == 0
    assert capsys.readouterr().out.startswith("PASS: every stage")


def test_a_graph_with_an_open_height_and_width_asks_for_them(tmp_path, no_engine):
    frozen = freeze(upsampling_network(), spatial=(40, 56))
    placeholder = next(node for node in frozen.graph_def.node if node.name in frozen.inputs)
    for dim in placeholder.attr["shape"].shape.dim[1:3]:
        dim.size = -1
    write_pb(frozen, tmp_path / "open.pb")
    with pytest.raises(InputError, match="give --spatial H W"):
        judge(tmp_path / "open.pb")
    assert judge(tmp_path / "open.pb", spatial=(40, 56)).passed
