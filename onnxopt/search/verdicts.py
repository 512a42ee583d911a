"""Whether a way to make a model smaller or faster is worth it, in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onnxopt.passes.quantize._targets import Device
from onnxopt.search.tryout import Trial, estimated
from onnxopt.search.ways import Goal, Way

Verdict = Literal["use it", "try it", "not worth it", "refused", "not tried"]
VERDICTS: tuple[Verdict, ...] = ("use it", "try it", "not worth it", "refused", "not tried")
"""The best first."""

GAIN = 0.97
"""What is left more of, in units of the original's and of what cleanup alone leaves, is no gain."""
_COSTS = 1.05
"""What takes longer than this is said to."""


@dataclass(frozen=True)
class Finding:
    """What one way brings and costs."""

    method: str
    about: str
    verdict: Verdict
    reason: str
    """Why, if the verdict needs a reason."""
    basis: Literal["measured", "estimated", ""]
    """Where the latency is from: measured here; or estimated, from arithmetic for a device that is not here, or with
    made-up samples. Empty where there is none."""
    latency: float | None
    """In units of the original's, each ``None`` if it is not known;"""
    size: float | None
    macs: float | None
    drop: float | None
    """What is lost of the score on samples that nothing was fitted to;"""
    drop_at_least: float | None
    """at least this,"""
    drop_at_most: float | None
    """and at most this, at 95 % each."""
    command: str
    """What does it; empty where nothing does."""

    @property
    def told(self) -> str:
        """The verdict with its reason."""
        return f"{self.verdict}: {self.reason}" if self.reason else self.verdict

    def cost(self, goal: Goal) -> float | None:
        """What is left of what there should be least of."""
        return self.latency if goal == "latency" else self.size


@dataclass(frozen=True)
class Judge:
    """Says what is worth it on a device."""

    device: Device
    measured: bool
    """Whether times are measured."""
    sampled: bool
    """Whether there are samples."""
    metric: str | None
    """``None`` where nothing tells what is lost."""
    goal: Goal
    max_drop: float
    cleaned: Trial
    """What cleanup alone brings, which the others must be better than, as they must than the original."""

    def finding(self, way: Way, trial: Trial | None, command: str) -> Finding:
        """Of a way that was tried, or not, where it says why not."""
        if trial is None or trial.problem:
            reason = way.why_not if trial is None else trial.problem
            verdict: Verdict = "not worth it" if trial is None else "not tried" if trial.late else "refused"
            command = command if verdict == "not tried" else ""
            return Finding(
                way.name, way.about, verdict, reason, "", None, None, None, None, None, None, command
            )  # fmt: skip
        verdict, reason = self._verdict(way, trial)
        latency, loss = self._latency(trial), trial.loss
        made_up = way.fitted and not self.sampled
        return Finding(
            way.name, way.about, verdict, reason,
            "" if latency is None else "measured" if self.measured and not made_up else "estimated",
            latency, trial.size, trial.macs, None if loss is None else loss.drop, None if loss is None else loss.low,
            None if loss is None else loss.high, command,
        )  # fmt: skip

    def _latency(self, trial: Trial) -> float | None:
        return trial.latency if self.measured else estimated(trial, self.device)

    def _verdict(self, way: Way, trial: Trial) -> tuple[Verdict, str]:
        latency, cleaned = self._latency(trial), self._latency(self.cleaned)
        faster = latency is not None and latency <= GAIN * (1.0 if way.exact else min(cleaned or 1.0, 1.0))
        smaller = trial.size <= GAIN * (1.0 if way.exact else min(self.cleaned.size, 1.0))
        unknown = self.goal == "latency" and latency is None
        if not unknown and not (faster if self.goal == "latency" else smaller):
            harmless = ", though it changes no output" if way.exact else ""
            return "not worth it", self._no_gain(trial, latency, smaller, faster) + harmless
        verdict, reasons = ("use it", []) if way.exact else self._afforded(way, trial)
        if verdict == "not worth it":
            return verdict, "; ".join(reasons)
        if unknown:
            verdict, reasons = "try it", [*reasons, "how fast it is on the device has to be measured there"]
        elif latency is not None and latency > _COSTS:
            reasons = [*reasons, f"but it takes ×{latency:.2f} of the time"]
        return verdict, "; ".join(reasons)

    def _afforded(self, way: Way, trial: Trial) -> tuple[Verdict, list[str]]:
        """Whether what is lost can be."""
        if trial.loss is None:
            without = "no metric tells what it costs: judge its outputs yourself"
            return "try it", [without if self.sampled else "what it costs is not known without samples: give --data"]
        lost = f"it loses {max(trial.loss.drop, 0.0):.2%} of {self.metric}"
        if trial.loss.drop > self.max_drop:
            milder = "onnxopt auto looks for a milder form"
            return "not worth it", [lost, milder] if way.method and self.measured else [lost]
        if trial.loss.high > self.max_drop:
            most = f"at most {trial.loss.high:.2%}"
            return "try it", [f"{lost}, {most}: {trial.loss.samples} samples are too few to be sure"]
        return "use it", []

    def _no_gain(self, trial: Trial, latency: float | None, smaller: bool, faster: bool) -> str:
        if trial.compressed is not None:
            size = f"the file only compresses to ×{trial.compressed:.2f} of what it compresses to now"
            return f"zeros make nothing faster or smaller there: {size}"
        if self.goal == "size":
            return "the file is not smaller" + (", only faster" if faster else "")
        slower = latency is not None and latency > _COSTS
        return ("it is slower" if slower else "it is not faster") + (", only the file is smaller" if smaller else "")
