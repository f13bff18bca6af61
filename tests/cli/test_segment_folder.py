"""Folders of images: what is written, what is kept, and what happens when an image or the disk is bad."""

import argparse
import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as evaluation
from onnx import helper
from onnx_networks import save_network, save_picture_network
from PIL import Image
from street_networks import SIZE, picture, save_street_network

from workbench.cli import segment as command
from workbench.cli.segment import segment_folder, segment_image
from workbench.core.errors import BackendUnavailableError, InputError, ModelError, OutputError
from workbench.models.fcn_vgg16 import segmentation_answer
from workbench.pictures.cityscapes import color_map, train_ids_to_ids
from workbench.runners.backends import open_runner
from workbench.runners.keras_runner import KerasRunner
from workbench.runners.onnxruntime_runner import OnnxRuntimeRunner


def save_logarithm_network(path):
    """NaN in the logits wherever a pixel is darker than the mean."""
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["sums"]),
        helper.make_node("Log", ["sums"], ["output"]),
    ]
    shapes = {"input": ("float32", ("batch", 3, *SIZE))}, {"output": ("float32", ("batch", 20, *SIZE))}
    return save_network(path, nodes, *shapes, {"kernel": np.ones((20, 3, 1, 1), np.float32)})


@pytest.fixture
def network(tmp_path):
    return save_street_network(tmp_path / "street.onnx")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(6):
        picture(seed=index).save(folder / f"p{index}.png")
    return folder


def segment(folder, out, network, **options):
    return segment_folder(folder, out, model=network, progress=False, **options)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def labels_of(network, path):
    with open_runner(network) as runner:
        return segment_image(runner, np.asarray(Image.open(path).convert("RGB")))


def test_every_kind_of_result_is_what_the_network_answers(photos, network, tmp_path):
    labels = labels_of(network, photos / "p0.png")
    assert len(np.unique(labels)) > 2  # the test would be blind otherwise
    read = {}
    for save in command.SAVES:
        report = segment(photos, tmp_path / "out", network, save=save)
        assert report.passed
        assert [path.parent for path in report.written] == [tmp_path / "out"] * 6
        read[save] = np.asarray(Image.open(report.written[0]))
    np.testing.assert_array_equal(read["trainids"], labels)
    np.testing.assert_array_equal(read["labelids"], train_ids_to_ids(labels))
    np.testing.assert_array_equal(read["color"], color_map(labels))
    half = (np.asarray(Image.open(photos / "p0.png")).astype(int) + color_map(labels)) / 2
    assert np.abs(read["overlay"] - half).mean() < 8  # JPEG changes colours most at the sharp edges of classes


def test_at_the_networks_own_size_the_labels_are_those_of_the_notebooks(network):
    image = np.asarray(picture(*SIZE))
    with open_runner(network) as runner:
        expected = segmentation_answer(runner, image)
        np.testing.assert_array_equal(segment_image(runner, image), np.where(expected == 19, 255, expected))


def test_a_network_with_fused_ends_gives_the_same_labels(network, tmp_path, photos):
    fused = save_street_network(tmp_path / "fused.onnx", fused=True)
    np.testing.assert_array_equal(labels_of(fused, photos / "p1.png"), labels_of(network, photos / "p1.png"))


def test_void_is_255_in_train_ids():
    labels = command._labels(np.array([[0, 18, 19, 255]], np.uint8))
    assert labels.tolist() == [[0, 18, 255, 255]]


def test_labels_that_cityscapes_does_not_have_are_refused():
    with pytest.raises(ModelError, match=r"the label 33, expected 0\.\.19 or 255"):
        command._labels(np.array([[0, 33]], np.int64))


def test_cityscapes_scripts_accept_the_label_ids(network, tmp_path):
    (tmp_path / "in").mkdir()
    picture(50, 90).save(tmp_path / "in" / "made_000000_000019_leftImg8bit.png")
    (result,) = segment(tmp_path / "in", tmp_path / "out", network, save="labelids").written
    truth = tmp_path / "made_000000_000019_gtFine_labelIds.png"
    shutil.copy(result, truth)
    arguments = argparse.Namespace(**{**vars(evaluation.args), "predictionPath": str(tmp_path / "out")})
    arguments.predictionWalk, arguments.quiet, arguments.evalInstLevelScore = None, True, False
    arguments.evalPixelAccuracy = False
    found = evaluation.getPrediction(arguments, str(truth))
    assert Path(found) == result
    matrix = evaluation.generateMatrix(arguments)
    pixels = evaluation.evaluatePair(found, str(truth), matrix, {}, {}, arguments)
    assert pixels == matrix.trace() == 50 * 90


def test_images_of_every_mode_keep_their_upright_size_and_stay_untouched(network, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: 60 x 40 is seen as 40 x 60
    picture().save(folder / "turned.jpg", exif=exif)
    picture().convert("L").save(folder / "grey.png")
    picture().convert("RGBA").save(folder / "rgba.png")
    picture().convert("P").save(folder / "palette.png")
    picture().convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.linspace(0, 65535, 2400).reshape(40, 60).astype(np.uint16)).save(folder / "deep.png")
    picture(1, 1).save(folder / "one.png")
    before = digests(folder)
    report = segment(folder, tmp_path / "out", network, save="labelids")
    assert report.passed, report.to_text()
    sizes = {path.name.removesuffix("_labelids.png"): Image.open(path).size for path in report.written}
    straight = dict.fromkeys(("grey", "rgba", "palette", "cmyk", "deep"), (60, 40))
    assert sizes == {**straight, "turned": (40, 60), "one": (1, 1)}
    assert digests(folder) == before


def test_images_that_differ_in_suffix_only_get_results_of_their_own(network, tmp_path):
    for name in ("a.png", "a.jpg", "a.jpg.png", "b.bmp"):
        (tmp_path / "in").mkdir(exist_ok=True)
        picture().save(tmp_path / "in" / name)
    report = segment(tmp_path / "in", tmp_path / "out", network, save="color")
    names = [path.name for path in report.written]
    assert sorted(names) == ["a.jpg.png_color.png", "a.jpg_color.png", "a.png_color.png", "b_color.png"]


def test_bad_images_are_reported_and_skipped(photos, network, tmp_path):
    (photos / "zero.jpg").touch()
    (photos / "cut.png").write_bytes((photos / "p0.png").read_bytes()[:-200])
    (photos / "text.png").write_text("not an image")
    Image.new("1", (12_000, 10_000)).save(photos / "huge.png")
    report = segment(photos, tmp_path / "out", network)
    assert len(report.written) == 6
    assert not report.passed
    reasons = {failure.path.name: failure.reason for failure in report.failed}
    assert "empty (0 bytes)" in reasons["zero.jpg"]
    assert "is it complete?" in reasons["cut.png"]
    assert "is not an image" in reasons["text.png"]
    assert "pixels, the limit" in reasons["huge.png"]
    assert len(list((tmp_path / "out").iterdir())) == 6
    assert len(list(filter(None, report.to_text().splitlines()))) == 2 + 4


def test_nan_in_the_logits_is_reported_and_not_painted(tmp_path):
    network = save_logarithm_network(tmp_path / "log.onnx")
    (tmp_path / "in").mkdir()
    Image.new("RGB", (60, 40), "white").save(tmp_path / "in" / "bright.png")
    Image.new("RGB", (60, 40), "black").save(tmp_path / "in" / "dark.png")
    report = segment(tmp_path / "in", tmp_path / "out", network)
    assert [path.name for path in report.written] == ["bright_overlay.jpg"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bright_overlay.jpg"]
    (failure,) = report.failed
    assert "dark.png" in failure.reason
    assert f"NaN or infinity in {20 * SIZE[0] * SIZE[1]} of {20 * SIZE[0] * SIZE[1]} logits" in failure.reason


@pytest.mark.parametrize("cut", [False, True])
def test_a_file_that_changes_while_it_is_read_is_skipped_and_done_by_the_next_run(
    photos, network, tmp_path, monkeypatch, cut
):
    real = command.load_image

    def load_and_change(path):
        if path.name == "p2.png":
            whole = path.read_bytes()
            path.write_bytes(whole[:300] if cut else whole + b"\0")
        return real(path)

    original = (photos / "p2.png").read_bytes()
    monkeypatch.setattr(command, "load_image", load_and_change)
    report = segment(photos, tmp_path / "out", network)
    assert [failure.path.name for failure in report.failed] == ["p2.png"]
    assert "changed while it was read" in report.failed[0].reason
    monkeypatch.undo()
    (photos / "p2.png").write_bytes(original)
    again = segment(photos, tmp_path / "out", network)
    assert (len(again.written), len(again.kept), again.passed) == (1, 5, True)


def test_a_file_that_disappears_is_skipped(photos, network, tmp_path, monkeypatch):
    real = command.list_images
    monkeypatch.setattr(command, "list_images", lambda folder: [*real(folder), photos / "gone.png"])
    report = segment(photos, tmp_path / "out", network)
    assert "gone.png cannot be read (No such file or directory)" in report.failed[0].reason


def test_the_folder_of_images_is_refused_for_the_results(photos, network, tmp_path):
    (tmp_path / "other name").symlink_to(photos)
    before = digests(photos)
    for out in (photos, tmp_path / "other name", photos / ".." / "photos"):
        with pytest.raises(InputError, match="choose another folder"):
            segment(photos, out, network)
    assert digests(photos) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_stops_the_run_and_the_next_one_goes_on(photos, network, tmp_path, monkeypatch, number):
    real, calls = Path.write_bytes, []

    def write(path, data):
        calls.append(path)
        if len(calls) > 3:
            real(path, data[: len(data) // 2])
            raise OSError(number, os.strerror(number), str(path))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OutputError, match=r"[0-3] of 6 results are written, and the same call goes on") as caught:
        segment(photos, tmp_path / "out", network)
    assert os.strerror(number) in str(caught.value)
    monkeypatch.undo()
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) == 3
    assert all(name.startswith("p") for name in names)  # nothing half-written
    report = segment(photos, tmp_path / "out", network)
    assert (len(report.kept), len(report.written)) == (3, 3)


def test_one_result_that_cannot_be_written_does_not_stop_the_run(photos, network, tmp_path):
    (tmp_path / "out" / "p1_overlay.jpg").mkdir(parents=True)
    report = segment(photos, tmp_path / "out", network)
    assert len(report.written) == 5
    assert "p1.png" in report.failed[0].reason
    assert "p1_overlay.jpg" in report.failed[0].reason


@pytest.mark.parametrize("spoil", ["cut", "empty", "other network", "newer image"])
def test_a_result_is_made_again_when_it_is_not_whole_or_out_of_date(photos, network, tmp_path, spoil):
    first = segment(photos, tmp_path / "out", network, save="trainids")
    stale = first.written[4]
    good = stale.read_bytes()
    if spoil == "cut":
        stale.write_bytes(good[:-5])
    elif spoil == "empty":
        stale.write_bytes(b"")
    elif spoil == "newer image":
        os.utime(photos / "p4.png", ns=(1, 1))
    else:
        network = save_street_network(tmp_path / "other.onnx")
        network.write_bytes(network.read_bytes().replace(b"street", b"strEet").replace(b"other", b"othEr"))
    again = segment(photos, tmp_path / "out", network, save="trainids")
    assert len(again.written) == (6 if spoil == "other network" else 1)
    np.testing.assert_array_equal(np.asarray(Image.open(stale)), labels_of(network, photos / "p4.png"))


_CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from workbench.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name == "nt", reason="a process cannot be sent Ctrl-C alone on Windows")
def test_ctrl_c_leaves_whole_results_and_the_next_run_goes_on(network, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "00.png", compress_level=1)
    for index in range(1, 60):
        os.link(folder / "00.png", folder / f"{index:02}.png")
    command = ["segment", str(folder), "-o", str(out), "--model", str(network), "--save", "color"]
    child = subprocess.Popen([sys.executable, "-c", _CHILD, *command], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while len(list(out.glob("*_color.png"))) < 3 and time.monotonic() < end and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 130, errors
    assert "Traceback" not in errors
    names = [path.name for path in out.iterdir()]
    assert all(name.endswith("_color.png") and not name.startswith(".") for name in names)
    assert 3 <= len(names) < 60
    for path in folder.glob("[2-5]*.png"):
        path.unlink()  # enough of them
    for path in out.iterdir():
        Image.open(path).load()
    report = segment(folder, out, network, save="color")
    assert len(report.kept) == min(len(names), 20)
    assert len(report.kept) + len(report.written) == 20


def test_only_so_many_images_are_in_memory_at_a_time(network, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for index in range(30):
        picture().save(tmp_path / "in" / f"{index}.png")
    alive, most = set(), []
    real_load, real_encode = command.load_image, command._encoded

    def load(path):
        alive.add(path)
        most.append(len(alive))
        time.sleep(0.002)
        return real_load(path)

    def encode(*arguments):
        alive.pop()
        return real_encode(*arguments)

    monkeypatch.setattr(command, "load_image", load)
    monkeypatch.setattr(command, "_encoded", encode)
    assert len(segment(tmp_path / "in", tmp_path / "out", network, workers=3).written) == 30
    assert 2 <= max(most) <= 3


def test_work_that_waits_is_bounded_and_dropped_when_the_caller_stops():
    taken, done = [], []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    results = command._map_bounded(lambda number: done.append(number) or number, items(), workers=2)
    next(results)
    results.close()
    assert len(taken) <= 4
    assert len(done) <= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save": "movie"}, "expected one of color, overlay, trainids, labelids"),
        ({"workers": 0}, "expected 1 or more"),
        ({"backend": "magic"}, "got backend='magic'"),
    ],
)
def test_wrong_options_are_refused(photos, network, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        segment(photos, tmp_path / "out", network, **options)


def test_a_network_for_something_else_is_refused(photos, tmp_path):
    network = save_picture_network(tmp_path / "classes.onnx")
    with pytest.raises(InputError, match="expected a network for Cityscapes' classes"):
        segment(photos, tmp_path / "out", network)
    with pytest.raises(ModelError, match=r"nothing\.onnx does not exist"):
        segment(photos, tmp_path / "out", tmp_path / "nothing.onnx")


def test_a_failing_network_stops_the_run(photos, network, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "segment_image", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        segment(photos, tmp_path / "out", network)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_report_of_strange_file_names_and_many_failures_can_be_printed():
    failures = tuple(command.Failure(Path(f"{n}\udcff.png"), f"{n}\udcff.png is empty") for n in range(50))
    text = command.FolderReport(Path("out"), (), (), failures, "ONNX Runtime 1 (CPU)", 1.0).to_text()
    text.encode("utf-8")
    assert "0?.png is empty" in text
    assert text.endswith("and 30 more\n")


@pytest.fixture
def small_street(monkeypatch, tmp_path):
    """The demonstration network at a size that converts quickly, and an empty cache."""
    monkeypatch.setattr(command, "STREET_SIZE", (64, 128))
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


def no_keras():
    raise BackendUnavailableError("tensorflow cannot be imported")


def test_without_a_model_the_demonstration_network_is_converted_once(photos, tmp_path, small_street, monkeypatch):
    report = segment_folder(photos, tmp_path / "out", save="trainids", progress=False)
    assert report.passed
    assert report.runner.startswith("ONNX Runtime")
    reference = segment_folder(photos, tmp_path / "keras", save="trainids", backend="keras", progress=False)
    assert reference.runner.startswith("Keras")
    for one, other in zip(report.written, reference.written, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(one)), np.asarray(Image.open(other)))
    monkeypatch.setattr(command, "load_keras", no_keras)  # the cache has it now
    assert len(segment_folder(photos, tmp_path / "more", progress=False).written) == 6


def test_onnx_runtime_runs_several_images_at_once_and_others_one_at_a_time(
    photos, network, tmp_path, small_street, monkeypatch
):
    together = threading.Barrier(2, timeout=60)
    real_onnx, real_keras, now, most = OnnxRuntimeRunner._infer, KerasRunner._infer, [], []

    def onnx_infer(runner, feed):
        together.wait()  # passes only when two are here
        return real_onnx(runner, feed)

    def keras_infer(runner, feed):
        now.append(1)
        most.append(len(now))
        time.sleep(0.02)
        answer = real_keras(runner, feed)
        now.pop()
        return answer

    monkeypatch.setattr(OnnxRuntimeRunner, "_infer", onnx_infer)
    monkeypatch.setattr(KerasRunner, "_infer", keras_infer)
    assert segment(photos, tmp_path / "out", network, workers=2).passed
    assert segment_folder(photos, tmp_path / "keras", backend="keras", workers=2, progress=False).passed
    assert max(most) == 1


def test_the_cores_are_shared_among_the_images_in_work(photos, network, tmp_path, monkeypatch):
    given, real = [], OnnxRuntimeRunner
    monkeypatch.setattr(command, "_cores", lambda: 7)
    monkeypatch.setattr(
        command, "OnnxRuntimeRunner", lambda path, threads: given.append(threads) or real(path, threads=threads)
    )
    for workers in (1, 2, 9):
        segment(photos, tmp_path / "out", network, workers=workers)
    assert given == [3, 1]  # one worker alone: ONNX Runtime decides


def test_without_keras_the_message_names_the_way_out(photos, tmp_path, small_street, network, monkeypatch):
    monkeypatch.setattr(command, "load_keras", no_keras)
    with pytest.raises(BackendUnavailableError, match=r"workbench convert fcn_vgg16 x\.onnx.* --model x\.onnx"):
        segment_folder(photos, tmp_path / "out", progress=False)
    assert segment(photos, tmp_path / "out", network).passed


def test_where_there_can_be_no_cache_a_temporary_folder_does(photos, tmp_path, small_street, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "file"))
    made = []

    def convert(model, path, *, progress):
        made.append(Path(path))
        return save_street_network(Path(path))

    monkeypatch.setattr("workbench.export.keras_model.keras_to_onnx", convert)
    assert segment_folder(photos, tmp_path / "out", progress=False).passed
    assert not made[0].exists()  # gone with the run


def test_tensorrt_without_a_plan_says_how_to_make_one(photos, tmp_path):
    with pytest.raises(InputError, match=r"workbench build x\.onnx -o x\.plan"):
        segment_folder(photos, tmp_path / "out", backend="tensorrt", progress=False)


def test_missing_weights_are_one_sentence(photos, tmp_path):
    with pytest.raises(ModelError, match="expected street-scenes, camvid"):
        segment_folder(photos, tmp_path / "out", weights="nothing.npz", progress=False)
