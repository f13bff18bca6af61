import json
from dataclasses import replace

import numpy as np
import onnx
import onnx_networks
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from PIL import Image

from workbench.core.errors import FeedError, InputError, OutputError
from workbench.onnx_graph.file import check
from workbench.pictures.feeds import PREPROCESSINGS, make_feeds
from workbench.pictures.images import load_image, sub_mean_chw
from workbench.precision import observing
from workbench.precision.calibration import Calibration, calibrate
from workbench.precision.observing import BINS, METHODS, Histogram, entropy_bins, percentile_bins

SIZE = (16, 24)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return onnx_networks.save_picture_network(tmp_path_factory.mktemp("network") / "picture.onnx", size=SIZE)


def feeds(number=3, seed=0):
    return [{"input": onnx_networks.picture(1, seed + index, SIZE)} for index in range(number)]


def run_calibration(network, samples=None, **options):
    return calibrate(network, feeds() if samples is None else samples, progress=False, **options)


def photographs(folder, values, size=(32, 48)):
    """PNG files of random pixels between two grey levels."""
    folder.mkdir()
    random = np.random.default_rng(1)
    for index in range(3):
        Image.fromarray(random.integers(*values, (*size, 3), np.uint8)).save(folder / f"{index}.png")
    return folder


def folder_feeds(network, folder, preprocess):
    return make_feeds({spec.name: spec for spec in check(network).inputs}, folder, preprocess)


def test_minmax_is_the_largest_magnitude_that_numpy_finds(network):
    samples = feeds(4)
    calibration = run_calibration(network, samples, method="minmax")
    assert calibration.largest["input"] == max(np.abs(feed["input"]).max() for feed in samples)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(network).graph.initializer}
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(np.concatenate([feed["input"] for feed in samples]), ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3)
    )
    pooled = np.einsum("nihwyx,oiyx->nohw", windows, weights["kernel"]).clip(0).mean((2, 3))
    # float32 sums of 384 numbers in another order
    assert calibration.largest["pooled"] == pytest.approx(pooled.max(), rel=1e-5)
    assert calibration.thresholds == calibration.largest
    assert calibration.scales["input"] == calibration.largest["input"] / 127


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_a_scale_for_each_tensor_that_8_bits_may_hold(network, method):
    calibration = run_calibration(network, method=method)
    assert set(calibration.thresholds) == {"input", "pooled"}
    assert all(0 < calibration.thresholds[name] <= calibration.largest[name] for name in calibration.thresholds)
    assert (calibration.method, calibration.samples) == (method, 3)


def test_an_outlier_moves_minmax_and_hardly_the_other_methods():
    random = np.random.default_rng(2)
    values = np.append(random.standard_normal(100_000).astype(np.float32), np.float32(100))
    histogram = Histogram()
    histogram.add(values)
    assert histogram.threshold("minmax") == 100
    # a bin is 100 / 2048 wide
    assert histogram.threshold("percentile") == pytest.approx(np.percentile(np.abs(values), 99.99), abs=0.1)
    assert 2 < histogram.threshold("entropy") < 8


def test_entropy_keeps_everything_where_all_magnitudes_are_equally_frequent():
    assert entropy_bins(np.full(BINS, 10)) == BINS


def test_entropy_cuts_a_long_empty_tail():
    counts = np.zeros(BINS, np.int64)
    counts[:300], counts[-1] = 10_000 * np.exp(-((np.arange(300) / 100) ** 2)), 1
    assert 200 <= entropy_bins(counts) <= 300


def test_entropy_is_not_fooled_by_one_frequent_value():
    """As in the first depthwise convolution of the demonstration U-Net, where the sky has one value."""
    counts = (400 * np.exp(-np.maximum(np.arange(BINS) - 250, 0) / 300)).astype(np.int64) + 1
    counts[250] = 800_000
    assert counts[: entropy_bins(counts)].sum() >= 0.999 * counts.sum()


def entropy_bins_one_by_one(counts, stride):
    """NVIDIA's pytorch-quantization (`_compute_amax_entropy` of calib/histogram.py), with SciPy's divergence.

    Two things are ours: what is beyond a cut moves to the last bin that holds any, and no cut loses more than a
    thousandth of the values.
    """
    bins = counts.astype(float)
    bins[0] = bins[1]
    found, least = 0, np.inf
    for cut in range(128, len(bins) + 1, stride):
        beyond = bins[cut:].sum()
        if beyond > bins.sum() / 1000:
            continue
        levels = np.digitize(np.arange(cut), np.linspace(0, cut, 129)) - 1
        spread = np.zeros(cut)
        for level in range(128):
            held = (levels == level) & (bins[:cut] > 0)
            spread[held] = bins[:cut][held].mean() if held.any() else 0
        reference = bins[:cut].copy()
        reference[max(place for place in range(cut) if bins[place])] += beyond
        divergence = scipy.stats.entropy(reference, spread)  # it makes both sum to 1
        if divergence <= least + 1e-12:  # of equal ones the last; float64 rounding of such sums
            found, least = cut, divergence
    return found


HISTOGRAMS = {
    "a half normal": lambda random: np.histogram(np.abs(random.standard_normal(20_000)), 320, (0, 5))[0],
    "a long tail": lambda random: np.histogram(random.exponential(1.0, 50_000), 512, (0, 12))[0],
    "a ReLU with its zeros and far values": lambda random: (
        (3000 * np.exp(-((np.arange(400) / 60) ** 2)) + 2e5 * np.eye(1, 400)[0]).astype(int)
        + (random.random(400) < 0.075)
    ),
    "nothing above the middle": lambda random: np.repeat([10, 0], 256),  # many cuts lose nothing: the last one
    "empty bins between": lambda random: (
        random.integers(0, 400, 300) * (random.random(300) < 0.3) + (np.arange(300) == 1)
    ),
    "steps of a number of bins that 128 does not divide": lambda random: 1000 // (1 + np.arange(420) // 37),
    "a single far value": lambda random: np.append(random.integers(500, 900, 200), np.eye(1, 200, 150, int)[0]),
}


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("shape", HISTOGRAMS)
def test_entropy_cuts_where_the_published_method_does(shape, stride):
    counts = HISTOGRAMS[shape](np.random.default_rng(4))
    assert entropy_bins(counts, stride) == entropy_bins_one_by_one(counts, stride)


def test_percentile_counts_what_it_keeps():
    assert [percentile_bins(np.array([50, 40, 9, 1]), percent) for percent in (50, 90, 91, 100)] == [1, 2, 3, 4]
    assert [percentile_bins(np.array([2, 1]), percent) for percent in (66, 67)] == [1, 2]  # 1.98 and 2.01 values


def test_a_threshold_is_the_upper_end_of_the_last_bin_that_is_kept_and_no_more_than_the_largest_value():
    histogram = Histogram()
    histogram.add(np.array([0.25] * 9_999 + [1.0], np.float32))
    assert histogram.threshold("percentile") == 513 / 2048  # 0.25 is the lower end of bin 512
    histogram = Histogram()
    for value in (1.0, 1.5):
        histogram.add(np.array([value], np.float32))
    assert (histogram.limit, histogram.threshold("percentile")) == (2.0, 1.5)  # its bin ends at 1537 / 1024


def test_groups_of_tensors_hold_as_many_bytes_as_the_budget(monkeypatch):
    values = {name: helper.make_tensor_type_proto(1, [10, 10]).tensor_type for name in "abc"}
    for budget, groups in ((1200, ["abc"]), (1199, ["ab", "c"]), (800, ["ab", "c"]), (799, ["a", "b", "c"])):
        monkeypatch.setattr(observing, "BUDGET_BYTES", budget)
        assert ["".join(group) for group in observing.tensor_groups(values)] == groups


def test_both_factors_of_a_product_are_observed(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("MatMul", ["x", "a"], ["y"])]
    shape = ("float32", (3, 3))
    path = onnx_networks.save_network(tmp_path / "n.onnx", nodes, {"x": shape}, {"y": shape})
    assert list(observing.observable(onnx.load(path))) == ["x", "a"]


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=60), st.integers(1, 60))
def test_a_histogram_counts_all_values_whatever_order_they_come_in(values, cut):
    array = np.array(values, np.float32)
    histogram = Histogram()
    histogram.add(array[:cut])
    histogram.add(array[cut:])
    assert histogram.counts.sum() == array.size
    assert histogram.largest == np.abs(array).max()
    edges = np.arange(BINS + 1) * histogram.limit / BINS
    for value in np.abs(array):
        place = min(int(np.searchsorted(edges, value, side="right")) - 1, BINS - 1) if histogram.limit else 0
        # merging bins and float32 products may move a value at an edge by one bin
        assert histogram.counts[max(place - 1, 0) : place + 2].sum()


def test_a_histogram_agrees_with_numpy_on_a_second_larger_array():
    first, second = (np.random.default_rng(seed).standard_normal(20_000).astype(np.float32) for seed in (3, 4))
    histogram = Histogram()
    histogram.add(first)
    histogram.add(second * 5)
    found, _ = np.histogram(np.abs(np.concatenate([first, second * 5])), BINS, (0, histogram.limit))
    # the same counts, but for values within rounding of an edge
    assert np.abs(np.cumsum(found) - np.cumsum(histogram.counts)).max() <= 5


def test_a_small_budget_gives_the_same_answer_in_several_runs(network, monkeypatch):
    model = helper.make_model(onnx.load(network).graph, opset_imports=onnx.load(network).opset_import, ir_version=8)
    whole = run_calibration(network, method="entropy")
    assert len(list(observing.tensor_groups(observing.observable(model)))) == 1
    monkeypatch.setattr(observing, "BUDGET_BYTES", 1)
    assert len(list(observing.tensor_groups(observing.observable(model)))) == 2
    assert run_calibration(network, method="entropy") == whole


def test_samples_are_taken_one_at_a_time_and_no_more_than_the_limit(network):
    taken = []

    def endless():
        for index in range(1000):
            taken.append(index)
            yield feeds(1, index)[0]

    assert run_calibration(network, endless(), limit=5).samples == 5
    assert taken == [0, 1, 2, 3, 4]


def test_a_saved_calibration_is_the_same_on_another_machine(network, tmp_path):
    calibration = run_calibration(network, preprocess=None)
    path = calibration.save(tmp_path / "cache.json")
    loaded = Calibration.load(path)
    assert loaded == calibration
    assert loaded.digest == calibration.digest
    assert str(tmp_path) not in path.read_text()
    loaded.check(network)


def test_a_cache_of_another_network_is_refused(network, tmp_path):
    other = onnx_networks.save_picture_network(tmp_path / "other.onnx", size=SIZE, channels=4)
    with pytest.raises(InputError, match=r"calibration of the network \w{12}, expected one of other.onnx"):
        run_calibration(network).check(other)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("calibration 1", "calibration 9"),
        lambda text: text.replace('"network"', '"net"'),
        lambda text: "[]",
        lambda text: json.dumps({**json.loads(text), "tensors": {"input": [2.0, 1.0]}}),
        lambda text: json.dumps({**json.loads(text), "tensors": {"input": [float("nan"), 1.0]}}),
    ],
)
def test_a_damaged_cache_is_refused_in_one_sentence(network, tmp_path, damage):
    path = run_calibration(network).save(tmp_path / "cache.json")
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=r"cache.json is not a calibration of this package \(.+\); make one"):
        Calibration.load(path)


def test_a_missing_cache_and_a_missing_folder_are_named(network, tmp_path):
    with pytest.raises(InputError, match=r"none.json is not a calibration .*No such file"):
        Calibration.load(tmp_path / "none.json")
    with pytest.raises(OutputError, match="create it first"):
        run_calibration(network).save(tmp_path / "none" / "cache.json")


def test_scales_are_those_of_the_thresholds_and_tensors_of_zeros_have_none():
    made = Calibration("n", "d", "entropy", 1, "", {"x": 1.0, "zero": 0.0}, {"x": 2.0, "zero": 0.0})
    assert made.scales == {"x": 1 / 127}


def test_the_samples_have_a_digest_of_what_they_hold(network):
    found = [run_calibration(network, feeds(2, seed)).data for seed in (0, 0, 9)]
    assert found[0] == found[1] != found[2]


def test_a_colour_that_is_the_same_everywhere_makes_no_flat_picture(network):
    samples = feeds(2)
    for feed in samples:
        feed["input"][:, 2] = 0
    assert run_calibration(network, samples).samples == 2


def test_the_digest_changes_with_the_scales(network):
    calibration = run_calibration(network)
    assert replace(calibration, thresholds={"input": 1.0}).digest != calibration.digest


def test_a_folder_without_images_is_refused(network, tmp_path):
    with pytest.raises(InputError, match="no image in"):
        run_calibration(network, folder_feeds(network, tmp_path, "unit"))


def test_no_samples_at_all_are_refused(network):
    with pytest.raises(InputError, match="got no calibration sample"):
        run_calibration(network, [])


def test_images_of_one_colour_each_are_refused(network, tmp_path):
    folder = tmp_path / "grey"
    folder.mkdir()
    for level in (10, 200):
        Image.new("RGB", (48, 32), (level, level, level)).save(folder / f"{level}.png")
    with pytest.raises(InputError, match="images of one colour each"):
        run_calibration(network, folder_feeds(network, folder, "unit"))


def test_a_size_that_the_network_does_not_take_is_refused(network):
    with pytest.raises(FeedError, match="axis 3 is 26 where the network takes 24"):
        run_calibration(network, [{"input": onnx_networks.picture(1, size=(16, 26))}])


@pytest.mark.parametrize("wanted", PREPROCESSINGS)
@pytest.mark.parametrize("given", PREPROCESSINGS)
def test_images_of_another_range_than_the_trainings_are_refused(network, tmp_path, wanted, given):
    samples = folder_feeds(network, photographs(tmp_path / "pictures", (0, 256)), given)
    if given == wanted:
        assert run_calibration(network, samples, preprocess=wanted).preprocess == wanted
        return
    with pytest.raises(InputError, match=rf"expected the range of preprocess='{wanted}'"):
        run_calibration(network, samples, preprocess=wanted)


def test_images_divided_by_255_are_not_taken_for_those_between_minus_1_and_1(network, tmp_path):
    paths = sorted(photographs(tmp_path / "pictures", (0, 256), SIZE).iterdir())
    samples = [{"input": load_image(path).transpose(2, 0, 1)[None].astype(np.float32) / 255} for path in paths]
    with pytest.raises(InputError, match="got calibration images from 0 to 1 for input"):
        run_calibration(network, samples, preprocess="unit")


def test_dark_photographs_are_in_the_range_of_their_preprocessing(network, tmp_path):
    paths = sorted(photographs(tmp_path / "night", (0, 150), SIZE).iterdir())
    samples = [{"input": sub_mean_chw(load_image(path).transpose(2, 0, 1))[None]} for path in paths]
    assert run_calibration(network, samples, preprocess="cityscapes").samples == 3


def test_values_inside_the_network_that_are_not_finite_are_named(tmp_path):
    nodes = [helper.make_node("Exp", ["input"], ["large"]), helper.make_node("MatMul", ["large", "w"], ["output"])]
    path = onnx_networks.save_network(
        tmp_path / "exp.onnx",
        nodes,
        {"input": ("float32", (1, 4))},
        {"output": ("float32", (1, 4))},
        {"w": np.eye(4, dtype=np.float32)},
    )
    with pytest.raises(InputError, match="NaN or infinity in the tensor large on sample 0"):
        run_calibration(path, [{"input": np.full((1, 4), 200, np.float32)}])


def test_a_network_without_anything_to_quantise_is_refused(tmp_path):
    path = onnx_networks.save_identity_network(tmp_path / "identity.onnx", "float32")
    with pytest.raises(InputError, match="there is nothing to quantise"):
        run_calibration(path, [{"input": np.ones((1, 5), np.float32)}])


@pytest.mark.parametrize("options", [{"method": "mean"}, {"limit": 0}, {"preprocess": "other"}])
def test_wrong_arguments_are_refused(network, options):
    with pytest.raises(InputError, match="expected"):
        run_calibration(network, **options)


def test_one_feed_in_place_of_many_is_refused(network):
    with pytest.raises(InputError, match="expected several feeds"):
        run_calibration(network, feeds(1)[0])


def test_an_interrupted_calibration_writes_nothing(network, tmp_path):
    def interrupted():
        yield from feeds(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_calibration(network, interrupted()).save(tmp_path / "cache.json")
    assert not list(tmp_path.iterdir())
