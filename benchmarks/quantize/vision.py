"""torchvision nets whose numbers mean something without trained weights; run in the environment of the exports.

    python vision.py PHOTOGRAPHS.npz FOLDER

Random weights, BatchNormalization statistics of the photographs, and a linear head fitted by ridge regression to say
which of the photographs a crop is from: so activations have the ranges of a net at work, and there is an accuracy to
lose. The crops to fit on and the crops to evaluate on are of different halves of each photograph. The crops to
calibrate on are none of those that the head was fitted to: there its scores lie so far apart that no rounding changes
an answer.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

NETS = {
    "resnet18": "fc",
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "efficientnet_b0": "classifier.1",
    "shufflenet_v2_x1_0": "fc",
    "squeezenet1_1": "classifier.1",
    "densenet121": "classifier",
}
"""Architecture → its last linear layer (a 1 × 1 convolution in squeezenet)."""

CALIBRATION = 64
"""How many of the crops to calibrate on; the others are to fit on."""


def measure_norms(net: nn.Module, x: Tensor) -> None:
    """The exact mean over batches of each BatchNormalization's statistics."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    net.train()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    with torch.no_grad():
        for batch in x.split(46):
            net(batch)
    net.eval()


def fit_head(net: nn.Module, path: str, x: Tensor, y: Tensor) -> None:
    old = net.get_submodule(path)
    seen: list[Tensor] = []
    handle = old.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for batch in x.split(46):
            net(batch)
    handle.remove()
    features = torch.cat(seen)
    pooled = features.mean((2, 3)) if features.ndim == 4 else features
    classes = int(y.max()) + 1
    target = 2.0 * nn.functional.one_hot(y, classes).double() - 1
    a = torch.cat([pooled, torch.ones(len(pooled), 1)], 1).double()
    gram = a.T @ a
    solved = torch.linalg.solve(gram + 1e-2 * gram.diagonal().mean() * torch.eye(len(gram)), a.T @ target).float()
    head: nn.Module
    if isinstance(old, nn.Conv2d):
        head = nn.Conv2d(old.in_channels, classes, 1)
        head.weight.data, head.bias.data = solved[:-1].T[..., None, None].contiguous(), solved[-1]
    else:
        head = nn.Linear(pooled.shape[1], classes)
        head.weight.data, head.bias.data = solved[:-1].T.contiguous(), solved[-1]
    parent, _, last = path.rpartition(".")
    setattr(net.get_submodule(parent) if parent else net, last, head)


def main(photographs: str, folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    mean, deviation = (np.array(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with np.load(photographs) as file:
        x, held = (
            ((file[k] / 255 - mean) / deviation).transpose(0, 3, 1, 2).astype(np.float32) for k in ("x", "held_x")
        )
        y, held_y = file["y"], file["held_y"]
    np.savez(folder / "calibration.npz", x=x[:CALIBRATION])
    np.savez(folder / "evaluation.npz", x=held, labels=held_y)
    pixels, label = torch.from_numpy(x[CALIBRATION:]), torch.from_numpy(y[CALIBRATION:])
    for arch, head in NETS.items():
        torch.manual_seed(0)
        net = torchvision.models.get_model(arch, weights=None)
        if arch == "squeezenet1_1":
            net.classifier[2] = nn.Identity()  # a Relu on scores would hide half of them
        measure_norms(net, pixels)
        fit_head(net, head, pixels, label)
        torch.onnx.export(
            net,
            (pixels[:2],),
            str(folder / f"{arch}.onnx"),
            input_names=["x"],
            output_names=["y"],
            dynamo=False,
            opset_version=17,
            dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
        )
        with torch.no_grad():
            right = torch.cat([net(b).argmax(1) for b in torch.from_numpy(held).split(46)]).numpy() == held_y
        print(f"{arch}: {right.mean():.3f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
