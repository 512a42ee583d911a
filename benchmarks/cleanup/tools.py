"""The tools side by side: what to install, and how a user would call each."""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import venvs

ROOT = Path(__file__).parents[2]
ADAPTERS = Path(__file__).with_name("adapters.py")

Command = Callable[[Path, Path, Path], list[str]]
"""Of the tool's python, the input and the output."""


@dataclass(frozen=True)
class Tool:
    name: str
    label: str
    requirements: tuple[str, ...]
    """Empty: it runs in our own environment."""
    whole: Command
    whole_text: str
    """The command, for the reader."""

    def python(self, cache: Path = venvs.CACHE) -> Path:
        return venvs.ensure(self.name, self.requirements, cache) if self.requirements else Path(sys.executable)

    def in_process(self, python: Path, source: Path, target: Path, repeat: int) -> list[str]:
        return [
            str(python),
            "-P",
            str(ADAPTERS),
            self.name,
            str(source),
            str(target),
            "--repeat",
            str(repeat),
        ]

    def fingerprint(self) -> str:
        """What a cached result depends on besides the model: pins, or our own sources."""
        digest = hashlib.sha256(ADAPTERS.read_bytes())
        digest.update(" ".join(self.requirements).encode())
        if not self.requirements:
            for path in sorted(p for d in ("onnxopt", "passes") for p in (ROOT / d).rglob("*") if p.is_file()):
                if path.suffix in (".py", ".toml"):
                    digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()[:16]

    def versions(self) -> str:
        if self.requirements:
            return ", ".join(r.replace("==", " ") for r in self.requirements)
        packages = ("onnx", "onnx-ir", "onnxruntime", "numpy")
        return "this checkout, " + ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)


def _script(name: str) -> Command:
    return lambda python, source, target: [str(python.parent / name), str(source), str(target)]


def _module(name: str, *arguments: str) -> Command:
    return lambda python, source, target: [str(python), "-m", name, *arguments, str(source), str(target)]


def _adapter(name: str) -> Command:
    return lambda python, source, target: [str(python), "-P", str(ADAPTERS), name, str(source), str(target)]


def _onnxopt(python: Path, source: Path, target: Path) -> list[str]:
    return [str(python), "-m", "onnxopt", "optimize", str(source), "-o", str(target), "--force"]


TOOLS = [
    Tool("onnxopt", "onnxopt", (), _onnxopt, "onnxopt optimize in.onnx -o out.onnx --force"),
    Tool(
        "onnxsim",
        "onnxsim",
        ("onnxsim==0.8.1", "onnxruntime==1.32.0"),
        _script("onnxsim"),
        "onnxsim in.onnx out.onnx",
    ),
    Tool(
        "onnxslim",
        "onnxslim",
        ("onnxslim==0.1.98", "onnxruntime==1.32.0"),
        _script("onnxslim"),
        "onnxslim in.onnx out.onnx",
    ),
    Tool(
        "onnxoptimizer",
        "onnxoptimizer",
        ("onnxoptimizer==0.4.2",),
        _module("onnxoptimizer"),
        "python -m onnxoptimizer in.onnx out.onnx",
    ),
    Tool(
        "onnxscript",
        "onnxscript",
        ("onnxscript==0.7.2", "onnx-ir==1.1.0"),
        _adapter("onnxscript"),
        "onnx_ir.save(onnxscript.optimizer.optimize(onnx_ir.load(in)), out) in a script: it has no command",
    ),
    Tool(
        "ort",
        "ORT basic",
        ("onnxruntime==1.32.0",),
        _adapter("ort"),
        "SessionOptions.optimized_model_filepath at ORT_ENABLE_BASIC in a script: it has no command",
    ),
]

BY_NAME = {tool.name: tool for tool in TOOLS}
