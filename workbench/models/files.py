"""Open a network by its name or its file: Keras models, TensorFlow graphs, PyTorch programs."""

import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.core.errors import InputError, ModelError, first_line
from workbench.core.packages import load_keras, load_tensorflow, load_tf_keras, require_backend
from workbench.models.freezing import FrozenGraph, freeze, freeze_function
from workbench.models.tf1_checkpoint import (
    Names,
    PathLike,
    find_checkpoint,
    open_checkpoint,
    open_saved_graph,
    read_saved_graph,
)
from workbench.models.tf1_graph import (
    VARIABLES,
    GraphView,
    cut_at,
    fix_size,
    node_name,
    propose_outputs,
    refuse_training,
    without_deprecations,
)
from workbench.models.torch_file import TORCH_SUFFIXES, open_torch_file
from workbench.models.untrusted import (
    UNREADABLE,
    check_archive,
    check_hdf5,
    find_code,
    read_attribute,
    read_entry,
    read_json,
)
from workbench.models.untrusted_graph import check_graph, check_saved_model, import_light

MODEL_NAMES = ("resnet50", "fcn_vgg16", "unet")
KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")
GRAPH_SUFFIXES = (".pb", ".pbtxt")

_UFF_START = b"\x08\x01\x10\x01\x1a"  # version 1, core version 1, then the list of its operators' families
_UFF_FAMILY = b"tensorflow_extension"


def open_model(source: Any, *, inputs: Names = None, outputs: Names = None) -> Any:
    """Open a Keras model or a TensorFlow graph.

    Args:
        source: a Keras model (returned as it is), the path of a `.keras`, `.h5`, `.pb` file, a SavedModel folder or a
            TensorFlow 1 checkpoint (its prefix, one of its files or its folder), a PyTorch `.pt2`, or one of
            `MODEL_NAMES`.
        inputs: names of the nodes that are fed, for a TensorFlow graph; found when None.
        outputs: names of the nodes that are answers, for a TensorFlow graph; found when None.
    Returns:
        A Keras model, a FrozenGraph for a TensorFlow graph, or a program of PyTorch. Warns when ResNet-50 has no
        ImageNet weights, and when the output of a checkpoint was found.
    Raises:
        ModelError: it cannot be opened; the message says what it is and what to do.
    """
    if not isinstance(source, (str, os.PathLike)):
        return source
    kind, path = model_kind(source, ends_named=bool(inputs or outputs)), Path(source)
    if kind == "name":
        return _named_model(str(source), load_keras)
    if kind == "saved model":
        return _read_saved_model(path, inputs, outputs)
    if kind == "checkpoint":
        return open_checkpoint(path, outputs, inputs)
    if kind == "graph":
        return read_frozen_graph(path, inputs, outputs)
    return open_torch_file(path) if kind == "torch" else _read_keras_file(path)


def model_kind(source: PathLike, *, ends_named: bool = False) -> str:
    """Tell what a name or a path means, without importing any framework.

    That is `"name"`, `"saved model"`, `"checkpoint"`, `"graph"`, `"torch"` or `"keras"`. ModelError where it is
    missing, empty or nothing that `open_model` opens; InputError where ends were named for what is no TensorFlow graph.
    """
    path = Path(source)
    require_readable(path)
    suffix = path.suffix.lower()
    if str(source) in MODEL_NAMES and not path.exists():
        return "name"
    graph = _graph_kind(path)
    if graph is not None:
        return graph
    if ends_named:
        raise InputError(
            f"{source} keeps the inputs and outputs it was made with; name them for a TensorFlow graph only"
        )
    if not path.exists():
        raise ModelError(f"{source} does not exist; give a model file or one of the names {', '.join(MODEL_NAMES)}")
    if path.stat().st_size == 0:
        raise ModelError(f"{path} is empty; save or copy the model again")
    if suffix not in (*TORCH_SUFFIXES, *KERAS_SUFFIXES):
        raise ModelError(
            f"{path} is not a model this program opens; expected {', '.join(KERAS_SUFFIXES)}, .pb, .onnx, .pt2, "
            "a SavedModel folder or a TensorFlow 1 checkpoint"
        )
    if suffix == ".keras" and not zipfile.is_zipfile(path):
        raise ModelError(_explain(path, ValueError("it is no zip archive"), "keras.saving"))
    return "torch" if suffix in TORCH_SUFFIXES else "keras"


def require_readable(path: Path) -> None:
    """Refuse a name that no file can have here, or a file that may not be read; a missing one is let through."""
    name = os.fspath(path)
    shown = name.encode(errors="backslashreplace").decode()
    if shown != name or "\0" in name:
        raise ModelError(f"got the name {shown!r}, which is not UTF-8, expected one that is; rename the file")
    try:
        os.stat(path)
        if path.is_file():
            with open(path, "rb"):
                pass
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise ModelError(f"{shown[:300]} cannot be read ({error.strerror or error}); give a file that can") from error


def _graph_kind(path: Path) -> str | None:
    """The kind of a TensorFlow graph; None for anything else."""
    suffix = path.suffix.lower()
    if suffix == ".uff" and path.is_file():
        raise ModelError(_uff(path))
    if (path / "saved_model.pb").is_file():
        return "saved model"
    if find_checkpoint(path) is not None:
        return "checkpoint"
    if path.is_dir():
        raise ModelError(
            f"got the directory {path}, which is not a SavedModel (no saved_model.pb in it) and holds no checkpoint "
            "(no .meta or .index file); give a model file"
        )
    return "graph" if suffix in GRAPH_SUFFIXES and path.is_file() and path.stat().st_size else None


def freeze_model(model: Any, *, spatial: tuple[int, int] | None = None) -> FrozenGraph:
    """Freeze what `open_model` returned; a graph that is frozen already only gets the size that it leaves open."""
    if not isinstance(model, FrozenGraph):
        return freeze(model, spatial=spatial)
    if spatial:
        fix_size(model.graph_def, model.inputs, spatial)
    return model


def open_tf_keras_model(source: Any) -> Any:
    """Open what keras2onnx takes: a model object as it is, a file of tf_keras, or a named network built with it."""
    if not isinstance(source, (str, os.PathLike)):
        return source
    path = Path(source)
    require_readable(path)
    if str(source) in MODEL_NAMES and not path.exists():
        return _named_model(str(source), load_tf_keras)
    if path.is_file() and path.suffix.lower() in KERAS_SUFFIXES:
        return _read_tf_keras_file(path)
    raise ModelError(
        f"got {source} for keras2onnx, expected a file of tf_keras ({', '.join(KERAS_SUFFIXES)}) or a name of "
        f"{', '.join(MODEL_NAMES)}; use exporter='tf2onnx' for anything else"
    )


def _named_model(name: str, load: Callable[[], Any]) -> Any:
    from workbench.models import fcn_vgg16, resnet50, unet

    if name == "unet":  # a network of segmentation_models, which must come before TensorFlow
        return unet.demonstration_model()
    keras = load()
    if name == "fcn_vgg16":
        return fcn_vgg16.demonstration_model(keras)
    network = resnet50.build(keras)
    if network.weights != "imagenet":
        warnings.warn(network.note, stacklevel=3)
    return network.model


def read_frozen_graph(path: PathLike, inputs: Names = None, outputs: Names = None) -> FrozenGraph:
    """Read a frozen GraphDef, binary or text; its ends are the placeholders and what nothing reads where not named.

    ModelError: not a GraphDef, one with variables or made for training, or without the named nodes.
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size == 0:
        raise ModelError(f"{path} is missing, a directory or empty; give a frozen .pb graph")
    graph_def = _parse(path)
    _check_graph(path, graph_def)
    nodes, named = {node.name: node for node in graph_def.node}, bool(inputs or outputs)
    read = {node_name(name) for node in graph_def.node for name in node.input}
    placeholders = [name for name, node in nodes.items() if node.op == "Placeholder"]
    unread = [name for name in nodes if name not in read and nodes[name].op not in ("NoOp", "Const", "Placeholder")]
    inputs = tuple(node_name(name) for name in inputs or placeholders)
    outputs = tuple(node_name(name) for name in outputs or unread)
    missing = [name for name in (*inputs, *outputs) if name not in nodes]
    if missing or not inputs or not outputs:
        ends = ", ".join(placeholders + unread)
        raise ModelError(f"{path} has no node {', '.join(missing) or 'to feed'}; its ends are {ends}")
    if not set(placeholders) >= set(inputs):
        check_graph(graph_def, path, inputs, runs=False)
        graph_def = cut_at(graph_def, inputs, outputs)
    if named:  # what is not asked for is not run
        graph_def = GraphView(graph_def).subgraph([*inputs, *outputs])
    check_graph(graph_def, path)
    import_light(graph_def, path)
    refuse_training(graph_def, outputs, path)
    return FrozenGraph(graph_def, inputs, outputs)


def _parse(path: Path) -> Any:
    """Read a GraphDef in its binary form, or as the text that `tf.io.write_graph` writes unless told otherwise."""
    content = path.read_bytes()
    if content.startswith(_UFF_START) and _UFF_FAMILY in content[:64]:
        raise ModelError(_uff(path))
    kind = load_tensorflow().compat.v1.GraphDef
    graph_def = kind()
    try:
        graph_def.ParseFromString(content)
        graph_def.DiscardUnknownFields()  # which may hide attributes from Python, and not from TensorFlow
        return graph_def
    except Exception as error:  # protobuf's DecodeError is not public
        if not content.lstrip().startswith((b"node", b"versions", b"library", b"#")):
            raise ModelError(f"{path} is not a binary GraphDef, or was cut short; freeze the model again") from error
    try:
        return require_backend("google.protobuf.text_format", "keras").Parse(content, kind())
    except Exception as error:  # ParseError, or bytes that are no text
        raise ModelError(
            f"{path} is a GraphDef in text that cannot be read ({first_line(error)}); write it again"
        ) from error


def _uff(path: Path) -> str:
    return (
        f"{path} is a UFF file, which only TensorRT could read, and no version since 10; convert what it was made "
        "from, the frozen graph or the checkpoint: workbench convert model.pb model.onnx"
    )


def _check_graph(path: Path, graph_def: Any) -> None:
    if not graph_def.node:
        raise ModelError(
            f"{path} holds an empty graph (a SavedModel's saved_model.pb belongs in its folder); freeze the model again"
        )
    variables = [node.name for node in graph_def.node if node.op in VARIABLES]
    if variables:
        raise ModelError(
            f"{path} still has variables ({variables[0]}, ...); freeze it: keras_to_pb writes a frozen graph, and of a "
            "TensorFlow 1 checkpoint give the .meta file, with the weights beside it"
        )


def _read_saved_model(path: Path, inputs: Names, outputs: Names) -> FrozenGraph:
    if inputs or outputs:
        return open_saved_graph(path, outputs, inputs)
    tf = load_tensorflow()
    check_saved_model(read_saved_graph(path), path)
    try:
        with without_deprecations():
            module = tf.saved_model.load(str(path))
    except Exception as error:
        raise ModelError(f"{path} is a damaged SavedModel ({first_line(error)}); export it again") from error
    function = module.signatures.get("serving_default")
    if function is None:
        has = f"only {', '.join(module.signatures)}" if module.signatures else "none at all"
        graph, way = getattr(module, "graph", None), "export it with model.export(...)"
        for proposal in propose_outputs(graph.as_graph_def())[:1] if graph is not None else ():
            way = f"name its outputs with --outputs; {proposal.name} is likely, for {proposal.reason}"
        raise ModelError(f"the SavedModel {path} has no signature 'serving_default' ({has}); {way}")
    names = tuple(function.structured_input_signature[1])
    answers = tuple(sorted(function.structured_outputs))
    single = ("input",) if len(names) == 1 else names
    frozen = freeze_function(function, single, ("output",) if len(answers) == 1 else answers)
    refuse_training(frozen.graph_def, frozen.outputs, path)
    return frozen


def _read_keras_file(path: Path) -> Any:
    """Open a file with Keras 3, or with tf_keras where tf_keras wrote it and Keras 3 cannot read it."""
    config = _read_config(path)
    _refuse_code(path, config)
    keras = load_keras()
    try:
        return _require_model(keras.saving.load_model(path, compile=False, safe_mode=True))
    except Exception as error:
        if _saved_by_tf_keras(path):
            return _open_with_tf_keras(path, config)
        raise ModelError(_explain(path, error, "keras.saving")) from error


def _read_tf_keras_file(path: Path) -> Any:
    config = _read_config(path)
    if not _saved_by_tf_keras(path):
        raise ModelError(f"{path} was not saved by tf_keras, which keras2onnx needs; use exporter='tf2onnx'")
    return _open_with_tf_keras(path, config)


def _open_with_tf_keras(path: Path, config: Any) -> Any:
    keras = load_tf_keras()
    _refuse_code(path, config, keras)
    try:
        return _require_model(keras.models.load_model(path, compile=False, safe_mode=True))
    except Exception as error:
        raise ModelError(_explain(path, error, "tf_keras.utils")) from error


def _require_model(opened: Any) -> Any:
    if not hasattr(opened, "layers"):
        raise ValueError(f"it describes a {type(opened).__name__}, no model")
    return opened


def _read_config(path: Path) -> Any:
    """The description of the network in a Keras file whose parts are bounded; ModelError where there is none."""
    if path.suffix not in KERAS_SUFFIXES:
        raise ModelError(
            f"got {path}, and Keras reads {path.suffix.lower()} in small letters only; rename it to "
            f"{path.with_suffix(path.suffix.lower()).name}"
        )
    if path.suffix == ".keras":
        check_archive(path)
    else:
        check_hdf5(path)
    try:
        config = read_json(_stored(path, "config.json", "model_config"))
        if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
            raise ValueError("it describes no model")
        return config
    except KeyError as error:
        raise ModelError(f"{path} holds weights only, or was cut short; give the file of a whole model") from error
    except UNREADABLE as error:
        raise ModelError(_explain(path, error, "keras.saving")) from error


def _refuse_code(path: Path, config: Any, keras: Any = None) -> None:
    """Refuse a Keras file that is more than data, before Keras opens it; for Keras 3 `keras` is None."""
    kind, name = find_code(config, keras) or ("", "")
    if kind in ("code", "unknown"):
        reason = ValueError("Lambda" if kind == "code" else f"Unknown layer: '{name}'")
        raise ModelError(_explain(path, reason, "tf_keras.utils" if _saved_by_tf_keras(path) else "keras.saving"))
    if kind == "function":
        raise ModelError(
            f"{path} has a layer that calls {name}, and from a file only arithmetic, shapes and layers of networks are "
            "called; replace the layer, or, if you trust the file, open it yourself and pass the model object"
        )
    if kind == "file":
        raise ModelError(
            f"{path} has a layer {name} that reads a file of this machine; take the layers that read text out of the "
            "model and convert the rest"
        )


def _saved_by_tf_keras(path: Path) -> bool:
    """Tell by the version that a file names whether tf_keras (Keras 2) wrote it; False for a damaged file."""
    try:
        version = _stored(path, "metadata.json", "keras_version")
        found = read_json(version)["keras_version"] if version.startswith("{") else version
        return isinstance(found, str) and found.startswith("2.")
    except UNREADABLE:
        return False


def _stored(path: Path, entry: str, attribute: str) -> str:
    """A text that Keras stored: an entry of a `.keras` archive, or an attribute of an HDF5 file."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            return read_entry(archive, entry)
    with require_backend("h5py", "keras").File(path, "r") as file:
        return read_attribute(file, attribute)


def _explain(path: Path, error: Exception, module: str) -> str:
    """Turn what Keras raises into one sentence with a way out."""
    text = str(error)
    if "Lambda" in text or ("lambda" in text and "safe" in text):
        loader = "keras.saving.load_model" if module == "keras.saving" else "tf_keras.models.load_model"
        return (
            f"{path} holds a Lambda layer, which is code, so it is not loaded (safe_mode); replace the layer, "
            f"or, if you trust the file, call {loader}(..., safe_mode=False) and pass the model object"
        )
    for marker in ("Could not locate class '", "Unknown layer: '"):
        if marker in text:
            name = text.split(marker, 1)[1].split("'", 1)[0]
            return (
                f"{path} uses the layer {name}, which is defined nowhere here; import the code that defines it "
                f"(decorated with @{module}.register_keras_serializable()) and pass the model object, not the file"
            )
    reason = first_line(error)[:300]
    return f"{path} is not a Keras model that can be read, or was cut short ({reason}); save or copy it again"
