"""Call the command line in this process, unsupervised, so that a test takes milliseconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxopt import cli
from onnxopt.model import to_proto
from onnxopt.supervise import Stage, Work
from tests.support import graph


@dataclass(frozen=True)
class Answer:
    """What a command line ended with."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that an error is."""
        (line,) = self.err.splitlines()
        assert line.startswith("onnxopt: ")
        assert self.out == ""
        return line.removeprefix("onnxopt: ")


class CommandLine:
    """``onnxopt`` as a function."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

        def unsupervised(work: Work, options: dict[str, Any], **_: object) -> int:
            return work(Stage(None), **options)

        monkeypatch.setattr(cli, "supervise", unsupervised)

    def __call__(self, *arguments: str | Path) -> Answer:
        self._capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        return Answer(code, out, err)


def write(path: Path, body: str, **options: Any) -> Path:
    """Save a model in ONNX's textual syntax (see ``support.graph``)."""
    onnx.save(to_proto(graph(body, **options)), path)
    return path


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file of a folder, for saying that nothing was touched; ``None`` for folders and dead links."""
    return {str(f.relative_to(folder)): f.read_bytes() if f.is_file() else None for f in sorted(folder.rglob("*"))}


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """Nothing in ``folder`` may change, appear or vanish."""
    before = contents(folder)
    yield
    assert contents(folder) == before
