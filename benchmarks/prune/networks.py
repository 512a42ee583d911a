"""The small networks that Torch-Pruning tests itself on, written anew, and one for each operator that moves channels.

A network that Torch-Pruning's test leaves without a head has one here besides (``-head``): the outputs of an ONNX model
are its interface and never pruned, so that without a head some channels could only be ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18, resnet50
from torchvision.models.convnext import CNBlockConfig, ConvNeXt


@dataclass(frozen=True)
class Net:
    """A module, its inputs (first axis: batch), and what Torch-Pruning must be told of it."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    ignored: tuple[str, ...] = ()
    """Modules that make the outputs."""
    heads: dict[str, int] = field(default_factory=dict)
    """Attention projections, with their number of heads."""
    unwrapped: dict[str, int] = field(default_factory=dict)
    """Parameters outside of layers, with the axis to prune."""
    round_to: int | None = None
    sampled: bool = False
    """Whether to ask for a few channels of each layer only: asking takes the time of the whole graph."""
    outputs: tuple[str, ...] = ("y",)
    after: Callable[[nn.Module], None] = lambda model: None
    """What a user must still set by hand after Torch-Pruning."""


def rows(*sizes: int) -> Callable[[], dict[str, Tensor]]:
    """One float input of these sizes after the batch."""
    return lambda: {"x": torch.randn(2, *sizes)}


def conv_norm(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs)]


def two_convs(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*conv_norm(inputs, hidden), nn.GELU(), *conv_norm(hidden, outputs))


class Headed(nn.Module):
    """A network with a 1 × 1 convolution after each output."""

    def __init__(self, body: nn.Module, *channels: int) -> None:
        super().__init__()
        self.body = body
        self.heads = nn.ModuleList(nn.Conv2d(c, 3, 1) for c in channels)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = self.body(x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(head(y) for head, y in zip(self.heads, outputs, strict=True))


class WideDeep(nn.Module):
    """test_concat: a deep path that ends in one feature, beside a wide one of three."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((32, 32), (32, 16)):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(0.2)]
        self.deep = nn.Sequential(*layers, nn.Linear(16, 1))
        self.wide = nn.Linear(32, 3)
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape[0], -1)
        return torch.sigmoid(self.last(torch.concat([self.wide(x), self.deep(x)], dim=-1)))


class ConcatSplit(nn.Module):
    """test_concat_split: half of a split goes into a concatenation, the other half is a residual."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.block1 = two_convs(width, width, 2 * width)
        self.parallel = two_convs(width, width, width)
        self.block2 = nn.Sequential(*conv_norm(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        beside = self.parallel(x)
        x = self.block1(x)
        first = self.block2[0].in_channels - self.parallel[-1].num_features
        x1, x2 = torch.split(x, (first, self.block1[-1].num_features - first), 1)
        return self.block2(torch.cat([x1, beside], dim=1)) + x2


class Reshape(nn.Module):
    """test_reshape: features become channels of 4 × 4, and channels of 16 × 16 become features."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(512, 4096)
        self.up1 = nn.ConvTranspose2d(256, 128, 4, 2, 1)
        self.up2 = nn.ConvTranspose2d(128, 64, 4, 2, 1)
        self.last = nn.Linear(16384, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.linear(x)).view(-1, self.up1.in_channels, 4, 4)
        x = F.relu(self.up2(F.relu(self.up1(x))))
        return self.last(torch.flatten(x, 1))


class Split(nn.Module):
    """test_split: three parts, two of which go through the same convolution."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.block1 = two_convs(width, width, 4 * width)
        self.block2 = nn.Sequential(*conv_norm(width, width))
        self.block3 = nn.Sequential(*conv_norm(2 * width, width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c1, c2 = self.block2[0].in_channels, self.block3[0].in_channels
        x1, x2, x3 = torch.split(self.block1(x), [c1, c1, c2], dim=1)
        return self.block2(x1), self.block2(x2), self.block3(x3)


class CascadedConcat(nn.Module):
    """test_cascaded_concat: concatenations of concatenations."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.block1 = two_convs(width, width, width)
        self.block2 = two_convs(width, 2 * width, 2 * width)
        self.block3 = nn.Sequential(*conv_norm(width, 3 * width))
        self.block4 = nn.Sequential(*conv_norm(width, 6 * width))
        self.output = nn.Conv2d(12 * width, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.block1(x), self.block2(x)], dim=1)
        y = torch.cat([y, self.block3(x)], dim=1)
        return self.output(torch.cat([y, self.block4(x)], dim=1))


def small_convnext() -> nn.Module:
    """test_unwrapped_parameters: scales of layers that belong to no layer that Torch-Pruning knows."""
    blocks = [CNBlockConfig(32, 64, 2), CNBlockConfig(64, 96, 2), CNBlockConfig(96, None, 2)]
    return ConvNeXt(blocks, num_classes=10)


class Customized(nn.Module):
    """test_customized_layer: a layer with parameters of its own, that divides by the norm over the features."""

    def __init__(self, unused: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(128, 256)
        self.scale, self.bias = nn.Parameter(torch.randn(256)), nn.Parameter(torch.randn(256))
        self.fc = nn.Linear(256, 256)
        self.fc2 = nn.Linear(256, 10)
        if unused:  # test_unused_parameters
            self.unused = nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x))
        x = torch.div(x, x.pow(2).sum(dim=1, keepdim=True).sqrt())
        return self.fc2(self.fc(x * self.scale + self.bias))


class LeNet(nn.Module):
    """test_dependency_lenet: 16 channels of 4 × 4 become 256 features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(256, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.view(x.shape[0], -1)))
        return F.relu(self.fc3(F.relu(self.fc2(x))))


class FullyConnected(nn.Module):
    """test_fully_connected_layers: a residual between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(128, 256), nn.Linear(256, 256), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x))
        return self.fc3(F.relu(self.fc2(x)) + x)


class OtherAxis(nn.Module):
    """test_non_feature_dim_cat: concatenated and split along the height."""

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.block1, self.parallel = two_convs(width, width, width), two_convs(width, width, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = self.block1(x), self.parallel(x)
        x = self.conv1(torch.cat([x1, x2], dim=2))
        x1, x2 = torch.split(x, [x1.shape[2], x2.shape[2]], dim=2)
        return self.conv2(x1)


class ThreeConvs(nn.Module):
    """test_single_channel_output and test_pruner: three convolutions, the middle one transposed or not."""

    def __init__(self, middle: nn.Module, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = middle, nn.BatchNorm2d(64)
        self.conv3, self.bn3 = nn.Conv2d(64, outputs, 3, 1, 1), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(x)))


class ManyPorts(nn.Module):
    """test_multiple_inputs_and_outputs: two inputs, and hidden features that are outputs besides."""

    def __init__(self, inner_outputs: bool) -> None:
        super().__init__()
        self.inner_outputs = inner_outputs
        self.fc1, self.fc2, self.fc3 = nn.Linear(128, 32), nn.Linear(64, 32), nn.Linear(64, 1000)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, ...]:
        x1, x2 = F.relu(self.fc1(x1)), F.relu(self.fc2(x2))
        x3 = F.relu(self.fc3(torch.cat([x1, x2], dim=1)))
        return (x1, x2, x3) if self.inner_outputs else (x3,)


def two_ports() -> dict[str, Tensor]:
    return {"x1": torch.randn(2, 128), "x2": torch.randn(2, 64)}


TESTS = (
    Net("concat", WideDeep, rows(32), ("last",)),
    Net("concat_split", ConcatSplit, rows(10, 7, 7), ("block2.0",)),
    Net("concat_split-head", lambda: Headed(ConcatSplit(), 10), rows(10, 7, 7), ("heads",)),
    Net("reshape", Reshape, rows(512), ("last",), sampled=True),
    Net("split", Split, rows(128, 7, 7), ("block2.0", "block3.0"), outputs=("y1", "y2", "y3")),
    Net("split-head", lambda: Headed(Split(), 128, 128, 128), rows(128, 7, 7), ("heads",), outputs=("y1", "y2", "y3")),
    Net("cascaded_concat", CascadedConcat, rows(10, 7, 7), ("output",)),
    Net("unwrapped_parameters", small_convnext, rows(3, 32, 32), ("classifier.2",)),
    Net("customized_layer", Customized, rows(128), ("fc2",)),
    Net("unused_parameters", lambda: Customized(unused=True), rows(128), ("fc2",)),
    Net("dependency_lenet", LeNet, rows(1, 28, 28), ("fc3",)),
    Net("fully_connected_layers", FullyConnected, rows(128), ("fc3",)),
    Net("group_prune", lambda: resnet18(weights=None), rows(3, 64, 64), ("fc",), sampled=True),
    Net("pruner", lambda: resnet50(weights=None), rows(3, 64, 64), ("fc",), sampled=True),
    Net("pruner_transposed", lambda: ThreeConvs(nn.ConvTranspose2d(16, 64, 2, 2), 8), rows(3, 16, 16), ("conv3",)),
    Net("non_feature_dim_cat", OtherAxis, rows(512, 7, 7), ("conv2",), sampled=True),
    Net("single_channel_output", lambda: ThreeConvs(nn.Conv2d(16, 64, 2, 2), 1), rows(3, 32, 32), ("conv3",)),
    Net(
        "single_channel_output-head",
        lambda: Headed(ThreeConvs(nn.Conv2d(16, 64, 2, 2), 1), 1),
        rows(3, 32, 32),
        ("heads",),
    ),
    Net(
        "multiple_inputs_and_outputs",
        lambda: ManyPorts(True),
        two_ports,
        ("fc1", "fc2", "fc3"),
        outputs=("y1", "y2", "y3"),
    ),
    Net("multiple_inputs", lambda: ManyPorts(False), two_ports, ("fc3",)),
)
