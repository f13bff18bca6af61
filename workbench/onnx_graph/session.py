"""Open ONNX Runtime: the one place that makes an `InferenceSession`."""

import contextlib
import functools
import importlib.util
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from workbench.core.driver import require_gpu
from workbench.core.errors import BackendUnavailableError, ModelError, WorkbenchError, first_line
from workbench.core.packages import require_backend
from workbench.core.time_limit import run_ended, time_left
from workbench.onnx_graph.edit import parts, refuse_large
from workbench.onnx_graph.operators import attach, attached, take_failure

OPTIMISATIONS = {"all": "ORT_ENABLE_ALL", "basic": "ORT_ENABLE_BASIC", "none": "ORT_DISABLE_ALL"}
FLOAT8 = frozenset({onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2})
"""At full optimisation ONNX Runtime 1.31 refuses these types or answers wrongly; at the basic one it is right."""

_PLACES = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+ .*?\)(?: const)? |\w+\.(?:cc|h):\d+ \w+ "
)


def open_session(
    network: onnx.ModelProto | str | os.PathLike[str],
    purpose: str = "run the network",
    *,
    folder: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    tf32: bool = False,
    threads: int = 0,
    optimise: str = "all",
    fuse_qdq: bool = True,
    profile_prefix: str = "",
    loops: bool = True,
) -> Any:
    """Open a network in ONNX Runtime.

    Args:
        network: the `.onnx` file, or the network itself.
        purpose: what cannot be done where this fails, such as `"show the tensors inside net.onnx"`.
        folder: where the external data of a network that is no file lies.
        device: `"cpu"` or `"cuda"`; call `prepare_cuda` before.
        tf32: see `providers`.
        threads: threads inside one operator; 0 lets ONNX Runtime decide.
        optimise: `"all"`, `"basic"`, or `"none"`: each node runs as it is written.
        fuse_qdq: False lets each pair of QuantizeLinear and DequantizeLinear do nothing but round.
        profile_prefix: write a profile to files that begin so.
        loops: whether a network that is a file may repeat a part of itself, see `may_loop`.
    Returns:
        The `InferenceSession`.
    Raises:
        ExportError: a network of more than 2 GB that is no file.
        ModelError: ONNX Runtime refuses it.
    """
    runtime = require_backend("onnxruntime", "dev")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, OPTIMISATIONS[optimise])
    if not fuse_qdq:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if folder is not None:
        where = os.fspath(Path(folder).resolve())
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", where)
    if profile_prefix:
        options.enable_profiling, options.profile_file_prefix = True, profile_prefix
    if isinstance(network, onnx.ModelProto):
        refuse_large(network)
    given = network if isinstance(network, onnx.ModelProto) else os.fspath(network)
    network = attach(given, options)
    content = network.SerializeToString() if isinstance(network, onnx.ModelProto) else network
    try:
        session = runtime.InferenceSession(content, options, providers=providers(device, tf32=tf32))
    except Exception as error:  # ONNX Runtime's own exceptions share no public base
        raise ModelError(f"ONNX Runtime cannot {purpose}: {_reason(error)}") from error
    if network is not given:
        attached(session)
    session.may_loop = may_loop(network) if isinstance(network, onnx.ModelProto) else loops
    return session


def may_loop(model: onnx.ModelProto) -> bool:
    """Whether a part of the network is repeated until the network itself says that it is enough."""
    return any(node.op_type == "Loop" for part in parts(model) for node in part.node)


def run_session(session: Any, feed: Mapping[str, Any], purpose: str = "run the network") -> dict[str, Any]:
    """Run an open network once, and return its outputs by name.

    A ModelError where ONNX Runtime cannot; a TimeLimitError at the end of a `time_limit`. Ctrl-C ends it at once where
    the network `may_loop`.
    """
    names = [value.name for value in session.get_outputs()]
    try:
        if time_left(purpose) is None and not session.may_loop:  # a thread takes longer than a small network
            answers = _run(session, names, dict(feed), None)
        else:
            options = require_backend("onnxruntime", "dev").RunOptions()
            end = functools.partial(setattr, options, "terminate", True)  # heard before each node
            answers = run_ended(lambda: _run(session, names, dict(feed), options), end, purpose)
    except (TimeoutError, WorkbenchError):
        raise
    except Exception as error:  # ONNX Runtime's own exceptions share no public base
        doubtful = [name for name, array in feed.items() if array.dtype.kind not in "fb"] or list(feed)
        raise ModelError(
            f"ONNX Runtime cannot {purpose}: {_reason(error)}; if it is for the numbers in {' or '.join(doubtful)}, "
            "give others with --feeds FILE.npz (feeds= in Python), else mend the network"
        ) from error
    return dict(zip(names, answers, strict=True))


def _run(session: Any, names: Sequence[str], feed: dict[str, Any], options: Any) -> Any:
    try:
        return session.run(names, feed, options)
    finally:
        take_failure()  # of a registered operator, in place of what came of it


def _reason(error: Exception) -> str:
    """What ONNX Runtime says, without the places in its source."""
    said = _PLACES.sub("", first_line(error))
    return f"{said}; give its function with register_operator" if "is not a registered function/op" in said else said


def open_with_outputs(model: onnx.ModelProto, source: Path, names: Sequence[str], optimise: str = "all") -> Any:
    """Open a network with other tensors as its outputs; `source` is its file, for external data and for messages."""
    outputs, folder = list(model.graph.output), source.resolve().parent
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    try:
        return open_session(model, f"show the tensors inside {source}", folder=folder, optimise=optimise)
    finally:  # a copy would take the memory of the weights once more
        del model.graph.output[:]
        model.graph.output.extend(outputs)


def weight_types(model: onnx.ModelProto) -> frozenset[int]:
    """Return the ONNX types of a network's weights."""
    return frozenset(tensor.data_type for tensor in model.graph.initializer)


def providers(device: str, *, tf32: bool = False) -> list[Any]:
    """Return ONNX Runtime's providers for a device.

    Float32 means float32, so TF32 is off on a GPU unless it is asked for. With it off, ONNX Runtime 1.31 keeps float16
    off the tensor cores too (20.6 instead of 2.6 ms for FCN-8s on an H200), so a network with float16 weights asks.
    """
    cpu = "CPUExecutionProvider"
    return [("CUDAExecutionProvider", {"use_tf32": str(int(tf32))}), cpu] if device == "cuda" else [cpu]


def prepare_cuda(runtime: Any) -> str:
    """Load the CUDA libraries that other packages brought, and return the name of the GPU for `RunnerInfo`.

    A build for the CPU is a BackendUnavailableError; no NVIDIA driver or GPU is a DriverError.
    """
    spec = importlib.util.find_spec("nvidia")  # the packages that PyTorch or JAX brought, maybe in another folder
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it misses; the session then says it in an error
        for library in sorted(library for folder in folders for library in Path(folder).glob("cu*/lib")):
            runtime.preload_dlls(directory=str(library))
        runtime.preload_dlls()
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        raise BackendUnavailableError(
            f"ONNX Runtime {runtime.__version__} is the build for the CPU; run: pip uninstall -y onnxruntime, then in "
            "the project's folder: pip install -e '.[cuda]'"
        )
    return require_gpu().name
