"""TensorRT's parser, run as a process of its own: `python -m workbench.engine.parser_child REQUEST.json`.

The request names the ONNX file and the flavour. Standard output carries one JSON object a line: what TensorRT logs,
and at last `done` or `error`.
"""

import json
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import EngineBuildError, WorkbenchError
from workbench.engine.child import Send, count_layers, end_with_the_parent, open_channel, without_noise
from workbench.engine.tensorrt_api import make_logger, open_flavour

if TYPE_CHECKING:
    import trt_types as trt  # the types of one flavour, from typings/; see tests/test_tensorrt_stubs.py


def main(request_path: str) -> int:
    """Parse what the request names and report on standard output."""
    send = open_channel()
    threading.Thread(target=end_with_the_parent, daemon=True).start()
    try:
        facts = parse(json.loads(Path(request_path).read_text(encoding="utf-8")), send)
    except WorkbenchError as error:
        send(event="error", kind=type(error).__name__, text=str(error))
        return 1
    send(event="done", facts=facts)
    return 0


def parse(request: Mapping[str, Any], send: Send) -> dict[str, Any]:
    """Let the parser read a network.

    Args:
        request: onnx_path, flavour.
        send: takes one event.
    Returns:
        `parsed`; `errors`, each with code, node, name, operator, what was `said`, and the nodes it is `inside` of;
        `layers`, how many of each kind the parser made; `outputs`, how many; `types`, those of inputs and outputs.
    Raises:
        EngineBuildError: the builder does not start.
    """
    flavour = open_flavour(request["flavour"], for_building=True)
    trt = flavour.module
    # Each of these is used by the next and must stay alive: a temporary network crashes the process.
    logger = make_logger(flavour, lambda severity, text: send(event="log", severity=severity, text=text))
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
    sys.exit(main(sys.argv[1]))
