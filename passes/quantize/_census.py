"""What ONNX Runtime makes of a model: which kernels are integer, which float, which quantizers are left.

Taken from the graph that ONNX Runtime saves after all its optimizations: the only truth about what was fused.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from onnxopt import guard
from onnxopt.errors import EngineError
from onnxopt.runtime import Snapshot, reason

Kind = Literal["integer", "float", "quantizer"]

_INTEGER = re.compile(r"QLinear\w+|QGemm|QMoE|QAttention|\w*Integer\w*|DynamicQuantize\w+|MatMulNBits|QEmbed\w+")


@dataclass(frozen=True)
class Kernel:
    """A node of the optimized graph."""

    name: str
    op: str
    kind: Kind
    """``integer``: computes with integers; ``quantizer``: a QuantizeLinear or DequantizeLinear that is left."""
    outputs: tuple[str, ...]


def census(snapshot: Snapshot) -> list[Kernel]:
    """The kernels that ONNX Runtime runs for a model on the CPU, at any depth, in order.

    What moves elements or shapes counts as float. Raises ``EngineError`` if ONNX Runtime refuses the model.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if snapshot.directory is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(snapshot.directory)
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        try:
            ort.InferenceSession(snapshot.content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the binding raises many unrelated types
            raise EngineError(f"ONNX Runtime cannot load the model: {reason(error)}") from error
        optimized = onnx.load(path, load_external_data=False)
    return [
        Kernel(node.name, node.op_type, _kind(node.op_type), tuple(node.output))
        for graph in guard.graphs(optimized)
        for node in graph.node
    ]


def _kind(op: str) -> Kind:
    if op in ("QuantizeLinear", "DequantizeLinear"):
        return "quantizer"
    return "integer" if _INTEGER.fullmatch(op) else "float"
