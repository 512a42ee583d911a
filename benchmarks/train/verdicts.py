"""What was measured, judged. The thresholds are here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]

ERROR = 1e-5
"""Of the gradient in a tensor, computed in float32."""
ENGINE = 1.1
"""Of the time that onnxruntime-training takes for gradients."""
NO_WEIGHTS = ("nothing to train", "depends on weights")
"""What is said of a model that has none."""
COVERED = 0.95


def said(records: Sequence[Record]) -> list[Record]:
    """What worked, with what was measured."""
    return [record | record["said"] for record in records if "failure" not in record.get("said", {"failure": ""})]


def failure(record: Record) -> str:
    """Why nothing came of it, empty if something did."""
    found: str = record.get("failure") or record["said"].get("failure", "")
    return found


def has_weights(record: Record) -> bool:
    return not any(words in failure(record) for words in NO_WEIGHTS)


def trains(record: Record) -> bool:
    """Whether the loss fell, and all the way."""
    if failure(record):
        return False
    losses = record["said"]["losses"]
    return bool(losses[-1] < losses[0])


def exact(errors: Record) -> bool:
    return bool("worst" in errors and errors["worst"][1] <= ERROR)


def kind(record: Record) -> str:
    """What a model of the corpus counts to: ours, published ones, or exports."""
    return {"own": "models/", "real": "published"}.get(record["group"], "exports")
