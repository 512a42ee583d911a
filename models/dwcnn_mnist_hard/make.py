"""A small MobileNet (v3: hard-swish, squeeze and excite) on hard MNIST, exported through torch.export.

requires: torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 numpy
run: python models/dwcnn_mnist_hard/make.py
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models._common import MODELS, record
from models._mnist_hard import DATA_SET, train, write_eval

NAME = "dwcnn_mnist_hard"


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution and its normalization."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(outputs)]


class Squeeze(nn.Module):
    """Squeeze and excite: scale each channel by what all channels hold on average."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 4, 1),
            nn.ReLU(),
            nn.Conv2d(channels // 4, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = x * self.gate(x)
        return scaled


class Inverted(nn.Module):
    """Widen, filter each channel, narrow; with a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, squeeze: bool, widen: int = 3) -> None:
        super().__init__()
        wide = widen * inputs
        self.keeps = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            *conv(inputs, wide),
            nn.Hardswish(),
            *conv(wide, wide, 3, stride, groups=wide),
            nn.Hardswish(),
            *([Squeeze(wide)] if squeeze else []),
            *conv(wide, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.keeps else y


class DwCnn(nn.Module):
    """Four inverted residuals between a strided stem and a linear head."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *conv(1, 16, 3, stride=2),
            nn.Hardswish(),
            Inverted(16, 24, 1, squeeze=False),
            Inverted(24, 40, 2, squeeze=True),
            Inverted(40, 40, 1, squeeze=True),
            Inverted(40, 64, 2, squeeze=True),
            *conv(64, 128),
            nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(128, classes)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(image))
        return logits


def main() -> None:
    """Train, export, measure."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = DwCnn()
    train(net, epochs=36, lr=4e-3)
    torch.onnx.export(
        net,
        (torch.zeros(2, 1, 32, 32),),
        MODELS / NAME / "model.onnx",
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        opset_version=20,
        dynamo=True,
        external_data=False,
    )
    exporter = f"torch {torch.__version__.split('+')[0]} (torch.export, onnxscript {version('onnxscript')})"
    record(NAME, exporter, DATA_SET, write_eval(), "logits")


if __name__ == "__main__":
    main()
