"""How far outputs may move, and on which samples that is judged."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxopt.data import Dataset
from onnxopt.errors import DataError
from onnxopt.evaluation import Quality
from onnxopt.pass_base import Context

UNJUDGED = "nothing was judged, for there are no samples: give data= or evaluation= (--data, --eval-data)"
"""What a pass says that has quantized without any."""

_DEFAULT = 22.0
"""In dB. What users expect is 20; other data differ from those at hand by more than the samples at hand do."""
_FEW, _MANY = 8, 32
"""With fewer samples than the second, more is asked for; with fewer than the first, no more than with these."""


@dataclass(frozen=True)
class Budget:
    """How far outputs may move."""

    min_sqnr: float | None = None
    """In dB, of every output."""
    max_drop: float | None = None
    """The largest loss of accuracy, or without labels of agreement, as a share."""

    def holds(self, quality: Quality, reserve: float = 0.0) -> bool:
        """Whether ``quality`` is within the budget; without one given, every output needs 22 dB, or answers of which
        no more than 1 % differ. Decibels count with a standard error less, and of few samples there have to be more:
        others will judge by other samples.

        ``reserve`` is by how many dB it is to be better than that.
        """
        share, margin = 10 ** (-reserve / 10), max(reserve, _for_few(quality.samples))
        if self.min_sqnr is None and self.max_drop is None:
            lost = quality.lost
            outputs = _sure(quality) | dict.fromkeys(lost.keys() - quality.sqnr_db.keys(), -math.inf)
            return all(db - margin >= _DEFAULT or lost.get(name, 1.0) <= 0.01 * share for name, db in outputs.items())
        drops = [before - after for before, after in quality.accuracy.values()] or [
            1 - equal for equal in quality.agreement.values()
        ]
        near = self.min_sqnr is None or min(_sure(quality).values(), default=math.inf) - margin >= self.min_sqnr
        return near and (self.max_drop is None or max(drops, default=0.0) <= self.max_drop * share)

    def told_by_few(self, quality: Quality) -> bool:
        """Whether ``quality`` says as much on few samples as on many: noise does, the share of wrong answers not."""
        if self.max_drop is not None:
            return False
        least = _DEFAULT if self.min_sqnr is None else self.min_sqnr
        sure = _sure(quality)
        return sure.keys() >= quality.agreement.keys() and min(sure.values(), default=math.inf) >= least


def _sure(quality: Quality) -> dict[str, float]:
    """The SQNR in dB of each output that other samples may be expected to have."""
    return {**quality.sqnr_db, **quality.sure_db}


def _for_few(samples: int) -> float:
    """By how many dB it is to be better on so many samples. A handful is more alike than it is like others: where they
    are few, noise counts as ``√(32 / samples)`` times what it is, and twice at most."""
    return 5 * math.log10(_MANY / min(max(samples, _FEW), _MANY)) if samples else 0.0


def judges(context: Context, budget: Budget, name: str) -> Dataset | None:
    """The samples to judge by; ``None`` if there are none.

    Raises ``DataError`` if there are none, and yet the user has given a budget.
    """
    if context.judged_on is None and budget != Budget():
        raise DataError(f"{name} keeps a budget only on samples: give data= (--data), or no min_sqnr and max_drop")
    return context.judged_on
