"""Where a report comes from: what was called, on what machine, with which versions and seeds."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy
import onnx
import onnxruntime

from onnxopt._version import VERSION
from onnxopt.choices import processor
from onnxopt.evaluation import cores
from onnxopt.report import values
from onnxopt.report.document import Fact, Facts, Section, Shown


@dataclass(frozen=True)
class Origin:
    """What a report cannot know from a result."""

    model: str = ""
    """What the model is called;"""
    command: str = ""
    """The command line; empty where a result comes from Python."""
    data: Mapping[str, str] = field(default_factory=dict)
    """By what they are for, the fingerprints of the samples."""
    seeds: Mapping[str, int] = field(default_factory=dict)
    """What random choices follow from, by what is chosen."""
    seconds: float | None = None
    """How long it took."""


def run_section(origin: Origin) -> Section:
    """All that is needed to do it again."""
    data = ", ".join(f"{name} {fingerprint[:16]}" for name, fingerprint in origin.data.items())
    seeds = ", ".join(f"{name} {seed}" for name, seed in origin.seeds.items())
    facts = (
        Fact("command", "Command", origin.command or Shown(None, "from Python")),
        Fact("seconds", "Time spent", values.seconds(origin.seconds)),
        Fact("data", "Data (fingerprint)", Shown(dict(origin.data), data or "none")),
        Fact("seeds", "Seeds", Shown(dict(origin.seeds), seeds or "none")),
        Fact("processor", "Processor", processor()),
        Fact("cores", "Cores", values.whole(cores())),
        Fact("system", "System", f"{platform.system()} {platform.release()} {platform.machine()}"),
        Fact("python", "Python", platform.python_version()),
        Fact("onnxopt", "onnxopt", VERSION),
        *(Fact(package.__name__, package.__name__, package.__version__) for package in (onnxruntime, onnx, numpy)),
    )
    return Section("run", "How it was run", Facts(facts))
