"""What a search is to hold, and which of two models costs more."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxopt.errors import OptionError
from onnxopt.search.allocation import ATTRIBUTE, Target
from onnxopt.search.metric import Loss
from onnxopt.search.trials import Measured

_ROUNDING = 1e-9
"""Of a difference of two shares: 7 of 700 lost are 1 %."""
NO_SLOWER = 1.05
"""The latency of a model that is as fast as the original, within what clocks tell."""


@dataclass(frozen=True)
class Found:
    """A model that was made, beside the original."""

    measured: Measured
    latency: float
    size: float
    macs: float
    """In units of the original's."""
    predicted_latency: float
    """What was expected of it,"""
    predicted_noise: float
    """before it was measured."""
    final: Loss | None = None
    """On the samples that were kept for the end, if it was judged on them."""

    def cost(self, target: Target) -> float:
        """In units of the original's."""
        found: dict[Target, float] = {"latency": self.latency, "size": self.size, "macs": self.macs}
        return found[target]


@dataclass(frozen=True)
class Budget:
    """What the result must hold."""

    max_drop: float = 0.01
    """What may be lost of the score (of noise as a metric: how much of it, in units of the signal)."""
    target: Target = "latency"
    """What is to be as small as it can: latency, size, or macs;"""
    max_latency: float | None = None
    """and what these may be at most, in units of the original's."""
    max_size: float | None = None
    max_macs: float | None = None
    samples: int = 0
    """On how many samples it must hold, if that is known."""

    def __post_init__(self) -> None:
        if not 0 < self.max_drop <= 1:
            raise OptionError(f"max_drop is a share in (0, 1], got {self.max_drop}")
        if self.target not in ATTRIBUTE:
            raise OptionError(f"target is one of {', '.join(ATTRIBUTE)}; got {self.target!r}")
        for name, value in self.limits.items():
            if not value > 0:
                raise OptionError(f"max_{name} is a share of the original's above 0, got {value}")

    @property
    def limits(self) -> dict[Target, float]:
        """The largest shares, where there are any; what is only to be small may not be slower for that."""
        latency = NO_SLOWER if self.max_latency is None and self.target != "latency" else self.max_latency
        given: dict[Target, float | None] = {"latency": latency, "size": self.max_size, "macs": self.max_macs}
        return {name: value for name, value in given.items() if value is not None}

    def is_within_limits(self, found: Found) -> bool:
        """Whether a model costs no more than is allowed, whatever it loses."""
        return all(found.cost(name) <= limit for name, limit in self.limits.items())

    def is_likely(self, loss: Loss) -> bool:
        """Whether a model that loses so much on some samples can be expected to hold the budget on the others."""
        half = (loss.high - loss.drop) * math.sqrt(loss.samples / self.samples if self.samples else 1.0)
        return loss.drop + half <= self.max_drop + _ROUNDING

    def is_held(self, loss: Loss) -> bool:
        """Whether it is sure that no more is lost than is allowed."""
        return loss.high <= self.max_drop + _ROUNDING
