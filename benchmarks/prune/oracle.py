"""What Torch-Pruning itself does to a network, as JSON beside the network as ONNX. Runs in Torch-Pruning's environment.

    python -m benchmarks.prune.oracle OUTPUT_FOLDER [GLOB]

``<net>.onnx`` is exported with its BatchNormalization kept and nothing folded, so that initializers are the parameters,
by name. ``<net>.json``:

- ``groups``: for each layer that Torch-Pruning starts from, and each channel of it, all slices that go with it: which
  indices of which axis of which parameter. Found by letting Torch-Pruning prune copies of the layers whose elements
  are numbered.
- ``shapes``: the shape of each parameter after one-shot pruning, by importance and ratio.
- ``failures``: what Torch-Pruning could not do, in its words.
"""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import json
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from benchmarks.corpus.export import randomise_norms
from benchmarks.prune.architectures import ARCHITECTURES
from benchmarks.prune.networks import TESTS, Net
from benchmarks.prune.operators import OPERATORS

RATIOS = (0.3, 0.5)
IMPORTANCES = {"l1": 1, "l2": 2}
SAMPLES = 9
"""How many channels of a layer are asked for in a large network."""
LIMIT = 120
"""Seconds."""

Removed = dict[str, dict[str, list[int]]]
"""Parameter → axis → indices."""


def made(net: Net) -> tuple[nn.Module, dict[str, Tensor]]:
    """The same weights every time, no two tensors alike: constant ones would hide a wrong slice."""
    torch.manual_seed(0)
    model, inputs = net.make().eval(), net.inputs()
    randomise_norms(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and float(parameter.std()) < 1e-5:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model, inputs


def export(net: Net, path: Path) -> None:
    model, inputs = made(net)
    names = [*inputs, *net.outputs]
    torch.onnx.export(
        model,
        tuple(inputs.values()),
        str(path),
        input_names=list(inputs),
        output_names=list(net.outputs),
        dynamic_axes={name: {0: "batch"} for name in names},
        opset_version=17,
        dynamo=False,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )


def pruner(net: Net, model: nn.Module, inputs: dict[str, Tensor], power: int, ratio: float) -> Any:
    parameters = dict(model.named_parameters())
    return tp.pruner.BasePruner(
        model,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=power),
        pruning_ratio=ratio,
        ignored_layers=[model.get_submodule(name) for name in net.ignored],
        in_channel_groups={},  # the defaults are one dictionary that all pruners share
        out_channel_groups={},
        num_heads={model.get_submodule(name): heads for name, heads in net.heads.items()},
        unwrapped_parameters=[(parameters[name], axis) for name, axis in net.unwrapped.items()],
        round_to=net.round_to,
        forward_fn=forward,
    )


def forward(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    return model(**inputs)


def shapes(net: Net, power: int, ratio: float) -> dict[str, list[int]]:
    model, inputs = made(net)
    pruner(net, model, inputs, power, ratio).step()
    net.after(model)
    with torch.no_grad():
        forward(model, inputs)
    return {name: list(tensor.shape) for name, tensor in tensors(model)}


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if buffer.dtype.is_floating_point)


def groups(net: Net) -> list[dict[str, Any]]:
    model, inputs = made(net)
    tool = pruner(net, model, inputs, 2, 0.5)
    ignored = tool.ignored_layers
    names = {module: name for name, module in model.named_modules()}
    parameters = {parameter: name for name, parameter in model.named_parameters()}
    found = []
    for first in tool.DG.get_all_groups(ignored_layers=ignored, root_module_types=tool.root_module_types):
        # BasePruner starts anew from the layer that reads the heads
        group = (tool._is_atten_group(first)[0] and tool._downstream_node_as_root_if_attention(first)) or first
        root, prune = group[0].dep.target.module, group[0].dep.handler
        slices = 1 if tool.DG.is_out_channel_pruning_fn(prune) else 0
        total = tool.DG.get_out_channels(root) if slices else tool.DG.get_in_channels(root)
        parts = tool._get_channel_groups(group)
        size = total // parts
        chosen = range(size)
        if net.sampled and size > SAMPLES:
            chosen = sorted({round(i * (size - 1) / (SAMPLES - 1)) for i in range(SAMPLES)})
        channels = []
        for channel in chosen:
            indices = [channel + part * size for part in range(parts)]
            items = tool.DG.get_pruning_group(root, prune, indices)
            channels.append({"indices": indices, "removed": removed(items, names, parameters)})
        found.append(
            {"root": names[root], "side": "out" if slices else "in", "size": size, "parts": parts, "channels": channels}
        )
    return found


def removed(items: Any, names: dict[nn.Module, str], parameters: dict[nn.Parameter, str]) -> Removed:
    """Which slices pruning these items takes away."""
    found: dict[str, dict[str, set[int]]] = {}
    for dep, indices in items:
        layer = dep.target.module
        if isinstance(layer, nn.Parameter):
            axis = dep.target.pruning_dim % layer.ndim
            found.setdefault(parameters[layer], {}).setdefault(str(axis), set()).update(indices)
        elif layer in names and any(True for _ in tensors(layer)):
            dep.handler.__self__.pruning_dim = dep.target.pruning_dim
            numbered = number(layer)
            before = {name: tensor.shape for name, tensor in tensors(numbered)}
            dep.handler(numbered, list(indices))
            for name, tensor in tensors(numbered):
                for axis, gone in missing(tensor, before[name]).items():
                    found.setdefault(f"{names[layer]}.{name}", {}).setdefault(axis, set()).update(gone)
    return {name: {a: sorted(s) for a, s in sorted(axes.items())} for name, axes in sorted(found.items())}


def number(layer: nn.Module) -> nn.Module:
    """A copy whose elements say where they are; of a kernel, which is never cut, one element will do."""
    numbered = copy.copy(layer)
    numbered._parameters, numbered._buffers = dict(layer._parameters), dict(layer._buffers)
    numbered._modules = {name: number(module) for name, module in layer._modules.items()}
    for own in (numbered._parameters, numbered._buffers):
        for name, tensor in own.items():
            if tensor is not None and tensor.dtype.is_floating_point:
                shape = tensor.shape[:2] if isinstance(layer, nn.modules.conv._ConvNd) else tensor.shape
                ones = [1] * (tensor.ndim - len(shape))
                places = torch.arange(shape.numel(), dtype=torch.float64).reshape(*shape, *ones)
                own[name] = nn.Parameter(places) if isinstance(tensor, nn.Parameter) else places
    return numbered


def missing(tensor: Tensor, before: torch.Size) -> dict[str, set[int]]:
    found = {}
    stride = 1
    for axis in reversed(range(len(before))):
        if tensor.shape[axis] != before[axis]:
            kept = (tensor.detach() / stride).floor() % before[axis]
            found[str(axis)] = set(range(before[axis])) - {int(i) for i in kept.unique()}
        stride *= before[axis]
    return found


def ask(net: Net) -> dict[str, Any]:
    record: dict[str, Any] = {"name": net.name, "ignored": net.ignored, "round_to": net.round_to, "failures": {}}
    model, _ = made(net)
    record["before"] = {name: list(tensor.shape) for name, tensor in tensors(model)}
    try:
        with limited():
            record["groups"] = groups(net)
    except TimeoutError as error:
        return record | {"failures": {"groups": words(error)}, "shapes": {}}  # pruning asks for the same groups
    except Exception as error:
        record["failures"]["groups"] = words(error)
    record["shapes"] = {}
    for importance, power in IMPORTANCES.items():
        for ratio in RATIOS:
            try:
                with limited():
                    record["shapes"][f"{importance}-{ratio}"] = shapes(net, power, ratio)
            except Exception as error:
                record["failures"][f"{importance}-{ratio}"] = words(error)
    return record


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Torch-Pruning may walk the same edges over and over, and take gigabytes."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"no answer in {LIMIT} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)


def words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main(folder: Path, glob: str = "*") -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for kind, nets in (("tests", TESTS), ("operators", OPERATORS), ("architectures", ARCHITECTURES)):
        for net in nets:
            path = folder / kind / f"{net.name}.onnx"
            if path.with_suffix(".json").exists() or not fnmatch.fnmatch(f"{kind}/{net.name}", glob):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            print(f"{kind}/{net.name}", file=sys.stderr, flush=True)
            try:
                export(net, path)
            except Exception as error:
                print(f"{kind}/{net.name}: not exported: {words(error)}", file=sys.stderr)
                continue
            record = ask(net)
            for what, why in record["failures"].items():
                print(f"{kind}/{net.name} {what}: {why}", file=sys.stderr)
            path.with_suffix(".json").write_text(json.dumps(record, separators=(",", ":")))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
