"""Runs in another interpreter: differentiates a model by onnxruntime-training, and computes gradients when asked.

    python ort_training_worker.py FOLDER

``FOLDER`` holds ``model.onnx``, ``job.json``, and ``arrays``, which both processes map into memory. A line on stdin
asks for a run; each answer is a line of JSON on stdout. Imports nothing of onnxopt, which need not be there.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    try:
        run = prepare(folder)
    except ImportError as error:
        say({"missing": str(error)})
        return
    except Exception as error:  # the other side is to say why
        say({"error": f"{type(error).__name__}: {error}"})
        return
    say({})
    for _ in sys.stdin:
        try:
            start = time.process_time()
            run()
            say({"seconds": time.process_time() - start})
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})


def prepare(folder: Path) -> Any:
    import numpy as np
    import onnxruntime as ort
    from onnxruntime.capi._pybind_state import GradientGraphBuilder

    ort.set_default_logger_severity(4)
    job = json.loads((folder / "job.json").read_text())
    content, file = (folder / "model.onnx").read_bytes(), folder / "gradients.onnx"
    builder = GradientGraphBuilder(content, {job["loss"]}, set(job["wrt"]), job["loss"])
    builder.build()
    builder.save(str(file))
    options = ort.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.log_severity_level = 4
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    room = np.memmap(folder / "arrays", np.uint8, "r+")
    binding = session.io_binding()
    kept = []  # ONNX Runtime holds no reference to the arrays
    for part, bind in (("inputs", binding.bind_ortvalue_input), ("outputs", binding.bind_ortvalue_output)):
        for name, (start, shape, dtype) in job[part].items():
            size = math.prod(shape) * np.dtype(dtype).itemsize
            kept.append(room[start : start + size].view(dtype).reshape(shape))
            bind(name, ort.OrtValue.ortvalue_from_numpy(kept[-1]))

    def run() -> None:
        assert kept
        session.run_with_iobinding(binding)

    return run


def say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
