"""Ask TensorRT's parser about a network, and tell what it says about each node.

On machines without TensorRT rules answer instead: what the parser is known to refuse. They are not the parser's word.
Each was seen to be refused by the parser of TensorRT-RTX 1.7.1; what no rule finds may be refused all the same.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from workbench.core.contract import BACKEND_NAMES
from workbench.core.errors import BackendUnavailableError, EngineBuildError
from workbench.core.process import temporary_folder
from workbench.core.report import Report, Status, Table, count
from workbench.engine.child import known_fix
from workbench.engine.custom import PluginLike, custom_order, library_environment, read_plugins
from workbench.engine.plan import MAX_RANK
from workbench.engine.process import run_child
from workbench.engine.tensorrt_api import dtype_name
from workbench.onnx_graph.edit import STANDARD, CustomNode, attribute, constants, custom_nodes, real_inputs
from workbench.onnx_graph.file import check, read

_REFUSED_OPERATORS = frozenset(
    {"Det", "Unique", "NonZero", "MaxUnpool", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Compress", "DFT"}
    | {"SequenceConstruct", "SequenceAt", "SplitToSequence", "ConcatFromSequence", "Optional", "OptionalGetElement"}
    | {"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "RoiAlign", "DeformConv", "StringNormalizer"}
)
_REFUSED_TYPES = frozenset(
    {TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128, TensorProto.INT16, TensorProto.UINT16}
    | {TensorProto.UINT32, TensorProto.UINT64}
)
_OTHER_DOMAINS = ("com.microsoft",)  # the parser takes some of their operators
_WORDS = re.compile(r'&& "([^"]+)"$')


@dataclass(frozen=True)
class RefusedNode:
    """One node that is refused, or what is refused of the network as a whole."""

    name: str  # what it writes where it has none; of tensors where it is no node
    operator: str  # such as "Resize"; empty where it is no node
    reason: str  # what the parser said, or the rule where there is no parser
    code: str = ""  # the parser's, such as "UNSUPPORTED_NODE"; empty for a rule
    help: str = ""  # what to do, where that is known
    inside: tuple[str, ...] = ()  # the nodes around it, outermost first: of a branch, a loop or a function


@dataclass(frozen=True)
class ParserAnswer(Report):
    """What TensorRT's parser says about a network.

    Attributes:
        path: the file.
        flavour: who was asked, such as `"TensorRT-RTX 1.7.1.116"`; empty where no TensorRT with a parser is here.
        accepted: whether it takes the whole network; None where nobody could be asked. Only a build proves more.
        refused: the nodes it does not take; without a parser, those that rules of this package speak against.
        operators: how many nodes of each operator nothing was said against.
        layers: how many layers of each kind the parser made of the network.
        problem: why nobody could be asked, or how the parser ended without an answer; one sentence.
        notes: what else to know, one sentence each.
    """

    path: Path
    flavour: str
    accepted: bool | None
    refused: tuple[RefusedNode, ...] = ()
    operators: Mapping[str, int] = field(default_factory=dict)
    layers: Mapping[str, int] = field(default_factory=dict)
    problem: str = ""
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """One sentence."""
        name = self.path.name
        if self.accepted is None:
            parts = count(len(self.refused), "part") + " of it" if self.refused else "nothing in it"
            return f"{name}: TensorRT was not asked ({self.problem}); rules of this package speak against {parts}."
        if self.accepted:
            return f"{name}: the parser of {self.flavour} takes all {count(sum(self.operators.values()), 'node')}."
        if self.problem:
            return f"{name}: the parser of {self.flavour} gave no answer: {self.problem}."
        operators = ", ".join(dict.fromkeys(node.operator or node.name for node in self.refused))
        return f"{name}: the parser of {self.flavour} refuses {count(len(self.refused), 'part')} of it: {operators}."

    @property
    def status(self) -> Status:
        """`"inconclusive"` where nobody could be asked."""
        return "inconclusive" if self.accepted is None else "pass" if self.accepted else "fail"

    def _tables(self) -> list[Table]:
        speaker = "what a rule of this package says" if self.accepted is None else "what the parser said"
        rows = [
            (" in ".join([node.name, *reversed(node.inside)]), node.operator or "-", node.reason, node.help or "-")
            for node in self.refused
        ]
        return [Table(("node", "operator", speaker, "what helps"), rows)] if rows else []

    def _remarks(self) -> list[str]:
        taken = ", ".join(f"{number} {name}" for name, number in self.operators.items())
        word = "nothing speaks against" if self.accepted is not True else "taken"
        return [*([f"{word}: {taken}"] if taken else []), *self.notes]

    def _content(self) -> dict[str, Any]:
        return {"passed": self.passed, "verdict": self.verdict, **asdict(self), "path": str(self.path)}


def ask_parser(
    path: str | os.PathLike[str],
    *,
    flavour: str | None = None,
    timeout_s: float | None = 300,
    progress: bool = True,
    plugins: Sequence[PluginLike] = (),
) -> ParserAnswer:
    """Let TensorRT's parser read a network, in a process of its own, and tell what it says about each node.

    Args:
        path: the `.onnx` file.
        flavour: `"tensorrt"` or `"tensorrt_rtx"`; the first that is installed when None. Each has its own parser:
            the answer of one says nothing about the other.
        timeout_s: end the parser after this many seconds; None for no limit.
        progress: show a bar.
        plugins: what computes custom nodes, as in `build_engine`.
    Returns:
        The answer. Where no TensorRT with a parser is installed, `accepted` is None, `problem` says what to install,
        and `refused` holds what rules of this package speak against.
    Raises:
        ModelError: not a valid ONNX model; the parser itself says yes to an empty file.
        InputError: an unknown flavour.
    """
    path = Path(path)
    check(path)
    model = read(path)
    order = {"onnx_path": str(path.resolve()), "flavour": flavour, **custom_order(path, read_plugins(plugins))}
    options: dict[str, Any] = {"title": f"parse {path.name}", "progress": progress, "timeout_s": timeout_s}
    opened = [BACKEND_NAMES.get(flavour or "", "TensorRT")]  # until the child, which alone imports it, says more
    try:
        with temporary_folder() as folder:
            environment = library_environment(folder) if plugins else None
            facts = run_child(order, "parser", on_open=opened.append, environment=environment, **options)
    except BackendUnavailableError as error:
        return _without_parser(path, model, str(error))
    except EngineBuildError as error:
        return ParserAnswer(path, opened[-1], False, problem=str(error))
    return _answer(path, opened[-1], model, facts)


def _answer(path: Path, flavour: str, model: onnx.ModelProto, facts: Mapping[str, Any]) -> ParserAnswer:
    errors = [error for index, error in enumerate(facts["errors"]) if error not in facts["errors"][:index]]
    refused = tuple(_refused(error, model) for error in errors)
    accepted = bool(facts["parsed"] and facts["layers"] and facts["outputs"])
    found = f"{count(sum(facts['layers'].values()), 'layer')} and {count(facts['outputs'], 'output')}"
    problem = f"it says yes and found {found}" if facts["parsed"] else "it says no and gives no reason"
    problem = "" if accepted or refused else problem
    operators = _operators(model, [error["node"] for error in errors])  # of the whole network, also inside another
    # The parser first looks at every node alone, then reads them in order and stops at the first that fails.
    stops = [error["name"] or error["operator"] for error in errors if error["code"].startswith("INVALID")]
    notes = [_route(node, facts["plugins"]) for node in custom_nodes(model) if accepted]
    notes += [f"the parser stopped at {name}: ask again when that node is mended" for name in stops[-1:]]
    for value in (*model.graph.input, *model.graph.output):
        declared = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        taken = dtype_name(facts["types"][value.name]) if value.name in facts["types"] else declared
        if taken != declared:
            notes.append(f"{value.name} is {declared} in the file, TensorRT makes it {taken}")
    return ParserAnswer(path, flavour, accepted, refused, operators, facts["layers"], problem, tuple(notes))


def _route(node: CustomNode, plugins: Mapping[str, str]) -> str:
    """How TensorRT computes a custom node, one clause."""
    if node.name in plugins:
        return f"custom node {node}: by the plugin {plugins[node.name]}"
    return f"custom node {node}: " + ("inlined, by its function" if node.has_function else "the parser's own operator")


def _refused(error: Mapping[str, Any], model: onnx.ModelProto) -> RefusedNode:
    name, operator, inside = error["name"], error["operator"], tuple(error["inside"])
    if not operator:
        ends = ", ".join(f"{end} ({what})" for end, what in _refused_ends(model))
        name = ends or "the network"
    elif not name and not inside and 0 <= error["node"] < len(model.graph.node):
        name = model.graph.node[error["node"]].output[0]
    said, code = error["said"], error["code"]
    words = _WORDS.search(said)  # in a failed condition of the parser's source
    help_text = known_fix(f"({operator}): {said} [{code}]")
    return RefusedNode(name or "a node without a name", operator, words[1] if words else said, code, help_text, inside)


def _without_parser(path: Path, model: onnx.ModelProto, problem: str) -> ParserAnswer:
    refused = [RefusedNode(name, "", f"TensorRT has no tensor {what}") for name, what in _refused_ends(model)]
    known, blamed = constants(model.graph), []
    functions = {(function.domain, function.name) for function in model.functions}
    for index, node in enumerate(model.graph.node):
        reason = "" if (node.domain, node.op_type) in functions else _refused_node(node, known)
        if reason:
            blamed.append(index)
            help_text = known_fix(f"({node.op_type}): {reason} [UNSUPPORTED_NODE]")
            refused.append(RefusedNode(node.name or node.output[0], node.op_type, reason, help=help_text))
    return ParserAnswer(path, "", None, tuple(refused), _operators(model, blamed), problem=problem)


def _operators(model: onnx.ModelProto, without: Collection[int]) -> dict[str, int]:
    counts = Counter(node.op_type for index, node in enumerate(model.graph.node) if index not in without)
    return dict(counts.most_common())


def _refused_ends(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """The inputs and outputs whose type or rank TensorRT does not have, such as `"int16"` or `"of 9 axes"`."""
    for value in (*real_inputs(model.graph), *model.graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type in _REFUSED_TYPES:
            yield value.name, TensorProto.DataType.Name(tensor.elem_type).lower()
        elif len(tensor.shape.dim) > MAX_RANK:
            yield value.name, f"of {len(tensor.shape.dim)} axes"


def _refused_node(node: onnx.NodeProto, known: dict[str, onnx.TensorProto]) -> str:
    """Why the parser is known to refuse a node, one clause; an empty text where no rule speaks against it."""
    if node.domain not in (*STANDARD, *_OTHER_DOMAINS):
        return f"the domain {node.domain} is not ONNX's"
    if node.op_type in _REFUSED_OPERATORS and node.domain in STANDARD:
        return "the parser does not have this operator"
    if node.op_type == "Resize":
        return _refused_resize(node)
    if node.op_type == "MaxPool" and (any(node.output[1:]) or set(attribute(node, "dilations", [1])) != {1}):
        return "indices and dilations of a MaxPool are refused"
    if node.op_type == "BatchNormalization" and (attribute(node, "training_mode", 0) or any(node.output[1:])):
        return "it is in training mode"
    mode = node.input[2] if node.op_type == "Dropout" and len(node.input) > 2 else ""
    if mode in known and onnx.numpy_helper.to_array(known[mode]).any():
        return "it is in training mode"
    return ""


def _refused_resize(node: onnx.NodeProto) -> str:
    mode = attribute(node, "coordinate_transformation_mode", b"half_pixel")
    if attribute(node, "antialias", 0):
        return "it antialiases"
    if mode == b"tf_half_pixel_for_nn" and attribute(node, "nearest_mode") != b"round_prefer_floor":
        return "tf_half_pixel_for_nn is taken with round_prefer_floor only"
    return f"{mode.decode()} is refused" if mode in (b"tf_crop_and_resize", b"half_pixel_symmetric") else ""
