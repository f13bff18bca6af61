"""TensorFlow 1 checkpoints whose graph acts on files while it is restored or answers, or that are damaged."""

import shutil

import numpy as np
import pytest
import tf1_networks as networks
from fault_cases import answer, hide, refusal, some

from workbench.models.files import open_model
from workbench.models.tf1_checkpoint import open_checkpoint
from workbench.runners.backends import open_runner


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return networks.save(networks.build(), tmp_path_factory.mktemp("good"))


def meta_of(prefix):
    meta = networks.compat().MetaGraphDef()
    meta.ParseFromString(prefix.with_name("model.ckpt.meta").read_bytes())
    return meta


def copy_of(good, folder, meta=None):
    for file in good.parent.glob("model.ckpt.*"):
        shutil.copy(file, folder)
    if meta is not None:
        (folder / "model.ckpt.meta").write_bytes(meta.SerializeToString())
    return folder / "model.ckpt"


def writing(tmp_path, kind):
    """Nodes that act on a file, the last of which is called spy."""
    tf = networks.compat()
    path = str(tmp_path / "canary")
    with tf.Graph().as_default() as graph:
        if kind == "WriteFile":
            tf.io.write_file(path, "written", name="spy")
        elif kind == "SaveV2":
            tf.raw_ops.SaveV2(prefix=path, tensor_names=["x"], shape_and_slices=[""], tensors=[1.0], name="spy")
        elif kind == "ReadFile":
            tf.io.read_file("/etc/hostname", name="spy")
        elif kind == "PrintV2":
            tf.raw_ops.PrintV2(input="written", output_stream=f"file://{path}", name="spy")
        elif kind == "PyFunc":
            tf.py_func(lambda: 1.0, [], tf.float32, name="spy")
        elif kind == "MatchingFiles":
            tf.io.matching_files("/*", name="spy")
        elif kind == "ReaderReadV2":
            reader = tf.raw_ops.TextLineReaderV2()
            tf.raw_ops.ReaderReadV2(
                reader_handle=reader, queue_handle=tf.raw_ops.FIFOQueueV2(component_types=[tf.string]), name="spy"
            )
        else:
            tf.raw_ops.TextLineDataset(filenames=["/etc/hostname"], compression_type="", buffer_size=9, name="spy")
    return graph.as_graph_def().node


KINDS = ["WriteFile", "SaveV2", "ReadFile", "PrintV2", "PyFunc", "MatchingFiles", "ReaderReadV2", "TextLineDataset"]
PLACES = ["restore", "answer", "weight"]


def node_at(meta, place):
    """The node that restores all, the output, or the node that fills one weight."""
    name = {"restore": meta.saver_def.restore_op_name, "answer": networks.LOGITS, "weight": "save/Assign"}[place]
    return next(node for node in meta.graph_def.node if node.name == name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_a_graph_that_acts_is_refused_before_it_is_restored(kind, place, good, tmp_path):
    meta = meta_of(good)
    meta.graph_def.node.extend(writing(tmp_path, kind))
    node_at(meta, place).input.append("^spy")
    prefix = copy_of(good, tmp_path, meta)
    text = refusal(open_checkpoint, prefix, [networks.LOGITS])
    assert kind in text or "Dataset" in text or "Reader" in text or "Queue" in text
    assert not list(tmp_path.glob("canary*"))


@pytest.mark.parametrize("place", PLACES)
def test_an_attribute_that_python_does_not_see_does_nothing(place, good, tmp_path):
    meta, nodes = meta_of(good), writing(tmp_path, "PrintV2")
    hide(nodes[-1], "output_stream")
    meta.graph_def.node.extend(nodes)
    node_at(meta, place).input.append("^spy")
    with open_runner(open_checkpoint(copy_of(good, tmp_path, meta), [networks.LOGITS])) as runner:
        runner.infer({"pictures": networks.pictures()})
    assert not list(tmp_path.glob("canary*"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_used_may_stand_in_the_graph(kind, good, tmp_path):
    meta = meta_of(good)
    meta.graph_def.node.extend(writing(tmp_path, kind))
    prefix = copy_of(good, tmp_path, meta)
    assert open_checkpoint(prefix, [networks.LOGITS]).outputs == (networks.LOGITS,)
    assert not list(tmp_path.glob("canary*"))


def test_a_good_checkpoint_answers_as_before(good):
    with open_runner(open_model(good, outputs=[networks.LOGITS])) as runner:
        (found,) = runner.infer({"pictures": networks.pictures()}).values()
    np.testing.assert_allclose(found, networks.answer(good, networks.pictures()), atol=1e-5)  # sums in another order


def restoring_function(meta, tmp_path):
    """Let the restore call a function that writes."""
    function = meta.graph_def.library.function.add()
    function.signature.name = "hidden"
    function.node_def.extend(writing(tmp_path, "WriteFile"))
    node = meta.graph_def.node.add(name="caller", op="StatefulPartitionedCall")
    for key in ("Tin", "Tout"):
        node.attr[key].list.SetInParent()
    node.attr["f"].func.name = "hidden"
    node_at(meta, "restore").input.append("^caller")


def saver_of_its_own(meta, tmp_path):
    meta.graph_def.node.extend(writing(tmp_path, "WriteFile"))
    meta.saver_def.restore_op_name = "spy"


METAS = {
    "a function that writes": restoring_function,
    "another restore": saver_of_its_own,
    "no restore": lambda meta, tmp_path: meta.saver_def.ClearField("restore_op_name"),
    "a restore that is not there": lambda meta, tmp_path: setattr(meta.saver_def, "restore_op_name", "none"),
    "no file name": lambda meta, tmp_path: meta.saver_def.ClearField("filename_tensor_name"),
    "another file name": lambda meta, tmp_path: setattr(meta.saver_def, "filename_tensor_name", "pictures:0"),
    "a missing weight": lambda meta, tmp_path: meta.graph_def.node.remove(node_at(meta, "weight")),
    "an empty graph": lambda meta, tmp_path: meta.graph_def.ClearField("node"),
    "no operation": lambda meta, tmp_path: node_at(meta, "answer").ClearField("op"),
    "no attributes": lambda meta, tmp_path: node_at(meta, "answer").attr.clear(),
    "no inputs": lambda meta, tmp_path: node_at(meta, "answer").ClearField("input"),
    "the name of a weight that is no text": lambda meta, tmp_path: (
        next(node for node in meta.graph_def.node if node.name == "save/RestoreV2/tensor_names")
        .attr["value"]
        .tensor.ClearField("string_val")
    ),
}


@pytest.mark.parametrize("change", METAS.values(), ids=METAS)
def test_damaged_graphs_are_refused(change, good, tmp_path):
    meta = meta_of(good)
    change(meta, tmp_path)
    refusal(open_checkpoint, copy_of(good, tmp_path, meta), [networks.LOGITS])
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("suffix", [".meta", ".index", ".data-00000-of-00001"])
@pytest.mark.parametrize("part", some(range(1, 20), 4))
def test_a_file_cut_short_is_refused(suffix, part, good, tmp_path):
    path = copy_of(good, tmp_path).with_name(f"model.ckpt{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * part // 20])
    refusal(open_checkpoint, tmp_path / "model.ckpt", [networks.LOGITS])


@pytest.mark.parametrize("suffix", [".meta", ".index"])
@pytest.mark.parametrize("part", some(range(2003), 20))
def test_a_flipped_bit_has_an_answer(suffix, part, good, tmp_path):
    path = copy_of(good, tmp_path).with_name(f"model.ckpt{suffix}")
    content = bytearray(path.read_bytes())
    content[len(content) * part // 2003] ^= 1 << part % 8
    path.write_bytes(content)
    answer(open_checkpoint, tmp_path / "model.ckpt", [networks.LOGITS])


@pytest.mark.parametrize("text", ['model_checkpoint_path: "/etc/passwd"', 'model_checkpoint_path: "../x"', "\0\0", ""])
def test_the_file_that_names_the_latest_checkpoint_leads_nowhere_else(text, good, tmp_path):
    copy_of(good, tmp_path)
    (tmp_path / "checkpoint").write_text(text)
    answer(open_model, tmp_path, outputs=[networks.LOGITS])
