"""``XᵀX`` of what layers read, row by row as they multiply it: for a Conv what its kernel sees at each place (im2col).

Layers are read in parts that fit into memory together; the rows of a batch are unfolded in blocks, summed up and let
go. Places beside each other see nearly the same, so of many rows as many as are wanted are drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from onnxopt.passes.quantize._products import Product
from onnxopt.stats import Statistics

Array = np.ndarray[Any, Any]

_BLOCK = 1 << 22
"""So many elements are unfolded at once."""


def layer_grams(
    layers: Sequence[tuple[str, Product]], statistics: Statistics, samples: int, rows: Callable[[int], int], seed: int
) -> Iterator[tuple[int, Array]]:
    """For each layer, an input by name and how it is multiplied, its number and ``XᵀX`` (float64, g × k × k).

    ``rows`` says how many rows are wanted, about, of all ``samples`` together where there are k inputs. Layers come in
    parts, those that read the same input together; a layer whose input is not computed on the data does not come.
    Raises ``DataError`` for an input that cannot be read.
    """
    by_input: dict[str, list[int]] = {}
    for at, (name, _) in enumerate(layers):
        by_input.setdefault(name, []).append(at)
    sizes = [product.size for _, product in layers]
    extra = {name: sum(8 * sizes[at][0] * sizes[at][1] ** 2 for at in each) for name, each in by_input.items()}
    for part in statistics.parts(by_input, extra):
        numbers = [at for name in part.names for at in by_input[name]]
        sums = {at: np.zeros((sizes[at][0], sizes[at][1], sizes[at][1])) for at in numbers}
        generators = {at: np.random.default_rng([seed, at]) for at in numbers}
        seen = set()
        for arrays in statistics.arrays(part.names, part.rows):
            for at in (at for name in arrays for at in by_input[name]):
                (name, product), (g, k, _) = layers[at], sizes[at]
                wanted = max(1, round(rows(k) * len(arrays[name]) / max(samples, 1)))
                for places in drawn(product.count(arrays[name]), wanted, g * k, generators[at]):
                    matrix = product.rows(arrays[name], places).astype(np.float32, copy=False)
                    sums[at] += matrix.swapaxes(1, 2) @ matrix
                seen.add(at)
        for at in numbers:
            xtx = sums.pop(at)
            if at in seen:
                yield at, xtx


def drawn(there: int, wanted: int, size: int, rng: np.random.Generator) -> Iterator[Array]:
    """The places of so many of the rows that are there, drawn at random and in order, in parts that are small enough
    to be unfolded where a row has ``size`` elements."""
    places = np.sort(rng.choice(there, wanted, replace=False)) if wanted < there else np.arange(there)
    step = max(1, _BLOCK // size)
    for start in range(0, len(places), step):
        yield places[start : start + step]
