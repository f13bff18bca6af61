"""Pictures are read as people see them, and prepared without surprises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from workbench.core.errors import ImageError, InputError
from workbench.pictures.images import CITYSCAPES_MEAN, list_images, load_image, rescale_image, sub_mean_chw

RGB = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [40, 50, 60], [70, 80, 90]]], np.uint8)


def test_load_image_returns_the_pixels_that_were_saved(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.dtype == np.uint8 and image.flags.writeable and image.flags.c_contiguous
    np.testing.assert_array_equal(image, RGB)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_load_image_makes_rgb_of_every_mode(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (5, 3), (255, 255, 255)).convert(mode).save(path)
    image = load_image(path)
    assert image.shape == (3, 5, 3)
    assert (image == 255).all()


def test_load_image_drops_transparency_and_keeps_the_colour(tmp_path):
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png")[0, 0].tolist() == [10, 20, 30]


def test_load_image_scales_16_bit_grey_to_8_bit(tmp_path):
    # k * 257 is the 16-bit number of the 8-bit k; what lies between goes to the nearest
    values = np.array([[0, 128, 129, 257, 32896, 51400 - 128, 51400 + 128, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png")[0, :, 1].tolist() == [0, 0, 1, 1, 128, 200, 200, 255]


@pytest.mark.parametrize("values", [np.ones((2, 2), np.float32), np.full((2, 2), -1, np.int32)])
def test_load_image_refuses_values_that_are_no_intensities(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "depth.tif")
    with pytest.raises(ImageError, match=r"depth\.tif holds .*expected 8 or 16 bits"):
        load_image(tmp_path / "depth.tif")


def test_load_image_applies_the_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate 90 degrees clockwise to show"; EXIF 2.32, tag Orientation
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), np.rot90(RGB, -1))


def test_load_image_names_a_file_that_is_no_image(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("not an image")
    with pytest.raises(ImageError, match=r"notes\.png is not an image that Pillow can read; expected \.bmp"):
        load_image(path)


def test_load_image_names_an_empty_file(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(ImageError, match=r"a\.png is empty \(0 bytes\)"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_load_image_names_a_file_that_was_cut_short(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"a\{suffix} "):
        load_image(path)


def test_load_image_names_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png does not exist; check the path"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match=r"is a folder.*list_images"):
        load_image(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("pixels", [6, 2])  # Pillow warns above its limit, and raises above twice its limit
def test_load_image_refuses_a_decompression_bomb(tmp_path, monkeypatch, pixels):
    Image.new("RGB", (3, 3)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    with pytest.raises(ImageError, match=rf"bomb\.png has more than {pixels} pixels"):
        load_image(tmp_path / "bomb.png")


def test_list_images_sorts_and_leaves_out_what_is_no_image(tmp_path):
    for name in ["b.JPG", "a.png", "c.txt", ".hidden.png"]:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG"]


def test_list_images_says_what_it_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"no image in .*\.bmp, \.jpeg, \.jpg, \.png"):
        list_images(tmp_path)
    with pytest.raises(InputError, match="expected a folder"):
        list_images(tmp_path / "gone")


def test_rescale_image_keeps_intensities_and_channels():
    image = np.full((8, 6, 3), 200, np.uint8)
    resized = rescale_image(image, (4, 12))
    assert resized.shape == (4, 12, 3) and resized.dtype == np.float64
    np.testing.assert_allclose(resized, 200, rtol=1e-12)  # a constant stays; float64 rounding only


def test_rescale_image_averages_neighbours_linearly():
    # Four columns lie at -0.25, 0.25, 0.75 and 1.25 of two; "reflect" mirrors at the edge pixel's centre.
    row = np.array([[0.0, 100.0]])
    np.testing.assert_allclose(rescale_image(row, (1, 4)), [[25, 25, 75, 75]], atol=1e-9)


def test_rescale_image_smooths_when_it_shrinks():
    """Every fourth column is white: a quarter of the light; the columns that are hit alone are all black."""
    stripes = np.zeros((1, 64))
    stripes[:, ::4] = 100
    # a Gaussian of sigma (4 - 1) / 2 leaves a ripple of a few percent
    np.testing.assert_allclose(rescale_image(stripes, (1, 16))[0, 1:-1], 25, atol=2)


def test_rescale_image_with_order_0_makes_no_new_labels():
    labels = np.array([[0, 255], [7, 19]], np.uint8)
    resized = rescale_image(labels, (4, 4), order=0)
    np.testing.assert_array_equal(resized, labels.repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize(
    ("shape", "output_shape"), [((2, 3, 4, 3), (2, 2)), ((0, 3), (2, 2)), ((4, 4), (0, 2)), ((4, 4), (2,))]
)
def test_rescale_image_refuses_what_is_no_image(shape, output_shape):
    with pytest.raises(InputError, match="expected"):
        rescale_image(np.zeros(shape), output_shape)


@given(arrays.arrays(np.uint8, st.tuples(st.just(3), st.integers(1, 6), st.integers(1, 6))))
def test_sub_mean_chw_agrees_with_one_pixel_at_a_time(image):
    before = image.copy()
    result = sub_mean_chw(image)
    assert result.dtype == np.float32 and result.shape == image.shape
    for channel, mean in enumerate(CITYSCAPES_MEAN):
        # float32 has 24 bits: rounding of numbers up to 255 is below 2e-5
        np.testing.assert_allclose(result[channel], image[channel].astype(float) - mean, atol=2e-5)
    np.testing.assert_array_equal(image, before)


def test_sub_mean_chw_does_not_modify_a_float32_input():
    image = np.ones((3, 2, 2), np.float32)
    sub_mean_chw(image)
    assert (image == 1).all()


def test_sub_mean_chw_rejects_hwc_and_says_how_to_fix_it():
    with pytest.raises(InputError, match=r"\(4, 5, 3\).*image\.transpose\(2, 0, 1\)"):
        sub_mean_chw(np.zeros((4, 5, 3)))


def test_sub_mean_chw_rejects_a_batch_and_a_short_mean():
    with pytest.raises(InputError, match="pass one RGB image"):
        sub_mean_chw(np.zeros((1, 3, 4, 5)))
    with pytest.raises(InputError, match="mean of three numbers"):
        sub_mean_chw(np.zeros((3, 4, 5)), mean=(1.0, 2.0))
