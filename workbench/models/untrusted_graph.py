"""What a stranger's TensorFlow graph may do: compute, and nothing with files, processes or the network.

Every operation is looked up in the registry of this TensorFlow before its native code sees the graph, for that ends
the process where a node lacks what its operation needs.
"""

import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.core.errors import ModelError, first_line
from workbench.core.packages import load_tensorflow, require_backend
from workbench.models.tf1_graph import GraphView, node_name

RESTORING = frozenset({"RestoreV2", "Restore", "RestoreSlice"})
"""Operations that read weights, and are let through where a graph restores its own."""

_SAVING = frozenset({"SaveV2", "Save", "SaveSlices", "MergeV2Checkpoints"})
_STATEFUL = re.compile(
    r"(VarHandle|ReadVariable|VarIsInitialized|DestroyResource|Assign(Add|Sub)?Variable)Op|(_|Temporary)?Variable(V2|s)?"
    r"|VariableShape|DisableCopyOnRead|Resource(Sparse)?(Apply|Scatter|Gather|CountUpTo|StridedSlice)\w*"
    r"|Random(Gamma|Poisson|Uniform|StandardNormal|Shuffle|Crop)(V2|Int)?|(Parameterized)?TruncatedNormal|Multinomial"
    r"|Stateful(Uniform|UniformInt|UniformFullInt|StandardNormal|TruncatedNormal|RandomBinomial)(V2)?"
    r"|Rng(Skip|ReadAndSkip)|NonDeterministicInts|(Dummy|Anonymous)(Random)?SeedGenerator|StatelessRandomGetAlg"
    r"|(_)?(If|While|Case)|StatefulPartitionedCall|Assert|Print(V2)?|CheckNumerics(V2)?|GuaranteeConst|Empty|DeepCopy"
    r"|TensorArray\w*|Stack\w*|(Anonymous)?(Mutable)?(Dense)?HashTable\w*|LookupTable\w*|InitializeTable(V2)?"
    r"|InitializeTableFromTextFileV2|CudnnRNN\w*|(Uniform|LogUniform|LearnedUnigram|All)CandidateSampler"
    r"|SampleDistortedBoundingBox(V2)?|DeviceIndex|GraphDefVersion|Timestamp|NoOp|_Arg|_Retval"
)
_OUTSIDE = re.compile(
    r".*Dataset.*|ReadFile|MatchingFiles|GenerateVocabRemapping|ImmutableConst|PyFunc.*|EagerPyFunc|Abort|Debug.*"
    r"|Copy(Host)?|Xla.*|Reader.*|Mlir.*|TRTEngineOp|TPU.*|DTensor.*|Infeed.*|Prelinearize.*|HostConst"
)
_TABLE_FILES = ("InitializeTableFromTextFile", "InitializeTableFromTextFileV2")
_KINDS = {"string": "s", "int": "i", "float": "f", "bool": "b"}
_LARGE = 1 << 16
_MOST = 1 << 28


@dataclass(frozen=True)
class _Operation:
    """What the registry says of an operation: the field of AttrValue that holds each attribute, and those it needs."""

    stateful: bool
    kinds: Mapping[str, str]
    required: Sequence[str]


@functools.cache
def _operation(name: str) -> _Operation | None:
    found = require_backend("tensorflow.python.framework.op_def_registry", "keras").get(name)
    if found is None:
        return None
    kinds = {one.name: "list" if one.type.startswith("list(") else _KINDS.get(one.type, one.type) for one in found.attr}
    required = [attribute.name for attribute in found.attr if not attribute.HasField("default_value")]
    return _Operation(found.is_stateful, kinds, required)


def check_graph(
    graph_def: Any, source: Any, names: Iterable[str] | None = None, also: Iterable[str] = (), *, runs: bool = True
) -> None:
    """Refuse a graph that does more than compute, or is damaged: ModelError, which names the operation and the node.

    Args:
        graph_def: a GraphDef; it is neither run nor given to native code.
        source: what the reader called it.
        names: the nodes that matter, with all that leads to them and the functions that they call; None for all.
        also: operations on files that are let through, such as `RESTORING`.
        runs: whether it will be run; else it may act, and only what is damaged is refused.
    """
    view = GraphView(graph_def)
    needed = view.nodes.keys() if names is None else view.upstream(names)
    nodes = [node for node in graph_def.node if node.name in needed]
    if names is None and len(view.nodes) != len(graph_def.node):
        raise ModelError(f"{source} has two nodes of one name, so it is damaged; export or freeze the model again")
    for node in nodes:
        for given in node.input:
            if node_name(given) not in view.nodes:
                _damaged(source, node, f"reads {node_name(given)!r}, which is not there")
        if any(value.WhichOneof("value") in (None, "placeholder") for value in node.attr.values()):  # of functions only
            _damaged(source, node, "has an attribute without a value")
    library = {function.signature.name: function for function in graph_def.library.function}
    also = also if runs else [node.op for part in (graph_def, *library.values()) for node in _nodes(part)]
    check_functions(library, source, _called(nodes), also)
    check_nodes(nodes, library, source, also)


def check_functions(
    library: Mapping[str, Any],
    source: Any,
    names: Iterable[str],
    also: Iterable[str] = (),
    checked: Iterable[str] = (),
) -> set[str]:
    """Refuse functions of a graph, and those that they call, as `check_graph` does, but for `checked`; their names."""
    pending, seen = [*names], set(checked)
    while pending:
        name = pending.pop()
        if name in library and name not in seen:
            seen.add(name)
            check_nodes(library[name].node_def, library, source, also)
            pending += _called(library[name].node_def)
    return seen


def check_nodes(nodes: Sequence[Any], library: Mapping[str, Any], source: Any, also: Iterable[str] = ()) -> None:
    """Refuse single nodes; `library` has the functions that may be called like an operation."""
    also = set(also)
    constants = {node.name for node in nodes if node.op in ("Const", "PlaceholderWithDefault")}
    for node in nodes:
        operation = _operation(node.op)
        if operation is None and node.op in library:
            continue
        if operation is None:
            version = load_tensorflow().__version__
            raise ModelError(
                f"TensorFlow {version} cannot read the graph of {source}: it has no operation {node.op!r} "
                f"({node.name}); export it again with this version, or leave that part out"
            )
        if node.op not in also and _acts_outside(node, operation, constants):
            raise ModelError(
                f"{source} is not opened: its node {node.name!r} ({node.op}) reaches files, the network or other "
                "programs, and a network only computes; save it again without that part"
            )
        _check_form(node, operation, source)


def check_saved_model(meta: Any, source: Any) -> None:
    """Refuse a SavedModel, read as a MetaGraphDef, that does more than compute, as `check_graph` does.

    What only its saver reaches is neither run by loading nor by an answer, and may write.
    """
    graph, saver, object_graph = meta.graph_def, meta.saver_def, meta.object_graph_def
    view = GraphView(graph)
    every, saving = set(view.nodes), view.upstream([saver.save_tensor_name]) if saver.save_tensor_name else set()
    run = view.upstream([*(every - saving), *_started(meta)]) & every
    restoring = view.upstream([saver.restore_op_name]) if saver.restore_op_name else set()
    weights = {name for name in restoring & run if view.nodes[name].op in RESTORING}
    for asset in meta.asset_file_def:
        if asset.filename != asset.filename.replace("\\", "/").rpartition("/")[2] or asset.filename in ("", "..", "."):
            raise ModelError(f"{source} names a file outside of its assets ({asset.filename}); export it again")
    library = {function.signature.name: function for function in graph.library.function}
    own = {node_name(asset.tensor_info.name) for asset in meta.asset_file_def}
    main = [view.nodes[name] for name in run - weights]
    check_nodes([node for node in main if not _fills_from(node, own)], library, source)
    check_nodes([view.nodes[name] for name in weights | every - run], library, source, RESTORING | _SAVING)
    started = _called(node for node in main if node.name not in restoring)
    for node in object_graph.nodes:
        started += [*node.function.concrete_functions, node.bare_concrete_function.concrete_function_name]
    checked = check_functions(library, source, [*object_graph.concrete_functions, *started])
    restored = _called(view.nodes[name] for name in restoring & every)
    checked = check_functions(library, source, restored, RESTORING, checked)
    check_functions(library, source, library, RESTORING | _SAVING, checked)


def import_light(graph_def: Any, source: Any) -> None:
    """Let TensorFlow read a graph, without its large weights, and say in a ModelError what it finds wrong."""
    tf = load_tensorflow()
    light = type(graph_def)(versions=graph_def.versions, library=graph_def.library)
    for node in graph_def.node:
        large = node.op == "Const" and len(node.attr["value"].tensor.tensor_content) > _LARGE
        if not large:
            light.node.add().CopyFrom(node)
            continue
        stand_in = light.node.add(name=node.name, op="Placeholder", input=node.input)
        stand_in.attr["dtype"].type = node.attr["dtype"].type
        stand_in.attr["shape"].shape.CopyFrom(node.attr["value"].tensor.tensor_shape)
    try:
        with tf.Graph().as_default():
            tf.graph_util.import_graph_def(light, name="")
    except Exception as error:
        raise ModelError(
            f"TensorFlow {tf.__version__} cannot read the graph of {source}: {first_line(error)[:300]}; "
            "freeze or copy the model again"
        ) from error


def _acts_outside(node: Any, operation: _Operation, constants: set[str]) -> bool:
    """Whether running a node may do more than compute on its inputs and variables."""
    if _OUTSIDE.fullmatch(node.op):
        return True
    if node.op in _TABLE_FILES:
        return len(node.input) < 2 or node_name(node.input[1]) in constants  # else from the assets
    if node.op == "PrintV2":
        return "output_stream" in node.attr and b"file:" in node.attr["output_stream"].s
    if node.op in ("DecodeProtoV2", "EncodeProto"):
        return "descriptor_source" in node.attr and node.attr["descriptor_source"].s not in (b"", b"local://")
    return operation.stateful and not _STATEFUL.fullmatch(node.op)


def _check_form(node: Any, operation: _Operation, source: Any) -> None:
    """Refuse a node whose attributes are not those of its operation."""
    for name, value in node.attr.items():
        if name in operation.kinds:
            if value.WhichOneof("value") not in (None, "placeholder", operation.kinds[name]):
                _damaged(source, node, f"has an attribute {name!r} of the wrong kind")
        elif not name.startswith("_"):
            _damaged(source, node, f"has an attribute {name!r}, which its operation has not")
    for name in operation.required:
        if name not in node.attr:
            _damaged(source, node, f"lacks the attribute {name!r}")
    if node.op == "Const":
        _check_constant(node, source)


def _check_constant(node: Any, source: Any) -> None:
    """Refuse a constant whose type, shape and content do not belong together."""
    tensor, kinds = node.attr["value"].tensor, load_tensorflow().dtypes
    if tensor.dtype != node.attr["dtype"].type:
        _damaged(source, node, "has a value of another type than its own")
    sizes = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.tensor_shape.unknown_rank or any(size < 0 for size in sizes):
        _damaged(source, node, "has a value without a shape")
    if not tensor.tensor_content and math.prod(sizes) > _MOST:  # one number may stand for all
        _damaged(source, node, f"has a value of shape {sizes} without content")
    try:
        width = kinds.as_dtype(tensor.dtype).size if tensor.tensor_content else 0
    except TypeError:
        width = 0
    if tensor.tensor_content and width and len(tensor.tensor_content) != math.prod(sizes) * width:
        _damaged(source, node, f"has {len(tensor.tensor_content)} bytes for the shape {sizes}")


def _damaged(source: Any, node: Any, what: str) -> None:
    raise ModelError(
        f"{source} is damaged: its node {node.name!r} ({node.op}) {what}; export or freeze the model again"
    )


def _nodes(part: Any) -> Any:
    """The nodes of a graph or of a function."""
    return part.node if hasattr(part, "node") else part.node_def


def _called(nodes: Iterable[Any]) -> list[str]:
    """The functions that nodes name."""
    return [name for node in nodes for name in (node.op, *_named_functions(node))]


def _named_functions(node: Any) -> Iterator[str]:
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        yield from (function.name for function in value.list.func)


def _fills_from(node: Any, assets: set[str]) -> bool:
    """Whether a node fills a table from a file of the SavedModel itself."""
    return node.op in _TABLE_FILES and len(node.input) > 1 and node_name(node.input[1]) in assets


def _started(meta: Any) -> list[str]:
    """The nodes of a SavedModel that loading may run, and its answers."""
    variable = require_backend("tensorflow.core.framework.variable_pb2", "keras").VariableDef
    names = [end.name for signature in meta.signature_def.values() for end in signature.outputs.values()]
    for collection in meta.collection_def.values():
        names += collection.node_list.value
        for content in collection.bytes_list.value:
            one = variable()
            try:
                one.ParseFromString(content)
            except Exception:  # of another kind; protobuf's DecodeError is not public
                continue
            names += [one.initializer_name, one.initial_value_name, one.snapshot_name]
    return [name for name in names if name]
