"""What models compute, and whether two of them compute the same; apart from the engine that is tested.

The oracle is ONNX Runtime with its optimizations off; what it cannot load or run is computed by
``onnx.reference``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnxruntime as ort

FLOORS = {"float64": 1e-11, "float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}
"""How far floats may move relative to the scale of their output; all other types must be equal."""


def session(model: onnx.ModelProto, *, optimize: bool = False) -> ort.InferenceSession:
    """``model`` in ONNX Runtime, on one thread; raises what ONNX Runtime raises."""
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def by_runtime(model: onnx.ModelProto, feeds: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """The outputs for each set of inputs."""
    loaded = session(model)
    return [list(loaded.run(None, dict(each))) for each in feeds]


def by_reference(model: onnx.ModelProto, feeds: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """The same by onnx's own, slow, interpreter."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        evaluator = onnx.reference.ReferenceEvaluator(model)
        return [list(evaluator.run(None, dict(each))) for each in feeds]


def difference(expected: Any, got: Any, slack: float = 0.0) -> str | None:
    """How ``got`` departs from ``expected``, both as ``run`` returns them; ``None`` if it does not.

    ``slack`` is how far floats may move beyond the floor, in absolute terms.
    """
    a, b = list(_flat(expected)), list(_flat(got))
    if len(a) != len(b):
        return f"{len(b)} items instead of {len(a)}"
    for x, y in zip(a, b, strict=True):
        text = _array_difference(x, y, slack)
        if text is not None:
            return text
    return None


def movement(expected: Any, got: Any) -> float:
    """The largest finite distance between floats of the same shape, in absolute terms."""
    largest = 0.0
    for x, y in zip(_flat(expected), _flat(got), strict=False):
        if x.shape == y.shape and x.dtype.name in FLOORS:
            with np.errstate(invalid="ignore"):
                gap = np.abs(x.astype(np.float64) - y.astype(np.float64))
            largest = max(largest, float(np.max(gap, initial=0.0, where=np.isfinite(gap))))
    return largest


def _array_difference(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], slack: float) -> str | None:
    if (x.dtype, x.shape) != (y.dtype, y.shape):
        return f"{y.dtype}{list(y.shape)} instead of {x.dtype}{list(x.shape)}"
    floor = FLOORS.get(x.dtype.name)
    if floor is None:
        return None if np.array_equal(x, y) or x.tobytes() == y.tobytes() else f"{_few(y)} instead of {_few(x)}"
    a, b = x.astype(np.float64), y.astype(np.float64)
    odd = ~np.isfinite(a)
    if not np.array_equal(odd, ~np.isfinite(b)) or not np.array_equal(a[odd], b[odd], equal_nan=True):
        return f"NaN or infinity elsewhere: {_few(y)} instead of {_few(x)}"
    a, b = a[~odd], b[~odd]
    distance = float(np.max(np.abs(a - b), initial=0.0))
    scale = float(np.max(np.abs(a), initial=0.0))
    if distance > floor * scale + slack:
        return f"moved by {distance:.3g} at a scale of {scale:.3g}: {_few(y)} instead of {_few(x)}"
    return None


def _few(x: np.ndarray[Any, Any]) -> str:
    return np.array2string(x.reshape(-1)[:6], precision=4, threshold=6)


def _flat(value: Any) -> Iterator[np.ndarray[Any, Any]]:
    """The arrays in a tensor, a sequence, an optional or the dicts of a ZipMap."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield np.asarray(str(key))
            yield from _flat(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    elif value is not None:
        yield np.asarray(value)
