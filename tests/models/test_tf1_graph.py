"""What is read from TensorFlow 1 graphs and changed in them, on graphs of a few nodes."""

import pytest

from workbench.core.errors import ModelError
from workbench.core.packages import load_tensorflow
from workbench.models.tf1_graph import find_inputs, fix_size, propose_outputs, take_channels_first


def graph_of(build):
    tf = load_tensorflow().compat.v1
    with tf.Graph().as_default() as graph:
        build(tf)
    return graph.as_graph_def()


def picture_graph(height, width):
    def build(tf):
        picture = tf.placeholder(tf.float32, (None, height, width, 3), name="picture")
        tf.nn.relu(picture, name="result")

    return graph_of(build)


def sizes(graph_def, name):
    node = next(node for node in graph_def.node if node.name == name)
    return [dim.size for dim in node.attr["shape"].shape.dim]


def test_a_switch_between_training_and_use_is_no_input():
    def build(tf):
        picture = tf.placeholder(tf.float32, (None, 4), name="picture")
        training = tf.placeholder(tf.bool, (), name="training")
        tf.placeholder(tf.float32, (None, 4), name="unused")
        tf.where(tf.broadcast_to(training, tf.shape(picture)), picture, -picture, name="result")

    assert find_inputs(graph_of(build), ["result"]) == ("picture",)


def test_logits_are_found_behind_a_change_of_shape():
    def build(tf):
        picture = tf.placeholder(tf.float32, (None, 6), name="picture")
        logits = tf.nn.bias_add(picture, tf.constant([0.0] * 6), name="logits")
        tf.nn.softmax(tf.identity(tf.reshape(logits, (-1, 2, 3))), name="shares")

    first = propose_outputs(graph_of(build))[0]
    assert (first.name, first.operator) == ("logits", "BiasAdd")
    assert "shares (Softmax)" in first.reason


def test_height_and_width_are_not_swapped():
    graph_def = picture_graph(None, None)
    fix_size(graph_def, ["picture"], (8, 12))
    assert sizes(graph_def, "picture") == [-1, 8, 12, 3]
    take_channels_first(graph_def, ["picture"])
    assert sizes(graph_def, "picture") == [-1, 3, 8, 12]
    with pytest.raises(ModelError, match="sizes are fixed"):
        fix_size(picture_graph(8, 12), ["picture"], (8, 12))
