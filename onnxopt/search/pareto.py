"""A Pareto set on disk: models that no other beats, with their recipes, from which one is picked later.

A folder with ``pareto.json``, and for each model ``N.onnx`` and ``N.toml``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import onnx_ir as ir

from onnxopt.errors import DataError, OptionError, OutputError
from onnxopt.model import load, save
from onnxopt.search.allocation import Target
from onnxopt.search.auto import AutoResult
from onnxopt.search.budget import Found

_INDEX = "pareto.json"


class Entry(msgspec.Struct, frozen=True):
    """One model of the set."""

    number: int
    plan: str
    """What was done to it."""
    drop: float
    """Of the score, on the samples that models were compared on;"""
    drop_at_most: float
    """with 95 % confidence."""
    latency: float
    size: float
    macs: float
    """In units of the original's."""
    chosen: bool

    def cost(self, target: Target) -> float:
        """In units of the original's."""
        found: dict[Target, float] = {"latency": self.latency, "size": self.size, "macs": self.macs}
        return found[target]


class ParetoSet(msgspec.Struct, frozen=True):
    """What a search found."""

    metric: str
    target: Target
    models: list[Entry]


def entries(result: AutoResult) -> ParetoSet:
    """The set that a search found, the chosen model included."""
    models = [
        Entry(
            at, str(f.measured.plan), f.measured.loss.drop, f.measured.loss.high, f.latency, f.size, f.macs,
            f.measured.plan == result.chosen.measured.plan,
        )
        for at, f in enumerate(_kept(result), 1)
    ]  # fmt: skip
    return ParetoSet(result.metric, result.budget.target, models)


def _kept(result: AutoResult) -> list[Found]:
    every = [f for f in result.found if f in result.pareto or f.measured.plan == result.chosen.measured.plan]
    return sorted(every, key=lambda f: (f.measured.loss.drop, f.cost(result.budget.target)))


def write(result: AutoResult, folder: Path, *, force: bool = False) -> None:
    """Write the set in one step. Raises ``OutputError`` if that is not possible."""
    if folder.exists() and not force:
        raise OutputError(f"{folder} exists; give --force (or force=True) to replace it")
    if folder.exists() and not (folder / _INDEX).is_file():
        raise OutputError(f"{folder} is there and holds no Pareto set, so it is not replaced; give another output")
    found = entries(result)
    try:
        made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            for number, each in enumerate(_kept(result), 1):
                save(result.models(each), made / f"{number}.onnx")
                (made / f"{number}.toml").write_text(result.recipes(each), encoding="utf-8")
            (made / _INDEX).write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2))
            made.chmod(0o777 & ~_umask())
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(made, folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error


def read(folder: Path) -> ParetoSet:
    """A set that was written. Raises ``DataError`` if there is none."""
    try:
        return msgspec.json.decode((folder / _INDEX).read_bytes(), type=ParetoSet)
    except OSError as error:
        raise DataError(f"{folder} holds no Pareto set of onnxopt auto: {error.strerror or error}") from error
    except msgspec.DecodeError as error:
        raise DataError(f"{folder / _INDEX} is not what onnxopt auto wrote: {error}") from error


def pick(found: ParetoSet, max_drop: float | None, limits: Sequence[tuple[Target, float]], number: int | None) -> Entry:
    """The model of this number, or the one with least of the target that holds these limits.

    Raises ``OptionError`` if there is none, and says what the nearest would be.
    """
    if number is not None:
        for entry in found.models:
            if entry.number == number:
                return entry
        raise OptionError(f"there is no model {number}: they are 1 to {len(found.models)}")
    able = [each for each in found.models if all(each.cost(name) <= most for name, most in limits)]
    if not able:
        wanted = " and ".join(f"{name} of at most ×{most:g}" for name, most in limits)
        least = " and ".join(f"{name} is ×{min(each.cost(name) for each in found.models):.3f}" for name, _ in limits)
        raise OptionError(f"no model of the set has {wanted}; the least {least}")
    if max_drop is None:
        return min(able, key=lambda each: (each.drop_at_most, each.cost(found.target)))
    held = [each for each in able if each.drop_at_most <= max_drop]
    if not held:
        least_drop = min(each.drop_at_most for each in able)
        raise OptionError(f"no model of the set surely loses at most {max_drop:.2%}: the least is {least_drop:.2%}")
    return min(held, key=lambda each: each.cost(found.target))


def model_of(folder: Path, entry: Entry) -> ir.Model:
    """The model of an entry. Raises ``ModelError`` if its file is gone."""
    return load(folder / f"{entry.number}.onnx")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
