"""Files of feeds, and feeds themselves, that a network cannot take."""

import io
import os
import zipfile

import fault_cases
import numpy as np
import pytest
from onnx import helper
from onnx_networks import save_network

from workbench.core.contract import TensorSpec
from workbench.core.errors import InputError
from workbench.export.conversion import convert
from workbench.onnx_graph.mend import fix
from workbench.parity.stages import verify
from workbench.pictures import feeds as feeds_module
from workbench.pictures.feeds import make_feeds, picture_array, random_feed, read_feeds

GOOD = np.ones((2, 4), np.float32)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """input (batch, 4) to output (batch, 4)."""
    ends = [{name: ("float32", ("batch", 4))} for name in ("input", "output")]
    path = tmp_path_factory.mktemp("network") / "relu.onnx"
    return save_network(path, [helper.make_node("Relu", ["input"], ["output"])], *ends)


def with_value(value):
    array = GOOD.copy()
    array[1, 2] = value
    return {"input": array}


ARRAYS = {
    "a NaN": (with_value(np.nan), "NaN"),
    "infinity": (with_value(np.inf), "infinite"),
    "minus infinity": (with_value(-np.inf), "infinite"),
    "a batch of NaN": ({"input": np.full((2, 4), np.nan, np.float32)}, "8 NaN"),
    "another name": ({"inptu": GOOD}, "inptu"),
    "a name too many": ({"input": GOOD, "more": GOOD}, "more"),
    "no arrays": ({}, "input"),
    "float64": ({"input": GOOD.astype(np.float64)}, "float32"),
    "integers": ({"input": GOOD.astype(np.int32)}, "float32"),
    "text": ({"input": np.full((2, 4), "x")}, "float32"),
    "complex numbers": ({"input": GOOD.astype(np.complex64)}, "float32"),
    "dates": ({"input": np.zeros((2, 4), "datetime64[s]")}, "float32"),
    "foreign byte order": ({"input": GOOD.astype(">f4")}, "byte order"),
    "another size": ({"input": np.ones((2, 5), np.float32)}, "axis 1"),
    "no batch axis": ({"input": np.ones(4, np.float32)}, "x[None]"),
    "an empty batch": ({"input": np.ones((0, 4), np.float32)}, "empty"),
    "an axis too many": ({"input": np.ones((1, 2, 4), np.float32)}, "axes"),
    "a number": ({"input": np.float32(1)}, ""),
    "fields": ({"input": np.zeros((2, 4), [("a", "f4")])}, "float32"),
}


@pytest.mark.parametrize(("arrays", "words"), ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("command", ["convert", "verify"])
def test_arrays_that_the_network_does_not_take_are_refused(network, tmp_path, capsys, command, arrays, words):
    np.savez(tmp_path / "feed.npz", **arrays)
    out = [tmp_path / "out.onnx"] if command == "convert" else [network]
    with fault_cases.untouched(tmp_path, network.parent):
        status, text = fault_cases.command(capsys, command, network, *out, "--feeds", tmp_path / "feed.npz")
    assert status == 2
    assert words in text


def header(shape="(2, 4)", dtype="'<f4'", order="False"):
    """An .npy file of which only the header is there."""
    text = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def archive(*entries):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries:
            file.writestr(name, content)
    return stream.getvalue()


def saved(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


class Evil:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("it_ran",)


WHOLE = saved(input=GOOD)
FILES = {
    "nothing": b"",
    "text": b"no arrays\n" * 10,
    "zeros": bytes(500),
    "an array alone": header() + GOOD.tobytes(),
    "a zip archive of other files": archive(("readme.txt", "hello")),
    "an empty archive": archive(),
    "an entry that is no array": archive(("input.npy", b"no array")),
    "an array with numbers missing": archive(("input.npy", header() + bytes(8))),
    "an array of 2**60 numbers": archive(("input.npy", header(f"({2**60},)"))),
    "an array of a negative size": archive(("input.npy", header("(-1, 4)"))),
    "an array whose shape is no tuple": archive(("input.npy", header("'evil'"))),
    "an array whose shape is code": archive(("input.npy", header("__import__('os').mkdir('it_ran')"))),
    "an array of an unknown type": archive(("input.npy", header(dtype="'<q9'"))),
    "a header nested deeply": archive(("input.npy", header("(" * 5000 + ")" * 5000))),
    "pickled code": saved(input=np.array([Evil()], object)),
    "pickled code alone": b"\x80\x04cos\nmkdir\n(S'it_ran'\ntR.",
    "an entry that is there twice": archive(("input.npy", header() + GOOD.tobytes()), ("input.npy", b"no array")),
    "a name that leads outside": archive(("../../input.npy", header() + GOOD.tobytes())),
    "a wrong checksum": WHOLE.replace(GOOD.tobytes(), (2 * GOOD).tobytes()),
    **{f"{share} % of a file": WHOLE[: len(WHOLE) * share // 100] for share in (1, 10, 50, 90, 99)},
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of zipfile, which here writes what is not usual
@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_what_is_no_file_of_arrays_is_refused_and_runs_nothing(network, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "feed.npz").write_bytes(content)
    with fault_cases.untouched(tmp_path):
        assert fault_cases.refusal(lambda: verify(network, network, feeds=read_feeds("feed.npz"), progress=False))


def flipped(seed):
    draw, content = np.random.default_rng(seed), bytearray(WHOLE)
    content[draw.integers(len(content))] ^= 1 << draw.integers(8)
    return bytes(content)


@pytest.mark.parametrize("seed", fault_cases.some(range(2000), 40))
def test_a_flipped_bit_is_read_or_refused(tmp_path, seed):
    (tmp_path / "feed.npz").write_bytes(flipped(seed))
    fault_cases.answer(read_feeds, tmp_path / "feed.npz")


def test_what_unpacks_to_more_than_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(feeds_module, "LARGEST_BYTES", 1 << 20)
    large = header(f"({1 << 19},)") + bytes(4 << 19)
    (tmp_path / "bomb.npz").write_bytes(archive(("input.npy", large)))
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 14
    assert "unpacks to" in fault_cases.refusal(read_feeds, tmp_path / "bomb.npz")


def test_a_pipe_a_folder_and_nothing_at_all_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "empty").mkdir()
    (tmp_path / "ring.npz").symlink_to("ring.npz")
    for name in ("pipe.npz", "empty", "ring.npz", "none.npz", "n" * 300, "a\0b.npz"):
        fault_cases.refusal(read_feeds, tmp_path / name)


GIVEN = {
    "arrays alone": [{"input": GOOD}],
    "names alone": ["one", "two"],
    "numbers": [1, 2],
    "three things": [("one", {"input": GOOD}, 3)],
    "a list of arrays": [("one", [GOOD])],
    "an array": [("one", GOOD)],
    "nothing": [],
    "lists for arrays": [("one", {"input": [[1.0] * 4]})],
    "None": [None],
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("call", ["verify", "convert", "fix"])
def test_feeds_of_another_form_are_refused(network, tmp_path, call, given):
    out = tmp_path / "out.onnx"
    calls = {
        "verify": lambda: verify(network, network, feeds=given, progress=False),
        "convert": lambda: convert(network, out, feeds=given, progress=False),
        "fix": lambda: fix(network, out, feeds=given, progress=False),
    }
    with fault_cases.untouched(tmp_path):
        fault_cases.refusal(calls[call])


SPECS = {
    "2**62 numbers": TensorSpec("x", (None, 2**62), "float32"),
    "a picture of 2**40 rows": TensorSpec("x", (1, 3, 2**40, 8), "float32"),
    "a batch of 2**40 pictures": TensorSpec("x", (2**40, 3, 8, 8), "float32"),
    "complex numbers": TensorSpec("x", (1, 4), "complex64"),
    "text": TensorSpec("x", (1, 4), "object"),
    "open rows": TensorSpec("x", (1, 3, None, 8), "float32"),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_inputs_that_cannot_be_made_up_are_refused(spec):
    fault_cases.refusal(lambda: list(make_feeds({"x": spec})))


def test_the_largest_input_that_is_made_up_is_one_that_memory_holds(monkeypatch):
    monkeypatch.setattr(feeds_module, "LARGEST_BYTES", 16)
    spec, generator = TensorSpec("x", (1, 4), "float32"), np.random.default_rng(0)
    assert random_feed({"x": spec}, generator)["x"].nbytes == 16
    with pytest.raises(InputError, match="more than the 16 bytes"):
        random_feed({"x": TensorSpec("x", (1, 5), "float32")}, generator)
    with pytest.raises(InputError, match="more than the 16 bytes"):
        picture_array(np.zeros((2, 2, 3), np.uint8), TensorSpec("x", (1, 3, 2, 2), "float32"), "unit")
