"""Channels through every operator that has a rule, in the uses that onnx's own backend tests make of it.

Their models are one node each. A layer in front of each input makes channels along one axis, and a layer behind each
output reads them; inputs but the first are weights in half of the runs.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxopt.channels._walk import _RULES
from onnxopt.model import from_proto
from tests.channels_oracle import assert_removal_is_zeroing, draw, groups, remove
from tests.conformance import oracle
from tests.conformance.cases import Case, cases
from tests.support import outputs

Feeds = dict[str, Any]

ONE_OF = 6
"""So few of the uses of each operator are tried."""


def uses() -> list[Case]:
    """Some of the uses of each operator, the first among them."""
    met: Counter[str] = Counter()
    chosen = []
    for case in cases():
        if isinstance(case.model, onnx.ModelProto) and len(case.model.graph.node) == 1:
            op = case.model.graph.node[0].op_type
            met[op] += 1
            if op in _RULES and met[op] % ONE_OF == 1 and _can_have_channels(case):
                chosen.append(case)
    return chosen


def _can_have_channels(case: Case) -> bool:
    """Whether there is a float input of two axes or more."""
    return any(_is_wide(array) for feeds in case.feeds()[:1] for array in feeds.values())


def _is_wide(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype == np.float32 and array.ndim >= 2


def turned_last(rank: int, axis: int) -> list[int]:
    """The order of axes in which ``axis`` is the last."""
    return [at for at in range(rank) if at != axis % rank] + [axis % rank]


def dressed(case: Case, axis: int, weights: bool) -> tuple[onnx.ModelProto, Feeds]:
    """The model between layers that make and read channels along ``axis``, and inputs for it."""
    proto, feeds = case.proto(), dict(case.feeds()[0])
    (expected,) = oracle.by_runtime(proto, [feeds])
    graph, rng = proto.graph, np.random.default_rng(0)
    front, back = [], []
    for name, array in [*feeds.items()]:
        if weights and name != graph.input[0].name and isinstance(array, np.ndarray):
            graph.initializer.append(numpy_helper.from_array(array, name))
            graph.input.remove(next(value for value in graph.input if value.name == name))
            del feeds[name]
        elif _is_wide(array) and array.shape[axis] > 1:
            size, order = array.shape[axis], turned_last(array.ndim, axis)
            made = np.eye(size) + 0.01 * rng.random((size, size))
            graph.initializer.append(numpy_helper.from_array(made.astype(np.float32), f"{name}_w"))
            front += [
                helper.make_node("Transpose", [name], [f"{name}_t"], perm=order),
                helper.make_node("MatMul", [f"{name}_t", f"{name}_w"], [f"{name}_m"]),
                helper.make_node("Transpose", [f"{name}_m"], [f"{name}_x"], perm=np.argsort(order).tolist()),
            ]
            node = graph.node[0]
            node.input[:] = [f"{name}_x" if given == name else given for given in node.input]
    for at, array in enumerate(expected):
        if not _is_wide(array) or array.shape[axis] < 2:
            continue
        name, size = graph.output[at].name, array.shape[axis]
        graph.initializer.append(numpy_helper.from_array(rng.random((size, 2), dtype=np.float32), f"{name}_v"))
        back += [
            helper.make_node("Transpose", [name], [f"{name}_t"], perm=turned_last(array.ndim, axis)),
            helper.make_node("MatMul", [f"{name}_t", f"{name}_v"], [f"{name}_y"]),
        ]
        graph.output[at].CopyFrom(helper.make_tensor_value_info(f"{name}_y", 1, None))
    nodes = [*front, *graph.node, *back]
    del graph.node[:]
    graph.node.extend(nodes)
    return proto, feeds


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_removal_is_zeroing(axis: int) -> None:
    removed = 0
    for case in uses():
        for weights in (False, True) if len(case.feeds()[0]) > 1 else (False,):
            try:
                proto, feeds = dressed(case, axis, weights)
                before = oracle.by_runtime(proto, [feeds])[0]
            except Exception:  # what ONNX Runtime cannot run is of no interest
                continue
            model = from_proto(proto)
            found = groups(model)
            choice = draw(found, 0)
            if not choice:
                continue
            after = outputs(remove(model, choice), feeds)
            assert [y.shape for y in before] == [y.shape for y in after], case.name
            assert_removal_is_zeroing(model, feeds=feeds, by_members=False)
            removed += 1
    assert removed > 20
