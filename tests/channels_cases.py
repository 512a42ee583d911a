"""One small graph an operator, and the channels that can be removed from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.channels import Unit
from tests.support import graph

Dims = tuple[int, ...]


def arrays(weights: dict[str, Dims | list[int] | np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Random floats of the dims given as tuples, and vectors of the numbers given as lists."""
    rng = np.random.default_rng(0)
    made = {}
    for name, given in weights.items():
        if isinstance(given, tuple):
            made[name] = rng.uniform(0.5, 1.5, given).astype(np.float32) * rng.choice([-1, 1], given).astype(np.float32)
        else:
            made[name] = np.array(given, dtype=np.int64) if isinstance(given, list) else given
    return made


@dataclass(frozen=True)
class Case:
    """A graph, and its free groups: ``"first member[axis]:channels"`` of each, in the order of the graph."""

    body: str
    weights: dict[str, Any]
    free: str
    opset: int = 18
    unit: Unit = "channel"
    exact: bool = True
    by_members: bool = True
    """Whether zeros in the weights are the same as zeros in the activations."""

    def model(self) -> ir.Model:
        extra = ', "com.microsoft" : 1' if "microsoft" in self.body else ""
        return graph(f"g {self.body}", opset=self.opset, ir_version=10, extra=extra, **arrays(self.weights))


IMAGE = "(float[N,3,4,4] x) => (float[N,M,H,W] y)"
"""The filters ``w`` make 8 channels of an image, and ``v`` reads what has become of them."""
ROWS = "(float[N,T,5] x) => (float[N,T,M] y)"
"""The same of rows by matrices: ``w`` makes 12 features."""
FLAT = "(float[N,5] x) => (float[N,M] y)"


def image(body: str, read: int = 8, free: str | None = None, **more: Any) -> Case:
    """``body`` makes ``b`` of the 8 channels ``a``, ``v`` reads the ``read`` channels of ``b``."""
    options = {key: more.pop(key) for key in ("opset", "unit", "exact", "by_members") if key in more}
    weights = {"w": (8, 3, 1, 1), "v": (2, read, 1, 1), **more}
    text = f"{IMAGE} {{ a = Conv(x, w)\n {body}\n y = Conv(b, v) }}"
    return Case(text, weights, "w[0]:8" if free is None else free, **options)


def rows(body: str, read: int = 12, free: str | None = None, **more: Any) -> Case:
    """``body`` makes ``b`` of the 12 features ``a``, ``v`` reads the ``read`` features of ``b``."""
    options = {key: more.pop(key) for key in ("opset", "unit", "exact", "by_members") if key in more}
    weights = {"w": (5, 12), "v": (read, 3), **more}
    text = f"{ROWS} {{ a = MatMul(x, w)\n {body}\n y = MatMul(b, v) }}"
    return Case(text, weights, "w[1]:12" if free is None else free, **options)


def flat(body: str, read: int = 8, free: str | None = None, **more: Any) -> Case:
    """The same of rows of rank 2, by Gemm, and 8 features."""
    options = {key: more.pop(key) for key in ("opset", "unit", "exact", "by_members") if key in more}
    weights = {"w": (5, 8), "v": (read, 3), **more}
    text = f"{FLAT} {{ a = Gemm(x, w)\n {body}\n y = Gemm(b, v) }}"
    return Case(text, weights, "w[1]:8" if free is None else free, **options)


LAYERS = {
    "convolutions": image("c = Conv(a, w2, b2)\n b = Relu(c)", 6, "w[0]:8 w2[0]:6", w2=(6, 8, 1, 1), b2=(6,)),
    "depthwise": image("b = Conv<group = 8>(a, w2, b2)", w2=(8, 1, 3, 3), b2=(8,)),
    "depthwise with multiplier": image("b = Conv<group = 8>(a, w2)", 16, w2=(16, 1, 1, 1)),
    "grouped": image("b = Conv<group = 2>(a, w2, b2)", 6, "w[0]:4 w2[0]:3", w2=(6, 4, 1, 1), b2=(6,)),
    "grouped, one output each": image("b = Conv<group = 2>(a, w2)", 2, "w[0]:2", w2=(2, 4, 1, 1)),
    "grouped, on a sum": image(
        # the sum ties the groups' channels to those of all, and they may go by groups of two
        "c = Conv<group = 4>(a, w2)\n b = Add(a, c)",
        free="w[0]:2",
        w2=(8, 2, 1, 1),
    ),
    "transposed": image("b = ConvTranspose(a, w2, b2)", 6, "w[0]:8 w2[1]:6", w2=(8, 6, 2, 2), b2=(6,)),
    "transposed in groups": image("b = ConvTranspose<group = 2>(a, w2, b2)", 6, "w[0]:2", w2=(8, 3, 2, 2), b2=(6,)),
    "transposed depthwise": image("b = ConvTranspose<group = 8>(a, w2)", w2=(8, 1, 2, 2)),
    "Gemm": flat("b = Gemm(a, w2, b2)", 6, "w[1]:8 w2[1]:6", w2=(8, 6), b2=(6,)),
    "Gemm, transB": flat("b = Gemm<transB = 1>(a, w2, b2)", 6, "w[1]:8 w2[0]:6", w2=(6, 8), b2=(1, 6)),
    "Gemm, transA": flat("t = Transpose(a)\n b = Gemm<transA = 1>(t, w2, b2)", 6, "w[1]:8 w2[1]:6", w2=(8, 6), b2=()),
    "weight on the left": Case(
        "(float[5,N] x) => (float[3,N] y) { a = MatMul(w, x)\n r = Relu(a)\n y = MatMul(v, r) }",
        {"w": (8, 5), "v": (3, 8)},
        "w[0]:8",
    ),
    "transposed weight": rows("t = Transpose(w2)\n b = MatMul(a, t)", 6, "w[1]:12 w2[0]:6", w2=(6, 12)),
    "vector": Case(
        "(float[N,5] x) => (float[N] y) { a = MatMul(x, w)\n y = MatMul(a, v) }", {"w": (5, 8), "v": (8,)}, "w[1]:8"
    ),
    "batched weights": Case(
        "(float[4,N,5] x) => (float[4,N,3] y) { a = MatMul(x, w)\n y = MatMul(a, v) }",
        {"w": (4, 5, 6), "v": (4, 6, 3)},
        "w[2]:6",
    ),
    "Einsum": rows('b = Einsum<equation = "bti,oi->bto">(a, w2)', 6, "w[1]:12 w2[0]:6", w2=(6, 12)),
    "Einsum without arrow": flat('b = Einsum<equation = "ni,io">(a, w2)', 6, "w[1]:8 w2[1]:6", w2=(8, 6)),
    "Einsum of heads": rows(
        'h = Reshape(a, split)\n b = Einsum<equation = "bthd,hdo->bto">(h, w2)',
        6,
        "w[1]:3 w2[2]:6",
        w2=(4, 3, 6),
        split=[0, 0, 4, 3],
    ),
    "BatchNormalization": image(
        "n = BatchNormalization(a, s, o, m, q)\n b = Relu(n)",
        s=(8,),
        o=(8,),
        m=(8,),
        q=np.linspace(1, 2, 8, dtype=np.float32),
    ),
    "InstanceNormalization": image("b = InstanceNormalization(a, s, o)", s=(8,), o=(8,)),
    "GroupNormalization of opset 21": image(
        "b = GroupNormalization<num_groups = 2>(a, s, o)", free="w[0]:4", s=(8,), o=(8,), opset=21, exact=False
    ),
    "GroupNormalization of opset 18": image(
        "b = GroupNormalization<num_groups = 2>(a, s, o)", free="w[0]:4", s=(2,), o=(2,), exact=False
    ),
    "LayerNormalization": rows("b = LayerNormalization(a, s, o)", s=(12,), o=(12,), exact=False),
    "RMSNormalization": rows("b = RMSNormalization(a, s)", s=(12,), opset=23, exact=False),
    "SkipLayerNormalization": rows(
        "c = MatMul(x, w2)\n b = com.microsoft.SkipLayerNormalization(a, c, s, o)",
        w2=(5, 12),
        s=(12,),
        o=(12,),
        exact=False,
    ),
    "LRN": image("b = LRN<size = 3>(a)", exact=False),
    "PRelu": image("b = PRelu(a, s)", s=(8, 1, 1)),
    "scale and shift": image("m = Mul(a, s)\n b = Add(t, m)", s=(8, 1, 1), t=(1, 8, 1, 1)),
    "squeeze and excitation": image(
        "p = GlobalAveragePool(a)\n c = Conv(p, w2)\n d = Relu(c)\n e = Conv(d, w3)\n f = Sigmoid(e)\n b = Mul(a, f)",
        free="w[0]:8 w2[0]:4",
        w2=(4, 8, 1, 1),
        w3=(8, 4, 1, 1),
    ),
    "residual": image(
        "c = Conv(a, w2)\n d = Relu(c)\n e = Conv(d, w3)\n b = Add(a, e)",
        free="w[0]:8 w2[0]:4",
        w2=(4, 8, 1, 1),
        w3=(8, 4, 1, 1),
    ),
    "pools": image("p = MaxPool<kernel_shape = [2, 2]>(a)\n b = AveragePool<kernel_shape = [2, 2]>(p)"),
    "gate of one channel": image("g = Conv(x, w2)\n h = Sigmoid(g)\n b = Mul(a, h)", w2=(1, 3, 1, 1)),
    "Where and Clip": image(
        "n = Greater(a, zero)\n m = Mul(a, s)\n c = Where(n, a, m)\n b = Clip(c, low)", s=(8, 1, 1), zero=(), low=()
    ),
    "same layer twice": image("c = Conv(a, w2)\n b = Conv(c, w2)", free="w[0]:8", w2=(8, 8, 1, 1)),
    "Dropout": image("b = Dropout(a)"),
}

MOVES = {
    "Concat": image("c = Conv(x, w2)\n b = Concat<axis = 1>(a, x, c)", 17, "w[0]:8 w2[0]:6", w2=(6, 3, 1, 1)),
    "Concat, negative axis": rows("b = Concat<axis = -1>(a, a)", 24),
    "Split in two": image("s, t = Split<axis = 1, num_outputs = 2>(a)\n b = Mul(s, t)", 4, "w[0]:4"),
    "Split, equal by default": image("s, t = Split<axis = 1>(a)\n b = Mul(s, t)", 4, "w[0]:4", opset=13),
    "Split, uneven by number": image(
        "s, t, u = Split<axis = 1, num_outputs = 3>(a)\n b = Concat<axis = 1>(u, s)", 5, "w[0]:3 w[0]:3 w[0]:2"
    ),
    "Split by attribute": image(
        "s, t = Split<axis = 1, split = [3, 5]>(a)\n b = Concat<axis = 1>(t, s)", free="w[0]:3 w[0]:5", opset=11
    ),
    "Split by input": image(
        "s, t = Split<axis = -3>(a, sizes)\n b = Concat<axis = 1>(t, s, t)", 13, "w[0]:3 w[0]:5", sizes=[3, 5]
    ),
    "Slice": image("b = Slice(a, begin, end, axis)", 3, "w[0]:5 w[0]:3", begin=[2], end=[5], axis=[1]),
    "Slice, negative": image("b = Slice(a, begin, end, axis)", 6, "w[0]:2 w[0]:6", begin=[-6], end=[2**40], axis=[-3]),
    "Slice by attributes": image("b = Slice<starts = [1], ends = [-1], axes = [1]>(a)", 6, "w[0]:2 w[0]:6", opset=9),
    "Slice of space too": image(
        "b = Slice(a, begin, end, axis)", 5, "w[0]:5 w[0]:3", begin=[1, 0], end=[3, 5], axis=[2, 1]
    ),
    "Slice of every second place": image(
        "b = Slice(a, begin, end, axis, step)", begin=[0], end=[4], axis=[2], step=[2]
    ),
    "Gather": image("b = Gather<axis = 1>(a, order)", 6, "w[0]:4 w[0]:3", order=[7, 0, 0, -3, 2, 1]),
    "Gather of rows at run time": Case(
        "(int64[N] i) => (float[N,3] y) { a = Gather(w, i)\n y = MatMul(a, v) }", {"w": (7, 8), "v": (8, 3)}, "w[1]:8"
    ),
    "Gather of one place": rows("s = Gather<axis = 1>(a, first)\n b = Unsqueeze(s, one)", first=np.array(0), one=[1]),
    "Pad of space": image("b = Pad(a, pads)", pads=[0, 0, 1, 1, 0, 0, 1, 1]),
    "Pad of channels": image("b = Pad(a, pads)", 11, pads=[0, 1, 0, 0, 0, 2, 0, 0]),
    "Pad by axes": image("b = Pad(a, pads, , axes)", 11, pads=[1, 2], axes=[1]),
    "Pad by attribute": image("b = Pad<pads = [0, 1, 0, 0, 0, 2, 0, 0]>(a)", 11, opset=9),
    "Expand": image("e = Expand(s, size)\n b = Add(a, e)", s=(1, 1, 1), size=[8, 4, 4]),
    "Expand of rows": rows("e = Expand(s, size)\n b = Add(a, e)", s=(12,), size=[1, 1, 1]),
    "Tile": image("b = Tile(a, times)", 16, times=[1, 2, 1, 1]),
    "Tile of one": image("t = Tile(s, times)\n b = Mul(a, t)", s=(1, 1, 1), times=[8, 1, 1]),
    "ConstantOfShape": image("c = ConstantOfShape<value = float[1] {2.0}>(size)\n b = Mul(a, c)", size=[8, 1, 1]),
    "Resize by sizes": image("b = Resize(a, , , size)", size=[1, 8, 8, 8]),
    "Resize by axes": image("b = Resize<axes = [2, 3]>(a, , , size)", size=[8, 8]),
    "Resize by scales": image("b = Resize(a, , scales)", scales=np.array([1, 1, 2, 2], np.float32)),
    "DepthToSpace, DCR": image("b = DepthToSpace<blocksize = 2>(a)", 2, "w[0]:2"),
    "DepthToSpace, CRD": image('b = DepthToSpace<blocksize = 2, mode = "CRD">(a)', 2, "w[0]:2"),
    "SpaceToDepth, CRD": image('b = SpaceToDepth<blocksize = 2, mode = "CRD">(a)', 32, opset=28),
    "SpaceToDepth": image("b = SpaceToDepth<blocksize = 2>(a)", 32),
    "Transpose": image(
        "t = Transpose<perm = [0, 2, 3, 1]>(a)\n c = MatMul(t, w2)\n b = Transpose<perm = [0, 3, 1, 2]>(c)",
        6,
        "w[0]:8 w2[1]:6",
        w2=(8, 6),
    ),
    "Squeeze and Unsqueeze": image("p = GlobalAveragePool(a)\n s = Squeeze(p, at)\n b = Unsqueeze(s, at)", at=[2, 3]),
    "Squeeze by attribute": image(
        "p = GlobalAveragePool(a)\n s = Squeeze<axes = [2, 3]>(p)\n b = Unsqueeze<axes = [-1, 2]>(s)", opset=11
    ),
    "Flatten": Case(
        "(float[N,3,4,4] x) => (float[N,2] y) { a = Conv(x, w)\n f = Flatten(a)\n y = Gemm(f, v) }",
        {"w": (8, 3, 1, 1), "v": (128, 2)},
        "w[0]:8",
    ),
    "Flatten of channels last": Case(
        "(float[N,3,4,4] x) => (float[N,2] y) "
        "{ a = Conv(x, w)\n t = Transpose<perm = [0, 2, 3, 1]>(a)\n f = Reshape(t, all)\n y = Gemm(f, v) }",
        {"w": (8, 3, 1, 1), "v": (128, 2), "all": [0, -1]},
        "w[0]:8",
    ),
    "ReduceMean over space": image("b = ReduceMean(a, at)", at=[2, 3]),
    "ReduceMax over channels": image("m = ReduceMax<keepdims = 1>(a, at)\n b = Sub(a, m)", at=[1], exact=False),
    "ArgMax over places": rows(
        "i = ArgMax<axis = 1>(a)\n f = Cast<to = 1>(i)\n b = Mul(f, s)", s=(12,), by_members=False
    ),
    "LpNormalization over places": rows(
        "t = Transpose<perm = [0, 2, 1]>(a)\n n = LpNormalization(t)\n b = Transpose<perm = [0, 2, 1]>(n)", opset=11
    ),
}

ATTENTION = (
    "s = Reshape(a, split)\n t = Transpose<perm = [0, 2, 1, 3]>(s)\n k0 = MatMul(x, wk)\n"
    "k1 = Reshape(k0, split)\n k = Transpose<perm = [0, 2, 1, 3]>(k1)\n o = Attention<scale = 0.5>(k, k, t, mask)\n"
    "u = Transpose<perm = [0, 2, 1, 3]>(o)\n b = Reshape(u, merge)"
)
ATTENTION_WEIGHTS = {"wk": (5, 12), "split": [0, 0, 4, 3], "merge": [0, 0, 12], "mask": (2, 2)}

RESHAPES = {
    "channel shuffle": image(
        "s = Reshape(a, split)\n t = Transpose<perm = [0, 2, 1, 3, 4]>(s)\n b = Reshape(t, merge)",
        free="w[0]:4",
        split=[0, 2, 4, 4, 4],
        merge=[0, -1, 4, 4],
    ),
    "features of heads": rows(
        "s = Reshape(a, split)\n t = Transpose<perm = [0, 2, 1, 3]>(s)\n u = Transpose<perm = [0, 2, 1, 3]>(t)\n"
        "b = Reshape(u, merge)",
        free="w[1]:3",
        split=[0, 0, 4, 3],
        merge=[0, 0, 12],
    ),
    "heads": rows(
        "s = Reshape(a, split)\n t = Transpose<perm = [0, 2, 1, 3]>(s)\n u = Transpose<perm = [0, 2, 1, 3]>(t)\n"
        "b = Reshape(u, merge)",
        free="w[1]:4",
        split=[0, 0, 4, 3],
        merge=[0, 0, 12],
        unit="head",
    ),
    "queries, keys and values": rows(
        "s = Reshape(a, split)\n t = Transpose<perm = [2, 0, 3, 1, 4]>(s)\n q = Gather(t, n0)\n k = Gather(t, n1)\n"
        "v0 = Gather(t, n2)\n qk = Add(q, k)\n m = Mul(qk, v0)\n u = Transpose<perm = [0, 2, 1, 3]>(m)\n"
        "b = Reshape(u, merge)",
        4,
        "w[1]:2",
        split=[0, 0, 3, 2, 2],
        merge=[0, 0, 4],
        n0=np.array(0),
        n1=np.array(1),
        n2=np.array(2),
    ),
    "Attention, features": rows(ATTENTION, 12, "w[1]:3 wk[1]:3", opset=23, **ATTENTION_WEIGHTS),
    "Attention, heads": rows(ATTENTION, 12, "w[1]:4", opset=23, unit="head", **ATTENTION_WEIGHTS),
    "two axes become one, and one of them is whole": image(
        "s = Reshape(a, merge)\n b = Reshape(s, back)", merge=[0, 8, 16], back=[0, 8, 4, 4]
    ),
    "only one way is open": image(
        # the Softmax over the features inside the groups leaves whole groups to go
        "s = Reshape(a, split)\n t = Softmax<axis = 2>(s)\n b = Reshape(t, merge)",
        free="w[0]:2",
        split=[0, 2, 4, 4, 4],
        merge=[0, 8, 4, 4],
        by_members=False,
    ),
}

RECURRENT = {
    "LSTM": Case(
        "(float[T,N,5] x) => (float[T,N,3] y) { l, h = LSTM<hidden_size = 6>(x, w, r, b)\n s = Squeeze(l, one)\n"
        "y = MatMul(s, v) }",
        {"w": (1, 24, 5), "r": (1, 24, 6), "b": (1, 48), "v": (6, 3), "one": [1]},
        "w[1]:6",
    ),
    "LSTM in both directions, with all inputs": Case(
        "(float[T,N,5] x) => (float[T,N,3] y, float[N,3] z) {"
        "e = MatMul(x, we)\n n = Shape<start = 1, end = 2>(x)\n s0 = Concat<axis = 0>(two, n, six)\n"
        'h0 = Expand(h, s0)\n l, lh = LSTM<hidden_size = 6, direction = "bidirectional">(e, w, r, b, , h0, h0, p)\n'
        "t = Transpose<perm = [0, 2, 1, 3]>(l)\n f = Reshape(t, merge)\n y = MatMul(f, v)\n"
        "k = ReduceSum<keepdims = 0>(lh, zero)\n z = MatMul(k, u) }",
        {
            "we": (5, 4),
            "w": (2, 24, 4),
            "r": (2, 24, 6),
            "b": (2, 48),
            "p": (2, 18),
            "h": (2, 1, 6),
            "v": (12, 3),
            "u": (6, 3),
            "two": [2],
            "six": [6],
            "merge": [0, 0, 12],
            "zero": [0],
        },
        "we[1]:4 h[2]:6",
    ),
    "GRU": Case(
        "(float[T,N,5] x) => (float[N,3] y) { l, h = GRU<hidden_size = 6, linear_before_reset = 1>(x, w, r, b)\n"
        "s = Squeeze(h, zero)\n y = MatMul(s, v) }",
        {"w": (1, 18, 5), "r": (1, 18, 6), "b": (1, 36), "v": (6, 3), "zero": [0]},
        "w[1]:6",
    ),
    "RNN": Case(
        "(float[T,N,5] x) => (float[T,N,3] y) { l = RNN<hidden_size = 6>(x, w, r)\n s = Squeeze(l, one)\n"
        "m, = RNN<hidden_size = 4>(s, w2, r2)\n t = Squeeze(m, one)\n y = MatMul(t, v) }",
        {"w": (1, 6, 5), "r": (1, 6, 6), "w2": (1, 4, 6), "r2": (1, 4, 4), "v": (4, 3), "one": [1]},
        "w[1]:6 w2[1]:4",
    ),
}
