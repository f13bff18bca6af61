"""Files of the user: no output is an input, nothing is overwritten that is not ours, and what cannot be is told before
the work."""

import dataclasses
import json
import os
import resource
import signal
import socket

import fault_cases
import numpy as np
import onnx
import pytest
from fault_cases import command, refusal, some, untouched
from matplotlib.figure import Figure
from onnx_networks import save_picture_network
from PIL import Image
from street_networks import picture, save_street_network

from workbench.cli.segment import segment_folder
from workbench.core.drawing import save_figure
from workbench.core.errors import OutputError
from workbench.core.files import atomic_path, check_outputs, kind_of, overwriting
from workbench.core.report import Report
from workbench.engine.build import build_engine, save_engine
from workbench.engine.plan import Plan, PlanManifest
from workbench.export.conversion import convert
from workbench.export.keras_model import pb_to_onnx
from workbench.measure.row import Row, append_row
from workbench.measure.rows import load_rows
from workbench.measure.sweep import sweep
from workbench.onnx_graph.fuse import fuse_argmax, fuse_preprocessing
from workbench.onnx_graph.mend import fix
from workbench.precision.calibration import Calibration
from workbench.precision.half import to_bf16, to_fp16
from workbench.precision.quantize import quantize_int8
from workbench.precision.rounding import rounded_copy

ROW = Row("net", "00", "fp32", "onnxruntime", 1, 16, 24, "a machine", "some versions", "2026-01-02T03:04:05")
CALIBRATION = Calibration("a" * 64, "b" * 64, "minmax", 2, "unit", {"x": 1.0}, {"x": 1.0})
MANIFEST = PlanManifest(
    "tensorrt_rtx", "1.7.1.116", None, "", (), "net.onnx", "ab" * 32, "", 0, "fp32",
    ({"input": ((1, 3, 16, 24), (4, 3, 16, 24), (8, 3, 16, 24))},),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Told(Report):
    """The smallest report."""

    verdict: str
    status: str = "pass"


def save_plan(path, data=b"a plan"):
    import hashlib

    of = {"plan_sha256": hashlib.sha256(data).hexdigest(), "plan_bytes": len(data)}
    return save_engine(Plan(data, dataclasses.replace(MANIFEST, **of)), path)


@pytest.fixture
def here(tmp_path):
    """A folder of the user's own files: a network, pictures, labels, feeds and a calibration."""
    save_picture_network(tmp_path / "net.onnx")
    for name in ("pictures", "labels"):
        (tmp_path / name).mkdir()
        for index in range(2):
            array = np.full((16, 24), index, np.uint8) if name == "labels" else np.full((16, 24, 3), 90, np.uint8)
            Image.fromarray(array).save(tmp_path / name / f"p{index}.png")
    np.savez(tmp_path / "feeds.npz", input=np.ones((1, 3, 16, 24), np.float32))
    (tmp_path / "scales.json").write_text(CALIBRATION.to_json())
    return tmp_path


@pytest.fixture
def refused(here, capsys, monkeypatch):
    """Run a command in that folder, which must be refused and change nothing there; its sentence."""
    monkeypatch.chdir(here)

    def run(*words):
        with untouched(here):
            status, text = command(capsys, *words)
        assert status == 2
        return text

    return run


# What a command reads is never written, however it is spelt, and whatever is allowed.

READERS = {
    "convert": "convert net.onnx {}",
    "convert, pb": "convert net.onnx new.onnx --pb {}",
    "build, calibration": "build net.onnx -o new.plan --precision int8 --images pictures --calibration {}",
    "verify, json": "verify net.onnx --json {}",
    "verify, json of feeds": "verify net.onnx --feeds feeds.npz --json {}",
    "verify, json of pictures": "verify net.onnx --images pictures --json {}",
    "verify, figure of pictures": "verify net.onnx --images pictures --figure {}",
    "verify, json of labels": "verify net.onnx --precision fp16 --labels labels --images pictures --json {}",
    "verify, json of scales": "verify net.onnx --precision int8 --calibration scales.json --json {}",
    "verify, json of another": "verify resnet50 net.onnx --json {}",
    "sweep": "sweep net.onnx -o {}",
    "sweep, json": "sweep net.onnx --json {}",
    "sweep, rows over scales": "sweep net.onnx --calibration scales.json -o {}",
    "sweep, figure of labels": "sweep net.onnx --images pictures --labels labels --figure {}",
}
READ = {
    "feeds": "feeds.npz", "pictures": "pictures/p0.png", "labels": "labels/p1.png", "scales": "scales.json",
}  # fmt: skip


def as_it_is(path):
    return str(path)


def around(path):
    return f"{path.parent}/../{path.parent.name}/./{path.name}"


def by_link(path):
    os.symlink(path, path.parent / f"link{path.suffix}")
    return path.parent / f"link{path.suffix}"


def by_hard_link(path):
    os.link(path, path.parent / f"hard{path.suffix}")
    return path.parent / f"hard{path.suffix}"


def by_linked_folder(path):
    os.symlink(path.parent, path.parent / "again")
    return path.parent / "again" / path.name


@pytest.mark.parametrize("alias", [as_it_is, around, by_link, by_hard_link, by_linked_folder])
@pytest.mark.parametrize("case", READERS)
def test_an_input_is_no_output_even_with_overwrite(case, alias, here, refused):
    name = next((path for word, path in READ.items() if case.endswith((f"of {word}", f"over {word}"))), "net.onnx")
    given = alias(here / name)
    assert "input" in refused(*(word.format(given) for word in READERS[case].split()), "--overwrite")


@pytest.mark.parametrize(
    "words",
    [
        "demo --images pictures -o pictures",
        "demo --images pictures -o pictures/../pictures",
        "segment pictures -o pictures",
        "segment pictures -o ./pictures/.",
        "verify net.onnx --keep-files .",
        "verify net.onnx --images pictures --keep-files pictures",
        "verify resnet50 net.onnx --keep-files .",
    ],
)
def test_a_folder_of_inputs_takes_no_results(words, refused):
    assert "folder" in refused(*words.split())


@pytest.mark.parametrize(
    "words",
    [
        "convert resnet50 x.onnx --pb x.onnx",
        "convert resnet50 x.onnx --pb ./x.onnx",
        "verify net.onnx --json x.png --figure x.png",
        "sweep net.onnx -o x.json --json x.json",
        "sweep net.onnx -o x.png --figure ../{here}/x.png",
        "build net.onnx -o x.plan --precision int8 --images pictures --calibration x.plan",
        "build net.onnx -o x.plan --precision int8 --images pictures --calibration x.plan.json",
    ],
)
def test_two_outputs_of_a_call_are_two_files(words, here, refused):
    assert "two outputs" in refused(*words.format(here=here.name).split())


FUNCTIONS = {
    "convert": lambda path: convert(path, path, progress=False),
    "convert, pb": lambda path: convert(path, path.with_name("x.onnx"), pb_path=path, progress=False),
    "fix": lambda path: fix(path, path, progress=False),
    "to_fp16": lambda path: to_fp16(path, path),
    "to_bf16": lambda path: to_bf16(path, path),
    "quantize_int8": lambda path: quantize_int8(path, path, CALIBRATION),
    "rounded_copy": lambda path: rounded_copy(path, path),
    "pb_to_onnx": lambda path: pb_to_onnx(path, path, progress=False),
    "fuse_argmax": lambda path: fuse_argmax(path, path),
    "fuse_preprocessing": lambda path: fuse_preprocessing(path, path),
    "sweep": lambda path: sweep(path, out=path, progress=False),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_does_not_write_what_it_reads(name, here):
    with untouched(here), overwriting():
        assert "input" in refusal(FUNCTIONS[name], here / "net.onnx")


def test_calibrating_does_not_write_into_the_pictures(here):
    asked = {"precision": "int8", "images": here / "pictures", "progress": False}
    with untouched(here):
        refusal(build_engine, here / "net.onnx", calibration=here / "pictures" / "p0.png", **asked)


@pytest.mark.parametrize(
    ("source", "beside", "of_it"),
    [
        ("net.onnx", "net.onnx.data", True),
        ("net.onnx", "net.onnx_data", True),
        ("model.ckpt", "model.ckpt.index", True),
        ("model.ckpt", "model.ckpt.meta", True),
        ("saved", "saved/variables/variables.index", True),
        ("resnet50", "resnet50.json", False),
        ("pictures", "pictures.json", False),
        ("net.onnx", "other.onnx.data", False),
        ("net.onnx", "pictures/net.onnx.data", False),
    ],
)
def test_the_data_of_an_input_is_part_of_it(source, beside, of_it, here, monkeypatch):
    monkeypatch.chdir(here)
    (here / "saved" / "variables").mkdir(parents=True)
    (here / "model.ckpt.index").write_bytes(b"index")
    (here / beside).write_bytes(b"data")
    with overwriting():
        assert bool(fault_cases.answer(check_outputs, [beside], [source])) == of_it


# What somebody else wrote stays.


def foreign(kind, path):
    """Write a file of this kind as somebody else would."""
    kinds = {
        "text": b"my notes\n", "text without an end": b"my notes", "one byte": b"{", "zeros": bytes(5000),
        "json": b'{"passed": true, "verdict": "mine"}\n', "their format": b'{"format": "theirs", "workbench": 1}',
        "json lines": b'{"a": 1}\n{"a": 2}\n', "json lines without an end": b'{"a": 1}\n{"a": 2}',
        "a row of another kind": b'{"network": 5}\n', "a plan": b"vtrt" + bytes(100), "a list": b"[1, 2]",
        "a long line": b"x" * 100_000,
    }  # fmt: skip
    if kind == "picture":
        Image.new("RGB", (8, 8)).save(path, "PNG")
    elif kind == "network":
        save_picture_network(path)
    else:
        path.write_bytes(kinds[kind])
    return path


KINDS = [
    "text", "text without an end", "one byte", "zeros", "json", "their format", "json lines",
    "json lines without an end", "a row of another kind", "a plan", "a list", "a long line", "picture", "network",
]  # fmt: skip
WRITERS = {
    "convert": ("convert resnet50 {}", "out.onnx"),
    "convert, pb": ("convert resnet50 x.onnx --pb {}", "out.pb"),
    "build": ("build net.onnx -o {}", "out.plan"),
    "build, manifest": ("build net.onnx -o out.plan", "out.plan.json"),
    "build, calibration": ("build net.onnx -o x.plan --precision int8 --images pictures --calibration {}", "out.json"),
    "verify, json": ("verify net.onnx --json {}", "out.json"),
    "verify, figure": ("verify net.onnx --figure {}", "out.png"),
    "verify, precision": ("verify net.onnx --precision fp16 --json {}", "out.json"),
    "sweep, json": ("sweep net.onnx --json {}", "out.json"),
    "sweep, figure": ("sweep net.onnx --figure {}", "out.png"),
    "sweep": ("sweep net.onnx -o {}", "out.jsonl"),
    "sweep, overwrite": ("sweep net.onnx --overwrite -o {}", "out.jsonl"),
}
FOREIGN = [(writer, kind) for writer in WRITERS for kind in KINDS]


@pytest.mark.parametrize(("writer", "kind"), some(FOREIGN, 80))
def test_a_file_of_somebody_else_stays_as_it_is(writer, kind, here, refused):
    words, name = WRITERS[writer]
    foreign(kind, here / name)
    assert name in refused(*words.format(name).split())


def test_a_file_of_somebody_else_without_a_last_newline_gets_no_row(tmp_path):
    path = foreign("json lines without an end", tmp_path / "mine.jsonl")
    with untouched(tmp_path):
        refusal(append_row, path, ROW)
        refusal(load_rows, path)


@pytest.mark.parametrize("suffix", [".onnx", ".pb", ".plan", ".png", ".json", ".jsonl", ".txt", ".npz", ""])
def test_a_foreign_file_is_replaced_where_that_is_allowed_only(tmp_path, suffix):
    path = foreign("text", tmp_path / f"mine{suffix}")
    with untouched(tmp_path), pytest.raises(OutputError, match="--overwrite"), atomic_path(path):
        raise AssertionError("never entered")
    with overwriting(), atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes().startswith(b"new")


def test_what_appears_during_the_work_is_not_replaced(tmp_path):
    with pytest.raises(OutputError), atomic_path(tmp_path / "x.onnx") as temporary:
        temporary.write_bytes(b"new")
        (tmp_path / "x.onnx").write_bytes(b"somebody else's")
    assert (tmp_path / "x.onnx").read_bytes() == b"somebody else's"
    assert len(list(tmp_path.iterdir())) == 1


def test_segmentation_leaves_a_foreign_picture_and_paints_the_others(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "out").mkdir()
    for index in range(2):
        picture(seed=index).save(tmp_path / "photos" / f"p{index}.png")
    mine = foreign("picture", tmp_path / "out" / "p0_overlay.jpg")
    before, network = mine.read_bytes(), save_street_network(tmp_path / "street.onnx")
    report = segment_folder(tmp_path / "photos", tmp_path / "out", model=network, progress=False)
    assert mine.read_bytes() == before
    assert ([path.name for path in report.written], len(report.failed)) == (["p1_overlay.jpg"], 1)
    with overwriting():
        report = segment_folder(tmp_path / "photos", tmp_path / "out", model=network, progress=False)
    assert [path.name for path in report.written] == ["p0_overlay.jpg"]


# Our own older results are replaced.


def write_report(path):
    with atomic_path(path) as temporary:
        temporary.write_text(Told("PASS").to_json())


def write_graph(path):
    from tensorflow import Graph, constant

    with Graph().as_default() as graph:
        constant(1.0, name="x")
    with atomic_path(path) as temporary:
        temporary.write_bytes(graph.as_graph_def().SerializeToString())


def write_fixed(path):
    source = path.with_name("source.onnx")
    fix(source if source.exists() else save_picture_network(source), path, progress=False)


OWN = {
    "report.json": write_report,
    "scales.json": CALIBRATION.save,
    "figure.png": lambda path: save_figure(Figure(figsize=(1, 1)), path),
    "net.plan": save_plan,
    "net.engine": save_plan,
    "graph.pb": write_graph,
    "fixed.onnx": write_fixed,
}


@pytest.mark.parametrize("name", OWN)
def test_our_own_older_result_is_replaced(name, tmp_path):
    OWN[name](tmp_path / name)
    os.utime(tmp_path / name, (0, 0))
    OWN[name](tmp_path / name)
    assert (tmp_path / name).stat().st_mtime > 0


@pytest.mark.parametrize("name", OWN)
def test_an_empty_file_may_be_replaced(name, tmp_path):
    (tmp_path / name).touch()
    OWN[name](tmp_path / name)
    assert (tmp_path / name).stat().st_size


@pytest.mark.parametrize("name", ["figure.png", "net.plan", "graph.pb", "fixed.onnx"])
def test_what_was_written_over_our_result_by_somebody_else_stays(name, tmp_path):
    OWN[name](tmp_path / name)
    foreign("picture" if name == "figure.png" else "text", tmp_path / name)
    with untouched(tmp_path):
        refusal(OWN[name], tmp_path / name)


@pytest.mark.parametrize("first", ["report.json", "scales.json"])
def test_a_result_of_ours_is_replaced_by_its_own_kind_only(first, tmp_path):
    second = next(name for name in ("report.json", "scales.json") if name != first)
    OWN[first](tmp_path / "x.json")
    with untouched(tmp_path):
        refusal(OWN[second], tmp_path / "x.json")


def test_the_mark_leaves_a_network_valid_however_often_it_is_written(tmp_path):
    save_picture_network(tmp_path / "0.onnx")
    for index in range(3):
        fix(tmp_path / f"{index}.onnx", tmp_path / f"{index + 1}.onnx", progress=False)
    model = onnx.load(tmp_path / "3.onnx")
    onnx.checker.check_model(model)
    assert [entry.key for entry in model.metadata_props] == ["workbench"]
    assert [bool(kind_of(tmp_path / f"{index}.onnx")) for index in range(2)] == [False, True]


@pytest.mark.parametrize("name", ["x.pb", "x.onnx", "x.ONNX", "x.plan"])
@pytest.mark.parametrize("content", [b"text", b"", b"\n", b"{}", bytes(10), b"\x89PNG"])
def test_only_a_file_of_the_format_gets_its_mark(name, content, tmp_path):
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_bytes(content)
    assert (tmp_path / name).read_bytes() == content or (name, content) == ("x.pb", b"\n")


def test_the_mark_leaves_a_graph_as_it_was(tmp_path):
    from tensorflow.compat.v1 import GraphDef, import_graph_def

    for _ in range(2):
        write_graph(tmp_path / "g.pb")
    graph = GraphDef.FromString((tmp_path / "g.pb").read_bytes())
    assert [node.name for node in graph.node] == ["x"]
    assert len(graph.versions.bad_consumers) == 1
    import_graph_def(graph)
    with atomic_path(tmp_path / "again.pb") as temporary:
        temporary.write_bytes(graph.SerializeToString())
    assert len(GraphDef.FromString((tmp_path / "again.pb").read_bytes()).versions.bad_consumers) == 1


def test_rows_are_added_to_a_file_of_rows_and_an_unfinished_one_is_cut(tmp_path):
    append_row(tmp_path / "r.jsonl", ROW)
    line = (tmp_path / "r.jsonl").read_bytes()
    for end in (b"{", line[:11], line[:40], line[:-1]):
        (tmp_path / "r.jsonl").write_bytes(line + end)
        append_row(tmp_path / "r.jsonl", ROW)
        assert (tmp_path / "r.jsonl").read_bytes() == 2 * line


# Where nothing can be written, before the work.


def socket_in(folder):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(folder / "s"))
    return folder / "s"


def pipe_in(folder):
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def link_in(folder):
    os.symlink(folder / "gone", folder / "link")
    return folder / "link"


def folder_in(folder):
    (folder / "there").mkdir()
    return folder / "there"


PLACES = {
    "a missing folder": lambda folder: folder / "no" / "x",
    "a file as a folder": lambda folder: folder / "net.onnx" / "x",
    "a folder": folder_in,
    "a pipe": pipe_in,
    "a socket": socket_in,
    "a device": lambda folder: "/dev/null",
    "a full device": lambda folder: "/dev/full",
    "an endless device": lambda folder: "/dev/zero",
    "a link to nowhere": link_in,
    "a long name": lambda folder: folder / ("x" * 300),
    "a long name of umlauts": lambda folder: folder / ("ü" * 150),
    "a long path": lambda folder: folder / "/".join(["x" * 200] * 30),
}
OPTIONS = {
    "convert": ("convert resnet50 {}", ".onnx"),
    "convert, pb": ("convert resnet50 x.onnx --pb {}", ".pb"),
    "build": ("build net.onnx -o {}", ".plan"),
    "build, calibration": ("build net.onnx -o x.plan --precision int8 --images pictures --calibration {}", ""),
    "verify, json": ("verify net.onnx --json {}", ""),
    "verify, figure": ("verify net.onnx --figure {}", ".png"),
    "sweep": ("sweep net.onnx -o {}", ""),
    "sweep, json": ("sweep net.onnx --json {}", ""),
}
WHERE = [
    (option, place) for option in OPTIONS for place in PLACES
    if not OPTIONS[option][1] or "name" in place or "missing" in place or "file as" in place
]  # fmt: skip


@pytest.mark.parametrize(("option", "place"), some(WHERE, 60))
def test_a_place_where_nothing_can_be_written_is_told_before_the_work(option, place, here, refused):
    words, suffix = OPTIONS[option]
    given = f"{PLACES[place](here)}{suffix}"
    text = refused(*(word.replace("{}", given) for word in words.split()))
    assert "write" in text or "output" in text or "leads nowhere" in text


def test_a_folder_that_may_not_be_written_is_told_before_the_work(monkeypatch, refused):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert "Permission denied" in refused("verify", "net.onnx", "--json", "x.json")


@pytest.mark.parametrize("name", ["x\0y.json", "x\0.onnx"])
def test_a_name_with_a_zero_byte_is_told(tmp_path, name):
    refusal(check_outputs, [tmp_path / name])


def test_a_name_with_a_new_line_is_told_in_one_line(here, capsys):
    (here / "a\nb.json").write_text("mine")
    status, text = command(capsys, "verify", here / "net.onnx", "--json", here / "a\nb.json")
    assert (status, "a b.json" in text) == (2, True)


@pytest.mark.parametrize("name", ["x" * 240 + ".json", "ü" * 120 + ".json", "x" * 200 + ".onnx"])
def test_a_long_name_that_the_disk_takes_is_written(tmp_path, name):
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_text("whole")
    assert (tmp_path / name).read_text().startswith("whole")


def test_a_limit_on_the_size_of_files_is_one_sentence(tmp_path):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
        text = refusal(save_plan, tmp_path / "x.plan", bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert "too large" in text
    assert list(tmp_path.iterdir()) == []


def test_reports_and_manifests_say_what_they_are(tmp_path):
    write_report(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["format"] == "workbench report 1"
    assert fault_cases.answer(check_outputs, [tmp_path / "r.json"]) == ""
