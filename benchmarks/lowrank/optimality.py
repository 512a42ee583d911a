"""Is each layer's factorization the best there is, and better than the plain one on what the layer reads?

    python -m benchmarks.lowrank.optimality CASE FOLDER [SAMPLES]        # JSON on stdout

All layers are split at a quarter of their full rank. *Data-free*: the distance of what a layer does from its weights
is that of the nearest matrix of this rank (Eckart and Young), by numpy's SVD; a convolution may be split in another
form with no more arithmetic, and then does better. *Aware*: the error of a layer's output on held-out samples, beside
that of the plain truncated SVD of its weights at the same rank. So that layers do not get in each other's way, each
has a double that reads the same, and the doubles are split.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxopt
from onnx import ModelProto, TensorProto, helper

from benchmarks import judge
from benchmarks.lowrank.activations import read
from benchmarks.lowrank.cases import Case, case
from benchmarks.lowrank.layers import Array, Layer, doubled, is_conv, layers, split, thin
from benchmarks.lowrank.peers import truncated

Record = dict[str, Any]
RANK = 0.25
DOUBLE = "_double"


def measured(one: Case, folder: Path) -> list[Record]:
    """A record for each layer; ``refused`` where it stays whole."""
    clean = onnxopt.optimize(one.model, verify="off").model
    onnxopt.save(clean, folder / "clean.onnx", force=True)
    model = onnx.load(folder / "clean.onnx")
    chosen = layers(model)
    free, notes = factorized(folder / "clean.onnx", "", None)
    found = []
    for layer in chosen:
        record: Record = {"name": layer.name, "op": layer.node.op_type, "shape": list(layer.kernel.shape)}
        if layer.name in notes["forms"]:
            record |= {"form": notes["forms"][layer.name], **data_free(layer, free)}
        else:
            record["refused"] = notes["refused"].get(layer.name, "")
        found.append(record)
    twice = doubled(model, [layer for layer in chosen if layer.name in notes["forms"]], DOUBLE)
    onnx.save(twice, folder / "doubled.onnx")
    aware, notes = factorized(folder / "doubled.onnx", DOUBLE, one)
    same_rank = {layer.name + DOUBLE: layer for layer in chosen if layer.name + DOUBLE in notes["forms"]}
    plain = split(
        twice, {name: thin(*truncated(layer.matrix, rank(layer)), layer.kernel) for name, layer in same_rank.items()}
    )
    errors = [output_errors(each, list(same_rank.values()), one) for each in (aware, plain)]
    for record in found:
        if record["name"] in errors[0]:
            record["aware"], record["plain"] = (each[record["name"]] for each in errors)
            record["aware_form"] = notes["forms"][record["name"] + DOUBLE]
    return found


def rank(layer: Layer) -> int:
    return max(1, round(RANK * min(layer.shape[0], math.prod(layer.shape[1:]))))


def factorized(path: Path, ending: str, data: Case | None) -> tuple[ModelProto, dict[str, dict[str, str]]]:
    """Layers whose names end so, split at this rank; the form of each, and why others stay whole."""
    options = f'{{rank={RANK},round_to=1,timed=false,include=["*{ending}"]}}'
    result = onnxopt.optimize(
        onnx.load(path),
        passes=f"split-matmul{options},split-conv{options}",
        data=None if data is None else data.calibration,
        verify="off",
    )
    reports = result.report.passes
    return result.model, {
        "forms": {str(fact["node"]): str(fact["form"]) for report in reports for fact in report.facts},
        "refused": {note.node: note.text for report in reports for note in report.refusals},
    }


def data_free(layer: Layer, model: ModelProto) -> Record:
    """The distance of what stands in a layer's place in ``model``, and the least for the rank, in units of the norm."""
    matrix = layer.matrix
    values = np.linalg.svd(matrix, compute_uv=False)
    norm = np.linalg.norm(values)
    distance = float(np.linalg.norm(responses(layer, model) - matrix) / norm)
    return {"distance": distance, "bound": float(np.linalg.norm(values[rank(layer) :]) / norm)}


def responses(layer: Layer, model: ModelProto) -> Array:
    """The matrix (k × n) by which the nodes in a layer's place multiply, found by giving them unit vectors."""
    makers = {output: node for node in model.graph.node for output in node.output}
    nodes, value = list[onnx.NodeProto](), layer.node.output[0]
    while value != layer.node.input[0]:
        nodes.append(copy.deepcopy(makers[value]))
        value = nodes[-1].input[0]
    for node in nodes:
        del node.input[2:]  # the bias
        if is_conv(node):  # padding and strides: at one place there are none
            kept = [a for a in node.attribute if a.name == "group"]
            del node.attribute[:]
            node.attribute.extend(kept)
    k, n = layer.matrix.shape
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in (layer.node.input[0], layer.node.output[0])
    ]
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in used]
    graph = helper.make_graph(nodes[::-1], "layer", ports[:1], ports[1:], weights)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        opsets = [each for each in model.opset_import if each.domain == ""]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version), path)
        session = judge.session(path, "ORT_DISABLE_ALL")
    units = np.eye(k, dtype=np.float32).reshape(k, *layer.kernel.shape[1:])
    return np.asarray(session.run(None, {layer.node.input[0]: units})[0], np.float64).reshape(k, n)


def output_errors(model: ModelProto, chosen: Sequence[Layer], one: Case) -> dict[str, float]:
    """How far the outputs of doubles are from those of their layers, in units of the norm."""
    names = [layer.node.output[0] + ending for layer in chosen for ending in ("", DOUBLE)]
    noise, signal = ({layer.name: 0.0 for layer in chosen} for _ in range(2))
    for arrays in read(model, names, (feed for feed, _ in one.held_out)):
        for layer in chosen:
            y, double = (arrays[layer.node.output[0] + ending].astype(np.float64) for ending in ("", DOUBLE))
            noise[layer.name] += float(np.sum((y - double) ** 2))
            signal[layer.name] += float(np.sum(y**2))
    return {name: float(np.sqrt(noise[name] / signal[name])) for name in noise}


def main() -> None:
    name, folder, *most = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    print(json.dumps(measured(case(name, *map(int, most)), Path(folder))))


if __name__ == "__main__":
    main()
