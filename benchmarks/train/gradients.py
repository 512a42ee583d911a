"""Gradients of the cross-entropy in all parameters of a net, beside PyTorch's in float64. Runs where PyTorch is.

    python -m benchmarks.train.gradients NET FORM BATCH_NORM        # JSON on stdout

``FORM`` is ``plain`` or ``smooth`` (nothing has a kink), ``BATCH_NORM`` ``frozen`` or ``train``. The error of a tensor
is the length of the difference over that of PyTorch's gradient. Tensors whose gradient in float64 is a share of less
than 1e-13 of the whole are zero in exact arithmetic, and counted apart; so are those that training does not move.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from onnx.reference import ReferenceEvaluator
from onnxopt.errors import OnnxoptError
from onnxopt.gradients import gradient_graph
from onnxopt.model import from_proto, to_proto
from onnxopt.train import CrossEntropy
from onnxopt.train.loss_graph import LABELS
from onnxopt.train.trainable import Trainable
from torch import Tensor, nn

from benchmarks.train.nets import NETS, Net, export, smooth

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Record = dict[str, Any]

BATCH = 8
EXACT = ("MLP", "ResNet-8", "transformer", "LSTM")
"""Also run in float64, by the reference implementation of ONNX, which takes its time,"""
FEW = 2
"""on so many samples."""
ZERO = 1e-13


class WithLoss(nn.Module):
    """The cross-entropy of a net."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.net(x), labels)


def compared(name: str, form: str, batch_norm: str) -> Record:
    net = NETS[name]
    record: Record = {"ours": against(net, form, batch_norm, torch.float32)}
    if name in EXACT and batch_norm == "frozen":
        record["exact"] = against(net, form, batch_norm, torch.float64)
    return record


def against(net: Net, form: str, batch_norm: str, dtype: torch.dtype) -> Record:
    """The errors of our gradients, and of PyTorch's in the same type, or why there are none."""
    batch = BATCH if dtype is torch.float32 else FEW
    x, labels = net.inputs(batch), net.labels(batch)
    true = by_torch(module(net, form, batch_norm, torch.float64), x, labels)
    try:
        made = module(net, form, "frozen", dtype)
        found = by_ours(made, x, labels, batch_norm) if dtype is torch.float32 else in_double(made, x, labels)
    except (OnnxoptError, RuntimeError) as error:  # which the reference raises for what it lacks
        return {"failure": f"{type(error).__name__}: {error}"[:400]}
    record = {"onnxopt": errors(found, true)}
    if dtype is torch.float32:
        record["PyTorch"] = errors(by_torch(module(net, form, batch_norm, dtype), x, labels), true)
    return record


def module(net: Net, form: str, batch_norm: str, dtype: torch.dtype) -> nn.Module:
    made = net.module()
    made = smooth(made) if form == "smooth" else made
    return made.train(batch_norm == "train").to(dtype)


def by_torch(net: nn.Module, x: Tensor, labels: Tensor) -> Arrays:
    WithLoss(net)(x.to(next(net.parameters()).dtype) if x.is_floating_point() else x, labels).backward()
    return {name: p.grad.double().numpy() for name, p in net.named_parameters() if p.grad is not None}


def by_ours(net: nn.Module, x: Tensor, labels: Tensor, batch_norm: str) -> Arrays:
    """As training computes them, in ONNX Runtime."""
    model = from_proto(export(net, (x,), ("x",), "y"))
    batch = {"x": x.numpy(), LABELS: labels.numpy()}
    trainable = Trainable(model, CrossEntropy(), batch, batch_norm=batch_norm, threads=1)  # type: ignore[arg-type]
    trainable.gradient(batch)
    return trainable.gradients


def in_double(net: nn.Module, x: Tensor, labels: Tensor) -> Arrays:
    """As the same graph rewrite computes them in float64, in the reference implementation."""
    x = x.double() if x.is_floating_point() else x
    wrapped = WithLoss(net)
    model = from_proto(export(wrapped, (x, labels), ("x", LABELS), "loss"))
    names = [name for name, _ in wrapped.named_parameters()]
    found = gradient_graph(model, "loss", names)
    proto = to_proto(found.model)
    results = ReferenceEvaluator(proto).run(None, {"x": x.numpy(), LABELS: labels.numpy()})
    outputs = dict(zip((o.name for o in proto.graph.output), results, strict=True))
    return {name.removeprefix("net."): outputs[found.gradients[name]] for name in names}


def errors(found: Mapping[str, Array], true: Mapping[str, Array]) -> Record:
    whole = np.sqrt(sum(np.sum(g**2) for g in true.values()))
    moved = {name: g for name, g in true.items() if name in found}
    relative, zeros, difference = {}, {}, 0.0
    for name, g in moved.items():
        off, length = np.linalg.norm(found[name].astype(np.float64) - g), np.linalg.norm(g)
        difference += off**2
        if length <= ZERO * whole:
            zeros[name] = float(off / whole)
        else:
            relative[name] = float(off / length)
    worst = max(relative, key=lambda name: relative[name])
    return {
        "worst": [worst, relative[worst]],
        "median": float(np.median(list(relative.values()))),
        "whole": float(np.sqrt(difference) / np.sqrt(sum(np.sum(g**2) for g in moved.values()))),
        "tensors": len(relative),
        "zeros": len(zeros),
        "largest zero": max(zeros.values(), default=0.0),
        "unmoved": sorted(true.keys() - moved.keys()),
    }


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(json.dumps(compared(*sys.argv[1:])))


if __name__ == "__main__":
    main()
