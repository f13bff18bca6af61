"""The list of planted bugs fits the code; `make mutants` plants them, which takes too long for here."""

import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import mutants  # noqa: E402

sys.path.remove(str(ROOT / "scripts"))
BUGS = mutants.read_list()


def test_every_text_of_the_list_is_in_its_module_once_and_every_test_is_there():
    assert mutants.find_stale(BUGS) == []


def test_the_list_is_long_enough_to_tell_something_and_holds_nothing_twice():
    assert len(BUGS) >= 170
    assert max(Counter(BUGS).values()) == 1


def test_a_list_that_no_longer_fits_names_the_entry(tmp_path):
    (tmp_path / "module.py").write_text("a = 1\nb = 1\n")
    bugs = [mutants.Bug("module.py", text, "2", "", ("tests/test_gone.py",)) for text in ("a = 1", "= 1", "c = 1")]
    found = mutants.find_stale(bugs, tmp_path)
    assert found[0] == "the list is stale: tests/test_gone.py of module.py is not there"
    assert found[1].endswith("got it 2 times: module.py: = 1  ->  2")
    assert found[2].endswith("got it 0 times: module.py: c = 1  ->  2")
    assert len(found) == 3


def test_a_bug_is_planted_in_a_copy_and_told_apart_from_one_that_survives(tmp_path, capsys):
    (tmp_path / "module.py").write_text("def half(x):\n    return x / 2\n")
    (tmp_path / "test_module.py").write_text("from module import half\n\n\ndef test_half():\n    assert half(4) == 2\n")
    copies = mutants.queue.Queue()
    copies.put(tmp_path)

    def planted(text, wrong, why=""):
        return mutants.plant(copies, mutants.Bug("module.py", text, wrong, why, ("test_module.py",)))

    assert planted("x / 2", "x / 3") == (True, False)
    assert planted("x / 2", "x - 2") == (False, False)
    assert planted("x / 2", "x * 0.5", "the same number") == (False, True)
    assert (tmp_path / "module.py").read_text() == "def half(x):\n    return x / 2\n"
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["killed", "SURVIVED", "explained"]
    assert "test_module.py::test_half" in lines[0]
    assert mutants.check_tests(copies, ("test_module.py",))
    (tmp_path / "test_module.py").write_text("def test_broken():\n    assert False\n")
    assert not mutants.check_tests(copies, ("test_module.py",))
    assert "left out: test_module.py fails without a bug" in capsys.readouterr().out
