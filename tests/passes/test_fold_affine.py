"""fold-affine."""

import re
from typing import Any

import numpy as np
import pytest

from onnxopt.passes.cleanup.fold_affine import FoldAffine
from tests.support import graph, ops, run

RNG = np.random.default_rng(0)


def _normal(*shape: int, dtype: Any = np.float32) -> Any:
    return RNG.normal(size=shape).astype(dtype)


def _used(body: str, weights: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """The weights that ``body`` reads."""
    return {name: array for name, array in weights.items() if re.search(rf"[( ]{name}[,)]", body)}


PER_CHANNEL = [
    "y = Mul(a, c)",
    "y = Mul(c, a)",
    "y = Div(a, c)",
    "y = Add(a, c)",
    "y = Sub(a, c)",
    "y = Sub(c, a)",
    "y = Neg(a)",
]


@pytest.mark.parametrize("node", PER_CHANNEL)
@pytest.mark.parametrize("opset", [7, 22])
@pytest.mark.parametrize(
    "layer", ["Conv<pads = [1, 1]>(x, w)", "Conv<group = 2>(x, u, b)", "ConvTranspose<group = 2>(x, t, b)"]
)
def test_behind_a_convolution(node: str, opset: int, layer: str) -> None:
    weights = {"w": _normal(6, 4, 3), "u": _normal(6, 2, 3), "t": _normal(4, 3, 3), "b": _normal(6), "c": _normal(6, 1)}
    body = f"a = {layer} {node}"
    before = graph(f"g (float[N,4,9] x) => (float[N,6,A] y) {{ {body} }}", opset=opset, **_used(body, weights))
    after, report = run(FoldAffine(), before)
    assert report.changed == 1
    assert len(ops(after)) == 1
    assert "c" not in after.graph.initializers


@pytest.mark.parametrize("node", PER_CHANNEL)
@pytest.mark.parametrize(
    ("layer", "left"),
    [("a = Gemm<transB = 1, alpha = 0.5, beta = 0.25>(x, v, b)", ["Gemm"]), ("a = Gemm(x, w, b)", ["Gemm"]),
     ("m = MatMul(x, w) a = Add(b, m)", ["MatMul", "Add"])],
)  # fmt: skip
def test_behind_a_dense_layer(node: str, layer: str, left: list[str]) -> None:
    weights = {"w": _normal(4, 6), "v": _normal(6, 4), "b": _normal(6), "c": _normal(6)}
    body = f"{layer} {node}"
    before = graph(f"g (float[N,4] x) => (float[N,6] y) {{ {body} }}", **_used(body, weights))
    after, report = run(FoldAffine(), before)
    assert report.changed == 1
    assert ops(after) == left


def test_a_scale_goes_into_matmul_at_any_rank() -> None:
    before = graph(
        "g (float[N,T,4] x) => (float[N,T,6] y) { a = MatMul(x, w) y = Mul(a, c) }",
        w=_normal(4, 6),
        c=np.array(0.125, np.float32),
    )
    after, _ = run(FoldAffine(), before)
    assert ops(after) == ["MatMul"]


@pytest.mark.parametrize("node", PER_CHANNEL)
@pytest.mark.parametrize("layer", ["Conv(a, w, b)", 'Conv<group = 2, auto_pad = "VALID">(a, u, b)'])
def test_in_front_of_a_convolution(node: str, layer: str) -> None:
    weights = {"w": _normal(6, 4, 3), "u": _normal(6, 2, 3), "b": _normal(6), "c": _normal(4, 1)}
    body = node.replace("a", "x").replace("y =", "a =") + f" y = {layer}"
    before = graph(f"g (float[N,4,9] x) => (float[N,6,A] y) {{ {body} }}", **_used(body, weights))
    after, report = run(FoldAffine(), before)
    assert report.changed == 1
    assert ops(after) == ["Conv"]


@pytest.mark.parametrize(
    ("body", "weights", "left"),
    [("a = Mul(x, c) y = ConvTranspose<group = 2>(a, w)", {"w": (4, 3, 3), "c": (1, 4, 1)}, ["ConvTranspose"]),
     ("a = Mul(x, c) y = Conv<pads = [1, 1]>(a, w)", {"w": (6, 4, 3), "c": (1,)}, ["Conv"])],
)  # fmt: skip
def test_a_scale_goes_into_any_convolution_behind(
    body: str, weights: dict[str, tuple[int, ...]], left: list[str]
) -> None:
    arrays = {name: _normal(*shape) for name, shape in weights.items()}
    after, _ = run(FoldAffine(), graph(f"g (float[N,4,9] x) => (float[N,6,A] y) {{ {body} }}", **arrays))
    assert ops(after) == left


@pytest.mark.parametrize(
    "layer", ["y = Gemm(a, w, b)", "m = MatMul(a, w) y = Add(m, b)", "y = Gemm<transB = 1, alpha = 2.0>(a, v, b)"]
)
def test_in_front_of_a_dense_layer(layer: str) -> None:
    weights = {
        "b": _normal(6),
        "c": _normal(4),
        "v" if " v," in layer else "w": _normal(6, 4) if " v," in layer else _normal(4, 6),
    }
    after, report = run(
        FoldAffine(), graph(f"g (float[N,4] x) => (float[N,6] y) {{ a = Sub(x, c) {layer} }}", **weights)
    )
    assert report.changed == 1
    assert "Sub" not in ops(after)


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [("a = Add(x, c) y = Conv<pads = [1, 1]>(a, w)", {"w": (6, 4, 3), "c": (4, 1)},
      "Conv pads with zeros, which the shift would move"),
     ("a = Add(x, c) y = ConvTranspose(a, w)", {"w": (4, 6, 3), "c": (4, 1)},
      "ConvTranspose pads with zeros, which the shift would move"),
     ("a = Conv(x, w) b = Conv(x, w) d = Mul(a, c) y = Add(b, d)", {"w": (6, 4, 3), "c": (6, 1)},
      "the weight 'w' of Conv is shared"),
     ("a = Conv(x, w) y = Add(a, c)", {"w": (60, 4, 3), "c": (1,)},
      "the bias of Conv would be larger than what it replaces")],
)  # fmt: skip
def test_refuses(body: str, weights: dict[str, tuple[int, ...]], reason: str) -> None:
    arrays = {name: _normal(*shape) for name, shape in weights.items()}
    _, report = run(FoldAffine(), graph(f"g (float[N,4,9] x) => (float[N,M,A] y) {{ {body} }}", **arrays))
    assert [note.text for note in report.refusals] == [reason]


def test_refuses_numbers_out_of_range() -> None:
    before = graph(
        "g (float16[N,4,9] x) => (float16[N,M,A] y) { a = Conv(x, w) y = Mul(a, c) }",
        w=np.full((6, 4, 3), 300, np.float16), c=np.full(1, 300, np.float16),
    )  # fmt: skip
    _, report = run(FoldAffine(), before, verify=False)
    assert [note.text for note in report.refusals] == ["the weights of Conv would leave the range of FLOAT16"]


@pytest.mark.parametrize(
    ("body", "weights"),
    [("a = Conv(x, w) y = Mul(a, c)", {"w": (6, 4, 3), "c": (7,)}),  # one for each place
     ("a = Conv(x, w) y = Mul(a, c)", {"w": (1, 4, 3), "c": (5, 1)}),  # enlarges the channels
     ("a = Conv(x, w) z = Mul(a, c) y = Squeeze(z, o)", {"w": (6, 4, 3), "c": (1, 1, 6, 1)}),  # enlarges the rank
     ("a = Mul(x, c) y = Conv(a, w)", {"w": (6, 4, 3), "c": (9,)})],
)  # fmt: skip
def test_keeps(body: str, weights: dict[str, tuple[int, ...]]) -> None:
    arrays: dict[str, Any] = {name: _normal(*shape) for name, shape in weights.items()}
    if "o)" in body:
        arrays["o"] = np.array([0])
    _, report = run(FoldAffine(), graph(f"g (float[1,4,9] x) => (float[A,B,C] y) {{ {body} }}", **arrays))
    assert (report.changed, report.refusals) == (0, ())


def test_keeps_what_enlarges_the_input_of_a_convolution() -> None:
    before = graph(
        "g (float[N,1,9] x) => (float[N,6,A] y) { a = Mul(x, c) y = Conv(a, w) }", w=_normal(6, 4, 3), c=_normal(4, 1)
    )
    assert run(FoldAffine(), before)[1].changed == 0


def test_the_output_is_read_elsewhere_too() -> None:
    arrays = {"w": _normal(6, 4, 3), "c": _normal(6, 1)}
    before = graph("g (float[N,4,9] x) => (float[N,6,A] y, float[N,6,A] a) { a = Conv(x, w) y = Mul(a, c) }", **arrays)
    assert run(FoldAffine(), before)[1].changed == 0


def test_a_shared_constant_stays_for_the_other() -> None:
    before = graph(
        "g (float[N,4,9] x) => (float[N,6,A] y) { a = Conv(x, w) d = Mul(a, c) e = Exp(d) y = Mul(e, c) }",
        w=_normal(6, 4, 3), c=_normal(6, 1),
    )  # fmt: skip
    after, _ = run(FoldAffine(), before)
    assert ops(after) == ["Conv", "Exp", "Mul"]


def test_inside_a_body() -> None:
    before = graph(
        """g (float[N,4,9] x, bool c) => (float[N,6,7] y) {
            y = If (c) <then_branch = t () => (float[N,6,7] p) { a = Conv(x, w) p = Neg(a) },
                        else_branch = e () => (float[N,6,7] r) { r = Conv(x, u) }>
        }""",
        w=_normal(6, 4, 3), u=_normal(6, 4, 3),
    )  # fmt: skip
    assert run(FoldAffine(), before)[1].changed == 1


GELU = "d = Erf(x) e = Add(d, o) f = Mul(x, e) i = Mul(f, h) y = MatMul(i, w)"
NORM = "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) q = Mul(d, d) v = ReduceMean<axes = [-1]>(q) e = Add(v, h)"


@pytest.mark.parametrize("nodes", [GELU, f"{NORM} r = Sqrt(e) n = Div(d, r) s = Mul(n, g) y = MatMul(s, w)"])
def test_leaves_what_onnx_runtime_runs_as_one(nodes: str) -> None:
    arrays = {"w": _normal(4, 6), "o": np.ones(1, np.float32), "h": np.full(1, 0.5, np.float32), "g": _normal(4)}
    before = graph(f"g (float[N,4] x) => (float[N,6] y) {{ {nodes} }}", opset=17, **_used(nodes, arrays))
    _, report = run(FoldAffine(), before)
    assert [note.text for note in report.refusals] == [
        "it ends a normalization or a GELU, which ONNX Runtime runs as one"
    ]
