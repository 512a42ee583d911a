"""What a student can learn inside: which of its values go with which of a teacher's, and the losses between them.

Pairs are named, or found: the blocks of both are put side by side where their sizes are the same but for channels, and
of ``n`` of the student and ``m`` of the teacher the ``j``-th goes with the ``⌈j·m/n⌉``-th (Jiao et al., "TinyBERT",
2020). Where all blocks of the student are called as blocks of the teacher, as after pruning, names tell.

Hints have a layer of their own behind the student's value, a 1×1 convolution or a product, which makes as many channels
as the teacher has. It starts as the least squares fit, is trained with the student, and is left out in the end.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxopt.data import Dataset
from onnxopt.errors import OptionError
from onnxopt.graph import Editor
from onnxopt.passes.distill._blocks import Array, block_ends, channel_axis, observed
from onnxopt.train import AttentionTransfer, Loss, MeanSquaredError, SimilarityPreserving

Kind = Literal["attention", "hints", "similarity"]
KINDS = ("attention", "hints", "similarity")

_SAMPLES = 8
_MOST = 4
"""So many pairs of tokens or rows of one size are taught; of maps the last."""
_DAMPING = 1e-2


@dataclass(frozen=True)
class Pair:
    """A value of the student, one of the teacher, and both on samples."""

    own: str
    taught: str
    x: Array
    y: Array
    channels: int
    """The axis of channels of the student's value, by what makes it."""

    def axis(self, kind: Kind) -> int | None:
        """The axis of channels; ``None`` if this loss cannot compare the two."""
        a, b = self.x.shape, self.y.shape
        if kind == "similarity":
            return 1 if a[:1] == b[:1] and len(a) > 1 and len(b) > 1 else None
        if len(a) != len(b) or len(a) < (3 if kind == "attention" else 2):
            return None
        axes = (self.channels, 1, len(a) - 1)
        return next((at for at in axes if a[:at] + a[at + 1 :] == b[:at] + b[at + 1 :]), None)

    @property
    def is_map(self) -> bool:
        """Whether it has channels in front and places behind."""
        return self.channels == 1 and self.x.ndim > 2

    @property
    def sizes(self) -> str:
        """How an error says what they are."""
        return f"{self.own!r} is {list(self.x.shape)}, {self.taught!r} of the teacher {list(self.y.shape)}"


def pairs_of(student: Editor, teacher: Editor, named: Sequence[str], kind: Kind, data: Dataset) -> list[Pair]:
    """The pairs to teach. Raises ``OptionError`` if a named value is not there, or nothing can be compared."""
    few = next(iter(data.take(_SAMPLES).batches()))
    names = [tuple(text.split("=", 1)) if "=" in text else (text, text) for text in named]
    if named:
        owns, taughts = (list(dict.fromkeys(each)) for each in zip(*names, strict=True))
        _check("the model", student, owns)
        _check("the teacher", teacher, taughts)
    else:
        owns, taughts = ([str(value.name) for value in block_ends(editor)] for editor in (student, teacher))
    x, y = next(observed(student.model, owns, [few])), next(observed(teacher.model, taughts, [few]))
    made = {str(value.name): value for node in student.model.graph for value in node.outputs}
    axes = {own: channel_axis(made[own], array.ndim) for own, array in x.items()}
    if names:
        found = [Pair(own, taught, x[own], y[taught], axes[own]) for own, taught in names]
        if bad := [pair for pair in found if pair.axis(kind) is None]:
            wanted = "the same number of samples" if kind == "similarity" else "the same sizes, but for their channels"
            raise OptionError(f"the pair {bad[0].sizes}: for {kind} they need {wanted}")
        return found
    x, y = ({n: a for n, a in each.items() if a.shape[:1] == (few.samples,)} for each in (x, y))  # a row a sample
    found = list(_found([[Pair(own, taught, x[own], y[taught], axes[own]) for taught in y] for own in x], kind))
    if not found:
        raise OptionError(
            f"no value at the end of a block of the model has the sizes of one of the teacher; name pairs for {kind}: "
            f"of the model {_listed(x)}; of the teacher {_listed(y)}"
        )
    return found


def _found(every: Sequence[Sequence[Pair]], kind: Kind) -> Iterator[Pair]:
    """Of all pairs, by value of the student, those to teach."""
    fitting = [[pair for pair in pairs if pair.axis(kind) is not None] for pairs in every]
    are_alike = all(any(pair.own == pair.taught for pair in pairs) for pairs in fitting)
    groups: dict[object, list[list[Pair]]] = {}
    for pairs in fitting:
        if pairs:
            sizes = () if kind == "similarity" else (pairs[0].x.shape[2:], *(pair.taught for pair in pairs))
            groups.setdefault(sizes, []).append(pairs)
    for group in groups.values():
        count = len(group)
        most = 1 if group[0][0].is_map and kind != "similarity" else min(count, _MOST)
        chosen = [-(-(at + 1) * count // most) - 1 for at in range(most)]
        for at in chosen:
            pairs = group[at]
            same = [pair for pair in pairs if are_alike and pair.own == pair.taught]
            yield same[0] if same else pairs[-(-(at + 1) * len(pairs) // count) - 1]


def feature_loss(pair: Pair, kind: Kind, student: Editor) -> tuple[float, Loss, list[str]]:
    """The loss of a pair with what it is to be divided by, and the initializers that it adds to the student."""
    axis = pair.axis(kind)
    assert axis is not None
    if kind == "attention":
        return 1.0, AttentionTransfer(pair.own, pair.taught, axis), []
    if kind == "similarity":
        return 1.0, SimilarityPreserving(pair.own, pair.taught), []
    name, added = _project(pair, axis, student)
    spread = float(np.var(pair.y, dtype=np.float64))
    return spread or 1.0, MeanSquaredError(name, pair.taught), added


def _project(pair: Pair, axis: int, student: Editor) -> tuple[str, list[str]]:
    """Put a layer behind the student's value; returns its output and its initializers."""
    graph = student.model.graph
    value, node = next((v, node) for node in graph for v in node.outputs if v.name == pair.own)
    weight, bias = _fit(*(np.moveaxis(each, axis, -1).reshape(-1, each.shape[axis]) for each in (pair.x, pair.y)))
    is_map = axis == 1 and pair.x.ndim > 2
    kernel = weight.T.reshape(*weight.T.shape, *[1] * (pair.x.ndim - 2)) if is_map else weight
    w = student.add_constant(node, np.ascontiguousarray(kernel), "distill/weight")
    b = student.add_constant(node, bias, "distill/bias")
    name = student.fresh("distill/projection")
    if is_map:
        nodes = [ir.node("Conv", [value, w, b], name=name)]
    else:
        product = ir.node("MatMul", [value, w], name=f"{name}/product")
        product.outputs[0].name = student.fresh(f"{name}/product")
        nodes = [product, ir.node("Add", [product.outputs[0], b], name=name)]
    nodes[-1].outputs[0].name = name
    graph.extend(nodes)
    return name, [str(w.name), str(b.name)]


def _fit(x: Array, y: Array) -> tuple[Array, Array]:
    """Weight (m × n) and bias (n) of the least squares fit of ``y`` (rows × n) to ``x`` (rows × m)."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    means = x.mean(0), y.mean(0)
    x, y = x - means[0], y - means[1]
    gram = x.T @ x
    gram += (_DAMPING * np.trace(gram) / len(gram) + 1e-12) * np.eye(len(gram))
    weight = np.linalg.solve(gram, x.T @ y)
    return weight.astype(np.float32), (means[1] - means[0] @ weight).astype(np.float32)


def _check(where: str, editor: Editor, names: Sequence[str]) -> None:
    made = [str(value.name) for node in editor.model.graph for value in node.outputs if value.name]
    if missing := [name for name in names if name not in made]:
        near = difflib.get_close_matches(missing[0], made, 1)
        raise OptionError(
            f"{where} computes no value {missing[0]!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        )


def _listed(found: dict[str, Array]) -> str:
    listed = [f"{name!r} {list(array.shape)}" for name, array in found.items()]
    return ", ".join([*listed[:6], *(["…"] if len(listed) > 6 else [])]) or "none"
