"""What is left of a model that channels were removed from, noted in the model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.channels._axes import Axis, Keep, Repeated, Slices, slices_of

_CONSTANTS = "onnxopt.kept"
_COMPUTED = "onnxopt.left"


@dataclass(frozen=True, eq=False)
class Left:
    """What is left of an axis of a computed tensor, along which the same slices may come several times."""

    slices: Slices
    """Which of them are left,"""
    size: int
    """and how many there were."""
    inner: bool
    """Whether each comes several times in turn, and not all of them again and again."""

    def places(self, dim: int) -> Slices:
        """What is left of an axis that had ``dim`` places."""
        times = np.arange(dim // self.size)
        if self.inner:
            return (self.slices[:, None] * len(times) + times).reshape(-1)
        return (times[:, None] * self.size + self.slices).reshape(-1)


def kept(model: ir.Model) -> Mapping[str, Mapping[int, Slices]]:
    """What is left of a model that channels were removed from, by constant and axis: the places in the original.

    Axes that are whole are left out.
    """
    return MappingProxyType(model.meta.get(_CONSTANTS, {}))


def left(model: ir.Model) -> Mapping[str, Mapping[int, Left]]:
    """The same by computed tensor. Axes of which it cannot be told are left out too."""
    return MappingProxyType(model.meta.get(_COMPUTED, {}))


class Record:
    """Both, to be continued; copies of the model keep what they have."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._constants = {name: dict(axes) for name, axes in kept(model).items()}
        self._computed = {name: dict(axes) for name, axes in left(model).items()}

    def constant(self, value: ir.Value, masks: Mapping[int, npt.NDArray[np.bool_]]) -> None:
        """Note which slices of a constant stay along each axis that is cut."""
        own = self._constants.setdefault(value.name or "", {})
        own.update((at, own.get(at, np.arange(len(mask)))[mask]) for at, mask in masks.items())

    def computed(self, value: ir.Value, axes: Sequence[Axis], keep: Keep) -> None:
        """Note which slices of a computed tensor stay."""
        if not value.name:
            return  # an output that its node leaves out
        own = self._computed.setdefault(value.name, {})
        for at, axis in enumerate(axes):
            mask = keep(slices_of(axis))
            inner, outer = (axis.inner, axis.outer) if isinstance(axis, Repeated) else (False, False)
            if not mask.all() and not (inner and outer):
                before = own.get(at, Left(np.arange(len(mask)), len(mask), inner))
                own[at] = Left(before.slices[mask], before.size, inner)

    def write(self) -> None:
        """Put it into the model."""
        self._model.meta.update({_CONSTANTS: self._constants, _COMPUTED: self._computed})
