"""No photograph of CamVid is in the repository: not as a file, nor in a figure, a notebook or a page."""

import base64
import json

import numpy as np
import pytest
from camvid_frames import (
    SAME_BITS,
    SHARED,
    find_frames,
    fingerprint,
    list_files,
    load_fingerprints,
    make_fingerprints,
)
from matplotlib.figure import Figure
from PIL import Image
from street_scenes import generate_scene


@pytest.fixture(scope="module")
def scenes():
    """Generated stand-ins for photographs."""
    return [generate_scene(seed, 360, 480).image for seed in range(3)]


def save_figure(image, other, path):
    figure = Figure(figsize=(9, 4))
    for axes, picture, title in zip(figure.subplots(1, 2), (other, image), ("truth", "photograph"), strict=True):
        axes.imshow(picture)
        axes.set(title=title, xlabel="columns (pixels)", ylabel="rows (pixels)")
    figure.suptitle("two panels")
    figure.savefig(path, dpi=100)


def save_notebook(picture, path):
    text = base64.encodebytes(picture.read_bytes()).decode()
    path.write_text(json.dumps({"cells": [{"outputs": [{"data": {"image/png": text}}]}]}))


def save_page(picture, path):
    path.write_text(f'<img src="data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}">')


def plant(image, other, folder):
    """The ways in which a photograph could get into the repository."""
    Image.fromarray(image).resize((240, 180)).save(folder / "small.jpg", quality=70)
    tinted = image // 2 + np.array([0, 0, 100], np.uint8)
    Image.fromarray(tinted.astype(np.uint8)).save(folder / "overlay.png")
    save_figure(image, other, folder / "figure.png")
    save_notebook(folder / "figure.png", folder / "a.ipynb")
    save_page(folder / "figure.png", folder / "a.html")


def test_no_photograph_of_camvid_is_in_the_repository():
    assert list(find_frames(list_files(), load_fingerprints())) == []


def test_a_planted_photograph_is_found_as_file_figure_notebook_and_page(scenes, tmp_path):
    plant(scenes[0], scenes[1], tmp_path)
    files = sorted(tmp_path.iterdir())
    assert list(find_frames(files, np.array([fingerprint(Image.fromarray(scenes[0]))]))) == [
        f"{path}: a photograph" for path in files
    ]
    assert list(find_frames(files, np.array([fingerprint(Image.fromarray(scenes[2]))]))) == []


def test_a_name_of_the_data_set_is_found_in_paths_and_in_text(tmp_path):
    name = "_".join(["0016E5", "08640"])
    (tmp_path / f"{name}.txt").write_text("")
    (tmp_path / "list.txt").write_text(f"train/images/{name}.jpg")
    assert len(list(find_frames(sorted(tmp_path.iterdir()), load_fingerprints()))) == 2


@pytest.mark.skipif(not SHARED.is_dir(), reason="the photographs are not on this machine; their fingerprints are")
def test_the_committed_fingerprints_are_those_of_the_photographs(scenes, tmp_path):
    known = load_fingerprints()
    made = make_fingerprints()
    assert known.shape == made.shape == (468, 256)
    assert (known ^ made).sum(axis=1).max() <= 4  # another version of the JPEG decoder may round differently
    photograph = np.asarray(Image.open(min(SHARED.glob("val/images/*.jpg"))))
    plant(photograph, scenes[0], tmp_path)
    assert len(list(find_frames(tmp_path.iterdir(), known))) == 5


def test_generated_scenes_are_far_from_every_photograph(scenes):
    known = load_fingerprints()
    for scene in scenes:
        assert (known ^ fingerprint(Image.fromarray(scene))).sum(axis=1).min() > SAME_BITS + 20
