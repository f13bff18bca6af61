"""What a stranger's file may hold: bounded archives, plain HDF5, and Keras configurations that name no code."""

import mmap
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from workbench.core.errors import ModelError
from workbench.core.files import parse_json
from workbench.core.packages import require_backend

LARGEST_TEXT = 64 << 20
"""Bytes of the longest description of a network that is read; those of large networks have a few MB."""

UNREADABLE = (OSError, KeyError, ValueError, TypeError, RuntimeError, zlib.error, zipfile.BadZipFile)
"""What reading a part of a damaged file raises."""

_GROWTH = 20  # how much larger than its file an archive may be, unzipped; Keras and PyTorch do not compress weights
_DEPTH = 200
_CODE = {"Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "InstanceMethod"}
_CODE |= {"InstanceProperty", "ClassMethod", "__typespec__"}
_CALLS = ("TFOpLambda", "SlicingOpLambda")
_PLAIN = {"Functional", "Model", "Sequential", "__tensor__", "__numpy__", "__bytes__", "__tuple__"}
_NAMESPACES: tuple[str, ...] = ("layers", "layers.experimental.preprocessing", "activations", "initializers", "losses")
_NAMESPACES += ("constraints", "regularizers", "metrics", "optimizers", "optimizers.schedules", "optimizers.legacy")
_NAMESPACES += ("mixed_precision",)
_FUNCTION = re.compile(
    r"(keras\.activations|math|nn|linalg|signal|bitwise|image|__operators__|quantization)\.[a-z_0-9]+"
)
_NO_FUNCTION = re.compile(r"sampler|sampled|nce_loss|codec|decode|encode|jpeg|(de)?serialize|activations\.get$|random")
_FUNCTIONS = re.compile(
    r"abs|acos|acosh|add|add_n|argmax|argmin|argsort|asin|asinh|atan|atan2|atanh|batch_to_space|boolean_mask|"
    r"broadcast_to|cast|clip_by_norm|clip_by_value|concat|constant|convert_to_tensor|cos|cosh|cumsum|divide|"
    r"dtypes\.cast|dtypes\.saturate_cast|einsum|equal|exp|expand_dims|eye|fill|floor|gather|gather_nd|greater|"
    r"greater_equal|identity|less|less_equal|linspace|logical_and|logical_not|logical_or|matmul|maximum|"
    r"meshgrid|minimum|multiply|negative|norm|not_equal|one_hot|ones|ones_like|pad|pow|range|rank|realdiv|"
    r"reduce_all|reduce_any|reduce_logsumexp|reduce_max|reduce_mean|reduce_min|reduce_prod|reduce_sum|repeat|"
    r"reshape|reverse|roll|round|saturate_cast|scalar_mul|scatter_nd|searchsorted|sequence_mask|shape|sigmoid|"
    r"sign|sin|sinh|size|slice|sort|space_to_batch|space_to_batch_nd|split|sqrt|square|squeeze|stack|"
    r"stop_gradient|strided_slice|subtract|tan|tanh|tensor_scatter_nd_add|tensor_scatter_nd_update|tensordot|"
    r"tile|transpose|truediv|truncatediv|truncatemod|unstack|where|zeros|zeros_like|depth_to_space|"
    r"space_to_depth|extract_image_patches|expand_dims_v2"
)
"""What a layer of TensorFlow's own functions may call: arithmetic, shapes, comparisons, sums and networks."""


def check_archive(path: Path) -> None:
    """Refuse a zip archive with two entries of one name, one much larger unzipped, or with HDF5 that reads other files.

    ModelError says which.
    """
    _check_heaps(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(names) != len(set(names)):  # two readers could see two different files
                raise ModelError(f"{path} has two entries of one name, so it is damaged; save the model again")
            _check_growth(path, sum(entry.file_size for entry in entries))
            for name in names:
                if name.endswith(".h5"):
                    with archive.open(name) as inner:
                        check_hdf5(path, inner)
    except ModelError:
        raise
    except UNREADABLE as error:
        raise ModelError(f"{path} is a damaged zip archive ({error}), or was cut short; copy it again") from error


def _check_growth(path: Path, size: int) -> None:
    limit = _GROWTH * os.path.getsize(path) + LARGEST_TEXT
    if size > limit:
        raise ModelError(
            f"{path} unpacks to {size >> 20} MB, expected at most {limit >> 20} MB for a file of its size; "
            "save the model again, without compression"
        )


def read_entry(archive: zipfile.ZipFile, name: str) -> str:
    """Read a text of an archive; ValueError where it is too long or no text, KeyError where it is not there."""
    if archive.getinfo(name).file_size > LARGEST_TEXT:
        raise ValueError(f"its {name} has more than {LARGEST_TEXT >> 20} MB")
    return archive.read(name).decode()


def read_attribute(file: Any, name: str) -> str:
    """Read a text that an HDF5 file has as an attribute; ValueError where it is too long, KeyError without it."""
    stored = file.attrs.get_id(name)
    if stored.shape != () or stored.get_storage_size() > LARGEST_TEXT:
        raise ValueError(f"its {name} is no text of at most {LARGEST_TEXT >> 20} MB")
    value = file.attrs[name]
    return value if isinstance(value, str) else bytes(value).decode()


def read_json(text: str | bytes) -> Any:
    """Parse JSON; ValueError where it is none, or nested deeper than 200 levels. Keras writes infinity."""
    content = parse_json(text, finite=False)
    for _ in nested(content):
        pass
    return content


def nested(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield each value of a JSON document with the key that it stands under; ValueError below 200 levels."""
    pending = [(content, "", 0)]
    while pending:
        value, key, depth = pending.pop()
        if depth > _DEPTH:
            raise ValueError("its JSON is nested too deeply")
        yield key, value
        if isinstance(value, dict):
            pending += ((part, name, depth + 1) for name, part in value.items())
        elif isinstance(value, list):
            pending += ((part, key, depth + 1) for part in value)


def check_hdf5(path: Path, inner: IO[bytes] | None = None) -> None:
    """Refuse an HDF5 file that reads other files, by links, virtual or external data, or unpacks to too much.

    `inner` is that of an archive at this path.
    """
    h5py = require_backend("h5py", "keras")

    sizes = [0]

    if inner is None:
        _check_heaps(path)

    def look(name: bytes, info: Any) -> str | None:
        return name.decode(errors="replace") if info.type == h5py.h5l.TYPE_EXTERNAL else None

    def outside(name: str, item: Any) -> str | None:
        if isinstance(item, h5py.Dataset):
            sizes.append(item.nbytes)
            if item.external or item.is_virtual:
                return name
        return None

    try:
        with h5py.File(inner or path, "r") as file:
            found = file.id.links.visit(look, info=True) or file.visititems(outside)
    except (*UNREADABLE, MemoryError) as error:
        raise ModelError(
            f"{path} is not a Keras HDF5 file that can be read, or was cut short; save or copy it again"
        ) from error
    _check_growth(path, sum(sizes))
    if found:
        raise ModelError(f"{path} reads another file ({found}), which is not opened; save the model again, in one file")


def _check_heaps(path: Path) -> None:
    """Refuse HDF5 whose texts lie in a heap that does not add up: HDF5 2.0 reads such a one for ever.

    A heap is `GCOL`, version 1, its size in 8 bytes, then objects: an index, two numbers, a size in 8 bytes, content.
    """
    if not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for match in re.finditer(rb"GCOL\x01\0\0\0", content):
            start = match.start()
            end = start + int.from_bytes(content[start + 8 : start + 16], "little")
            place = start + 16
            while end <= len(content) and place + 16 <= end:
                index = int.from_bytes(content[place : place + 2], "little")
                size = int.from_bytes(content[place + 8 : place + 16], "little")
                size = 16 + (size + 7) // 8 * 8 if index else size  # that of what is free has its own head in it
                if not 16 <= size <= end - place:
                    raise ModelError(f"{path} is damaged: a text in it has no end; save or copy it again")
                place += size


def find_code(config: Any, keras: Any = None) -> tuple[str, str] | None:
    """Look through a configuration of Keras, before Keras does, for what is code or reads files.

    Args:
        config: the JSON of a whole model, as `read_json` gives it.
        keras: tf_keras, which imports any module that a file names: then every name must be known to it or registered
            in this process. None for Keras 3, which looks itself.
    Returns:
        Its kind and name: `("code", "Lambda")`, `("function", "io.write_file")`, `("file", "StringLookup")`,
        `("unknown", "Mystery")`; None where all is plain.
    """
    known = _PLAIN.union(*(dir(_namespace(keras, space)) for space in _NAMESPACES)) if keras else set()
    known = {name for name in known if not name.startswith("_")} | _PLAIN
    if isinstance(config, dict):
        config = {**config, "compile_config": None}  # Keras leaves it out, too, where a model is opened for use
    for _, part in nested(config):
        if not isinstance(part, dict) or "class_name" not in part:
            continue
        kind, inner = part["class_name"], part.get("config")
        if not isinstance(kind, str):
            return "unknown", str(kind)[:60]
        names = [str(name) for name in (kind, part.get("registered_name")) if name is not None]
        if _CODE & {name.rpartition(">")[2] for name in names}:
            return "code", names[0]
        if isinstance(inner, dict) and isinstance(inner.get("vocabulary"), str):
            return "file", names[0]
        if keras and (problem := _find_unknown(part, names, inner, keras, known)):
            return problem
    return None


def _find_unknown(part: Any, names: list[str], inner: Any, keras: Any, known: set[str]) -> tuple[str, str] | None:
    """The same for one object of a file of tf_keras."""
    if names[0] in _CALLS:
        function = str(inner.get("function")) if isinstance(inner, dict) else "nothing"
        plain = function.removeprefix("compat.v1.")
        fine = _FUNCTIONS.fullmatch(plain) or (_FUNCTION.fullmatch(plain) and not _NO_FUNCTION.search(plain))
        names = [name for name in names if name not in _CALLS]
        if not fine:
            return "function", f"tf.{function}"
    if names and names[0] == "function":
        names = [str(inner)]
    registered = any(keras.saving.get_registered_object(name) is not None for name in names)
    module = part.get("module")
    for name in () if registered else names:
        if re.sub(r"V[12]$", "", name) not in known:
            return "unknown", name
    if not registered and module is not None and not re.fullmatch(r"builtins|(tf_)?keras(\.\w+)*", str(module)):
        return "unknown", f"{module}.{names[0] if names else part['class_name']}"
    return None


def _namespace(keras: Any, path: str) -> Any:
    for name in path.split("."):
        keras = getattr(keras, name, None)
    return keras
