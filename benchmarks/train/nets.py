"""The networks that are differentiated and timed, in PyTorch. Runs where that is.

Random weights from a fixed seed; BatchNormalization with random statistics; no Dropout. ``export`` writes them as ONNX
with the parameters as initializers under their names, and sizes in numbers.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import onnx
import torch
import torchvision
from torch import Tensor, nn

from benchmarks.corpus.export import randomise_norms


class Block(nn.Module):
    """A residual block with BatchNormalization."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(y + self.shortcut(x))  # type: ignore[no-any-return]


class ResNet8(nn.Sequential):
    """The ResNet-8 of MLPerf Tiny, for 32 × 32 colours."""

    def __init__(self) -> None:
        stem = (nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        blocks = (Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        super().__init__(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Transformer(nn.Module):
    """Two blocks over 64 tokens of 500, each of attention and GELU behind LayerNorm; a head on the mean."""

    def __init__(self, width: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(500, width), nn.Parameter(0.02 * torch.randn(64, width))
        self.blocks = nn.ModuleList(Attention(width, heads) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.words(x) + self.places
        for block in self.blocks:
            y = block(y)
        return self.head(self.norm(y).mean(1))  # type: ignore[no-any-return]


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        y = self.norm1(x)
        q, k, v = (
            part(y).view(n, length, self.heads, width // self.heads).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(2, 3) * self.scale).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, length, width))
        return x + self.narrow(nn.functional.gelu(self.wide(self.norm2(x))))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """One LSTM of 64 over 32 steps; a head on the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(32, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0].mean(1))  # type: ignore[no-any-return]


def mlp() -> nn.Module:
    sizes = (1024, 512, 512)
    layers = [layer for i, o in itertools.pairwise(sizes) for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(512, 10))


def torchvision_net(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=10)
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return net

    return make


@dataclass(frozen=True)
class Net:
    make: Callable[[], nn.Module]
    sample: tuple[int, ...]
    """The shape of a sample."""
    batch: int
    """The samples of a step that is timed."""
    tokens: int = 0
    """Of how many a sample is made, in place of numbers."""

    def module(self) -> nn.Module:
        """With weights that are always the same."""
        torch.manual_seed(0)
        net = self.make()
        randomise_norms(net)
        for module in net.modules():
            if isinstance(module, nn.LayerNorm):  # the exporter would make one of those that are equal
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.2, 0.2)
        return net

    def inputs(self, batch: int) -> Tensor:
        """Samples that are always the same."""
        generator = torch.Generator().manual_seed(1)
        shape = (batch, *self.sample)
        if self.tokens:
            return torch.randint(self.tokens, shape, generator=generator)
        return torch.randn(shape, generator=generator)

    def labels(self, batch: int) -> Tensor:
        """Their classes."""
        return torch.randint(10, (batch,), generator=torch.Generator().manual_seed(2))


NETS = {
    "MLP": Net(mlp, (1024,), 64),
    "ResNet-8": Net(ResNet8, (3, 32, 32), 64),
    "ResNet-18": Net(torchvision_net("resnet18"), (3, 64, 64), 8),
    "MobileNetV2": Net(torchvision_net("mobilenet_v2"), (3, 64, 64), 8),
    "transformer": Net(Transformer, (64,), 16, tokens=500),
    "LSTM": Net(Recurrent, (32, 32), 32),
}


def smooth(net: nn.Module) -> nn.Module:
    """The same with SiLU in place of ReLU, and means in place of maxima: nothing has a kink."""
    for name, module in net.named_children():
        if isinstance(module, nn.ReLU | nn.ReLU6):
            setattr(net, name, nn.SiLU())
        elif isinstance(module, nn.MaxPool2d):
            setattr(net, name, nn.AvgPool2d(module.kernel_size, module.stride, module.padding))
        else:
            smooth(module)
    return net


def torch_step(net: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    """A whole step of training."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)  # its fastest

    def step() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


def export(net: nn.Module, inputs: tuple[Tensor, ...], names: tuple[str, ...], output: str) -> onnx.ModelProto:
    """As the TorchScript exporter writes it when nothing is folded, so that each parameter is an initializer."""
    file = io.BytesIO()
    torch.onnx.export(
        net,
        inputs,
        file,
        input_names=list(names),
        output_names=[output],
        opset_version=18,
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )
    return onnx.load_from_string(file.getvalue())
