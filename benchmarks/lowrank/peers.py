"""What others would do: in all layers the same share of the rank, the largest that saves as much arithmetic as asked.

``plain``
    the truncated SVD of the weights;
``whitened``
    the truncated SVD of the weights times a root of the inputs' ``XᵀX``, as in SVD-LLM;
``tucker``
    TensorLy's Tucker-2, with one share for both ranks; 1×1 convolutions have no use for it and stay whole.

For two factors the share is of the rank at which nothing is saved, for Tucker-2 of the channels. Layers of little
arithmetic stay whole: a classifier at a third of its rank cannot tell its classes, and nothing is gained.
"""

from __future__ import annotations

import math
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto

from benchmarks import venvs
from benchmarks.lowrank import activations
from benchmarks.lowrank.cases import Case
from benchmarks.lowrank.layers import Array, Layer, layers, split, thin

TENSORLY = ("tensorly==0.10.0", "numpy==2.4.6", "scipy==1.17.1")
SMALL = 0.01
"""Layers of a smaller share of the arithmetic stay whole."""
Stages = dict[str, list[Array]]
RanksOf = Callable[[Layer, float], tuple[int, ...]]


def factorized(method: str, ratio: float, model: ModelProto, case: Case) -> ModelProto:
    """``model`` by one of these ``METHODS``, with the share ``ratio`` of its layers' arithmetic saved."""
    chosen = layers(model, case.ops)
    return split(model, METHODS[method](chosen, ratio, model, case))


def plain(chosen: list[Layer], ratio: float, model: ModelProto, case: Case) -> Stages:
    ranks = largest(chosen, two_ranks, ratio, activations.places(model, chosen, case.one))
    taken = [layer for layer in chosen if ranks[layer.name]]
    return {layer.name: thin(*truncated(layer.matrix, *ranks[layer.name]), layer.kernel) for layer in taken}


def whitened(chosen: list[Layer], ratio: float, model: ModelProto, case: Case) -> Stages:
    ranks = largest(chosen, two_ranks, ratio, activations.places(model, chosen, case.one))
    taken = [layer for layer in chosen if ranks[layer.name]]
    grams = activations.grams(model, taken, case.batches())
    found = {}
    for layer in taken:
        gram = grams[layer.name]
        root = np.linalg.cholesky(gram + 1e-6 * np.trace(gram) / len(gram) * np.eye(len(gram)))
        first, second = truncated(root.T @ layer.matrix, *ranks[layer.name])
        found[layer.name] = thin(np.linalg.solve(root.T, first), second, layer.kernel)
    return found


def tucker(chosen: list[Layer], ratio: float, model: ModelProto, case: Case) -> Stages:
    ranks = largest(chosen, tucker_ranks, ratio, activations.places(model, chosen, case.one))
    wide = [layer for layer in chosen if ranks[layer.name]]
    python = venvs.ensure("tensorly", TENSORLY)
    with tempfile.TemporaryDirectory() as folder:
        given, target = Path(folder) / "given.npz", Path(folder) / "target.npz"
        arrays: dict[str, Array] = {f"kernel-{i}": layer.kernel.astype(np.float64) for i, layer in enumerate(wide)}
        arrays |= {f"ranks-{i}": np.array(ranks[layer.name]) for i, layer in enumerate(wide)}
        np.savez(given, **arrays)  # type: ignore[arg-type]
        script = str(Path(__file__).with_name("tucker.py"))
        subprocess.run([str(python), "-P", script, str(given), str(target)], check=True)
        with np.load(target) as made:
            return {
                layer.name: _three(made[f"inner-{i}"], made[f"core-{i}"], made[f"outer-{i}"])
                for i, layer in enumerate(wide)
            }


METHODS: dict[str, Callable[[list[Layer], float, ModelProto, Case], Stages]] = {
    "plain": plain,
    "whitened": whitened,
    "tucker": tucker,
}


def truncated(matrix: Array, rank: int) -> tuple[Array, Array]:
    """Factors (k × r) and (r × n), of equal size, of the nearest matrix of this rank."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    root = np.sqrt(values[:rank])
    return left[:, :rank] * root, root[:, None] * right[:rank]


def largest(
    chosen: Sequence[Layer], ranks_of: RanksOf, ratio: float, at: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, ...]]:
    """The ranks of each layer, none if it stays whole, at the largest share that saves ``ratio`` of all arithmetic.

    Raises ``ValueError`` if none does.
    """
    whole = {layer.name: macs(layer, (), *at[layer.name]) for layer in chosen}
    total = sum(whole.values())
    for share in np.arange(1, 0, -0.002):
        ranks = {
            layer.name: ranks_of(layer, float(share)) if whole[layer.name] >= SMALL * total else () for layer in chosen
        }
        if sum(macs(layer, ranks[layer.name], *at[layer.name]) for layer in chosen) <= (1 - ratio) * total:
            return ranks
    raise ValueError(f"no share of the ranks saves {ratio}")


def two_ranks(layer: Layer, share: float) -> tuple[int, ...]:
    n, k = layer.shape[0], math.prod(layer.shape[1:])
    return (max(1, round(share * k * n / (k + n))),)


def tucker_ranks(layer: Layer, share: float) -> tuple[int, ...]:
    """Of N and of C, where the kernel is larger than 1×1."""
    n, c, *spatial = layer.shape
    return (max(1, round(share * n)), max(1, round(share * c))) if math.prod(spatial) > 1 else ()


def macs(layer: Layer, ranks: tuple[int, ...], before: int, behind: int) -> int:
    """Multiply–accumulates of a layer whole, in two stages or in three, at so many places of its input and output."""
    n, c, *spatial = layer.shape
    size = math.prod(spatial)
    match ranks:
        case (outer, inner):
            return c * inner * before + (inner * size + n) * outer * behind
        case (rank,):
            return rank * (c * size + n) * behind
    return n * c * size * behind


def _three(inner: Array, core: Array, outer: Array) -> list[Array]:
    ones = [1] * (core.ndim - 2)
    return [inner.T.reshape(*inner.T.shape, *ones), core, outer.reshape(*outer.shape, *ones)]
