"""Pictures and label maps: cut, foreign, endless, of dimensions that fill the memory."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from fault_cases import answer, refusal, some, untouched
from PIL import Image

from workbench.pictures.images import LARGEST_FILE, list_images, load_image
from workbench.pictures.labels import load_labels, read_folder

FORMATS = ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "TGA", "ICO"]


def encoded(kind, mode="RGB", size=(24, 16)):
    """A small picture in a format."""
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def read_all(folder):
    return list(read_folder(folder))


# Every call that opens a picture of somebody's.
READERS = {"load_image": load_image, "load_labels": load_labels, "read_folder": lambda path: read_all(path.parent)}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_picture_is_told_or_read(kind, tmp_path):
    content = encoded(kind)
    for end in some(range(0, len(content), 7), 12):
        (tmp_path / "x.png").write_bytes(content[:end])
        text = answer(load_image, tmp_path / "x.png")
        assert end > len(content) // 2 or "x.png" in text


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_with_flipped_bits_is_told_or_read(kind, tmp_path):
    content, random = encoded(kind), np.random.default_rng(3)
    for place in some(range(len(content)), 40):
        data = bytearray(content)
        data[place] ^= 1 << int(random.integers(8))
        (tmp_path / "x.png").write_bytes(data)
        answer(load_image, tmp_path / "x.png")


@pytest.mark.parametrize("content", [b"", b"\0", b"text\n" * 50, b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", bytes(10_000)])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_picture_is_told(reader, content, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    with untouched(tmp_path):
        assert "x.png" in refusal(READERS[reader], tmp_path / "x.png")


def pipe(path):
    os.mkfifo(path)


def device(name):
    return lambda path: path.symlink_to(name)


PLACES = {
    "a pipe": pipe, "an endless device": device("/dev/zero"), "a random device": device("/dev/urandom"),
    "an empty device": device("/dev/null"), "a folder": lambda path: path.mkdir(), "nothing": lambda path: None,
    "a link to itself": lambda path: path.symlink_to(path), "a link to nowhere": device("gone"),
    "a terminal": device("/dev/tty"), "a huge file": lambda path: (path.touch(), os.truncate(path, LARGEST_FILE + 1)),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("reader", ["load_image", "load_labels"])
def test_what_is_no_file_of_a_sane_size_is_told_at_once(reader, place, tmp_path):
    PLACES[place](tmp_path / "x.png")
    assert "x.png" in refusal(READERS[reader], tmp_path / "x.png")


@pytest.mark.parametrize("place", ["a pipe", "an endless device", "a folder", "a link to nowhere", "a link to itself"])
def test_a_folder_of_pictures_leaves_out_what_is_no_file(place, tmp_path):
    PLACES[place](tmp_path / "x.png")
    (tmp_path / "y.png").write_bytes(encoded("PNG"))
    assert [path.name for path in list_images(tmp_path)] == ["y.png"]


def png_of(width, height, bits=8, color=0, body=b""):
    """A PNG whose header promises these dimensions."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    content = chunk(b"IHDR", header) + body + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


BOMBS = {
    "4 gigapixels": png_of(65_000, 65_000), "the widest": png_of(2**31 - 1, 1), "the highest": png_of(1, 2**31 - 1),
    "100 megapixels": png_of(10_000, 10_000), "190 megapixels": png_of(19_000, 10_000), "no width": png_of(0, 8),
    "no height": png_of(8, 0), "16 bits": png_of(60_000, 60_000, 16), "colours": png_of(60_000, 60_000, 8, 6),
    "no such depth": png_of(8, 8, 77), "no such colour": png_of(8, 8, 8, 99), "cut rows": png_of(8_000, 8_000),
    "wide and low": png_of(300_000_000, 1),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("reader", READERS)
def test_a_small_file_of_huge_dimensions_is_told(reader, bomb, tmp_path):
    (tmp_path / "x.png").write_bytes(BOMBS[bomb])
    assert "x.png" in refusal(READERS[reader], tmp_path / "x.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F", "1"])
def test_a_label_map_has_one_channel_of_8_bits(mode, tmp_path):
    Image.fromarray(np.ones((4, 6), np.uint8)).convert(mode).save(tmp_path / "x.tiff")
    assert "x.tiff" in refusal(load_labels, tmp_path / "x.tiff")


@pytest.mark.parametrize("number", [34, 77, 254])
def test_labels_that_are_no_ids_of_cityscapes_are_told(number, tmp_path):
    path = tmp_path / "x_gtFine_labelIds.png"
    Image.fromarray(np.full((4, 6), number, np.uint8)).save(path)
    assert str(number) in refusal(load_labels, path)


@pytest.mark.parametrize("name", ["x\udcff.png", "ü.png", "new\tline.png", "%s{}.png", "-x.png", "x" * 250 + ".png"])
def test_a_picture_of_any_name_is_read(name, tmp_path):
    (tmp_path / name).write_bytes(encoded("PNG"))
    assert load_image(tmp_path / name).shape == (16, 24, 3)


@pytest.mark.parametrize("path", ["x\0.png", "x" * 300 + ".png"])
def test_a_name_that_no_disk_has_is_told(path):
    refusal(load_image, path)
    refusal(load_labels, path)


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_is_none_is_left_alone(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (6, 4)).save(tmp_path / "x.jpg", exif=exif)
    assert load_image(tmp_path / "x.jpg").shape == (4, 6, 3)
