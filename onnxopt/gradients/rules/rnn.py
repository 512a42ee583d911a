"""Simple recurrent layers, back through time."""

from __future__ import annotations

import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp
from onnxopt.gradients.rules.recurrent import Direction, Found, R, X, all_times, directions, gradients


@vjp("RNN")
def _rnn(at: Backward) -> Gradients:
    """``h = φ(x Wᵀ + h₋ Rᵀ + b)``, whose slope ``φ'`` is ``1 - h²`` of tanh and ``h > 0`` of Relu: against time,
    ``da = dh φ'`` and ``dh₋ = da R``; then ``dx = da W``, ``dW = daᵀ x``, ``dR = daᵀ h₋`` and ``db = Σ da``, each over
    all times."""
    is_relu = any(name.lower() == "relu" for name in at.attribute("activations", ()))
    found = []
    for part in directions(at, ["Relu" if is_relu else "Tanh"]):
        dh, da = _back(at, part, is_relu)
        da = at.reshape(da, -1, part.sizes[2])
        dr = at.op("Gemm", da, part.before(), transA=1)
        found.append(Found(part, da, dr, at.sum(da, 0, keepdims=False), (dh,)))
    return gradients(at, found)


def _back(at: Backward, part: Direction, is_relu: bool) -> list[ir.Value]:
    """The gradient of the initial ``h``, and ``da`` of all times."""
    r, y = part.weights(R), part.sequence(all_times(at))
    if is_relu:
        slopes = at.op("Cast", at.op("Greater", y, at.number(0, at.inputs[X])), to=at.dtype(at.inputs[X]))
    else:
        slopes = at.op("Sub", at.number(1, at.inputs[X]), at.op("Mul", y, y))

    def step(dh: ir.Value, slope: ir.Value, g: ir.Value) -> tuple[list[ir.Value], list[ir.Value]]:
        da = at.op("Mul", at.op("Add", dh, g), slope)
        return [at.op("Gemm", da, r)], [da]

    last = part.state((*at.gradients, None)[1])
    return part.scan(step, [last], [slopes, part.sequence(at.gradients[0])], back=True)
