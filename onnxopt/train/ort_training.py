"""Gradients by onnxruntime-training, in a process of its own.

That package is discontinued (1.19.2 is its last), wants an old Python, and cannot be installed beside ``onnxruntime``.
So it is run by an interpreter that has it; arrays are shared through a file that both map into memory. It
differentiates fewer operators than ``onnxopt.gradients``, and no normalizations that keep their statistics.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.errors import EngineError, GradientError, OptionError
from onnxopt.graph import attribute
from onnxopt.model import copy, to_proto
from onnxopt.train import ort_training_worker

Array = np.ndarray[Any, Any]
_ALIGNED = 64
_IR_VERSION = 10
"""The newest that it reads."""
_LONG = 300


class RemoteGradient:
    """Computes a loss and its gradients when called, in arrays that are given once."""

    def __init__(
        self, interpreter: str, model: ir.Model, loss: str, inputs: Mapping[str, Array], outputs: Mapping[str, Array],
        gradients: Mapping[str, Array], threads: int,
    ) -> None:  # fmt: skip
        """Each call reads ``inputs`` of ``model`` and writes ``outputs``, ``loss`` among them, and ``gradients`` of
        that in the inputs that these are named after.

        Raises ``OptionError`` if the interpreter is not there or has no onnxruntime-training, ``GradientError`` if that
        cannot differentiate the model.
        """
        self.seconds = 0.0
        """The CPU time of the last call over there; to hand arrays over takes more."""
        folder = Path(tempfile.mkdtemp(prefix="onnxopt-"))
        given = {**outputs, **{f"{name}_grad": array for name, array in gradients.items()}}
        job: dict[str, Any] = {"loss": loss, "wrt": list(gradients), "threads": threads}
        end = 0
        for part, arrays in (("inputs", inputs), ("outputs", given)):
            job[part] = {}
            for name, array in arrays.items():
                job[part][name] = end, array.shape, array.dtype.str
                end += -(-array.nbytes // _ALIGNED) * _ALIGNED
        (folder / "job.json").write_text(json.dumps(job))
        (folder / "model.onnx").write_bytes(_content(model, [loss, *outputs]))
        room = np.memmap(folder / "arrays", np.uint8, "w+", shape=(max(end, 1),))
        self._inputs = [(array, _view(room, *job["inputs"][name])) for name, array in inputs.items()]
        self._outputs = [(array, _view(room, *job["outputs"][name])) for name, array in given.items()]
        command = [interpreter, ort_training_worker.__file__, str(folder)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise OptionError(f"the interpreter {interpreter!r} does not start: {error}") from error
        self._close = weakref.finalize(self, _close, self._process, folder)
        try:
            answer = self._answer()
        except (EngineError, ValueError) as error:
            raise OptionError(f"the interpreter {interpreter!r} says nothing that makes sense: {error}") from error
        if "missing" in answer:
            raise OptionError(
                f"the interpreter {interpreter!r} has no onnxruntime-training ({answer['missing']}); install "
                "onnxruntime-training-cpu==1.19.2 there, which is for Python 3.8 to 3.12, or take engine='onnxruntime'"
            )
        if "error" in answer:
            raise GradientError(
                f"onnxruntime-training cannot differentiate the model: {_reason(answer)}; take engine='onnxruntime'"
            )

    def __call__(self) -> None:
        for array, shared in self._inputs:
            shared[...] = array
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except OSError as error:
            raise EngineError(f"the process of onnxruntime-training is gone: {error}") from error
        answer = self._answer()
        if "error" in answer:
            raise EngineError(f"onnxruntime-training cannot run the model: {_reason(answer)}")
        self.seconds = answer["seconds"]
        for array, shared in self._outputs:
            array[...] = shared

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EngineError(f"the process of onnxruntime-training is gone, with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _reason(answer: Mapping[str, str]) -> str:
    """The end of a message: before it stands where in the sources a check failed."""
    return answer["error"].rsplit(" was false. ", 1)[-1].strip()[-_LONG:]


def _view(room: Array, start: int, shape: Sequence[int], dtype: str) -> Array:
    return np.ndarray(shape, dtype, buffer=room, offset=start)


def _content(model: ir.Model, outputs: Sequence[str]) -> bytes:
    """``model`` with these outputs, and normalizations by the batch as onnxruntime-training has them."""
    model = copy(model)
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    model.graph.outputs[:] = [values[name] for name in dict.fromkeys(outputs)]
    for node in model.graph:
        if node.op_type == "BatchNormalization" and attribute(node, "training_mode", 0):
            node.op_type, node.domain, node.version = "BatchNormInternal", "com.microsoft", None
            model.opset_imports["com.microsoft"] = 1
            node.resize_outputs(5)
            for output, kind in zip(node.outputs[3:], ("mean", "deviation"), strict=True):
                output.name = f"{node.outputs[0].name}/saved {kind}"
    proto = to_proto(model)
    proto.ir_version = min(proto.ir_version, _IR_VERSION)
    content: bytes = proto.SerializeToString()
    return content


def _close(process: subprocess.Popen[str], folder: Path) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    shutil.rmtree(folder, ignore_errors=True)
