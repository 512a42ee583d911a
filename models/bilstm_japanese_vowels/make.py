"""A bidirectional LSTM that tells nine speakers apart, exported through TorchScript.

requires: torch==2.13.0 onnx==1.23.2 onnxruntime==1.32.0 numpy
run: python models/bilstm_japanese_vowels/make.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models._common import MODELS, record, samples, save_eval

NAME = "bilstm_japanese_vowels"
DATA_SET = "japanese_vowels"


class BiLstm(nn.Module):
    """One bidirectional layer over (N × 25 × 12), its mean over time, and a linear head."""

    def __init__(self, channels: int = 12, hidden: int = 64, classes: int = 9) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, hidden, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.4)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, sequence: Tensor) -> Tensor:
        states, _ = self.lstm(sequence)
        logits: Tensor = self.head(self.dropout(states.mean(1)))
        return logits


def train(net: nn.Module, epochs: int = 120, lr: float = 4e-3, batch: int = 30, noise: float = 0.3) -> None:
    """Train ``net`` in place, with noise on its inputs, and leave it in evaluation mode."""
    x, y = map(torch.from_numpy, samples(DATA_SET, "train"))
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * len(x) // batch)
    net.train()
    for _ in range(epochs):
        for index in torch.randperm(len(x)).view(-1, batch):
            noisy = x[index] + noise * torch.randn_like(x[index])
            loss = F.cross_entropy(net(noisy), y[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()


def main() -> None:
    """Train, export, measure."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = BiLstm()
    train(net)
    torch.onnx.export(
        net,
        (torch.zeros(2, 25, 12),),
        MODELS / NAME / "model.onnx",
        input_names=["sequence"],
        output_names=["logits"],
        dynamic_axes={"sequence": {0: "batch", 1: "time"}, "logits": {0: "batch"}},
        opset_version=15,
        dynamo=False,
    )
    x, y = samples(DATA_SET, "test")
    save_eval(path := MODELS / NAME / "eval.npz", y, sequence=x)
    record(NAME, f"torch {torch.__version__.split('+')[0]} (TorchScript)", DATA_SET, path, "logits")


if __name__ == "__main__":
    main()
