"""What is converted on the way is converted once, and found again by its content."""

import pytest
from networks import small_network

from workbench.core.errors import ModelError
from workbench.export import conversion
from workbench.export.cached import as_onnx


@pytest.fixture
def keras_file(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    small_network().save(tmp_path / "net.keras")
    return tmp_path / "net.keras"


def test_an_onnx_file_is_taken_as_it_is(tmp_path):
    with as_onnx(tmp_path / "net.onnx") as path:
        assert path == tmp_path / "net.onnx"


def test_a_file_is_converted_once_and_again_when_it_changes(keras_file, monkeypatch):
    real, calls = conversion.convert, []
    monkeypatch.setattr(conversion, "convert", lambda *a, **k: calls.append(a) or real(*a, **k))
    with as_onnx(keras_file, progress=False) as first:
        assert (first.name, first.is_file()) == ("net.onnx", True)
    with as_onnx(keras_file, progress=False) as second:
        assert second == first and first.is_file()
    assert len(calls) == 1
    keras_file.write_bytes(keras_file.read_bytes() + b"\0")  # other content
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "convert", lambda source, path, **options: path.write_bytes(b"converted again"))
        with as_onnx(keras_file, progress=False) as third:
            assert third != first and third.read_bytes() == b"converted again"


def test_without_a_place_for_the_cache_it_lives_as_long_as_the_block(keras_file, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "file"))
    with as_onnx(keras_file, progress=False) as path:
        assert path.is_file()
    assert not path.exists()


def test_a_model_that_is_no_file_lives_as_long_as_the_block(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    with as_onnx(small_network(), progress=False) as path:
        assert path.is_file()
    assert not path.exists() and not (tmp_path / "cache").exists()


def test_a_source_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="does not exist"), as_onnx(tmp_path / "no.keras", progress=False):
        pass
