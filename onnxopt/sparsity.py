"""Zeros that are meant to stay: which weights of a model were pruned, written into the model itself.

The mask of a pruned weight is the weight: what is zero stays zero. Which weights these are, and what pattern the
zeros have, stands in one entry of the model's ``metadata_props``, as JSON by the name of the initializer::

    onnxopt.pruned = {"conv1.weight": "", "fc.weight": "2:4"}

That takes no second copy of the weights, and survives whatever keeps names and the metadata of the model: saving,
external data, conversion to fp16, ONNX Runtime's own optimizer. A weight that is gone, or was given another name, is
no longer listed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.graph import constant_tensor
from onnxopt.traverse import graphs

Array = np.ndarray[Any, Any]

KEY = "onnxopt.pruned"


def record(model: ir.Model, patterns: Mapping[str, str]) -> None:
    """Note that these constants were pruned, by name, with the pattern of their zeros (none: an empty text)."""
    known = {**pruned(model), **patterns}
    model.metadata_props[KEY] = json.dumps(dict(sorted(known.items())), ensure_ascii=False)


def pruned(model: ir.Model) -> dict[str, str]:
    """The patterns of all constants that were pruned, by name; what cannot be read counts for nothing."""
    try:
        found = json.loads(model.metadata_props.get(KEY, "{}"))
    except json.JSONDecodeError:
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def masks(model: ir.Model) -> dict[str, Array]:
    """Where the constants of floats that were pruned may be other than zero (bool), by name.

    Integers are not trained; and their zeros are wherever the zero point is.
    """
    names = pruned(model)
    found = {}
    for value in _constants(model) if names else ():
        tensor = constant_tensor(value)
        if value.name in names and tensor is not None and tensor.dtype.is_floating_point():
            found[value.name] = tensor.numpy() != 0
    return found


def _constants(model: ir.Model) -> Iterator[ir.Value]:
    for graph in graphs(model):
        yield from graph.initializers.values()
        yield from (node.outputs[0] for node in graph if node.op_type == "Constant" and node.outputs)
