"""An operator that ONNX does not have, computed by a NumPy function: in ONNX Runtime and in ONNX's reference evaluator.

onnxruntime-extensions, which lets ONNX Runtime call Python, ends the process when the function raises, casts what it
gives without a word, forgets no operator, and refuses every session after one was told twice: all of it is met here.
"""

import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import inliner

from workbench.core.errors import InputError, ModelError
from workbench.core.packages import require_backend
from workbench.onnx_graph import edit
from workbench.onnx_graph.file import load, read

Array = NDArray[Any]
Shape = tuple[int, ...]
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
        except Exception as error:
            raise InputError(f"the function of the operator {self.name} fails: {error!r}; mend it") from error
        answers = given if isinstance(given, tuple) else (given,)
        got = [_describe(answer) for answer in answers]
        expected = [f"{kind} of {tuple(shape)}" for kind, shape in zip(self.outputs, wanted, strict=False)]
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


_OPEN: dict[str, Operator] = {}
_TOLD: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}  # the types of what onnxruntime-extensions knows
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

    Files opened from now on use it for their nodes of that name, also where they have a function for it.

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
        BackendUnavailableError: onnxruntime-extensions is not installed.
    """
    if not edit.OPERATOR_NAME.fullmatch(name) or name in _OPEN:
        wrong = "which is registered; close that operator first" if name in _OPEN else "expected letters and digits"
        raise InputError(f"got the operator name {name!r}, {wrong}")
    if inputs is None:
        parameters = inspect.signature(function).parameters.values()
        inputs = ["float32" for item in parameters if item.default is item.empty]
    types = tuple(inputs), tuple(outputs)
    if not all(types) or not {*types[0], *types[1]} <= set(_KINDS):
        raise InputError(f"got inputs={types[0]} and outputs={types[1]}, expected one or more of {', '.join(_KINDS)}")
    if _TOLD.get(name, types) != types:
        raise InputError(f"{name} had other types before, which ONNX Runtime does not forget; start Python again")
    operator = Operator(name, function, *types, shapes)
    if name not in _TOLD:
        _tell(operator)
    _OPEN[name], _TOLD[name] = operator, types
    return operator


def attach(network: onnx.ModelProto | str, options: Any) -> onnx.ModelProto | str:
    """Let a session use the registered operators that its network has nodes of; return the network that it shall open.

    A node whose operator is not registered, or takes other types, becomes its function; a ModelError without one.
    """
    if not _OPEN:
        return network
    model = network if isinstance(network, onnx.ModelProto) else read(network)
    nodes = [node for node in edit.all_nodes(model.graph) if node.domain == edit.CUSTOM]
    if not any(node.op_type in _OPEN for node in nodes):
        return network
    options.register_custom_ops_library(require_backend("onnxruntime_extensions", "custom").get_library_path())
    values = edit.inferred_values(model)
    unfit = {node.op_type: problem for node in nodes if (problem := _problem(node, values))}
    local = {item.name for item in model.functions if item.domain == edit.CUSTOM}
    if bare := [problem for name, problem in unfit.items() if name not in local]:
        raise ModelError(f"{bare[0]}, and the file has no function for it; register it with register_operator")
    if not unfit:
        return network
    whole = model if isinstance(network, onnx.ModelProto) else load(network)
    return inliner.inline_selected_functions(whole, [(edit.CUSTOM, name) for name in unfit])


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


def _tell(operator: Operator) -> None:
    """Make an operator known to onnxruntime-extensions."""
    library = require_backend("onnxruntime_extensions", "custom")
    name, outputs = operator.name, operator.outputs

    def call(*arrays: Array) -> Any:
        try:
            if name not in _OPEN:
                raise InputError(f"the operator {name} was closed while a session used it; open the network again")
            answers = _OPEN[name](*arrays)
        except BaseException as error:  # what is raised here would end the process; Ctrl-C comes here too
            _failures.error = error
            answers = tuple(np.zeros(arrays[0].shape, kind) for kind in outputs)
        return answers if len(answers) > 1 else answers[0]

    types = [
        [getattr(library.PyCustomOpDef, f"dt_{_KINDS[kind]}") for kind in names] for names in (operator.inputs, outputs)
    ]
    library.onnx_op(op_type=f"{edit.CUSTOM}::{name}", inputs=types[0], outputs=types[1])(call)


def _problem(node: onnx.NodeProto, values: edit.Values) -> str:
    """Why no registered operator computes a node; empty where one does."""
    operator = _OPEN.get(node.op_type)
    if operator is None:
        return f"{node.name} is a {node.op_type}, which is not registered"
    kinds = (values[name].elem_type if name in values else 0 for name in node.input)
    types = tuple(onnx.helper.tensor_dtype_to_np_dtype(kind).name if kind else "?" for kind in kinds)
    if len(types) == len(operator.inputs) and all(map(_fit, types, operator.inputs)):
        return ""
    return f"{node.name} reads {', '.join(types)}, and {node.op_type} takes {', '.join(operator.inputs)}"


def _fit(kind: str, wanted: str) -> bool:
    return kind in ("?", wanted)


def _describe(answer: Any) -> str:
    known = isinstance(answer, np.ndarray)
    return f"{answer.dtype} of {answer.shape}" if known else type(answer).__name__
