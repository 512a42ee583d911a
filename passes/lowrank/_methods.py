"""The stages of a layer by each method."""

from __future__ import annotations

from onnxopt.passes.lowrank._cp import cp
from onnxopt.passes.lowrank._forms import Form
from onnxopt.passes.lowrank._separable import separable
from onnxopt.passes.lowrank._split import split
from onnxopt.passes.lowrank._stages import Stage
from onnxopt.passes.lowrank._svd import Array, Problem
from onnxopt.passes.lowrank._tucker import tucker


def factorized(form: Form, kernel: Array, problem: Problem, *, rough: bool = False) -> list[Stage]:
    """``kernel`` (N × C × spatial axes) in this form, with the weights of least error that its method finds; ``rough``:
    those that it starts from, or comes to in a few steps."""
    match form.method, form.ranks:
        case "svd", (rank,):
            return split(kernel, problem, rank, kernel.ndim - 2)
        case "input-svd", (rank,):
            return split(kernel, problem, rank, 0, rough=rough)
        case "spatial-svd", (rank,):
            return split(kernel, problem, rank, 1, rough=rough)
        case "tucker", (inner, outer):
            return tucker(kernel, problem, (inner, outer), rough=rough)
        case "cp", (rank,):
            return cp(kernel, problem, rank, rough=rough)
        case "separable", (terms,):
            return separable(kernel, problem, terms)
    raise ValueError(f"no such form: {form}")
