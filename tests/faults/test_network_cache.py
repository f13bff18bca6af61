"""The cache of networks: whatever lies there, what is taken is what was made."""

import shutil

import fault_cases
import pytest

from workbench import __version__
from workbench.core.errors import ModelError
from workbench.export.cached import cached

RIGHT = {"net.onnx": b"the network", "net.onnx.data": b"its weights"}


class Maker:
    """Makes the network, and counts how often."""

    def __init__(self):
        self.calls = 0

    def __call__(self, path):
        self.calls += 1
        for name, content in RIGHT.items():
            path.with_name(name).write_bytes(content)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "networks"


def take(make):
    with cached("net", "key", make) as path:
        return {file.name: file.read_bytes() for file in path.parent.iterdir() if file.suffix != ".json"}


def entry(cache):
    return cache / f"key-{__version__}"


DAMAGES = {
    "a bit of the network": lambda folder: (folder / "net.onnx").write_bytes(b"the netvork"),
    "a network of nothing": lambda folder: (folder / "net.onnx").write_bytes(b""),
    "a foreign network": lambda folder: (folder / "net.onnx").write_bytes(b"another network altogether"),
    "a network that was cut": lambda folder: (folder / "net.onnx").write_bytes(b"the net"),
    "no network": lambda folder: (folder / "net.onnx").unlink(),
    "a bit of the weights": lambda folder: (folder / "net.onnx.data").write_bytes(b"its veights"),
    "no weights": lambda folder: (folder / "net.onnx.data").unlink(),
    "a file too many": lambda folder: (folder / "more.data").write_bytes(b"foreign"),
    "no digest": lambda folder: (folder / "digest.json").unlink(),
    "an empty digest": lambda folder: (folder / "digest.json").write_bytes(b""),
    "a digest of another form": lambda folder: (folder / "digest.json").write_bytes(b"[[[[1]]]]"),
    "a digest that is no text": lambda folder: (folder / "digest.json").write_bytes(b"\xff\xfe\x00"),
    "a folder for the network": lambda folder: [(folder / "net.onnx").unlink(), (folder / "net.onnx").mkdir()],
    "a file for the entry": lambda folder: [shutil.rmtree(folder), folder.write_bytes(b"foreign")],
    "an empty entry": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
    "a link to nowhere": lambda folder: [shutil.rmtree(folder), folder.symlink_to("nowhere")],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_is_made_again_and_one_warning_says_so(cache, damage):
    make = Maker()
    assert take(make) == take(make) == RIGHT
    assert make.calls == 1
    damage(entry(cache))
    with pytest.warns(UserWarning, match="damaged, so it is converted again") as warned:
        assert take(make) == RIGHT
    assert (make.calls, len(warned)) == (2, 1)
    assert take(make) == RIGHT and make.calls == 2, "once is enough"
    assert [folder.name for folder in cache.iterdir()] == [entry(cache).name]


def test_a_link_to_a_foreign_folder_is_replaced_and_the_folder_stays(cache, tmp_path):
    make, foreign = Maker(), tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "net.onnx").write_bytes(b"foreign")
    cache.mkdir(parents=True)
    entry(cache).symlink_to(foreign)
    with fault_cases.untouched(foreign), pytest.warns(UserWarning, match="damaged"):
        assert take(make) == RIGHT


def test_what_fails_half_way_leaves_no_entry(cache):
    def fail(path):
        path.write_bytes(b"half")
        raise ModelError("no; do something else")

    with pytest.raises(ModelError):
        take(fail)
    assert list(cache.iterdir()) == []
    assert take(Maker()) == RIGHT


def test_of_two_that_make_the_same_both_get_it_whole(cache):
    make = Maker()

    def slow(path):
        assert take(make) == RIGHT  # another process is first
        make(path)

    assert take(slow) == RIGHT
    assert take(make) == RIGHT and make.calls == 2
