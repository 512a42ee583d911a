"""TensorLy's Tucker-2 of kernels. Runs in TensorLy's environment.

python tucker.py KERNELS.npz TARGET.npz

``kernel-i`` (N × C × spatial axes) and ``ranks-i`` (of N and of C) become ``core-i``, ``outer-i`` (N × r) and
``inner-i`` (C × r).
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from tensorly.decomposition import partial_tucker


def main() -> None:
    with np.load(sys.argv[1]) as given:
        found: dict[str, np.ndarray[Any, Any]] = {}
        for at in range(len(given.files) // 2):
            ranks = given[f"ranks-{at}"].tolist()
            (core, (outer, inner)), _ = partial_tucker(given[f"kernel-{at}"], ranks, modes=[0, 1])
            found |= {f"core-{at}": core, f"outer-{at}": outer, f"inner-{at}": inner}
    np.savez(sys.argv[2], **found)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
