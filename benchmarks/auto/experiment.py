"""What is measured, in processes of their own, and what is remembered: by model, our sources, and the harness's."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import parts, venvs
from benchmarks.auto import singles
from benchmarks.auto.cases import NAMES
from benchmarks.cleanup.experiment import Store

Record = dict[str, Any]

FOLDER = venvs.CACHE / "auto"
TIMEOUT = 3600.0
TARGETS = ("latency", "size")
MAX_DROP = 0.01
PROMISES = [(name, target, seed) for name in ("cnn1d_mnist1d", "mixer_mnist1d") for target in TARGETS
            for seed in range(5)]  # fmt: skip
SHORT = 60.0
"""Seconds of the searches whose promises are counted."""
ALLOCATED = ("cnn1d_mnist1d", "mixer_mnist1d", "resnet8_mnist_hard", "transformer_sentiment")

version = functools.partial(parts.version, Path(__file__).parent)


@dataclass(frozen=True)
class Lab:
    """What asks, and remembers."""

    store: Store
    names: tuple[str, ...]
    seconds: float
    """The time budget of a search."""

    def search(self, name: str, target: str, seed: int, seconds: float) -> Record:
        arguments = name, target, MAX_DROP, seed, seconds, FOLDER / "trial"
        return {"name": name, "target": target, "seed": seed, "max_drop": MAX_DROP} | self._get("trial", *arguments)

    def single(self, name: str, way: str) -> Record:
        return {"name": name, "way": way} | self._get("singles", name, way, 0, FOLDER / "singles")

    def allocation(self, name: str, target: str) -> Record:
        return {"name": name, "target": target} | self._get("allocation", name, target, self.seconds)

    def _get(self, module: str, *arguments: object) -> Record:
        key = (*map(str, arguments), version(module, "cases"))
        made = functools.partial(parts.ask, f"benchmarks.auto.{module}", *arguments, timeout=TIMEOUT)
        return self.store.get(f"auto-{module}", key, made)


def single(lab: Lab) -> Iterator[Record]:
    yield from (lab.single(name, way) for name in lab.names for way in singles.WAYS)


def search(lab: Lab) -> Iterator[Record]:
    yield from (lab.search(name, target, 0, lab.seconds) for name in lab.names for target in TARGETS)


def promises(lab: Lab) -> Iterator[Record]:
    yield from (lab.search(name, target, seed, SHORT) for name, target, seed in PROMISES)


def allocation(lab: Lab) -> Iterator[Record]:
    yield from (lab.allocation(name, target) for name in ALLOCATED if name in lab.names for target in TARGETS)


PARTS = {"search": search, "single": single, "promises": promises, "allocation": allocation}
__all__ = ["NAMES", "PARTS", "Lab"]
