"""A small net taught by ``resnet8_mnist_hard``, beside the same net trained on labels alone.

    python -m benchmarks.distill.student START WAY SAMPLES SEED        # JSON on stdout

``START`` is ``random``, a net of four convolutions with random weights that follow from the seed, or ``pruned``, what
is left of the teacher at a quarter of its arithmetic. ``WAY`` is ``labels``, ``both`` (teacher and labels) or
``teacher``. All ways start alike, and see the same samples in the same order, as often.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxopt
from models._common import MODELS, accuracy
from onnx import TensorProto, helper, numpy_helper
from onnxopt.macs import count_macs

from benchmarks.distill.trial import CATALOGUE, training_data
from benchmarks.prune.counts import slower_or_not

Array = np.ndarray[Any, Any]
Record = dict[str, Any]

TEACHER = "resnet8_mnist_hard"
LAYERS = ((1, 12, 1), (12, 16, 2), (16, 32, 2), (32, 32, 1))
"""Input and output channels, and stride, of 3 × 3 convolutions."""
STARTS = {
    "random": ("", "epochs=60,lr=0.004,batch_norm=train"),
    "pruned": ("cleanup,prune-channels{of=macs,ratio=0.75,round_to=1,scope=global},reconstruct,", "epochs=20,lr=0.002"),
}
"""What makes the student, and how it is trained."""
WAYS = {
    "labels": "finetune{{{options}}}",
    "both": 'distill{{teacher="{teacher}",hard=0.5,{options}}}',
    "teacher": 'distill{{teacher="{teacher}",hard=0.0,{options}}}',
}
JUDGED = 600
"""Other samples, which say when training is best."""


def student(seed: int) -> onnx.ModelProto:
    """Convolutions with BatchNormalization, and a layer on the means; weights after He et al., 2015."""
    generator = np.random.default_rng(seed)
    nodes, weights, x = [], {}, "image"

    def weight(name: str, array: Array) -> str:
        weights[name] = array.astype(np.float32)
        return name

    for i, (inputs, outputs, stride) in enumerate(LAYERS):
        he = np.sqrt(2 / (9 * inputs)) * generator.standard_normal((outputs, inputs, 3, 3))
        nodes.append(
            helper.make_node("Conv", [x, weight(f"w{i}", he)], [f"c{i}"], strides=[stride] * 2, pads=[1, 1, 1, 1])
        )
        ends = {"scale": np.ones, "bias": np.zeros, "mean": np.zeros, "var": np.ones}
        norms = [weight(f"{name}{i}", make(outputs)) for name, make in ends.items()]
        nodes.append(helper.make_node("BatchNormalization", [f"c{i}", *norms], [f"n{i}"]))
        nodes.append(helper.make_node("Relu", [f"n{i}"], [x := f"r{i}"]))
    last = LAYERS[-1][1]
    head = [weight("w", generator.standard_normal((last, 10)) / np.sqrt(last)), weight("b", np.zeros(10))]
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("Gemm", ["flat", *head], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 32, 32])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "student", [image], [logits], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def taught(start: str, way: str, count: int, seed: int) -> Record:
    """Accuracy in percent of student and teacher, and their multiply–accumulates."""
    entry = CATALOGUE[TEACHER]
    teacher, (made, training) = MODELS / entry["path"], STARTS[start]
    data = training_data(TEACHER, labelled=way != "teacher")
    order = np.random.default_rng(seed).permutation(len(data["image"]))
    learnt, judged = ({n: x[rows] for n, x in data.items()} for rows in (order[JUDGED:][:count], order[:JUDGED]))
    pipeline = made + WAYS[way].format(teacher=teacher, options=f"{training},seed={seed}")
    with slower_or_not():
        result = onnxopt.optimize(
            student(seed) if start == "random" else teacher,
            passes=pipeline, data=learnt, evaluation=judged, verify="off",
        )  # fmt: skip
    if result.report.problems:
        return {"failure": "; ".join(result.report.problems)}
    with tempfile.TemporaryDirectory() as folder:
        result.save(target := Path(folder) / "student.onnx")
        both = (target, teacher)
        return {
            "accuracy": [accuracy(each, MODELS / entry["eval"], "logits") for each in both],
            "macs": [count_macs(onnxopt.load(each)).total for each in both],
        }


def main() -> None:
    start, way, count, seed = sys.argv[1:]
    print(json.dumps(taught(start, way, int(count), int(seed))))


if __name__ == "__main__":
    main()
