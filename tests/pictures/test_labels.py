"""The folder reader, and scores that equal those of cityscapesScripts' own evaluation."""

import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as scripts
from cityscapesscripts.helpers.labels import id2label
from PIL import Image

from workbench.core.errors import ImageError, InputError
from workbench.pictures.cityscapes import (
    CITYSCAPES,
    class_iou,
    confusion_matrix,
    ids_to_train_ids,
    mean_iou,
    train_ids_to_ids,
)
from workbench.pictures.labels import (
    CityscapesDataset,
    fit_labels,
    load_labels,
    pair_labels,
    read_folder,
    street_scenes,
)

NAMES = ("bonn_000000_000019", "bonn_000001_000019", "ulm_000000_000019")
SIZE = (24, 32)


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def image_path(root, name, split="val"):
    return root / "leftImg8bit" / split / name.split("_")[0] / f"{name}_leftImg8bit.png"


def labels_path(root, name, split="val"):
    return root / "gtFine" / split / name.split("_")[0] / f"{name}_gtFine_labelIds.png"


@pytest.fixture
def root(tmp_path):
    """A folder laid out as Cityscapes is, with made pictures: ids 0..33, also those that are not scored."""
    generator = np.random.default_rng(0)
    for name in NAMES:
        save(generator.integers(0, 256, (*SIZE, 3), np.uint8), image_path(tmp_path / "data", name))
        save(generator.integers(0, 34, SIZE, np.uint8), labels_path(tmp_path / "data", name))
    return tmp_path / "data"


def write_predictions(root, folder, predict, suffix="_leftImg8bit"):
    for name in NAMES:
        save(predict(np.asarray(Image.open(labels_path(root, name)))), folder / f"{name}{suffix}.png")
    return folder


def scripts_scores(root, folder):
    """Class scores and their average as the data set's own evaluation gives them."""
    settings = SimpleNamespace(**vars(scripts.args))
    settings.evalInstLevelScore, settings.JSONOutput, settings.quiet = False, False, True
    settings.predictionPath, settings.predictionWalk = str(folder), None
    truth = [str(labels_path(root, name)) for name in NAMES]
    predictions = [scripts.getPrediction(settings, path) for path in truth]
    return scripts.evaluateImgLists(predictions, truth, settings)


def our_confusion(root, folder):
    """What the package counts on the same files."""
    files = {sample.name: next(folder.glob(f"{sample.name}*")) for sample in CityscapesDataset(root)}
    pairs = [(sample.truth, np.asarray(Image.open(files[sample.name]))) for sample in CityscapesDataset(root)]
    return sum(confusion_matrix(truth, ids_to_train_ids(ids)) for truth, ids in pairs)


def half_right(seed, low=0):
    """Half of the pixels the truth, the others any id, scored or not."""

    def predict(truth):
        generator = np.random.default_rng(seed)
        return np.where(generator.random(truth.shape) < 0.5, truth, generator.integers(low, 34, truth.shape, np.uint8))

    return predict


@pytest.mark.parametrize(
    "predict",
    [
        pytest.param(half_right(1), id="half right, half any id"),
        pytest.param(half_right(2, low=7), id="half right, half scored or unscored things"),
        pytest.param(lambda truth: truth, id="right, void included"),
        pytest.param(lambda truth: np.full_like(truth, 4), id="everything static, which is not scored"),
        pytest.param(lambda truth: np.full_like(truth, 7), id="everything road"),
        pytest.param(lambda truth: train_ids_to_ids(ids_to_train_ids(truth)), id="right, by way of train ids"),
    ],
)
def test_scores_equal_those_of_the_cityscapes_scripts(root, tmp_path, predict):
    folder = write_predictions(root, tmp_path / "out", predict)
    theirs = scripts_scores(root, folder)
    confusion = our_confusion(root, folder)
    # the same quotient of the same integers in float64
    np.testing.assert_array_equal(class_iou(confusion), [theirs["classScores"][name] for name in CITYSCAPES.names])
    assert mean_iou(confusion) == pytest.approx(theirs["averageScoreClasses"], rel=1e-12)  # summed in another order


def test_scores_leave_out_what_the_truth_does_not_score_and_classes_that_never_occur(root, tmp_path):
    for name in NAMES:  # road above, "out of roi" below
        save(
            np.repeat(np.array([[7], [3]], np.uint8), 12, axis=0) * np.ones((1, 32), np.uint8), labels_path(root, name)
        )
    folder = write_predictions(root, tmp_path / "out", lambda truth: np.where(truth == 3, 26, truth).astype(np.uint8))
    scores = class_iou(our_confusion(root, folder))
    assert scores[0] == 1 and np.isnan(scores[1:]).all()  # the cars below are on pixels that nobody scores
    theirs = scripts_scores(root, folder)
    assert (theirs["averageScoreClasses"], mean_iou(our_confusion(root, folder))) == (1, 1)


def test_samples_are_the_files_pixels_in_train_ids(root):
    dataset = CityscapesDataset(root)
    assert (len(dataset), [sample.name for sample in dataset]) == (3, list(NAMES))
    sample = dataset[-1]
    assert sample.name == NAMES[2]
    np.testing.assert_array_equal(sample.image, np.asarray(Image.open(image_path(root, NAMES[2]))))
    ids = np.asarray(Image.open(labels_path(root, NAMES[2])))
    expected = [id2label[number].trainId % 256 for number in ids.ravel().tolist()]  # -1 is void, 255
    np.testing.assert_array_equal(sample.truth.ravel(), expected)
    assert sample.truth.dtype == np.uint8
    with pytest.raises(IndexError):
        dataset[3]


def test_the_folder_comes_from_the_environment_unless_given(root, monkeypatch, tmp_path):
    monkeypatch.setenv("CITYSCAPES_DATASET", str(root))
    assert len(CityscapesDataset()) == 3
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path / "elsewhere"))
    assert len(CityscapesDataset(root)) == 3
    with pytest.raises(InputError, match=r"elsewhere \(from CITYSCAPES_DATASET\), which is not a folder"):
        CityscapesDataset()


def test_other_splits_are_found_and_unknown_ones_refused(root):
    shutil.copytree(root / "leftImg8bit" / "val", root / "leftImg8bit" / "train")
    shutil.copytree(root / "gtFine" / "val", root / "gtFine" / "train")
    assert len(CityscapesDataset(root, "train")) == 3
    with pytest.raises(InputError, match="got the split 'train_extra', expected one of train, val, test"):
        CityscapesDataset(root, "train_extra")


@pytest.mark.parametrize("value", [None, ""])
def test_without_cityscapes_the_message_says_where_to_register(monkeypatch, value):
    monkeypatch.delenv("CITYSCAPES_DATASET", raising=False)
    if value is not None:
        monkeypatch.setenv("CITYSCAPES_DATASET", value)
    with pytest.raises(InputError, match=r"CITYSCAPES_DATASET is not set; register at https://www.cityscapes") as error:
        CityscapesDataset()
    assert "gtFine_trainvaltest.zip" in str(error.value)


def test_a_missing_part_is_named(root):
    shutil.rmtree(root / "leftImg8bit")
    with pytest.raises(InputError, match=r"data has no leftImg8bit/val/<city>/\*_leftImg8bit.png; register at"):
        CityscapesDataset(root)
    with pytest.raises(InputError, match=r"has no leftImg8bit/test/.* and no gtFine/test/"):
        CityscapesDataset(root, "test")


def test_coarse_labels_alone_are_not_enough_and_the_message_says_so(root):
    (root / "gtFine").rename(root / "gtCoarse")
    with pytest.raises(InputError, match=r"has no gtFine/val/<city>/\*_gtFine_labelIds.png, only gtCoarse, whose"):
        CityscapesDataset(root)


@pytest.mark.parametrize("path", [image_path, labels_path])
def test_a_half_unpacked_folder_is_refused(root, path):
    path(root, NAMES[1]).unlink()
    with pytest.raises(InputError, match=f"1 frames of val have a photograph or labels .* first is {NAMES[1]}"):
        CityscapesDataset(root)


def test_hidden_files_of_an_archive_are_no_frames(root):
    hidden = image_path(root, NAMES[0])
    hidden.with_name(f"._{hidden.name}").write_bytes(b"\0")
    assert len(CityscapesDataset(root)) == 3


def test_unknown_ids_in_a_label_picture_are_named_with_the_file(root):
    save(np.full(SIZE, 77, np.uint8), labels_path(root, NAMES[0]))
    with pytest.raises(InputError, match=rf"{NAMES[0]}_gtFine_labelIds\.png: got ids 77, expected -1\.\.33"):
        CityscapesDataset(root)[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "cannot be decoded"),
        (lambda path: path.unlink(), "does not exist"),
        (
            lambda path: save(np.zeros((*SIZE, 3), np.uint8), path),
            "is a picture of mode RGB, expected one channel",
        ),
        (
            lambda path: save(np.zeros(SIZE, np.uint16), path),
            "is a picture of mode I;16, expected one channel",
        ),
    ],
)
def test_a_damaged_label_picture_is_refused_by_name(root, damage, message):
    path = labels_path(root, NAMES[0])
    damage(path)
    with pytest.raises(ImageError, match=f"{re.escape(str(path))} {message}"):
        load_labels(path)


def test_a_palette_picture_of_ids_is_read_by_its_numbers(tmp_path):
    picture = Image.fromarray(np.array([[7, 26]], np.uint8)).convert("P")
    picture.putpalette([255] * 768)
    picture.save(tmp_path / "p_gtFine_labelIds.png")
    assert load_labels(tmp_path / "p_gtFine_labelIds.png").tolist() == [[0, 13]]


def test_labels_of_another_size_than_the_photograph_are_refused(root):
    save(np.full((24, 30), 7, np.uint8), labels_path(root, NAMES[0]))
    with pytest.raises(InputError, match=r"has 24 x 32 pixels \(height x width\), but .* has 24 x 30"):
        CityscapesDataset(root)[0]


def test_the_scenes_of_the_project_are_read_with_their_truth():
    (scene,) = street_scenes(["scene_1000025"])
    assert (scene.name, scene.image.shape, scene.truth.shape) == ("scene_1000025", (512, 1024, 3), (512, 1024))
    assert set(np.unique(scene.truth)) <= {*range(19), 255}


def test_any_folder_is_read_by_the_same_code(tmp_path):
    for name in "ab":
        save(np.full((*SIZE, 3), ord(name), np.uint8), tmp_path / "images" / f"{name}.png")
        save(np.full(SIZE, 3, np.uint8), tmp_path / "labels" / f"{name}.png")
    with_truth = list(read_folder(tmp_path / "images", tmp_path / "labels"))
    assert [picture.name for picture in with_truth] == ["a.png", "b.png"]
    assert [int(picture.truth.max()) for picture in with_truth] == [3, 3]
    assert [picture.truth for picture in read_folder(tmp_path / "images")] == [None, None]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("a.png",), r"no labels for b\.jpg"),
        (("a.png", "b.png", "c.png", "d.png"), r"no image for c\.png and 1 more"),
        (("a.png", "b.png", "b.bmp"), r"has both b\.bmp and b\.png"),
    ],
)
def test_pictures_and_labels_that_do_not_belong_together_are_refused(tmp_path, labels, message):
    for name in labels:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=message):
        pair_labels(["a.jpg", "b.jpg"], tmp_path)


def test_labels_take_the_size_of_a_network_and_stay_labels():
    labels = np.array([[0, 18], [7, 255]], np.uint8)
    np.testing.assert_array_equal(fit_labels(labels, (4, 6)), np.kron(labels, np.ones((2, 3), np.uint8)))
    shrunk = fit_labels(np.random.default_rng(0).choice(np.uint8([0, 18, 255]), (9, 15)), (4, 5))
    assert shrunk.shape == (4, 5)
    assert set(np.unique(shrunk)) <= {0, 18, 255}
