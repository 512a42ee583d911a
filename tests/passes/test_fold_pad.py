"""fold-pad."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.passes.cleanup.fold_pad import FoldPad
from tests.support import graph, ops, run

W = np.random.default_rng(0).normal(size=(3, 2, 3, 3)).astype(np.float32)
CONV = "y = Conv{}(a, w)"


def _model(
    reader: str, pads: str = "0, 0, 1, 2, 0, 0, 0, 1", *, pad: str = "a = Pad(x, p)", opset: int = 13, first: str = ""
) -> ir.Model:
    constants = (
        f"p = Constant<value = int64[8] {{{pads}}}>() l = Constant<value = float {{-1}}>()" if "(x, p" in pad else ""
    )
    if first:
        pad = pad.replace("(x", "(f")
    weight: dict[str, Any] = {"w": W} if "w)" in reader else {}
    return graph(
        f"g (float[N,2,H,W] x) => (float[N,C,A,B] y) {{ {constants} {first} {pad} {reader} }}", opset=opset, **weight
    )


def _nodes(model: ir.Model) -> list[str]:
    return [op for op in ops(model) if op != "Constant"]


def _pads(model: ir.Model) -> tuple[int, ...]:
    return tuple(
        next(n for n in model.graph if "kernel_shape" in n.attributes or n.op_type == "Conv").attributes["pads"].value
    )


@pytest.mark.parametrize(
    ("own", "total"),
    [
        ("", (1, 2, 0, 1)),
        ('<auto_pad = "VALID">', (1, 2, 0, 1)),
        ("<pads = [1, 0, 1, 0], strides = [2, 2]>", (2, 2, 1, 1)),
    ],
)
def test_into_a_convolution(own: str, total: tuple[int, ...]) -> None:
    after, report = run(FoldPad(), _model(CONV.format(own)))
    assert [note.text for note in report.changes] == ["Conv pads now"]
    assert _nodes(after) == ["Conv"]
    assert _pads(after) == total


def test_attributes_of_old_opsets_and_axes_of_new_ones() -> None:
    after, _ = run(FoldPad(), _model(CONV.format(""), pad="a = Pad<pads = [0, 0, 1, 1, 0, 0, 1, 1]>(x)", opset=7))
    assert _nodes(after) == ["Conv"]
    pad = "q = Constant<value_ints = [1, 0, 1, 2]>() e = Constant<value_ints = [-1, 2]>() a = Pad(x, q, , e)"
    after, _ = run(FoldPad(), _model(CONV.format(""), pad=pad, opset=21))
    assert _pads(after) == (0, 1, 2, 1)


@pytest.mark.parametrize("counting", ["", ", count_include_pad = 1"])
def test_into_an_average(counting: str) -> None:
    after, _ = run(FoldPad(), _model(f"y = AveragePool<kernel_shape = [3, 3]{counting}>(a)"))
    assert _nodes(after) == ["AveragePool"]
    assert _pads(after) == (1, 2, 0, 1)


@pytest.mark.parametrize("first", ["f = Relu(x)", "f = Sigmoid(x)"])
def test_into_a_maximum_of_what_is_not_negative(first: str) -> None:
    after, _ = run(FoldPad(), _model("y = MaxPool<kernel_shape = [3, 3]>(a)", first=first))
    assert _nodes(after) == [first.split()[2].split("(", maxsplit=1)[0], "MaxPool"]


def test_into_a_maximum_of_anything_if_it_fills_in_the_least() -> None:
    pad = "m = Constant<value = float {-1}>() z = Constant<value = float {0}>() i = Div(m, z) a = Pad(x, p, i)"
    assert run(FoldPad(), _model("y = MaxPool<kernel_shape = [3, 3]>(a)", pad=pad))[1].changed == 0  # not folded yet
    before = graph(
        "g (float[N,2,H,W] x) => (float[N,C,A,B] y) { a = Pad(x, p, i) y = MaxPool<kernel_shape = [3, 3]>(a) }",
        p=np.array([0, 0, 1, 1, 0, 0, 1, 1]), i=np.array(-np.inf, np.float32),
    )  # fmt: skip
    assert _nodes(run(FoldPad(), before)[0]) == ["MaxPool"]


@pytest.mark.parametrize(
    ("model", "reason"),
    [(_model(CONV.format(""), pad='a = Pad<mode = "reflect">(x, p)'), "it pads by reflect, Conv with a constant"),
     (_model(CONV.format(""), pad="a = Pad(x, p, l)"), "it fills in -1.0, Conv pads with 0"),
     (_model(CONV.format('<auto_pad = "SAME_UPPER">')), "Conv pads to a size of its own accord"),
     (_model("y = MaxPool<kernel_shape = [3, 3]>(a)"), "MaxPool may pick the 0.0 that it fills in"),
     (_model("y = AveragePool<kernel_shape = [2, 2]>(a)"), "AveragePool cannot pad as much as its kernel is wide"),
     (_model("y = AveragePool<kernel_shape = [3, 3], ceil_mode = 1>(a)"),
      "AveragePool rounds its size up or is dilated"),
     (_model("y = AveragePool<kernel_shape = [3, 3], pads = [0, 0, 1, 0]>(a)"),
      "AveragePool leaves its own padding out of the average")],
)  # fmt: skip
def test_refuses(model: ir.Model, reason: str) -> None:
    _, report = run(FoldPad(), model)
    assert [note.text for note in report.refusals] == [reason]


@pytest.mark.parametrize("pads", ["0, 1, 0, 0, 0, -1, 0, 0", "0, 0, -1, 0, 0, 0, 1, 1"])
def test_keeps_what_is_no_padding_of_space(pads: str) -> None:
    _, report = run(FoldPad(), _model(CONV.format(""), pads), verify=False)
    assert (report.changed, report.refusals) == (0, ())


def test_padded_data_are_read_elsewhere_too() -> None:
    before = graph(
        "g (float[N,2,H,W] x) => (float[N,C,A,B] y, float[N,2,D,E] z) { a = Pad(x, p) y = Conv(a, w) z = Neg(a) }",
        p=np.array([0, 0, 1, 1, 0, 0, 1, 1]), w=W,
    )  # fmt: skip
    assert run(FoldPad(), before)[1].changed == 0
