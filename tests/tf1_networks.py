"""Small TensorFlow 1 networks and their checkpoints, as old scripts made them."""

import functools

import numpy as np

from workbench.core.packages import load_tensorflow

SIZE, CLASSES = 12, 5
LOGITS, CLASSIFIER = "head/logits", "head/softmax"


def compat():
    return load_tensorflow().compat.v1


def build(training=False, layout="NHWC", switch=False, fused=True, size=SIZE, classes=CLASSES):
    """A convolution with batch normalisation, dropout, and a softmax; in training also a loss and an optimiser."""
    tf = compat()
    with tf.Graph().as_default() as graph:
        channels_first = layout == "NCHW"
        shape = (None, 3, size, size) if channels_first else (None, size, size, 3)
        x = tf.placeholder(tf.float32, shape, name="pictures")
        kernel = tf.get_variable("conv/kernel", (3, 3, 3, 8), use_resource=False)
        x = tf.nn.conv2d(x, kernel, strides=2, padding="SAME", data_format=layout, name="conv/conv")
        x = tf.nn.relu(batch_norm(x, training, layout, fused), name="conv/relu")
        x = tf.reduce_mean(x, (2, 3) if channels_first else (1, 2), name="pool")
        if switch:
            x = tf.cond(tf.placeholder_with_default(False, (), "is_training"), lambda: tf.nn.dropout(x, 0.5), lambda: x)
        elif training:
            x = tf.nn.dropout(x, 0.5, name="dropout")
        weights = tf.get_variable("head/weights", (8, classes), use_resource=True)
        logits = tf.add(tf.matmul(x, weights), tf.get_variable("head/bias", (classes,)), name=LOGITS)
        tf.nn.softmax(logits, name=CLASSIFIER)
        if training:
            labels = tf.placeholder(tf.int64, (None,), name="labels")
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
            tf.summary.scalar("loss", loss)
            tf.train.MomentumOptimizer(0.1, 0.9).minimize(loss, global_step=tf.train.get_or_create_global_step())
    return graph


def batch_norm(x, training, layout, fused):
    tf = compat()
    mean = tf.get_variable("norm/mean", (8,), trainable=False)
    variance = tf.get_variable("norm/variance", (8,), trainable=False)
    scale, offset = np.linspace(0.5, 2, 8, dtype=np.float32), np.linspace(-1, 1, 8, dtype=np.float32)
    if fused:
        statistics = (None, None) if training else (mean, variance)
        return tf.nn.fused_batch_norm(x, scale, offset, *statistics, data_format=layout, is_training=training)[0]
    if training:
        mean, variance = tf.nn.moments(x, (0, 1, 2))
    return tf.nn.batch_normalization(x, mean, variance, offset, scale, 1e-3)


def save(graph, folder, name="model.ckpt", seed=0, **saver):
    """Give every variable a seeded value and write the checkpoint; returns its prefix."""
    tf = compat()
    folder.mkdir(parents=True, exist_ok=True)
    with graph.as_default(), tf.Session(graph=graph) as session:
        initialise(session, seed)
        tf.train.Saver(**saver).save(session, str(folder / name))
    return folder / name


def initialise(session, seed=0):
    """Run every variable's initialiser with a seeded value: normal, He's for kernels, and positive for a variance."""
    variables = session.graph.get_collection(compat().GraphKeys.GLOBAL_VARIABLES)
    generator, feed = np.random.default_rng(seed), {}
    for variable in variables:
        shape = variable.shape.as_list()
        value = generator.standard_normal(shape) * (np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 1)
        feed[variable.initializer.inputs[1]] = np.abs(value + 3) if "variance" in variable.name else value
    session.run([variable.initializer for variable in variables], feed)


def answer(prefix, x, output=LOGITS):
    """What TensorFlow 1's own session answers, from a fresh import of the checkpoint: the oracle."""
    tf = compat()
    with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
        tf.train.import_meta_graph(f"{prefix}.meta").restore(session, str(prefix))
        return session.run(f"{output}:0", {"pictures:0": x})


@functools.cache
def pictures(layout="NHWC"):
    x = np.random.default_rng(7).standard_normal((4, SIZE, SIZE, 3)).astype(np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if layout == "NCHW" else x
