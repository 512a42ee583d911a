"""Interpolation at places that a grid names."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.reference
import pytest
from onnx import helper

from onnxopt.errors import GradientError
from onnxopt.model import from_proto
from tests import support
from tests.gradients.checks import check_node
from tests.gradients.reference import REPAIRED

_RNG = np.random.default_rng(0)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("aligned", [0, 1])
def test_images(mode: str, padding: str, aligned: int) -> None:
    x, grid = _RNG.standard_normal((2, 3, 4, 5)), _RNG.uniform(-1.6, 1.6, (2, 3, 4, 2))
    wrt = [0] if mode == "nearest" else [0, 1]
    check_node("GridSample", x, grid, wrt=wrt, opset=20, mode=mode, padding_mode=padding, align_corners=aligned)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_modes_by_their_first_names(mode: str) -> None:
    x, grid = _RNG.standard_normal((1, 2, 4, 3)), _RNG.uniform(-1.2, 1.2, (1, 2, 5, 2))
    check_node("GridSample", x, grid, wrt=[0], opset=18, mode=mode)


@pytest.mark.parametrize("shape", [(1, 2, 6), (2, 1, 3, 2, 4)])
@pytest.mark.parametrize("opset", [20, 26])
def test_other_ranks(shape: tuple[int, ...], opset: int) -> None:
    rank = len(shape) - 2
    grid = _RNG.uniform(-1.3, 1.3, (shape[0], *(2, 3, 2)[:rank], rank))
    x = _RNG.standard_normal(shape)
    check_node("GridSample", x, grid, opset=opset, padding_mode="border", runtime=rank > 1)


def test_one_of_both_is_asked_for() -> None:
    x, grid = _RNG.standard_normal((1, 2, 3, 3)), _RNG.uniform(-1, 1, (1, 2, 2, 2))
    check_node("GridSample", x, grid, constants=[1])
    check_node("GridSample", x, grid, constants=[0])


def test_the_nearest_element_does_not_move_with_the_grid() -> None:
    x, grid = _RNG.standard_normal((1, 1, 3, 3)), _RNG.uniform(-1, 1, (1, 2, 2, 2))
    with pytest.raises(GradientError, match="does not depend on 'x1'"):
        check_node("GridSample", x, grid, constants=[0], mode="nearest")


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("aligned", [0, 1])
def test_the_reference_is_as_onnx_runtime(mode: str, padding: str, aligned: int) -> None:
    x = _RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
    grid = _RNG.uniform(-1.6, 1.6, (2, 3, 4, 2)).astype(np.float32)
    attributes: dict[str, Any] = {"mode": mode, "padding_mode": padding, "align_corners": aligned}
    node = helper.make_node("GridSample", ["x", "grid"], ["y"], **attributes)
    values = [helper.make_tensor_value_info(name, 1, a.shape) for name, a in (("x", x), ("grid", grid))]
    made = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", 1, None)])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    feeds = {"x": x, "grid": grid}
    expected = support.outputs(from_proto(model), feeds)[0]
    found = onnx.reference.ReferenceEvaluator(model, new_ops=REPAIRED).run(None, feeds)
    np.testing.assert_allclose(np.asarray(found)[0], expected, atol=1e-5)
