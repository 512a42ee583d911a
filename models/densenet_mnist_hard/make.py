"""A small DenseNet from Paddle on hard MNIST, exported with paddle2onnx: layers read a Concat of all before.

requires: paddlepaddle==3.3.1 paddle2onnx==2.1.0 onnx==1.17.0 onnxruntime==1.32.0 numpy
          onnx_graphsurgeon sympy (paddle2onnx installs them by itself if they are missing)
run: python models/densenet_mnist_hard/make.py
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models._common import DATA, MODELS, Array, record, samples, save_eval

NAME = "densenet_mnist_hard"
DATA_SET = "mnist_hard"
SAMPLES = 1200


class Dense(nn.Layer):
    """A 3 × 3 convolution whose output is put beside its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2D(inputs)
        self.conv = nn.Conv2D(inputs, growth, 3, padding=1, bias_attr=False)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return paddle.concat([x, self.conv(F.relu(self.norm(x)))], axis=1)


class DenseNet(nn.Layer):
    """A strided stem and three dense parts, with narrowing and pooling between them."""

    def __init__(self, growth: int = 16, depth: int = 3, parts: int = 3, classes: int = 10) -> None:
        super().__init__()
        channels = 16
        layers: list[nn.Layer] = [nn.Conv2D(1, channels, 3, stride=2, padding=1, bias_attr=False)]
        for part in range(parts):
            if part:
                layers += [nn.Conv2D(channels, channels // 2, 1), nn.AvgPool2D(2)]
                channels //= 2
            for _ in range(depth):
                layers.append(Dense(channels, growth))
                channels += growth
        self.features = nn.Sequential(*layers, nn.BatchNorm2D(channels), nn.ReLU(), nn.AdaptiveAvgPool2D(1))
        self.head = nn.Linear(channels, classes)

    def forward(self, image: paddle.Tensor) -> paddle.Tensor:
        return self.head(paddle.flatten(self.features(image), 1))


def augment(x: Array, rng: np.random.Generator) -> paddle.Tensor:
    """Turn by up to 12°, scale by up to 10 %, and shift by up to 2 pixels, each picture in its own way."""
    angle, scale, right, down = rng.uniform(-1, 1, (4, len(x)))
    angle, scale = angle * np.deg2rad(12), 1 + 0.1 * scale
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    theta = np.stack([np.stack([cos, -sin, right / 8], 1), np.stack([sin, cos, down / 8], 1)], 1)
    grid = F.affine_grid(paddle.to_tensor(theta.astype(np.float32)), list(x.shape), align_corners=False)
    return F.grid_sample(paddle.to_tensor(x), grid, align_corners=False)


def train(net: nn.Layer, epochs: int = 16, lr: float = 4e-3, batch: int = 64) -> None:
    """Train ``net`` in place and leave it in evaluation mode."""
    x, y = samples(DATA_SET, "train")
    rng = np.random.default_rng(0)
    steps = len(x) // batch
    rate = paddle.optimizer.lr.OneCycleLR(lr, epochs * steps, phase_pct=0.2)
    optimizer = paddle.optimizer.AdamW(rate, parameters=net.parameters(), weight_decay=0.05)
    for epoch in range(epochs):
        net.train()
        total = 0.0
        for index in rng.permutation(len(x))[: steps * batch].reshape(steps, batch):
            targets = F.label_smooth(F.one_hot(paddle.to_tensor(y[index]), 10), epsilon=0.05)
            loss = F.cross_entropy(net(augment(x[index], rng)), targets, soft_label=True)
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            rate.step()
            total += float(loss)
        print(f"epoch {epoch + 1}/{epochs}: loss {total / steps:.3f}", flush=True)
    net.eval()


def main() -> None:
    """Train, export, measure."""
    paddle.seed(0)
    net = DenseNet()
    train(net)
    spec = paddle.static.InputSpec([None, 1, 32, 32], "float32", "image")
    paddle.onnx.export(net, str(MODELS / NAME / "model"), input_spec=[spec], opset_version=13)
    x, y = samples(DATA_SET, "test")
    exporter = f"paddle2onnx {version('paddle2onnx')} (Paddle {paddle.__version__})"
    save_eval(path := DATA / "mnist_hard_eval.npz", y[:SAMPLES], image=x[:SAMPLES])
    record(NAME, exporter, DATA_SET, path, "fetch_name_0")


if __name__ == "__main__":
    main()
