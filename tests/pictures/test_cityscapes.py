"""Colours equal the tutorial's loop; ids and scores equal hand arithmetic."""

import subprocess
import sys

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import id2label, trainId2label
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from workbench.core.errors import InputError
from workbench.pictures.cityscapes import (
    BLOCK_PIXELS,
    CITYSCAPES,
    VOID,
    Palette,
    argmax_classes,
    class_iou,
    color_map,
    confusion_matrix,
    ids_to_train_ids,
    mean_iou,
    train_ids_to_ids,
)


def tutorial_color_map(output):
    """The tutorial's loop: (20, H, W) scores to (H, W, 3) uint8; it searches each pixel twice, as there."""
    _, rows, columns = output.shape
    picture = np.zeros((rows, columns, 3), np.uint8)
    for x in range(columns):
        for y in range(rows):
            if np.argmax(output[:, y, x]) != 19:
                picture[y, x] = id2label[trainId2label[int(np.argmax(output[:, y, x]))].id].color
    return picture


SCORES = arrays.arrays(
    np.float32,
    st.tuples(st.just(20), st.integers(1, 4), st.integers(1, 4)),
    elements=st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.5, 1.0, np.inf, np.nan]),
)


@given(SCORES)
def test_color_map_equals_the_tutorials_loop(scores):
    expected = tutorial_color_map(scores)
    np.testing.assert_array_equal(color_map(scores), expected)
    np.testing.assert_array_equal(color_map(scores[None]), expected)
    np.testing.assert_array_equal(color_map(np.argmax(scores, axis=0)), expected)


@given(
    arrays.arrays(
        st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.int32]),
        st.tuples(st.integers(1, 6), st.integers(0, 5), st.integers(0, 5)),
    )
)
def test_argmax_classes_equals_numpy_with_ties_and_nan(scores):
    result = argmax_classes(scores)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, np.argmax(scores, axis=0))


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(3, BLOCK_PIXELS + 1), (BLOCK_PIXELS // 5, 7), (300, 301)]))
def test_argmax_classes_equals_numpy_across_blocks(seed, shape):
    scores = np.random.default_rng(seed).integers(0, 3, (4, *shape)).astype(np.float32)
    scores[2, shape[0] // 2, 5] = np.nan
    np.testing.assert_array_equal(argmax_classes(scores), np.argmax(scores, axis=0))


def test_argmax_classes_reads_views_that_are_not_contiguous():
    scores = np.random.default_rng(0).standard_normal((9, 11, 20), np.float32).transpose(2, 0, 1)[:, ::2, ::-1]
    np.testing.assert_array_equal(argmax_classes(scores), np.argmax(scores, axis=0))


@pytest.mark.parametrize(
    "scores", [np.zeros((2, 2)), np.zeros((0, 2, 2)), np.zeros((257, 1, 1)), np.zeros((2, 1, 1), bool)]
)
def test_argmax_classes_says_what_it_expects(scores):
    with pytest.raises(InputError, match=r"expected \(C, H, W\) real numbers"):
        argmax_classes(scores)


def test_argmax_classes_can_name_256_channels():
    scores = np.zeros((256, 1, 1))
    scores[255] = 1
    assert argmax_classes(scores).item() == 255


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.uint32])
def test_color_map_paints_train_ids_of_any_integer_type(dtype):
    train_ids = np.array([[0, 13], [19, VOID]], dtype)
    assert color_map(train_ids).tolist() == [[[128, 64, 128], [0, 0, 142]], [[0, 0, 0], [0, 0, 0]]]


def test_color_map_paints_the_classes_without_a_void_channel():
    scores = np.zeros((19, 1, 1), np.float32)
    scores[10] = 1
    assert color_map(scores)[0, 0].tolist() == [70, 130, 180]  # sky


def test_color_map_takes_the_palette_of_another_data_set():
    palette = Palette(("cat", "dog"), np.array([[1, 2, 3], [4, 5, 6]]), void=np.array([9, 9, 9]))
    assert color_map(np.array([[0, 1, 2, 255]]), palette).tolist() == [[[1, 2, 3], [4, 5, 6], [9, 9, 9], [9, 9, 9]]]
    assert color_map(np.array([[[0.0]], [[1.0]]]), palette).tolist() == [[[4, 5, 6]]]
    assert color_map(np.array([[[0.0]], [[1.0]], [[2.0]]]), palette).tolist() == [[[9, 9, 9]]]


@pytest.mark.parametrize(
    ("train_ids", "named"), [([[20, 0]], "20"), ([[-1, 3]], "-1"), ([[300, 21]], "21, 300"), ([[254]], "254")]
)
def test_color_map_names_train_ids_that_the_palette_lacks(train_ids, named):
    with pytest.raises(InputError, match=rf"got train ids {named}, expected 0\.\.19 or 255; pass palette="):
        color_map(np.array(train_ids))


def test_color_map_shortens_a_long_list_of_wrong_train_ids():
    with pytest.raises(InputError, match="20, 21, 22, 23, 24 and 5 more"):
        color_map(np.arange(30).reshape(5, 6))


@pytest.mark.parametrize(
    ("output", "fix"),
    [
        (np.zeros((4, 5, 20)), r"output\.transpose\(2, 0, 1\)"),
        (np.zeros((2, 20, 4, 5)), r"output\[0\]"),
        (np.zeros((7, 4, 5)), "palette="),
        (np.zeros((20,)), "palette="),
        (np.zeros((4, 5)), r"\.astype\(np\.uint8\)"),
    ],
)
def test_color_map_says_how_to_fix_a_wrong_shape(output, fix):
    with pytest.raises(InputError, match=fix):
        color_map(output)


def test_palette_has_cityscapes_classes_and_cannot_be_changed():
    assert len(CITYSCAPES) == 19 and CITYSCAPES.names[0] == "road" and CITYSCAPES.names[18] == "bicycle"
    assert CITYSCAPES.void.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="read-only"):
        CITYSCAPES.colors[0, 0] = 1


@pytest.mark.parametrize(
    ("names", "colors"),
    [
        (("a",), [[1, 2, 3], [4, 5, 6]]),
        (("a",), [[1, 2]]),
        (("a",), [[1, 2, 256]]),
        (("a",), [[0.5, 0, 0]]),
        ((), []),
    ],
)
def test_palette_refuses_colours_that_do_not_fit(names, colors):
    with pytest.raises(InputError):
        Palette(names, colors)


@given(arrays.arrays(np.uint8, arrays.array_shapes(), elements=st.sampled_from([*range(19), VOID])))
def test_train_ids_survive_the_way_to_ids_and_back(train_ids):
    ids = train_ids_to_ids(train_ids)
    assert ids.dtype == np.uint8 and ids.shape == train_ids.shape
    np.testing.assert_array_equal(ids_to_train_ids(ids), train_ids)


def test_ids_and_train_ids_agree_with_the_cityscapes_scripts():
    for number, label in id2label.items():
        expected = label.trainId if label.trainId >= 0 else VOID
        assert ids_to_train_ids(number).item() == expected
    for number in range(19):
        assert train_ids_to_ids(number).item() == trainId2label[number].id
    assert train_ids_to_ids([19, VOID]).tolist() == [0, 0]
    assert ids_to_train_ids(np.array([255], np.uint8)).item() == VOID  # -1 in 8 bits


def test_id_conversions_name_numbers_that_stand_for_nothing():
    with pytest.raises(InputError, match=r"got train ids 20, 33, expected 0\.\.19 or 255; are they already"):
        train_ids_to_ids([20, 33])
    with pytest.raises(InputError, match=r"got ids -2, 34, 1000, expected -1\.\.33"):
        ids_to_train_ids([34, -2, 1000, 3])
    with pytest.raises(InputError, match="float64, expected integers"):
        ids_to_train_ids([1.0])


@given(
    arrays.arrays(np.uint8, 30, elements=st.sampled_from([0, 1, 2, VOID])),
    arrays.arrays(np.uint8, 30, elements=st.sampled_from([0, 1, 2, 3, VOID])),
)
def test_confusion_matrix_counts_one_pixel_at_a_time(truth, prediction):
    expected = np.zeros((3, 4), np.int64)
    for true, predicted in zip(truth, prediction, strict=True):
        if true != VOID:
            expected[true, min(predicted, 3)] += 1
    counts = confusion_matrix(truth, prediction, classes=3)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, expected)


def test_confusion_matrix_counts_a_negative_prediction_as_outside():
    assert confusion_matrix(np.array([[1]]), np.array([[-1]]), classes=2).tolist() == [[0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        ([0, 1], [0], r"int64 \(2,\) and int64 \(1,\), expected integer maps of one shape"),
        ([0.0], [0], "expected integer maps"),
        ([19, 26], [0, 0], r"got 19, 26 in the truth, expected 0\.\.18 or 255; use ids_to_train_ids"),
    ],
)
def test_confusion_matrix_says_what_does_not_fit(truth, prediction, message):
    with pytest.raises(InputError, match=message):
        confusion_matrix(truth, prediction)


def test_class_iou_agrees_with_hand_arithmetic():
    confusion = [[3, 1, 0, 0], [0, 4, 0, 2], [0, 0, 0, 0]]
    scores = class_iou(confusion)
    np.testing.assert_allclose(scores[:2], [3 / 4, 4 / 7])  # 4 / (4 right + 2 missed + 1 wrong)
    assert np.isnan(scores[2])  # in neither the truth nor the prediction
    assert mean_iou(confusion) == pytest.approx((3 / 4 + 4 / 7) / 2)


def test_class_iou_is_zero_for_a_class_that_is_only_predicted():
    assert class_iou([[1, 1, 0], [0, 0, 0]]).tolist() == [0.5, 0.0]


def test_mean_iou_of_nothing_is_nan_without_a_warning():
    assert np.isnan(mean_iou(np.zeros((2, 3))))


def test_class_iou_refuses_a_square_matrix():
    with pytest.raises(InputError, match=r"expected \(N, N \+ 1\) counts"):
        class_iou(np.zeros((3, 3)))


def test_importing_cityscapes_opens_no_plotting_library():
    code = "import sys, workbench.pictures.cityscapes; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
