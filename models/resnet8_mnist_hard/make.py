"""ResNet-8 on hard MNIST, exported through TorchScript with its BatchNormalization kept.

requires: torch==2.13.0 onnx==1.23.2 onnxruntime==1.32.0 numpy
run: python models/resnet8_mnist_hard/make.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models._common import MODELS, record
from models._mnist_hard import DATA_SET, train, write_eval

NAME = "resnet8_mnist_hard"


class Block(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut, which is a convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet8(nn.Module):
    """The ResNet-8 of MLPerf Tiny: 16, 32 and 64 channels."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.head = nn.Linear(64, classes)

    def forward(self, image: Tensor) -> Tensor:
        y = self.blocks(F.relu(self.bn(self.stem(image))))
        logits: Tensor = self.head(y.mean((2, 3)))
        return logits


def main() -> None:
    """Train, export, measure."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = ResNet8()
    train(net, epochs=32, lr=4e-3)
    torch.onnx.export(
        net,
        (torch.zeros(2, 1, 32, 32),),
        MODELS / NAME / "model.onnx",
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )
    exporter = f"torch {torch.__version__.split('+')[0]} (TorchScript)"
    record(NAME, exporter, DATA_SET, write_eval(), "logits")


if __name__ == "__main__":
    main()
