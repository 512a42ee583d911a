"""Torch-Pruning's environment, and the networks with what it does to them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import venvs
from benchmarks.cleanup.tools import ROOT
from benchmarks.corpus.fetch import EXPORTERS

REQUIREMENTS = (*EXPORTERS, "onnxruntime==1.32.0", "torch-pruning==1.6.1")
FOLDER = venvs.CACHE / "prune"


@dataclass(frozen=True)
class Network:
    """``kind``: ``tests`` (Torch-Pruning's own), ``operators`` or ``architectures``."""

    kind: str
    name: str
    model: Path
    oracle: Path


def run(module: str, *arguments: str) -> None:
    """A module of ours in the peer's environment, on one thread."""
    python = venvs.ensure("torch-pruning", REQUIREMENTS)
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [str(python), "-P", "-m", f"benchmarks.prune.{module}", *arguments]
    subprocess.run(command, check=True, env=env, stdout=sys.stderr)


def networks(globs: Sequence[str]) -> list[Network]:
    """All that match, made where they are missing."""
    for glob in globs:
        run("oracle", str(FOLDER / "networks"), glob)
    found = []
    for kind in ("tests", "operators", "architectures"):
        for oracle in sorted((FOLDER / "networks" / kind).glob("*.json")):
            if any(Path(f"{kind}/{oracle.stem}").match(glob) for glob in globs):
                found.append(Network(kind, oracle.stem, oracle.with_suffix(".onnx"), oracle))
    return found
