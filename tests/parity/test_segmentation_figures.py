"""Segmentation figures carry the runners' own names and say in grey what they say in colour."""

import io

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from street_scenes import generate_scene

from workbench.core.contract import BACKEND_NAMES, RunnerInfo
from workbench.core.drawing import Panel
from workbench.core.errors import InputError
from workbench.parity.segmentation import compare_segmentation
from workbench.parity.segmentation_figures import (
    WRONG_IN_BOTH,
    WRONG_IN_CANDIDATE,
    WRONG_IN_REFERENCE,
    confusion_figure,
    error_figure,
    overlay,
    overlay_figure,
)
from workbench.pictures.cityscapes import CITYSCAPES, confusion_matrix

KERAS = RunnerInfo("keras", "3.15.1", "TensorFlow, CPU")
ONNX = RunnerInfo("onnxruntime", "1.31.1", "CPU")
SCENE = generate_scene(3, 64, 128)


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def report_of(candidate, info=ONNX):
    return compare_segmentation(
        [("scene", SCENE.train_ids, SCENE.train_ids, candidate)], reference_name=KERAS.name, candidate_name=info.name
    )


def every_figure(info):
    right, moved = SCENE.train_ids, np.roll(SCENE.train_ids, 1, axis=1)
    return [
        confusion_figure(confusion_matrix(right, moved), info),
        overlay_figure(SCENE.image, [Panel(info, moved)]),
        overlay_figure(SCENE.image, [Panel(KERAS, right), Panel(info, moved)], right),
        error_figure(SCENE.image, right, Panel(KERAS, right), Panel(info, moved)),
        report_of(moved, info).figure(KERAS, info),
    ]


@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_figures_say_tensorrt_exactly_when_a_tensorrt_runner_took_part(backend):
    info = RunnerInfo(backend, "9.9", "some device")
    for figure in every_figure(info):
        shown = "\n".join(texts(figure))
        assert info.name in shown
        assert ("TensorRT" in shown) == backend.startswith("tensorrt")
        assert "What to look for" in shown


def test_figures_draw_at_notebook_width():
    for figure in every_figure(ONNX):
        assert Image.open(io.BytesIO(figure._repr_png_())).width == 1000


def test_a_title_that_is_not_a_runner_info_is_refused():
    counts = confusion_matrix(SCENE.train_ids, SCENE.train_ids)
    with pytest.raises(InputError, match="expected a RunnerInfo"):
        confusion_figure(counts, "TensorRT")
    with pytest.raises(InputError, match="expected a RunnerInfo"):
        report_of(SCENE.train_ids).figure(KERAS, "TensorRT")


def test_confusion_figure_writes_shares_of_the_true_class():
    truth, answer = np.array([0] * 200 + [1] * 4), np.array([0] * 199 + [1] + [0, 1, 19, 255])
    shown = texts(confusion_figure(confusion_matrix(truth, answer), ONNX))
    assert shown.count("50") == 1 and shown.count("25") == 2
    assert "99" in shown and "100" not in shown  # 99.5 % is not rounded up to all
    assert "void" in shown and "sky" not in shown  # classes that do not occur have no row


@pytest.mark.parametrize("counts", [np.zeros((19, 20), int), np.ones((3, 4), int)])
def test_confusion_figure_refuses_counts_of_nothing_or_of_other_classes(counts):
    with pytest.raises(InputError, match="make them with confusion_matrix"):
        confusion_figure(counts, ONNX)


def test_overlay_mixes_outlines_and_leaves_void_and_the_image_alone():
    image = np.full((4, 6, 3), 100, np.uint8)
    labels = np.zeros((4, 6), np.uint8)
    labels[:, 3:] = 255
    mixed = overlay(image, labels)
    assert mixed[0, 0].tolist() == ((100 + CITYSCAPES.colors[0].astype(int)) // 2).tolist()
    assert (mixed[:, 3] == 255).all()  # the outline
    assert (mixed[:, 4:] == 100).all() and (image == 100).all()


def test_overlay_figure_writes_the_names_of_large_regions_on_the_picture():
    labels = np.zeros((64, 128), np.uint8)
    labels[:30] = 10
    labels[40, 40] = 11  # too small for a name
    shown = texts(overlay_figure(np.zeros((64, 128, 3), np.uint8), [Panel(ONNX, labels)]))
    assert "road" in shown and "sky" in shown and "person" not in shown


def test_error_figure_counts_who_is_wrong():
    truth = np.zeros((20, 40), np.uint8)
    truth[0] = 255
    first, second = truth.copy(), truth.copy()
    first[0], second[0] = 5, 7  # not scored
    first[5, :10], second[5, 5:30] = 1, 1
    figure = error_figure(np.zeros((20, 40, 3), np.uint8), truth, Panel(KERAS, first), Panel(ONNX, second))
    shown = "\n".join(texts(figure))
    assert "wrong in both\n5 pixels" in shown
    assert f"only in {KERAS.name}\n5 pixels" in shown and f"only in {ONNX.name}\n20 pixels" in shown
    assert "wrong in 1.32 % of the pixels" in shown and "not scored" in shown  # 10 of 760


def test_colours_of_the_error_figure_differ_in_grey():
    greys = [np.dot(rgb, (0.299, 0.587, 0.114)) for rgb in (WRONG_IN_BOTH, WRONG_IN_REFERENCE, WRONG_IN_CANDIDATE)]
    assert greys[0] > 60 + 40 and min(np.diff(greys)) > 40  # the picture below is dimmed to 60 at most


def test_errors_of_one_kind_do_not_hide_their_neighbours_of_another():
    truth = np.zeros((100, 2000), np.uint8)
    first, second = truth.copy(), truth.copy()
    first[50], second[50] = 1, 1
    second[51] = 1
    figure = error_figure(np.zeros((100, 2000, 3), np.uint8), truth, Panel(KERAS, first), Panel(ONNX, second))
    drawn = figure.axes[2].images[0].get_array()
    assert tuple(drawn[50, 1000]) == WRONG_IN_BOTH and tuple(drawn[51, 1000]) == WRONG_IN_CANDIDATE


def test_sizes_that_differ_are_refused():
    panel = Panel(ONNX, SCENE.train_ids[:-1])
    with pytest.raises(InputError, match="expected one size"):
        overlay_figure(SCENE.image, [panel])
    with pytest.raises(InputError, match="expected one size"):
        error_figure(SCENE.image, SCENE.train_ids, Panel(KERAS, SCENE.train_ids), panel)
    with pytest.raises(InputError, match="at least one Panel"):
        overlay_figure(SCENE.image, [])


def test_class_change_figure_starts_with_the_largest_loss():
    ids = SCENE.train_ids
    report = report_of(np.where(ids == 10, 2, ids))
    shown = texts(report.figure(KERAS, ONNX))
    assert shown.index("sky") < shown.index("road")
    assert "-1.000" in shown and "+0.000" in shown


def test_class_change_figure_wants_the_reports_own_runners_and_a_truth():
    with pytest.raises(InputError, match="expected the report's"):
        report_of(SCENE.train_ids).figure(ONNX, KERAS)
    blind = compare_segmentation(
        [("scene", None, SCENE.train_ids, SCENE.train_ids)], reference_name=KERAS.name, candidate_name=ONNX.name
    )
    with pytest.raises(InputError, match="pass the truth"):
        blind.figure(KERAS, ONNX)
