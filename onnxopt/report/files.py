"""Where a report goes: checked before any work is done."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from onnxopt.errors import OptionError, OutputError
from onnxopt.writing import writable


@dataclass(frozen=True)
class ReportFile:
    """Where a command writes its report."""

    path: str
    command: str
    """The command line that it is of."""

    def check(self, force: bool, output: Path | None = None) -> None:
        """Make sure that the report can be written, and does not take the place of what the command writes else.

        Raises ``OptionError`` and ``OutputError`` (see ``report_files``).
        """
        for file in report_files(self.path, force=force):
            if output is not None and file.resolve() == output.resolve():
                raise OutputError(f"{file} would be both the output and a file of the report; give another name")


def report_files(path: str | os.PathLike[str], *, force: bool) -> tuple[Path, Path]:
    """The page and the JSON file beside it, once it is sure that both can be made and written.

    Raises ``OptionError`` if ``path`` does not end in ``.html`` or plotly is not installed, ``OutputError`` if a file
    cannot be written, or is there already without ``force``.
    """
    target = Path(path)
    if target.suffix != ".html":
        raise OptionError(f"a report is a page of HTML: give a name that ends in .html, not {target.name!r}")
    require_plots()
    return writable(target, force), writable(target.with_suffix(".json"), force)


def require_plots() -> None:
    """Raises ``OptionError`` where the package that draws plots is not installed."""
    if importlib.util.find_spec("plotly") is None:
        raise OptionError("a report needs the package plotly: pip install 'onnxopt[report]'")
