"""Which operator has which rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from onnxopt.gradients.node import Backward

Gradients = Sequence[ir.Value | None]
"""For each input of a node, the gradient of the loss in it, of its shape and type; ``None`` where there is none.
Those missing at the end are ``None`` too."""
Rule = Callable[["Backward"], Gradients]

_RULES: dict[tuple[str, str], Rule] = {}
_CONSTANT: set[tuple[str, str]] = set()


def vjp(*op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Declare the rule of these operators; raises ``ValueError`` where one has a rule already."""

    def register(rule: Rule) -> Rule:
        for op_type in op_types:
            _declare(op_type, domain)
            _RULES[domain, op_type] = rule
        return rule

    return register


def piecewise_constant(*op_types: str, domain: str = "") -> None:
    """Declare operators whose outputs do not move with their inputs, wherever they have a derivative at all."""
    for op_type in op_types:
        _declare(op_type, domain)
        _CONSTANT.add((domain, op_type))


def _declare(op_type: str, domain: str) -> None:
    if (domain, op_type) in _RULES or (domain, op_type) in _CONSTANT:
        raise ValueError(f"{op_type} of domain {domain!r} has a rule already")


def rule_of(node: ir.Node) -> Rule | None:
    """The rule of ``node``, if its operator has one."""
    return _RULES.get((node.domain, node.op_type))


def is_constant(node: ir.Node) -> bool:
    """Whether no gradient passes ``node``."""
    return (node.domain, node.op_type) in _CONSTANT


def differentiable_ops() -> list[tuple[str, str]]:
    """Domain and type of every operator that has a rule, sorted."""
    return sorted(_RULES)
