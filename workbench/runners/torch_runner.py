"""Run a PyTorch network as it is, in inference mode: the reference for what is made from it."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from workbench.core.contract import Runner, RunnerInfo, TensorSpec
from workbench.core.errors import InputError
from workbench.core.packages import require_backend
from workbench.models.torch_file import check_trained, first_line, has_open_batch, is_program, program_example


class TorchRunner(Runner):
    """A PyTorch module, TorchScript module or exported program.

    During a call the module is in inference mode; after it every part of the module is as it was.

    Args:
        model: the `torch.nn.Module`, or what `torch.export.export` or `torch.export.load` gives.
        example: the arguments of one call: a tensor or array, a tuple of them, or a dict of them by the name of the
            argument. Axis 0 of the first one is the batch. An exported program brings its own.
        dynamic_batch: the batch may change: axis 0 of each tensor that has the example's batch there.
    Raises:
        InputError: the example is missing, holds no tensors, or is refused by the network.
        ModelError: the program was exported in training mode.
        BackendUnavailableError: PyTorch is not installed.
    """

    def __init__(self, model: Any, example: Any = None, *, dynamic_batch: bool = True) -> None:
        torch = require_backend("torch", "torch")
        self.model, self._torch = model, torch
        program = is_program(model)
        if program:
            check_trained(model)
            example = example if example is not None else program_example(model)
            dynamic_batch = has_open_batch(model)
        elif not isinstance(model, torch.nn.Module):
            raise InputError(f"got {type(model).__name__} as the network, expected a torch.nn.Module or a .pt2 file")
        self.call = model.module() if program else model
        self.device = next((tensor.device for tensor in self.tensors()), torch.device("cpu"))
        self.arguments, self.keywords = self._arguments(example)
        values = [*self.arguments, *self.keywords.values()]
        names = _input_names(model, len(self.arguments), tuple(self.keywords))
        answers = self._first_answer()
        self.example = {name: to_numpy(value) for name, value in zip(names, values, strict=True)}
        batch = values[0].shape[0] if dynamic_batch and values[0].dim() else None
        inputs = _specs(self.example, batch)
        free = {f"{name}_output" if name in inputs else name: to_numpy(answer) for name, answer in answers.items()}
        outputs = _specs(free, batch)  # under ONNX's names
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        super().__init__(RunnerInfo("torch", torch.__version__.split("+")[0], where), inputs, outputs)

    def _infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = [self._torch.tensor(feed[name], device=self.device) for name in self.inputs]
        answers = self._run(values)
        return {name: to_numpy(answer) for name, answer in zip(self.outputs, answers.values(), strict=True)}

    def _run(self, values: list[Any]) -> dict[str, Any]:
        """Call the network; tensors out by name, in the order in which the exporter writes them."""
        count = len(self.arguments)
        keywords = dict(zip(self.keywords, values[count:], strict=True))
        with self.settled(), self._torch.inference_mode():
            return _flatten(self.call(*values[:count], **keywords))

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """Hold the network in inference mode, and float32 without TF32; afterwards all is as it was."""
        backends = self._torch.backends
        parts = [] if is_program(self.model) else [(part, part.training) for part in self.model.modules()]
        tf32 = backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32
        try:
            if any(training for _, training in parts):
                self.model.eval()
            backends.cudnn.allow_tf32 = backends.cuda.matmul.allow_tf32 = False
            yield
        finally:
            backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32 = tf32
            if any(training for _, training in parts):
                self.model.train(parts[0][1])
            for part, training in parts:
                part.training = training

    def _first_answer(self) -> dict[str, Any]:
        """Run the example, on copies: a network may write into what it is given."""
        values = [*self.arguments, *self.keywords.values()]
        try:
            return self._run([value.clone() for value in values])
        except InputError:
            raise
        except Exception as error:  # PyTorch raises RuntimeError, TypeError, IndexError and more
            shapes = ", ".join(str(tuple(value.shape)) for value in values)
            raise InputError(
                f"the network does not take the example {shapes}: {first_line(error)}; give an example of the shape "
                "and type that the network was trained on"
            ) from error

    def _arguments(self, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Sort the example into positional and keyword arguments, as tensors on the network's device."""
        if example is None:
            raise InputError(
                "a PyTorch network does not say what it takes; give the example of one call, such as "
                "torch.randn(1, 3, 224, 224)"
            )
        if isinstance(example, Mapping):
            return (), {str(name): self._tensor(value) for name, value in example.items()}
        pair = example if isinstance(example, tuple) and len(example) == 2 else (None, None)
        if isinstance(pair[0], tuple) and isinstance(pair[1], Mapping):  # what an exported program brings
            return tuple(map(self._tensor, example[0])), {key: self._tensor(v) for key, v in example[1].items()}
        values = example if isinstance(example, tuple | list) else (example,)
        if not values:
            raise InputError("got an empty example, expected a tensor or a tuple of tensors")
        return tuple(map(self._tensor, values)), {}

    def _tensor(self, value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            value = self._torch.from_numpy(value.copy())
        if not isinstance(value, self._torch.Tensor):
            raise InputError(
                f"got {type(value).__name__} in the example, expected tensors; "
                "wrap the network in a torch.nn.Module whose forward takes tensors only and sets the rest itself"
            )
        return value.detach().to(self.device)

    def tensors(self) -> Iterator[Any]:
        """Yield the weights and the other tensors that the network holds."""
        yield from self.call.parameters()
        yield from self.call.buffers()

    def _close(self) -> None:
        self.call = None


def to_numpy(tensor: Any) -> np.ndarray:
    """Copy a tensor into a NumPy array of its own; refuse one of a type that NumPy has not, such as bfloat16."""
    try:
        return np.array(tensor.detach().cpu().numpy())
    except TypeError as error:
        advice = "expected a type that NumPy has; call model.float()"
        raise InputError(f"got a tensor of {tensor.dtype}, {advice}") from error


def _flatten(answer: Any, name: str = "output") -> dict[str, Any]:
    """Name the tensors of an answer: the keys of a dict, numbers for a tuple."""
    if isinstance(answer, Mapping):
        items = [(str(key) if name == "output" else f"{name}_{key}", value) for key, value in answer.items()]
    elif isinstance(answer, tuple | list):
        items = [(f"{name}_{index}" if len(answer) > 1 else name, value) for index, value in enumerate(answer)]
    elif hasattr(answer, "detach"):
        return {name: answer}
    else:
        raise InputError(
            f"the network answers with {type(answer).__name__}, expected tensors, or tuples and dicts of them; "
            "wrap it in a torch.nn.Module that returns tensors"
        )
    named: dict[str, Any] = {}
    for key, value in items:
        named |= _flatten(value, key) if value is not None else {}
    return named


def _input_names(model: Any, positional: int, keywords: tuple[str, ...]) -> list[str]:
    """`input` for a single one; several keep the names of the arguments of `forward`."""
    if positional + len(keywords) == 1:
        return ["input"]
    if is_program(model):
        return list(model.graph_signature.user_inputs)
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # TorchScript has no signature that Python can read
        parameters = []
    known = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL]
    return [known[i] if i < len(known) else f"input_{i}" for i in range(positional)] + list(keywords)


def _specs(arrays: Mapping[str, np.ndarray], batch: int | None) -> dict[str, TensorSpec]:
    """Describe arrays; where axis 0 is the batch, it is open."""
    specs = {}
    for name, array in arrays.items():
        is_open = batch is not None and array.ndim > 0 and array.shape[0] == batch
        specs[name] = TensorSpec(name, (None, *array.shape[1:]) if is_open else array.shape, array.dtype.name)
    return specs
