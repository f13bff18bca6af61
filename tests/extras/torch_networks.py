"""Small PyTorch networks, one of each kind that people bring."""

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two convolutions and a shortcut, as in ResNet-18."""

    def __init__(self, inside, outside, stride=1):
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outside), nn.BatchNorm2d(outside)])
        self.short = nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x):
        y = functional.relu(self.norms[0](self.first(x)))
        return functional.relu(self.norms[1](self.second(y)) + self.short(x))


class Residual(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), Block(width, width), Block(width, 2 * width, 2))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x):
        return self.head(self.drop(self.body(x).mean((2, 3))))


class UNet(nn.Module):
    """Both ways to grow a picture: nearest by a factor, bilinear to the size of another tensor."""

    def __init__(self, width=8):
        super().__init__()
        self.down = nn.ModuleList([Block(3, width), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2)])
        self.up = nn.ModuleList([Block(6 * width, 2 * width), Block(3 * width, width)])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x):
        large = self.down[0](x)
        middle = self.down[1](large)
        y = functional.interpolate(self.down[2](middle), scale_factor=2, mode="nearest")
        y = self.up[0](torch.cat([y, middle], 1))
        y = functional.interpolate(y, size=large.shape[2:], mode="bilinear", align_corners=False)
        return self.head(self.up[1](torch.cat([y, large], 1)))


class Transformer(nn.Module):
    def __init__(self, width=32, length=16):
        super().__init__()
        self.embed = nn.Linear(12, width)
        self.place = nn.Parameter(torch.randn(1, length, width) * 0.1)
        layer = nn.TransformerEncoderLayer(width, 4, 64, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x) + self.place).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 12, 2, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class ManyEnds(nn.Module):
    """A picture, numbers and words in; a dict out, whose keys are not in alphabetical order."""

    def __init__(self):
        super().__init__()
        self.picture, self.facts, self.words = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(4, 8), nn.Embedding(11, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, picture, facts, words):
        seen = functional.relu(self.picture(picture)).mean((2, 3))
        features = seen + self.facts(facts) + self.words(words).mean(1)
        return {"logits": self.head(features), "features": features}


class Bottleneck(nn.Module):
    def __init__(self, inside, middle, stride):
        super().__init__()
        layers = []
        for sizes in ((inside, middle, 1, 1, 0), (middle, middle, 3, stride, 1), (middle, 4 * middle, 1, 1, 0)):
            layers += [nn.Conv2d(*sizes, bias=False), nn.BatchNorm2d(sizes[1]), nn.ReLU()]
        self.body = nn.Sequential(*layers[:-1])
        # With 1, random weights blow rounding up from layer to layer: 2e-5 of the range instead of 1e-6, in PyTorch
        # itself too, measured against float64.
        nn.init.constant_(layers[-2].weight, 0.2)
        if inside == 4 * middle:
            self.short = nn.Identity()
        else:
            self.short = nn.Sequential(nn.Conv2d(inside, 4 * middle, 1, stride, bias=False), nn.BatchNorm2d(4 * middle))

    def forward(self, x):
        return functional.relu(self.body(x) + self.short(x))


class ResNet50(nn.Sequential):
    """The network of torchvision, layer by layer (He et al., 2016, table 1; stride in the 3x3 convolution)."""

    def __init__(self):
        parts = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        inside = 64
        for middle, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for index in range(count):
                parts.append(Bottleneck(inside, middle, stride if index == 0 else 1))
                inside = 4 * middle
        super().__init__(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


class Decides(nn.Module):
    """Goes one way or the other by the values of its data."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


class FixesItsBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x.view(2, 4))


class SingularValues(nn.Module):
    def forward(self, x):
        return torch.linalg.svd(x)[1]


class WritesIntoItsInput(nn.Module):
    def forward(self, x):
        return x.mul_(2) + 1


def calibrated(network, *example):
    """Give batch normalisation real statistics, so that a network with random weights tells inputs apart."""
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(*example)
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def make(name):
    """The network `name` with seeded weights, and an example of one call."""
    torch.manual_seed(0)
    kinds = {
        "residual": (Residual, [(2, 3, 32, 32)]),
        "unet": (UNet, [(2, 3, 32, 48)]),
        "transformer": (Transformer, [(2, 16, 12)]),
        "lstm": (Recurrent, [(2, 10, 6)]),
        "resnet50": (ResNet50, [(2, 3, 64, 64)]),
    }
    if name == "many ends":
        return ManyEnds().eval(), (torch.randn(2, 3, 16, 16), torch.randn(2, 4), torch.randint(0, 11, (2, 5)))
    kind, shapes = kinds[name]
    # 16 pictures: statistics of very few values are so small somewhere that they blow rounding up
    network = calibrated(kind(), *(torch.randn(16, *shape[1:]) for shape in shapes))
    return network, tuple(torch.randn(shape) for shape in shapes)
