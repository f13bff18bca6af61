"""Keras files that hold code, reach out of themselves, unpack to too much, or are damaged."""

import copy
import json
import shutil
import sys
import zipfile

import fault_cases
import h5py
import numpy as np
import pytest
from fault_cases import answer, command, refusal, some

from workbench.core.errors import ModelError
from workbench.core.packages import load_keras, load_tf_keras
from workbench.models.fcn_vgg16 import read_fcn_weights
from workbench.models.files import open_model, open_tf_keras_model
from workbench.models.weights import read_weights

SUFFIXES = (".keras", ".h5")
OPENERS = (open_model, open_tf_keras_model)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A small network of tf_keras, `old`, and of Keras 3, `new`, in both forms."""
    folder = tmp_path_factory.mktemp("good")
    for name, keras in (("old", load_tf_keras()), ("new", load_keras())):
        x = keras.Input((4,), name="x")
        y = keras.layers.Dense(3, activation="relu", name="dense")(x)
        model = keras.Model(x, keras.layers.Dense(2, name="last")(y))
        for suffix in SUFFIXES:
            model.save(folder / f"{name}{suffix}")
    return folder


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A module that leaves a file when it is imported and one when its function is called; their folder."""
    folder = tmp_path / "canary"
    (folder / "code").mkdir(parents=True)
    text = f"""
import pathlib
pathlib.Path({str(folder)!r}, "imported").touch()
class Layer:
    def __new__(cls, *args, **kwargs):
        return call()
    from_config = __new__
def call(*args, **kwargs):
    pathlib.Path({str(folder)!r}, "called").touch()
"""
    for name in ("canary_module", "tf_keras_canary"):
        (folder / "code" / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder / "code")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return folder


def read_config(path):
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("config.json"))
    with h5py.File(path) as file:
        return json.loads(file.attrs["model_config"])


def with_config(source, target, config):
    """Copy a Keras file with another configuration: JSON, or the very text or bytes."""
    text = config if isinstance(config, str | bytes) else json.dumps(config)
    if source.suffix == ".keras":
        return with_entries(source, target, {"config.json": text})
    shutil.copy(source, target)
    with h5py.File(target, "r+") as file:
        file.attrs["model_config"] = text
    return target


def with_entries(source, target, changed, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in dict.fromkeys([*old.namelist(), *changed]):
            content = changed.get(name, old.read(name) if name in old.namelist() else b"")
            if content is not None:
                new.writestr(name, content)
    return target


def function_layer(function, *, kind="TFOpLambda", value="{folder}/written", **arguments):
    """Change a model: one more layer that calls a function of TensorFlow on constants."""

    def change(config, folder):
        arguments_here = {name: text.format(folder=folder) for name, text in arguments.items()}
        config["config"]["layers"].append({
            "class_name": kind, "module": "tf_keras.src.layers.core.tf_op_layer", "registered_name": kind,
            "name": "call", "config": {"name": "call", "trainable": True, "dtype": "float32", "function": function},
            "inbound_nodes": [["_CONSTANT_VALUE", -1, value.format(folder=folder), arguments_here]],
        })  # fmt: skip

    return change


def dense(key, value):
    """Change a model: a setting of its first Dense layer."""

    def change(config, folder):
        layer = next(layer for layer in config["config"]["layers"] if layer["class_name"] == "Dense")
        layer["config"][key] = json.loads(json.dumps(value).replace("{folder}", str(folder)))

    return change


def layer(**settings):
    """Change a model: what its first Dense layer is."""

    def change(config, folder):
        next(one for one in config["config"]["layers"] if one["class_name"] == "Dense").update(copy.deepcopy(settings))

    return change


def function_of(module, name):
    return {"class_name": "function", "module": module, "config": name, "registered_name": name}


def object_of(module, name, **config):
    return {"class_name": name, "module": module, "config": config, "registered_name": name}


CODE = {
    "write_file": function_layer("io.write_file", contents="x"),
    "write_file of the older names": function_layer("compat.v1.io.write_file", contents="x"),
    "raw WriteFile": function_layer("raw_ops.WriteFile", contents="x"),
    "write_file in a slice": function_layer("io.write_file", kind="SlicingOpLambda", contents="x"),
    "read_file": function_layer("io.read_file", value="/etc/hostname"),
    "load_op_library": function_layer("load_op_library", value="{folder}/none.so"),
    "load_library": function_layer("load_library", value="{folder}"),
    "get_file": function_layer("keras.utils.get_file", origin="file:///etc/hostname", cache_dir="{folder}"),
    "matching_files": function_layer("io.matching_files", value="/*"),
    "py_function": function_layer("py_function"),
    "numpy_function": function_layer("numpy_function"),
    "print": function_layer("print"),
    "summary": function_layer("summary.create_file_writer"),
    "a vocabulary": function_layer("nn.fixed_unigram_candidate_sampler"),
    "a saved model": function_layer("saved_model.load"),
    "Lambda": layer(class_name="Lambda", config={"function": ["4wAAAA==", None, None], "name": "dense"}),
    "Lambda by its other name": layer(class_name="Dense", registered_name="Lambda", module="keras.layers"),
    "Lambda by a package": layer(class_name="Custom>Lambda", registered_name="Custom>Lambda"),
    "a lambda as an activation": dense("activation", {"class_name": "__lambda__", "config": {"value": "4wAAAA=="}}),
    "a layer of a module": layer(module="canary_module", class_name="Layer", registered_name="Layer"),
    "a layer of a module like Keras": layer(module="keras_canary", class_name="Layer", registered_name=None),
    "an activation of a module": dense("activation", function_of("canary_module", "call")),
    "an activation of os": dense("activation", function_of("os", "system")),
    "an initializer of a module": dense("kernel_initializer", object_of("canary_module", "Layer", path="{folder}")),
    "a regularizer of a module": dense("kernel_regularizer", object_of("canary_module", "Layer")),
    "a constraint of a module": dense("kernel_constraint", function_of("canary_module", "call")),
    "a nested object of a module": dense("bias_initializer", [[{"a": function_of("canary_module", "call")}]]),
    "a method": layer(class_name="InstanceMethod", config={"attr_name": "numpy", "name": "dense"}),
    "a method of a class": layer(class_name="ClassMethod", config={"cls_symbol": "io.gfile.GFile", "name": "dense"}),
    "a type": dense("activation", {**object_of("canary_module", "__typespec__"), "spec_name": "Layer"}),
    "a SavedModel as a layer": layer(class_name="TFSMLayer", config={"filepath": "{folder}", "name": "dense"}),
    "a vocabulary in a file": dense("vocabulary", "/etc/passwd"),
    "get_file as an activation": dense("activation", function_of("keras.utils", "get_file")),
}


@pytest.mark.parametrize("opener", OPENERS, ids=["keras", "tf_keras"])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("change", CODE.values(), ids=CODE)
def test_code_and_files_in_a_description_are_refused_and_nothing_runs(change, suffix, opener, good, canary, tmp_path):
    config = read_config(good / f"old{suffix}")
    change(config, canary)
    path = with_config(good / f"old{suffix}", tmp_path / f"m{suffix}", config)
    with fault_cases.untouched(canary):
        refusal(opener, path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_module_is_imported_for_a_name_that_is_known(suffix, good, canary, tmp_path):
    config = read_config(good / f"old{suffix}")
    dense("bias_initializer", object_of("canary_module", "Zeros"))(config, canary)
    with fault_cases.untouched(canary):
        refusal(open_tf_keras_model, with_config(good / f"old{suffix}", tmp_path / f"m{suffix}", config))


@pytest.mark.parametrize("case", ["write_file", "an initializer of a module", "Lambda"])
def test_the_command_refuses_code_through_the_other_exporter(case, good, canary, tmp_path, capsys):
    config = read_config(good / "old.keras")
    CODE[case](config, canary)
    path = with_config(good / "old.keras", tmp_path / "m.keras", config)
    with fault_cases.untouched(tmp_path):
        assert command(capsys, "convert", path, tmp_path / "m.onnx", "--exporter", "keras2onnx")[0] == 2


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["Lambda", "a SavedModel as a layer", "a vocabulary in a file"])
def test_files_of_keras_3_hold_no_code_either(name, suffix, good, canary, tmp_path):
    config = read_config(good / f"new{suffix}")
    CODE[name](config, canary)
    refusal(open_model, with_config(good / f"new{suffix}", tmp_path / f"m{suffix}", config))


def test_a_refused_function_is_named(good, canary, tmp_path):
    config = read_config(good / "old.h5")
    CODE["write_file"](config, canary)
    assert "io.write_file" in refusal(open_model, with_config(good / "old.h5", tmp_path / "m.h5", config))


@pytest.mark.parametrize("opener", OPENERS, ids=["keras", "tf_keras"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_functions_that_only_compute_are_opened(suffix, opener, tmp_path):
    import tensorflow as tf

    keras = load_tf_keras()
    x = keras.Input((8, 8, 3))
    y = tf.nn.relu(tf.math.add(keras.layers.Conv2D(4, 3)(x), 1.0))[:, 1:, :, :2] * 2
    y = tf.concat([tf.reshape(y, (-1, 60)), keras.backend.mean(y, axis=(1, 2))], axis=-1)
    inner = keras.Sequential([keras.layers.Bidirectional(keras.layers.LSTM(3), input_shape=(2, 31))])
    model = keras.Model(x, inner(tf.reshape(y, (-1, 2, 31))))
    model.compile("adam", "mse")
    model.save(tmp_path / f"m{suffix}")
    picture = np.ones((1, 8, 8, 3), np.float32)
    np.testing.assert_array_equal(opener(tmp_path / f"m{suffix}")(picture), model(picture))  # the same kernels


def test_a_registered_layer_of_the_readers_own_is_opened(tmp_path):
    keras = load_tf_keras()

    @keras.saving.register_keras_serializable("faults")
    class Twice(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    x = keras.Input((4,))
    keras.Model(x, Twice()(x)).save(tmp_path / "m.keras")
    assert float(open_tf_keras_model(tmp_path / "m.keras")(np.ones((1, 4), np.float32))[0, 0]) == 2


METADATA = ("[]", "3", "null", '"2.1"', "", "{", "{}", '{"keras_version": 3}', '{"keras_version": null}', "[" * 100_000)
METADATA += ('{"keras_version": ["2."]}', '{"keras_version": "2.x"}', b"\xff\xfe", '{"keras_version": {}}')
CONFIGS = ("[]", "3", "null", '"x"', "{", "{}", "[" * 100_000, '{"a":' * 300 + "1" + "}" * 300, '{"config": []}')
CONFIGS += ('{"class_name": 3}', '{"class_name": null, "config": {}}', '{"class_name": [], "config": 3}')
CONFIGS += ('{"class_name": "Dense", "module": "keras.layers", "config": {"units": 3}, "registered_name": null}',)
CONFIGS += ('{"class_name": "Functional", "config": []}', '{"class_name": "Functional", "config": {"layers": 3}}')
CONFIGS += ('{"class_name": "Sequential", "config": {"layers": [3]}}', '{"class_name": {}, "config": {}}', "NaN")


@pytest.mark.parametrize("opener", OPENERS, ids=["keras", "tf_keras"])
@pytest.mark.parametrize("text", METADATA, ids=range(len(METADATA)))
def test_metadata_of_another_type_has_an_answer(text, opener, good, tmp_path):
    answer(opener, with_entries(good / "old.keras", tmp_path / "m.keras", {"metadata.json": text}))


@pytest.mark.parametrize("opener", OPENERS, ids=["keras", "tf_keras"])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("text", CONFIGS, ids=range(len(CONFIGS)))
def test_descriptions_of_another_form_are_refused(text, suffix, opener, good, tmp_path):
    if suffix == ".h5" and len(text) > 60_000:
        text = text[:60_000]  # what an attribute holds
    refusal(opener, with_config(good / f"old{suffix}", tmp_path / f"m{suffix}", text))


@pytest.mark.parametrize("entry", ["config.json", "metadata.json", "model.weights.h5", "more"])
def test_an_archive_that_unpacks_to_too_much_is_refused_unread(entry, good, tmp_path):
    path = with_entries(good / "old.keras", tmp_path / "m.keras", {entry: b" " * (80 << 20)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    assert "MB" in refusal(open_model, path)


def twice(source, target, name="config.json"):
    shutil.copy(source, target)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(target, "a") as archive:
        archive.writestr(name, "{}")


def patched(old, new):
    def write(source, target):
        content = source.read_bytes()
        assert old in content
        target.write_bytes(content.replace(old, new))

    return write


ARCHIVES = {
    "an entry twice": twice,
    "weights twice": lambda source, target: twice(source, target, "model.weights.h5"),
    "no description": lambda source, target: with_entries(source, target, {"config.json": None}),
    "a changed text": patched(b'"dense"', b'"dens!"'),
    "an unknown compression": patched(b"PK\x01\x02\x14\x03\x14\0\0\0\0\0", b"PK\x01\x02\x14\x03\x14\0\0\0\x63\0"),
    "encrypted": patched(b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\1\0"),
    "no archive": lambda source, target: target.write_bytes(b"no archive at all"),
    "only an end": lambda source, target: target.write_bytes(b"PK\5\6" + bytes(18)),
    "no weights": lambda source, target: with_entries(source, target, {"model.weights.h5": None}),
    "other weights": lambda source, target: with_entries(source, target, {"model.weights.h5": b"no HDF5"}),
}


@pytest.mark.parametrize("opener", OPENERS, ids=["keras", "tf_keras"])
@pytest.mark.parametrize("write", ARCHIVES.values(), ids=ARCHIVES)
def test_damaged_archives_are_refused(write, opener, good, tmp_path):
    write(good / "old.keras", tmp_path / "m.keras")
    refusal(opener, tmp_path / "m.keras")


def test_an_entry_that_points_out_of_the_archive_writes_nothing_there(good, tmp_path):
    (tmp_path / "in").mkdir()
    path = with_entries(good / "old.keras", tmp_path / "in" / "m.keras", {"../../outside": b"x", "/../outside": b"x"})
    with fault_cases.untouched(tmp_path):
        answer(open_model, path)
        answer(open_tf_keras_model, path)


def linked(make):
    """Change the first kernel of an HDF5 file."""

    def change(file, folder):
        group = file["model_weights/dense"]
        name = next(f"{outer}/{inner}" for outer in group for inner in group[outer] if inner.startswith("kernel"))
        shape = group[name].shape
        del group[name]
        make(group, name, shape, folder)

    return change


def virtual(group, name, shape, folder):
    layout = h5py.VirtualLayout(shape, "f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", shape)
    group.create_virtual_dataset(name, layout)


HDF5 = {
    "an external link": linked(
        lambda group, name, shape, folder: group.__setitem__(name, h5py.ExternalLink(str(folder / "other.h5"), "x"))
    ),
    "external data": linked(
        lambda group, name, shape, folder: group.create_dataset(
            name, shape, "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
        )
    ),
    "a virtual dataset": linked(virtual),
    "a link to nothing": linked(lambda group, name, shape, folder: group.__setitem__(name, h5py.SoftLink("/none"))),
    "huge data": linked(lambda group, name, shape, folder: group.create_dataset(name, (1 << 40,), "f4", chunks=(99,))),
    "texts for numbers": linked(lambda group, name, shape, folder: group.__setitem__(name, "a text")),
    "another shape": linked(lambda group, name, shape, folder: group.__setitem__(name, np.zeros((1, 2, 3)))),
    "no names": lambda file, folder: file["model_weights"].attrs.__delitem__("layer_names"),
    "other names": lambda file, folder: file["model_weights"].attrs.__setitem__("layer_names", 3),
    "no weights": lambda file, folder: file.__delitem__("model_weights"),
    "several descriptions": lambda file, folder: file.attrs.__setitem__("model_config", ["{}", "{}"]),
    "a number as description": lambda file, folder: file.attrs.__setitem__("model_config", 3.5),
    "no description": lambda file, folder: file.attrs.__delitem__("model_config"),
}


@pytest.mark.parametrize("opener", [*OPENERS, read_fcn_weights], ids=["keras", "tf_keras", "weights"])
@pytest.mark.parametrize("change", HDF5.values(), ids=HDF5)
def test_hdf5_files_that_reach_out_or_are_damaged_are_refused(change, opener, good, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros((4, 3), np.float32)
    path = tmp_path / "m.h5"
    shutil.copy(good / "old.h5", path)
    with h5py.File(path, "r+") as file:
        change(file, tmp_path)
    refusal(opener, path)


@pytest.mark.parametrize(
    ("name", "part"),
    [(f"{kind}{suffix}", part) for kind in ("old", "new") for suffix in SUFFIXES for part in some(range(1, 20), 4)],
)
def test_a_file_cut_short_is_refused(name, part, good, tmp_path):
    content = (good / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * part // 20])
    refusal(open_model, tmp_path / name)


@pytest.mark.parametrize(
    ("name", "part"),
    [(f"{kind}{suffix}", part) for kind in ("old", "new") for suffix in SUFFIXES for part in some(range(997), 6)],
)
def test_a_flipped_bit_has_an_answer(name, part, good, tmp_path):
    content = bytearray((good / name).read_bytes())
    content[len(content) * part // 997] ^= 1 << part % 8
    (tmp_path / name).write_bytes(content)
    answer(open_model, tmp_path / name)


NAMES = {
    "bytes that are no text": b"m\xff\xfe.keras",
    "in capital letters": b"m.KERAS",
    "HDF5 in capital letters": b"m.H5",
}


@pytest.mark.parametrize("opener", OPENERS, ids=["keras", "tf_keras"])
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_file_that_is_there_is_never_called_missing(name, opener, good, tmp_path):
    path = tmp_path / name.decode(errors="surrogateescape")
    shutil.copy(good / ("old.h5" if name.endswith(b"H5") else "old.keras"), path)
    text = refusal(opener, path)
    assert "rename" in text
    assert "not found" not in text.lower()


@pytest.mark.parametrize("opener", OPENERS, ids=["keras", "tf_keras"])
@pytest.mark.parametrize("name", ["n" * 300 + ".keras", "m\0.keras", "/".join(["d"] * 5000) + ".keras"])
def test_names_that_no_file_can_have_are_refused(name, opener):
    refusal(opener, name)


def test_weights_that_unpack_to_too_much_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(80 << 20))
    with pytest.raises(ModelError, match="MB"):
        read_weights(tmp_path / "w.npz")


OUTSIDE = ("an external link", "external data", "a virtual dataset", "huge data")


@pytest.mark.parametrize("kind", ["old", "new"])
@pytest.mark.parametrize("change", [HDF5[name] for name in OUTSIDE], ids=OUTSIDE)
def test_weights_inside_an_archive_that_reach_out_are_refused(change, kind, good, tmp_path):
    def place(file, folder):
        """The same, whatever the groups are called."""
        found = []
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        kernel = next(name for name in found if file[name].ndim == 2)
        weights = file.create_group("model_weights/dense/x")
        weights["kernel"] = file[kernel][()]
        change(file, folder)

    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros((4, 3), np.float32)
    path, inner = tmp_path / "m.keras", tmp_path / "inner.h5"
    with zipfile.ZipFile(good / f"{kind}.keras") as archive, zipfile.ZipFile(path, "w") as changed:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith(".h5"):
                inner.write_bytes(content)
                with h5py.File(inner, "r+") as file:
                    place(file, tmp_path)
                content = inner.read_bytes()
            changed.writestr(name, content)
    assert "reads another file" in (text := refusal(open_model, path)) or "unpacks to" in text


@pytest.mark.parametrize("size", [0, 1 << 40, (1 << 64) - 8, (1 << 64) - 16])
@pytest.mark.parametrize("name", ["old.h5", "new.h5"])
def test_a_text_of_hdf5_that_has_no_end_is_refused(name, size, good, tmp_path):
    """The native reader would follow it for ever, deaf to Ctrl-C."""
    content = bytearray((good / name).read_bytes())
    start = content.index(b"GCOL")
    end, place = start + int.from_bytes(content[start + 8 : start + 16], "little"), start + 16
    while int.from_bytes(content[place : place + 2], "little"):  # to what is free, behind the last text
        place += 16 + (int.from_bytes(content[place + 8 : place + 16], "little") + 7) // 8 * 8
    assert start < place < end
    content[place + 8 : place + 16] = size.to_bytes(8, "little")
    (tmp_path / name).write_bytes(content)
    assert "has no end" in refusal(open_model, tmp_path / name)
