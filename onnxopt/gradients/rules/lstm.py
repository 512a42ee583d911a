"""Long short-term memory, back through time.

Of each time, ``a = x Wᵀ + h₋ Rᵀ + b`` is cut into ``i, o, f, g``, and with the peepholes ``p``::

    i = σ(aᵢ + pᵢ c₋)    f = σ(a_f + p_f c₋)    g = tanh(a_g)    c = f c₋ + i g    o = σ(aₒ + pₒ c)    h = o tanh(c)

What is linear in the gradients of ``h`` and ``c`` has factors that do not depend on them: ``K`` of ``da``, ``A`` of
``dc`` in ``dh`` and ``F`` of ``dc₋`` in ``dc``. A first ``Scan`` computes the cells again and these factors; a second
one, against time, is then::

    dc = dc₊ + A dh    da = K (dc, dh, dc, dc)    dc₋ = F dc    dh₋ = da R
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp
from onnxopt.gradients.rules.recurrent import Direction, Found, R, X, directions, gradients

_INITIAL_C, _P = 6, 7


@vjp("LSTM")
def _lstm(at: Backward) -> Gradients:
    """``dx = da W``, ``dW = daᵀ x``, ``dR = daᵀ h₋`` and ``db = Σ da``, each over all times, and ``dp`` the sum of
    ``da`` times the cells that the peepholes read."""
    if at.attribute("input_forget", 0):
        raise at.error("its input and forget gates are coupled")
    h = at.shape(at.inputs[R])[2]
    found = []
    for part in directions(at, ("Sigmoid", "Tanh", "Tanh")):
        before = part.before()
        k, a, f, *cells = _factors(at, part, at.op("Gemm", before, part.weights(R), part.of_x(part.bias()), transB=1))
        dh, dc, da = _back(at, part, (k, a, f))
        dp = None
        if cells:
            iof = at.op("Slice", da, at.ints(0), at.ints(3 * h), at.ints(2))
            dp = at.sum(at.op("Mul", iof, cells[0]), 0, 1, keepdims=False)
        da = at.reshape(da, -1, 4 * h)
        dr = at.op("Gemm", da, before, transA=1)
        found.append(Found(part, da, dr, at.sum(da, 0, keepdims=False), (dh, dc, dp)))
    return gradients(at, found)


def _factors(at: Backward, part: Direction, products: ir.Value) -> list[ir.Value]:
    """``K``, ``A`` and ``F`` of all times and, if the peepholes want gradients, the cells that they read."""
    h = part.sizes[2]
    one = at.number(1, at.inputs[X])
    given = at.input(_P)
    p = None if given is None else at.ops("Split", part.of(given, 3 * h), outputs=3, axis=0, num_outputs=3)

    def step(c: ir.Value, a: ir.Value) -> tuple[list[ir.Value], list[ir.Value]]:
        if p is None:
            a_iof, a_g = at.ops("Split", a, at.ints(3 * h, h), outputs=2, axis=1)
            iof = at.op("Sigmoid", a_iof)
            i, o, f = at.ops("Split", iof, outputs=3, axis=1, num_outputs=3)
        else:
            a_i, a_o, a_f, a_g = at.ops("Split", a, outputs=4, axis=1, num_outputs=4)
            i, f = (at.op("Sigmoid", at.op("Add", x, at.op("Mul", c, w))) for x, w in ((a_i, p[0]), (a_f, p[2])))
        g = at.op("Tanh", a_g)
        after = at.op("Add", at.op("Mul", f, c), at.op("Mul", i, g))
        if p is not None:
            o = at.op("Sigmoid", at.op("Add", a_o, at.op("Mul", after, p[1])))
            iof = at.op("Concat", i, o, f, axis=1)
        y = at.op("Mul", o, tanh := at.op("Tanh", after))
        slopes = at.op("Mul", iof, at.op("Sub", one, iof))
        slope_g = at.op("Sub", one, at.op("Mul", g, g))
        others = at.op("Concat", g, tanh, c, i, axis=1)
        k = at.op("Mul", others, at.op("Concat", slopes, slope_g, axis=1))
        a_factor, f_factor = at.op("Sub", o, at.op("Mul", y, tanh)), f
        if p is not None:
            k_i, k_o, k_f, _ = at.ops("Split", k, outputs=4, axis=1, num_outputs=4)
            a_factor = at.op("Add", a_factor, at.op("Mul", k_o, p[1]))
            f_factor = at.op("Sum", f, at.op("Mul", k_i, p[0]), at.op("Mul", k_f, p[2]))
        cells = [at.op("Concat", c, after, c, axis=1)] if at.wants(_P) else []
        return [after], [k, a_factor, f_factor, *cells]

    return part.scan(step, [part.state(at.input(_INITIAL_C))], part.by_time(products))[1:]


def _back(at: Backward, part: Direction, factors: Sequence[ir.Value]) -> list[ir.Value]:
    """The gradients of the initial ``h`` and ``c``, and ``da`` of all times."""
    r = part.weights(R)

    def step(
        dh: ir.Value, dc: ir.Value, k: ir.Value, a: ir.Value, f: ir.Value, g: ir.Value
    ) -> tuple[list[ir.Value], list[ir.Value]]:
        dh = at.op("Add", dh, g)
        dc = at.op("Add", dc, at.op("Mul", dh, a))
        da = at.op("Mul", at.op("Concat", dc, dh, dc, dc, axis=1), k)
        return [at.op("Gemm", da, r), at.op("Mul", dc, f)], [da]

    last = [part.state(gradient) for gradient in (*at.gradients[1:], None, None)[:2]]
    return part.scan(step, last, [*factors, part.sequence(at.gradients[0])], back=True)
