"""What a layer and its gradients cost on ONNX Runtime and PyTorch: CPU time of one thread, in one process, by turns.

Run it as a module in an environment that has PyTorch, ONNX Runtime and what onnxopt needs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper
from onnxopt.gradients import gradient_graph
from onnxopt.model import from_proto, to_proto

_ROUNDS = 7
_SECONDS = 0.02
"""CPU time of a round of one side."""


@dataclass(frozen=True)
class Layer:
    """A square convolution that is padded to keep the size, or to halve it at stride 2."""

    channels: int
    size: int
    filters: int
    kernel: int = 3
    stride: int = 1
    group: int = 1

    def __str__(self) -> str:
        kind = "depthwise " if self.group > 1 else ""
        return f"{kind}{self.channels}→{self.filters}, {self.size}², {self.kernel}×{self.kernel}/{self.stride}"


LAYERS = {
    "ResNet-8": (Layer(3, 32, 16), Layer(16, 32, 16), Layer(16, 32, 32, stride=2), Layer(32, 16, 32), Layer(64, 8, 64)),
    "ResNet-18": (
        Layer(3, 64, 64, 7, 2),
        Layer(64, 16, 64),
        Layer(64, 16, 128, stride=2),
        Layer(64, 16, 128, 1, 2),
        Layer(128, 8, 128),
        Layer(256, 4, 256),
        Layer(512, 2, 512),
    ),
    "MobileNetV2": (
        Layer(16, 32, 96, 1),
        Layer(96, 16, 24, 1),
        Layer(192, 8, 32, 1),
        Layer(96, 4, 576, 1),
        Layer(320, 2, 1280, 1),
        Layer(32, 32, 32, group=32),
        Layer(96, 32, 96, stride=2, group=96),
        Layer(144, 16, 144, group=144),
        Layer(192, 8, 192, group=192),
        Layer(576, 4, 576, group=576),
    ),
}


def main() -> None:
    """A table: milliseconds of both, forward alone and with the gradients of input and weights."""
    print("| layer | batch | onnxopt forward, step | PyTorch forward, step | step ratio |\n|---|---|---|---|---|")
    for batch in (8, 64):
        for network, layers in LAYERS.items():
            for layer in layers:
                ms = {name: 1e3 * seconds for name, seconds in _measure(layer, batch).items()}
                ratio = ms["step"] / ms["torch step"]
                ours, theirs = (f"{ms[a]:.2f}, {ms[b]:.2f}" for a, b in (("forward", "step"), ("torch", "torch step")))
                print(f"| {network} {layer} | {batch} | {ours} | {theirs} | {ratio:.2f} |", flush=True)


def _measure(layer: Layer, batch: int) -> dict[str, float]:
    """Median CPU seconds of each side; raises ``AssertionError`` if their gradients differ."""
    generator = np.random.default_rng(0)
    k, s = layer.kernel, layer.stride
    x = generator.standard_normal((batch, layer.channels, layer.size, layer.size)).astype(np.float32)
    w = generator.standard_normal((layer.filters, layer.channels // layer.group, k, k)).astype(np.float32)
    r = generator.standard_normal((batch, layer.filters, -(-layer.size // s), -(-layer.size // s))).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], strides=[s, s], pads=[k // 2] * 4, group=layer.group),
        helper.make_node("Mul", ["y", "r"], ["z"]),
        helper.make_node("ReduceSum", ["z"], ["loss"], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info(name, 1, a.shape) for name, a in (("x", x), ("w", w))]
    loss = helper.make_tensor_value_info("loss", 1, [])
    graph = helper.make_graph(nodes, "layer", inputs, [loss], [numpy_helper.from_array(r, "r")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    found = gradient_graph(from_proto(model), "loss", ["x", "w"])
    tensors = [torch.from_numpy(a).requires_grad_() for a in (x, w)]

    def torch_forward() -> Any:
        return (torch.nn.functional.conv2d(*tensors, None, s, k // 2, 1, layer.group) * torch.from_numpy(r)).sum()

    def torch_step() -> None:
        for tensor in tensors:
            tensor.grad = None
        torch_forward().backward()

    step, results = _session(to_proto(found.model), {"x": x, "w": w})
    torch_step()
    for result, tensor in zip(results[1:], tensors, strict=True):
        assert np.abs(result - tensor.grad.numpy()).max() <= 1e-4 * np.abs(result).max()
    forward = _session(model, {"x": x, "w": w})[0]
    return _by_turns({"forward": forward, "step": step, "torch": torch_forward, "torch step": torch_step})


def _session(model: Any, feeds: Mapping[str, Any]) -> tuple[Callable[[], object], list[Any]]:
    """A run into arrays that are kept, and what it gave."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results = session.run(None, dict(feeds))
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    for output, array in zip(session.get_outputs(), results, strict=True):
        binding.bind_ortvalue_output(output.name, ort.OrtValue.ortvalue_from_numpy(array.copy()))
    return lambda: session.run_with_iobinding(binding), results


def _by_turns(sides: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The median CPU seconds of a call, over rounds in which each side has its turn."""
    counts, found = {}, {name: [] for name in sides}
    for name, call in sides.items():
        call()
        start = time.process_time()
        call()
        counts[name] = max(1, int(_SECONDS / max(time.process_time() - start, 1e-5)))
    for _ in range(_ROUNDS):
        for name, call in sides.items():
            start = time.process_time()
            for _ in range(counts[name]):
                call()
            found[name].append((time.process_time() - start) / counts[name])
    return {name: statistics.median(seconds) for name, seconds in found.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
