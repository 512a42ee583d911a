"""How much a channel is worth by what gradients say of it.

A channel that is multiplied by ``z`` is whole at ``z = 1`` and gone at ``z = 0``. The derivative in ``z`` is the sum of
``w · g`` over the parameters that make the channel: scale and shift of its normalization if it has one, else weights
and bias. The score is the mean of its square over small batches.

- ``taylor``: of the loss of labels, cross-entropy or mean squares. What the loss changes by, to first order.
- ``hessian``: of ``rᵀ y``, the outputs weighted by random signs, each output in units of its deviation. The mean of the
  square is the diagonal of ``JᵀJ``: the second derivative of half the square of what the outputs are off, which has no
  first one at the model as it is. No labels are needed.

Sources: Molchanov, Mallya, Tyree, Frosio and Kautz, "Importance Estimation for Neural Network Pruning", CVPR 2019;
LeCun, Denker and Solla, "Optimal Brain Damage", NIPS 1989 (the diagonal); Hutchinson, "A Stochastic Estimator of the
Trace of the Influence Matrix", 1989 (random signs).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.channels import Group, Member
from onnxopt.data import Dataset
from onnxopt.pass_base import Refuse
from onnxopt.passes.distill._training import Array, differentiable, label_kind
from onnxopt.passes.prune._importance import scales, slices_of
from onnxopt.runtime import Session, Snapshot
from onnxopt.train import CrossEntropy, Loss, MeanSquaredError
from onnxopt.train.loss_graph import LABELS, LossGraph
from onnxopt.train.trainable import Trainable

_SAMPLES = 256
_BATCH = 8
_SIGNS = "signs/"


@dataclass(frozen=True)
class _Projection(Loss):
    """The outputs times given numbers."""

    outputs: tuple[str, ...]

    def build(self, at: LossGraph) -> ir.Value:
        """``Σ r · y``."""
        products = [at.op("Mul", at.output(name), at.input(_SIGNS + name)) for name in self.outputs]
        return at.op("Sum", *(at.op("ReduceSum", product, keepdims=0) for product in products))


def gradient_scores(
    groups: Sequence[Group], criterion: str, model: ir.Model, data: Dataset, seed: int
) -> dict[int, Array]:
    """The score of each channel of each group whose parameters have gradients, comparable between groups.

    Raises ``Refuse`` if there are no labels where they are needed, or nothing has a gradient, ``GradientError`` if an
    operator has none.
    """
    makers = {group.number: _makers(group) for group in groups}
    constants = model.graph.initializers
    known = {
        number: members
        for number, members in makers.items()
        if members and all(constants.get(str(m.value.name)) is m.value for m in members)
    }
    names = sorted({str(member.value.name) for members in known.values() for member in members})
    if not names:
        raise Refuse("no channel is made by float weights of the main graph")
    batches = _batches(data.take(_SAMPLES), criterion)
    copied, first = differentiable(model), next(batches)
    if criterion == "taylor":
        trainable = Trainable(copied, _loss(data), first, include=names, threads=1)
        fed = iter((first, *batches))
    else:
        floats = [str(v.name) for v in copied.graph.outputs if v.dtype is not None and v.dtype.is_floating_point()]
        signs = _Signs(copied, floats, first, seed)
        loss = _Projection(tuple(floats))
        trainable = Trainable(copied, loss, signs.beside(first), include=names, threads=1)
        fed = (signs.beside(batch) for batch in (first, *batches))
    totals = {group.number: np.zeros(group.size) for group in groups if group.number in known}
    for batch in fed:
        trainable.gradient(batch)
        for number, members in known.items():
            slope = np.zeros(len(totals[number]))
            for member in members:
                name = str(member.value.name)
                if name in trainable.gradients:
                    moved = trainable.gradients[name] * trainable.parameters[name]
                    slope += slices_of(moved, member).sum(axis=1)
            totals[number] += slope**2
    return totals


def _makers(group: Group) -> list[Member]:
    """The parameters that make the channels, in which they are linear."""
    norms = scales(group)
    nodes = {node for member in norms for node in member.nodes}
    if norms:
        return [m for m in group.members if m in norms or (m.role == "out" and _is_shift(m, nodes))]
    return [member for member in group.members if member.role == "out"]


def _is_shift(member: Member, norms: set[ir.Node]) -> bool:
    return any(node in norms and len(node.inputs) > 2 and node.inputs[2] is member.value for node in member.nodes)


def _batches(data: Dataset, criterion: str) -> Iterator[dict[str, Array]]:
    for batch in data.batches():
        for part in batch.cut(_BATCH):
            labels = {} if part.labels is None or criterion != "taylor" else {LABELS: part.labels}
            yield {**part.feeds, **labels}


def _loss(data: Dataset) -> Loss:
    match label_kind(data):
        case "i" | "u":
            return CrossEntropy()
        case "f":
            return MeanSquaredError(teacher=None)
    raise Refuse("it needs labels; give them, or take hessian")


class _Signs:
    """Random signs for each output of a batch, in units of its deviation."""

    def __init__(self, model: ir.Model, outputs: Sequence[str], first: dict[str, Array], seed: int) -> None:
        self._session = Session(Snapshot.of(model), optimize=True)
        self._outputs, self._rng = outputs, np.random.default_rng(seed)
        found = self._computed(first)
        self._deviations = {name: float(np.std(x)) or 1.0 for name, x in found.items()}
        self._shapes = {_sizes(first): {name: x.shape for name, x in found.items()}}

    def beside(self, batch: dict[str, Array]) -> dict[str, Array]:
        """The batch with them."""
        sizes = _sizes(batch)
        if sizes not in self._shapes:
            self._shapes[sizes] = {name: x.shape for name, x in self._computed(batch).items()}
        return batch | {
            _SIGNS + name: self._rng.choice([-1, 1], shape).astype(np.float32) / np.float32(self._deviations[name])
            for name, shape in self._shapes[sizes].items()
        }

    def _computed(self, batch: dict[str, Array]) -> dict[str, Array]:
        found = self._session.run({name: batch[name] for name in self._session.inputs}, list(self._outputs))
        return dict(zip(self._outputs, found, strict=True))


def _sizes(batch: dict[str, Array]) -> tuple[tuple[int, ...], ...]:
    return tuple(array.shape for array in batch.values())
