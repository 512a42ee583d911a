"""Gated recurrent units, back through time.

Of each time, with ``u = x Wᵀ + b_W`` and ``v = h₋ Rᵀ + b_R``, each cut into ``z, r, n``::

    z = σ(u_z + v_z)    r = σ(u_r + v_r)    n = tanh(u_n + q)    h = (1 - z) n + z h₋

where ``q = r v_n`` if ``linear_before_reset``, and the third of the products with ``r h₋`` for ``h₋`` otherwise. All
gates are computed again at once. A ``Scan``, against time, is then::

    da_z = dh (h₋ - n) z (1 - z)    da_n = dh (1 - z) (1 - n²)    da_r = dr r (1 - r)

with ``dr = da_n v_n`` and ``dh₋ = dh z + (da_z, da_r, da_n r) R``, or with ``s = da_n R_n``, the gradient of ``r h₋``,
``dr = s h₋`` and ``dh₋ = dh z + s r + (da_z, da_r) R_zr``.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp
from onnxopt.gradients.rules.recurrent import Direction, Found, R, X, directions, gradients


@dataclass(frozen=True)
class _Gates:
    """Of all times, T·N × H, or 2·H for ``zr``."""

    zr: ir.Value
    n: ir.Value
    before: ir.Value
    """``h₋``."""
    by_r: ir.Value
    """What ``r`` is multiplied by, ``v_n``, or else ``r h₋``."""


@vjp("GRU")
def _gru(at: Backward) -> Gradients:
    """``dx = da W``, ``dW = daᵀ x``, ``dR = dvᵀ h₋`` (the third of ``n`` with ``r h₋`` for ``h₋`` if that is what it
    reads), ``db = (Σ da, Σ dv)``, each over all times."""
    linear = bool(at.attribute("linear_before_reset", 0))
    found = []
    for part in directions(at, ("Sigmoid", "Tanh")):
        gates = _gates(at, part, linear)
        dh, da, *dv = _back(at, part, gates, linear)
        da, *dv = (at.reshape(d, -1, 3 * part.sizes[2]) for d in (da, *dv))
        db = at.sum(dv[0] if linear else da, 0, keepdims=False)
        if linear:
            dr = at.op("Gemm", dv[0], gates.before, transA=1)
        else:
            da_zr, da_n = _cut(at, part, da, axis=1)
            products = ((da_zr, gates.before), (da_n, gates.by_r))
            dr = at.op("Concat", *(at.op("Gemm", a, b, transA=1) for a, b in products), axis=0)
        found.append(Found(part, da, dr, db, (dh,)))
    return gradients(at, found)


def _cut(at: Backward, part: Direction, value: ir.Value, axis: int) -> tuple[ir.Value, ...]:
    """What is of ``z`` and ``r``, and what is of ``n``."""
    h = part.sizes[2]
    return at.ops("Split", value, at.ints(2 * h, h), outputs=2, axis=axis)


def _gates(at: Backward, part: Direction, linear: bool) -> _Gates:
    before, r_weights = part.before(), part.weights(R)
    if linear:
        b_w, b_r = part.biases()
        u_zr, u_n = _cut(at, part, part.of_x(b_w), axis=1)
        v_zr, v_n = _cut(at, part, at.op("Gemm", before, r_weights, b_r, transB=1), axis=1)
        zr = at.op("Sigmoid", at.op("Add", u_zr, v_zr))
        a_n, by_r = at.op("Add", u_n, at.op("Mul", _halves(at, zr)[1], v_n)), v_n
    else:
        u_zr, u_n = _cut(at, part, part.of_x(part.bias()), axis=1)
        r_zr, r_n = _cut(at, part, r_weights, axis=0)
        zr = at.op("Sigmoid", at.op("Gemm", before, r_zr, u_zr, transB=1))
        by_r = at.op("Mul", _halves(at, zr)[1], before)
        a_n = at.op("Gemm", by_r, r_n, u_n, transB=1)
    return _Gates(zr, at.op("Tanh", a_n), before, by_r)


def _halves(at: Backward, zr: ir.Value) -> tuple[ir.Value, ...]:
    return at.ops("Split", zr, outputs=2, axis=1, num_outputs=2)


def _back(at: Backward, part: Direction, gates: _Gates, linear: bool) -> list[ir.Value]:
    """The gradient of the initial ``h``, ``da`` of all times and, if ``linear``, ``dv``."""
    r_weights, one = part.weights(R), at.number(1, at.inputs[X])
    r_zr, r_n = _cut(at, part, r_weights, axis=0)

    def step(
        dh: ir.Value, zr: ir.Value, n: ir.Value, before: ir.Value, by_r: ir.Value, g: ir.Value
    ) -> tuple[list[ir.Value], list[ir.Value]]:
        dh = at.op("Add", dh, g)
        z, r = _halves(at, zr)
        slopes = at.op("Mul", zr, at.op("Sub", one, zr))
        direct = at.op("Mul", dh, z)
        slope_n = at.op("Sub", one, at.op("Mul", n, n))
        da_n = at.op("Mul", at.op("Sub", dh, direct), slope_n)
        dz = at.op("Mul", dh, at.op("Sub", before, n))
        if linear:
            da_zr = at.op("Mul", at.op("Concat", dz, at.op("Mul", da_n, by_r), axis=1), slopes)
            dv = at.op("Concat", da_zr, at.op("Mul", da_n, r), axis=1)
            return [at.op("Gemm", dv, r_weights, direct)], [at.op("Concat", da_zr, da_n, axis=1), dv]
        s = at.op("Gemm", da_n, r_n)
        da_zr = at.op("Mul", at.op("Concat", dz, at.op("Mul", s, before), axis=1), slopes)
        direct = at.op("Add", direct, at.op("Mul", s, r))
        return [at.op("Gemm", da_zr, r_zr, direct)], [at.op("Concat", da_zr, da_n, axis=1)]

    sequences = part.by_time(gates.zr, gates.n, gates.before, gates.by_r)
    last = part.state((*at.gradients, None)[1])
    return part.scan(step, [last], [*sequences, part.sequence(at.gradients[0])], back=True)
