"""What is measured, in processes of their own, and what is remembered: by model, our sources, and the harness's."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import parts, venvs
from benchmarks.cleanup.experiment import Store, digest
from benchmarks.lowrank import cases, peers, scale
from benchmarks.quantize.experiment import ONE_THREAD, one_thread

Record = dict[str, Any]

HERE = Path(__file__).parent
FOLDER = venvs.CACHE / "lowrank"
TIMEOUT = 3600.0
SLOW = 600.0
"""A model of 100 MB that takes more seconds than this has failed."""
CNNS = ("resnet8_mnist_hard", "dwcnn_mnist_hard", "densenet_mnist_hard", "cnn1d_mnist1d")
TRANSFORMERS = ("transformer_sentiment", "minilm")
EMBEDDING = (None, 0.1, 0.2, 0.3)
"""Ratios of ``split-embedding``,"""
PRODUCTS = (None, 0.1, 0.2, 0.35)
"""and of ``split-matmul`` beside it."""
RATIOS = (0.2, 0.3, 0.41, 0.51, 0.6)
"""Of multiply–accumulates that are saved in convolutions, so that 0.6 and 0.5 of the whole model's are left,"""
DEPLOYED = (0.05, 0.1, 0.15, *RATIOS)
"""of which fewer can be reached where it must pay."""
MLP = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
THREADS = (1, 2)
"""Of BLAS. Two on a machine that has other work can take a hundred times as long as one."""


version = functools.partial(parts.version, HERE)


def ask(module: str, *arguments: object, timeout: float = TIMEOUT) -> Record:
    """What a module of this folder prints."""
    return parts.ask(f"benchmarks.lowrank.{module}", *arguments, timeout=timeout)


class Lab:
    """What asks, and remembers; with at most ``samples`` to calibrate on, if that is given."""

    def __init__(self, store: Store, samples: int | None) -> None:
        self.store, self.most = store, [] if samples is None else [samples]

    def optimality(self, name: str) -> Record:
        return {"name": name} | self._get("optimality", name, FOLDER / "optimality")

    def trial(self, name: str, way: str) -> Record:
        return {"name": name, "way": way} | self._get("trial", name, way, FOLDER / "trial")

    def scale(self, kind: str, threads: int) -> Record:
        os.environ.update(dict.fromkeys(ONE_THREAD, str(threads)))
        try:
            made = functools.partial(ask, "scale", kind, FOLDER / "scale", timeout=SLOW)
            said = self.store.get("lowrank-scale", (kind, str(threads), version("scale")), made)
        finally:
            one_thread()
        return {"kind": kind, "threads": threads} | said

    def _get(self, module: str, name: str, *arguments: object) -> Record:
        sources = version(module, "cases", "layers", "activations", "peers", "tucker")
        key = (name, model_digest(name), *map(str, (*arguments, *self.most)), sources)
        return self.store.get(f"lowrank-{module}", key, functools.partial(ask, module, name, *arguments, *self.most))


@functools.cache
def model_digest(name: str) -> str:
    return digest(cases.case(name, 1).model)


def every_layer(lab: Lab) -> Iterator[Record]:
    for name in (*cases.CATALOGUE, "minilm"):
        yield lab.optimality(name)


def transformers(lab: Lab) -> Iterator[Record]:
    for name in TRANSFORMERS:
        for embedding in EMBEDDING:
            for products in PRODUCTS:
                steps = [f"split-embedding{{ratio={embedding}}}"] if embedding else []
                steps += [f"split-matmul{{ratio={products}}}"] if products else []
                if steps:
                    made = lab.trial(name, ",".join(["cleanup", *steps]))
                    yield made | {"embedding": embedding, "products": products}


def cnns(lab: Lab) -> Iterator[Record]:
    for name in CNNS:
        for ratio in RATIOS:
            ours = f"cleanup,split-conv{{ratio={ratio},round_to=1,timed=false}}"
            ways = {"ours": ours} | {method: f"{method} {ratio}" for method in peers.METHODS}
            for by, way in ways.items():
                yield lab.trial(name, way) | {"ratio": ratio, "by": by}
        for ratio in DEPLOYED:
            yield lab.trial(name, f"cleanup,split-conv{{ratio={ratio}}}") | {"ratio": ratio, "by": "deployed"}


def mlp(lab: Lab) -> Iterator[Record]:
    for ratio in MLP:
        ways = {"deployed": f"cleanup,split-matmul{{ratio={ratio}}}", "plain": f"plain {ratio}"}
        for by, way in ways.items():
            yield lab.trial("mlp", way) | {"ratio": ratio, "by": by}


def times(lab: Lab) -> Iterator[Record]:
    for kind in scale.KINDS:
        for threads in THREADS:
            yield lab.scale(kind, threads)


PARTS = {
    "optimality": every_layer,
    "transformers": transformers,
    "cnns": cnns,
    "mlp": mlp,
    "time": times,
}
