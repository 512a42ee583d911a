"""Plans as pipelines: which passes with which options carry a plan out, and the recipe that says so."""

from __future__ import annotations

import glob
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from onnxopt import recipes
from onnxopt.graph import constant_tensor, label
from onnxopt.pass_base import Pass
from onnxopt.passes.distill.distill import Distill
from onnxopt.passes.lowrank.split_conv import SplitConv
from onnxopt.passes.lowrank.split_matmul import SplitMatmul
from onnxopt.passes.prune.prune_channels import PruneChannels
from onnxopt.passes.prune.reconstruct import Reconstruct
from onnxopt.passes.quantize._roles import LAYERS
from onnxopt.passes.quantize.quantize_static import QuantizeStatic
from onnxopt.search.allocation import Plan, Target
from onnxopt.search.space import STORED, WEIGHTS, Method, Precision, dynamic_integers, stored_weights

_BATCH = 32


def known_plans(cleaned: ir.Model, methods: Sequence[Method], target: Target) -> list[Plan]:
    """What is worth a try before anything is known of a model: INT8 as the recipe places it, and for size weights of
    eight and of four bits."""
    if "quantize" not in methods:
        return []
    precisions: list[tuple[Precision, Collection[str]]] = [("int8", LAYERS)]
    if target == "size":
        precisions += [(precision, STORED) for precision in WEIGHTS]
    found = []
    for precision, ops in precisions:
        names = [label(n) for n in cleaned.graph if n.op_type in ops and any(map(constant_tensor, n.inputs))]
        if names:
            found.append(Plan(precisions=tuple((name, precision) for name in dict.fromkeys(names))))
    return found


def structure(plan: Plan, cleaned: ir.Model) -> list[Pass]:
    """The passes that prune and split, and recover what that took; ``cleaned`` is the model before them."""
    passes: list[Pass] = []
    if plan.prune:
        chosen = tuple((glob.escape(name), share) for name, share in plan.prune)
        passes += [PruneChannels(ratios=(*chosen, ("*", 0.0)), timed=False), Reconstruct()]
    ops = {label(node): node.op_type for node in cleaned.graph}
    for kind in (SplitConv, SplitMatmul):
        for rank in sorted({rank for name, rank in plan.split if ops[name] in kind.ops}):
            names = tuple(glob.escape(name) for name, r in plan.split if r == rank and ops[name] in kind.ops)
            passes.append(kind(include=names, rank=rank, timed=False))
    if plan.epochs and passes:
        passes.append(Distill(epochs=plan.epochs, batch=_BATCH))
    return passes


def few_bits(plan: Plan) -> list[Pass]:
    """The passes that store weights alone in few bits, and that round activations at run time."""
    chosen = [(bits, names) for precision, bits in WEIGHTS.items() if (names := plan.of(precision))]
    passes: list[Pass] = [replace(stored_weights(bits, _parts(names)), max_drop=1.0) for bits, names in chosen]
    if names := plan.of("dynamic-int8"):
        passes.append(replace(dynamic_integers(_parts(names)), max_drop=1.0))
    return passes


def measured_integers(plan: Plan, cleaned: ir.Model) -> QuantizeStatic:
    """Quantization of the layers that the plan has in integers, if it says so only where that is faster."""
    chosen = plan.of("int8")
    left = [name for node in cleaned.graph if node.op_type in LAYERS and (name := label(node)) not in chosen]
    return QuantizeStatic(exclude=tuple(_parts(left)), max_drop=1.0, placement="measured" if plan.timed else "all")


def _parts(names: Sequence[str]) -> list[str]:
    """Globs for nodes, and for what they are split into."""
    return [each for name in names for each in (glob.escape(name), f"{glob.escape(name)}_[0-9]")]


def fixed_integers(nodes: Sequence[str]) -> QuantizeStatic:
    """Quantization of just these nodes, with nothing left to measure."""
    return QuantizeStatic(include=tuple(map(glob.escape, nodes)), placement="all")


def recipe_text(passes: Sequence[Pass], share: float, description: str) -> str:
    """A recipe file that runs these passes after cleanup, on the first ``share`` of the samples."""
    lines = [f"description = {_toml(description)}", f"data_share = {share!r}", "", "[[pass]]", 'recipe = "cleanup"']
    for pass_ in passes:
        lines += ["", "[[pass]]", f"name = {_toml(pass_.name)}"]
        lines += [f"{option} = {_toml(value)}" for option, value in pass_.options().items()]
    return "\n".join(lines) + "\n"


def pipeline(passes: Sequence[Pass]) -> list[Pass]:
    """The same as passes."""
    return [*recipes.recipe("cleanup"), *passes]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
