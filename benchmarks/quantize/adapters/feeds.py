"""What every adapter shares; run in a peer's environment, so numpy, onnx and onnxruntime are all there is.

python -P adapters/with_PEER.py CONFIGURATION MODEL CALIBRATION BATCH OUTPUT
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx

Feed = dict[str, Any]


def arguments() -> tuple[str, str, str, int, str]:
    configuration, model, calibration, batch, output = sys.argv[1:]
    return configuration, model, calibration, int(batch), output


def one_thread() -> None:
    """Every session of the peer runs on one thread, as the others' do; most peers have no option for it."""
    import onnxruntime

    init = onnxruntime.InferenceSession.__init__

    def start(self: Any, model: Any, sess_options: Any = None, *args: Any, **kwargs: Any) -> None:
        options = sess_options or onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        init(self, model, options, *args, **kwargs)

    onnxruntime.InferenceSession.__init__ = start


def ranks(model: str) -> dict[str, tuple[int, int]]:
    """Of each input to feed: its rank and its first dimension, 0 where that is free."""
    graph = onnx.load(model, load_external_data=False).graph
    defaults = {t.name for t in graph.initializer}
    found = {}
    for value in graph.input:
        if value.name not in defaults:
            dims = value.type.tensor_type.shape.dim
            found[value.name] = (len(dims), dims[0].dim_value if dims else 0)
    return found


def feeds(model: str, calibration: str, batch: int) -> Iterator[Feed]:
    """As ``benchmarks.quantize.task.feeds`` does it."""
    inputs = ranks(model)
    with np.load(calibration, allow_pickle=False) as file:
        arrays = {k: file[k] for k in file.files if k in inputs}
    samples = len(next(iter(arrays.values())))
    if all(arrays[k].ndim == rank + 1 for k, (rank, _) in inputs.items()):
        for i in range(samples):
            yield {k: np.asarray(x[i]) for k, x in arrays.items()}
        return
    fixed = [first for _, first in inputs.values() if first > 0]
    step = fixed[0] if fixed else batch
    for start in range(0, samples - samples % step if fixed else samples, step):
        yield {k: x[start : start + step] for k, x in arrays.items()}
