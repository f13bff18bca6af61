"""Frozen graphs and SavedModels that act on files, processes or the network, or are damaged."""

import re
import shutil
import sys

import fault_cases
import numpy as np
import pytest
from fault_cases import answer, hide, refusal, some

from workbench.core.packages import load_keras, load_tensorflow
from workbench.export.keras_model import keras_to_pb
from workbench.export.tf2onnx_process import prepare
from workbench.models.files import open_model
from workbench.models.freezing import FrozenGraph
from workbench.models.weights import named_weights
from workbench.runners.backends import open_runner

tf = load_tensorflow()
PICTURE = np.ones((1, 8, 8, 3), np.float32)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A small network as `m.pb` and as a SavedModel `m`."""
    folder, keras = tmp_path_factory.mktemp("good"), load_keras()
    x = keras.Input((8, 8, 3))
    y = keras.layers.BatchNormalization()(keras.layers.Conv2D(2, 3, use_bias=False)(x))
    y = keras.layers.GlobalAveragePooling2D()(keras.layers.Resizing(5, 7)(keras.layers.ReLU()(y)))
    model = keras.Model(x, keras.layers.Dense(3)(y))
    assert named_weights(model)
    keras_to_pb(model, folder / "m.pb")
    model.export(folder / "m", verbose=False)
    return folder


def graph_of(good):
    graph_def = tf.compat.v1.GraphDef()
    graph_def.ParseFromString((good / "m.pb").read_bytes())
    return graph_def


def saved(good):
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    model.ParseFromString((good / "m" / "saved_model.pb").read_bytes())
    return model


def write(proto, path):
    path.write_bytes(proto.SerializeToString())
    return path


def write_saved(good, model, folder):
    shutil.copytree(good / "m", folder)
    write(model, folder / "saved_model.pb")
    return folder


def use(path):
    """Open a graph, prepare it for the converter, and run it."""
    frozen = open_model(path)
    prepare(frozen)
    with open_runner(frozen) as runner:
        runner.infer({"input": PICTURE})


def operations():
    """Every operation of TensorFlow whose name says that it has to do with more than numbers."""
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python.client import pywrap_tf_session

    found = op_def_pb2.OpList()
    found.ParseFromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
    words = "File|PyFunc|Dataset|Reader|Abort|ImmutableConst|Debug|Rpc|Send$|Recv$|SummaryWriter|Skipgram|Unigram"
    words += "|Iterator|VocabRemap|LoadAndRemap|Save|Merge.*Checkpoints|Restore|DumpTensor|XlaCallModule|RemoteCall"
    harmless = "LearnedUnigram|ThreadUnsafe|Reader.*Num|SparseTensor|^Sharded|^CalibrationStat|FileSystemSet|TextFile"
    return [one for one in found.op if re.search(words, one.name) and not re.search(harmless, one.name)]


OPERATIONS = {one.name: one for one in sorted(operations(), key=lambda one: one.name)}


def add_node(nodes, operation, given, name="odd"):
    """Add a node of an operation, with the attributes that it needs."""
    node = nodes.add(name=name, op=operation.name, input=[given] * len(operation.input_arg))
    for attribute in operation.attr:
        value = node.attr[attribute.name]
        if attribute.HasField("default_value"):
            value.CopyFrom(attribute.default_value)
        elif attribute.type in ("int", "type"):
            setattr(value, attribute.type[0] if attribute.type == "int" else "type", 1)
        elif attribute.type == "string":
            value.s = b"x"
        elif attribute.type == "func":
            value.func.name = "none"
        elif attribute.type in ("shape", "tensor"):
            getattr(value, attribute.type).SetInParent()
        else:
            value.list.SetInParent()


@pytest.mark.parametrize("name", some(list(OPERATIONS), 60))
def test_a_frozen_graph_only_computes(name, good, tmp_path):
    graph_def = graph_of(good)
    add_node(graph_def.node, OPERATIONS[name], "input")
    text = refusal(open_model, write(graph_def, tmp_path / "m.pb"))
    assert name in text
    assert "odd" in text


@pytest.mark.parametrize("name", some(list(OPERATIONS), 20))
def test_a_saved_model_only_computes(name, good, tmp_path):
    model = saved(good)
    called = next(f for f in model.meta_graphs[0].graph_def.library.function if "signature" in f.signature.name)
    add_node(called.node_def, OPERATIONS[name], called.signature.input_arg[0].name)
    assert name in refusal(open_model, write_saved(good, model, tmp_path / "m"))


class Printer(tf.Module):
    """A network that prints into a file."""

    @tf.function(input_signature=[tf.TensorSpec((1, 8, 8, 3), name="input")])
    def __call__(self, x):
        tf.print("written", output_stream="file://canary")
        return x * 2


def printing(nodes):
    return [node for node in nodes if node.op == "PrintV2"]


def test_an_attribute_that_python_does_not_see_is_not_in_a_graph_that_is_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    graph_def = Printer().__call__.get_concrete_function().graph.as_graph_def()
    first(graph_def, "Identity").name = "output"
    for node in printing(graph_def.node):
        hide(node, "output_stream")
    use(write(graph_def, tmp_path / "m.pb"))
    assert not (tmp_path / "canary").exists()


def test_a_saved_model_with_an_attribute_that_python_does_not_see_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tf.saved_model.save(Printer(), "m", signatures=Printer().__call__)
    model = saved(tmp_path)
    for function in model.meta_graphs[0].graph_def.library.function:
        for node in printing(function.node_def):
            hide(node, "output_stream")
    write(model, tmp_path / "m" / "saved_model.pb")
    assert "fields that this TensorFlow lacks" in refusal(use, tmp_path / "m")
    assert not (tmp_path / "canary").exists()


def test_what_only_the_saver_reaches_may_write(good):
    library = saved(good).meta_graphs[0].graph_def.library
    assert any(node.op == "SaveV2" for function in library.function for node in function.node_def)
    use(good / "m")


def with_function(graph_def, name="hidden"):
    """Put a WriteFile into a function that a node calls."""
    function = graph_def.library.function.add()
    function.signature.name = name
    add_node(function.node_def, tf_operation("WriteFile"), "x")
    function.node_def[0].attr.clear()
    node = graph_def.node.add(name="caller", op="StatefulPartitionedCall")
    for key in ("Tin", "Tout"):
        node.attr[key].list.SetInParent()
    node.attr["f"].func.name = name
    return graph_def


def tf_operation(name):
    from tensorflow.python.framework import op_def_registry

    return op_def_registry.get(name)


def test_a_function_that_is_called_only_computes_too(good, tmp_path):
    assert "WriteFile" in refusal(open_model, write(with_function(graph_of(good)), tmp_path / "m.pb"))


def test_a_function_with_the_name_of_an_operation_hides_nothing(good, tmp_path):
    graph_def = graph_of(good)
    graph_def.library.function.add().signature.name = "WriteFile"
    add_node(graph_def.node, tf_operation("WriteFile"), "input")
    assert "WriteFile" in refusal(open_model, write(graph_def, tmp_path / "m.pb"))


class Writer(tf.saved_model.experimental.TrackableResource):
    """A resource whose creation or initialisation writes a file."""

    def __init__(self, canary, moment):
        super().__init__()
        self.canary, self.moment = str(canary), moment
        self.made = self.resource_handle

    def act(self, moment):
        if moment == self.moment:
            tf.io.write_file(self.canary, "written")

    def _create_resource(self):
        self.act("create")
        return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[], shared_name="one")

    def _initialize(self):
        self.act("initialize")

    def _destroy_resource(self):
        self.act("destroy")


def network(canary, moment):
    """A module that writes a file: when it is loaded, when it answers, or, as `never`, not at all."""

    class Network(tf.Module):
        def __init__(self):
            super().__init__()
            self.weight = tf.Variable([2.0, 3.0])
            if moment in ("create", "initialize", "destroy"):
                self.resource = Writer(canary, moment)

        @tf.function(input_signature=[tf.TensorSpec((None, 2), name="x")])
        def __call__(self, x):
            if moment == "answer":
                tf.io.write_file(str(canary), "written")
            if moment == "branch":
                return tf.cond(tf.reduce_sum(x) > 0, lambda: self.late(x), lambda: x)
            return x * self.weight

        def late(self, x):
            tf.io.write_file(str(canary), "written")
            return x

    return Network()


@pytest.mark.parametrize("moment", ["create", "initialize", "destroy", "answer", "branch"])
def test_nothing_is_written_while_a_saved_model_is_loaded_or_answers(moment, tmp_path):
    canary = tmp_path / "canary"
    module = network(canary, moment)
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.__call__)
    canary.unlink(missing_ok=True)
    assert "WriteFile" in refusal(open_model, tmp_path / "m")
    assert not canary.exists()
    module.resource = None  # or its own end writes


def test_a_plain_module_is_opened(tmp_path):
    module = network(tmp_path / "canary", "never")
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.__call__)
    assert isinstance(open_model(tmp_path / "m"), FrozenGraph)


def save_tf1(folder, canary, place):
    """Write a TensorFlow 1 SavedModel that writes a file at some place, or, for `never`, does not."""
    v1 = tf.compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 2), name="x")
        spy = v1.io.write_file(str(canary), "written", name="spy")
        variable = v1.get_variable("weight", initializer=[2.0, 3.0], use_resource=place != "ref")
        session.run(v1.global_variables_initializer())
        main = spy if place == "main" else None
        saver = v1.train.Saver()
        with v1.control_dependencies([spy] if place == "answer" else []):
            y = v1.multiply(x, variable, name="y")
        builder = v1.saved_model.Builder(str(folder))
        signature = v1.saved_model.predict_signature_def({"x": x}, {"y": y})
        builder.add_meta_graph_and_variables(
            session, ["serve"], {"serving_default": signature}, main_op=main, saver=saver
        )
        builder.save()
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    model.ParseFromString((folder / "saved_model.pb").read_bytes())
    graph_def = model.meta_graphs[0].graph_def
    if place == "restore":
        node = next(n for n in graph_def.node if n.name == model.meta_graphs[0].saver_def.restore_op_name)
        node.input.append("^spy")
    if place in ("never", "ref"):
        for node in [node for node in graph_def.node if node.name.startswith("spy")]:
            graph_def.node.remove(node)
    write(model, folder / "saved_model.pb")


@pytest.mark.parametrize("place", ["main", "answer", "restore"])
def test_a_saved_model_of_tensorflow_1_writes_nothing(place, tmp_path):
    save_tf1(tmp_path / "m", tmp_path / "canary", place)
    assert "WriteFile" in refusal(open_model, tmp_path / "m")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("place", ["never", "ref"])
def test_a_plain_saved_model_of_tensorflow_1_is_opened(place, tmp_path):
    save_tf1(tmp_path / "m", tmp_path / "canary", place)
    with open_runner(tmp_path / "m") as runner:
        assert runner.infer({"input": np.ones((1, 2), np.float32)})["output"].tolist() == [[2.0, 3.0]]


def test_a_frozen_graph_that_writes_is_refused_before_it_runs(tmp_path):
    v1 = tf.compat.v1
    with v1.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, (1, 2), name="x")
        with v1.control_dependencies([v1.io.write_file(str(tmp_path / "canary"), "written")]):
            v1.identity(x, name="y")
    path = write(graph.as_graph_def(), tmp_path / "m.pb")
    assert "WriteFile" in refusal(open_model, path)
    assert "WriteFile" in refusal(open_model, path, outputs=["y"])
    assert not (tmp_path / "canary").exists()


def test_a_reader_before_the_input_is_cut_off(tmp_path):
    v1 = tf.compat.v1
    with v1.Graph().as_default() as graph:
        picture = v1.reshape(v1.io.decode_raw(v1.io.read_file("none"), tf.float32), (1, 2), name="picture")
        v1.multiply(picture, 2.0, name="y")
    path = write(graph.as_graph_def(), tmp_path / "m.pb")
    refusal(open_model, path, outputs=["y"])
    frozen = open_model(path, inputs=["picture"], outputs=["y"])
    assert "ReadFile" not in {node.op for node in frozen.graph_def.node}


def test_an_asset_outside_of_the_folder_is_refused(good, tmp_path):
    for number, name in enumerate(("../../etc/passwd", "/etc/passwd", "..", "a\\..\\b")):
        model = saved(good)
        model.meta_graphs[0].asset_file_def.add(filename=name)
        refusal(open_model, write_saved(good, model, tmp_path / str(number)))


def test_a_table_is_filled_from_assets_only(good, tmp_path):
    graph_def = graph_of(good)
    with tf.Graph().as_default() as graph:
        tf.raw_ops.InitializeTableFromTextFileV2(
            table_handle=tf.raw_ops.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64),
            filename=tf.constant("/etc/passwd"), key_index=-2, value_index=-1,
        )  # fmt: skip
    graph_def.node.extend(graph.as_graph_def().node)
    assert "InitializeTableFromTextFileV2" in refusal(open_model, write(graph_def, tmp_path / "m.pb"))


def attributes():
    """Each node of a small graph with each of its attributes, by index."""
    return [(node, attribute) for node in range(18) for attribute in range(3)]


def attribute_of(good, node, attribute):
    """The small graph, that node of it, and the name of that attribute."""
    graph_def = graph_of(good)
    node = graph_def.node[node % len(graph_def.node)]
    names = sorted(node.attr) or pytest.skip("a node without attributes")
    return graph_def, node, names[attribute % len(names)]


@pytest.mark.parametrize(("node", "attribute"), some(attributes(), 20))
def test_a_flipped_bit_in_the_name_of_an_attribute_is_refused(node, attribute, good, tmp_path):
    graph_def, node, name = attribute_of(good, node, attribute)
    node.attr[chr(ord(name[0]) ^ 4) + name[1:]].CopyFrom(node.attr[name])
    del node.attr[name]
    refusal(use, write(graph_def, tmp_path / "m.pb"))


@pytest.mark.parametrize(("node", "attribute"), some(attributes(), 12))
def test_an_attribute_without_a_value_is_refused(node, attribute, good, tmp_path):
    graph_def, node, name = attribute_of(good, node, attribute)
    node.attr[name].Clear()
    refusal(use, write(graph_def, tmp_path / "m.pb"))


@pytest.mark.parametrize(("node", "attribute"), some(attributes(), 12))
def test_an_attribute_of_another_kind_is_refused(node, attribute, good, tmp_path):
    graph_def, node, name = attribute_of(good, node, attribute)
    node.attr[name].Clear()
    node.attr[name].func.name = "none"
    answer(use, write(graph_def, tmp_path / "m.pb"))


@pytest.mark.parametrize("bit", some(range(3, 41_000, 71), 40))
def test_a_flipped_bit_in_a_frozen_graph_has_an_answer(bit, good, tmp_path):
    content = bytearray((good / "m.pb").read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    (tmp_path / "m.pb").write_bytes(content)

    def prepared():
        prepare(open_model(tmp_path / "m.pb"))

    answer(prepared)


@pytest.mark.parametrize("bit", some(range(5, 400_000, 997), 20))
def test_a_flipped_bit_in_a_saved_model_has_an_answer(bit, good, tmp_path):
    shutil.copytree(good / "m", tmp_path / "m")
    content = bytearray((tmp_path / "m" / "saved_model.pb").read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    (tmp_path / "m" / "saved_model.pb").write_bytes(content)

    def prepared():
        prepare(open_model(tmp_path / "m"))

    answer(prepared)


def first(graph_def, operation):
    return next(node for node in graph_def.node if node.op == operation)


def set_constant(**fields):
    def change(graph_def):
        tensor = first(graph_def, "Const").attr["value"].tensor
        for name, value in fields.items():
            setattr(tensor, name, value)

    return change


def set_dims(*sizes):
    def change(graph_def):
        tensor = first(graph_def, "Const").attr["value"].tensor
        del tensor.tensor_shape.dim[:]
        for size in sizes:
            tensor.tensor_shape.dim.add(size=size)

    return change


def huge(graph_def):
    set_dims(1 << 40)(graph_def)
    set_constant(tensor_content=b"")(graph_def)


GRAPHS = {
    "a missing input": lambda graph_def: first(graph_def, "Relu").input.__setitem__(0, "none"),
    "a missing control input": lambda graph_def: first(graph_def, "Relu").input.append("^none"),
    "a missing output of a node": lambda graph_def: first(graph_def, "Relu").input.__setitem__(0, "input:7"),
    "an index that is no number": lambda graph_def: first(graph_def, "Relu").input.__setitem__(0, "input:x"),
    "an empty input": lambda graph_def: first(graph_def, "Relu").input.__setitem__(0, ""),
    "no inputs": lambda graph_def: first(graph_def, "Relu").ClearField("input"),
    "too many inputs": lambda graph_def: first(graph_def, "Relu").input.extend(["input"] * 9),
    "its own input": lambda graph_def: first(graph_def, "Relu").input.__setitem__(0, first(graph_def, "Relu").name),
    "an unknown operation": lambda graph_def: setattr(first(graph_def, "Relu"), "op", "Rely"),
    "no operation": lambda graph_def: setattr(first(graph_def, "Relu"), "op", ""),
    "two nodes of one name": lambda graph_def: graph_def.node.add().CopyFrom(graph_def.node[1]),
    "a constant of another type": set_constant(dtype=3),
    "a constant of an unknown type": set_constant(dtype=99),
    "a constant cut short": set_constant(tensor_content=b"123"),
    "a constant of negative size": set_dims(-3),
    "a constant of two unknown sizes": set_dims(-1, -1),
    "a constant of huge size": huge,
    "a constant whose size overflows": set_dims(1 << 62, 1 << 62),
    "an unknown type": lambda graph_def: setattr(first(graph_def, "Relu").attr["T"], "type", 77),
    "text for a type": lambda graph_def: setattr(first(graph_def, "Relu").attr["T"], "s", b"float"),
    "an unknown padding": lambda graph_def: setattr(first(graph_def, "Conv2D").attr["padding"], "s", b"NONE"),
    "an unknown layout": lambda graph_def: setattr(first(graph_def, "Conv2D").attr["data_format"], "s", b"\xff\xfe"),
    "no strides": lambda graph_def: first(graph_def, "Conv2D").attr["strides"].list.ClearField("i"),
    "strides of zero": lambda graph_def: first(graph_def, "Conv2D").attr["strides"].list.i.__setitem__(1, 0),
    "a device far away": lambda graph_def: setattr(first(graph_def, "Relu"), "device", "/job:far/task:1"),
    "a device that is none": lambda graph_def: setattr(first(graph_def, "Relu"), "device", "\x01none"),
    "a version of the future": lambda graph_def: setattr(graph_def.versions, "min_consumer", 1 << 30),
    "a function without a name": lambda graph_def: graph_def.library.function.add(),
    "an odd name": lambda graph_def: setattr(graph_def.node.add(op="NoOp"), "name", "\x01 odd"),
    "no name": lambda graph_def: graph_def.node.add(op="NoOp"),
}


@pytest.mark.parametrize("change", GRAPHS.values(), ids=GRAPHS)
def test_damaged_graphs_have_an_answer(change, good, tmp_path):
    graph_def = graph_of(good)
    change(graph_def)
    path = write(graph_def, tmp_path / "m.pb")
    answer(lambda: prepare(open_model(path)))


@pytest.mark.parametrize("part", some(range(1, 40), 10))
def test_a_saved_model_cut_short_is_refused(part, good, tmp_path):
    shutil.copytree(good / "m", tmp_path / "m")
    for path in (tmp_path / "m" / "saved_model.pb", *(tmp_path / "m" / "variables").iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * part // 40])
        refusal(open_model, tmp_path / "m")
        path.write_bytes(content)


def test_nothing_of_the_folder_of_a_saved_model_is_imported(good, tmp_path):
    shutil.copytree(good / "m", tmp_path / "m")
    (tmp_path / "m" / "canary_beside.py").write_text("")
    with fault_cases.untouched(tmp_path):
        open_model(tmp_path / "m")
    assert "canary_beside" not in sys.modules
