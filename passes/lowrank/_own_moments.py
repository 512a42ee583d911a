"""The moments of layers in a model as it is, where what a layer gives is its weight times what it reads.

Only inputs are read, so the model runs once, and layers that read the same rows share their Gram matrix.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from onnxopt.passes.prune._cross_grams import rows_wanted
from onnxopt.passes.prune._layer_grams import drawn
from onnxopt.passes.prune._least_squares import Array, Moments
from onnxopt.passes.prune._refits import Refit
from onnxopt.passes.quantize._products import Product
from onnxopt.stats import Statistics

Rows = tuple[str, Hashable]
"""An input by name, and how it is unfolded."""


def rows_of(refit: Refit) -> Rows:
    """The rows that a layer reads."""
    assert isinstance(refit.product, Product)
    return refit.input, refit.product.unfolding


def gram_bytes(refit: Refit) -> int:
    """What the Gram matrix of these rows takes."""
    g, k, _ = refit.product.size
    return 8 * g * (k + 1) ** 2


def own_moments(refits: Iterable[Refit], model: Statistics, samples: int, seed: int) -> dict[Refit, Moments]:
    """The moments of each layer over the ``samples`` that ``model`` is read on; of one that is not computed on these
    there are none. Rows are drawn by ``seed``; all Gram matrices are held at once (see ``in_memory``)."""
    readers: dict[Rows, list[Refit]] = {}
    for refit in refits:
        readers.setdefault(rows_of(refit), []).append(refit)
    by_input: dict[str, list[Rows]] = {}
    for rows in readers:
        by_input.setdefault(rows[0], []).append(rows)
    sums: dict[Rows, Moments] = {}
    for part in model.parts(by_input):
        for arrays in model.arrays(part.names, part.rows):
            for name, x in arrays.items():
                for rows in by_input[name]:
                    _add(sums, rows, readers[rows][0], x, len(x) / max(samples, 1), seed)
    return {refit: sums[rows].give(_matrix(refit)) for rows, own in readers.items() if rows in sums for refit in own}


def _add(sums: dict[Rows, Moments], rows: Rows, refit: Refit, x: Array, share: float, seed: int) -> None:
    product = refit.product
    g, k, _ = product.size
    if rows not in sums:
        sums[rows] = Moments(g, k)
    generator = np.random.default_rng([seed, sums[rows].rows])
    for places in drawn(product.count(x), rows_wanted(k, share), g * k, generator):
        sums[rows].add_inputs(product.rows(x, places))


def _matrix(refit: Refit) -> Array:
    """Weight and bias (g × k+1 × n, float64), without what is added behind the products."""
    weight, bias = refit.layer.weights()
    g, k, n = refit.product.size
    found = np.zeros((g, k + 1, n))
    found[:, :-1] = refit.product.matrix(weight)
    if refit.has_bias:
        found[:, -1] = bias.reshape(g, n)
    return found


def in_memory(layers: Sequence[Sequence[Refit]], most: int) -> list[list[int]]:
    """Layers, each of these nodes, by number in groups of which the Gram matrices take at most so many bytes; one
    layer may take more."""
    groups: list[list[int]] = []
    held: set[Rows] = set()
    room = 0
    for at, refits in enumerate(layers):
        size = sum(gram_bytes(refit) for refit in refits if rows_of(refit) not in held)
        if not groups or size > room:
            groups.append([])
            held, room = set(), most
            size = sum(gram_bytes(refit) for refit in refits)
        groups[-1].append(at)
        held.update(map(rows_of, refits))
        room -= size
    return groups
