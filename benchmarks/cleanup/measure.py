"""One command, measured through ``launcher.py``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LAUNCHER = Path(__file__).with_name("launcher.py")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Run:
    returncode: int
    wall: float
    cpu: float
    peak_rss: int
    timed_out: bool
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.returncode == 0 and not self.timed_out

    def failure(self) -> tuple[str, str]:
        """How it ended if not well, and its last words: ``timeout``, ``crashed`` (a signal),
        ``raised``, ``refused``."""
        words = [line.strip() for line in self.stderr.splitlines() if line.strip()] or [f"exit {self.returncode}"]
        named = [line for line in words if re.match(r"[\w.]*(Error|Exception|Fail)\w*\b", line)]
        if self.timed_out:
            return "timeout", f"after {self.wall:.0f} s"
        if self.returncode < 0:
            return "crashed", f"signal {-self.returncode}: {words[-1]}"
        return ("raised" if "Traceback" in self.stderr else "refused"), (named or words)[-1]


def run(command: Sequence[str], timeout: float = 600.0, sample: bool = False) -> Run:
    """Memory of the process tree is sampled only if asked, for that costs the measured process CPU time."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    env["PYTHONPATH"] = str(ROOT) if command[0] == sys.executable else ""
    with tempfile.TemporaryDirectory() as folder:
        out, err, report = (Path(folder) / name for name in ("out", "err", "report.json"))
        launch = [
            sys.executable,
            "-I",
            "-S",
            str(LAUNCHER),
            str(report),
            str(timeout),
            str(int(sample)),
            *command,
        ]
        with out.open("wb") as stdout, err.open("wb") as stderr:
            subprocess.run(launch, stdout=stdout, stderr=stderr, env=env, cwd=folder, check=True)
        said = json.loads(report.read_text())
        return Run(**said, stdout=out.read_text(errors="replace"), stderr=err.read_text(errors="replace"))
