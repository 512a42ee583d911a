"""Channels of random graphs: removing some of every group at once equals zeros in their place, output by output."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx.checker
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import helper

from onnxopt.channels import Unit
from onnxopt.model import from_proto
from tests.channels_oracle import assert_removal_is_zeroing
from tests.fuzz.builder import BOOL, FLOAT, INT64, SYMBOLS, Builder, Skip, Value, at, fixed
from tests.fuzz.channel_steps import (
    CHANNELS,
    first_layers,
    floats,
    image,
    last_layer,
    make,
    reshape,
    width,
    with_axis,
)
from tests.fuzz.models import Sample
from tests.fuzz.nesting import run_steps
from tests.fuzz.steps import is_full, is_single, transpose_
from tests.fuzz.test_random_graphs import settings_for


def heads_with_samples(b: Builder) -> Value:
    """An attention that puts heads and samples into one axis, as ``nn.MultiheadAttention`` does."""
    x = b.pick(lambda v: is_single(v) and v.rank == 3 and is_full(v) and v.shape[-1][0] == v.shape[-1][1])
    heads, each = b.choose((1, 2, 3)), b.choose((2, 3))
    together = (x.shape[0], (heads * x.shape[1][0], heads * x.shape[1][1]), (each, each))
    parts = []
    for _ in range(3):
        y = make(b, "MatMul", [x, floats(b, width(x, 2), heads * each)], with_axis(x, 2, heads * each))
        parts.append(transpose_(b, reshape(b, y, together, [0, -1, each]), [1, 0, 2]))
    q, k, v = parts
    scores = (together[1], x.shape[0], x.shape[0])
    y = make(b, "Softmax", [make(b, "MatMul", [q, transpose_(b, k, [0, 2, 1])], scores)], scores, axis=2)
    y = transpose_(b, make(b, "MatMul", [y, v], q.shape), [1, 0, 2])
    return reshape(b, y, with_axis(x, 2, heads * each), [0, -1, heads * each])


def operator_attention(b: Builder) -> Value:
    """An attention that is one operator, in which several heads of queries may share one of keys."""
    x = b.pick(lambda v: is_single(v) and v.rank == 3 and is_full(v) and v.shape[-1][0] == v.shape[-1][1])
    if b.opset < 23:
        raise Skip
    keys, each, of_values = b.choose((1, 2, 3)), b.choose((2, 3)), b.choose((2, 3))
    heads = keys * b.choose((1, 2))
    sizes = (heads * each, keys * each, keys * of_values)
    parts = [make(b, "MatMul", [x, floats(b, width(x, 2), size)], with_axis(x, 2, size)) for size in sizes]
    shape = with_axis(x, 2, heads * of_values)
    return make(b, "Attention", list(parts), shape, q_num_heads=heads, kv_num_heads=keys)


def group_normalization(b: Builder) -> Value:
    """The same as exporters write it: of groups in place of channels, with all else in one axis."""
    x = image(b)
    count = width(x, 1)
    groups = b.choose([g for g in range(1, count + 1) if count % g == 0])
    each = [count // groups * x.shape[2][i] * x.shape[3][i] for i in (0, 1)]
    y = reshape(b, x, (x.shape[0], (groups, groups), (each[0], each[1])), [0, groups, -1])
    y = make(b, "InstanceNormalization", [y, floats(b, groups), floats(b, groups)], y.shape, epsilon=0.1)
    y = make(b, "Reshape", [y, b.one("Shape", [x], INT64, fixed(4), bound=100)], x.shape)
    return make(b, "Mul", [y, floats(b, count, 1, 1)], x.shape)


def mixed_places(b: Builder) -> Value:
    """A layer over the places of each channel, with samples and channels in one axis."""
    x = image(b)
    (h, h2), (w, w2) = x.shape[2:]
    if (h, w) != (h2, w2):
        raise Skip
    count, made = width(x, 1), b.choose((2, 4))
    rows = tuple(count * n for n in x.shape[0])
    y = make(b, "Reshape", [x, b.ints(-1, h * w)], ((rows[0], rows[1]), (h * w, h * w)))
    y = make(b, "MatMul", [y, floats(b, h * w, made)], with_axis(y, 1, made))
    y = reshape(b, y, (x.shape[0], (count, count), (made, made)), [-1, count, made])
    return transpose_(b, y, [0, 2, 1])


STEPS = (*CHANNELS, heads_with_samples, heads_with_samples, operator_attention, group_normalization, mixed_places)

OPSETS = (7, 8, 9, 10, 11, 12, 13, 15, 17, 18, 19, 20, 21, 22, 23, 24)


@st.composite
def networks(draw: Any) -> Sample:
    """A model in which many channels can be removed, with inputs for two sizes of its dynamic dims."""
    b = Builder(draw, draw(st.sampled_from(OPSETS)))
    n, t = SYMBOLS["N"], SYMBOLS["seq len"]
    inputs = [
        Value("image", FLOAT, (n, *fixed(3, 4, 4))),
        Value("rows", FLOAT, (t, n, (5, 5))),
        Value("flag", BOOL, ()),
    ]
    b.names.update(value.name for value in inputs)
    b.values += inputs
    first_layers(b)
    run_steps(b, STEPS, b.number(8, 16))
    read = {name for node in b.nodes for name in node.input}
    ends = [v for v in b.values if v.dtype == FLOAT and v.name not in read and b.owns(v) and v.rank in (2, 3, 4)]
    ends = [v for v in ends if v.shape[1 if v.rank == 4 else -1][0] == v.shape[1 if v.rank == 4 else -1][1]]
    outputs = [last_layer(b, v) for v in ends]
    assume(outputs)
    dims: dict[str, list[str | int | None]] = {"image": ["N", 3, 4, 4], "rows": ["seq len", "N", 5], "flag": []}
    graph = helper.make_graph(
        b.nodes,
        "channels",
        [helper.make_tensor_value_info(v.name, v.dtype, dims[v.name]) for v in inputs],
        [helper.make_tensor_value_info(v.name, v.dtype, [None] * v.rank) for v in outputs],
        b.initializers,
    )
    imports = [helper.make_opsetid("", b.opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=max(8, helper.find_min_ir_version_for(imports)))
    feeds = [
        {v.name: np.random.default_rng(run).standard_normal(at(v.shape, run)).astype(np.float32) for v in inputs[:2]}
        | {"flag": np.array(run == 0)}
        for run in (0, 1)
    ]
    onnx.checker.check_model(model, full_check=True)
    return Sample(model, feeds, [])


@pytest.mark.parametrize("unit", ["channel", "head"])
def test_removal_is_zeroing(unit: Unit) -> None:
    removed: Counter[bool] = Counter()

    @settings_for(60)
    @given(networks(), st.integers(0, 99), st.sampled_from((0.3, 0.6, 1.0)))
    def check(sample: Sample, seed: int, share: float) -> None:
        model = from_proto(sample.model)
        for feeds in sample.feeds:
            count = assert_removal_is_zeroing(model, seed, unit=unit, share=share, feeds=feeds, by_members=False)
            removed[count > 0] += 1

    check()
    assert removed[True] > removed[False], "the generator is worth its time only while most graphs can be pruned"
