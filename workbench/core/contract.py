"""The contract every runner keeps: what it is, takes and gives, and how a wrong feed is refused."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from workbench.core.errors import FeedError, InputError

BACKEND_NAMES = {
    "keras": "Keras", "tf_keras": "tf_keras", "tensorflow": "TensorFlow", "torch": "PyTorch",
    "onnxruntime": "ONNX Runtime", "reference": "ONNX reference", "ncnn": "ncnn", "tvm": "TVM", "tensorrt": "TensorRT",
    "tensorrt_rtx": "TensorRT-RTX", "tensorrt_lean": "TensorRT lean runtime",
}  # fmt: skip

# For each rank: how a view of the array may be turned into what the network takes, cheapest mistake first.
_REPAIRS: dict[int, tuple[tuple[str, tuple[int, ...]], ...]] = {
    3: (("x.transpose(2, 0, 1)[None]", (2, 0, 1)), ("x.transpose(1, 2, 0)[None]", (1, 2, 0))),
    4: (("x.transpose(0, 3, 1, 2)", (0, 3, 1, 2)), ("x.transpose(0, 2, 3, 1)", (0, 2, 3, 1))),
}


@dataclass(frozen=True)
class RunnerInfo:
    """What computed an answer; figures and reports take their titles from `name` and from nowhere else.

    InputError for an unknown backend, or TensorRT named in the version or device of another one.

    >>> RunnerInfo("onnxruntime", "1.31.1", "CPU").name
    'ONNX Runtime 1.31.1 (CPU)'
    """

    backend: str  # a key of `BACKEND_NAMES`
    version: str  # of the backend's package
    device: str  # where it ran, such as "CPU" or "TensorFlow, CPU"

    def __post_init__(self) -> None:
        if self.backend not in BACKEND_NAMES:
            raise InputError(f"got the backend {self.backend!r}, expected one of {', '.join(BACKEND_NAMES)}")
        details = f"{self.version} {self.device}".lower()
        if "tensorrt" in details and not self.is_tensorrt:
            raise InputError(
                f"got version {self.version!r} and device {self.device!r} for the backend {self.backend!r}, "
                "expected no mention of TensorRT; only a tensorrt backend may carry that name"
            )

    @property
    def name(self) -> str:
        """The name people see, such as `ONNX Runtime 1.31.1 (CPU)`."""
        return f"{BACKEND_NAMES[self.backend]} {self.version} ({self.device})"

    @property
    def is_tensorrt(self) -> bool:
        """Whether a member of the TensorRT family computed the answer."""
        return self.backend.startswith("tensorrt")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a network."""

    name: str
    shape: tuple[int | None, ...]  # None where any size of 1 or more will do
    dtype: str  # NumPy's name of the element type, such as "float32"

    def describe(self) -> str:
        """Element type and shape in one phrase.

        >>> TensorSpec("input", (None, 3, 512, 1024), "float32").describe()
        'float32 (batch, 3, 512, 1024)'
        """
        names = ["batch" if axis == 0 else "any" for axis in range(len(self.shape))]
        sizes = [name if size is None else str(size) for name, size in zip(names, self.shape, strict=True)]
        return f"{self.dtype} {_tuple_text(sizes)}"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape can be this tensor."""
        return len(shape) == len(self.shape) and all(
            got > 0 if size is None else got == size for got, size in zip(shape, self.shape, strict=True)
        )


class Runner(ABC):
    """A network opened on one backend; use it in a `with` block.

    Attributes:
        info: what computes the answers.
        inputs, outputs: the tensors the network takes and gives, by name.
        reason: why this backend was picked, one sentence; empty when the caller asked for it.
        onnx_file: the file with the network where it is an ONNX file, so that what rounding does to it can be measured.
        unit: the coarsest type that it computes in, a key of `workbench.core.tolerance.CEILINGS`; None where its file
            says it.
    """

    onnx_file: Path | None = None
    unit: str | None = None

    def __init__(
        self, info: RunnerInfo, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec], reason: str = ""
    ) -> None:
        """Keep the description; a subclass opens its network before or after this call."""
        self.info, self.reason = info, reason
        self.inputs, self.outputs = dict(inputs), dict(outputs)
        self._closed = False

    def infer(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the network once.

        Args:
            feed: one array for each of `inputs`, by name, in the shape and dtype given there. Not modified.
        Returns:
            One new array for each of `outputs`, by name; the next call does not change it.
        Raises:
            FeedError: a tensor is missing or unknown, has a wrong dtype or shape, or holds NaN or infinity.
            InputError: the runner is closed.
        """
        self._require_open()
        check_feed(self.inputs, feed)
        outputs = self._infer(dict(feed))
        given = list(feed.values())
        shared = [name for name in outputs if any(np.may_share_memory(outputs[name], other) for other in given)]
        return outputs | {name: outputs[name].copy() for name in shared}

    def close(self) -> None:
        """Release the network and its memory; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._close()

    @abstractmethod
    def _infer(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the checked feed; return arrays that no later call writes to."""

    def _close(self) -> None:  # noqa: B027  (a runner without resources has nothing to release)
        """Release what the subclass holds; called once."""

    def _require_open(self) -> None:
        if self._closed:
            raise InputError("the runner is closed; open it again with open_runner(...)")

    def __enter__(self) -> Self:
        self._require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        takes = ", ".join(f"{name} {spec.describe()}" for name, spec in self.inputs.items())
        gives = ", ".join(f"{name} {spec.describe()}" for name, spec in self.outputs.items())
        return f"<{self.info.name}: {takes} -> {gives}{' (closed)' if self._closed else ''}>"


def check_feed(specs: Mapping[str, TensorSpec], feed: Mapping[str, np.ndarray]) -> None:
    """Refuse, with a FeedError, a feed that the network does not take; the sentence says which call mends it."""
    if not isinstance(feed, Mapping):
        raise FeedError(
            f"got {type(feed).__name__} as the feed, expected a dict of arrays by input name; "
            f"pass {{{', '.join(f'{name!r}: x' for name in specs)}}}"
        )
    expected = ", ".join(specs)
    for name in specs:
        if name not in feed:
            raise FeedError(
                f"input {name!r} is missing: got {', '.join(map(str, feed)) or 'an empty feed'}, "
                f"expected {expected}; add it to the feed"
            )
    for name in feed:
        if name not in specs:
            raise FeedError(f"got an input {name!r} the network does not have, expected {expected}; remove it")
    for name, spec in specs.items():
        _check_tensor(spec, feed[name])


def _check_tensor(spec: TensorSpec, array: Any) -> None:
    if not isinstance(array, np.ndarray):
        raise _refusal(spec, f"a {type(array).__name__}", f'pass np.asarray(x, dtype="{spec.dtype}")')
    got = f"{array.dtype.name} {_tuple_text([str(size) for size in array.shape])}"
    if array.dtype.name != spec.dtype:
        raise _refusal(spec, got, f'pass x.astype("{spec.dtype}")')
    if not array.dtype.isnative:
        raise _refusal(spec, f"{got} in foreign byte order", f'pass x.astype("{spec.dtype}")')
    if not spec.fits(array.shape):
        raise _refusal(spec, got, _shape_advice(spec, array.shape))
    if "float" in spec.dtype and not np.isfinite(array).all():
        raise _refusal(spec, _describe_bad_values(array), "mend the array before the network sees it")


def _refusal(spec: TensorSpec, got: str, advice: str) -> FeedError:
    return FeedError(f"input {spec.name!r}: got {got}, expected {spec.describe()}; {advice}")


def _shape_advice(spec: TensorSpec, shape: tuple[int, ...]) -> str:
    """Say which call, or which change, turns an array of `shape` into `spec`."""
    if spec.fits((1, *shape)):
        return "add the batch axis: pass x[None]"
    for call, order in _REPAIRS.get(len(shape), ()):
        moved = tuple(shape[axis] for axis in order)
        if spec.fits(moved if len(shape) == 4 else (1, *moved)):
            return f"the axes are in another order: pass {call}"
    if len(shape) != len(spec.shape):
        return f"give an array of {len(spec.shape)} axes, not {len(shape)}"
    axis = next(axis for axis, size in enumerate(shape) if size == 0 or spec.shape[axis] not in (None, size))
    if shape[axis] == 0:
        return f"axis {axis} is empty; give at least one"
    return (
        f"axis {axis} is {shape[axis]} where the network takes {spec.shape[axis]}; "
        "bring the input to that size, or export the network for yours"
    )


def _describe_bad_values(array: np.ndarray) -> str:
    """Count the values that are not finite, and say where the first is."""
    bad = ~np.isfinite(array)
    first = tuple(int(index) for index in np.unravel_index(int(bad.argmax()), array.shape))
    kinds = [("NaN", int(np.isnan(array).sum())), ("infinite", int(np.isinf(array).sum()))]
    counts = " and ".join(f"{count} {kind}" for kind, count in kinds if count)
    return f"{counts} of {array.size} values, the first at {_tuple_text([str(index) for index in first])}"


def _tuple_text(parts: list[str]) -> str:
    return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"


def ordered_feed(names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Bring a feed into the order of a network's inputs, by name or else by position; InputError for another number."""
    if set(names) == set(feed):
        return [feed[name] for name in names]
    if len(names) != len(feed):
        raise InputError(f"got {len(feed)} inputs ({', '.join(feed)}), expected {', '.join(names)}; feed these")
    return list(feed.values())
