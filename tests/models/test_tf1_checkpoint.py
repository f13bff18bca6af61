"""TensorFlow 1 checkpoints: opened with the session's own answers, or refused in one sentence."""

import re
import shutil

import numpy as np
import onnx
import pytest
import tf1_networks as networks
from tf1_networks import CLASSIFIER, LOGITS, pictures

from workbench.cli import main as cli
from workbench.core.errors import InputError, ModelError
from workbench.core.packages import load_keras, load_tensorflow
from workbench.export.keras_model import checkpoint_to_onnx
from workbench.models import inception_v3
from workbench.models.files import open_model
from workbench.models.tf1_checkpoint import find_checkpoint, list_outputs, open_checkpoint
from workbench.models.tf1_graph import propose_outputs
from workbench.onnx_graph.file import check
from workbench.runners.backends import open_runner
from workbench.runners.keras_runner import FrozenGraphRunner

# The same float32 sums in another order, in a network of two layers.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return networks.save(networks.build(), tmp_path_factory.mktemp("use"))


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    return networks.save(networks.build(training=True), tmp_path_factory.mktemp("training"))


def copy_of(prefix, folder):
    shutil.copytree(prefix.parent, folder / "copy")
    return folder / "copy" / prefix.name


def relative_error(got, expected):
    assert np.ptp(expected, axis=0).min() > 0.1, "the pictures get the same answers: a comparison shows nothing"
    return float(np.abs(got - expected).max() / np.ptp(expected))


@pytest.mark.parametrize("suffix", ["", ".meta", ".index", ".data-00000-of-00001"])
def test_a_checkpoint_is_opened_by_its_prefix_or_any_of_its_files(checkpoint, suffix):
    frozen = open_checkpoint(f"{checkpoint}{suffix}", [LOGITS])
    assert (frozen.inputs, frozen.outputs) == (("pictures",), (LOGITS,))
    with FrozenGraphRunner(frozen) as runner:
        got = runner.infer({"pictures": pictures()})[LOGITS]
    assert relative_error(got, networks.answer(checkpoint, pictures())) < ROUNDING


def test_a_folder_is_opened_at_its_latest_checkpoint(tmp_path):
    first = networks.save(networks.build(), tmp_path / "run", "model.ckpt-1", seed=1)
    last = networks.save(networks.build(), tmp_path / "run", "model.ckpt-2", seed=2)
    (tmp_path / "run").rename(tmp_path / "moved")
    last = tmp_path / "moved" / last.name
    assert find_checkpoint(tmp_path / "moved") == last
    with FrozenGraphRunner(open_checkpoint(tmp_path / "moved", [LOGITS])) as runner:
        got = runner.infer({"pictures": pictures()})[LOGITS]
    assert relative_error(got, networks.answer(last, pictures())) < ROUNDING
    assert relative_error(got, networks.answer(last.with_name(first.name), pictures())) > 0.1


def test_several_checkpoints_without_a_word_on_the_latest_are_refused(tmp_path):
    for name in ("a.ckpt", "b.ckpt"):
        networks.save(networks.build(), tmp_path, name)
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(ModelError, match=r"several checkpoints \(a.ckpt, b.ckpt\); give the path of one"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("options", [{"write_version": 1}, {"sharded": True}])
def test_the_older_format_and_sharded_checkpoints_are_opened(tmp_path, options):
    prefix = networks.save(networks.build(), tmp_path, **options)
    with FrozenGraphRunner(open_checkpoint(prefix, [LOGITS])) as runner:
        got = runner.infer({"pictures": pictures()})[LOGITS]
    assert relative_error(got, networks.answer(prefix, pictures())) < ROUNDING


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_both_layouts_reach_onnx_with_the_sessions_answer_and_tensorflows_names(tmp_path, layout):
    prefix = networks.save(networks.build(layout=layout), tmp_path)
    path = checkpoint_to_onnx(prefix, tmp_path / "m.onnx", outputs=[LOGITS], progress=False)
    summary = check(path)
    assert [spec.name for spec in (*summary.inputs, *summary.outputs)] == ["pictures", LOGITS]
    assert summary.inputs[0].shape == (None, *pictures(layout).shape[1:])
    assert summary.operators.get("Transpose", 0) == (layout == "NHWC")
    with open_runner(path) as runner:
        got = runner.infer({"pictures": pictures(layout)})[LOGITS]
    assert relative_error(got, networks.answer(prefix, pictures(layout))) < ROUNDING


def test_a_channels_last_network_takes_channels_first_pictures_without_any_transpose(checkpoint, tmp_path):
    path = checkpoint_to_onnx(checkpoint, tmp_path / "m.onnx", outputs=[LOGITS], inputs_as_nchw=True, progress=False)
    assert "Transpose" not in check(path).operators
    with open_runner(path) as runner:
        got = runner.infer({"pictures": pictures("NCHW")})[LOGITS]
    assert relative_error(got, networks.answer(checkpoint, pictures())) < ROUNDING


def test_an_open_size_is_fixed_at_export_and_a_fixed_one_is_not_changed(checkpoint, tmp_path):
    prefix = networks.save(networks.build(size=None), tmp_path)
    path = checkpoint_to_onnx(prefix, tmp_path / "m.onnx", outputs=[LOGITS], spatial=(12, 12), progress=False)
    assert check(path).inputs[0].shape == (None, 12, 12, 3)
    with open_runner(path) as runner:
        got = runner.infer({"pictures": pictures()})[LOGITS]
    assert relative_error(got, networks.answer(prefix, pictures())) < ROUNDING
    with pytest.raises(ModelError, match=r"got spatial=\(9, 9\), but the graph's sizes are fixed"):
        checkpoint_to_onnx(checkpoint, tmp_path / "n.onnx", outputs=[LOGITS], spatial=(9, 9), progress=False)


def test_logits_are_proposed_before_the_softmax_and_before_nothing_else(checkpoint):
    proposals = list_outputs(checkpoint)
    assert [proposal.name for proposal in proposals] == [LOGITS, CLASSIFIER]
    assert proposals[0].reason == f"its values go into {CLASSIFIER} (Softmax), so they are logits"
    assert proposals[1].reason == "no other part of the network reads it"
    assert proposals[0].weights == 5  # kernel, mean, variance, weights, bias


def test_in_a_training_graph_no_loss_gradient_or_summary_is_proposed(training):
    assert {proposal.name for proposal in list_outputs(training)} == {LOGITS, CLASSIFIER}


def test_an_auxiliary_output_is_proposed_after_the_main_one(tmp_path):
    tf = networks.compat()
    graph = networks.build()
    with graph.as_default():
        early = tf.reduce_mean(graph.get_tensor_by_name("conv/relu:0"), (1, 2))
        tf.nn.softmax(tf.matmul(early, tf.get_variable("aux/weights", (8, 2)), name="aux/logits"), name="aux/softmax")
    names = [proposal.name for proposal in list_outputs(networks.save(graph, tmp_path))]
    assert names == [LOGITS, CLASSIFIER, "aux/logits", "aux/softmax"]


def test_without_a_name_the_likeliest_output_is_taken_and_said(checkpoint):
    with pytest.warns(UserWarning, match=f"{LOGITS} is taken: its values go into.*Others: {CLASSIFIER}") as caught:
        frozen = open_checkpoint(checkpoint)
    assert frozen.outputs == (LOGITS,)
    assert caught[0].filename == __file__


def test_a_graph_that_computes_nothing_has_no_proposals():
    tf = networks.compat()
    with tf.Graph().as_default() as graph:
        tf.placeholder(tf.float32, (1,), name="x")
        tf.constant(1.0)
    assert propose_outputs(graph.as_graph_def()) == ()


@pytest.mark.parametrize("fused", [True, False])
def test_a_training_graph_is_refused_with_its_reasons_and_how_to_rebuild(tmp_path, fused):
    prefix = networks.save(networks.build(training=True, fused=fused), tmp_path)
    with pytest.raises(ModelError) as caught:
        open_checkpoint(prefix, [LOGITS])
    text = str(caught.value)
    assert "1 node with random numbers, such as dropout (dropout/" in text
    assert "1 node with the statistics of the batch" in text
    assert "build it again with is_training=False" in text


def test_what_a_refused_graph_would_have_answered_is_random(training):
    """The reason for the refusal: converted as they are, two runs of a training graph differ."""
    first, second = (networks.answer(training, pictures()) for _ in range(2))
    assert np.abs(first - second).max() > 0.1 * np.ptp(first)


def test_a_switch_between_training_and_use_is_refused(tmp_path):
    prefix = networks.save(networks.build(switch=True), tmp_path)
    with pytest.raises(ModelError, match=r"1 node with a switch between training and use \(is_training\)"):
        open_checkpoint(prefix, [LOGITS])


def test_training_nodes_off_the_way_to_the_output_do_not_matter(training):
    frozen = open_checkpoint(training, ["conv/conv"])
    assert {node.op for node in frozen.graph_def.node} <= {"Placeholder", "Const", "Identity", "Conv2D"}


def test_normalisation_over_one_picture_is_no_batch_normalisation(tmp_path):
    tf = networks.compat()
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, (None, 8, 8, 3), name="pictures")
        mean, variance = tf.nn.moments(x, (1, 2), keepdims=True)
        x = tf.nn.batch_normalization(x, mean, variance, None, tf.get_variable("scale", (3,)), 1e-3)
        tf.reduce_mean(x, (1, 2), name="answer")
    frozen = open_checkpoint(networks.save(graph, tmp_path), ["answer"])
    assert frozen.outputs == ("answer",)


def test_a_node_that_is_no_placeholder_can_be_fed(tmp_path):
    tf = networks.compat()
    with tf.Graph().as_default() as graph:
        queue = tf.queue.FIFOQueue(8, [tf.float32, tf.int64], [(4, 4, 3), ()])
        images, _ = queue.dequeue_many(2, name="batch")
        x = tf.reshape(images, (-1, 48), name="flat")
        tf.matmul(x, tf.get_variable("weights", (48, 4)), name="answer")
    prefix = networks.save(graph, tmp_path)
    with pytest.raises(ModelError, match="no placeholder leads to answer; name the node where pictures go in"):
        open_checkpoint(prefix, ["answer"])
    frozen = open_checkpoint(prefix, ["answer"], ["batch"])
    with FrozenGraphRunner(frozen) as runner:
        x = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)
        got = runner.infer({"batch": x})["answer"]
    weights = tf.train.load_checkpoint(str(prefix)).get_tensor("weights")
    np.testing.assert_allclose(got, x.reshape(2, 48) @ weights, rtol=1e-5, atol=1e-5)  # 48 products in float32


@pytest.mark.parametrize(
    ("outputs", "inputs", "message"),
    [
        (["nothing"], None, f"has no node nothing; likely outputs are {LOGITS}, {CLASSIFIER}"),
        ([LOGITS], ["nothing"], "has no node nothing"),
        ([f"{LOGITS}:1"], None, "expected the first output of a node"),
        (["conv/conv"], ["pool"], "the input pool does not lead to conv/conv"),
    ],
)
def test_names_that_do_not_fit_the_graph_are_refused(checkpoint, outputs, inputs, message):
    with pytest.raises(ModelError, match=message):
        open_checkpoint(checkpoint, outputs, inputs)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (".meta", "model.ckpt.meta is missing: the other files hold weights without a network.*rebuild"),
        (".index", "model.ckpt.index is missing, which says where each weight is"),
        (".data-00000-of-00001", r"model.ckpt.data-00000-of-... is missing, which holds the weights"),
    ],
)
def test_a_checkpoint_with_a_missing_file_is_refused_by_that_name(checkpoint, tmp_path, missing, message):
    prefix = copy_of(checkpoint, tmp_path)
    prefix.with_name(prefix.name + missing).unlink()
    with pytest.raises(ModelError, match=message):
        open_model(prefix)


def test_one_missing_shard_of_two_is_named(checkpoint, tmp_path):
    prefix = copy_of(checkpoint, tmp_path)
    data = prefix.with_name(prefix.name + ".data-00000-of-00001")
    data.rename(prefix.with_name(prefix.name + ".data-00001-of-00002"))
    with pytest.raises(ModelError, match=r"model.ckpt.data-00000-of-00002 is missing, one of 2 files"):
        open_checkpoint(prefix)


def test_the_graph_of_another_network_is_refused(checkpoint, training, tmp_path):
    prefix = copy_of(checkpoint, tmp_path)
    shutil.copy(f"{training}.meta", f"{prefix}.meta")
    with pytest.raises(ModelError, match=r"do not belong together: \d+ of \d+ variables are not among the weights"):
        open_checkpoint(prefix, ["conv/conv"])


def test_weights_of_another_shape_are_refused(checkpoint, tmp_path):
    prefix = copy_of(checkpoint, tmp_path)
    wider = networks.save(networks.build(classes=7), tmp_path / "wider")
    shutil.copy(f"{wider}.meta", f"{prefix}.meta")
    with pytest.raises(ModelError, match=r"head/weights is \[8, 7\] in the graph and \[8, 5\] among the weights"):
        open_checkpoint(prefix, [LOGITS])


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (".meta", "is not a MetaGraphDef, or was cut short"),
        (".index", "the index of .* is damaged"),
        (".data-00000-of-00001", "damaged or of another graph"),
    ],
)
def test_a_file_that_was_cut_short_is_refused(checkpoint, tmp_path, suffix, message):
    prefix = copy_of(checkpoint, tmp_path)
    file = prefix.with_name(prefix.name + suffix)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ModelError, match=message):
        open_checkpoint(prefix, [LOGITS])


def test_an_operator_that_tensorflow_no_longer_has_is_refused(checkpoint, tmp_path):
    prefix = copy_of(checkpoint, tmp_path)
    meta = networks.compat().MetaGraphDef()
    meta.ParseFromString(checkpoint.with_name("model.ckpt.meta").read_bytes())
    next(node for node in meta.graph_def.node if node.name == "conv/relu").op = "ContribRelu"
    prefix.with_name("model.ckpt.meta").write_bytes(meta.SerializeToString())
    with pytest.raises(ModelError, match=r"cannot read the graph of .*ContribRelu"):
        open_checkpoint(prefix, [LOGITS])


def test_a_tensorflow_2_checkpoint_is_explained(tmp_path):
    tf = load_tensorflow()
    prefix = tf.train.Checkpoint(v=tf.Variable([1.0])).save(str(tmp_path / "weights"))
    with pytest.raises(ModelError, match="is a TensorFlow 2 checkpoint, which holds weights without a network"):
        open_model(prefix)


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"not a SavedModel .* and holds no checkpoint"):
        open_model(tmp_path)
    with pytest.raises(ModelError, match="is no TensorFlow 1 checkpoint; give its prefix"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["network.uff", "network.pb"])
def test_a_uff_file_is_recognised_and_explained(tmp_path, name):
    start = b"\x08\x01\x10\x01\x1a\x18\n\x14tensorflow_extension\x10\x01"
    (tmp_path / name).write_bytes(start + b'"\x06\n\x04main')
    with pytest.raises(ModelError, match=r"is a UFF file, which only TensorRT could read.*workbench convert model.pb"):
        open_model(tmp_path / name)


def write_text(graph_def, path):
    load_tensorflow().io.write_graph(graph_def, str(path.parent), path.name)  # as_text is on unless it is turned off
    return path


def test_a_frozen_graph_in_text_is_read_to_the_last_bit(checkpoint, tmp_path):
    frozen = open_checkpoint(checkpoint, [LOGITS])
    again = open_model(write_text(frozen.graph_def, tmp_path / "text.pb"), outputs=[LOGITS])
    with FrozenGraphRunner(frozen) as first, FrozenGraphRunner(again) as second:
        feed = {"pictures": pictures()}
        np.testing.assert_array_equal(first.infer(feed)[LOGITS], second.infer(feed)[LOGITS])


def test_a_graph_in_text_beside_its_checkpoint_has_no_weights_and_says_so(tmp_path):
    path = write_text(networks.build().as_graph_def(), tmp_path / "graph.pbtxt")
    with pytest.raises(ModelError, match=r"still has variables .* give the .meta file, with the weights beside it"):
        open_model(path)


def test_a_damaged_graph_in_text_is_refused(checkpoint, tmp_path):
    path = write_text(open_checkpoint(checkpoint, [LOGITS]).graph_def, tmp_path / "text.pb")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ModelError, match="is a GraphDef in text that cannot be read"):
        open_model(path)


def test_a_frozen_graph_made_for_training_is_refused(tmp_path):
    tf = networks.compat()
    with tf.Graph().as_default() as graph:
        tf.nn.dropout(tf.placeholder(tf.float32, (None, 4), name="x"), 0.5, name="answer")
    (tmp_path / "m.pb").write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(ModelError, match=r"m.pb is a graph made for training: it has 1 node with random numbers"):
        open_model(tmp_path / "m.pb")


def saved_model(folder, graph, signature=None):
    """Write a SavedModel as TensorFlow 1 did, with a signature of that name or with none; returns its answer."""
    tf = networks.compat()
    x, y = (graph.get_tensor_by_name(f"{name}:0") for name in ("pictures", LOGITS))
    with graph.as_default(), tf.Session(graph=graph) as session:
        networks.initialise(session)
        builder = tf.saved_model.Builder(str(folder))
        definition = tf.saved_model.predict_signature_def({"x": x}, {"y": y})
        builder.add_meta_graph_and_variables(session, ["serve"], {signature: definition} if signature else {})
        builder.save()
        return session.run(y, {x: pictures()})


def test_a_saved_model_of_tensorflow_1_is_opened_by_its_signature(tmp_path):
    expected = saved_model(tmp_path / "m", networks.build(), "serving_default")
    with open_runner(tmp_path / "m") as runner:
        assert relative_error(runner.infer({"input": pictures()})["output"], expected) < ROUNDING


@pytest.mark.parametrize(("signature", "has"), [(None, "none at all"), ("classify", "only classify")])
def test_a_saved_model_without_the_signature_names_its_likely_output(tmp_path, signature, has):
    expected = saved_model(tmp_path / "m", networks.build(), signature)
    message = re.escape(f"no signature 'serving_default' ({has}); name its outputs with --outputs; {LOGITS} is likely")
    with pytest.raises(ModelError, match=message):
        open_model(tmp_path / "m")
    with FrozenGraphRunner(open_model(tmp_path / "m", outputs=[LOGITS])) as runner:
        assert relative_error(runner.infer({"pictures": pictures()})[LOGITS], expected) < ROUNDING


def test_a_saved_model_of_a_module_without_signature_is_refused(tmp_path):
    tf = load_tensorflow()
    module = tf.Module()
    module.v = tf.Variable([1.0])
    tf.saved_model.save(module, str(tmp_path / "m"))
    with pytest.raises(ModelError, match=r"\(none at all\); export it with model.export\(...\)"):
        open_model(tmp_path / "m")


def test_a_saved_model_made_for_training_is_refused(tmp_path):
    saved_model(tmp_path / "m", networks.build(training=True), "serving_default")
    with pytest.raises(ModelError, match="is a graph made for training"):
        open_model(tmp_path / "m")


def test_names_for_a_keras_file_are_refused(tmp_path):
    (tmp_path / "m.keras").write_bytes(b"something")
    with pytest.raises(InputError, match="name them for a TensorFlow graph only"):
        open_model(tmp_path / "m.keras", outputs=["x"])


def test_keras_3_goes_on_undisturbed_in_the_same_process(checkpoint):
    keras, tf = load_keras(), load_tensorflow()
    vector, ones = keras.Input((4,)), np.ones((1, 4), np.float32)
    model = keras.Model(vector, keras.layers.Dense(2)(vector))
    before = np.asarray(model(ones))
    open_checkpoint(checkpoint, [LOGITS])
    inception_v3.load_slim()
    assert tf.executing_eagerly()
    np.testing.assert_array_equal(np.asarray(model(ones)), before)
    assert keras.models.clone_model(model).count_params() == 10


def test_the_command_converts_and_verifies_a_checkpoint(checkpoint, tmp_path, capsys):
    path = str(tmp_path / "m.onnx")
    assert cli.main(["convert", str(checkpoint), path, "--details", "--outputs", f"{LOGITS}:0", CLASSIFIER]) == 0
    assert f"output  {CLASSIFIER}: float32 (batch, 5)" in capsys.readouterr().out
    assert [value.name for value in onnx.load(path).graph.output] == [LOGITS, CLASSIFIER]
    assert cli.main(["convert", str(checkpoint), path]) == 0
    assert f"warning: no output was named, so {LOGITS} is taken" in capsys.readouterr().err
    assert cli.main(["verify", f"{checkpoint}.meta", path]) == 0
    assert capsys.readouterr().out.startswith("PASS")


def test_the_command_refuses_a_training_checkpoint_in_one_sentence(training, tmp_path, capsys):
    assert cli.main(["convert", str(training), str(tmp_path / "m.onnx"), "--outputs", LOGITS]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "made for training" in errors[0]
    assert list(tmp_path.iterdir()) == []


SMALL = {"size": (107, 107), "depth_multiplier": 0.0625}


def test_inception_v3_of_tf_slim_is_made_refused_in_training_and_rebuilt(tmp_path):
    prefix = inception_v3.make_checkpoint(tmp_path / "made", classes=6, training=True, progress=False, **SMALL)
    assert list_outputs(prefix)[0].name == inception_v3.OUTPUT
    with pytest.raises(ModelError, match=r"inception_v3\.rebuild\(checkpoint, folder\)"):
        open_checkpoint(prefix, [inception_v3.OUTPUT])
    prefix.with_name(prefix.name + ".meta").unlink()  # the published checkpoint comes without it
    rebuilt = inception_v3.rebuild(prefix, tmp_path / "rebuilt", **SMALL)
    frozen = open_checkpoint(rebuilt, [inception_v3.OUTPUT])
    assert frozen.inputs == ("input",)
    name = "InceptionV3/Conv2d_1a_3x3/weights"
    tf = load_tensorflow()
    kernel = next(node for node in frozen.graph_def.node if node.name == name)
    stored = tf.train.load_checkpoint(str(prefix)).get_tensor(name)
    np.testing.assert_array_equal(tf.make_ndarray(kernel.attr["value"].tensor), stored)
    with FrozenGraphRunner(frozen) as runner:
        logits = runner.infer({"input": inception_v3.photograph_crops((107, 107), 8)})[inception_v3.OUTPUT]
    assert logits.shape == (8, 6)
    assert len(set(logits.argmax(axis=1))) > 1, "every picture gets the same answer"


def test_rebuild_refuses_another_network_and_its_own_folder(checkpoint, tmp_path):
    with pytest.raises(ModelError, match="does not hold tf-slim's InceptionV3"):
        inception_v3.rebuild(checkpoint, tmp_path)
    with pytest.raises(InputError, match="give another folder"):
        inception_v3.rebuild(checkpoint, checkpoint.parent)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"layout": "CHWN"}, "expected one of NHWC, NCHW"), ({"size": (32, 299)}, "expected 107 pixels or more")],
)
def test_inception_v3_refuses_what_it_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        inception_v3.build_graph(**options)


def test_preprocess_takes_the_centre_and_maps_to_minus_one_to_one():
    image = np.zeros((160, 240, 3), np.uint8)
    image[10:150, 50:190] = 255  # exactly the central 140 = 0.875 * 160 pixels
    prepared = inception_v3.preprocess(image)
    assert (prepared.shape, prepared.dtype) == ((299, 299, 3), np.float32)
    np.testing.assert_allclose(prepared, 1.0, atol=1e-6)  # interpolation weights add up to 1 within rounding
    np.testing.assert_array_equal(inception_v3.preprocess(image * 0), -1.0)
    with pytest.raises(InputError, match=r"expected an \(H, W, 3\) RGB image"):
        inception_v3.preprocess(image[..., 0])
