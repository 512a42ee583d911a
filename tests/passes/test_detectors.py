"""Detectors: what makes boxes and scores of the last layers stays float, in the forms that exporters write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.data import load_data
from onnxopt.graph import Editor, label
from onnxopt.model import copy
from onnxopt.pass_base import Context, Report
from onnxopt.passes.quantize import _candidates, _placement
from onnxopt.passes.quantize._census import census
from onnxopt.passes.quantize._tails import decoders
from onnxopt.passes.quantize.quantize_static import QuantizeStatic
from onnxopt.runtime import Ratio, Snapshot
from tests.support import graph, outputs

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
DATA = {"x": RNG.normal(size=(24, 3, 32, 32)).astype(np.float32)}
CELLS = 8
BACKBONE = """
    c1 = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w1, b1) r1 = Relu(c1)
    c2 = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (r1, w2, b2) r2 = Relu(c2)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r2)
"""


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


def whole(*values: int) -> Array:
    return np.array(values, np.int64)


def weights(head: int) -> dict[str, Any]:
    def of(*shape: int) -> Array:
        return RNG.normal(scale=np.prod(shape[1:]) ** -0.5, size=shape).astype(np.float32)

    heads = {f"{part}{i}": of(head, 16, 1, 1) if part == "h" else of(head, 1)[:, 0] for i in (1, 2) for part in "hk"}
    return {"w1": of(8, 3, 3, 3), "b1": of(8, 1)[:, 0], "w2": of(16, 8, 3, 3), "b2": of(16, 1)[:, 0], **heads}


def cells(size: int) -> Array:
    y, x = np.mgrid[:size, :size]
    return np.stack([x, y], -1).astype(np.float32)


def yolo_with_anchors() -> ir.Model:
    """Boxes by Sigmoid, the cell and the anchor, beside scores by Sigmoid alone; two sizes of cells."""

    def scale(i: int, source: str, stride: int) -> str:
        return f"""
            h{i}_ = Conv({source}, h{i}, k{i}) v{i} = Reshape(h{i}_, into{i})
            t{i} = Transpose <perm = [0, 1, 3, 4, 2]> (v{i}) s{i} = Sigmoid(t{i})
            xy{i}, wh{i}, conf{i} = Split <axis = 4> (s{i}, parts)
            a{i} = Mul(xy{i}, two) g{i}_ = Add(a{i}, g{i}) o{i} = Mul(g{i}_, stride{i})
            d{i} = Mul(wh{i}, two) e{i} = Pow(d{i}, two) z{i} = Mul(e{i}, anchor{i})
            n{i} = Concat <axis = 4> (o{i}, z{i}, conf{i}) f{i} = Reshape(n{i}, flat)
        """

    constants: dict[str, Any] = {
        "two": floats(2), "parts": whole(2, 2, 4), "flat": whole(0, -1, 8),
        **{f"stride{i}": floats(s) for i, s in ((1, 40), (2, 80))},
        **{f"anchor{i}": RNG.uniform(40, 300, (1, 2, 1, 1, 2)).astype(np.float32) for i in (1, 2)},
        **{f"g{i}": cells(n)[None, None] - 0.5 for i, n in ((1, 8), (2, 4))},
        **{f"into{i}": whole(0, 2, 8, n, n) for i, n in ((1, 8), (2, 4))},
    }  # fmt: skip
    body = f"{BACKBONE} {scale(1, 'r2', 40)} {scale(2, 'p', 80)} y = Concat <axis = 1> (f1, f2)"
    return graph(f"g (float[N,3,32,32] x) => (float[N,160,8] y) {{ {body} }}", **weights(16), **constants)


def yolo_with_distributions() -> ir.Model:
    """Each side of a box is the mean of a distribution, taken by a Conv; scores by Sigmoid."""
    body = f"""{BACKBONE} h1_ = Conv(r2, h1, k1) v = Reshape(h1_, into) boxes, classes = Split <axis = 1> (v, parts)
        q = Reshape(boxes, sides) t = Transpose <perm = [0, 2, 1, 3]> (q) s = Softmax <axis = 1> (t)
        m = Conv(s, ramp) l = Reshape(m, four) lt, rb = Split <axis = 1> (l, halves)
        a = Sub(points, lt) b = Add(points, rb) total = Add(a, b) middle = Div(total, two) size = Sub(b, a)
        box = Concat <axis = 1> (middle, size) scaled = Mul(box, stride) score = Sigmoid(classes)
        y = Concat <axis = 1> (scaled, score)"""
    constants: dict[str, Any] = {
        "into": whole(0, 20, 64), "parts": whole(16, 4), "sides": whole(0, 4, 4, 64),
        "ramp": np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1), "four": whole(0, 4, 64),
        "halves": whole(2, 2), "points": cells(8).reshape(1, 64, 2).transpose(0, 2, 1) + 0.5,
        "two": floats(2), "stride": floats(80),
    }  # fmt: skip
    return graph(f"g (float[N,3,32,32] x) => (float[N,8,64] y) {{ {body} }}", **weights(20), **constants)


def ssd() -> ir.Model:
    """Offsets from prior boxes, with Exp; scores by Softmax; NonMaxSuppression inside."""
    body = f"""{BACKBONE} u1 = Conv(r2, h1, k1) t1 = Transpose <perm = [0, 2, 3, 1]> (u1)
        u2 = Conv(r2, h2, k2) t2 = Transpose <perm = [0, 2, 3, 1]> (u2)
        loc = Reshape(t1, four) raw = Reshape(t2, four) score = Softmax <axis = 2> (raw)
        dxy, dwh = Split <axis = 2> (loc, halves)
        a = Mul(dxy, vxy) b = Mul(a, pwh) c = Add(b, pxy) d = Mul(dwh, vwh) e = Exp(d) z = Mul(e, pwh)
        h = Mul(z, half) low = Sub(c, h) high = Add(c, h) boxes = Concat <axis = 2> (low, high)
        per = Transpose <perm = [0, 2, 1]> (score) kept = NonMaxSuppression(boxes, per, most, iou, least)"""
    constants: dict[str, Any] = {
        "four": whole(0, 64, 4), "halves": whole(2, 2), "vxy": floats(0.1), "vwh": floats(0.2),
        "pwh": RNG.uniform(40, 200, (1, 64, 2)).astype(np.float32), "pxy": cells(8).reshape(1, 64, 2) * 40 + 20,
        "half": floats(0.5), "most": np.int64(5), "iou": np.float32(0.5), "least": np.float32(0.2),
    }  # fmt: skip
    head = "g (float[N,3,32,32] x) => (float[N,64,4] boxes, float[N,64,4] score, int64[K,3] kept)"
    return graph(f"{head} {{ {body} }}", **weights(4), **constants)


DETECTORS: dict[str, tuple[Callable[[], ir.Model], int, set[str], Callable[[list[Array]], Array]]] = {
    "yolo with anchors": (
        yolo_with_anchors,
        4,
        {"y", *(f"{name}{i}" for name in ("s", "a", "o", "d", "z", "n") for i in (1, 2)), "g1_", "g2_"},
        lambda found: found[0][..., 4:],
    ),
    "yolo with distributions": (
        yolo_with_distributions,
        3,
        {"s", "m", "b", "total", "box", "scaled", "score", "y"},
        lambda found: found[0][:, 4:],
    ),
    "ssd": (ssd, 4, {"score", "a", "b", "c", "d", "z", "h", "high", "boxes"}, lambda found: found[1]),
}
"""Each with how many layers it has, the nodes behind that an integer kernel could compute, and where scores are."""


def quantized(model: ir.Model, **options: Any) -> tuple[ir.Model, Report]:
    result = copy(model)
    return result, QuantizeStatic(**options).run(Context(Editor(result), data=load_data(DATA, model), original=model))


@pytest.mark.parametrize("name", DETECTORS)
def test_what_stands_behind_the_last_layer_stays_float(name: str) -> None:
    make, convs, names, _ = DETECTORS[name]
    after, report = quantized(make(), placement="all")
    integers = [kernel.op for kernel in census(Snapshot.of(after)) if kernel.kind == "integer"]
    assert integers == ["QLinearConv"] * convs
    assert {note.node for note in report.refusals if "boxes or scores" in note.text} == names


def fastest_is_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a clock say that nothing is faster than to compute all there is with integers."""

    def ratios(a: object, others: Sequence[object], *_: object, **__: object) -> list[Ratio]:
        return [Ratio(*[0.9 - 0.1 * at] * 4) for at in range(len(others))]

    monkeypatch.setattr(_placement, "cheapest", lambda kernels, borders: set(kernels))
    monkeypatch.setattr(_placement, "latency_ratios", ratios)


def worst_score(name: str) -> float:
    """How far a score moves by a measured placement, at most."""
    make, _, _, scores_of = DETECTORS[name]
    model = make()
    after, _ = quantized(model)
    held_out = {"x": np.random.default_rng(5).normal(size=(8, 3, 32, 32)).astype(np.float32)}
    return float(np.abs(scores_of(outputs(model, held_out)) - scores_of(outputs(after, held_out))).max())


@pytest.mark.parametrize("name", ["yolo with anchors", "yolo with distributions"])
def test_scores_stay_near_however_fast_integers_are(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fastest_is_everything(monkeypatch)
    assert 0 < worst_score(name) < 0.05


@pytest.mark.parametrize("name", ["yolo with anchors", "yolo with distributions"])
def test_without_the_rule_scores_get_the_steps_of_boxes(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """And the budget of 20 dB does not see it: what the test before this one is there for."""
    fastest_is_everything(monkeypatch)
    monkeypatch.setattr(_candidates, "decoders", lambda editor: {})
    assert worst_score(name) > 0.2


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv(x, w) a = Relu(c) b = Conv(a, v) d = Relu(b) y = Concat <axis = 1> (d, d)",
        "c = Conv(x, w) a = Sigmoid(c) b = Mul(a, c) d = Concat <axis = 1> (a, b) y = Conv(d, u)",
        "c = Conv(x, w) s = Softmax(c) y = Add(s, c)",
    ],
)
def test_other_nets_have_no_such_tail(body: str) -> None:
    w, v, u = (RNG.normal(size=shape).astype(np.float32) for shape in ((4, 3, 1, 1), (4, 4, 1, 1), (4, 8, 1, 1)))
    model = graph(f"g (float[N,3,8,8] x) => (float[N,C,8,8] y) {{ {body} }}", w=w, v=v, u=u)
    assert [label(node) for node in decoders(Editor(model))] == []
