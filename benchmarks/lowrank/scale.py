"""Time to factorize a model of 100 MB on two cores, with data: a stack of transformer blocks, and one of convolutions.

    python -m benchmarks.lowrank.scale KIND FOLDER        # JSON on stdout

``products`` has four blocks as BERT-base has them, ``convolutions`` 3×3 kernels in residual blocks of 64 to 512
channels as ResNet-34 has them. Weights are random; what is timed is ``run`` of the pass with its defaults.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper
from onnxopt.model import load
from onnxopt.pass_base import Pass, Report
from onnxopt.passes.lowrank.split_conv import SplitConv
from onnxopt.passes.lowrank.split_matmul import SplitMatmul
from onnxopt.pipeline import PassManager

from benchmarks.prune.scale import Builder
from benchmarks.quantize.weights import Feed, correlated, encoder

KINDS = ("products", "convolutions")
CORES = 2
STAGES = ((64, 3), (128, 4), (256, 6), (512, 4))
"""Channels, and blocks of two convolutions."""
PICTURES = 64


def products() -> tuple[ModelProto, Pass, list[Feed]]:
    return encoder(blocks=4), SplitMatmul(), correlated(16, np.random.default_rng(2))


def convolutions() -> tuple[ModelProto, Pass, list[Feed]]:
    builder, channels = Builder(STAGES[0][0]), STAGES[0][0]
    x = builder.conv("x", 3, channels, 3)
    for width, blocks in STAGES:
        if width != channels:
            x = builder.add("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])[0]
        for at in range(blocks):
            shortcut = x if width == channels else builder.conv(x, channels, width)
            inner = builder.add("Relu", [builder.conv(x, channels, width, 3)])[0]
            last = at == blocks - 1 and width == STAGES[-1][0]
            y = builder.add("Add", [shortcut, builder.conv(inner, width, width, 3)])[0]
            x, channels = y if last else builder.add("Relu", [y])[0], width
    for tensor in builder.weights:  # so that numbers neither grow nor vanish with depth
        weight = onnx.numpy_helper.to_array(tensor)
        scale = np.sqrt(1 / np.prod(weight.shape[1:]))
        tensor.CopyFrom(onnx.numpy_helper.from_array(weight * np.float32(scale), tensor.name))
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in (("x", (3, 32, 32)), (x, (channels, 4, 4)))
    ]
    graph = helper.make_graph(builder.nodes, "convolutions", ports[:1], ports[1:], builder.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    rng = np.random.default_rng(1)
    return model, SplitConv(), [
        {"x": rng.standard_normal((8, 3, 32, 32)).astype(np.float32)} for _ in range(PICTURES // 8)
    ]  # fmt: skip


def timed(path: Path, pass_: Pass, feeds: list[Feed]) -> dict[str, Any]:
    """Wall and CPU time of the pass alone, and what it did."""
    found: dict[str, Any] = {}
    start: tuple[float, float] = (0, 0)

    def begins(stage: str) -> None:
        nonlocal start
        if stage == pass_.name:
            start = time.perf_counter(), time.process_time()

    def done(report: Report) -> None:
        found.update(wall=time.perf_counter() - start[0], cpu=time.process_time() - start[1])
        found.update(changed=report.changed, refused=[str(note) for note in report.refusals])

    PassManager([pass_], verify="off", data=feeds, on_stage=begins, on_report=done).run(load(path))
    return found


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}.onnx"
    model, pass_, feeds = products() if kind == "products" else convolutions()
    onnx.save(model, path)
    print(json.dumps({"bytes": path.stat().st_size, **timed(path, pass_, feeds)}))


if __name__ == "__main__":
    main()
