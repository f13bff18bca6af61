"""TensorFlow 1 networks of tf-slim at their real size: from checkpoint to ONNX to a built engine, in both layouts."""

import numpy as np
import pytest
import tf1_networks as networks

from workbench.core.errors import ModelError
from workbench.core.packages import load_tensorflow
from workbench.engine.build import build_engine
from workbench.export.keras_model import checkpoint_to_onnx
from workbench.models import inception_v3
from workbench.models.tf1_checkpoint import list_outputs, open_checkpoint
from workbench.models.tf1_graph import without_deprecations
from workbench.onnx_graph.file import check
from workbench.pictures.images import photographs
from workbench.runners.backends import open_runner
from workbench.runners.compare import compare_runners
from workbench.runners.keras_runner import FrozenGraphRunner

PICTURES = list(photographs().items())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return inception_v3.make_checkpoint(tmp_path_factory.mktemp("made"), progress=False)


@pytest.fixture(scope="module")
def reference(checkpoint):
    with FrozenGraphRunner(open_checkpoint(checkpoint, [inception_v3.OUTPUT])) as runner:
        yield runner


@pytest.fixture(scope="module")
def onnx_path(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "inception_v3.onnx"
    return checkpoint_to_onnx(checkpoint, path, outputs=[inception_v3.OUTPUT], progress=False)


def feeds(fault=lambda x: x):
    for name, picture in PICTURES:
        yield name, {"input": np.ascontiguousarray(fault(inception_v3.preprocess(picture)[None]))}


def test_inception_v3_has_217_nodes_the_published_ends_and_tensorflows_answers(reference, onnx_path):
    summary = check(onnx_path)
    assert sum(summary.operators.values()) == 217
    assert summary.operators["Transpose"] == 1
    assert [spec.describe() for spec in summary.inputs] == ["float32 (batch, 299, 299, 3)"]
    assert [spec.name for spec in summary.outputs] == ["InceptionV3/Logits/SpatialSqueeze"]
    with open_runner(onnx_path) as candidate:
        report = compare_runners(reference, candidate, feeds())
    assert report.passed, report.to_text()


@pytest.mark.parametrize(
    "fault",
    [
        lambda x: x[..., ::-1],
        lambda x: x + 1,  # 0..2 in place of -1..1
        lambda x: np.roll(x, 1, axis=2),
    ],
    ids=["swapped channels", "wrong range", "shift by one pixel"],
)
def test_a_fault_in_the_preprocessing_fails_the_verdict(reference, onnx_path, fault):
    """So the random weights tell faults from rounding: the parity above is not vacuous."""
    with open_runner(onnx_path) as candidate:
        answers = {name: candidate.infer(feed) for name, feed in feeds(fault)}

        class Replay:
            info, inputs, unit, onnx_file = candidate.info, candidate.inputs, candidate.unit, candidate.onnx_file

            def __init__(self):
                self.left = iter(answers.values())

            def infer(self, feed):
                return next(self.left)

        assert compare_runners(reference, Replay(), feeds()).status == "fail"


def test_a_checkpoint_for_channels_first_pictures_has_no_transpose(tmp_path, reference):
    prefix = inception_v3.make_checkpoint(tmp_path, layout="NCHW", progress=False)
    path = checkpoint_to_onnx(prefix, tmp_path / "m.onnx", outputs=[inception_v3.OUTPUT], progress=False)
    summary = check(path)
    assert summary.inputs[0].shape == (None, 3, 299, 299)
    assert "Transpose" not in summary.operators
    with open_runner(path) as runner:
        for _, feed in feeds():
            expected = reference.infer(feed)[inception_v3.OUTPUT]
            turned = np.ascontiguousarray(feed["input"].transpose(0, 3, 1, 2))
            got = runner.infer({"input": turned})[inception_v3.OUTPUT]
            # float32 sums of 95 convolutions in another order: measured 5e-6 of the range
            np.testing.assert_allclose(got, expected, atol=5e-5 * np.ptp(expected))


def test_the_real_builder_takes_inception_v3(onnx_path):
    plan = build_engine(onnx_path, flavour="tensorrt_rtx", targets=["sm89"], progress=False, cache=False)
    assert plan.manifest.plan_bytes > 0.9 * 4 * check(onnx_path).parameters


def test_a_training_checkpoint_is_refused_and_its_rebuilt_form_answers_like_the_original(tmp_path, reference):
    made = inception_v3.make_checkpoint(tmp_path / "training", training=True, progress=False)
    with pytest.raises(ModelError, match=r"1 node with random numbers.*94 nodes with the statistics of the batch"):
        open_checkpoint(made, [inception_v3.OUTPUT])
    rebuilt = inception_v3.rebuild(made, tmp_path / "rebuilt")
    with FrozenGraphRunner(open_checkpoint(rebuilt, [inception_v3.OUTPUT])) as runner:
        for _, feed in feeds():
            # the same graph, the same weights, the same TensorFlow
            np.testing.assert_array_equal(
                runner.infer(feed)[inception_v3.OUTPUT], reference.infer(feed)[inception_v3.OUTPUT]
            )


def slim_graph(name, size, classes=10):
    """A network of tf-slim with seeded weights, not calibrated."""
    nets, tf = inception_v3.load_slim().nets, networks.compat()
    module = getattr(nets, name.split(".")[0])
    with tf.Graph().as_default() as graph, without_deprecations():
        x = tf.placeholder(tf.float32, (None, size, size, 3), name="pictures")
        getattr(module, name.split(".")[1])(x, classes, is_training=False)
    return graph


@pytest.mark.parametrize(
    ("name", "size", "output"),
    [
        ("inception_v1.inception_v1", 224, "InceptionV1/Logits/SpatialSqueeze"),
        ("inception_v2.inception_v2", 224, "InceptionV2/Logits/SpatialSqueeze"),
        ("resnet_v1.resnet_v1_50", 65, "resnet_v1_50/logits/BiasAdd"),
        ("resnet_v2.resnet_v2_50", 65, "resnet_v2_50/logits/BiasAdd"),
    ],
)
def test_other_networks_of_tf_slim_are_converted_without_their_code(tmp_path, name, size, output):
    tf = load_tensorflow().compat.v1
    prefix = networks.save(slim_graph(name, size), tmp_path)
    assert output in [proposal.name for proposal in list_outputs(prefix)[:2]]
    path = checkpoint_to_onnx(prefix, tmp_path / "m.onnx", outputs=[output], progress=False)
    pictures = np.concatenate([inception_v3.preprocess(picture, (size, size))[None] for _, picture in PICTURES])
    with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
        tf.train.import_meta_graph(f"{prefix}.meta").restore(session, str(prefix))
        expected = session.run(f"{output}:0", {"pictures:0": pictures})
    with open_runner(path) as runner:
        got = runner.infer({"pictures": pictures})[output].reshape(expected.shape)
    assert (expected.std(axis=0) > 1e-3 * np.ptp(expected)).any(), "the pictures get the same answers"
    # up to 50 layers of float32 sums in another order, with random weights: 1e-4 is what Tolerance() allows
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.ptp(expected))
