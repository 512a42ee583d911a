"""Set weights to zero: one by one, N of M, or in blocks. Shapes stay.

A layer ``y = x·wᵀ`` (n outputs, k inputs each; how each operator's weight is read so is told in ``_weights``) loses
the weights of least score. ``pattern`` says what the zeros look like:

- none: any weights, as many of each layer as ``allocation`` gives it;
- ``2:4``, ``4:8``, ``N:M``: of every M inputs in a row each output keeps N. Along the inputs, for that is how sparse
  tensor cores (NVIDIA, from compute capability 8.0 on, through TensorRT) read it; of a Conv along its input channels;
- ``4x1``, ``RxC``: blocks of R outputs × C inputs.

==========  ====================================================  =====  =======================================
method      score                                                 data   the weights that stay
==========  ====================================================  =====  =======================================
magnitude   ``|w|``                                               no     as they are
random      none: the baseline that any score should beat         no     as they are
wanda       ``|w| · ‖x‖``, within each output                     yes    as they are
sparsegpt   what the output loses once the others make up for it  yes    make up for those that are gone
==========  ====================================================  =====  =======================================

With ``auto`` a layer gets ``sparsegpt`` where there are data and it can, else ``magnitude``; recurrent layers, a MatMul
whose constant is on its left and a ConvTranspose whose kernel overlaps itself cannot.

Layers are not equally sensitive. Accuracy in % of trained nets at 70 % by ``auto``, 512 samples without labels:

===================  =====  ===========  =======  ========
net                  dense  ``uniform``  ``erk``  ``lamp``
===================  =====  ===========  =======  ========
residual             95.7   69.2         92.7     93.3
densely connected    95.2   90.9         93.3     94.0
depthwise            96.4   17.8         61.6     68.6
recurrent            96.8   82.2         91.9     91.9
===================  =====  ===========  =======  ========

**What it gives.** Zeros compress: the report has each weight's bytes before and after deflate. They make nothing
faster in ONNX Runtime's CPU kernels, which multiply them like other numbers; for speed take channels out
(prune-channels). Errors are relative: of the weight ``‖w − ŵ‖ / ‖w‖``, and, with data, of the output of the layer over
the calibration samples, ``‖x·(w − ŵ)ᵀ‖ / ‖x·wᵀ‖``.

**Masks** stay with the model: zeros are the mask, and ``metadata_props`` names the weights (see ``onnxopt.sparsity``).
Weights of integers are pruned by setting them to their zero point.

Sources: see the modules ``_masks``, ``_allocation``, ``_wanda`` and ``_sparsegpt``.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxopt.errors import OptionError
from onnxopt.graph import Editor, constant_tensor, label
from onnxopt.pass_base import Context, Log, Pass, Refuse, Report
from onnxopt.passes.prune._allocation import Allocation, shares
from onnxopt.passes.prune._layer_grams import layer_grams
from onnxopt.passes.prune._masks import Pattern, mask
from onnxopt.passes.prune._sparsegpt import sparsegpt
from onnxopt.passes.prune._wanda import wanda
from onnxopt.passes.prune._weights import OPERATORS, RECURRENT, Weight, find_weight, foreign_reader, weight_inputs
from onnxopt.passes.quantize._blockwise import output_error, weight_error
from onnxopt.passes.quantize._grid import Array
from onnxopt.passes.quantize._products import Product
from onnxopt.sparsity import KEY, record

Method = Literal["auto", "magnitude", "random", "wanda", "sparsegpt"]

_METHODS = ("auto", "magnitude", "random", "wanda", "sparsegpt")
_ALLOCATIONS = ("auto", "uniform", "global", "erk", "lamp")
_BY_DATA = ("wanda", "sparsegpt")
_LARGEST = 8192
"""Outputs of more weights than this would take matrices too large for the memory."""


@dataclass(frozen=True, kw_only=True)
class PruneWeights(Pass):
    """Set weights to zero: one by one, N of M, or in blocks."""

    name: ClassVar[str] = "prune-weights"
    exact: ClassVar[bool] = False
    ops: ClassVar[frozenset[str]] = OPERATORS

    sparsity: float | None = None
    """The share of zeros, in (0, 1); 0.5 if not given. N:M has its own."""
    pattern: str = ""
    """``"2:4"`` (of 4 inputs 2 are kept), ``"4x1"`` (blocks of 4 outputs × 1 input); empty: none."""
    method: Method = "auto"
    """``magnitude``, ``random``, ``wanda``, ``sparsegpt``, or ``auto``: ``sparsegpt`` where there are data."""
    allocation: Literal["auto"] | Allocation = "auto"
    """How sparse each layer gets: ``uniform``, ``global`` (one threshold), ``erk``, ``lamp``; ``auto``: ``lamp``, but
    with N:M, which gives every layer the same, ``uniform``."""
    ratios: tuple[tuple[str, float], ...] = ()
    """Layers with a share of their own, ``[[glob, share], …]`` over names of nodes, operators and weights; the first
    that matches counts, and the rest reach ``sparsity`` among themselves. 0 leaves a layer alone."""
    seed: int = 0
    """Which weights are drawn at random, and which rows of the inputs."""

    def __post_init__(self) -> None:
        for option, allowed in (("method", _METHODS), ("allocation", _ALLOCATIONS)):
            if getattr(self, option) not in allowed:
                wanted = ", ".join(allowed)
                raise OptionError(f"{self.name}.{option} is one of {wanted}; got {getattr(self, option)!r}")
        try:
            pattern = Pattern.parse(self.pattern)
        except ValueError as error:
            raise OptionError(f"{self.name}.pattern: {error}") from error
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise OptionError(f"{self.name}.sparsity is a share in (0, 1), got {self.sparsity}")
        for glob, share in self.ratios:
            if not 0 <= share < 1:
                raise OptionError(f"{self.name}.ratios are shares in [0, 1); {glob!r} got {share}")
        if self.seed < 0:
            raise OptionError(f"{self.name}.seed is a number from 0 on, got {self.seed}")
        if pattern.share is not None:
            if self.sparsity is not None and abs(self.sparsity - pattern.share) > 1e-9:
                raise OptionError(
                    f"{self.name}.pattern {self.pattern} has {pattern.share:.1%} of zeros, not {self.sparsity:.1%}: "
                    "leave out sparsity"
                )
            if self.allocation not in ("auto", "uniform") or self.ratios:
                raise OptionError(
                    f"{self.name}.pattern {self.pattern} gives every layer the same share: leave out allocation and "
                    "ratios, and use exclude for layers to be left alone"
                )

    def run(self, context: Context) -> Report:
        if self.method in _BY_DATA and context.data is None:
            raise OptionError(
                f"{self.name}.method {self.method} needs calibration data: give data= (--data), or take "
                "method=magnitude"
            )
        log = Log(self, context)
        editor = context.editor
        weights = self._weights(context, log)
        if not weights:
            if not log.report().refusals:
                log.refused("model", self._nothing())
            return log.report()
        plan = self._plan(weights, editor, log)
        inputs = self._inputs(list(plan), context, log)
        found = []
        for weight, gram in self._with_grams(inputs, context):
            if context.gate.closed:
                break
            pruned = self._prune(weight, plan[weight], gram, editor, log)
            if pruned is not None:
                found.append(pruned)
        if found and not context.gate.closed:
            self._finish(found, editor, log)
        return log.report()

    # -- what to do ------------------------------------------------------------------------------------------

    def _weights(self, context: Context, log: Log) -> list[Weight]:
        """What can be pruned, in the order of the graph; reasons for the rest are logged."""
        uses: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
        for graph in context.editor.graphs():
            for node in graph:
                if node.op_type not in OPERATORS or node.domain != "" or not self.may_change(node, context):
                    continue
                for at in weight_inputs(node):
                    value = node.inputs[at] if at < len(node.inputs) else None
                    if value is not None:
                        uses.setdefault(value, []).append((node, at))
        found = []
        for value, each in uses.items():
            try:
                weight = find_weight(value, tuple(each), context.editor)
                other = foreign_reader(weight, set(each))
                if other is not None:
                    raise Refuse(f"its weight is also read by {other}, which is not to get the zeros")
                misfit = self._pattern.misfit(*weight.view.size[1:])
                if misfit is not None:
                    raise Refuse(f"{misfit}, as the pattern {self.pattern} needs")
                found.append(weight)
            except Refuse as refusal:
                log.refused(label(each[0][0]), str(refusal))
        return found

    def _plan(self, weights: Sequence[Weight], editor: Editor, log: Log) -> dict[Weight, float]:
        """The share of zeros of each weight that is to get any."""
        for glob, _ in self.ratios:
            if not any(fnmatchcase(name, glob) for weight in weights for name in weight.names()):
                log.refused("model", f"ratios: no layer that may be pruned is called {glob!r}")
        given = [self._ratio(weight) for weight in weights]
        free = [weight for weight, ratio in zip(weights, given, strict=True) if ratio is None]
        wanted = self._pattern.share or self.sparsity or 0.5
        allocation = self.allocation
        if allocation == "auto":
            allocation = "lamp" if self._pattern.share is None else "uniform"
        rest = iter(shares([weight.array(editor) for weight in free], wanted, allocation))
        plan = {w: next(rest) if ratio is None else ratio for w, ratio in zip(weights, given, strict=True)}
        for weight, share in plan.items():
            if share == 0:
                log.refused(weight.name, "it stays dense: its share of zeros is 0")
        return {weight: share for weight, share in plan.items() if share > 0}

    def _ratio(self, weight: Weight) -> float | None:
        names = list(weight.names())
        return next((share for glob, share in self.ratios if any(fnmatchcase(n, glob) for n in names)), None)

    @property
    def _pattern(self) -> Pattern:
        return Pattern.parse(self.pattern)

    def _nothing(self) -> str:
        if self.include or self.exclude:
            return "include and exclude leave no layer to prune"
        return f"it has no {', '.join(sorted(OPERATORS))} to prune; operators of integers are dequantized first"

    # -- what reaches the layers -------------------------------------------------------------------------------

    def _inputs(self, weights: Sequence[Weight], context: Context, log: Log) -> dict[Weight, list[tuple[str, Product]]]:
        """What each weight multiplies, for each of its uses; nothing where that is not to be had."""
        found: dict[Weight, list[tuple[str, Product]]] = {}
        for weight in weights:
            found[weight] = []
            if context.data is None:
                continue
            try:
                found[weight] = [self._input(weight, *use, context) for use in weight.uses]
            except Refuse as refusal:
                if self.method in _BY_DATA:
                    log.refused(weight.name, f"{refusal}; method=magnitude can prune it")
                    del found[weight]
        return found

    def _input(self, weight: Weight, node: ir.Node, at: int, context: Context) -> tuple[str, Product]:
        if node.op_type in RECURRENT:
            raise Refuse("what its weights multiply changes from step to step, and is not to be read")
        if at == 0:
            raise Refuse("its weight is on the left")
        product = Product(node, weight.shape)
        name = (node.inputs[0].name if node.inputs[0] is not None else None) or ""
        obstacle = context.statistics().reachable(name)
        if obstacle is not None:
            raise Refuse(f"its input {name} cannot be read: {obstacle}")
        if product.size[1] > _LARGEST:
            raise Refuse(f"an output has {product.size[1]} weights, and the square of at most {_LARGEST} is kept")
        return name, product

    def _with_grams(
        self, inputs: dict[Weight, list[tuple[str, Product]]], context: Context
    ) -> Iterator[tuple[Weight, Array | None]]:
        """Each weight, with ``xᵀx`` of its inputs in the order in which it is seen, or ``None``."""
        uses = [(weight, each) for weight, products in inputs.items() for each in products]
        waiting = Counter(weight for weight, _ in uses)
        sums: dict[Weight, Array] = {}
        seen: set[Weight] = set()
        if uses and context.data is not None:
            layers = [each for _, each in uses]
            grams = layer_grams(layers, context.statistics(), len(context.data), self._rows, self.seed)
            for at, gram in grams:
                weight, (_, product) = uses[at]
                places = weight.view.places(product, weight.shape)
                ordered = gram[:, places[:, None], places]
                sums[weight] = sums[weight] + ordered if weight in sums else ordered
                waiting[weight] -= 1
                if not waiting[weight] and np.isfinite(sums[weight]).all():
                    seen.add(weight)
                    yield weight, sums.pop(weight)
        for weight in inputs:
            if weight not in seen:
                yield weight, sums.get(weight)

    def _rows(self, inputs: int) -> int:
        """How many rows are taken: weights are fitted to them, or just scored and judged."""
        if self.method in ("auto", "sparsegpt"):
            return min(max(32 * inputs, 1 << 14), 1 << 16)
        return 1 << 13

    # -- doing it ----------------------------------------------------------------------------------------------

    def _prune(self, weight: Weight, share: float, gram: Array | None, editor: Editor, log: Log) -> _Pruned | None:
        w = weight.matrix(editor)
        if gram is not None and not np.isfinite(gram).all():
            gram = None
        method = self.method
        if method == "auto":
            method = "magnitude" if gram is None else "sparsegpt"
        elif method in _BY_DATA and gram is None:
            log.refused(weight.name, "its input is not computed on these data, or not finite; take method=magnitude")
            return None
        new = self._sparse(weight, w, share, gram, method)
        before = _deflated(weight.constant)
        if np.array_equal(new, w):
            log.refused(weight.name, f"its {weight.title} is that sparse already: {np.mean(w == 0):.1%} zeros")
            return None
        weight.write(new, editor)
        new = weight.matrix(editor)
        found = _Pruned(weight, int(np.sum(new == 0)), before, _deflated(weight.constant))
        size, moved = weight_error(w, new), None if gram is None else output_error(w, new, gram)
        text = f"{weight.title}: {found.zeros / new.size:.1%} zeros by {method}, weight error {size:.1%}"
        text += "" if moved is None else f", output error {moved:.1%}"
        log.changed(weight.name, f"{text}; {found.before} bytes deflated to {found.after}")
        log.measured(
            node=weight.name, weight=weight.constant.name, method=method, asked=share, sparsity=found.zeros / new.size,
            weight_error=size, output_error=moved, deflated_before=found.before, deflated_after=found.after,
        )  # fmt: skip
        return found

    def _sparse(self, weight: Weight, w: Array, share: float, gram: Array | None, method: Method) -> Array:
        if method == "sparsegpt":
            assert gram is not None
            return sparsegpt(w, gram, share, self._pattern).astype(w.dtype)
        scores: Array
        if method == "wanda":
            assert gram is not None
            scores = wanda(w, gram)
        elif method == "random":
            # Seeded by the name, so that the choice does not depend on what else is pruned.
            name = (weight.constant.name or "").encode()
            scores = np.random.default_rng([self.seed, zlib.crc32(name)]).random(w.size).reshape(w.shape)
        else:
            scores = np.abs(w)
        kept = mask(scores, share, self._pattern, by_row=method == "wanda")
        return np.where(kept, w, w.dtype.type(0))

    def _finish(self, found: Sequence[_Pruned], editor: Editor, log: Log) -> None:
        """Sum up, and write down which zeros are to stay."""
        record(editor.model, {each.weight.constant.name or "": self.pattern for each in found})
        zeros = sum(each.zeros for each in found) / sum(math.prod(each.weight.shape) for each in found)
        before, after = (sum(sizes) for sizes in zip(*((each.before, each.after) for each in found), strict=True))
        log.changed(
            "model",
            f"{zeros:.1%} of {len(found)} weights is zero and noted as a mask for training ({KEY}); deflate "
            f"brings them to {after} bytes, before to {before}; ONNX Runtime's CPU kernels gain no speed from zeros",
        )


@dataclass(frozen=True)
class _Pruned:
    """A weight with its zeros, and its bytes under deflate before and after."""

    weight: Weight
    zeros: int
    before: int
    after: int


def _deflated(value: ir.Value) -> int:
    tensor = constant_tensor(value)
    assert tensor is not None
    return len(zlib.compress(tensor.tobytes()))
