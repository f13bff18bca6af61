"""Inputs made for networks of which only the specs are known."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from workbench.core.contract import TensorSpec
from workbench.core.errors import ImageError, InputError
from workbench.pictures.feeds import channel_axis, make_feeds, picture_array, read_feeds
from workbench.pictures.images import CITYSCAPES_MEAN, IMAGENET_MEAN_BGR

CHW = TensorSpec("x", (None, 3, 32, 48), "float32")
HWC = TensorSpec("x", (None, 32, 48, 3), "float32")
GREY = np.full((32, 48, 3), 100, np.uint8)


def test_pictures_go_to_both_layouts():
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    chw, hwc = picture_array(picture, CHW, "raw"), picture_array(picture, HWC, "raw")
    np.testing.assert_array_equal(hwc[0], picture)
    np.testing.assert_array_equal(chw, hwc.transpose(0, 3, 1, 2))


def test_each_preprocessing_has_its_range():
    assert picture_array(GREY, HWC, "unit") == pytest.approx(100 / 127.5 - 1)
    assert picture_array(GREY, HWC, "raw") == pytest.approx(100)
    rgb = 100 - np.array(CITYSCAPES_MEAN)
    np.testing.assert_allclose(picture_array(GREY, HWC, "cityscapes")[0, 0, 0], rgb, rtol=1e-5)
    red = np.array([255, 0, 0], np.uint8) * np.ones_like(GREY)
    np.testing.assert_allclose(
        picture_array(red, CHW, "cityscapes")[0, :, 0, 0], [255, 0, 0] - np.array(CITYSCAPES_MEAN), rtol=1e-5
    )
    bgr = 100 - np.array(IMAGENET_MEAN_BGR)
    np.testing.assert_allclose(picture_array(GREY, HWC, "imagenet")[0, 0, 0], bgr, rtol=1e-5)


def test_imagenet_preprocessing_turns_the_channels_to_bgr():
    red = np.zeros((32, 48, 3), np.uint8)
    red[..., 0] = 255
    assert picture_array(red, HWC, "imagenet")[0, 0, 0].argmax() == 2


def test_a_fixed_batch_is_filled():
    assert picture_array(GREY, TensorSpec("x", (4, 3, 32, 48), "float32"), "raw").shape == (4, 3, 32, 48)


def test_built_in_pictures_are_photographs_and_street_scenes():
    names = [name for name, _ in make_feeds({"x": CHW})]
    assert "astronaut" in names
    assert any(name.startswith("street scene") for name in names)


def test_a_folder_of_pictures_is_used(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "mine.png")
    assert [name for name, _ in make_feeds({"x": CHW}, tmp_path)] == ["mine.png"]


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "mine.png").write_text("no")
    with pytest.raises(ImageError, match=r"mine\.png"):
        list(make_feeds({"x": CHW}, tmp_path))


def test_other_inputs_get_the_same_random_numbers_each_time():
    specs = {"v": TensorSpec("v", (None, 8), "float32"), "n": TensorSpec("n", (None, None), "int64")}
    first, again = (list(make_feeds(specs)) for _ in range(2))
    assert first[0][1]["v"].shape == (1, 8)
    assert first[0][1]["n"].shape == (1, 16)
    assert set(np.unique(first[0][1]["n"])) == {0, 1}  # all 16 alike: 1 in 32768 seeds
    np.testing.assert_array_equal(first[0][1]["v"], again[0][1]["v"])
    assert not np.array_equal(first[0][1]["v"], first[1][1]["v"])


def test_pictures_for_a_network_without_pictures_are_refused(tmp_path):
    with pytest.raises(InputError, match="leave --images out"):
        list(make_feeds({"v": TensorSpec("v", (None, 8), "float32")}, tmp_path))


def test_an_open_picture_size_is_refused():
    with pytest.raises(InputError, match="convert the model with fixed height and width first"):
        picture_array(GREY, TensorSpec("x", (None, None, None, 3), "float32"), "raw")


def test_strings_are_refused():
    with pytest.raises(InputError, match="for which no test input can be made"):
        list(make_feeds({"s": TensorSpec("s", (None,), "object")}))


def test_what_is_known_of_an_input_goes_into_it_beside_pictures_too():
    specs = {"x": CHW, "ids": TensorSpec("ids", (None, 99), "int64"), "sizes": TensorSpec("sizes", (2,), "int64")}
    known = {"ids": 1000, "sizes": np.array([3, 4])}
    found = [feed for _, feed in make_feeds(specs, known=known)]
    assert all(feed["sizes"].tolist() == [3, 4] for feed in found)
    ids = np.concatenate([feed["ids"] for feed in found])
    assert ids.min() >= 0
    assert 900 < ids.max() < 1000  # none of 500 and more above 900 has a chance of 1e-23


def test_a_file_of_arrays_is_one_feed_and_its_first_axis_is_not_split(tmp_path):
    arrays = {"x": np.arange(6.0).reshape(2, 3), "scope/n:0": np.array(7)}
    np.savez(tmp_path / "mine.npz", **arrays)
    ((name, feed),) = read_feeds(tmp_path / "mine.npz")
    assert name == "mine"
    assert feed.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(feed[key], array)
        assert feed[key].dtype == array.dtype


def test_a_folder_of_files_is_a_feed_for_each_in_the_order_of_their_names(tmp_path):
    for name in ("b", "a"):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros(1))
    (tmp_path / "notes.txt").write_text("not a feed")
    assert [name for name, _ in read_feeds(tmp_path)] == ["a", "b"]


def test_text_comes_as_networks_take_it(tmp_path):
    np.savez(tmp_path / "words.npz", x=np.array(["one", "two"]))
    ((_, feed),) = read_feeds(tmp_path / "words.npz")
    assert (feed["x"].dtype, feed["x"].tolist()) == (np.dtype(object), ["one", "two"])


def write_text(path):
    path.write_text("x = 1")


def write_nothing(path):
    path.write_bytes(b"")


def write_one_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def write_pickled(path):
    np.savez(path, x=np.array([{"code": 1}], object))


def write_other_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.txt", "no array")


def write_damaged(path):
    np.savez(path, x=np.zeros(99))
    path.write_bytes(path.read_bytes()[:-60])


@pytest.mark.parametrize(
    "write", [write_text, write_nothing, write_one_array, write_pickled, write_other_zip, write_damaged]
)
def test_a_file_that_holds_no_plain_arrays_is_one_sentence(write, tmp_path):
    write(tmp_path / "bad.npz")
    with pytest.raises(InputError, match=r"bad\.npz is not an \.npz file of plain arrays; write one .* np\.savez"):
        read_feeds(tmp_path / "bad.npz")


def test_missing_feeds_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"none\.npz cannot be read \(No such file or directory\); give an \.npz file"):
        read_feeds(tmp_path / "none.npz")
    with pytest.raises(InputError, match=r"without any \.npz file; write one for each feed"):
        read_feeds(tmp_path)


def test_an_unknown_preprocessing_is_refused():
    with pytest.raises(InputError, match="got preprocess='magic', expected one of unit, raw"):
        list(make_feeds({"x": CHW}, preprocess="magic"))


def test_three_columns_of_numbers_are_no_picture():
    assert channel_axis(TensorSpec("v", (None, 3), "float32")) is None
    assert channel_axis(TensorSpec("v", (None, 3, 8, 8), "int64")) is None
    assert channel_axis(TensorSpec("v", (None, 8, 3, 8), "float32")) is None, "three rows are no colours"
