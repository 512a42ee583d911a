"""Sums of products along axes that letters name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from string import ascii_letters

import onnx_ir as ir

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp


@vjp("Einsum")
def _einsum(at: Backward) -> Gradients:
    """``y = einsum("a,b,…->y", a, b, …)``: ``da = einsum("y,b,…->a", g, b, …)``, repeated along the axes that ``a``
    alone has, summed along those that were broadcast."""
    terms, output = _letters(at)
    if any(len(set(term)) < len(term) for term in terms):
        raise at.error("it reads a diagonal")
    result = dict(zip(output, at.shape(at.outputs[0]), strict=True))
    for x, term in zip(at.inputs, terms, strict=True):
        if any(size > result.get(letter, size) for letter, size in zip(term, at.shape(x), strict=True)):
            raise at.error("a letter names axes of unequal sizes")  # of which onnx infers a wrong shape
    return [_gradient(at, i, terms, output) if at.wants(i) else None for i in range(len(terms))]


def _gradient(at: Backward, index: int, terms: Sequence[str], output: str) -> ir.Value:
    """The gradient in one operand."""
    own = dict(zip(terms[index], at.shape(at.inputs[index]), strict=True))
    others = [i for i in range(len(terms)) if i != index]
    operands = [(at.g, output, at.shape(at.outputs[0]))]
    operands += [(at.inputs[i], terms[i], at.shape(at.inputs[i])) for i in others]
    sizes: dict[str, int] = {}
    for _, letters, shape in operands:
        for letter, size in zip(letters, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    kept = "".join(letter for letter in own if letter in sizes and not (own[letter] == 1 < sizes[letter]))
    equation = ",".join(letters for _, letters, _ in operands) + "->" + kept
    found = at.g
    if equation != f"{output}->{output}":
        found = at.op("Einsum", *(x for x, *_ in operands), equation=equation)
    if kept != terms[index]:
        found = at.reshape(found, *(sizes[letter] if letter in kept else 1 for letter in own))
    if math.prod(sizes[letter] for letter in kept) < math.prod(own.values()):
        found = at.op("Expand", found, at.ints(*own.values()))
    return found


def _letters(at: Backward) -> tuple[list[str], str]:
    """A letter for each axis of each operand, and of the output, also for those that ``...`` stands for."""
    equation = at.attribute("equation").replace(" ", "")
    left, arrow, output = equation.partition("->")
    terms = left.split(",")
    named = [term.replace("...", "") for term in terms]
    ranks = [at.rank(x) - len(letters) for x, letters in zip(at.inputs, named, strict=True)]
    free = [letter for letter in ascii_letters if letter not in equation]
    if max(ranks) > len(free):
        raise at.error("it has more axes than there are letters")
    spare = "".join(free[: max(ranks)])
    if not arrow:
        once = sorted(letter for letter in set(left) - set(",.") if left.count(letter) == 1)
        output = ("..." if "..." in left else "") + "".join(once)
    return (
        [term.replace("...", spare[len(spare) - rank :]) for term, rank in zip(terms, ranks, strict=True)],
        output.replace("...", spare),
    )
