"""What the builder made of a network, read from its verbose log: kernels with the ONNX nodes they do, and memory.

TensorRT tells this nowhere else without a GPU. The words of a log may change from version to version, so whoever
reads these facts must live with an empty answer.
"""

import contextlib
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import EngineBuildError, OutputError, WorkbenchError
from workbench.core.process import send, serve
from workbench.engine.layer_types import check_types, count_types, read_types
from workbench.engine.tensorrt_api import SOURCE_POSITION, Flavour, make_logger, open_flavour

if TYPE_CHECKING:
    import trt_types as trt  # the types of one flavour, from typings/; see tests/test_tensorrt_stubs.py

_KERNEL = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]+), (?P<rest>.*)$")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_MEMORY = re.compile(r"^Total (Activation|Weights) Memory: (\d+) bytes")


def read_kernels(text: str) -> list[dict[str, Any]]:
    r"""Read the builder's list of compiled layers.

    Args:
        text: the log entry that starts with `Layers:`.
    Returns:
        For each kernel that does some of the network's nodes: its `name`, its `kind`, and the `nodes`.

    >>> read_kernels("Layers:\nName: a, LayerType: conv, Metadata: [ONNX Layer: c][ONNX Layer: r]")
    [{'name': 'a', 'kind': 'conv', 'nodes': ['c', 'r']}]
    """
    found = (_KERNEL.match(line) for line in text.splitlines())
    kernels = [
        {"name": match["name"], "kind": match["kind"], "nodes": list(dict.fromkeys(_NODE.findall(match["rest"])))}
        for match in found
        if match is not None
    ]
    return [kernel for kernel in kernels if kernel["nodes"]]


def read_memory(lines: Iterable[str]) -> dict[str, int]:
    """Read how many bytes the engine needs on the GPU.

    Args:
        lines: the builder's log.
    Returns:
        `activation_bytes` (at the largest shapes of the profile) and `weights_bytes`, as far as the log has them.

    >>> read_memory(["Total Activation Memory: 512 bytes"])
    {'activation_bytes': 512}
    """
    found = (_MEMORY.match(line) for line in lines)
    return {f"{match[1].lower()}_bytes": int(match[2]) for match in found if match is not None}


# What to do about an error: words that its text must all have, and the help.
KNOWN_FIXES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Antialiasing",), "TensorRT does not antialias: export the Resize without it"),
    (("(Resize)", "align_corners"), "TensorRT resizes by half_pixel, pytorch_half_pixel, asymmetric or align_corners"),
    (("(Resize)",), "convert with workbench convert, which writes Resize in a form TensorRT takes"),
    (("deconv", "bf16"), "TensorRT has no bfloat16 ConvTranspose: keep that layer in float32 or float16"),
    (("(Transpose)", "UInt8"), "TensorRT transposes no uint8: put the Cast to float before the Transpose"),
    (("UInt8",), "TensorRT computes nothing in uint8: Cast right after the input, and to uint8 only at the output"),
    (("Dims::MAX_DIMS",), "TensorRT takes 8 axes at most: merge some with a Reshape"),
    (("convertOnnxDims",), "TensorRT takes 8 axes at most: merge some with a Reshape"),
    (("raining",), "export the network for inference: model.eval() in PyTorch, training=False in Keras"),
    (("(MaxPool)", "outputs"), "TensorRT gives no indices of a MaxPool: export it without them"),
    (("(MaxPool)", "dilations"), "TensorRT pools without dilation only: replace the layer"),
    (("zero point",), "quantize symmetrically: int8 with zero points of 0"),
    (("(NonZero)",), "the size of its result depends on values: choose elements with Where or TopK instead"),
    (("Sequence)",), "TensorRT has no lists of tensors: use Split and Concat instead"),
    (("(SequenceAt)",), "TensorRT has no lists of tensors: use Split and Concat instead"),
    (("(SequenceConstruct)",), "TensorRT has no lists of tensors: use Split and Concat instead"),
    (("Integer)",), "quantize with pairs of QuantizeLinear and DequantizeLinear instead"),
    (("(DynamicQuantizeLinear)",), "quantize with pairs of QuantizeLinear and DequantizeLinear instead"),
    (("input was not registered",), "give the Loop all its inputs, its condition too"),
    (("Plugin not found",), "TensorRT does not know this operator: replace the layer, or write it as a plugin"),
    (("plugin registry",), "this TensorRT does not have this operator: replace the layer, or write it as a plugin"),
    (("convertDtype",), "TensorRT has no text, float64 or complex tensors: convert them outside the network"),
    (("UNSUPPORTED_NODE",), "TensorRT does not support this operator so: replace the layer, or write it as a plugin"),
    (("libnvinfer_lean",), "this flavour builds no version-compatible plans: leave that option out"),
    (("OutOfMemory",), "allow more memory with workspace_bytes (--workspace-mib), or make the largest batch smaller"),
    (("no optimization profile",), "an input is used as a shape: make it a constant of the network"),
)
# The part of a message that only tells that this machine has no driver.
_NO_DRIVER = re.compile(r"\s*\[checkMacros\.cpp::catchCudaError::\d+\].*?\(cudaError 35: [^)]*\)\)")


def carry_out(order: dict[str, Any]) -> dict[str, Any]:
    """Build an engine, or only parse the network where the order names no plan."""
    return build(order) if "plan_path" in order else ask(order)


def build(request: Mapping[str, Any]) -> dict[str, Any]:
    """Parse and build.

    Args:
        request: onnx_path, plan_path, flavour, profiles, targets, workspace_bytes, version_compatible, timing_cache,
            precision, kept, whole.
    Returns:
        `layers` (how many of each kind the parser made), `types` (what these compute in), `kernels` and `memory`
        (what the builder made of them).
    Raises:
        EngineBuildError: the parser or the builder refused, or the layers are not in the precision asked for.
    """
    flavour = open_flavour(request["flavour"], for_building=True)
    trt = flavour.module
    # Each of these is used by the next and must stay alive: a temporary network crashes the process.
    verbose: list[str] = []
    logger = make_logger(flavour, _send_log, verbose.append)
    builder = trt.Builder(logger)
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)  # the number differs between versions
    network = builder.create_network(strongly_typed)
    config = builder.create_builder_config()
    if network is None or config is None:
        raise EngineBuildError(f"{flavour.title} cannot start a build: {logger.reasons() or 'it gives no reason'}")
    parser = trt.OnnxParser(network, logger)
    parse(parser, network, request["onnx_path"])
    types = read_types(network)
    check_types(types, request["precision"], request["kept"], whole=request["whole"])
    configure(flavour, config, request)
    add_profiles(builder, config, request["profiles"], logger)
    cache_path = request.get("timing_cache", "")
    timing_cache = load_timing_cache(config, cache_path) if cache_path else None
    config.progress_monitor = monitor = _make_monitor(flavour)
    layers = count_layers(network)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = logger.reasons() or "it gives no reason"
        raise EngineBuildError(f"{flavour.title} cannot build this network: {with_fix(reason)}")
    try:
        Path(request["plan_path"]).write_bytes(plan)
    except OSError as error:
        raise OutputError(f"cannot write the plan: {error.strerror or error}") from error
    if timing_cache is not None:
        save_timing_cache(config, cache_path)
    del monitor
    kernels = [kernel for text in verbose if text.startswith("Layers:") for kernel in read_kernels(text)]
    memory = read_memory([*verbose, *(text for _, text in logger.lines)])
    return {"layers": layers, "types": count_types(types), "kernels": kernels, "memory": memory}


def parse(parser: "trt.OnnxParser", network: "trt.INetworkDefinition", onnx_path: str) -> None:
    """Read the ONNX file into the network.

    Raises:
        EngineBuildError: each parser error with its node, operator and reason; or a network without layers or outputs.
    """
    parsed = parser.parse_from_file(onnx_path)
    errors = [parser_error_text(parser.get_error(index)) for index in range(parser.num_errors)]
    if errors or not parsed:
        text = "; ".join(dict.fromkeys(errors)) or "the parser gives no reason"
        raise EngineBuildError(f"TensorRT cannot parse {Path(onnx_path).name}: {with_fix(text)}")
    # The parser says yes to an empty file, and a network without layers is falsy: count instead.
    if network.num_layers == 0 or network.num_outputs == 0:
        raise EngineBuildError(
            f"TensorRT found {network.num_layers} layers and {network.num_outputs} outputs in {Path(onnx_path).name}, "
            "expected at least one of each; export the model again"
        )


def count_layers(network: "trt.INetworkDefinition") -> dict[str, int]:
    """Count the parsed layers of each kind, the most frequent kind first."""
    found = (network.get_layer(index) for index in range(network.num_layers))
    return dict(Counter(layer.type.name for layer in found if layer is not None).most_common())


def configure(flavour: Flavour, config: "trt.IBuilderConfig", request: Mapping[str, Any]) -> None:
    """Set memory, TF32 and targets, and have the kernels listed in the log."""
    trt = flavour.module
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_bytes"])
    if "TF32" in trt.BuilderFlag.__members__:
        # TensorRT's default: 10 bits of mantissa under the name of float32.
        switch = config.set_flag if request["precision"] == "tf32" else config.clear_flag
        switch(trt.BuilderFlag.TF32)
    if request.get("version_compatible"):
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    targets = request["targets"]
    if targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            if not config.set_compute_capability(trt.ComputeCapability.__members__[target.upper()], index):
                raise EngineBuildError(f"{flavour.title} does not take the target {target}")


def add_profiles(
    builder: "trt.Builder", config: "trt.IBuilderConfig", profiles: list[dict[str, Any]], logger: Any
) -> None:
    """Add the optimization profiles, which were checked before.

    Raises:
        EngineBuildError: TensorRT does not take one.
    """
    for shapes in profiles:
        if not shapes:
            continue
        profile = builder.create_optimization_profile()
        for name, (smallest, usual, largest) in shapes.items():
            profile.set_shape(name, smallest, usual, largest)  # says nothing when it does not like them
        if not profile or config.add_optimization_profile(profile) < 0:
            raise EngineBuildError(f"TensorRT does not take the profile {shapes}: {logger.reasons() or 'no reason'}")


def load_timing_cache(config: "trt.IBuilderConfig", path: str) -> "trt.ITimingCache | None":
    """Give the builder the kernel timings of earlier builds, where this flavour has such a cache.

    Returns:
        The cache in use, or None.
    """
    if not hasattr(config, "create_timing_cache"):
        return None
    with contextlib.suppress(OSError):
        cache = config.create_timing_cache(Path(path).read_bytes())
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    cache = config.create_timing_cache(b"")  # none yet, or one of another GPU or version
    return cache if cache is not None and config.set_timing_cache(cache, False) else None


def save_timing_cache(config: "trt.IBuilderConfig", path: str) -> None:
    """Keep the kernel timings for later builds; a failure costs time only, so it is not an error."""
    from workbench.core.files import atomic_path

    cache = config.get_timing_cache()
    data = None if cache is None else cache.serialize()
    if data is not None:
        with contextlib.suppress(WorkbenchError, OSError), atomic_path(path) as temporary:
            temporary.write_bytes(data)


def with_fix(text: str) -> str:
    """Append what to do about an error, where it is known.

    >>> with_fix("node d (Det): it says no [UNSUPPORTED_NODE]")[-42:]
    'replace the layer, or write it as a plugin'
    """
    text = without_noise(text)
    help_text = known_fix(text)
    return f"{text}; what helps: {help_text}" if help_text else text


def known_fix(text: str) -> str:
    """What to do about an error; an empty text where that is not known."""
    return next((fix for words, fix in KNOWN_FIXES if all(word in text for word in words)), "")


def without_noise(text: str) -> str:
    """Cut places in TensorRT's own source, and what it says about a missing driver, out of an error."""
    return SOURCE_POSITION.sub("", _NO_DRIVER.sub("", text))


def parser_error_text(error: "trt.ParserError") -> str:
    """Node, operator, reason and code of one parser error."""
    place = f"node {error.node_name() or error.node()} ({error.node_operator()}): " if error.node_operator() else ""
    reason = " ".join(error.desc().split())
    return f"{place}{'no reason given' if reason == 'false' else reason} [{error.code().name}]"


def _send_log(severity: str, text: str) -> None:
    send("log", severity=severity, text=text)


def _make_monitor(flavour: Flavour) -> "trt.IProgressMonitor":
    base: Any = flavour.module.IProgressMonitor

    class Monitor(base):
        """Reports phases and steps; an exception in here would cancel the build without a word."""

        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            send("start", phase=phase_name, parent=parent_phase or "", steps=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            send("step", phase=phase_name, step=step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            send("finish", phase=phase_name)

    return Monitor()


def ask(request: Mapping[str, Any]) -> dict[str, Any]:
    """Let the parser read a network.

    Args:
        request: onnx_path, flavour.
    Returns:
        `parsed`; `errors`, each with code, node, name, operator, what was `said`, and the nodes it is `inside` of;
        `layers`, how many of each kind the parser made; `outputs`, how many; `types`, those of inputs and outputs.
    Raises:
        EngineBuildError: the builder does not start.
    """
    flavour = open_flavour(request["flavour"], for_building=True)
    trt = flavour.module
    # Each of these is used by the next and must stay alive: a temporary network crashes the process.
    logger = make_logger(flavour, _send_log)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    if network is None:
        raise EngineBuildError(f"{flavour.title} cannot start: {logger.reasons() or 'it gives no reason'}")
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(request["onnx_path"])
    errors = [_error(parser.get_error(index)) for index in range(parser.num_errors)]
    return {
        "parsed": bool(parsed) and not errors,
        "errors": errors,
        "layers": count_layers(network),
        "outputs": network.num_outputs,
        "types": _types(network),
    }


def _error(error: "trt.ParserError") -> dict[str, Any]:
    said = " ".join(without_noise(error.desc()).split())
    return {
        "code": error.code().name,
        "node": error.node(),
        "name": error.node_name(),
        "operator": error.node_operator(),
        "said": "no reason given" if said == "false" else said,
        "inside": list(error.local_function_stack()) if error.local_function_stack_size() else [],
    }


def _types(network: "trt.INetworkDefinition") -> dict[str, str]:
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    return {tensor.name: tensor.dtype.name for tensor in tensors if tensor is not None}


if __name__ == "__main__":
    sys.exit(serve(carry_out))
