"""The tools side by side: what to install, and the one call that makes the quantized model."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import venvs
from benchmarks.cleanup.tools import BY_NAME as CLEANUP
from benchmarks.quantize.task import Task

ADAPTERS = Path(__file__).with_name("adapters")


@dataclass(frozen=True)
class Tool:
    name: str
    peer: str
    """Name of the environment, and of the adapter ``with_<peer>.py``; empty for ours."""
    configuration: str
    """What the adapter is told; a recipe for ours."""
    text: str
    """For the reader: what is called."""

    def python(self) -> Path:
        return (
            venvs.ensure(ENVIRONMENTS[self.peer][0], ENVIRONMENTS[self.peer][1]) if self.peer else Path(sys.executable)
        )

    def script(self) -> Path:
        return ADAPTERS / f"with_{self.peer}.py"

    def command(self, task: Task, target: Path) -> list[str]:
        if not self.peer:
            call = [sys.executable, "-m", "onnxopt", "optimize", str(task.model), "-o", str(target), "--force"]
            return [*call, "--recipe", self.configuration, "--data", str(task.calibration)]
        said = [self.configuration, str(task.model), str(task.calibration), str(task.batch), str(target)]
        return [str(self.python()), str(self.script()), *said]

    def fingerprint(self) -> str:
        """What a cached result depends on besides the task."""
        if not self.peer:
            return CLEANUP["onnxopt"].fingerprint() + self.configuration
        parts = [self.script().read_bytes(), (ADAPTERS / "feeds.py").read_bytes()]
        parts += [self.configuration.encode(), " ".join(ENVIRONMENTS[self.peer][1]).encode()]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]

    def versions(self) -> str:
        if not self.peer:
            return CLEANUP["onnxopt"].versions()
        return ", ".join(r.replace("==", " ") for r in ENVIRONMENTS[self.peer][1])


ENVIRONMENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ort": ("ort-quantization", ("onnxruntime==1.32.0", "onnx==1.23.2", "sympy==1.14.0", "scipy==1.17.1")),
    "nncf": ("nncf", ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.32.0", "openvino==2026.4.1")),
    "onnxsim": ("onnxsim", ("onnxsim==0.8.1", "onnxruntime==1.32.0")),
    "quark": ("quark", ("amd-quark==0.13", "torch==2.13.0", "onnxruntime==1.32.0", "onnx==1.22.0")),
    "aimet": ("aimet", ("aimet-onnx==2.42.0",)),
}

STATIC = "quantize_static, QDQ, U8 activations, S8 weights, per channel"

TOOLS = [
    Tool("onnxopt", "", "int8", "onnxopt optimize in.onnx -o out.onnx --recipe int8 --data calibration.npz"),
    Tool("onnxopt-accurate", "", "int8-accurate", "the same with --recipe int8-accurate"),
    Tool("onnxopt-dynamic", "", "int8-dynamic", "the same with --recipe int8-dynamic"),
    Tool("ort-minmax", "ort", "minmax", f"{STATIC}, min/max"),
    Tool("ort-entropy", "ort", "entropy", f"{STATIC}, entropy"),
    Tool("ort-percentile", "ort", "percentile", f"{STATIC}, percentile"),
    Tool("ort-heavy", "ort", "heavy", f"{STATIC}, min/max, Conv, ConvTranspose, MatMul, Gemm only"),
    Tool("ort-tensor", "ort", "tensor", "quantize_static with its defaults: S8S8, per tensor, min/max"),
    Tool("ort-dynamic", "ort", "dynamic", "quantize_dynamic, per channel"),
    Tool("nncf", "nncf", "default", "nncf.quantize with its defaults"),
    Tool("nncf-transformer", "nncf", "transformer", "nncf.quantize, model_type TRANSFORMER"),
    Tool("onnxsim", "onnxsim", "default", "simplify, then quantize_static with its defaults"),
    Tool("onnxsim-full", "onnxsim", "full", "simplify, then quantize_static, full_graph, a range method per tensor"),
    Tool("onnxsim-pick", "onnxsim", "pick", "simplify, then pick_calibration over its six methods, two folds"),
    Tool("aimet", "aimet", "default_config", "QuantizationSimModel at its defaults, to_onnx_qdq, constants quantized"),
    Tool("aimet-channel", "aimet", "default_config_per_channel", "the same, per channel"),
    Tool("quark", "quark", "S8S8_AAWS", "ModelQuantizer, preset S8S8_AAWS"),
    Tool("quark-cnn", "quark", "INT8_CNN_DEFAULT", "ModelQuantizer, preset INT8_CNN_DEFAULT"),
    Tool("quark-transformer", "quark", "INT8_TRANSFORMER_DEFAULT", "ModelQuantizer, preset INT8_TRANSFORMER_DEFAULT"),
]

BY_NAME = {tool.name: tool for tool in TOOLS}
