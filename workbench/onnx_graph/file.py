"""ONNX files: read, check, write and tell apart what they hold, external data included."""

import contextlib
import hashlib
import json
import math
import os
import stat
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from workbench.core.contract import TensorSpec
from workbench.core.errors import ModelError, OutputError, first_line
from workbench.core.files import atomic_path, cache_folder
from workbench.onnx_graph.damage import refuse_damaged, refuse_growth
from workbench.onnx_graph.edit import LARGEST_FILE, STANDARD, dims, real_inputs, refuse_large, rename, tensors

_SETTLED_NS = 2_000_000_000  # FAT keeps times in steps of 2 s, the coarsest of the usual file systems


@dataclass(frozen=True)
class OnnxSummary:
    """What an ONNX graph holds.

    Attributes:
        inputs: name, shape and dtype of each input that is not a weight.
        outputs: the same for the outputs.
        operators: how many nodes of each operator.
        parameters: how many numbers the weights have.
        opset: of the default operator domain.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: dict[str, int]
    parameters: int
    opset: int

    def to_text(self) -> str:
        """Return a few aligned lines for people."""
        kinds = ", ".join(f"{count} {name}" for name, count in self.operators.items())
        lines = [f"input   {spec.name}: {spec.describe()}" for spec in self.inputs]
        lines += [f"output  {spec.name}: {spec.describe()}" for spec in self.outputs]
        lines += [f"nodes   {sum(self.operators.values())} ({kinds})"]
        return "\n".join([*lines, f"weights {self.parameters:,} numbers, opset {self.opset}"])


def check(path: str | os.PathLike[str]) -> OnnxSummary:
    """Check that a file is a whole, valid ONNX model that can be handed to native code, and tell what it holds.

    Args:
        path: the `.onnx` file.
    Returns:
        Inputs, outputs, operators, parameters and opset.
    Raises:
        ModelError: a directory, an empty, text or truncated file, an unknown operator, type or opset, a graph
            without nodes, names that are no text, functions that grow without measure, or weights that are missing,
            of another size, or outside the model's folder.
    """
    path = Path(path)
    model = read(path)
    graph, known = model.graph, onnx.defs.onnx_opset_version()
    versions = [entry.version for entry in model.opset_import if entry.domain in STANDARD]
    version = versions[0] if len(set(versions)) == 1 else 0
    if not 1 <= version <= known:
        declared = " and ".join(map(str, versions)) or "none"
        raise ModelError(f"{path} declares opset {declared}, expected 1 to {known}; export it with opset 17")
    if not graph.node or not graph.output:
        raise ModelError(f"{path} holds an empty graph; export the model again")
    numbers = list(tensors(model))
    refuse_damaged(model, numbers, path)
    external_files(path, numbers)
    _check_operators(path, model)
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} is not a valid ONNX graph: {first_line(error)}; export the model again") from error
    refuse_growth(model, path)
    return OnnxSummary(
        inputs=tuple(map(tensor_spec, real_inputs(graph))),
        outputs=tuple(map(tensor_spec, graph.output)),
        operators=dict(Counter(node.op_type for node in graph.node).most_common()),
        parameters=sum(math.prod(tensor.dims) for tensor in graph.initializer),
        opset=version,
    )


def read(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read an ONNX file without its external weights; a ModelError where it is missing, a folder, empty or not ONNX."""
    path = Path(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelError(f"{path} does not exist; give the path of an .onnx file") from error
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero
        raise ModelError(f"{path} cannot be opened ({first_line(error)}); give the path of an .onnx file") from error
    if stat.S_ISDIR(status.st_mode):
        raise ModelError(f"got the directory {path}, expected an .onnx file")
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path} is a device or a pipe, expected an .onnx file; copy the model into a file")
    if not 0 < status.st_size <= LARGEST_FILE:
        size = f"has {status.st_size:,} bytes, more than the 2 GB of any ONNX file" if status.st_size else "is empty"
        raise ModelError(f"{path} {size}; export the model again")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises DecodeError, which is not public
        reason = "cannot be read" if isinstance(error, OSError) else "is not an ONNX file, or was cut short"
        raise ModelError(f"{path} {reason} ({first_line(error)}); copy it again") from error
    if not model.ir_version or not model.HasField("graph"):
        raise ModelError(f"{path} is not an ONNX file: it has no graph; copy it again")
    return model


def load(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Check an ONNX file and read it with its weights; a ModelError where it is not whole, see `check`."""
    check(path)
    return onnx.load(os.fspath(path))


def _check_operators(path: Path, model: onnx.ModelProto) -> None:
    local = {(function.domain, function.name) for function in model.functions}
    unknown = {
        f"{node.domain + '.' if node.domain else ''}{node.op_type}"
        for node in model.graph.node
        if (node.domain, node.op_type) not in local and node.domain in STANDARD and not onnx.defs.has(node.op_type)
    }
    if unknown:
        raise ModelError(
            f"{path} uses operators that ONNX does not have: {', '.join(sorted(unknown))}; "
            "replace the layers they come from, or write them as a plugin"
        )


def tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """Describe an input or output of a network; what is no tensor is a ModelError."""
    tensor = value.type.tensor_type
    if not tensor.elem_type:
        raise ModelError(
            f"{value.name} of the network is a {value.type.WhichOneof('value') or 'value'} without an element type, "
            "expected a tensor; export the network with tensors as its inputs and outputs"
        )
    return TensorSpec(value.name, dims(tensor), str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)))


def write(model: onnx.ModelProto, out: str | os.PathLike[str]) -> Path:
    """Write a network with its weights into one file, checked, whole or not at all; an ExportError above 2 GB."""
    refuse_large(model)
    with atomic_path(out) as temporary:
        onnx.save(model, temporary)
        check(temporary)
    return Path(out)


def name_batch(model: onnx.ModelProto, name: str = "batch") -> None:
    """Give an open first dimension of every input and output the same name, in place."""
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_param = name


def rename_ends(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give the inputs and outputs of a graph these names, in their order, in place."""
    ends = [*model.graph.input, *model.graph.output]
    renames = {end.name: name for end, name in zip(ends, (*inputs, *outputs), strict=True)}
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)} - set(renames)
    renames |= {name: f"{name}_inner" for name in set(renames.values()) & taken}
    for named in (*ends, *model.graph.initializer, *model.graph.value_info):
        named.name = renames.get(named.name, named.name)
    rename(model.graph, renames)


def known_digest(path: Path) -> str | None:
    """Return the hash that `take_digest` kept for an ONNX file, if no file of it has changed since.

    Hashing 100 MB takes 0.1 s, so a hash is kept beside the cache, with the device, inode, size and both times of
    every file. It is only kept where all of them were already two seconds old when it was taken: then no later write
    can leave them unchanged, for the change time cannot be set back. Windows has no change time: nothing is kept there.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(_note(path).read_text(encoding="utf-8"))
        if kept["files"] == [_signature(Path(name)) for name, *_ in kept["files"]]:
            return str(kept["digest"])
    return None


def take_digest(path: Path) -> str:
    """Return the SHA-256 of a checked ONNX file, with external data that of all hashes; keep it for `known_digest`.

    What is not ONNX, or has external data that is missing or outside its folder, is a ModelError.
    """
    path = path.resolve()
    files = [path, *external_files(path)]
    before, now_ns = [_signature(file) for file in files], time.time_ns()
    hashes = [_hash_file(file) for file in files]
    digest = hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()
    settled = all(max(signature[-2:]) + _SETTLED_NS < now_ns for signature in before)
    if os.name != "nt" and settled and before == [_signature(file) for file in files]:
        with contextlib.suppress(OSError, OutputError):
            note = _note(path)
            note.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(note, replace=True) as temporary:
                temporary.write_text(json.dumps({"digest": digest, "files": before}), encoding="utf-8")
    return digest


def external_files(path: Path, numbers: Iterable[onnx.TensorProto] | None = None) -> list[Path]:
    """Return the files that hold an ONNX model's external data, also that of constants, functions and inner graphs.

    One that is missing, too short or outside the model's folder is a ModelError. The `tensors` of a model that is read
    already save time.
    """
    folder = path.resolve().parent
    sizes: dict[str, int] = {}
    outside = [tensor for tensor in (tensors(read(path)) if numbers is None else numbers) if tensor.external_data]
    for tensor in outside:
        places = [entry.value for entry in tensor.external_data if entry.key == "location"]
        for location in places:
            sizes[location] = sizes.get(location) or _external_size(path, tensor.name, folder, location)
        span = {entry.key: entry.value for entry in tensor.external_data if entry.key in ("offset", "length")}
        if not all(number.isascii() and number.isdigit() and len(number) < 20 for number in span.values()):
            found = " and ".join(f"the {key} {number!r}" for key, number in span.items())
            raise ModelError(
                f"{path} keeps {tensor.name} in another file at {found}, no numbers; export the model again"
            )
        end = sum(map(int, span.values()))
        if places and end > sizes[places[-1]]:
            raise ModelError(
                f"{path} keeps {tensor.name} in {places[-1]} up to byte {end}, which has {sizes[places[-1]]}; "
                "copy both files again"
            )
    return [(folder / location).resolve() for location in sorted(sizes)]


def _external_size(path: Path, name: str, folder: Path, location: str) -> int:
    """The size in bytes of a file of external data."""
    try:
        file = (folder / location).resolve()
        inside, size = file.is_relative_to(folder), file.stat().st_size if file.is_file() else None
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # too long, a ring of links, no text, a zero in it
        raise ModelError(
            f"{path} keeps {name} in a file that cannot be opened ({first_line(error)}); export the model again"
        ) from error
    if not inside:
        raise ModelError(f"{path} keeps {name} in {location}, outside its own folder; move it beside the model")
    if size is None:
        raise ModelError(f"{path} keeps {name} in {location}, which is missing; copy it beside the model")
    return size


def _note(path: Path) -> Path:
    return cache_folder() / "digests" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()}.json"


def _signature(file: Path) -> list[Any]:
    status = file.stat()
    return [str(file), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _hash_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
