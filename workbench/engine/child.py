"""Native work in a process of its own: TensorRT's builder and its parser, for `workbench.engine.process`.

What the builder made of a network, kernels and memory, is read from its verbose log: TensorRT tells it nowhere else
without a GPU. The words of a log may change from version to version, so whoever reads these facts must live with an
empty answer.
"""

import contextlib
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import EngineBuildError, OutputError, WorkbenchError
from workbench.core.files import atomic_path
from workbench.core.process import send, serve
from workbench.engine.custom import check_used, register_plugins
from workbench.engine.layer_types import check_types, count_types, node_of, read_types
from workbench.engine.tensorrt_api import SOURCE_POSITION, Flavour, make_logger, open_flavour

if TYPE_CHECKING:
    import trt_types as trt  # the types of one flavour, from typings/; see tests/engine/test_tensorrt_stubs.py

_KERNEL = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]+), (?P<rest>.*)$")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_MEMORY = re.compile(r"^Total (Activation|Weights) Memory: (\d+) bytes")
# The part of a message that only tells that this machine has no driver.
_NO_DRIVER = re.compile(r"\s*\[checkMacros\.cpp::catchCudaError::\d+\].*?\(cudaError 35: [^)]*\)\)")
# What to do about an error: what is found in its text, and the help; the first that is found.
_KNOWN_FIXES = (
    (r"Antialiasing", "TensorRT does not antialias: export the Resize without it"),
    (r"\(Resize\).*align_corners", "TensorRT resizes by half_pixel, pytorch_half_pixel, asymmetric or align_corners"),
    (r"\(Resize\)", "convert with workbench convert, which writes Resize in a form TensorRT takes"),
    (r"deconv.*bf16|bf16.*deconv", "TensorRT has no bfloat16 ConvTranspose: keep that layer in float32 or float16"),
    (r"\(Transpose\).*UInt8", "TensorRT transposes no uint8: put the Cast to float before the Transpose"),
    (r"UInt8", "TensorRT computes nothing in uint8: Cast right after the input, and to uint8 only at the output"),
    (r"Dims::MAX_DIMS|convertOnnxDims", "TensorRT takes 8 axes at most: merge some with a Reshape"),
    (r"raining", "export the network for inference: model.eval() in PyTorch, training=False in Keras"),
    (r"\(MaxPool\).*outputs", "TensorRT gives no indices of a MaxPool: export it without them"),
    (r"\(MaxPool\).*dilations", "TensorRT pools without dilation only: replace the layer"),
    (r"zero point", "quantize symmetrically: int8 with zero points of 0"),
    (r"\(NonZero\)", "the size of its result depends on values: choose elements with Where or TopK instead"),
    (r"Sequence\)|\(Sequence(At|Construct)\)", "TensorRT has no lists of tensors: use Split and Concat instead"),
    (r"Integer\)|\(DynamicQuantizeLinear\)", "quantize with pairs of QuantizeLinear and DequantizeLinear instead"),
    (r"input was not registered", "give the Loop all its inputs, its condition too"),
    (r"Plugin not found", "give it a function with mark_custom_layer, or plugins=[...]: write it as a plugin"),
    (r"plugin registry", "this TensorRT does not have this operator: replace the layer, or write it as a plugin"),
    (r"convertDtype", "TensorRT has no text, float64 or complex tensors: convert them outside the network"),
    (r"UNSUPPORTED_NODE", "TensorRT does not support this operator so: replace the layer, or write it as a plugin"),
    (r"libnvinfer_lean", "this flavour builds no version-compatible plans: leave that option out"),
    (r"OutOfMemory", "allow more memory with workspace_bytes (--workspace-mib), or make the largest batch smaller"),
    (r"no optimization profile", "an input is used as a shape: make it a constant of the network"),
)


def carry_out(order: Mapping[str, Any]) -> dict[str, Any]:
    """Build an engine, or only ask the parser where the order names no plan.

    The answer has `layers` (of each kind, as parsed), their `types`, and `kernels` and `memory` (as built). See `ask`.
    """
    flavour = open_flavour(order["flavour"], for_building=True)
    send("open", title=flavour.title)
    trt = flavour.module
    verbose: list[str] = []
    # Each of these is used by the next and must stay alive: a temporary network crashes the process.
    logger = make_logger(flavour, lambda severity, text: send("log", severity=severity, text=text), verbose.append)
    builder = trt.Builder(logger)
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)  # the number differs between versions
    network = builder.create_network(strongly_typed)
    config = builder.create_builder_config()
    if network is None or config is None:
        work = "cannot start a build" if "plan_path" in order else "cannot start"
        raise EngineBuildError(f"{flavour.title} {work}: {logger.reasons() or 'it gives no reason'}")
    parser = trt.OnnxParser(network, logger)
    creators = register_plugins(trt, trt.get_plugin_registry(), order["plugins"], logger)
    if creators:  # else the parser takes the function of a node, and no plugin, without a word
        parser.set_flag(trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)
    answer = ask(parser, network, order["onnx_path"], order["custom"])
    if "plan_path" in order:
        refuse(answer, Path(order["onnx_path"]).name)
    if answer["parsed"]:
        check_used(creators, order["custom"], answer["plugins"])
    if "plan_path" not in order:
        return answer
    types = build(flavour, logger, builder, network, config, order)
    kernels = [kernel for text in verbose if text.startswith("Layers:") for kernel in read_kernels(text)]
    memory = read_memory([*verbose, *(text for _, text in logger.lines)])
    facts = {"layers": answer["layers"], "plugins": answer["plugins"]}
    return {**facts, "types": types, "kernels": kernels, "memory": memory}


def ask(
    parser: "trt.OnnxParser", network: "trt.INetworkDefinition", onnx_path: str, custom: Mapping[str, str]
) -> dict[str, Any]:
    """Let the parser read a file into the network: whether it `parsed`, how many `layers` of each kind and `outputs`.

    Also the `types` of inputs and outputs, the operator of each node of `custom` that became one of the `plugins`, and
    `errors`: code, node, name, operator, what was `said`, `inside` of what.
    """
    parsed = parser.parse_from_file(onnx_path)
    errors = [_read_error(parser.get_error(index)) for index in range(parser.num_errors)]
    layers = [layer for layer in map(network.get_layer, range(network.num_layers)) if layer is not None]
    nodes = [node_of(layer) for layer in layers if layer.type.name.startswith("PLUGIN")]
    nodes = [node.removeprefix("node_of_") for node in nodes]  # TensorRT's name of a nameless node
    ends = [network.get_input(index) for index in range(network.num_inputs)]
    ends += [network.get_output(index) for index in range(network.num_outputs)]
    return {
        "parsed": bool(parsed) and not errors,
        "errors": errors,
        "layers": dict(Counter(layer.type.name for layer in layers).most_common()),
        "plugins": {node: custom[node] for node in nodes if node in custom},
        "outputs": network.num_outputs,
        "types": {tensor.name: tensor.dtype.name for tensor in ends if tensor is not None},
    }


def refuse(answer: Mapping[str, Any], name: str) -> None:
    """Refuse a file with every error of the parser, or for want of layers or outputs."""
    if not answer["parsed"]:
        text = "; ".join(dict.fromkeys(error["text"] for error in answer["errors"])) or "the parser gives no reason"
        raise EngineBuildError(f"TensorRT cannot parse {name}: {with_fix(text)}")
    layers = sum(answer["layers"].values())
    if layers == 0 or answer["outputs"] == 0:  # the parser says yes to an empty file
        raise EngineBuildError(
            f"TensorRT found {layers} layers and {answer['outputs']} outputs in {name}, expected at least one of each; "
            "export the model again"
        )


def _read_error(error: "trt.ParserError") -> dict[str, Any]:
    said = " ".join(without_noise(error.desc()).split())
    said = "no reason given" if said == "false" else said
    code, node, name, operator = error.code().name, error.node(), error.node_name(), error.node_operator()
    text = f"{f'node {name or node} ({operator}): ' if operator else ''}{said} [{code}]"
    inside = list(error.local_function_stack()) if error.local_function_stack_size() else []
    facts = {"text": text, "code": code, "node": node, "name": name, "operator": operator}
    return {**facts, "said": said, "inside": inside}


def build(
    flavour: Flavour,
    logger: Any,
    builder: "trt.Builder",
    network: "trt.INetworkDefinition",
    config: "trt.IBuilderConfig",
    order: Mapping[str, Any],
) -> dict[str, dict[str, int]]:
    """Check the types of a parsed network, build its engine and write the plan; return the types."""
    types = read_types(network)
    check_types(types, order["precision"], order["kept"], whole=order["whole"])
    configure(flavour, config, order)
    add_profiles(builder, config, order["profiles"], logger)
    cache_path = order.get("timing_cache", "")
    timing_cache = load_timing_cache(config, cache_path) if cache_path else None
    config.progress_monitor = monitor = _make_monitor(flavour)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = logger.reasons() or "it gives no reason"
        raise EngineBuildError(f"{flavour.title} cannot build this network: {with_fix(reason)}")
    try:
        Path(order["plan_path"]).write_bytes(plan)
    except OSError as error:
        raise OutputError(f"cannot write the plan: {error.strerror or error}") from error
    if timing_cache is not None:
        save_timing_cache(config, cache_path)
    del monitor
    return count_types(types)


def configure(flavour: Flavour, config: "trt.IBuilderConfig", order: Mapping[str, Any]) -> None:
    """Set memory, TF32 and targets, and have the kernels listed in the log."""
    trt = flavour.module
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, order["workspace_bytes"])
    if "TF32" in trt.BuilderFlag.__members__:
        # TensorRT's default: 10 bits of mantissa under the name of float32.
        switch = config.set_flag if order["precision"] == "tf32" else config.clear_flag
        switch(trt.BuilderFlag.TF32)
    if order.get("version_compatible"):
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if order.get("embed_plugins"):
        config.plugins_to_serialize = [plugin["path"] for plugin in order["plugins"]]
    if order["targets"]:
        config.num_compute_capabilities = len(order["targets"])
        for index, target in enumerate(order["targets"]):
            if not config.set_compute_capability(trt.ComputeCapability.__members__[target.upper()], index):
                raise EngineBuildError(f"{flavour.title} does not take the target {target}")


def add_profiles(
    builder: "trt.Builder", config: "trt.IBuilderConfig", profiles: list[dict[str, Any]], logger: Any
) -> None:
    """Add the optimization profiles, which were checked before."""
    for shapes in filter(None, profiles):
        profile = builder.create_optimization_profile()
        for name, (smallest, usual, largest) in shapes.items():
            profile.set_shape(name, smallest, usual, largest)  # says nothing when it does not like them
        if not profile or config.add_optimization_profile(profile) < 0:
            raise EngineBuildError(f"TensorRT does not take the profile {shapes}: {logger.reasons() or 'no reason'}")


def load_timing_cache(config: "trt.IBuilderConfig", path: str) -> "trt.ITimingCache | None":
    """Give the builder the kernel timings of earlier builds; None where this flavour has no such cache."""
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
    cache = config.get_timing_cache()
    data = None if cache is None else cache.serialize()
    if data is not None:
        with contextlib.suppress(WorkbenchError, OSError), atomic_path(path, replace=True) as temporary:
            temporary.write_bytes(data)


def with_fix(text: str) -> str:
    """Append what to do about an error, where it is known."""
    text = without_noise(text)
    help_text = known_fix(text)
    return f"{text}; what helps: {help_text}" if help_text else text


def known_fix(text: str) -> str:
    """What to do about an error; an empty text where that is not known."""
    return next((fix for found, fix in _KNOWN_FIXES if re.search(found, text, re.DOTALL)), "")


def without_noise(text: str) -> str:
    """Cut places in TensorRT's own source, and what it says about a missing driver, out of an error."""
    return SOURCE_POSITION.sub("", _NO_DRIVER.sub("", text))


def _make_monitor(flavour: Flavour) -> "trt.IProgressMonitor":
    base: Any = flavour.module.IProgressMonitor

    class Monitor(base):
        """Reports phases and steps; an exception in here would cancel the build without a word."""

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            send("start", phase=phase_name, parent=parent_phase or "", steps=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            send("step", phase=phase_name, step=step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            send("finish", phase=phase_name)

    return Monitor()


def read_kernels(text: str) -> list[dict[str, Any]]:
    r"""The kernels that do some of the network's nodes: name, kind and nodes, from the log entry `Layers:`.

    >>> read_kernels("Layers:\nName: a, LayerType: conv, Metadata: [ONNX Layer: c][ONNX Layer: r]")
    [{'name': 'a', 'kind': 'conv', 'nodes': ['c', 'r']}]
    """
    kernels = [
        {"name": match["name"], "kind": match["kind"], "nodes": list(dict.fromkeys(_NODE.findall(match["rest"])))}
        for match in map(_KERNEL.match, text.splitlines())
        if match is not None
    ]
    return [kernel for kernel in kernels if kernel["nodes"]]


def read_memory(lines: Iterable[str]) -> dict[str, int]:
    """The bytes that the engine needs on the GPU, of activations at the largest shapes and of weights.

    >>> read_memory(["Total Activation Memory: 512 bytes"])
    {'activation_bytes': 512}
    """
    found = map(_MEMORY.match, lines)
    return {f"{match[1].lower()}_bytes": int(match[2]) for match in found if match is not None}


if __name__ == "__main__":
    sys.exit(serve(carry_out))
