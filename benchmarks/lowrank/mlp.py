"""A perceptron on pictures of digits, trained on one thread from a fixed seed. Runs where PyTorch is.

python -m benchmarks.lowrank.mlp TARGET.onnx
"""

from __future__ import annotations

import sys

import torch
from models._mnist_hard import train
from torch import nn


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )
    train(net, epochs=40, lr=2e-3)
    torch.onnx.export(
        net,
        (torch.zeros(2, 1, 32, 32),),
        sys.argv[1],
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )


if __name__ == "__main__":
    main()
