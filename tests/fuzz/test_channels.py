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
from tests.fuzz.builder import BOOL, FLOAT, SYMBOLS, Builder, Value, at, fixed
from tests.fuzz.channel_steps import CHANNELS, first_layers, last_layer
from tests.fuzz.models import Sample
from tests.fuzz.nesting import run_steps
from tests.fuzz.test_random_graphs import settings_for

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
    run_steps(b, CHANNELS, b.number(8, 16))
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
