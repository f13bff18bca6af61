"""Files are written whole or not at all."""

import errno
import os

import pytest

from workbench.core.errors import OutputError
from workbench.core.files import atomic_path, make_folder, overwriting


def test_the_file_appears_whole_and_readable_by_others(tmp_path):
    mask = os.umask(0o022)
    os.umask(mask)
    with atomic_path(tmp_path / "a.txt") as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("whole")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~mask
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_middle_keeps_the_old_file_and_nothing_else(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error), overwriting(), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_full_disk_is_one_sentence(tmp_path):
    with pytest.raises(OutputError, match="No space left on device; free some space"), atomic_path(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_another_os_error_is_not_mistaken_for_the_disks(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        raise FileNotFoundError("something else")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OutputError, match="does not exist; create it first"), atomic_path(tmp_path / "nowhere" / "a"):
        raise AssertionError("never entered")


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(OutputError, match="got the directory"), atomic_path(tmp_path):
        raise AssertionError("never entered")


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        make_folder(tmp_path / "file" / "below")


def test_make_folder_makes_parents(tmp_path):
    assert make_folder(tmp_path / "a" / "b").is_dir()
