"""Scaled dot-product attention.

The node itself gives its probabilities ``P``, so that masks, causal or of windows or of lengths, need nothing here:
where they forbid, ``P`` is 0. Heads of the query that share one of the key are looked at as further rows of that head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp

_MASK = 3
_PROBABILITIES = 3
"""The place of the output, and the mode in which it is the probabilities."""


@dataclass(frozen=True)
class Heads:
    """A query, keys or values as they are given: batch × rows × heads·size, or batch × heads × rows × size."""

    at: Backward
    shape: tuple[int, ...]
    count: int

    @property
    def rows(self) -> int:
        return self.shape[-2]

    @property
    def size(self) -> int:
        return self.shape[-1] // (self.count if len(self.shape) == 3 else 1)

    def split(self, value: ir.Value, into: int) -> ir.Value:
        """``value`` as batch × ``into`` heads × rows × size."""
        batch = self.shape[0]
        if len(self.shape) == 3:
            value = self.at.transpose(self.at.reshape(value, batch, self.rows, self.count, self.size), 0, 2, 1, 3)
        return value if into == self.count else self.at.reshape(value, batch, into, -1, self.size)

    def joined(self, value: ir.Value, by: int) -> ir.Value:
        """What ``split`` undoes."""
        batch = self.shape[0]
        if by != self.count:
            value = self.at.reshape(value, batch, self.count, self.rows, self.size)
        return value if len(self.shape) == 4 else self.at.reshape(self.at.transpose(value, 0, 2, 1, 3), *self.shape)

    def sums(self, value: ir.Value, into: int) -> ir.Value:
        """The sums over the elements of each head, split."""
        batch = self.shape[0]
        if len(self.shape) == 4:
            summed = self.at.sum(value, 3)
            return summed if into == self.count else self.at.reshape(summed, batch, into, -1, 1)
        summed = self.at.sum(self.at.reshape(value, batch, self.rows, self.count, self.size), 3, keepdims=False)
        return self.at.reshape(self.at.transpose(summed, 0, 2, 1), batch, into, -1, 1)


@vjp("Attention")
def _attention(at: Backward) -> Gradients:
    """``y = P v`` with ``P = softmax(c(σ q kᵀ) + mask)``: see ``gradients``; ``dmask = ds``."""
    if any(at.gradients[_PROBABILITIES:]):
        raise at.error("the loss depends on its scores")
    q = heads(at, at.inputs[0], at.attribute("q_num_heads"))
    k, v = (_Cached.of(at, i) for i in (1, 2))
    shape = (q.shape[0], q.count, q.rows, k.whole.rows)
    scale, cap = at.attribute("scale") or q.size**-0.5, at.attribute("softcap", 0.0)
    values = (at.inputs[0], k.value, v.value)
    dq, dk, dv, ds = gradients(at, (q, k.whole, v.whole), values, _probabilities(at, shape), scale, cap)
    (dk, d_past_k), (dv, d_past_v) = k.parted(dk), v.parted(dv)
    return dq, dk, dv, _of_mask(at, ds, shape) if at.wants(_MASK) else None, d_past_k, d_past_v


@dataclass(frozen=True)
class _Cached:
    """Keys or values, with those of the past before them."""

    place: int
    """Of the new ones among the inputs, and of all among the outputs."""
    new: Heads
    whole: Heads
    value: ir.Value
    """All, split into heads."""

    @classmethod
    def of(cls, at: Backward, place: int) -> _Cached:
        """The keys (1) or values (2) of the node."""
        new = heads(at, at.inputs[place], at.attribute("kv_num_heads"))
        past = at.input(place + 3)
        count = 0 if past is None else at.shape(past)[2]
        whole = replace(new, shape=(new.shape[0], new.count, count + new.rows, new.size))
        if past is None:
            return cls(place, new, whole, new.split(at.inputs[place], new.count))
        return cls(place, new, whole, at.output(place, at.dtype(past), whole.shape))

    def parted(self, gradient: ir.Value) -> tuple[ir.Value, ir.Value | None]:
        """The gradients of the new ones and of the past, from that of all as they are read here."""
        at = self.new.at
        if len(at.gradients) > self.place and (given := at.gradients[self.place]) is not None:
            gradient = at.op("Add", gradient, given)
        if at.input(self.place + 3) is None:
            return self.new.joined(gradient, self.new.count), None
        sizes = at.ints(self.whole.rows - self.new.rows, self.new.rows)
        d_past, d_new = at.ops("Split", gradient, sizes, outputs=2, axis=2)
        return self.new.joined(d_new, self.new.count), d_past


def gradients(
    at: Backward, of: Sequence[Heads], values: Sequence[ir.Value], p: ir.Value, scale: float, cap: float = 0.0
) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
    """Of ``y = P v``: ``dv = Pᵀ g``, ``ds = P (g vᵀ - Σ g y)`` and, with the slope ``c' = 1 - tanh²(σ q kᵀ / cap)`` of
    the soft cap, ``dq = σ ds c' k`` and ``dk = σ (ds c')ᵀ q``.

    ``of`` says what the query, keys and ``values`` are; ``p`` is ``P``, batch × heads × rows × keys. Returns ``dq``,
    ``dk``, ``dv`` and ``ds``, batch × heads of the keys × rows × keys.
    """
    of_q, of_k, of_v = of
    of_y, into = heads(at, at.outputs[0], of_q.count), of_k.count
    q, k, v = (each.split(value, into) for each, value in zip(of, values, strict=True))
    g = of_y.split(at.g, into)
    if into != of_q.count:
        p = at.reshape(p, of_q.shape[0], into, -1, of_k.rows)
    sums = of_y.sums(at.op("Mul", at.g, at.outputs[0]), into)
    ds = at.op("Mul", p, at.op("Sub", at.op("MatMul", g, _t(at, v)), sums))
    slope = ds
    if cap:
        tanh = at.op("Tanh", at.op("Mul", at.op("MatMul", q, _t(at, k)), at.number(scale / cap)))
        slope = at.op("Mul", ds, at.op("Sub", at.number(1), at.op("Mul", tanh, tanh)))
    dq = at.op("Mul", at.op("MatMul", slope, k), at.number(scale))
    dk = at.op("Mul", at.op("MatMul", _t(at, slope), q), at.number(scale))
    dv = at.op("MatMul", _t(at, p), g)
    return of_q.joined(dq, into), of_k.joined(dk, into), of_v.joined(dv, into), ds


def heads(at: Backward, value: ir.Value, count: int | None) -> Heads:
    """What a value is that has ``count`` heads, if it has three axes; four tell that themselves."""
    shape = at.shape(value)
    return Heads(at, shape, shape[1] if len(shape) == 4 or count is None else count)


def _t(at: Backward, value: ir.Value) -> ir.Value:
    return at.transpose(value, 0, 1, 3, 2)


def _probabilities(at: Backward, shape: tuple[int, ...]) -> ir.Value:
    """Of the node itself, or of another one like it if it gives its scores in another form."""
    mode = {"qk_matmul_output_mode": _PROBABILITIES}
    given = len(at.outputs) > _PROBABILITIES and bool(at.outputs[_PROBABILITIES].name)
    if given and at.attribute("qk_matmul_output_mode", 0) != _PROBABILITIES:
        attributes = {name: attribute.value for name, attribute in at.node.attributes.items()}
        return at.ops("Attention", *at.node.inputs, outputs=_PROBABILITIES + 1, **attributes | mode)[_PROBABILITIES]
    at.node.attributes.update({name: ir.AttrInt64(name, value) for name, value in mode.items()})
    return at.output(_PROBABILITIES, at.dtype(at.inputs[0]), shape)


def _of_mask(at: Backward, ds: ir.Value, shape: Sequence[int]) -> ir.Value:
    """A mask may say nothing of the last keys, which are forbidden then."""
    mask = at.inputs[_MASK]
    *lead, keys = shape
    ds = at.reshape(ds, *shape)
    if (known := at.shape(mask)[-1]) < keys:
        ds = at.op("Slice", ds, at.ints(0), at.ints(known), at.ints(3))
    return at.unbroadcast(ds, mask, (*lead, known))
