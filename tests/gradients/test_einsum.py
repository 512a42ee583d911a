"""Sums of products along axes that letters name."""

from __future__ import annotations

import numpy as np
import pytest

from onnxopt.errors import GradientError
from tests.gradients.checks import check_node

_RNG = np.random.default_rng(0)

EQUATIONS = [
    ("ij->ij", [(2, 3)]),
    ("ij->ji", [(2, 3)]),
    ("ijk->kij", [(2, 3, 4)]),
    ("ij->i", [(2, 3)]),
    ("ij->", [(2, 3)]),
    ("ij,jk->ik", [(2, 3), (3, 4)]),
    ("ij , jk -> k i", [(2, 3), (3, 4)]),
    ("ij,kj->ik", [(2, 3), (4, 3)]),
    ("bsk,kn->bsn", [(2, 3, 4), (4, 5)]),
    ("bhqd,bhkd->bhqk", [(2, 3, 4, 5), (2, 3, 2, 5)]),
    ("bhqk,bkhd->bqhd", [(2, 3, 4, 2), (2, 2, 3, 5)]),
    ("i,j->ij", [(2,), (3,)]),
    ("i,i->", [(3,), (3,)]),
    ("i,i->i", [(3,), (3,)]),
    ("ij,k->j", [(2, 3), (4,)]),
    (",ij->ji", [(), (2, 3)]),
    ("ij,j", [(2, 3), (3,)]),
    ("ba,cb", [(2, 3), (4, 2)]),
    ("Ba,aC->BC", [(2, 3), (3, 4)]),
    ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 2)]),
    ("ij,ik,il->jkl", [(2, 3), (2, 4), (2, 2)]),
    ("i,i,i->", [(3,), (3,), (3,)]),
    ("...ij,...jk->...ik", [(2, 2, 3), (2, 3, 4)]),
    ("...ij,...jk->...ik", [(5, 1, 2, 3), (1, 2, 3, 4)]),
    ("...ij,...jk->...ik", [(1, 2, 3), (5, 3, 4)]),
    ("...ij,jk", [(2, 2, 3), (3, 4)]),
    ("i...->...i", [(2, 3, 4)]),
    ("i...,...->i...", [(2, 3, 4), (3, 1)]),
    ("a...,b...->...ab", [(2, 3), (4, 3)]),
    ("...,...", [(2, 3), (1, 3)]),
    ("...->...", [()]),
    ("ij,jk->ik", [(2, 1), (3, 4)]),
]


@pytest.mark.parametrize(("equation", "shapes"), EQUATIONS)
def test_equation(equation: str, shapes: list[tuple[int, ...]]) -> None:
    check_node("Einsum", *(_RNG.standard_normal(shape) for shape in shapes), equation=equation)


@pytest.mark.parametrize("wrt", [[0], [1], [2]])
def test_one_of_several_operands(wrt: list[int]) -> None:
    operands = [_RNG.standard_normal(shape) for shape in ((2, 3), (3, 4), (4, 2))]
    check_node("Einsum", *operands, wrt=wrt, opset=26, equation="ij,jk,kl->li")


@pytest.mark.parametrize(
    ("equation", "shapes", "reason"),
    [
        ("ii->i", [(3, 3)], "reads a diagonal"),
        ("ij,jj->i", [(2, 3), (3, 3)], "reads a diagonal"),
        ("ij,ij->ij", [(1, 3), (2, 1)], "axes of unequal sizes"),
    ],
)
def test_refuses(equation: str, shapes: list[tuple[int, ...]], reason: str) -> None:
    with pytest.raises(GradientError, match=reason):
        check_node("Einsum", *(_RNG.standard_normal(shape) for shape in shapes), equation=equation)
