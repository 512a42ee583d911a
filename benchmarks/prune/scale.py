"""Time of the group analysis of a graph of 5,000 nodes, and of L1 pruning of a model of 100 MB.

python -m benchmarks.prune.scale FOLDER        # JSON on stdout
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxopt
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxopt.channels import ChannelGraph
from onnxopt.graph import Editor
from onnxopt.model import load
from onnxopt.passes.prune.prune_channels import PruneChannels

NODES = 5_000
BYTES = 100_000_000


class Builder:
    """A chain of blocks on one stream of channels."""

    def __init__(self, width: int) -> None:
        self.width, self.rng = width, np.random.default_rng(0)
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self.size = 0

    def add(self, op: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> list[str]:
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, f"n{len(self.nodes)}", **attributes))
        return names

    def weight(self, *shape: int) -> str:
        array = self.rng.standard_normal(shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(array, f"w{len(self.weights)}"))
        self.size += array.nbytes
        return self.weights[-1].name

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 1, group: int = 1) -> str:
        w = self.weight(outputs, inputs // group, kernel, kernel)
        return self.add("Conv", [x, w], pads=[kernel // 2] * 4, group=group)[0]

    def block(self, x: str) -> str:
        """A residual block with a bottleneck, and one of concatenation, split, depthwise and gate in turn."""
        c = self.width
        y = self.add("Relu", [self.conv(x, c, c // 2)])[0]
        kind = len(self.nodes) // 7 % 3
        if kind == 0:
            y = self.conv(y, c // 2, c // 2, 3, c // 2)
        elif kind == 1:
            a, b = self.add("Split", [y], 2, axis=1, num_outputs=2)
            y = self.add("Concat", [b, a], axis=1)[0]
        else:
            y = self.add("Mul", [y, self.add("Sigmoid", [self.conv(y, c // 2, c // 2)])[0]])[0]
        return self.add("Add", [x, self.conv(y, c // 2, c)])[0]

    def save(self, path: Path, more: Callable[[], bool]) -> None:
        x = self.conv("x", 3, self.width)
        while more():
            x = self.block(x)
        last = self.conv(x, self.width, 4)
        shape: list[str | int | None] = ["batch", 3, 8, 8]
        graph = helper.make_graph(
            self.nodes,
            "scale",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["batch", 4, 8, 8])],
            self.weights,
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def seconds(call: Callable[[], Any]) -> tuple[Any, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    many, large = folder / "nodes.onnx", folder / "bytes.onnx"
    builder = Builder(8)
    builder.save(many, lambda: len(builder.nodes) < NODES - 2)
    editor = Editor(load(many))
    graph, wall, cpu = seconds(lambda: ChannelGraph(editor))
    record = {"nodes": len(builder.nodes), "groups": len(graph.groups), "analysis": {"wall": wall, "cpu": cpu}}
    record["free"] = sum(not group.frozen for group in graph.groups)
    builder = Builder(512)
    builder.save(large, lambda: builder.size < BYTES)
    pass_ = PruneChannels(ratio=0.5, importance="l1")

    def prune() -> Any:
        result = onnxopt.optimize(large, passes=[pass_], verify="off")
        result.save(folder / "pruned.onnx", force=True)
        return result.report.passes[-1]

    report, wall, cpu = seconds(prune)
    record |= {"bytes": large.stat().st_size, "left": (folder / "pruned.onnx").stat().st_size}
    record |= {"changed": report.changed, "l1": {"wall": wall, "cpu": cpu}}
    record["refused"] = [str(note) for note in report.refusals][:3]
    print(json.dumps(record))


if __name__ == "__main__":
    main()
