"""Our trained models as PyTorch modules, with the weights of the ONNX files: what Torch-Pruning can be given.

The mixer, the LSTM and the scikit-learn pipeline are left out: Torch-Pruning has no working rule for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from models.dwcnn_mnist_hard.make import DwCnn
from models.resnet8_mnist_hard.make import ResNet8
from models.transformer_sentiment.make import Classifier
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

Array = np.ndarray[Any, Any]
Weights = Mapping[str, Array]


class Dense(nn.Module):
    """A convolution whose output is put beside its input."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 16, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class DenseNet(nn.Module):
    """models/densenet_mnist_hard."""

    def __init__(self) -> None:
        super().__init__()
        channels = 16
        layers: list[nn.Module] = [nn.Conv2d(1, channels, 3, 2, 1, bias=False)]
        for part in range(3):
            if part:
                layers += [nn.Conv2d(channels, channels // 2, 1), nn.AvgPool2d(2)]
                channels //= 2
            for _ in range(3):
                layers.append(Dense(channels))
                channels += 16
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(channels, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(torch.flatten(self.features(image), 1))  # type: ignore[no-any-return]


class Cnn1d(nn.Module):
    """models/cnn1d_mnist1d; ``same`` padding at stride 2 is TensorFlow's, one less on the left."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((1, 32, 5, 1), (32, 64, 5, 2), (64, 64, 5, 1), (64, 64, 5, 1), (64, 96, 3, 1))
        self.convs = nn.ModuleList(nn.Conv1d(i, o, k, s, bias=False) for i, o, k, s in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm1d(o, eps=0.0) for _, o, _, _ in sizes)
        self.head = nn.Linear(96, 10)

    def layer(self, x: Tensor, index: int, left: int, right: int) -> Tensor:
        return F.relu(self.norms[index](self.convs[index](F.pad(x, (left, right)))))

    def forward(self, signal: Tensor) -> Tensor:
        x = shortcut = self.layer(self.layer(signal.transpose(1, 2), 0, 2, 2), 1, 1, 2)
        x = self.layer(self.layer(x, 2, 2, 2), 3, 2, 2)
        x = self.layer(F.max_pool1d(x + shortcut, 2), 4, 1, 1)
        return torch.softmax(self.head(x.mean(2)), -1)


@dataclass(frozen=True)
class Twin:
    make: Callable[[], nn.Module]
    load: Callable[[nn.Module, onnx.ModelProto], None]
    example: Callable[[], Tensor]
    input: str
    output: str
    last: str = "head"
    heads: dict[str, int] = field(default_factory=dict)


def weights(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def by_name(module: nn.Module, model: onnx.ModelProto) -> None:
    found = weights(model)
    named = {k: v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    module.load_state_dict({k: torch.from_numpy(found[k].copy()) for k in named}, strict=False)


def folded(module: nn.Module, model: onnx.ModelProto) -> None:
    """A normalization that was folded into its convolution adds the bias, and nothing else."""
    found = weights(model)
    layers = dict(module.named_modules())
    convs = [name for name, layer in layers.items() if isinstance(layer, nn.Conv2d)]
    state = {k: torch.from_numpy(v.copy()) for k, v in found.items() if k in module.state_dict()}
    module.load_state_dict(state, strict=False)
    for name in convs:
        if f"{name}.weight_bias" in found:
            parent, _, index = name.rpartition(".")
            norm = layers[f"{parent}.{int(index) + 1}"]
            plain(norm, np.ones(norm.num_features, np.float32), found[f"{name}.weight_bias"])


def plain(norm: Any, scale: Array, shift: Array) -> None:
    with torch.no_grad():
        norm.weight.copy_(torch.from_numpy(scale.copy().reshape(-1)))
        norm.bias.copy_(torch.from_numpy(shift.copy().reshape(-1)))
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)


def in_order(module: nn.Module, model: onnx.ModelProto) -> None:
    """Paddle's names count the layers of each kind."""
    found = weights(model)
    convs, norms = ([m for m in module.modules() if isinstance(m, kind)] for kind in (nn.Conv2d, nn.BatchNorm2d))
    with torch.no_grad():
        shifts = iter(sorted(name for name in found if name.startswith("p2o.pd_op.reshape")))
        for i, conv in enumerate(convs):
            conv.weight.copy_(torch.from_numpy(found[f"conv2d_{i}.w_0"].copy()))
            if conv.bias is not None:
                conv.bias.copy_(torch.from_numpy(found[next(shifts)].reshape(-1).copy()))
        for i, norm in enumerate(norms):
            tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
            parts = zip(tensors, ("w_0", "b_0", "w_1", "w_2"), strict=True)
            for tensor, name in parts:
                tensor.copy_(torch.from_numpy(found[f"batch_norm2d_{i}.{name}"].copy()))
        module.head.weight.copy_(torch.from_numpy(found["linear_0.w_0"].T.copy()))
        module.head.bias.copy_(torch.from_numpy(found["linear_0.b_0"].copy()))


def from_keras(module: nn.Module, model: onnx.ModelProto) -> None:
    found = weights(model)
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    scales = [node for node in model.graph.node if node.op_type == "Mul"]
    shifts = [node for node in model.graph.node if node.op_type == "Add" and any(i in found for i in node.input)]
    with torch.no_grad():
        for i, (conv, scale, shift) in enumerate(zip(convs, scales, shifts, strict=False)):
            module.convs[i].weight.copy_(torch.from_numpy(found[conv.input[1]].copy().squeeze(2)))
            constants = [next(found[name] for name in node.input if name in found) for node in (scale, shift)]
            plain(module.norms[i], *constants)
        module.head.weight.copy_(torch.from_numpy(found["model/probabilities/MatMul/ReadVariableOp:0"].T.copy()))
        module.head.bias.copy_(torch.from_numpy(found["model/probabilities/BiasAdd/ReadVariableOp:0"].copy()))


def transformer(module: nn.Module, model: onnx.ModelProto) -> None:
    """Weights of linear layers are nameless in the file, and in the order of use."""
    found = weights(model)
    used = [n.input[1] for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in found]
    layers = [f"block{b}.{name}" for b in (1, 2) for name in ("query", "key", "value", "out", "wide", "narrow")]
    order = {f"{layer}.weight": found[name].T for layer, name in zip(layers, _as_called(used, model), strict=True)}
    state = {name: found.get(name, order.get(name)) for name in module.state_dict()}
    module.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()})


def _as_called(used: list[str], model: onnx.ModelProto) -> list[str]:
    """In the order of the biases that are added to the products, which have names."""
    product = {n.output[0]: n.input[1] for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in used}
    named = {}
    for node in model.graph.node:
        if node.op_type == "Add" and (weight := next((product[i] for i in node.input if i in product), None)):
            named[next(i for i in node.input if i not in product)] = weight
    layers = [f"block{b}.{name}.bias" for b in (1, 2) for name in ("query", "key", "value", "out", "wide", "narrow")]
    return [named[layer] for layer in layers]


def image() -> Tensor:
    return torch.rand(2, 1, 32, 32)


PROJECTIONS = {f"block{b}.{name}": 4 for b in (1, 2) for name in ("query", "key", "value")}

TWINS = {
    "resnet8_mnist_hard": Twin(ResNet8, by_name, image, "image", "logits"),
    "dwcnn_mnist_hard": Twin(DwCnn, folded, image, "image", "logits"),
    "densenet_mnist_hard": Twin(DenseNet, in_order, image, "image", "fetch_name_0"),
    "cnn1d_mnist1d": Twin(Cnn1d, from_keras, lambda: torch.randn(2, 40, 1), "signal", "probabilities"),
    "transformer_sentiment": Twin(
        Classifier, transformer, lambda: torch.randint(2, 6000, (2, 48)), "input_ids", "logits", heads=PROJECTIONS
    ),
}


def load(name: str, path: Path) -> nn.Module:
    """The module with the weights of the file."""
    twin = TWINS[name]
    module, model = twin.make().eval(), onnx.load(path)
    twin.load(module, model)
    return module
