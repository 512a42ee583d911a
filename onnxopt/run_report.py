"""The account of a run of a pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxopt.data import Dataset
from onnxopt.evaluation import Quality
from onnxopt.pass_base import Report


@dataclass
class RunReport:
    """What a run of a pipeline did."""

    passes: list[Report] = field(default_factory=list)
    """One report a pass, in order, summed over its rounds."""
    problems: list[str] = field(default_factory=list)
    """Passes and nodes that failed verification and were left out."""
    verification: str = "off"
    """What was checked and what came of it, in a sentence."""
    verified: bool = False
    """Whether the outputs were compared with the original's, and agree."""
    fidelity: dict[str, dict[str, float]] = field(default_factory=dict)
    """For each lossy pass, the SQNR in dB of each output against the model before it."""
    quality: dict[str, Quality] = field(default_factory=dict)
    """For each lossy pass, all that was measured of it, against the model before it."""
    overall: Quality | None = None
    """All lossy passes together, against the model before the first of them."""
    warnings: list[str] = field(default_factory=list)
    """Why what this report says should be taken with care."""
    held_out: Dataset | None = field(default=None, repr=False)
    """The samples that nothing was fitted to, if there are any."""

    @property
    def changed(self) -> int:
        """The number of changes made by all passes."""
        return sum(report.changed for report in self.passes)
