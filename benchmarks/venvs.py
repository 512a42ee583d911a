"""One virtual environment for each peer, made once and never ours."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(__file__).parent / ".cache"


def ensure(name: str, requirements: Sequence[str], cache: Path = CACHE) -> Path:
    """The python of environment ``name``, made if it is not there or was made from other requirements."""
    folder = cache / "venvs" / name
    python = folder / "bin" / "python"
    stamp = folder / "requirements.txt"
    wanted = "\n".join(requirements) + "\n"
    if stamp.exists() and stamp.read_text() == wanted and python.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
    stamp.write_text(wanted)  # last: an interrupted install is made anew
    return python
