"""What surrounds a command: closed pipes, full disks, folders that may not be read, no memory, odd names."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fault_cases import DEEP, command, is_sentence, refusal, untouched
from onnx_networks import save_picture_network
from PIL import Image

from workbench.cli import main as cli
from workbench.core import files, process
from workbench.core.errors import OutputError, WorkbenchError
from workbench.engine.load import load_engine
from workbench.measure.rows import load_rows
from workbench.models.untrusted import read_json
from workbench.pictures.images import list_images, load_image
from workbench.pictures.labels import load_labels
from workbench.precision.calibration import Calibration


def started(words, **options):
    """Start a command in a process of its own."""
    arguments = [sys.executable, "-m", "workbench.cli.main", *words]
    return subprocess.run(arguments, stderr=subprocess.PIPE, text=True, timeout=120, check=False, **options)


@pytest.mark.parametrize("words", [["doctor"], ["--help"], ["verify", "--help"], ["--version"]], ids=" ".join)
def test_an_answer_that_nobody_reads_ends_without_a_word(words):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = started(words, stdout=writing)
    finally:
        os.close(writing)
    assert done.stderr == ""
    assert done.returncode in ((0, 1, cli.EXIT_CLOSED) if words == ["doctor"] else (0,))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")
def test_an_answer_on_a_full_disk_is_one_sentence():
    with open("/dev/full", "w") as full:
        done = started(["doctor"], stdout=full)
    assert done.returncode == 2
    assert done.stderr.startswith("error: No space left on device")
    is_sentence(done.stderr.strip().removeprefix("error: "))


class Raising:
    """A command that fails in this way."""

    def __init__(self, error):
        self.error = error

    def __call__(self, options):
        raise self.error


ERRORS = {
    "no space": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/place"),
    "no permission": PermissionError(errno.EACCES, os.strerror(errno.EACCES), b"some/place"),
    "too many files": OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    "too large a file": OSError(errno.EFBIG, os.strerror(errno.EFBIG), "x"),
    "a name that is too long": OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "x" * 300),
    "no memory": MemoryError(),
    "no memory for an array": MemoryError("Unable to allocate 3.00 GiB for an array"),
    "deep nesting": RecursionError("maximum recursion depth exceeded"),
    "lines": WorkbenchError("first\nsecond"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_the_machine_refuses_is_one_sentence(name, capsys, monkeypatch):
    from workbench.cli import doctor

    monkeypatch.setattr(doctor, "run", Raising(ERRORS[name]))
    status, text = command(capsys, "doctor")
    assert status == 2
    is_sentence(text)


def full(*given, **named):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def absent(*given, **named):
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")


@pytest.mark.parametrize("fault", [full, absent])
def test_no_place_for_temporary_files_is_one_sentence(fault, monkeypatch):
    monkeypatch.setattr(process.tempfile, "TemporaryDirectory", fault)
    with pytest.raises(OutputError) as error, process.temporary_folder():
        raise AssertionError("never entered")
    is_sentence(str(error.value))


@pytest.mark.parametrize("words", ["sweep net.onnx", "verify net.onnx --json r.json"])
def test_a_full_folder_of_temporary_files_is_one_sentence(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_picture_network(tmp_path / "net.onnx")
    monkeypatch.setattr(process.tempfile, "TemporaryDirectory", full)
    with untouched(tmp_path):
        status, text = command(capsys, *words.split())
    assert status == 2
    assert "No space left" in text


def test_a_full_folder_of_results_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_picture_network(tmp_path / "net.onnx")
    plain = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, *mode: (full if flags & os.O_CREAT else plain)(path, flags))
    with untouched(tmp_path):
        status, text = command(capsys, "convert", "net.onnx", "new.onnx")
    assert status == 2
    assert "No space left" in text


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS, errno.ENAMETOOLONG]
)
def test_a_fault_of_the_disk_while_writing_is_one_sentence(number, tmp_path):
    with untouched(tmp_path), pytest.raises(OutputError) as error, files.atomic_path(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise OSError(number, os.strerror(number))
    is_sentence(str(error.value))


SEALED = {
    "segment": "segment sealed -o out", "pictures": "verify net.onnx --images sealed",
    "calibrating": "sweep net.onnx --images sealed --precision int8", "demo": "demo --images sealed -o out",
    "labels": "sweep net.onnx --images pictures --labels sealed",
}  # fmt: skip


@pytest.mark.parametrize("case", SEALED)
def test_a_folder_that_may_not_be_read_is_one_sentence(case, tmp_path, capsys, monkeypatch):
    """Root may read everything, so the system's refusal is made here."""
    monkeypatch.chdir(tmp_path)
    save_picture_network(tmp_path / "net.onnx")
    for name in ("sealed", "pictures"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (24, 16)).save(tmp_path / "pictures" / "p.png")
    known = Path.iterdir

    def iterdir(folder):
        if folder.name == "sealed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return known(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    status, text = command(capsys, *SEALED[case].split())
    assert status == 2
    assert "Permission denied" in text
    assert "unexpected" not in text


NAMES = ["x\udcff.onnx", "ü.onnx", "x\ty.onnx", "x y.onnx", "%s{0}.onnx", "x\u202e.onnx", "😀.onnx"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_any_bytes_can_be_printed(name, tmp_path):
    save_picture_network(tmp_path / "net.onnx")
    (tmp_path / "net.onnx").rename(tmp_path / name)
    where = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = started(["convert", os.fsencode(tmp_path / name), os.fsencode(tmp_path / "no" / name)], env=where)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_json_nested_deeply_is_a_value_that_is_none():
    for text in (DEEP, '{"a":' * 100_000, DEEP.encode()):
        with pytest.raises(ValueError, match=r"nested too deeply|Expecting"):
            files.parse_json(text)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}'])
def test_json_has_no_numbers_that_are_not_finite(text):
    with pytest.raises(ValueError, match="holds"):
        files.parse_json(text)
    assert read_json(text) is not None  # Keras writes them


@pytest.mark.parametrize("name", ["x\0y", "x" * 300, "x/" * 100 + "x"])
@pytest.mark.parametrize("call", [load_image, load_labels, load_rows, load_engine, Calibration.load])
def test_a_name_that_no_file_has_is_one_sentence(call, name):
    refusal(call, name)


def test_a_folder_that_may_not_be_listed_is_one_sentence(tmp_path, monkeypatch):
    def refused(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(Path, "iterdir", refused)
    assert "Permission denied" in refusal(list_images, tmp_path)


@pytest.mark.parametrize("size", [0, 10])
def test_a_file_is_read_up_to_its_limit(size, tmp_path):
    (tmp_path / "x").write_bytes(bytes(size))
    assert files.read_regular(tmp_path / "x", size) == bytes(size)
    (tmp_path / "x").write_bytes(bytes(size + 1))
    with pytest.raises(WorkbenchError, match="at most"):
        files.read_regular(tmp_path / "x", size)
