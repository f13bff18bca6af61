"""Say in operators that tf2onnx knows what Keras 3 says in others; each rewrite changes a GraphDef in place."""

from typing import Any

from workbench.environment import load_tensorflow

_COMPILED = "_XlaMustCompile"


def forget_compilation(graph_def: Any) -> None:
    """Make functions that Keras has compiled with XLA, such as its grouped convolutions, ordinary functions.

    TensorFlow never takes such a function apart, and tf2onnx cannot read it.
    """
    for node in graph_def.node:
        node.attr.pop(_COMPILED, None)
    for function in graph_def.library.function:
        function.attr.pop(_COMPILED, None)
        for node in function.node_def:
            node.attr.pop(_COMPILED, None)


def replace_erfc(graph_def: Any) -> int:
    """Write Erfc(x), which the exact GELU of Keras holds and ONNX does not have, as 1 - Erf(x).

    Returns:
        How many nodes were replaced.
    """
    tf = load_tensorflow()
    found = [node for node in graph_def.node if node.op == "Erfc"]
    for node in found:
        dtype = node.attr["T"].type
        one = graph_def.node.add(name=f"{node.name}/one", op="Const")
        one.attr["dtype"].type = dtype
        one.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1, dtype))
        erf = graph_def.node.add(name=f"{node.name}/erf", op="Erf", input=node.input)
        erf.attr["T"].type = dtype
        node.op = "Sub"
        node.input[:] = [one.name, erf.name]
    return len(found)


def fill_constants(graph_def: Any, contents: dict[str, bytes]) -> None:
    """Put contents into constants that were emptied, by node name, in place."""
    for node in graph_def.node:
        if node.name in contents:
            node.attr["value"].tensor.tensor_content = contents[node.name]
