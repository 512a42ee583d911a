"""The models of onnx's own backend tests, with their inputs.

About 2,000 models: one or more for each operator (and for each function body that onnx gives for one),
sequences and optionals, conversions of PyTorch layers, and nine classic networks whose weights are made by
``ConstantOfShape``. Those of kind ``node`` are generated in memory, which takes some seconds and is done once
a process.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
from onnx.backend.test.loader import load_model_tests

DATA = Path(onnx.backend.test.__file__).parent / "data"
FOLDERS = ("simple", "pytorch-converted", "pytorch-operator")


@dataclass(frozen=True)
class Case:
    """One model, and how to get at its inputs."""

    name: str
    model: onnx.ModelProto | Path
    data: Sequence[Sequence[Any]] = ()
    """Inputs in the order of the graph's, one row a run; or read from files beside the model."""

    def proto(self) -> onnx.ModelProto:
        """The model, a new object at each call."""
        if isinstance(self.model, Path):
            return onnx.load(self.model)
        copied = onnx.ModelProto()
        copied.CopyFrom(self.model)
        return copied

    def feeds(self) -> list[dict[str, Any]]:
        """The inputs that come with the model, by name."""
        proto = self.proto()
        rows = list(self.data)
        if isinstance(self.model, Path):
            rows += [_read_row(proto, folder) for folder in sorted(self.model.parent.glob("test_data_set_*"))]
        if not rows and self.model_is_light:
            rows = [[np.ones([d.dim_value for d in _required(proto)[0].type.tensor_type.shape.dim], np.float32)]]
        names = [value.name for value in _required(proto)]
        if rows and len(rows[0]) != len(names):  # some give overridable inputs too
            names = [value.name for value in proto.graph.input]
        return [
            {name: _as_fed(value) for name, value in zip(names, row, strict=False) if value is not None}
            for row in rows
        ]

    @property
    def model_is_light(self) -> bool:
        """Whether this is one of the networks without weights, which come without inputs."""
        return isinstance(self.model, Path) and self.model.parent.name == "light"


@functools.cache
def cases() -> tuple[Case, ...]:
    """All of them, in the order of their names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # generating them overflows on purpose
        found = [
            Case(test.name, test.model, [inputs for inputs, _ in test.data_sets or ()])
            for test in load_model_tests(kind="node")
            if test.model is not None
        ]
    for folder in FOLDERS:
        found += [Case(path.parent.name, path) for path in sorted((DATA / folder).glob("*/model.onnx"))]
    found += [Case(path.stem, path) for path in sorted((DATA / "light").glob("*.onnx"))]
    return tuple(sorted(found, key=lambda case: case.name))


def _as_fed(value: Any) -> Any:
    """Arrays of rank 0 come as numpy scalars, types that numpy lacks as ``TensorProto``."""
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def _required(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    given = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in given]


def _read_row(proto: onnx.ModelProto, folder: Path) -> list[Any]:
    row: list[Any] = []
    for at, value in enumerate(proto.graph.input):
        file = folder / f"input_{at}.pb"
        if file.exists():
            row.append(_read(file.read_bytes(), value.type))
    return row


def _read(content: bytes, type_: onnx.TypeProto) -> Any:
    kind = type_.WhichOneof("value")
    if kind == "sequence_type":
        return onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if kind == "optional_type":
        return onnx.numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(content))
