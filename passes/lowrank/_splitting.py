"""Split the layers that are to be, one after the other.

Weights are found layer by layer, the first first, from moments of what reaches the layer once those before it are split
and of what it gave in the model before: a later one makes up for what earlier ones have lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from onnxopt.pass_base import Context, Log, Refuse
from onnxopt.passes.lowrank._build import put_stages
from onnxopt.passes.lowrank._forms import macs
from onnxopt.passes.lowrank._layers import Splittable, found_in
from onnxopt.passes.lowrank._parts import Data, Part, damped, lost, merged, stages
from onnxopt.passes.lowrank._stages import composed
from onnxopt.passes.prune._least_squares import Moments
from onnxopt.passes.prune._refits import levelled


def build(parts: Sequence[Part], data: Data | None, context: Context, log: Log) -> None:
    """Split the layers that have a form, one after the other, in the model of ``context``: the one that they are known
    from, or a copy."""
    chosen = {part.key: part for part in parts if part.chosen.form is not None}
    ordered = levelled(found_in(context.editor, chosen).values(), context.editor)
    for _, level in groupby(ordered, key=lambda refit: refit.level):
        parts_ = [(chosen[refit.layer.node.outputs[0].name or ""], refit) for refit in level]
        group = [(part, Splittable(refit, part.layer.geometry)) for part, refit in parts_]
        layers = [layer for _, layer in group]
        known = data.moments(layers, context.editor.model) if data is not None else [None] * len(layers)
        for (part, layer), moments in zip(group, known, strict=True):
            if context.gate.closed:
                return
            try:
                _split(part, layer, moments, context, log)
            except Refuse as refusal:
                log.refused(layer.name, str(refusal))


def _split(part: Part, layer: Splittable, moments: tuple[Moments, Moments] | None, context: Context, log: Log) -> None:
    form, geometry = part.chosen.form, layer.geometry
    assert form is not None
    fitted = judged = part.fitted
    if moments is not None:
        judged = layer.problems(moments[1])
        fitted = damped(layer, layer.problems(moments[0]), judged, form)
    groups = stages(layer, form, fitted)
    error = lost(groups, judged)
    matrices = np.stack([composed(each).reshape(geometry.kernel[0], -1).T for each in groups])
    bias = layer.bias(moments[0], matrices) if moments is not None else None
    put_stages(layer.linear, merged(groups), bias, context.editor)
    share = macs(form.stages(geometry), geometry) / macs(geometry.stages, geometry)
    log.changed(layer.name, f"{form}: {share:.0%} of its arithmetic, error of its output {error:.2g}")
    facts: dict[str, object] = {"node": layer.name, "form": str(form), "macs": share, "error": error}
    if part.chosen.seconds is not None:
        facts |= {"whole_us": part.chosen.seconds[0] * 1e6, "split_us": part.chosen.seconds[1] * 1e6}
    log.measured(**facts)
