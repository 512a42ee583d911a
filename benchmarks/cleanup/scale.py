"""How cleanup scales: time with the number of nodes, memory with the size of the weights.

    python -m benchmarks.cleanup.scale nodes              # 1k, 10k, 100k nodes
    python -m benchmarks.cleanup.scale memory             # 3 GB of external data; 1 GB inline
    python -m benchmarks.cleanup.scale nodes --tools onnxopt,onnxsim,onnxslim,onnxoptimizer,onnxscript,ort

The large files are made for the run and deleted after it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from benchmarks import facts, venvs
from benchmarks.cleanup import measure
from benchmarks.cleanup.tables import table
from benchmarks.cleanup.tools import BY_NAME, Tool

HERE = Path(__file__).parent
TIMEOUT = 580.0


def mixed_graph(blocks: int, seed: int = 0) -> ModelProto:
    """A chain of blocks of ten nodes that a cleanup can shorten: foldable constants, shape arithmetic
    on a symbolic
    batch, no-ops, duplicates and dead ends, between layers that must stay."""
    rng = np.random.default_rng(seed)
    width = 8
    nodes: list[NodeProto] = []
    tensors = [
        numpy_helper.from_array(np.array(1.0, np.float32), "one"),
        numpy_helper.from_array(np.array(0, np.int64), "zero"),
        numpy_helper.from_array(np.array([0], np.int64), "axis"),
        numpy_helper.from_array(np.array([width], np.int64), "width"),
    ]
    x = "x"
    for i in range(blocks):
        weight = (rng.standard_normal((width, width)) / width).astype(np.float32)
        tensors.append(numpy_helper.from_array(weight, f"w{i}"))
        v = [f"b{i}_{j}" for j in range(10)]
        nodes += [
            helper.make_node("MatMul", [x, f"w{i}"], [v[0]], name=f"n{i}_matmul"),
            helper.make_node("Identity", [v[0]], [v[1]], name=f"n{i}_identity"),
            helper.make_node("Add", ["one", "one"], [v[2]], name=f"n{i}_foldable"),
            helper.make_node("Mul", [v[1], v[2]], [v[3]], name=f"n{i}_scale"),
            helper.make_node("Shape", [v[3]], [v[4]], name=f"n{i}_shape"),
            helper.make_node("Gather", [v[4], "axis"], [v[5]], name=f"n{i}_batch"),
            helper.make_node("Concat", [v[5], "width"], [v[6]], name=f"n{i}_target", axis=0),
            helper.make_node("Reshape", [v[3], v[6]], [v[7]], name=f"n{i}_reshape"),
            helper.make_node("Sigmoid", [v[7]], [v[8]], name=f"n{i}_dead"),
            helper.make_node("Tanh", [v[7]], [v[9]], name=f"n{i}_tanh"),
        ]
        x = v[9]
    nodes.append(helper.make_node("Identity", [x], ["y"], name="last"))
    port: tuple[int, list[str | int | None]] = (TensorProto.FLOAT, ["batch", width])
    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info("x", *port)],
        [helper.make_tensor_value_info("y", *port)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def heavy_graph(layers: int, width: int) -> ModelProto:
    """Large layers with something to clean between them, and weights (``4 · width²`` bytes a layer)
    left to fill in."""
    nodes: list[NodeProto] = []
    x = "x"
    for i in range(layers):
        nodes += [
            helper.make_node("MatMul", [x, f"w{i}"], [f"m{i}"], name=f"matmul{i}"),
            helper.make_node("Identity", [f"m{i}"], [f"i{i}"], name=f"identity{i}"),
            helper.make_node("Tanh", [f"i{i}"], [f"t{i}"], name=f"tanh{i}"),
        ]
        x = f"t{i}"
    port: tuple[int, list[str | int | None]] = (TensorProto.FLOAT, ["batch", width])
    graph = helper.make_graph(
        nodes, "heavy", [helper.make_tensor_value_info("x", *port)], [helper.make_tensor_value_info(x, *port)]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_external(path: Path, layers: int, width: int) -> None:
    """Weights go to the data file one at a time: the generator must not need what it measures."""
    model = heavy_graph(layers, width)
    rng = np.random.default_rng(0)
    with path.with_name("weights.bin").open("wb") as data:
        for i in range(layers):
            weight = rng.standard_normal((width, width), np.float32) / np.float32(width)
            tensor = model.graph.initializer.add(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[width, width])
            tensor.data_location = TensorProto.EXTERNAL
            where = {"location": "weights.bin", "offset": str(data.tell()), "length": str(weight.nbytes)}
            for key, value in where.items():
                tensor.external_data.add(key=key, value=value)
            data.write(weight.data)
    onnx.save(model, str(path))


def write_inline(path: Path, layers: int, width: int) -> None:
    model = heavy_graph(layers, width)
    rng = np.random.default_rng(0)
    for i in range(layers):
        weight = rng.standard_normal((width, width), np.float32) / np.float32(width)
        model.graph.initializer.append(numpy_helper.from_array(weight, f"w{i}"))
    onnx.save(model, str(path))


@contextmanager
def workplace() -> Iterator[Path]:
    """Beside the cache, for a temporary folder in memory would count as memory."""
    venvs.CACHE.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=venvs.CACHE, prefix="scale-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_tool(tool: Tool, source: Path, sample: bool) -> tuple[measure.Run, int | None]:
    """The run, and the nodes of what it left."""
    target = source.parent / f"out-{tool.name}" / "model.onnx"
    target.parent.mkdir()
    try:
        run = measure.run(tool.whole(tool.python(), source, target), TIMEOUT, sample)
        return run, facts.count_nodes(facts.load(target)) if run.ok and target.exists() else None
    finally:
        shutil.rmtree(target.parent)


def nodes(tools: Sequence[Tool]) -> str:
    sizes = (100, 1_000, 10_000)
    rows = []
    with workplace() as folder:
        sources = []
        for blocks in sizes:
            source = folder / f"{blocks}" / "model.onnx"
            source.parent.mkdir()
            onnx.save(mixed_graph(blocks), str(source))
            sources.append(source)
        for tool in tools:
            cells, per_node = [], []
            for blocks, source in zip(sizes, sources, strict=True):
                run, left = run_tool(tool, source, sample=False)
                if not run.ok:
                    cells.append(" ".join(run.failure())[:60])
                    break
                per_node.append(run.wall / (10 * blocks))
                cells.append(f"{run.wall:.1f} s, {left} left, {run.peak_rss / 1e6:.0f} MB")
            ratio = f"{per_node[-1] / per_node[-2]:.2f}" if len(per_node) == len(sizes) else "–"
            rows.append([tool.label, *cells, *["–"] * (len(sizes) - len(cells)), ratio])
            print(rows[-1], file=sys.stderr, flush=True)
    return "\n\n".join(
        [
            "## Time against nodes",
            "A whole process each. The last column is time per node at 100,000 nodes over time per node "
            "at 10,000: "
            "1 is linear.",
            table(["tool", "1,000 nodes", "10,000", "100,000", "per node"], rows),
        ]
    )


def memory(tools: Sequence[Tool]) -> str:
    makers: list[tuple[str, Callable[[Path, int, int], None], int, int]] = [
        ("3 GB external", write_external, 45, 4096),
        ("1 GB inline", write_inline, 16, 4096),
    ]
    rows = []
    for title, write, layers, width in makers:
        with workplace() as folder:
            source = folder / "model.onnx"
            write(source, layers, width)
            size = facts.file_size(source)
            for tool in tools:
                run, left = run_tool(tool, source, sample=True)
                result = f"{left} nodes" if run.ok else " ".join(run.failure())[:80]
                peak = run.peak_rss
                rows.append([title, tool.label, f"{peak / 1e6:.0f}", f"{peak / size:.2f}", f"{run.wall:.1f}", result])
                print(rows[-1], file=sys.stderr, flush=True)
    return "\n\n".join(
        [
            "## Memory against weights",
            "Peak resident memory of the process tree. Pages of a mapped data file count as resident "
            "although the "
            "system can take them back at any time.",
            table(["model", "tool", "peak (MB)", "peak / file", "time (s)", "result"], rows),
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cleanup.scale", description=__doc__)
    parser.add_argument("what", nargs="*", default=["nodes", "memory"], help="nodes, memory or both")
    parser.add_argument("--tools", default="onnxopt", help=f"of {', '.join(BY_NAME)}")
    parser.add_argument("--out", type=Path, default=HERE / "scale.md")
    args = parser.parse_args(argv)
    tools = [BY_NAME[name] for name in args.tools.split(",")]
    parts = ["# Cleanup: scale", *({"nodes": nodes, "memory": memory}[what](tools) for what in args.what)]
    args.out.write_text("\n\n".join(parts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
