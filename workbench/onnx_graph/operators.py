"""An operator that ONNX does not have, computed by a NumPy function: in ONNX Runtime and in ONNX's reference evaluator.

onnxruntime-extensions, which lets ONNX Runtime call Python, ends the process when the function raises, casts what it
gives without a word, and spoils every open session when it is told of one more operator. So it is told once, of one
operator for each number of inputs and outputs, which calls the function that an attribute of the node names.
"""

import inspect
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from workbench.core.errors import InputError, ModelError
from workbench.core.packages import require_backend
from workbench.onnx_graph import edit
from workbench.onnx_graph.file import load, read

Array = NDArray[Any]
# The types that were seen to pass through, by their names in onnxruntime-extensions; float16 ends the process.
_KINDS = {"float32": "float", "float64": "double", **{name: name for name in ("bool", "int32", "int64", "uint8")}}


class Operator:
    """A registered operator; `close` it, or use it in a `with` block, and ONNX Runtime reads the functions again."""

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        shapes: Callable[..., Any] | None,
    ) -> None:
        self.name, self.inputs, self.outputs = name, inputs, outputs
        self._function, self._shapes = function, shapes

    def __call__(self, *arrays: Array) -> tuple[Array, ...]:
        """Compute, and check what the function answers: InputError."""
        try:
            given = self._function(*arrays)
            wanted = self._shapes(*(array.shape for array in arrays)) if self._shapes else [arrays[0].shape]
            expected = [f"{kind} of {tuple(shape)}" for kind, shape in zip(self.outputs, wanted, strict=False)]
        except Exception as error:
            fed = " and ".join(map(_describe, arrays))
            raise InputError(f"the function of the operator {self.name} fails for {fed}: {error!r}; mend it") from error
        answers = given if isinstance(given, tuple) else (given,)
        got = [_describe(answer) for answer in answers]
        if got != expected:
            raise InputError(
                f"the function of the operator {self.name} answers {' and '.join(got) or 'nothing'}, expected "
                f"{' and '.join(expected)}; mend it, or say outputs= and shapes= when you register it"
            )
        return answers

    def close(self) -> None:
        """Forget the operator; a second call does nothing."""
        if _OPEN.get(self.name) is self:
            del _OPEN[self.name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


Signature = tuple[tuple[str, ...], tuple[str, ...]]  # the types of inputs and outputs
_USUAL = {(("float32",) * inputs, ("float32",) * outputs) for inputs in range(1, 9) for outputs in range(1, 5)}
_CALLS = "workbench.calls"  # the domain of the operators that onnxruntime-extensions knows
_OPEN: dict[str, Operator] = {}
_told: set[Signature] = set()
_sessions = weakref.WeakSet[Any]()  # those that call functions
_failures = threading.local()


def register_operator(
    name: str,
    function: Callable[..., Any],
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] = ("float32",),
    shapes: Callable[..., Any] | None = None,
) -> Operator:
    """Let ONNX Runtime and ONNX's reference evaluator compute a custom node by a NumPy function, in this process.

    Files opened from now on use it for their nodes of that name, also where they have a function for it. ONNX Runtime
    needs onnxruntime-extensions for it: a BackendUnavailableError when the file is opened.

    Args:
        name: the operator, in the domain `workbench.custom`, as in `mark_custom_layer`.
        function: takes an array for each input and gives an array, or a tuple of them; it must not change its inputs.
        inputs: the type of each input, such as `"float32"`; as many float32 as the function has parameters when None.
        outputs: the type of each output.
        shapes: takes the shape of each input and gives a list with the shape of each output; when None, there is one
            output, of the shape of the first input.
    Returns:
        The operator, registered until it is closed; use it in a `with` block.
    Raises:
        InputError: a name that is none or is taken, or types that cannot pass between ONNX Runtime and Python. What
            the function does wrong later is an InputError of the run.
    """
    if not edit.OPERATOR_NAME.fullmatch(name) or name in _OPEN:
        wrong = "which is registered; close that operator first" if name in _OPEN else "expected letters and digits"
        raise InputError(f"got the operator name {name!r}, {wrong}")
    if inputs is None:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError) as error:
            raise InputError(
                f"got {function!r}, expected a function; say inputs= for one without a signature"
            ) from error
        inputs = ["float32" for item in parameters if item.default is item.empty]
    types = tuple(inputs), tuple(outputs)
    if not all(types) or not {*types[0], *types[1]} <= set(_KINDS):
        raise InputError(f"got inputs={types[0]} and outputs={types[1]}, expected one or more of {', '.join(_KINDS)}")
    operator = _OPEN[name] = Operator(name, function, *types, shapes)
    return operator


def attach(network: onnx.ModelProto | str, options: Any) -> onnx.ModelProto | str:
    """Let a session use the registered operators that its network has nodes of; return the network that it shall open.

    A node whose operator takes other types stays a call of its function; a ModelError without one.
    """
    if not _OPEN or not (_custom(network if isinstance(network, onnx.ModelProto) else read(network))):
        return network
    model = edit.copy_of(network) if isinstance(network, onnx.ModelProto) else load(network)
    library = require_backend("onnxruntime_extensions", "custom")
    values, functions = edit.inferred_values(model), {item.name for item in model.functions}
    for node in _custom(model):
        operator = _OPEN[node.op_type]
        if problem := _problem(node, operator, values):
            if node.op_type in functions:
                continue
            raise ModelError(f"{problem}, and the file has no function for it; register it with these types")
        name = _call_name(library, (operator.inputs, operator.outputs))
        ends = node.input, node.output, node.name
        node.CopyFrom(helper.make_node(name, *ends, domain=_CALLS, operator=operator.name))
    model.opset_import.append(helper.make_opsetid(_CALLS, 1))
    options.register_custom_ops_library(library.get_library_path())
    return model


def attached(session: Any) -> None:
    """Note a session that calls functions."""
    _sessions.add(session)


def reference_operators() -> list[type]:
    """The registered operators, for `new_ops` of ONNX's `ReferenceEvaluator`."""
    from onnx.reference.op_run import OpRun  # 0.1 s that no session needs

    def run(operator: Operator) -> Callable[..., tuple[Array, ...]]:
        return lambda self, *arrays, **attributes: operator(*arrays)

    return [type(name, (OpRun,), {"op_domain": edit.CUSTOM, "_run": run(operator)}) for name, operator in _OPEN.items()]


def take_failure() -> None:
    """Raise what went wrong in an operator of the run that has just ended in this thread."""
    error = _failures.__dict__.pop("error", None)
    if error is not None:
        raise error


def _custom(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in edit.all_nodes(model.graph) if node.domain == edit.CUSTOM and node.op_type in _OPEN]


def _call_name(library: Any, signature: Signature) -> str:
    """The operator that calls functions of these types; told to onnxruntime-extensions where it is new."""
    if signature not in _told:
        if _sessions:
            raise InputError(
                "ONNX Runtime learns of other types only while no network with registered operators is open; close "
                f"its runner before you open one with {' and '.join(signature[0])} to {' and '.join(signature[1])}"
            )
        for each in sorted({*_USUAL, signature} - _told):
            _tell(library, each)
    return _name(signature)


def _tell(library: Any, signature: Signature) -> None:
    kinds, outputs = library.PyCustomOpDef, signature[1]

    def call(*arrays: Array, operator: str) -> Any:
        try:
            if operator not in _OPEN:
                raise InputError(f"the operator {operator} was closed while a session used it; open the network again")
            answers = _OPEN[operator](*arrays)
        except BaseException as error:  # what is raised here would end the process; Ctrl-C comes here too
            _failures.error = error
            answers = tuple(np.zeros(arrays[0].shape, kind) for kind in outputs)
        return answers if len(answers) > 1 else answers[0]

    types = [[getattr(kinds, f"dt_{_KINDS[kind]}") for kind in names] for names in signature]
    attributes = {"operator": kinds.dt_string}
    name = f"{_CALLS}::{_name(signature)}"
    library.onnx_op(op_type=name, inputs=types[0], outputs=types[1], attrs=attributes)(call)
    _told.add(signature)


def _name(signature: Signature) -> str:
    return "_to_".join("_".join(types) for types in signature)


def _problem(node: onnx.NodeProto, operator: Operator, values: edit.Values) -> str:
    """Why an operator cannot compute a node; empty where it can."""
    kinds = (values[name].elem_type if name in values else 0 for name in node.input)
    types = tuple(helper.tensor_dtype_to_np_dtype(kind).name if kind else "?" for kind in kinds)
    if len(types) == len(operator.inputs) and all(map(_fit, types, operator.inputs)):
        return ""
    return f"{node.name} reads {', '.join(types)}, and {node.op_type} takes {', '.join(operator.inputs)}"


def _fit(kind: str, wanted: str) -> bool:
    return kind in ("?", wanted)


def _describe(answer: Any) -> str:
    known = isinstance(answer, np.ndarray)
    return f"{answer.dtype} of {answer.shape}" if known else type(answer).__name__
