"""Figures say only what the runners say of themselves, and fit pictures of any shape."""

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from street_scenes import generate_scene

from workbench.core.contract import BACKEND_NAMES, RunnerInfo
from workbench.core.drawing import DIFFERENT, Panel, grow, reduce_colors, save_figure
from workbench.core.errors import InputError, OutputError
from workbench.measure.figures import latency_figure
from workbench.measure.latency import COMPUTE, END_TO_END, LatencyRow, LatencyTable, Timing
from workbench.parity.figures import logits_figure, photographs_figure, side_by_side, top_classes_figure
from workbench.pictures.cityscapes import CITYSCAPES, VOID, Palette

KERAS = RunnerInfo("keras", "3.15.1", "TensorFlow, CPU")
ONNX = RunnerInfo("onnxruntime", "1.31.1", "CPU")
PNG = b"\x89PNG\r\n\x1a\n"


def picture(height=24, width=48):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def truth_map(height=24, width=48):
    truth = np.zeros((height, width), np.uint8)
    truth[: height // 2] = 10
    truth[-2:] = VOID
    return truth


def pair(candidate_info=ONNX, height=24, width=48):
    labels = np.where(truth_map(height, width) == VOID, 0, truth_map(height, width))
    other = labels.copy()
    other[0, :3] = 13
    return Panel(KERAS, labels), Panel(candidate_info, other)


def latency_table(*infos):
    rows = [
        LatencyRow(info, "", stage, Timing("t", (first + index, first + index + 1)))
        for stage, first in ((COMPUTE, 2.0), (END_TO_END, 20.0))
        for index, info in enumerate(infos)
    ]
    return LatencyTable(tuple(rows), {"processor": "some processor"}, {}, "2026-01-02T03:04:05+00:00")


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def every_figure(info):
    logits = np.arange(10.0).reshape(2, 5)
    scores = [("cat", 0.9), ("dog", 0.1)]
    return [
        side_by_side(picture(), truth_map(), *pair(info)),
        side_by_side(picture(), None, *pair(info)),
        logits_figure(logits, logits, KERAS, info),
        top_classes_figure(picture(), scores, scores, KERAS, info),
        latency_figure(latency_table(KERAS, info)),
    ]


@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_figures_say_tensorrt_exactly_when_a_tensorrt_runner_took_part(backend):
    info = RunnerInfo(backend, "9.9", "some device")
    for figure in every_figure(info):
        shown = "\n".join(texts(figure))
        assert info.name in shown
        assert ("TensorRT" in shown) == backend.startswith("tensorrt")


def test_panels_are_titled_by_the_runners_own_names():
    assert titles(side_by_side(picture(), truth_map(), *pair())) == [
        "Street scene",
        "Ground truth",
        "Keras 3.15.1 (TensorFlow, CPU)",
        "ONNX Runtime 1.31.1 (CPU)",
        "3 of 1,152 pixels differ (0.26 %)",
    ]


@pytest.mark.parametrize("title", ["TensorRT", "ONNX Runtime", None])
def test_a_title_that_is_not_a_runner_info_is_refused(title):
    logits = np.zeros((1, 2))
    with pytest.raises(InputError, match=r"expected a RunnerInfo; pass runner\.info"):
        Panel(title, truth_map())
    with pytest.raises(InputError, match="expected a RunnerInfo"):
        logits_figure(logits, logits, KERAS, title)
    with pytest.raises(InputError, match="expected a RunnerInfo"):
        top_classes_figure(picture(), [("a", 1.0)], [("a", 1.0)], title, ONNX)


def test_a_runner_info_that_lies_about_its_name_is_refused():
    class Liar(RunnerInfo):
        name = "TensorRT 11"

    with pytest.raises(InputError, match="no TensorRT runner computed any of it"):
        side_by_side(picture(), None, *pair(Liar("onnxruntime", "1", "CPU")))


def test_a_class_named_tensorrt_is_refused_without_a_tensorrt_runner():
    with pytest.raises(InputError, match="no TensorRT runner"):
        top_classes_figure(picture(), [("TensorRT", 1.0)], [("cat", 1.0)], KERAS, ONNX)


def test_miou_stands_under_the_titles_only_when_there_is_a_truth():
    with_truth = texts(side_by_side(picture(), truth_map(), *pair()))
    assert "mIoU 1.000 against the ground truth" in with_truth
    assert not any("mIoU" in text for text in texts(side_by_side(picture(), None, *pair())))


def test_legend_names_only_the_classes_that_occur():
    legend = side_by_side(picture(), truth_map(), *pair()).axes[-1].get_legend()
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["road", "sky", "car", "void", "answers differ"]


def test_another_palette_names_its_own_classes():
    palette = Palette(("wall", "door"), np.array([[1, 2, 3], [200, 200, 0]], np.uint8))
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    figure = side_by_side(picture(2, 2), None, Panel(KERAS, labels), Panel(ONNX, labels), palette)
    assert [t.get_text() for t in figure.axes[-1].get_legend().get_texts()] == [
        "wall",
        "door",
        "void",
        "answers differ",
    ]


def test_both_numbers_of_void_are_the_same_answer():
    first, second = np.full((2, 4), VOID, np.uint8), np.full((2, 4), len(CITYSCAPES), np.uint8)
    figure = side_by_side(picture(2, 4), None, Panel(KERAS, first), Panel(ONNX, second))
    assert "0 of 8 pixels differ (0.00 %)" in titles(figure)


def test_one_pixel_in_many_is_not_rounded_to_zero_and_can_be_seen():
    labels = np.zeros((200, 400), np.uint8)
    other = labels.copy()
    other[100, 200] = 1
    figure = side_by_side(picture(200, 400), None, Panel(KERAS, labels), Panel(ONNX, other))
    assert "1 of 80,000 pixels differ (less than 0.01 %)" in titles(figure)
    drawn = next(a for a in figure.axes if "differ" in a.get_title()).get_images()[0].get_array()
    assert tuple(drawn[100, 200]) == DIFFERENT


def test_a_notebook_gets_a_third_of_the_bytes_with_flat_colours_unchanged(tmp_path):
    scene = generate_scene(3, 192, 384)
    figure = side_by_side(scene.image, scene.train_ids, *pair(height=192, width=384))
    whole = Image.open(save_figure(figure, tmp_path / "whole.png", dpi=72)).convert("RGB")
    reduced = reduce_colors(whole)
    reduced.save(tmp_path / "small.png", optimize=True)
    assert (tmp_path / "small.png").stat().st_size < 0.5 * (tmp_path / "whole.png").stat().st_size
    before, after = (np.asarray(picture.convert("RGB"), int) for picture in (whole, reduced))
    assert np.abs(before - after).mean() < 1  # grey levels of 255
    road = (before == CITYSCAPES.colors[0]).all(axis=2)
    assert road.sum() > 1000 and (before[road] == after[road]).all()


def test_a_picture_of_few_colours_is_kept_as_it_is():
    flat = Image.fromarray(np.repeat(CITYSCAPES.colors[None], 5, axis=0))
    assert np.array_equal(reduce_colors(flat).convert("RGB"), flat)


def test_a_notebook_shows_the_small_picture_whatever_pyplot_set_up(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append((data, raw)))
    photographs_figure([picture()], ["noise"])._ipython_display_()
    assert shown[0][0]["image/png"].startswith(PNG) and shown[0][1]


def test_grow_thickens_a_pixel_to_a_square_and_stops_at_the_border():
    mask = np.zeros((5, 6), bool)
    mask[0, 3] = True
    grown = grow(mask, 1)
    assert np.argwhere(grown).tolist() == [[0, 2], [0, 3], [0, 4], [1, 2], [1, 3], [1, 4]]
    assert mask.sum() == 1 and grow(mask, 0).sum() == 1


@pytest.mark.parametrize("size", [(360, 480), (64, 128), (64, 64), (90, 50)])
@pytest.mark.parametrize("has_truth", [True, False])
def test_texts_stay_on_the_page_and_do_not_cover_each_other(size, has_truth):
    lean = RunnerInfo("tensorrt_lean", "11.4.0.23", "NVIDIA H200")
    figure = side_by_side(picture(*size), truth_map(*size) if has_truth else None, *pair(lean, *size))
    figure.draw_without_rendering()
    shown = [text for axes in figure.axes for text in (axes.title, *axes.texts) if text.get_text()]
    shown += [*figure.axes[-1].get_legend().get_texts(), figure._supxlabel]
    boxes = [text.get_window_extent() for text in shown]
    page = figure.bbox
    for index, box in enumerate(boxes):
        assert box.x0 >= -1 and box.x1 <= page.width + 1 and box.y0 >= -1 and box.y1 <= page.height + 1
        assert not any(box.padded(-1).overlaps(other.padded(-1)) for other in boxes[index + 1 :])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((24, 48), np.uint8), r"got an image of uint8 \(24, 48\), expected \(H, W, 3\) uint8"),
        (np.zeros((24, 48, 3), np.float32), "got an image of float32"),
        ("photo.png", "got an image of str"),
    ],
)
def test_an_image_of_another_kind_is_refused(image, message):
    with pytest.raises(InputError, match=message):
        side_by_side(image, None, *pair())


def test_labels_of_another_kind_or_size_are_refused():
    with pytest.raises(InputError, match="integer map; use argmax"):
        Panel(KERAS, np.zeros((20, 24, 48), np.float32))
    with pytest.raises(InputError, match=r"got reference of \(24, 48\) for an image of \(12, 24\)"):
        side_by_side(picture(12, 24), None, *pair())
    with pytest.raises(InputError, match="got truth of"):
        side_by_side(picture(), truth_map(12, 24), *pair())


def test_logits_figure_states_the_largest_difference_relative_to_the_range():
    reference = np.array([[0.0, 10.0]])
    figure = logits_figure(reference, reference * 1.1, KERAS, ONNX, note="The weights are random.")
    assert any(text.endswith("The weights are random.") for text in texts(figure))
    assert "Largest difference: 0.1 of the range" in titles(figure)  # 1 / (10 - 0)
    assert figure.axes[0].get_ylabel() == "logit of ONNX Runtime 1.31.1 (CPU)"


def test_logits_figure_says_what_it_leaves_out():
    reference = np.array([[0.0, 1.0, np.nan]])
    assert any("1 values are NaN or infinite" in t for t in texts(logits_figure(reference, reference, KERAS, ONNX)))
    with pytest.raises(InputError, match="got no finite logit"):
        logits_figure(reference * np.nan, reference, KERAS, ONNX)
    with pytest.raises(InputError, match=r"expected \(N, K\) twice"):
        logits_figure(reference, reference[:, :2], KERAS, ONNX)


def test_top_classes_marks_a_class_in_another_place():
    figure = top_classes_figure(picture(), [("cat", 0.6), ("dog", 0.4)], [("dog", 0.6), ("cow", 0.4)], KERAS, ONNX)
    _, reference, candidate = figure.axes
    assert [bar.get_hatch() for bar in reference.patches] == [None, None]
    assert [bar.get_hatch() for bar in candidate.patches] == ["///", "///"]
    with pytest.raises(InputError, match="got no classes"):
        top_classes_figure(picture(), [], [("cat", 1.0)], KERAS, ONNX)


def test_photographs_are_shown_with_their_captions():
    images = [picture(20, 30), picture(30, 20), picture(), picture(), picture()]
    assert titles(photographs_figure(images, list("abcde"))) == list("abcde")
    with pytest.raises(InputError, match="got 5 images and 1 captions"):
        photographs_figure(images, ["a"])


def test_latency_axis_has_its_unit_and_the_caption_its_machine():
    figure = latency_figure(latency_table(KERAS, ONNX))
    (axes,) = figure.axes
    assert axes.get_xlabel() == "milliseconds per call, lower is better"
    assert axes.get_xlim()[0] == 0
    shown = texts(figure)
    assert "3.50 ms (p95 3.95), 0.71x as fast" in shown  # samples 3 and 4 ms against 2 and 3 ms
    assert any("some processor" in text and "2026-01-02" in text for text in shown)
    assert [bar.get_width() for bar in axes.patches] == [2.5, 20.5, 3.5, 21.5]


def test_a_saved_figure_is_the_same_file_each_time(tmp_path):
    paths = [
        save_figure(side_by_side(picture(), truth_map(), *pair()), tmp_path / f"{index}.png") for index in range(2)
    ]
    first, second = (path.read_bytes() for path in paths)
    assert first == second and first.startswith(PNG) and b"Matplotlib" not in first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png"]


def test_save_refuses_another_suffix_and_a_missing_folder(tmp_path):
    figure = photographs_figure([picture()], ["a"])
    with pytest.raises(InputError, match="expected a name that ends in"):
        save_figure(figure, tmp_path / "a.jpg")
    with pytest.raises(OutputError, match="create it first"):
        save_figure(figure, tmp_path / "missing" / "a.png")


def test_a_notebook_shows_a_figure_without_pyplot():
    assert photographs_figure([picture()], ["a"])._repr_png_().startswith(PNG)
