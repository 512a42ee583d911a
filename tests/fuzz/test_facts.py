"""What is known of the shapes in random graphs is so: numbers and symbols, at every size of the dynamic dims."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given

from onnxopt.graph import Editor
from onnxopt.model import from_proto
from onnxopt.shape_values import ShapeValues
from onnxopt.shapes import Dim
from tests.conformance import oracle
from tests.fuzz.models import FLAVOURS, Sample, samples
from tests.fuzz.test_random_graphs import settings_for


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_shapes_are_what_they_are_said_to_be(flavour: str) -> None:
    @settings_for(40)
    @given(samples(flavour))
    def check(sample: Sample) -> None:
        model = from_proto(sample.model)
        editor = Editor(model)
        values = ShapeValues(editor)
        exposed = onnx.ModelProto.FromString(sample.model.SerializeToString())
        known = {value.name or "": value for node in model.graph for value in node.outputs if value.name}
        del exposed.graph.output[:]
        exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in known)
        for feeds, arrays in zip(sample.feeds, oracle.by_runtime(exposed, sample.feeds), strict=True):
            if any(_is_of_no_round(value, array) for value, array in zip(known.values(), arrays, strict=True)):
                continue
            sizes: dict[Dim, int] = {
                dim: size
                for value in model.graph.inputs
                if value.name in feeds
                for dim, size in zip(editor.shape(value) or (), feeds[value.name].shape, strict=False)
            }
            for (name, value), array in zip(known.items(), arrays, strict=True):
                if not isinstance(array, np.ndarray):
                    continue
                shape, elements = editor.shape(value), values.of(value)
                if shape is not None:
                    assert len(shape) == array.ndim, name
                    _agree(list(shape), list(array.shape), sizes, name)
                if elements is not None:
                    assert elements.shape == array.shape, name
                    _agree(elements.reshape(-1).tolist(), array.reshape(-1).tolist(), sizes, name)

    check()


def _is_of_no_round(value: ir.Value, array: Any) -> bool:
    """Whether it comes out of a Loop that did not run: then ONNX Runtime says 0 of dims that the body would give."""
    node = value.producer()
    return node is not None and node.op_type == "Loop" and isinstance(array, np.ndarray) and not array.size


def _agree(said: list[Dim], found: list[int], sizes: dict[Dim, int], name: str) -> None:
    """Numbers are equal; the same symbol means the same size everywhere, which ``sizes`` is told of."""
    for one, other in zip(said, found, strict=True):
        if isinstance(one, str):
            assert sizes.setdefault(one, other) == other, f"{name}: {one} is {sizes[one]} and {other}"
        elif one is not None:
            assert one == other, f"{name}: {said} is {found}"
