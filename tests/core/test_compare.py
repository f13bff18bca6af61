"""The verdict is right: rounding passes, each planted fault fails, each number equals hand arithmetic."""

import json
import math
import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.core.compare import compare_batches, compare_outputs
from workbench.core.errors import InputError
from workbench.core.tolerance import OutputNoise, RoundingNoise, Tolerance

NAMES = {"reference_name": "Keras", "candidate_name": "ONNX Runtime"}


def compare(reference, candidate, **options):
    """Compare two arrays as the one output of two runners."""
    return compare_outputs({"output": reference}, {"output": candidate}, **NAMES, **options)


def segmentation_logits(images=2, classes=5, height=24, width=32, seed=0):
    """Logits (N, C, H, W) with regions and noise, a range of about 20."""
    rng = np.random.default_rng(seed)
    regions = rng.standard_normal((images, classes, height // 8, width // 8)).repeat(8, 2).repeat(8, 3)
    return (5 * regions + rng.standard_normal((images, classes, height, width))).astype(np.float32)


def classifier_logits(images=8, classes=10, seed=0):
    return np.random.default_rng(seed).standard_normal((images, classes)).astype(np.float32)


# numbers


def test_errors_are_shares_of_the_reference_range():
    reference = np.array([[0.0, 2.0, 10.0], [4.0, -6.0, 1.0]])  # range 16
    candidate = reference + np.array([[0.0, 0.8, 0.0], [-1.6, 0.0, 0.0]])
    output = compare(reference, candidate).outputs[0]
    assert output.reference_range == 16
    assert output.max_relative_error == pytest.approx(1.6 / 16)
    assert output.mean_relative_error == pytest.approx((0.8 + 1.6) / 6 / 16)
    assert output.relative_l2 == pytest.approx(math.sqrt((0.64 + 2.56) / (4 + 100 + 16 + 36 + 1)))
    vectors = reference.ravel(), candidate.ravel()
    cosine = vectors[0] @ vectors[1] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[1])
    assert output.cosine == pytest.approx(cosine)
    assert [name for name, _ in output.worst] == ["image 2", "image 1"]
    assert [error for _, error in output.worst] == pytest.approx([0.1, 0.05])


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, -1e4]))
def test_sums_agree_with_numpy_at_any_mean(seed, mean):
    rng = np.random.default_rng(seed)
    reference = mean + rng.standard_normal((3, 4000))  # more than one block of values in all
    candidate = reference + 0.01 * rng.standard_normal(reference.shape)
    output = compare(reference, candidate).outputs[0]
    error = np.abs(candidate - reference)
    assert output.mean_relative_error == pytest.approx(error.mean() / np.ptp(reference))
    assert output.max_relative_error == pytest.approx(error.max() / np.ptp(reference))
    assert output.relative_l2 == pytest.approx(np.linalg.norm(error) / np.linalg.norm(reference))
    flat = reference.ravel(), candidate.ravel()
    expected = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert output.cosine == pytest.approx(expected, abs=1e-9)  # float64 sums of 12000 numbers


def test_top_1_and_top_5_agreement_of_a_classifier():
    reference = np.array([[9, 8, 7, 6, 5, 4, 3], [1, 2, 3, 4, 5, 6, 7]], float)
    candidate = np.array([[9, 8, 7, 6, 5, 4, 3], [1, 6.5, 3, 4, 7.5, 6, 7]], float)
    output = compare(reference, candidate).outputs[0]
    assert output.agreement == 0.5 and output.agreement_of == "top-1"
    assert output.top5_agreement == pytest.approx((5 + 4) / 10)  # the second loses class 2 and gains class 1


def test_pixel_agreement_takes_the_shorter_of_axis_1_and_the_last():
    reference = segmentation_logits(1, 3, 16, 16)
    candidate = reference.copy()
    candidate[0, :, 0, :4] = -candidate[0, :, 0, :4]
    expected = np.mean(reference.argmax(1) == candidate.argmax(1))
    assert expected < 1
    first = compare(reference, candidate).outputs[0]
    last = compare(reference.transpose(0, 2, 3, 1), candidate.transpose(0, 2, 3, 1)).outputs[0]
    assert first.agreement == last.agreement == expected and first.agreement_of == "pixel"


def test_one_channel_is_compared_by_sign():
    reference = np.array([[[[-1.0, 1.0], [2.0, -2.0]]]])
    candidate = np.array([[[[1.0, 1.0], [2.0, -2.0]]]])
    output = compare(reference, candidate).outputs[0]
    assert output.agreement == 0.75 and output.agreement_of == "sign"


def test_class_axis_can_be_named_or_left_out():
    reference = np.random.default_rng(0).standard_normal((2, 6, 3))
    assert compare(reference, reference).outputs[0].agreement is None  # three axes: no guess
    assert compare(reference, reference, class_axis=-1).outputs[0].agreement == 1.0
    assert compare(classifier_logits(), classifier_logits(), class_axis=None).outputs[0].agreement is None
    with pytest.raises(InputError, match=r"class_axis 3 .*expected 1\.\.2"):
        compare(reference, reference, class_axis=3)


def test_sensitivity_is_the_largest_change_from_the_first_image():
    reference = np.array([[0.0, 10.0], [0.0, 7.0], [1.0, 10.0]])
    assert compare(reference, reference).outputs[0].sensitivity == pytest.approx(3 / 10)


def test_sensitivity_of_one_image_is_the_largest_change_of_a_class_over_its_pixels():
    reference = np.array([[[[0.0, 1.0]], [[10.0, 14.0]]]])  # (1, 2, 1, 2), range 14
    assert compare(reference, reference).outputs[0].sensitivity == pytest.approx(4 / 14)
    assert compare(classifier_logits(1), classifier_logits(1)).outputs[0].sensitivity is None


# what passes


@pytest.mark.parametrize("reference", [segmentation_logits(), classifier_logits(), classifier_logits(1)])
def test_float32_rounding_passes(reference):
    noise = np.random.default_rng(1).uniform(-1, 1, reference.shape)
    candidate = (reference * (1 + 1e-6 * noise)).astype(np.float32)  # the error of a reordered float32 sum
    report = compare(reference, candidate)
    assert report.passed and report.status == "pass", report.verdict
    assert report.verdict.startswith("PASS: ONNX Runtime answers like Keras on ")


def test_integer_outputs_are_judged_by_equal_values():
    labels = np.random.default_rng(0).integers(0, 19, (1, 100, 100))
    almost = labels.copy()
    almost[0, 0, :5] += 1
    report = compare(labels, almost)
    assert report.passed and report.outputs[0].agreement == 0.9995
    almost[0, 1] += 1
    assert not compare(labels, almost).passed


def test_outputs_of_other_names_are_paired_by_position_and_said_so():
    one, two = classifier_logits(), segmentation_logits(8)
    report = compare_outputs({"a": one, "b": two}, {"x": one, "y": two}, **NAMES)
    assert report.passed
    assert [output.candidate_output for output in report.outputs] == ["x", "y"]
    assert "paired by position: a with x, b with y" in report.to_text()


def test_the_order_of_equal_names_does_not_matter():
    one, two = classifier_logits(seed=1), classifier_logits(seed=2)
    assert compare_outputs({"a": one, "b": two}, {"b": two, "a": one}, **NAMES).passed


def test_float16_storage_needs_a_wider_tolerance():
    reference = segmentation_logits()
    candidate = reference.astype(np.float16)
    assert not compare(reference, candidate).passed
    # float16 has 11 bits: half a unit in the last place is 2**-12 of a value, at most of the range here
    assert compare(reference, candidate, tolerance=Tolerance(2**-12, 2**-12, 0.99)).passed


# what must not pass


def shifted(reference):
    return np.roll(reference, 1, axis=-1)


def swapped(reference):
    return reference[:, [1, 0, *range(2, reference.shape[1])]]


def with_one_nan(reference):
    candidate = reference.copy()
    candidate.flat[7] = np.nan
    return candidate


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (shifted, r"shifted by \(0, 1\) pixels \(rows, columns\)"),
        (lambda x: np.roll(x, (-2, 3), axis=(-2, -1)), r"shifted by \(-2, 3\) pixels"),
        (lambda x: x + 0.5, r"a constant offset of \+0\.5\."),
        (lambda x: x * 1.7, r"scaled by 1\.7\."),
        (lambda x: x * 0.25 - 3, r"allowed 1e-04\)\.$"),  # neither an offset nor a factor alone explains it
        (lambda x: 1e3 + segmentation_logits(seed=9), r"allowed 1e-04\)\.$"),  # not "a constant offset of +1e+03"
        (np.zeros_like, r"the candidate gives 0 everywhere"),
        (with_one_nan, r"1 NaN value in the candidate"),
        (swapped, r"largest error [\d.e+-]+ of the range in channel [01] \(allowed 1e-04\)\.$"),
        (lambda x: np.random.default_rng(9).permuted(x), r"allowed 1e-04\)\.$"),
        (lambda x: 1e-3 * segmentation_logits(seed=9), r"allowed 1e-04\)\.$"),  # not "scaled by 0.001"
        (lambda x: x[:, :, ::-1], r"allowed 1e-04\)\.$"),
        (lambda x: x[:, :4], r"shape \(2, 4, 24, 32\), expected \(2, 5, 24, 32\)"),
        (lambda x: x.transpose(0, 2, 3, 1), r"the layout differs"),
        (lambda x: x.argmax(1).astype(np.int64), r"shape "),
        (lambda x: x.astype(np.int32), r"dtype int32, expected float32"),
    ],
)
def test_a_planted_fault_fails_and_the_cause_is_named(fault, cause):
    reference = segmentation_logits()
    report = compare(reference, fault(reference))
    assert report.status == "fail" and not report.passed
    assert report.verdict.startswith('FAIL: ONNX Runtime differs from Keras in output "output": ')
    assert re.search(cause, report.verdict), report.verdict


@pytest.mark.parametrize("fault", [lambda x: x[:, ::-1], lambda x: np.roll(x, 1, axis=0), lambda x: x + 1e-2])
def test_a_planted_fault_of_a_classifier_fails(fault):
    reference = classifier_logits()
    assert compare(reference, fault(reference)).status == "fail"


def test_a_shift_is_found_in_channels_last_outputs_and_label_maps():
    reference = segmentation_logits(1).transpose(0, 2, 3, 1)
    assert compare(reference, np.roll(reference, 2, axis=1)).outputs[0].shift == (2, 0)
    labels = reference.argmax(-1)
    assert compare(labels, np.roll(labels, -1, axis=2)).outputs[0].shift == (0, -1)


def test_a_small_error_everywhere_fails_by_its_mean():
    reference = segmentation_logits()
    own = np.ptp(reference, axis=(0, 2, 3), keepdims=True)  # the range of each channel
    report = compare(reference, reference + np.float32(5e-5) * own)
    assert report.outputs[0].max_relative_error < 1e-4
    assert "mean error 5.0e-05" in report.verdict


def test_a_changed_answer_fails_even_if_the_error_is_small():
    reference = classifier_logits(10)
    reference[0, :2] = 5, 5.00001
    candidate = reference.copy()
    candidate[0, :2] = 5.00001, 5
    assert "top-1 agreement 90 % (at least 99.9 % needed)" in compare(reference, candidate).verdict


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["reference", "candidate", "both"])
def test_values_that_are_not_finite_fail_and_are_counted(value, side):
    clean, bad = classifier_logits(), classifier_logits()
    bad[3, :2] = value
    report = compare(bad if side != "candidate" else clean, bad if side != "reference" else clean)
    counts = report.outputs[0].nan if np.isnan(value) else report.outputs[0].inf
    assert counts == (2 * (side != "candidate"), 2 * (side != "reference"))
    assert report.status == "fail" and report.worst[0] == ("image 4", math.inf)


def test_outputs_all_nan_fail():
    assert compare(np.full((2, 3), np.nan), np.full((2, 3), np.nan)).status == "fail"


def test_a_missing_and_an_additional_output_fail():
    one, two = classifier_logits(), segmentation_logits(8)
    report = compare_outputs({"a": one, "b": two}, {"a": one}, **NAMES)
    assert 'output "b": the candidate has no such output' in report.verdict
    report = compare_outputs({"a": one}, {"a": one, "c": two}, **NAMES)
    assert 'output "c": the reference has no such output' in report.verdict


def test_unnamed_outputs_of_one_shape_are_not_paired_by_guessing():
    one, two = classifier_logits(seed=1), classifier_logits(seed=2)
    assert compare_outputs({"a": one, "b": two}, {"x": one, "y": two}, **NAMES).status == "fail"


def test_one_bad_output_of_two_fails_and_is_named():
    one, two = classifier_logits(), segmentation_logits(8)
    report = compare_outputs({"a": one, "b": two}, {"a": one, "b": shifted(two)}, **NAMES)
    assert [output.status for output in report.outputs] == ["pass", "fail"]
    assert 'output "b"' in report.verdict and "shifted by (0, 1)" in report.verdict


# what shows nothing


@pytest.mark.parametrize(
    "reference",
    [
        np.full((4, 10), 3.0, np.float32),
        np.zeros((4, 10), np.float32),
        np.full((4, 10), 1e6, np.float32) + np.float32(0.0625),
        np.tile(classifier_logits(1), (4, 1)),  # every image gets the same answer
        np.tile(classifier_logits(1), (4, 1)) + 1e-3 * classifier_logits(4, seed=1),
        np.zeros((0, 10), np.float32),
    ],
)
def test_a_reference_that_hardly_varies_is_inconclusive(reference):
    report = compare(reference, reference)
    assert report.status == "inconclusive" and not report.passed
    assert report.verdict.startswith("INCONCLUSIVE: ONNX Runtime agrees with Keras")
    assert "use other images, or trained or calibrated weights" in report.verdict


def test_a_constant_reference_still_fails_a_candidate_that_differs():
    report = compare(np.full((4, 10), 3.0), np.full((4, 10), 3.1))
    assert report.status == "fail"
    assert report.outputs[0].max_relative_error == pytest.approx(0.1 / 3)  # relative to its size


def test_one_constant_output_beside_a_telling_one_is_a_note():
    outputs = {"anchors": np.ones((8, 4)), "scores": classifier_logits()}
    report = compare_outputs(outputs, outputs, **NAMES)
    assert report.passed
    assert [output.status for output in report.outputs] == ["inconclusive", "pass"]
    assert "output anchors of the reference hardly varies" in " ".join(report.notes)


def test_weak_evidence_is_noted():
    reference = classifier_logits()
    reference[:, 3] += 10
    report = compare(reference, reference)
    assert report.passed and "every top-1 answer of the reference is the same" in report.notes[0]
    assert "only one image was compared" in compare(reference[:1], reference[:1]).notes[-1]
    mask = np.random.default_rng(0).uniform(0, 1, (2, 1, 8, 8))
    assert "every sign answer of the reference is the same" in compare(mask, mask).notes[0]


# many batches


def test_batches_give_the_same_report_as_one_call():
    reference = segmentation_logits(5)
    candidate = reference.copy()
    candidate[3, :, 2:9] *= 1.001
    whole = compare(reference, candidate)
    parts = [slice(0, 2), slice(2, 3), slice(3, 5)]
    pairs = ((({"output": reference[part]}), {"output": candidate[part]}) for part in parts)
    assert compare_batches(pairs, **NAMES) == whole
    assert whole.images == 5 and whole.worst[0][0] == "image 4"
    assert whole.outputs[0].shape == (5, 5, 24, 32)


def test_errors_use_the_range_of_all_batches():
    first, second = np.array([[0.0, 1.0]]), np.array([[-50.0, 50.0]])
    report = compare_batches([({"o": first}, {"o": first + 0.1}), ({"o": second}, {"o": second})], **NAMES)
    assert report.outputs[0].reference_range == 100
    assert report.outputs[0].max_relative_error == pytest.approx(0.001)


def test_images_keep_their_names():
    good, bad = classifier_logits(2), classifier_logits(2)
    bad[1] += 1
    outputs = [{"o": good[:1]}, {"o": good}, {"o": bad}]
    pairs = [("cat.png", outputs[0], outputs[0]), (["dog.png", "car.png"], outputs[1], outputs[2])]
    assert compare_batches(pairs, **NAMES).worst[0][0] == "car.png"
    assert compare(good, bad, image_names=["a", "b"]).worst[0][0] == "b"
    assert compare_batches([("scene", *outputs[1:])], **NAMES).worst[0][0] == "scene, 2"
    with pytest.raises(InputError, match="got 1 names for 2 images"):
        compare(good, bad, image_names=["a"])


def test_images_of_different_sizes_can_be_compared():
    batches = [{"o": segmentation_logits(1, height=16)}, {"o": segmentation_logits(1, height=24)}]
    report = compare_batches([(batch, batch) for batch in batches], **NAMES)
    assert report.passed and report.outputs[0].shape == (2, 5, None, 32)


def test_a_scalar_and_a_vector_are_one_image():
    assert compare(np.float32(3), np.float32(3)).images == 1
    report = compare(np.arange(7.0), np.arange(7.0))
    assert report.images == 1 and report.passed


@pytest.mark.parametrize("pairs", [[], [({}, {})]])
def test_nothing_to_compare_is_an_error(pairs):
    with pytest.raises(InputError, match="no outputs to compare"):
        compare_batches(pairs, **NAMES)


def test_outputs_that_are_no_numbers_are_an_error():
    with pytest.raises(InputError, match="output output is <U3, expected real numbers"):
        compare(np.array([["cat"]]), np.array([["cat"]]))


@pytest.mark.parametrize("values", [(-1, 0, 1), (0, math.nan, 1), (0, 0, 1.1)])
def test_tolerance_refuses_numbers_that_make_no_sense(values):
    with pytest.raises(InputError, match="expected shares"):
        Tolerance(*values)


# the report


def test_text_starts_with_the_verdict_and_is_aligned():
    reference = segmentation_logits()
    report = compare(reference, shifted(reference))
    lines = report.to_text().splitlines()
    assert lines[0] == report.verdict
    starts = [match.start() for match in re.finditer(r"-+", lines[3])]
    for line in (lines[2], lines[4]):
        assert all(line[start - 1] == " " and line[start] != " " for start in starts[1:])
    assert "Reference: Keras. Candidate: ONNX Runtime. 2 images." in lines


def test_html_escapes_names_and_shows_the_verdict():
    report = compare_outputs(
        {"<o>": classifier_logits()},
        {"<o>": classifier_logits()},
        reference_name="A & B",
        candidate_name="<script>",
    )
    page = report._repr_html_()
    assert "<script>" not in page and "&lt;o&gt;" in page and "A &amp; B" in page and "PASS" in page


@pytest.mark.parametrize("fault", [lambda x: x, shifted, with_one_nan, lambda x: x[:, :4]])
def test_json_is_strict_and_complete(fault):
    def refuse(literal):
        raise AssertionError(f"{literal} is not JSON")

    reference = segmentation_logits()
    report = compare(reference, fault(reference))
    content = json.loads(report.to_json(), parse_constant=refuse)
    assert content["passed"] is report.passed and content["status"] == report.status
    assert content["reference_name"] == "Keras" and content["candidate_name"] == "ONNX Runtime"
    assert content["outputs"][0]["status"] == report.outputs[0].status
    assert content["tolerance"]["max_relative_error"] == 1e-4


def test_a_share_below_one_is_never_shown_as_100_percent():
    labels = np.random.default_rng(0).integers(0, 5, (2, 1000, 1000))
    almost = labels.copy()
    almost[0, 0, 0] += 1
    report = compare(labels, almost)
    assert report.passed and "100 %" not in report.to_text()


# columns, integers and outputs without values


def boxes(seed=0):
    """(1, 100, 6): four sides up to 1e5, a score and a class of 0..1."""
    rng = np.random.default_rng(seed)
    sides, scores = rng.uniform(0, 1e5, (1, 100, 4)), rng.uniform(0, 1, (1, 100, 2))
    return np.concatenate([sides, scores], axis=-1).astype(np.float32)


@pytest.mark.parametrize("layout", [(0, 1, 2), (0, 2, 1)])
def test_a_column_is_judged_by_its_own_range(layout):
    reference = boxes()
    shuffled = reference.copy()
    shuffled[0, :, 4] = np.random.default_rng(1).permutation(reference[0, :, 4])
    report = compare(reference.transpose(layout), shuffled.transpose(layout))
    assert report.status == "fail"
    assert report.outputs[0].column == 4
    expected = np.abs(shuffled - reference)[0, :, 4].max() / np.ptp(reference[0, :, 4])
    assert report.outputs[0].max_relative_error == pytest.approx(expected, rel=1e-6)
    assert "in channel 4" in report.verdict


def test_a_channel_of_a_map_is_judged_by_its_own_range():
    reference = segmentation_logits()
    reference[:, 3] *= 1e-4
    wrong = reference.copy()
    wrong[:, 3] = np.roll(wrong[:, 3], 1, axis=-1)
    assert np.abs(wrong - reference).max() < 1e-4 * np.ptp(reference)
    first, last = compare(reference, wrong), compare(*(array.transpose(0, 2, 3, 1) for array in (reference, wrong)))
    assert first.status == last.status == "fail"
    assert first.outputs[0].column == last.outputs[0].column == 3


def test_a_channel_that_hardly_varies_is_not_judged_by_its_rounding():
    reference = segmentation_logits()
    reference[:, 2] = 7.0 + 1e-7 * reference[:, 2]
    assert compare(reference, np.nextafter(reference, np.float32(9))).passed
    reference[:, 2] = 0
    assert compare(reference, np.where(reference == 0, np.float32(1e-12), reference)).passed


def test_rows_of_a_picture_are_no_columns():
    depth = np.random.default_rng(0).standard_normal((1, 48, 64)).astype(np.float32)
    assert compare(depth, depth).outputs[0].column is None


def test_a_few_labels_far_off_fail_though_nearly_all_are_right():
    labels = np.random.default_rng(0).integers(0, 1000, (1, 5000))
    wrong = labels.copy()
    wrong[0, [1, 50, 100, 4000]] = (labels[0, [1, 50, 100, 4000]] + 500) % 1000
    report = compare(labels, wrong)
    assert report.outputs[0].agreement == 0.9992
    assert "values are off by up to 500 (at most 1 allowed)" in report.verdict
    assert compare(labels, wrong, tolerance=Tolerance(steps=math.inf)).passed
    assert "steps" in json.loads(report.to_json())["outputs"][0]


def test_the_verdict_on_integers_speaks_of_integers():
    labels = np.random.default_rng(0).integers(0, 19, (1, 100, 100))
    near = labels.copy()
    near[0, 0, :3] += 1
    verdict = compare(labels, near).verdict
    assert verdict.startswith("PASS") and "off by at most 1" in verdict and "of the range" not in verdict


@pytest.mark.parametrize("shape", [(2, 0), (2, 0, 4), (1, 3, 0, 5)])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_an_output_without_values_is_compared_by_its_shape(shape, dtype):
    assert compare(np.zeros(shape, dtype), np.zeros(shape, dtype)).passed
    other = (shape[0], *[length + 1 for length in shape[1:]])
    assert compare(np.zeros(shape, dtype), np.zeros(other, dtype)).status == "fail"


# what rounding does


def noise_of(largest, unit="float32", **options):
    values = (float(largest),)
    return RoundingNoise(unit, (OutputNoise("output", values, values, values, values, 0.0),), 6, **options)


def test_the_limit_is_a_multiple_of_the_noise_and_the_report_says_both():
    reference = classifier_logits()
    step = 1e-5 * np.ptp(reference)
    tolerance = noise_of(step)
    good, bad = reference.copy(), reference.copy()
    good[0, 0] += 10 * step
    bad[0, 0] += 20 * step
    report = compare(reference, good, tolerance=tolerance)
    assert report.passed
    assert report.outputs[0].noise == pytest.approx(1e-5) and report.outputs[0].allowed == pytest.approx(16e-5)
    assert "10 times what rounding does to this network (allowed 1.6e-04)" in report.verdict
    report = compare(reference, bad, tolerance=tolerance)
    assert report.status == "fail"
    assert "20 times what rounding does to this network (allowed 1.6e-04)" in report.verdict
    for heading in ("rounding", "allowed", "max error"):
        assert heading in report.to_text()
    assert "16 times what rounding does to this network" in report.to_text()


@pytest.mark.parametrize(
    ("noise", "unit", "allowed"),
    [
        (0.0, "float32", 2e-6),
        (1e-3, "float32", 1e-3),
        (1e-3, "float16", 4e-3),
        (0.5, "float16", 3e-2),
        (0.5, "8 bits", 0.3),
    ],
)
def test_the_limit_has_a_floor_and_a_ceiling(noise, unit, allowed):
    reference = classifier_logits()
    report = compare(reference, reference, tolerance=noise_of(noise * np.ptp(reference), unit))
    assert report.outputs[0].allowed == pytest.approx(allowed)


def test_answers_that_are_as_close_as_rounding_may_change():
    reference = classifier_logits(10)
    reference[0, :2] = 5, 5.00001
    candidate = reference.copy()
    candidate[0, :2] = 5.00001, 5
    assert compare(reference, candidate, tolerance=noise_of(1e-5)).passed
    assert not compare(reference, candidate).passed


def test_an_output_that_was_not_measured_is_judged_by_the_fallback():
    reference = segmentation_logits()  # five channels, where one number was measured
    report = compare(reference, reference, tolerance=noise_of(1.0, fallback=Tolerance(1e-3, 1e-4)))
    assert report.outputs[0].noise is None and report.outputs[0].allowed == pytest.approx(1e-3)


def test_the_range_of_answers_far_from_0_does_not_reach_to_0():
    reference = np.array([[5.0, 6.0, 7.0]])
    output = compare(reference, np.array([[5.0, 6.2, 7.0]])).outputs[0]
    assert (output.reference_range, output.max_relative_error) == (2.0, pytest.approx(0.1))


@pytest.mark.parametrize(("error", "passes"), [(0.9e-3, True), (1.5e-3, False)])
def test_the_limit_decides(error, passes):
    reference = classifier_logits()
    candidate = reference.copy()
    candidate[3, 2] += error * np.ptp(reference)
    assert compare(reference, candidate, tolerance=Tolerance(1e-3, 1.0, 0.0)).passed == passes


def test_bfloat16_is_compared_with_float32():
    reference = classifier_logits()
    rounded = reference.astype(ml_dtypes.bfloat16)
    # bfloat16 has 8 bits: half a unit is 2**-9 of a value, at most of the range here
    assert compare(rounded, reference, tolerance=Tolerance(2**-9, 2**-9, 0.5)).passed
    assert compare(rounded, rounded.astype(np.float32)).outputs[0].max_relative_error == 0


def test_integers_that_rounding_does_not_change_may_change_in_one_place_by_one_step():
    labels = np.arange(5000).reshape(1, 5000)
    for wrong, status in ((1, "pass"), (4, "fail")):
        near = labels.copy()
        near[0, :wrong] += 1
        assert compare(labels, near, tolerance=noise_of(0.0)).status == status


@pytest.mark.parametrize(("off", "status"), [(1, "pass"), (2, "fail")])
def test_an_integer_may_be_off_by_one_step_in_any_column(off, status):
    counts = np.arange(4000).reshape(1, 1000, 4)
    near = counts.copy()
    near[0, 7, 2] += off
    report = compare(counts, near)
    assert report.outputs[0].steps == off and report.status == status


def test_the_column_that_is_shown_is_the_one_that_breaks_its_own_limit():
    reference = segmentation_logits()
    candidate = reference.copy()
    span = np.ptp(reference)
    candidate[0, 0, 0, 0] += np.float32(1e-4 * span)  # within what rounding does to the first channel
    candidate[0, 3, 0, 0] += np.float32(2e-5 * span)
    largest = tuple(float(share * span) for share in (1e-4, 1e-7, 1e-7, 1e-7, 1e-7))
    report = compare(
        reference, candidate, tolerance=RoundingNoise("float32", (OutputNoise("output", *[largest] * 4, 0.0),), 6)
    )
    assert report.status == "fail" and report.outputs[0].column == 3


def test_where_every_column_passes_the_largest_error_is_shown():
    reference = segmentation_logits()
    candidate = reference.copy()
    candidate[0, 0, 0, 0] += np.float32(1e-4 * np.ptp(reference[:, 0]))
    candidate[0, 3, 0, 0] += np.float32(1e-6 * np.ptp(reference[:, 3]))
    largest = tuple(float(share * np.ptp(reference)) for share in (1e-4, 1e-7, 1e-7, 1e-7, 1e-7))  # 16 times is allowed
    report = compare(
        reference, candidate, tolerance=RoundingNoise("float32", (OutputNoise("output", *[largest] * 4, 0.0),), 6)
    )
    assert report.passed and report.outputs[0].column == 0
    assert report.worst[0] == ("image 1", report.outputs[0].max_relative_error)
