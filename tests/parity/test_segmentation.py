"""Label maps: agreement, IoU and its change by hand arithmetic; planted faults are named and never hidden."""

import json

import numpy as np
import pytest
from street_scenes import generate_scene

from workbench.core.errors import InputError
from workbench.parity.segmentation import SegmentationLimits, compare_segmentation, disagreement
from workbench.pictures.cityscapes import CITYSCAPES, VOID, Palette

THREE = Palette(("road", "car", "sky"), np.array([[128, 64, 128], [0, 0, 142], [70, 130, 180]]))


def compare(*answers, palette=THREE, **options):
    return compare_segmentation(
        answers, reference_name="Keras", candidate_name="ONNX Runtime", palette=palette, **options
    )


def blocks(height=40, width=60):
    """Sky over road, and a car."""
    labels = np.zeros((height, width), np.uint8)
    labels[: height // 2] = 2
    labels[15:25, 20:40] = 1
    return labels


def test_scores_are_those_of_hand_arithmetic():
    truth = np.array([[0, 0, 1, 1], [2, 2, 2, 255]])
    reference = np.array([[0, 0, 1, 0], [2, 2, 2, 2]])
    candidate = np.array([[0, 1, 1, 0], [2, 2, 3, 2]])
    report = compare(("street", truth, reference, candidate))
    road, car, sky = report.classes
    assert [road.pixels, car.pixels, sky.pixels] == [2, 2, 3]
    assert [road.reference, car.reference, sky.reference] == pytest.approx([2 / 3, 1 / 2, 1])
    assert [road.candidate, car.candidate, sky.candidate] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert report.change == pytest.approx((1 / 3 + 1 / 3 + 2 / 3) / 3 - (2 / 3 + 1 / 2 + 1) / 3)
    assert [one.change for one in (road, car, sky)] == pytest.approx([-1 / 3, -1 / 6, -1 / 3])
    assert report.images[0].change == pytest.approx(report.change) and report.change < 0
    assert report.agreement == 6 / 8
    # reference as the truth: road 2 of 3, car 1 of 2, sky 3 of 4, void 0 of 1
    assert report.between == pytest.approx((2 / 3 + 1 / 2 + 3 / 4 + 0) / 4)
    assert [road.between, car.between, sky.between] == pytest.approx([2 / 3, 1 / 2, 3 / 4])


def test_both_ways_to_write_void_are_one():
    reference, candidate = np.array([[0, 3, VOID]]), np.array([[0, VOID, 3]])
    assert not disagreement(reference, candidate, classes=3).any()
    assert compare(("a", None, reference, candidate)).agreement == 1


def test_equal_maps_pass_and_say_how_good_both_are():
    truth = blocks()
    answer = np.roll(truth, 1, axis=1)
    report = compare(("a", truth, answer, answer.astype(np.int64)), ("b", truth, answer, answer))
    assert report.passed and report.change == 0 and report.between == 1
    assert report.verdict.startswith("PASS: ONNX Runtime paints the same classes as Keras on 2 images")
    assert f"{report.reference_miou:.4f} and {report.candidate_miou:.4f} (+0.0000)" in report.verdict


@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (-2, 3), (0, -1)])
def test_a_shift_is_named_over_all_images(shift):
    images = [generate_scene(seed, 96, 192).train_ids for seed in (1, 2)]
    shifted = [np.roll(labels, shift, axis=(0, 1)) for labels in images]
    answers = [(f"{n}", labels, labels, moved) for n, (labels, moved) in enumerate(zip(images, shifted, strict=True))]
    report = compare(*answers, palette=CITYSCAPES)
    assert report.shift == shift and [image.shift for image in report.images] == [shift, shift]
    assert f"shifted by {shift} pixels (rows, columns)." in report.verdict


def test_a_fault_that_is_no_shift_is_not_called_one():
    labels = blocks()
    report = compare(("a", labels, labels, np.where(labels == 1, 0, labels)))
    assert report.status == "fail" and report.shift is None and "shifted" not in report.verdict
    assert "finds nothing of car" in " ".join(report.notes)


def test_a_shift_of_one_image_only_is_told_of_that_image_alone():
    labels, other = blocks(), blocks()
    other[30, 30] = 2
    report = compare(("moved", None, labels, np.roll(labels, 1, axis=1)), ("dot", None, labels, other))
    assert report.shift is None
    assert {image.name: image.shift for image in report.images} == {"moved": (0, 1), "dot": None}


def test_one_broken_image_does_not_hide_among_thousands():
    labels = blocks(20, 40)
    answers = [(f"good {n}", None, labels, labels) for n in range(3000)]
    report = compare(*answers, ("broken", None, labels, 2 - labels))
    assert report.agreement > 0.999 and not report.passed
    assert report.images[0].name == "broken" and "broken agrees in" in report.verdict


def test_images_come_worst_first():
    labels = blocks()
    answers = []
    for name, wrong in (("little", 1), ("much", 30), ("none", 0)):
        other = labels.copy()
        other[-1, :wrong] = 1
        answers.append((name, None, labels, other))
    assert [image.name for image in compare(*answers).images] == ["much", "little", "none"]


def test_a_loss_of_miou_fails_although_nearly_all_pixels_agree():
    truth = np.zeros((100, 100), np.uint8)
    truth[:50] = 2
    truth[0, :3] = 1
    report = compare(("a", truth, truth, np.where(truth == 1, 2, truth)))
    assert report.agreement == 0.9997
    assert report.problems == ("mIoU falls from 1.000 to 0.666 (at most 0.005 allowed)",)


def test_a_better_candidate_is_not_a_loss():
    truth = blocks()
    worse = truth.copy()
    worse[0, 0] = 1
    report = compare(("a", truth, worse, truth))
    assert report.passed and report.change > 0


def test_one_class_everywhere_shows_nothing():
    labels = np.zeros((8, 8), np.uint8)
    report = compare(("a", None, labels, labels))
    assert report.status == "inconclusive" and not report.passed
    assert report.verdict.startswith("INCONCLUSIVE")


def test_without_a_truth_the_report_says_what_it_cannot_say():
    labels = blocks()
    report = compare(("a", None, labels, labels))
    assert np.isnan(report.change) and report.passed
    assert "not that they are right" in report.to_text() and "mIoU against" not in report.verdict
    mixed = compare(("a", None, labels, labels), ("b", labels, labels, labels))
    assert "mIoU is over the 1 image that has a truth." in mixed.notes and mixed.reference_miou == 1


def test_a_class_that_only_the_candidate_paints_scores_zero_for_it():
    truth = blocks()
    other = truth.copy()
    other[truth == 1] = 0
    report = compare(("a", other, other, truth))
    car = next(one for one in report.classes if one.name == "car")
    assert np.isnan(car.reference) and car.candidate == 0


def test_images_of_several_sizes_are_added_up():
    report = compare(("a", None, blocks(), blocks()), ("b", None, blocks(60, 90), blocks(60, 90)))
    assert report.passed and {image.pixels for image in report.images} == {2400, 5400}


def test_all_images_count_in_every_score():
    """One image each of road and of sky; the candidate misses half of the road and a quarter of the sky."""
    road, sky = np.zeros((1, 4), int), np.full((1, 4), 2)
    report = compare(("a", road, road, [[0, 0, 1, 1]]), ("b", sky, sky, [[2, 2, 2, 1]]))
    assert report.agreement == 5 / 8
    for found in (report.between, report.candidate_miou):
        assert found == pytest.approx((2 / 4 + 0 + 3 / 4) / 3)
    assert report.reference_miou == 1
    assert report.candidate_confusion.tolist() == [[2, 2, 0, 0], [0, 0, 0, 0], [0, 1, 3, 0]]


def test_a_candidate_that_paints_a_second_class_does_not_make_one_class_telling():
    one = np.zeros((50, 50), np.uint8)
    other = one.copy()
    other[0, 0] = 1  # 1 of 2500 pixels is allowed
    assert compare(("a", None, one, other)).status == "inconclusive"


def test_a_shift_is_the_cause_although_some_images_do_not_differ():
    still = np.zeros((40, 60), np.uint8)
    moved = np.roll(blocks(), (1, 2), (0, 1))
    report = compare(("a", None, blocks(), moved), ("b", None, still, still))
    assert report.shift == (1, 2) and "shifted by (1, 2)" in report.verdict


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (("a", None, np.zeros((3, 4, 4)), blocks()), r"reference's labels of a as float64 \(3, 4, 4\).*argmax_classes"),
        (("a", None, blocks(), blocks().astype(np.float32)), "candidate's labels of a as float32"),
        (("a", None, blocks(), blocks(40, 59)), r"candidate of a as \(40, 59\), expected the reference's \(40, 60\)"),
        (("a", blocks(41, 60), blocks(), blocks()), "got the truth of a"),
        (("a", None, blocks() + 40, blocks()), r"got \d+ in the reference's labels of a, expected 0\.\.3 or 255"),
        (("a", None, blocks(), -blocks().astype(int)), "got -2 in the candidate's labels"),
        (("a", blocks() + 40, blocks(), blocks()), "in the truth, expected"),
    ],
)
def test_wrong_maps_are_refused_in_one_sentence(answer, said):
    with pytest.raises(InputError, match=said):
        compare(answer)


def test_no_image_is_refused():
    with pytest.raises(InputError, match="at least one image"):
        compare()


def test_limits_are_shares():
    with pytest.raises(InputError, match="expected shares"):
        SegmentationLimits(agreement=99.9)


def test_limits_decide():
    labels = blocks()
    other = labels.copy()
    other[-1, :10] = 1
    few = labels.copy()
    few[-1, :12] = 1  # 12 of 2400: 99.5 % of the pixels of the only image
    (problem,) = compare(("a", None, labels, few)).problems
    assert problem == "pixel agreement 99.5 % (at least 99.9 % needed)"
    loose = SegmentationLimits(agreement=0.99, worst_image=0.9, miou_loss=0.1)
    assert not compare(("a", labels, labels, other)).passed
    assert compare(("a", labels, labels, other), limits=loose).passed


def test_the_report_is_written_as_text_html_and_strict_json():
    labels = blocks()
    names = [f"<scene {n}>" for n in range(7)]
    report = compare(*((name, labels if n else None, labels, labels) for n, name in enumerate(names)))
    text, page, data = report.to_text(), report._repr_html_(), json.loads(report.to_json())
    assert text.startswith(report.verdict) and "2 more images" in text
    assert "&lt;scene 0&gt;" in page and "<scene" not in page
    assert data["passed"] is True and data["change"] == 0 and len(data["images"]) == 7
    assert data["images"][0]["reference"] is None and data["classes"][0]["name"] == "road"
    assert np.array_equal(data["candidate_confusion"], report.candidate_confusion)
