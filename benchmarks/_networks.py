"""ResNet-50 and FCN-8s as ONNX files with random weights, made without Keras: for measuring time, not answers."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """Collects nodes and weights of a channel-first network."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, kind: str, inputs: list[str], **attributes: object) -> str:
        """Add a node and return the name of its output."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def weight(self, *shape: int) -> str:
        """Random weights that keep the size of what passes through (He's initialisation)."""
        name = f"weight_{len(self.weights)}"
        fan_in = int(np.prod(shape[1:])) or 1
        values = self.random.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan_in))
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def conv(self, x: str, inputs: int, outputs: int, size: int, stride: int = 1, relu: bool = True) -> str:
        """Convolution with bias, padded to keep the size, and ReLU."""
        weights = [self.weight(outputs, inputs, size, size), self.weight(outputs)]
        y = self.add("Conv", [x, *weights], pads=[size // 2] * 4, strides=[stride, stride])
        return self.add("Relu", [y]) if relu else y

    def pool(self, x: str, size: int, stride: int, pad: int = 0) -> str:
        """Maximum over a window."""
        return self.add("MaxPool", [x], kernel_shape=[size, size], strides=[stride, stride], pads=[pad] * 4)

    def upsample(self, x: str, channels: int, factor: int) -> str:
        """Transposed convolution that enlarges by a whole factor."""
        pad = factor // 2
        weights = self.weight(channels, channels, 2 * factor, 2 * factor)
        return self.add("ConvTranspose", [x, weights], strides=[factor, factor], pads=[pad] * 4)

    def save(self, path: Path, output: str, size: tuple[int, int], shape: tuple[int | str, ...]) -> Path:
        """Check and write it: `input` (batch, 3, height, width) to `output`."""
        self.nodes.append(helper.make_node("Identity", [output], ["output"]))
        inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ("batch", 3, *size))]
        outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)]
        graph = helper.make_graph(self.nodes, path.stem, inputs, outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path


def save_resnet50(path: Path, size: int = 224) -> Path:
    """ResNet-50 with its batch normalisations folded: (batch, 3, 224, 224) to (batch, 1000)."""
    graph = Graph()
    x, channels = graph.pool(graph.conv("input", 3, 64, 7, 2), 3, 2, 1), 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(blocks):
            stride = 2 if block == 0 and stage else 1
            y = graph.conv(graph.conv(x, channels, width, 1), width, width, 3, stride)
            y = graph.conv(y, width, 4 * width, 1, relu=False)
            shortcut = x if block else graph.conv(x, channels, 4 * width, 1, stride, relu=False)
            x, channels = graph.add("Relu", [graph.add("Add", [y, shortcut])]), 4 * width
    pooled = graph.add("Flatten", [graph.add("GlobalAveragePool", [x])])
    logits = graph.add("Gemm", [pooled, graph.weight(channels, 1000), graph.weight(1000)])
    return graph.save(path, logits, (size, size), ("batch", 1000))


def save_fcn8s(path: Path, size: tuple[int, int] = (512, 1024), classes: int = 20) -> Path:
    """FCN-8s on VGG16 at full width: (batch, 3, 512, 1024) to (batch, 20, 512, 1024)."""
    graph = Graph()
    x, channels, pooled = "input", 3, []
    for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            x, channels = graph.conv(x, channels, width, 3), width
        x = graph.pool(x, 2, 2)
        pooled.append((x, width))
    x = graph.conv(graph.conv(x, 512, 4096, 7), 4096, 4096, 1)
    scores = graph.conv(x, 4096, classes, 1, relu=False)
    for finer, width in (pooled[3], pooled[2]):
        skip = graph.conv(finer, width, classes, 1, relu=False)
        scores = graph.add("Add", [graph.upsample(scores, classes, 2), skip])
    scores = graph.upsample(scores, classes, 8)
    return graph.save(path, scores, size, ("batch", classes, *size))
