"""The walk to the first layer that differs: what it finds, what it refuses to blame, and what it holds meanwhile."""

import functools
import itertools
import json
import math

import numpy as np
import onnx
import pytest
from networks import random_input, small_network, two_input_network
from onnx import TensorProto, helper, numpy_helper
from onnx_networks import save_network
from PIL import Image

from workbench.core.drawing import save_figure
from workbench.core.errors import InputError
from workbench.export.keras_model import keras_to_onnx
from workbench.models.freezing import freeze
from workbench.parity import divergence
from workbench.parity.divergence import first_divergence
from workbench.parity.layer_errors import align, explain, tensor_error
from workbench.parity.pairs import Pair, layer_namer, pair_tensors
from workbench.parity.probes import open_probe

LENGTH = 12
WIDTH = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("divergence")


@functools.cache
def exported(folder):
    return keras_to_onnx(small_network(), folder / "small.onnx", progress=False)


def picture_feed():
    return {"input": random_input((1, 3, 32, 64), seed=1, scale=50)}


def save_stack(path, spoil=(), prefix="", weaken=1.0, branch=False):
    """A chain of MatMul and Tanh, (batch, 6) to (batch, 6); `spoil` names the layers with another matrix."""
    random = np.random.default_rng(5)
    weights, nodes, last = {}, [], "input"
    for number in range(LENGTH):
        matrix = random.standard_normal((WIDTH, WIDTH)).astype(np.float32)
        weights[f"{prefix}w{number}"] = matrix.T.copy() if number in spoil else matrix * np.float32(weaken)
        names = [f"{prefix}dense{number}", f"{prefix}tanh{number}"]
        nodes.append(helper.make_node("MatMul", [last, f"{prefix}w{number}"], [names[0]]))
        nodes.append(helper.make_node("Tanh", [names[0]], [names[1]]))
        last = names[1]
    outputs = {"output": ("float32", ("batch", WIDTH))}
    nodes.append(helper.make_node("Identity", [last], ["output"]))
    if branch:
        nodes.append(helper.make_node("Neg", [f"{prefix}tanh3"], ["early"]))
        outputs = {"early": ("float32", ("batch", WIDTH)), **outputs}
    return save_network(path, nodes, {"input": ("float32", ("batch", WIDTH))}, outputs, weights)


def vector_feed():
    return {"input": random_input((3, WIDTH), seed=2)}


def search(reference, candidate, feed=None, **options):
    return first_divergence(reference, candidate, feed or vector_feed(), progress=False, **options)


@pytest.mark.parametrize("number", range(LENGTH))
def test_the_first_of_two_wrong_layers_is_found_wherever_it_is(tmp_path, number):
    right = save_stack(tmp_path / "right.onnx")
    wrong = save_stack(tmp_path / "wrong.onnx", spoil=(number, LENGTH - 1))
    found = search(right, wrong)
    assert found.kind == "jump"
    assert found.layer.layer == f"dense{number}"
    assert found.layer.max_error_of_range_before == 0 or math.isnan(found.layer.max_error_of_range_before)


@pytest.mark.parametrize("number", [0, 5, LENGTH - 1])
def test_tensors_without_common_names_are_paired_by_place(tmp_path, number):
    right = save_stack(tmp_path / "right.onnx")
    wrong = save_stack(tmp_path / "wrong.onnx", spoil=(number,), prefix="other_")
    found = search(right, wrong)
    assert found.layer.reference_tensor == f"dense{number}"
    assert found.layer.candidate_tensor == f"other_dense{number}"
    assert not found.reference_only


def test_two_equal_networks_have_no_layer_at_fault(folder):
    for reference in (small_network(), freeze(small_network())):
        found = search(reference, exported(folder), picture_feed())
        assert (found.kind, found.layer) == ("none", None)
        # float32 sums in another order, 40 layers deep
        assert max(entry.max_error_of_range for entry in found.layers) < 1e-5


def test_rounding_that_adds_up_is_not_blamed_on_a_layer(tmp_path):
    """Every matrix is 0.2 % too large: each layer adds its share, and none of them jumps."""
    right = save_stack(tmp_path / "right.onnx")
    found = search(right, save_stack(tmp_path / "off.onnx", weaken=1.002), tolerance=3.4e-3)
    assert found.kind == "growth", found.to_text()
    assert found.layer is None
    assert "No single layer" in found.verdict


def save_drifting(path, drifts, outputs=(("output", ()),)):
    """A chain of identity matrices, each larger by such a share that the error after it is that of `drifts`.

    Each output is a name and the errors of its own chain of matrices, which goes on where the common one ends.
    """
    weights, nodes = {}, []

    def grow(last, name, before, after):
        weights[f"w_{name}"] = np.eye(WIDTH, dtype=np.float32) * np.float32((1 + after) / (1 + before))
        nodes.append(helper.make_node("MatMul", [last, f"w_{name}"], [name]))
        return name

    def chain(last, errors, name, before=0.0):
        for number, after in enumerate(errors):
            last, before = grow(last, f"{name}{number}", before, after), after
        return last

    shared = chain("input", drifts, "dense")
    for name, errors in outputs:
        end = chain(shared, errors, f"{name}_", drifts[-1])
        nodes.append(helper.make_node("Identity", [end], [name]))
    shape = ("float32", ("batch", WIDTH))
    return save_network(path, nodes, {"input": shape}, {name: shape for name, _ in outputs}, weights)


def ramp_feed():
    """From 0 to 1, so that a matrix that is larger by a share is wrong by this share of the range."""
    return {"input": np.linspace(0, 1, WIDTH, dtype=np.float32)[None]}


@pytest.mark.parametrize(
    ("drifts", "kind", "layer"),
    [
        ((1e-6, 6e-6, 4e-5, 2e-4, 1.2e-3), "growth", None),  # by 5 to 7 at each layer: rounding, all of it
        ((1e-6, 6e-6, 4e-5, 1.2e-3), "jump", "dense3"),  # by 30 at once
        ((1e-6, 6e-6, 3e-5, 1.5e-4, 6e-3), "jump", "dense4"),  # the layer before, within the limit, grew by 5 only
        ((1e-6, 1e-5, 6e-4, 1.2e-3, 2e-3), "jump", "dense2"),  # within the limit yet, but there it grew by 60
    ],
)
def test_a_jump_is_growth_by_more_than_rounding_even_below_the_limit(tmp_path, drifts, kind, layer):
    right = save_drifting(tmp_path / "right.onnx", [0.0] * len(drifts))
    found = search(right, save_drifting(tmp_path / "wrong.onnx", drifts), ramp_feed(), tolerance=1e-3)
    assert (found.kind, found.layer and found.layer.layer) == (kind, layer), found.to_text()
    # float32 keeps each number to 6e-8
    assert [entry.max_error_of_range for entry in found.layers][1:-1] == pytest.approx(drifts, abs=1e-6, rel=0.1)


def test_an_error_of_a_few_roundings_in_the_first_layer_is_no_jump(tmp_path):
    right, wrong = (save_drifting(tmp_path / f"{drift}.onnx", [drift, drift]) for drift in (0.0, 1.2e-6))
    assert search(right, wrong, ramp_feed(), tolerance=6e-7).kind == "growth"


def test_of_two_wrong_outputs_the_worse_one_is_followed(tmp_path):
    right = save_drifting(tmp_path / "right.onnx", (0.0,), (("a", (0.0, 0.0)), ("b", (0.0, 0.0))))
    wrong = save_drifting(tmp_path / "wrong.onnx", (0.0,), (("a", (0.0, 0.01)), ("b", (0.1, 0.1))))
    assert search(right, wrong, ramp_feed()).layer.layer == "b_0"


def save_branches(path, drifts, minimum):
    """Two branches and what joins them: a minimum that is a number of its own, and their sum, the output."""
    weights = {name: np.eye(WIDTH, dtype=np.float32) * np.float32(size) for name, size in drifts.items()}
    nodes = [helper.make_node("MatMul", ["input", name], [f"{name}_branch"]) for name in drifts]
    branches = [node.output[0] for node in nodes]
    nodes.append(helper.make_node("Min", [*branches, "floor"], ["least"]))
    nodes.append(helper.make_node("Sum", [*branches, "least"], ["output"]))
    shape = ("float32", ("batch", WIDTH))
    weights["floor"] = np.full((1, WIDTH), minimum, np.float32)
    return save_network(path, nodes, {"input": shape}, {"output": shape}, weights)


def test_of_two_wrong_branches_the_first_is_blamed_though_a_reader_of_both_is_right(tmp_path):
    """The minimum hides both faults, so what it is computed from is not searched; the way up finds them."""
    right = save_branches(tmp_path / "right.onnx", {"one": 1.0, "two": 1.0}, -9)
    wrong = save_branches(tmp_path / "wrong.onnx", {"one": 1.1, "two": 1.2}, -9)
    assert search(right, wrong, ramp_feed()).layer.reference_tensor == "one_branch"


def test_a_difference_inside_that_no_output_shows_is_a_note(tmp_path):
    paths = [tmp_path / "right.onnx", tmp_path / "wrong.onnx"]
    for path, size in zip(paths, (1.0, 1.1), strict=True):
        model = onnx.load(save_branches(path, {"one": size, "two": size}, -9))
        model.graph.node[-1].CopyFrom(helper.make_node("Neg", ["least"], ["output"]))
        onnx.save(model, path)
    found = search(*paths, ramp_feed())
    assert (found.kind, found.layer) == ("none", None)
    assert "different inside, without harm to the outputs: one_branch." in found.to_text()


def test_growth_is_measured_from_the_worse_of_two_parents(tmp_path):
    """The difference of a branch with an error and one without is half as large, so its error counts twice."""
    drifts = (1e-6, 5e-6, 3e-5, 1.5e-4, 8e-4)
    paths = []
    for name, errors in (("right", [0.0] * 5), ("wrong", drifts)):
        model = onnx.load(save_drifting(tmp_path / f"{name}.onnx", errors))
        half = numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32) / 2, "w_half")
        model.graph.initializer.append(half)
        model.graph.node[-1].CopyFrom(helper.make_node("Sub", ["dense4", "half"], ["output"]))
        model.graph.node.insert(0, helper.make_node("MatMul", ["input", "w_half"], ["half"]))
        onnx.save(model, tmp_path / f"{name}.onnx")
        paths.append(tmp_path / f"{name}.onnx")
    found = search(*paths, ramp_feed(), tolerance=1e-3)
    assert found.kind == "growth", found.to_text()
    joined = next(entry for entry in found.layers if entry.reference_tensor == "output")
    assert joined.max_error_of_range == pytest.approx(1.6e-3, rel=0.01)
    assert joined.max_error_of_range_before == pytest.approx(8e-4, rel=0.01)


def test_the_search_is_a_bisection_and_no_scan(tmp_path, monkeypatch):
    monkeypatch.setattr(divergence, "ROUND", 4)
    right, wrong = (save_drifting(tmp_path / f"{size}.onnx", [0.0] * 45 + [size] * 15) for size in (0.0, 0.1))
    found = search(right, wrong, ramp_feed())
    assert found.layer.layer == "dense45"
    # 62 pairs: 5 at first, then 4 of 20 and of 5 at a time, then the 4 on both sides of the layer
    assert len(found.layers) <= 5 + 4 + 4 + 9
    assert found.runs <= 8, "nothing is fetched twice, but for the layer that is explained"


def test_only_what_leads_to_the_wrong_output_is_searched(tmp_path):
    right = save_stack(tmp_path / "right.onnx", branch=True)
    wrong = save_stack(tmp_path / "wrong.onnx", branch=True, spoil=(9,))
    found = search(right, wrong)
    assert found.layer.layer == "dense9"
    early = next(entry for entry in found.layers if entry.reference_tensor == "early")
    assert early.max_error_of_range == 0


def test_a_keras_network_with_two_outputs_names_the_layer_of_the_wrong_one(folder, tmp_path):
    path = keras_to_onnx(two_input_network(), tmp_path / "two.onnx", progress=False)
    model = onnx.load(path)
    product = next(node for node in model.graph.node if "product" in node.output)
    kernel = next(tensor for tensor in model.graph.initializer if tensor.name == product.input[1])
    kernel.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kernel)[:, ::-1].copy(), kernel.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    feed = {"left": random_input((2, 8), 3), "right": random_input((2, 8), 4)}
    found = search(two_input_network(), tmp_path / "wrong.onnx", feed)
    assert found.layer.layer == "product"
    assert len([entry for entry in found.layers if entry.max_error_of_range > found.tolerance]) == 1, "the sum is right"


def test_what_is_fetched_at_a_time_stays_within_the_budget(folder, tmp_path, monkeypatch):
    """Each fetch is counted on its own, by the arrays that come back from both networks."""
    model = onnx.load(exported(folder))
    change = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4 and tensor.dims[0] == 16)
    change.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(change), change.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    held = []
    for probe in (
        type(open_probe(small_network(), picture_feed())),
        type(open_probe(exported(folder), picture_feed())),
    ):
        fetch = probe.fetch

        def counted(self, tensors, fetch=fetch):
            values = fetch(self, tensors)
            held.append(sum(array.nbytes for array in values.values()))
            return values

        monkeypatch.setattr(probe, "fetch", counted)
    wide = search(small_network(), tmp_path / "wrong.onnx", picture_feed())
    most, held[:] = max(held), []
    largest = max(math.prod(entry.shape) * 4 for entry in wide.layers)
    tight = search(small_network(), tmp_path / "wrong.onnx", picture_feed(), budget_bytes=2 * largest)
    assert max(held) <= largest < most
    assert tight.fetched_bytes <= 2 * largest
    assert (tight.layer.layer, tight.layer.max_error_of_range) == (wide.layer.layer, wide.layer.max_error_of_range)


def test_layers_without_a_counterpart_are_listed_on_both_sides(tmp_path):
    """The candidate computes Tanh by another formula, of which only the end is Tanh again."""
    right = save_stack(tmp_path / "right.onnx")
    model = onnx.load(right)
    place = next(index for index, node in enumerate(model.graph.node) if node.output[0] == "tanh4")
    model.graph.node[place].CopyFrom(helper.make_node("Sin", ["dense4"], ["strange"]))
    model.graph.node[place + 1].input[0] = "strange"
    model.graph.node[-1].input[0] = "tanh11"
    model.graph.node.append(helper.make_node("Cos", ["dense1"], ["unread"]))
    onnx.save(model, tmp_path / "wrong.onnx")
    found = search(right, tmp_path / "wrong.onnx")
    assert "unread (Cos)" in found.candidate_only
    assert found.layer.layer == "tanh4 + dense5", "no tensor between them has a counterpart"
    assert found.layer.operator == "MatMul", "the last one of the candidate"
    assert "unread (Cos)" in found.to_text()


@pytest.mark.parametrize("reused", [("dense4",), ("dense5",), ("dense6",), ("dense2", "dense6"), ("dense5", "dense6")])
@pytest.mark.parametrize("at_a_time", [3, divergence.ROUND])
def test_a_name_that_holds_something_else_is_not_blamed(tmp_path, monkeypatch, reused, at_a_time):
    """An exporter that reuses the name of a tensor for another one makes no fault, if what reads it is right.

    Where few are compared at a time, the search ends at such a name, and only then looks at what reads it.
    """
    monkeypatch.setattr(divergence, "ROUND", at_a_time)
    right = save_stack(tmp_path / "right.onnx")
    model = onnx.load(right)
    for name in reused:
        place = next(index for index, node in enumerate(model.graph.node) if node.output[0] == name)
        node = model.graph.node[place]
        node.output[0] = f"real_{name}"
        model.graph.node[place + 1].input[0] = f"real_{name}"
        model.graph.node.insert(place + 1, helper.make_node("Exp", [f"real_{name}"], [name]))
    matrix = next(tensor for tensor in model.graph.initializer if tensor.name == "w8")
    matrix.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(matrix).T.copy(), "w8"))
    onnx.save(model, tmp_path / "wrong.onnx")
    found = search(right, tmp_path / "wrong.onnx")
    assert found.layer.layer == "dense8", found.to_text()


def save_hot(path, casts):
    """Numbers up to 80,000, which `casts` sends through float16, then Tanh."""
    nodes = [helper.make_node("Mul", ["input", "large"], ["before" if casts else "hot"])]
    if casts:
        nodes += [helper.make_node("Cast", ["before"], ["half"], to=TensorProto.FLOAT16)]
        nodes += [helper.make_node("Cast", ["half"], ["hot"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node("Tanh", ["hot"], ["squashed"]), helper.make_node("Neg", ["hot"], ["output"])]
    shape = ("float32", ("batch", WIDTH))
    weights = {"large": np.array([1, 10, 100, 1e3, 1e4, 8e4], np.float32)}
    return save_network(path, nodes, {"input": shape}, {"output": shape, "squashed": shape}, weights)


def test_a_float16_overflow_is_called_one_and_drawn_as_not_finite(tmp_path):
    feed = {"input": np.ones((2, WIDTH), np.float32)}
    found = search(save_hot(tmp_path / "r.onnx", casts=False), save_hot(tmp_path / "w.onnx", casts=True), feed)
    assert found.layer.reference_tensor == "hot"
    assert found.layer.inf == (0, 2)
    assert "80,000, float16 ends at 65,504: an overflow" in found.verdict
    assert json.loads(found.to_json())["layer"]["max_error_of_range"] is None
    texts = [text.get_text() for text in found.figure().axes[0].texts]
    assert "not finite" in texts


def test_the_figure_marks_the_layer_and_names_both_runners(folder, tmp_path):
    found = search(save_stack(tmp_path / "right.onnx"), save_stack(tmp_path / "wrong.onnx", spoil=(6,)))
    figure = found.figure()
    axes = figure.axes[0]
    marked = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
    assert found.layer.depth in marked
    assert any("dense6" in text.get_text() for text in axes.texts)
    assert found.reference.name in axes.get_title(loc="left")
    picture = np.asarray(Image.open(save_figure(figure, tmp_path / "f.png", dpi=60)).convert("L"))
    assert picture.std() > 10, "the figure is not empty in grey"


def test_the_table_shows_the_layers_around_the_jump_in_order(tmp_path):
    found = search(save_stack(tmp_path / "right.onnx"), save_stack(tmp_path / "wrong.onnx", spoil=(6,)))
    depths = [entry.depth for entry in found.around()]
    assert depths == list(range(found.layer.depth - 4, found.layer.depth + 5))
    arrow = [line for line in found.to_text().splitlines() if line.startswith("->")]
    assert len(arrow) == 1
    assert "dense6" in arrow[0]
    assert "dense6" in found._repr_html_()


def test_folded_biases_are_compared_with_the_tensor_that_has_them(folder):
    """tf2onnx's `block1_conv1/convolution` holds the bias, the tensor of that name in Keras does not."""
    feed = picture_feed()
    keras, graph = open_probe(small_network(), feed), open_probe(exported(folder), feed)
    pairs = {pair.candidate: pair for pair in pair_tensors(keras, graph).pairs}
    pair = next(pair for name, pair in pairs.items() if name.endswith("block1_conv1_1/convolution"))
    assert pair.reference.endswith("block1_conv1_1/BiasAdd")
    assert pair.layer == "block1_conv1"


def test_ends_of_the_same_names_are_paired_by_name_in_whatever_order(tmp_path):
    shape = ("float32", ("batch", WIDTH))
    nodes = [
        helper.make_node("Sub", ["left", "right"], ["difference"]),
        helper.make_node("Neg", ["difference"], ["turned"]),
    ]
    paths = [
        save_network(tmp_path / f"{ends[0]}.onnx", nodes, dict.fromkeys(ends, shape), dict.fromkeys(results, shape))
        for ends, results in (
            (("left", "right"), ("difference", "turned")),
            (("right", "left"), ("turned", "difference")),
        )
    ]
    feed = {"left": random_input((1, WIDTH), 1), "right": random_input((1, WIDTH), 2)}
    pairing = pair_tensors(*(open_probe(path, feed) for path in paths))
    assert {pair.reference for pair in pairing.pairs} == {"left", "right", "difference", "turned"}
    assert all(pair.reference == pair.candidate for pair in pairing.pairs)


def paired(tmp_path, left, right):
    """The pairs of two networks, given as nodes, input and output."""
    probes = []
    for nodes, start, end in (left, right):
        ends = {start: ("float32", ("batch", WIDTH))}, {end: ("float32", ("batch", None))}
        path = save_network(tmp_path / f"{len(probes)}.onnx", nodes, *ends, {})
        probes.append(open_probe(path, {start: random_input((1, WIDTH), 1)}))
    return {pair.reference: pair.candidate for pair in pair_tensors(*probes).pairs}


def test_ends_of_other_names_are_paired_by_position(tmp_path):
    left, right = ([helper.make_node("Neg", [start], [end])] for start, end in (("x", "y"), ("data", "result")))
    assert paired(tmp_path, (left, "x", "y"), (right, "data", "result")) == {"x": "data", "y": "result"}


def test_names_below_the_models_own_are_paired_where_places_do_not_tell(tmp_path):
    """Two branches of one kind, which the candidate computes in the other order."""

    def branches(model, order):
        nodes = [helper.make_node("Relu", ["x"], [f"{model}/{name}"]) for name in order]
        return [*nodes, helper.make_node("Concat", [f"{model}/left", f"{model}/right"], ["y"], axis=1)], "x", "y"

    pairs = paired(tmp_path, branches("net", ("left", "right")), branches("net_1", ("right", "left")))
    assert pairs == {"x": "x", "net/left": "net_1/left", "net/right": "net_1/right", "y": "y"}


def test_a_name_that_two_layers_share_pairs_nothing(tmp_path):
    def chain(*tensors):
        return [helper.make_node("Tanh", [a], [b]) for a, b in itertools.pairwise(tensors)], tensors[0], tensors[-1]

    pairs = paired(tmp_path, chain("x", "a/tanh", "b/tanh", "y"), chain("x", "c/tanh", "d/other", "z"))
    assert pairs == {"x": "x", "a/tanh": "c/tanh", "b/tanh": "d/other", "y": "z"}


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        (("conv/x:0", "conv_1/y"), ("conv", "conv_1")),
        (("conv_1/x", "conv_1_1/y"), ("conv", "conv_1")),  # TensorFlow has numbered all of them once more
    ],
)
def test_a_number_behind_a_name_is_read_so_that_most_layers_are_found(tensors, named):
    namer = layer_namer(tensors, ("conv", "conv_1", "dense"))
    assert [namer([tensor]) for tensor in tensors] == [[name] for name in named]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "expected numbers above 0"),
        ({"budget_bytes": 0}, "expected numbers above 0"),
        ({"feed": {"a": np.zeros(1), "b": np.zeros(1)}}, "got 2 inputs"),
        ({"candidate": "engine.plan"}, "keeps its tensors inside"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(tmp_path, options, message):
    right = save_stack(tmp_path / "right.onnx")
    with pytest.raises(InputError, match=message):
        search(right, **{"candidate": right, **options})


def test_align_finds_the_layout_and_does_not_hide_a_turned_picture():
    nhwc = random_input((2, 5, 7, 3))
    assert np.array_equal(align(nhwc, nhwc.transpose(0, 3, 1, 2)), nhwc)
    assert np.array_equal(align(nhwc[:, :1, :1], nhwc[:, :1, :1].reshape(2, 3)), nhwc[:, :1, :1])
    cube = random_input((2, 4, 4, 4))
    for order in ((0, 1, 2, 3), (0, 3, 1, 2), (0, 2, 3, 1)):  # all of them fit, and one is right
        assert np.array_equal(align(cube, cube.transpose(order)), cube)
    square = random_input((1, 4, 4, 4))
    turned = align(square, square.transpose(0, 2, 1, 3))
    assert not np.array_equal(turned, square)
    assert align(nhwc, np.zeros((2, 5, 7, 4), np.float32)) is None


@pytest.mark.parametrize(
    ("reference", "candidate", "error", "nan", "inf"),
    [
        ([0, 1, 2, 4], [0, 1, 2.4, 4], 0.1, (0, 0), (0, 0)),
        ([[0, 1], [2, 4]], [[0, 1], [2, 2]], 0.5, (0, 0), (0, 0)),  # in the second picture, and below
        ([0.5, 0.500001], [0.5, 0.500002], 2e-4, (0, 0), (0, 0)),  # of 1 % of 0.5, for the range is a rounding
        ([0, 0], [0, 0.25], 0.25, (0, 0), (0, 0)),
        ([math.nan, 1, 3, 0], [math.nan, 1, 2, 0], 1 / 3, (1, 1), (0, 0)),  # not finite in both is no difference
        ([1, 2], [1, math.inf], math.inf, (0, 0), (0, 1)),
        ([-math.inf, 1, 3], [0, 1, 3], math.inf, (0, 0), (1, 0)),
        (2.0, 1.0, 50.0, (0, 0), (0, 0)),  # of 1 % of a single number
    ],
)
def test_the_error_of_a_tensor_is_a_share_of_its_range(reference, candidate, error, nan, inf):
    pair = Pair("layer", "Relu", "a", "b", ())
    found = tensor_error(pair, 7, np.float32(reference), np.float32(candidate))
    # float32 has 0.500001 and 0.500002 to 6e-8
    assert found.max_error_of_range == pytest.approx(error, rel=0.1 if error == 2e-4 else 1e-6)
    assert (found.nan, found.inf, found.depth) == (nan, inf, 7)


def test_small_integers_are_not_subtracted_in_their_own_type():
    found = tensor_error(Pair("l", "ArgMax", "a", "b", ()), 0, np.uint8([0, 3, 10]), np.uint8([1, 3, 10]))
    assert found.max_error_of_range == pytest.approx(0.1)


def test_a_cause_is_named_only_where_it_explains_nearly_all():
    """Half of the error is left in each: noise of the size of what would explain the rest."""
    picture, noise = random_input((1, 12, 16, 3)), random_input((1, 12, 16, 3), seed=9)
    assert explain(picture, picture[..., ::-1] + noise / 2) == ""
    assert explain(picture, picture + np.float32([1.0, -2.0, 0.5]) + noise) == ""
    unbounded = picture.copy()
    unbounded[0, 0, 0, 0] = np.inf
    assert explain(picture * 1e4, unbounded) == "1 values are not finite, the reference's largest is " + (
        f"{np.abs(picture * 1e4).max():,.0f}"
    )


def test_explain_says_what_the_numbers_show():
    picture = random_input((1, 12, 16, 3))
    assert explain(picture, picture[..., ::-1]) == "the order of axis 3 is reversed"
    means = np.float32([1.0, -2.0, 0.5])
    assert explain(picture, picture + means) == "off by a constant in each channel: +1, -2, +0.5"
    assert "shifted by (0, 1)" in explain(picture, np.roll(picture, 1, 2))
    assert explain(picture, picture[:, ::-1, ::-1] * 3) == ""


def test_axes_of_length_one_leave_the_others_in_their_order():
    reference = np.arange(4.0).reshape(2, 2)
    assert np.array_equal(align(reference, reference.reshape(1, 2, 2, 1)), reference)


def test_what_is_infinite_on_both_sides_has_no_part_in_the_range():
    reference, candidate = (np.array([1, 2, math.inf, value], np.float32) for value in (3.0, 3.5))
    entry = tensor_error(Pair("a", "Add", "a", "a", ()), 0, reference, candidate)
    assert (entry.reference_range, entry.max_error_of_range) == (3.0, pytest.approx(0.5 / 3))
