"""Split the layers that are to be, one after the other.

Weights are found layer by layer, the first first, from moments of what reaches the layer once those before it are split
and of what it gave in the model before: a later one makes up for what earlier ones have lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from onnxopt.graph import Editor
from onnxopt.pass_base import Context, Log, Refuse
from onnxopt.passes.lowrank._build import put_stages
from onnxopt.passes.lowrank._forms import macs
from onnxopt.passes.lowrank._layers import Splittable, found_in
from onnxopt.passes.lowrank._parts import Data, Known, Part, damped, lost, merged, stages
from onnxopt.passes.lowrank._products import InputRefit
from onnxopt.passes.lowrank._stages import composed
from onnxopt.passes.prune._refits import levelled
from onnxopt.traverse import depths


def build(parts: Sequence[Part], data: Data | None, context: Context, log: Log) -> None:
    """Split the layers that have a form, one after the other, in the model of ``context``: the one that they are known
    from, or a copy."""
    chosen = [part for part in parts if part.chosen.form is not None]
    layers = _summed(found_in(context.editor, [part.layer for part in chosen]), context.editor)
    depth_of = depths(context.editor.model, {refit.at for layer in layers for refit in layer.refits})

    def level(each: tuple[Part, Splittable]) -> int:
        """How deep the first of its nodes stands: all change at once."""
        return min(depth_of[refit.at.outputs[0]] for refit in each[1].refits)

    ordered = sorted(zip(chosen, layers, strict=True), key=lambda each: (level(each), each[1].names))
    for _, group in groupby(ordered, key=level):
        together = list(group)
        own = [layer for _, layer in together]
        known = data.moments(own, context.editor.model) if data is not None else [None] * len(own)
        for (part, layer), moments in zip(together, known, strict=True):
            if context.gate.closed:
                return
            own_moments = None
            if data is not None and moments is None:  # what it should give now cannot be told from what it gave
                (own_moments,) = data.own_moments([part.layer])
            try:
                _split(part, layer, moments or own_moments, context, log)
            except Refuse as refusal:
                for name in layer.names:
                    log.refused(name, str(refusal))


def _summed(layers: Sequence[Splittable], editor: Editor) -> list[Splittable]:
    """``layers``, with the sums that they go into where their outputs are what they are to give."""
    refits = [refit for layer in layers for refit in layer.refits if not isinstance(refit, InputRefit)]
    summed = {refit.layer.node: refit for refit in levelled(refits, editor)}
    return [
        replace(layer, refits=tuple(summed.get(refit.layer.node, refit) for refit in layer.refits)) for layer in layers
    ]


def _split(part: Part, layer: Splittable, moments: Known | None, context: Context, log: Log) -> None:
    form, geometry = part.chosen.form, layer.geometry
    assert form is not None
    if moments is not None:
        fitted, judged = damped(layer, moments[0], part.chosen.damping), layer.problems(moments[1])
    else:
        fitted = judged = layer.data_free()
    groups = stages(layer, form, fitted)
    error = lost(groups, judged)
    matrices = np.stack([composed(each).reshape(geometry.kernel[0], -1).T for each in groups])
    biases = layer.biases(moments[0], matrices) if moments is not None else [None] * len(layer.refits)
    put_stages(layer.refits, merged(groups), biases, context.editor)
    share = macs(form.stages(geometry), geometry) / macs(geometry.stages, geometry)
    for name in layer.names:
        log.changed(name, f"{form}: {share:.0%} of its arithmetic, error of its output {error:.2g}")
    facts: dict[str, object] = {"node": ", ".join(layer.names), "form": str(form), "macs": share, "error": error}
    if part.chosen.seconds is not None:
        facts |= {"whole_us": part.chosen.seconds[0] * 1e6, "split_us": part.chosen.seconds[1] * 1e6}
    log.measured(**facts)
