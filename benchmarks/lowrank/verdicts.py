"""What was measured, judged. The thresholds are here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Record = dict[str, Any]

ROUNDING = 1e-6
"""In units of a weight's norm: weights are stored, and multiplied, in float32."""
TRANSFORMERS = ("transformer_sentiment", "minilm")


def said(records: Sequence[Record]) -> list[Record]:
    """What worked, with what was measured."""
    return [record | record["said"] for record in records if "failure" not in record.get("said", {"failure": ""})]


def split_layers(records: Sequence[Record]) -> Iterator[Record]:
    """All layers that were split, with the model that they are of."""
    for record in records:
        for layer in record.get("said", ()):
            if "form" in layer:
                yield layer | {"model": record["name"]}


def optimal(layer: Record) -> bool:
    """Data-free: the bound of Eckart and Young is met, or beaten by another form at no more arithmetic."""
    excess = layer["distance"] - layer["bound"]
    return bool(excess <= ROUNDING and (not layer["form"].startswith("svd") or excess >= -ROUNDING))


def aware(layers: Sequence[Record]) -> list[float]:
    """The errors of outputs over those of the plain SVD."""
    return [layer["aware"] / layer["plain"] for layer in layers if "aware" in layer]


def share(record: Record, what: str) -> float:
    """What is left of ``parameters`` or ``macs``."""
    before, after = record[what]
    return float(after / before)


def loss(record: Record) -> float:
    """Points of accuracy that are lost."""
    before, after = record["accuracy"]
    return float(before - after)


def small_and_fast(record: Record, left: float = 0.8, decibels: float = 20.0) -> bool:
    """So much smaller, as near to the original, and faster by more than the spread of the measurement."""
    return bool(share(record, "parameters") <= left and record["sqnr"] >= decibels and record["latency"][2] < 1)


def least_loss(records: Sequence[Record], what: str, most: float) -> float | None:
    """The least loss of accuracy with at most this share of ``macs`` or of the ``latency``."""
    left = [r for r in records if (r["latency"][0] if what == "latency" else share(r, what)) <= most]
    return min((loss(record) for record in left), default=None)


def pairs(records: Sequence[Record], peer: str) -> list[tuple[float, float]]:
    """Accuracy of ours and the peer's, on the same model at the same ratio; of ours that failed it is none at all."""
    found = {(r["name"], r["ratio"], r["by"]): r["accuracy"][1] for r in records}
    return [(found.get((name, ratio, "ours"), 0.0), y) for (name, ratio, by), y in found.items() if by == peer]


def rose(records: Sequence[Record]) -> tuple[int, int]:
    """Of all layers that were split where it must pay, how many take longer than before; and how many there are."""
    timed = [layer for record in records for layer in record.get("layers", ()) if "split_us" in layer]
    return sum(layer["split_us"] > layer["whole_us"] for layer in timed), len(timed)
