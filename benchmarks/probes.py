"""Inputs to try a model on: several values of every dynamic dimension, and values that the model can mean.

Random numbers are no input for a tokenizer's ids, a mask or a sampling rate. A *plan* says, for one model,
which sizes to try and what each input holds; known models have one here or beside the file
(``model.probe.json``), the rest get one from the graph.
"""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import onnx
from onnx import ModelProto

from benchmarks import facts

Feed = dict[str, np.ndarray[Any, Any]]


class Plan(TypedDict, total=False):
    """``cases``: one dict a case, sizes by symbol or by ``input:axis``, and fixed values by ``input=``."""

    cases: list[dict[str, Any]]
    ranges: dict[str, list[float]]
    """Low and high (integers: high not included) of an input; floats default to a standard normal."""
    masks: list[str]
    """Inputs that are 1 on a prefix and 0 after."""


KNOWN: dict[str, Plan] = {
    # The callers of silero prepend a context of 64 (16 kHz) or 32 (8 kHz) samples to 512 or 256.
    "*/silero_vad.onnx": {
        "cases": [
            {"input:0": 1, "input:1": 576, "state:1": 1, "sr=": 16000},
            {"input:0": 3, "input:1": 288, "state:1": 3, "sr=": 8000},
            {"input:0": 2, "input:1": 576, "state:1": 2, "sr=": 16000},
        ],
        "ranges": {"input": [-1, 1], "state": [-1, 1]},
    },
    "*/silero_vad_op18_ifless.onnx": {
        "cases": [
            {"batch": 1, "sequence": 576, "sr=": 16000},
            {"batch": 3, "sequence": 288, "sr=": 8000},
            {"batch": 2, "sequence": 576, "sr=": 16000},
        ],
        "ranges": {"input": [-1, 1], "state": [-1, 1]},
    },
    "*/silero_vad_16k_sequence.onnx": {
        "cases": [{"sequence_length": n} for n in (1, 4, 9)],
        "ranges": {"input": [-1, 1], "h": [-1, 1], "c": [-1, 1]},
    },
    "*/silero_vad_*.onnx": {
        "cases": [{"batch": b, "sequence": 576, "sr=": 16000} for b in (1, 3, 2)],
        "ranges": {"input": [-1, 1], "state": [-1, 1]},
    },
    "*/ch_PP-OCRv4_det_infer.onnx": {
        "cases": [{"x:0": b, "x:2": h, "x:3": w} for b, h, w in ((1, 64, 96), (2, 96, 160), (1, 192, 64))],
        "ranges": {"x": [-1, 1]},
    },
    "*/ch_PP-OCRv4_rec_infer.onnx": {
        "cases": [{"x:0": b, "x:2": 48, "x:3": w} for b, w in ((1, 320), (3, 160), (2, 64))],
        "ranges": {"x": [-1, 1]},
    },
    "*/ch_ppocr_mobile_v2.0_cls_infer.onnx": {
        "cases": [{"x:0": b, "x:2": h, "x:3": w} for b, h, w in ((1, 48, 192), (3, 48, 192), (2, 32, 96))],
        "ranges": {"x": [-1, 1]},
    },
    "*/pnet.onnx": {
        "cases": [{"N": n, "M1": h, "M2": w} for n, h, w in ((1, 24, 36), (2, 41, 33), (3, 12, 12))],
        "ranges": {"input_1": [-1, 1]},
    },
    "*/magika/*.onnx": {"ranges": {"bytes": [0, 257]}},
    "*/nmp.onnx": {
        "cases": [{"unk__749": n} for n in (1, 2)],
        "ranges": {"serving_default_input_2:0": [-1, 1]},
    },
}


def feeds(path: Path, seed: int = 0) -> list[Feed]:
    """Two or three feeds for the model at ``path``."""
    model = facts.load(path)
    plan = plan_for(path, model)
    return [_feed(model, plan, case, np.random.default_rng([seed, i])) for i, case in enumerate(plan["cases"])]


def plan_for(path: Path, model: ModelProto) -> Plan:
    beside = path.with_suffix(".probe.json")
    plan = Plan()
    if beside.exists():
        plan = json.loads(beside.read_text())
    else:
        plan = next((p for glob, p in KNOWN.items() if fnmatch.fnmatch(path.as_posix(), glob)), Plan())
    ranges = guessed_ranges(model) | plan.get("ranges", {})
    masks = plan.get("masks", [p.name for p in facts.inputs(model) if "mask" in p.name.lower()])
    return {"cases": plan.get("cases") or guessed_cases(model), "ranges": ranges, "masks": masks}


def guessed_cases(model: ModelProto) -> list[dict[str, Any]]:
    """Three sizes of each open dimension: small for a leading axis (a batch), longer for the rest."""
    cases: list[dict[str, Any]] = [{}, {}, {}]
    for value in facts.inputs(model):
        for axis, dim in enumerate(value.dims or ()):
            if not isinstance(dim, int):
                key = dim or f"{value.name}:{axis}"
                for case, size in zip(cases, (1, 3, 2) if axis == 0 else (8, 13, 5), strict=True):
                    case.setdefault(key, size)
    return cases


def guessed_ranges(model: ModelProto) -> dict[str, list[float]]:
    """Bounds of integer inputs that index a table: they are followed to the ``Gather`` that reads them."""
    sizes = {t.name: list(t.dims) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            sizes[node.output[0]] = list(node.attribute[0].t.dims)
    origin = {p.name: p.name for p in facts.inputs(model)}
    ranges: dict[str, list[float]] = {}
    through = {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand"}
    for node in model.graph.node:
        if node.op_type in through and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        elif node.op_type == "Gather" and node.input[1] in origin and node.input[0] in sizes:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            name, high = origin[node.input[1]], sizes[node.input[0]][axis]
            ranges[name] = [0, min(high, ranges.get(name, [0, high])[1])]
    return ranges


def _feed(model: ModelProto, plan: Plan, case: dict[str, Any], rng: np.random.Generator) -> Feed:
    feed: Feed = {}
    for value in facts.inputs(model):
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.elem_type)
        if (fixed := case.get(f"{value.name}=")) is not None:
            feed[value.name] = np.asarray(fixed, dtype)
            continue
        shape = [
            int(case.get(f"{value.name}:{axis}", case.get(str(dim), dim if isinstance(dim, int) else 2)))
            for axis, dim in enumerate(value.dims or ())
        ]
        feed[value.name] = _values(value.name, shape, np.dtype(dtype), plan, rng)
    return feed


def _values(
    name: str, shape: list[int], dtype: np.dtype[Any], plan: Plan, rng: np.random.Generator
) -> np.ndarray[Any, Any]:
    if name in plan["masks"]:
        length = rng.integers(1, shape[-1] + 1, [*shape[:-1], 1])
        return (np.arange(shape[-1]) < length).astype(dtype)
    low, high = plan["ranges"].get(name, (None, None))
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        return rng.integers(int(low or 0), int(high if high is not None else 10), shape).astype(dtype)
    if dtype.kind in "OUS":
        return rng.choice(np.array(["a", "bc", ""], object), shape)
    if low is not None and high is not None:
        return rng.uniform(low, high, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)
