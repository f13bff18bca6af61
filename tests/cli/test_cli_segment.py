"""The command `segment`: exit statuses, and what it prints."""

import subprocess
import sys

import pytest
from PIL import Image
from street_networks import picture, save_street_network

from workbench.cli import main as cli


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_street_network(tmp_path / "street.onnx")
    (tmp_path / "photos").mkdir()
    for index in range(3):
        picture(seed=index).save(tmp_path / "photos" / f"p{index}.jpg")
    return tmp_path


def run(capsys, *words):
    status = cli.main(["segment", *words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_folder_is_segmented_and_a_second_run_keeps_the_results(folder, capsys):
    words = ("photos", "-o", "results/today", "--model", "street.onnx")
    status, out, errors = run(capsys, *words)
    assert status == 0
    assert out.startswith("written   3 in results/today by ONNX Runtime")
    assert "3/3" in errors  # the bar
    assert Image.open(folder / "results" / "today" / "p0_overlay.jpg").size == (60, 40)
    status, out, _ = run(capsys, *words)
    assert (status, out.splitlines()[2]) == (0, "kept      3 that were there already")


@pytest.mark.parametrize("save", ["color", "overlay", "trainids", "labelids"])
def test_every_kind_can_be_saved(folder, capsys, save):
    status, _, _ = run(capsys, "photos", "-o", "out", "--model", "street.onnx", "--save", save, "--workers", "1")
    assert status == 0
    assert len(list((folder / "out").glob(f"p?_{save}.*"))) == 3


def test_a_bad_image_is_named_and_the_exit_status_is_1(folder, capsys):
    (folder / "photos" / "bad.png").touch()
    status, out, _ = run(capsys, "photos", "-o", "out", "--model", "street.onnx")
    assert status == 1
    assert "skipped   1:" in out
    assert "bad.png is empty (0 bytes)" in out
    assert len(list((folder / "out").iterdir())) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "-o", "out"], "expected a folder of images"),
        (["photos", "-o", "photos"], "choose another folder"),
        (["photos", "-o", "street.onnx"], "cannot write street.onnx"),
        (["photos", "-o", "out", "--model", "no.onnx"], "no.onnx does not exist"),
        (["photos", "-o", "out", "--weights", "no.npz"], "got weights 'no.npz'"),
        (["photos", "-o", "out", "--backend", "tensorrt"], "workbench build"),
        (["photos", "-o", "out", "--model", "street.onnx", "--workers", "0"], "expected 1 or more"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_status_2(folder, capsys, words, message):
    status, _, errors = run(capsys, *words)
    (sentence,) = (line for line in errors.splitlines() if line.startswith("error: "))
    assert status == 2
    assert message in sentence
    assert "Traceback" not in errors


def test_the_command_explains_itself():
    done = subprocess.run(
        [sys.executable, "-m", "workbench.cli.main", "segment", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "--save" in done.stdout


def test_weights_and_model_exclude_each_other(folder, capsys):
    with pytest.raises(SystemExit):
        run(capsys, "photos", "-o", "out", "--weights", "camvid", "--model", "street.onnx")
    assert "not allowed with" in capsys.readouterr().err
