"""A transformer of two blocks that reads the mood of a short text, exported through TorchScript.

Opset 14 has neither LayerNormalization nor Gelu: both are in the model as the exporter spells them out.

requires: torch==2.13.0 onnx==1.23.2 onnxruntime==1.32.0 numpy
run: python models/transformer_sentiment/make.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models._common import MODELS, record, samples, save_eval

NAME = "transformer_sentiment"
DATA_SET = "sentiment_text"
LENGTH = 48
UNKNOWN = 1


class Block(nn.Module):
    """Attention and a feed-forward part, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def attention(self, x: Tensor, penalty: Tensor) -> Tensor:
        n, length, width = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(n, length, self.heads, width // self.heads).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = q @ k.transpose(2, 3) / (width // self.heads) ** 0.5 + penalty
        mixed = self.dropout(scores.softmax(-1)) @ v
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return out

    def forward(self, x: Tensor, penalty: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), penalty))
        return x + self.dropout(self.narrow(F.gelu(self.wide(self.norm2(x)))))


class Classifier(nn.Module):
    """Words (N × up to 48, 0 = padding) to two scores."""

    def __init__(self, words: int = 6000, width: int = 64, heads: int = 4, dropout: float = 0.3) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        self.dropout = nn.Dropout(dropout)
        self.block1 = Block(width, heads, dropout)
        self.block2 = Block(width, heads, dropout)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2)
        nn.init.normal_(self.words.weight, std=0.1)

    def forward(self, input_ids: Tensor) -> Tensor:
        present = (input_ids != 0).float()
        penalty = (1 - present)[:, None, None, :] * -1e4
        x = self.dropout(self.words(input_ids) + self.places[: input_ids.shape[1]])
        x = self.norm(self.block2(self.block1(x, penalty), penalty))
        weight = present[:, :, None]
        logits: Tensor = self.head(self.dropout((x * weight).sum(1) / weight.sum(1).clamp(min=1)))
        return logits


def train(net: nn.Module, epochs: int = 8, lr: float = 1e-3, batch: int = 64, forget: float = 0.15) -> None:
    """Train ``net`` in place, with a share of the words unknown, and leave it in evaluation mode."""
    x, y = map(torch.from_numpy, samples(DATA_SET, "train"))
    steps = len(x) // batch
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
    net.train()
    for epoch in range(epochs):
        total = 0.0
        for index in torch.randperm(len(x))[: steps * batch].view(steps, batch):
            words = x[index]
            words = words.masked_fill((torch.rand(words.shape) < forget) & (words != 0), UNKNOWN)
            loss = F.cross_entropy(net(words), y[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{epochs}: loss {total / steps:.3f}", flush=True)
    net.eval()


def main() -> None:
    """Train, export, measure."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = Classifier()
    train(net)
    torch.onnx.export(
        net,
        (torch.ones(2, 7, dtype=torch.int64),),
        MODELS / NAME / "model.onnx",
        input_names=["input_ids"],
        output_names=["logits"],
        dynamic_axes={"input_ids": {0: "batch", 1: "length"}, "logits": {0: "batch"}},
        opset_version=14,
        dynamo=False,
    )
    x, y = samples(DATA_SET, "test")
    save_eval(path := MODELS / NAME / "eval.npz", y, input_ids=x)
    record(NAME, f"torch {torch.__version__.split('+')[0]} (TorchScript)", DATA_SET, path, "logits")


if __name__ == "__main__":
    main()
