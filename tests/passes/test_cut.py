"""The minimum cut against all subsets."""

from itertools import chain, combinations

import numpy as np
import pytest

from onnxopt.passes.quantize._cut import Border, Kernel, cheapest


def cost(chosen: set[str], kernels: dict[str, Kernel], borders: list[Border]) -> float:
    total = sum(k.as_integer if name in chosen else k.as_float for name, k in kernels.items())
    for border in borders:
        made_as_integer = border.maker in chosen
        if not made_as_integer and chosen & set(border.readers):
            total += border.quantize
        if made_as_integer and (border.read_as_float or not set(border.readers) <= chosen):
            total += border.dequantize
    return total


@pytest.mark.parametrize("seed", range(25))
def test_no_subset_is_cheaper(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"k{at}" for at in range(7)]
    kernels = {name: Kernel(*rng.uniform(0, 5, 2)) for name in names}
    borders = [
        Border(
            None if at == 0 else names[at - 1],
            tuple(sorted(rng.choice(names[at:], size=min(len(names[at:]), int(rng.integers(1, 3))), replace=False))),
            bool(rng.integers(0, 2)),
            *rng.uniform(0, 3, 2),
        )
        for at in range(len(names))
    ]
    found = cost(cheapest(kernels, borders), kernels, borders)
    subsets = chain.from_iterable(combinations(names, size) for size in range(len(names) + 1))
    least = min(cost(set(subset), kernels, borders) for subset in subsets)
    assert found == pytest.approx(least, rel=1e-5)


def test_a_lonely_gain_smaller_than_its_quantizers_is_left() -> None:
    kernels = {"a": Kernel(1.0, 2.0)}
    assert cheapest(kernels, [Border(None, ("a",), False, 0.9, 0.0)]) == {"a"}
    assert cheapest(kernels, [Border(None, ("a",), False, 1.1, 0.0)]) == set()


def test_nothing_to_choose() -> None:
    assert cheapest({}, []) == set()
