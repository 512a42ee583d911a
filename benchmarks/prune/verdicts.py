"""What was measured, judged: the same groups, the same counts, pays or not. The thresholds are here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

Record = dict[str, Any]

OVERHEAD = 1.1
"""A ratio of latencies pays if it is at most this times the ratio of multiply–accumulates."""
LARGE = 5_000_000
"""With fewer multiply–accumulates, what a run costs besides is most of its time."""


def roots(record: Record) -> list[Record]:
    return list(record["groups"].get("said", ()))


def kind(root: Record) -> str:
    """``equal``, ``single`` (one channel, nothing to remove), or how ours differ: ``frozen``, ``unknown``,
    ``finer`` (part of Torch-Pruning's set), ``coarser`` (more), ``different``."""
    kinds = list(root["verdicts"])
    return kinds[0] if len(kinds) == 1 else "different" if "equal" not in kinds else "partly"


def right(root: Record) -> str:
    """Whose sets the model itself says are closed, where they differ."""
    examples = list(root["examples"].values())
    ours, theirs = ([e[f"{who}_closed"] for e in examples] for who in ("ours", "theirs"))
    if kind(root) == "frozen":
        return "frozen"
    if all(o is True for o in ours):
        if any(t is False for t in theirs):
            return "ours"
        return "both" if all(t is True for t in theirs) else "ours or both"
    return "not ours" if any(o is False for o in ours) else "cannot be told"


OURS = ("ours", "both", "ours or both")


def uneven(record: Record) -> list[Record]:
    """Where the sets differ."""
    return [root for root in roots(record) if kind(root) not in ("equal", "single")]


def comparable(root: Record) -> bool:
    """Whether counts can be equal: the same sets, none with two rows of the layer that the ranking is over."""
    return set(root["verdicts"]) == {"equal"} and root["places"] == root["parts"]


def counts(record: Record) -> Iterator[tuple[str, str, bool | None]]:
    """For each comparable root and each importance and ratio: whether as many channels are left; ``None``: failed."""
    found = record["measured"].get("said", {}).get("counts", {})
    for root in roots(record):
        if comparable(root):
            for key, result in found.items():
                if "failure" in result:
                    yield root["root"], key, None
                else:
                    yield root["root"], key, all(_same(result["differ"], name, axis) for name, axis in root["pruned"])


def _same(differ: Record, name: str, axis: int) -> bool:
    if name not in differ:
        return True
    _, theirs, ours = differ[name]
    return bool(ours is not None and theirs[axis] == ours[axis])


def whole(record: Record) -> bool | None:
    """Whether every parameter has Torch-Pruning's shape in all runs."""
    found = record["measured"].get("said", {}).get("counts", {})
    return all("failure" not in r and not r["differ"] for r in found.values()) if found else None


def all_kinds(records: Sequence[Record]) -> Counter[str]:
    return Counter(kind(root) for record in records for root in roots(record))


def runs(record: Record, variant: str) -> dict[str, Record]:
    found: dict[str, Record] = record["measured"].get("said", {}).get(variant, {})
    return found


def pruned(result: Record, before: int) -> bool:
    """It runs, and there is less of it."""
    return bool(result["state"] == "ok" and result["parameters"] < before)


def pays(record: Record, ratio: str) -> bool | None:
    """Whether time falls as arithmetic does; ``None``: not a large convolutional network, or nothing was removed."""
    said = record["measured"].get("said", {})
    result = runs(record, "default").get(ratio, {})
    if not result.get("latency") or not said["convolutional"] or said["macs"] < LARGE:
        return None
    return bool(result["latency"][0] <= OVERHEAD * result["macs"] / said["macs"])


def recovered(record: Record, variant: str) -> float | None:
    """The share of the accuracy lost by pruning that reconstruction brings back."""
    before, after = (record["ours"].get(f"{variant}-{when}", {}) for when in ("before", "recovered"))
    if "accuracy" not in before or "accuracy" not in after:
        return None
    lost = record["dense"] - before["accuracy"]
    return (after["accuracy"] - before["accuracy"]) / lost if lost > 0 else None
