"""How both image networks are trained: augmentation, AdamW on one cycle, and nothing else.

requires: torch==2.13.0
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models._common import DATA, samples, save_eval

DATA_SET = "mnist_hard"
EVAL = DATA / "mnist_hard_eval.npz"
SAMPLES = 1200


def write_eval() -> Path:
    """The file both networks are evaluated on: the first test pictures."""
    x, y = samples(DATA_SET, "test")
    save_eval(EVAL, y[:SAMPLES], image=x[:SAMPLES])
    return EVAL


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Turn by up to 12°, scale by up to 10 %, and shift by up to 2 pixels, each picture in its own way."""
    angle, scale, right, down = (2 * torch.rand(4, len(x), generator=generator) - 1).unbind()
    angle, scale = angle * np.deg2rad(12), 1 + 0.1 * scale
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack([torch.stack([cos, -sin, right / 8], 1), torch.stack([sin, cos, down / 8], 1)], 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def train(net: nn.Module, epochs: int, lr: float, batch: int = 64, seed: int = 0) -> None:
    """Train ``net`` in place and leave it in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    x, y = map(torch.from_numpy, samples(DATA_SET, "train"))
    steps = len(x) // batch
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps, pct_start=0.2)
    for epoch in range(epochs):
        net.train()
        total = 0.0
        order = torch.randperm(len(x), generator=generator)
        for index in order[: steps * batch].view(steps, batch):
            loss = F.cross_entropy(net(augment(x[index], generator)), y[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{epochs}: loss {total / steps:.3f}", flush=True)
    net.eval()
