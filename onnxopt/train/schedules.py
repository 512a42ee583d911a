"""How the learning rate changes from step to step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from onnxopt.errors import OptionError

_KINDS = ("constant", "linear", "cosine", "step")


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up, and then a decay; as factors of the highest learning rate.

    The cosine is that of Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017.
    """

    kind: Literal["constant", "linear", "cosine", "step"] = "cosine"
    warmup: int = 0
    """In so many steps the rate rises to its highest."""
    final: float = 0.0
    """The factor that ``linear`` and ``cosine`` end at."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """At these shares of all steps ``step`` multiplies the rate by ``drop``."""
    drop: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise OptionError(f"the schedule is one of {', '.join(_KINDS)}, got {self.kind!r}")
        if self.warmup < 0:
            raise OptionError(f"the warm-up is a number of steps, got {self.warmup}")
        if not (0 <= self.final <= 1 and 0 < self.drop <= 1 and all(0 <= m <= 1 for m in self.milestones)):
            raise OptionError("final, drop and milestones of a schedule are shares in [0, 1], and drop is not 0")

    def factor(self, index: int, total: int) -> float:
        """The factor of step ``index``, from 0 on, of ``total``."""
        if index < self.warmup:
            return (index + 1) / self.warmup
        share = (index - self.warmup) / max(1, total - self.warmup)
        if self.kind == "linear":
            return 1 + (self.final - 1) * share
        if self.kind == "cosine":
            return self.final + (1 - self.final) * (1 + math.cos(math.pi * share)) / 2
        if self.kind == "step":
            return math.prod(self.drop for milestone in self.milestones if index >= milestone * total)
        return 1.0
