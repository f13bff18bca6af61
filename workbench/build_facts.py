"""What the builder made of a network, read from its verbose log: kernels with the ONNX nodes they do, and memory.

TensorRT tells this nowhere else without a GPU. The words of a log may change from version to version, so whoever
reads these facts must live with an empty answer.
"""

import re
from collections.abc import Iterable
from typing import Any

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
