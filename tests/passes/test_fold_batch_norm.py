"""fold-batch-norm."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.passes.cleanup.fold_batch_norm import FoldBatchNorm
from tests.support import count_ops, graph, ops, run

RNG = np.random.default_rng(0)


def _normal(*shape: int, dtype: Any = np.float32) -> Any:
    return RNG.normal(size=shape).astype(dtype)


def _norm(channels: int, dtype: Any = np.float32, shift: bool = True) -> dict[str, Any]:
    zero = np.zeros(channels, dtype)
    return {
        "g": _normal(channels, dtype=dtype), "o": _normal(channels, dtype=dtype) if shift else zero,
        "m": _normal(channels, dtype=dtype) if shift else zero, "v": (_normal(channels) ** 2 + 0.1).astype(dtype),
    }  # fmt: skip


NORM = "BatchNormalization(a, g, o, m, v)"


@pytest.mark.parametrize("opset", [7, 9, 14, 15, 22])
@pytest.mark.parametrize(
    ("layer", "weights"),
    [("Conv(x, w)", {"w": (6, 4, 3, 3)}), ("Conv(x, w, b)", {"w": (6, 4, 3, 3), "b": (6,)}),
     ("Conv<group = 2, pads = [1, 1, 1, 1]>(x, w, b)", {"w": (6, 2, 3, 3), "b": (6,)}),
     ("ConvTranspose(x, w)", {"w": (4, 6, 3, 3)}),
     ("ConvTranspose<group = 2, strides = [2, 2]>(x, w)", {"w": (4, 3, 3, 3)})],
)  # fmt: skip
def test_into_the_convolution_before(layer: str, weights: dict[str, tuple[int, ...]], opset: int) -> None:
    before = graph(
        f"g (float[N,4,8,8] x) => (float[N,6,A,B] y) {{ a = {layer} y = {NORM} }}", opset=opset,
        **_norm(6), **{name: _normal(*shape) for name, shape in weights.items()},
    )  # fmt: skip
    after, report = run(FoldBatchNorm(), before)
    assert report.changed == 1
    assert ops(after) == [layer.split("(", maxsplit=1)[0].split("<", maxsplit=1)[0]]
    assert after.graph.outputs[0].name == "y"
    assert set(after.graph.initializers) == {"w", "b"} if "b" in weights else "w" in after.graph.initializers
    assert len(after.graph.initializers) == 2


@pytest.mark.parametrize(
    ("layer", "weights", "left"),
    [("Gemm(x, w, b)", {"w": (4, 6), "b": (6,)}, ["Gemm"]),
     ("Gemm<alpha = 0.5, beta = 2.0, transB = 1>(x, w, b)", {"w": (6, 4), "b": (1, 6)}, ["Gemm"]),
     ("Gemm(x, w)", {"w": (4, 6)}, ["Gemm"]),
     ("MatMul(x, w)", {"w": (4, 6)}, ["MatMul", "Add"])],
)  # fmt: skip
def test_into_the_dense_layer_before(layer: str, weights: dict[str, tuple[int, ...]], left: list[str]) -> None:
    before = graph(
        f"g (float[N,4] x) => (float[N,6] y) {{ a = {layer} y = {NORM} }}",
        **_norm(6), **{name: _normal(*shape) for name, shape in weights.items()},
    )  # fmt: skip
    after, report = run(FoldBatchNorm(), before)
    assert report.changed == 1
    assert ops(after) == left
    assert run(FoldBatchNorm(), after)[1].changed == 0


def test_half_precision() -> None:
    before = graph(
        f"g (float16[N,4,5] x) => (float16[N,6,A] y) {{ a = Conv(x, w) y = {NORM} }}",
        w=_normal(6, 4, 3, dtype=np.float16), **_norm(6, np.float16),
    )  # fmt: skip
    after, _ = run(FoldBatchNorm(), before, verify=False)
    assert ops(after) == ["Conv"]
    assert {v.dtype for v in after.graph.initializers.values()} == {ir.DataType.FLOAT16}


@pytest.mark.parametrize("padding", ["", '<auto_pad = "VALID">', "<pads = [0, 0]>"])
def test_into_the_convolution_behind(padding: str) -> None:
    before = graph(
        f"g (float[N,4,9] a) => (float[N,6,A] y) {{ n = {NORM} y = Conv{padding}(n, w) }}",
        w=_normal(6, 4, 3),
        **_norm(4),
    )
    after, _ = run(FoldBatchNorm(), before)
    assert ops(after) == ["Conv"]


def test_into_a_padding_convolution_behind_only_without_shift() -> None:
    body = f"g (float[N,4,9] a) => (float[N,6,A] y) {{ n = {NORM} y = Conv<pads = [1, 1], group = 2>(n, w) }}"
    after, _ = run(FoldBatchNorm(), graph(body, w=_normal(6, 2, 3), **_norm(4, shift=False)))
    assert ops(after) == ["Conv"]
    _, report = run(FoldBatchNorm(), graph(body, w=_normal(6, 2, 3), **_norm(4)))
    assert [n.text for n in report.refusals] == ["Conv pads with zeros, which the shift would move"]


CONV = f"g (float[N,4,9] x) => (float[N,6,A] y{{}}) {{{{ a = Conv(x, w) y = {NORM} {{}} }}}}"


@pytest.mark.parametrize(
    ("body", "change", "reason"),
    [(CONV.format(", float[N,6,A] a", ""), {}, "the output of Conv is read elsewhere too"),
     (CONV.format(", float[N,6,A] z", "z = Neg(a)"), {}, "the output of Conv is read elsewhere too"),
     (CONV.format(", float[N,6,A] z", "z = Conv(x, w)"), {}, "the weight 'w' of Conv is shared"),
     (CONV.format("", ""), {"v": np.full(6, -1, np.float32)},
      "its variance is not positive, or a parameter is not finite")],
)  # fmt: skip
def test_refuses(body: str, change: dict[str, np.ndarray[Any, Any]], reason: str) -> None:
    _, report = run(FoldBatchNorm(), graph(body, **{"w": _normal(6, 4, 3), **_norm(6), **change}))
    assert [note.text for note in report.refusals] == [reason]


def test_keeps_training_and_what_follows_no_layer() -> None:
    norm = "BatchNormalization<training_mode = 1>(a, g, o, m, v)"
    body = f"g (float[N,4,9] x) => (float[N,6,A] y) {{ a = Conv(x, w) y, p, q = {norm} }}"
    assert run(FoldBatchNorm(), graph(body, w=_normal(6, 4, 3), **_norm(6)), verify=False)[1].changed == 0
    body = f"g (float[N,6,9] x) => (float[N,6,9] y) {{ a = Relu(x) y = {NORM} }}"
    assert run(FoldBatchNorm(), graph(body, **_norm(6)))[1].refusals == ()


def test_inside_a_body() -> None:
    before = graph(
        f"""g (float[N,4,9] x, bool c) => (float[N,6,7] y) {{
            y = If (c) <then_branch = t () => (float[N,6,7] p) {{ a = Conv(x, w) p = {NORM} }},
                        else_branch = e () => (float[N,6,7] r) {{ r = Conv(x, u) }}>
        }}""",
        w=_normal(6, 4, 3), u=_normal(6, 4, 3), **_norm(6),
    )  # fmt: skip
    after, report = run(FoldBatchNorm(), before)
    assert report.changed == 1
    assert count_ops(after) == {"If": 1, "Conv": 2}


def test_in_a_function() -> None:
    constants = " ".join(
        f"{n} = Constant<value = float[1] {{{k}}}>()" for n, k in zip("gomv", (2, 3, 4, 5), strict=True)
    )
    before = graph(
        f"""g (float[N,1,9] x) => (float[N,1,A] y) {{ y = my.f(x) }}
        <domain: "my", opset_import: ["" : 18]> f (x) => (y) {{
            w = Constant<value = float[1,1,2] {{1, 2}}>() {constants} a = Conv(x, w) y = {NORM} }}""",
        extra=', "my" : 1',
    )
    after, report = run(FoldBatchNorm(), before)
    assert report.changed == 1
    assert [n.op_type for f in after.functions.values() for n in f] == ["Constant", "Constant", "Conv"]
