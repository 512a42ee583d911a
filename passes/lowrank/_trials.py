"""What splitting layers does to a model, tried out on copies: to its outputs, and to its time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxopt.errors import EngineError
from onnxopt.graph import Editor
from onnxopt.judge import Judge
from onnxopt.pass_base import Context
from onnxopt.passes.lowrank._build import put_stages
from onnxopt.passes.lowrank._forms import Form, macs
from onnxopt.passes.lowrank._layers import Splittable, found_in
from onnxopt.passes.lowrank._parts import Analysis, Part, merged
from onnxopt.passes.lowrank._stages import Stage
from onnxopt.passes.lowrank._timing import layer_seconds
from onnxopt.runtime import Feeds, Snapshot

PAYS = 0.97
"""A layer that takes more than this share of its time is not faster, as far as one can tell."""
_JUDGES = 16
"""On so many samples it is told what a layer does to the outputs."""
_RUINED = 1e3
"""So much noise, in units of the signal, and more is all the same."""

Seconds = Callable[[Form | None], float]
"""How long a layer takes in a form, or whole."""


class Trials:
    """A model, and copies of it with some layers split."""

    def __init__(self, context: Context, feeds: Feeds | None) -> None:
        """``feeds`` is what time is measured on; ``None``: it is not."""
        self._context, self._feeds = context, feeds

    @cached_property
    def _judge(self) -> Judge | None:
        """Made when it is asked for: it runs the model."""
        model, samples = self._context.editor.model, self._context.evaluation
        return None if samples is None else Judge(model, Snapshot.of(model), samples.take(_JUDGES))

    def noise(self, known: Analysis, form: Form) -> float | None:
        """The noise at the outputs, in units of the signal, with this layer split; ``None`` if it is not known."""
        if self._judge is None:
            return None
        copied = self._context.editor.copy()
        _put([known.layer], [known.stages(form)], copied)
        return self.noise_of(copied.model)

    def noise_of(self, model: ir.Model) -> float | None:
        """The same of a model that was made of this one."""
        if self._judge is None:
            return None
        try:
            return min(self._judge.quality(Snapshot.of(model)).noise, _RUINED)
        except EngineError:
            return None

    def weigh(self, known: Analysis, options: Sequence[Form]) -> tuple[tuple[float, float], ...]:
        """What a layer alone loses of its output in its middle form and in its smallest one, the least first, and the
        noise that this makes at the outputs of the model."""
        tried = []
        for form in dict.fromkeys((options[len(options) // 2], options[0])):
            if (noise := self.noise(known, form)) is not None:
                tried.append((known.loss_elsewhere(form), noise))
        return tuple(sorted(tried))

    def time(self, parts: Sequence[Part]) -> bool:
        """Find out how long layers take whole and in their form; those that do not get faster stay whole. Says whether
        any does."""
        wanted = {part: part.chosen.form for part in parts if part.chosen.form is not None}
        if self._feeds is None or not wanted:
            return False
        stay = False
        times = self.times(wanted)
        for part, form in wanted.items():
            if times is None:
                part.chosen.reason = "ONNX Runtime does not run it split"
            else:
                part.chosen.seconds = before, after = times[part]
                if after > PAYS * before:
                    part.chosen.reason = f"{form} would take {after * 1e6:.0f} µs instead of {before * 1e6:.0f}"
            if part.chosen.reason:
                part.chosen.form, stay = None, True
        return stay

    def seconds(self, parts: Sequence[Part], options: Callable[[Part], Sequence[Form]]) -> dict[Part, Seconds] | None:
        """How long each layer takes, told from its smallest, middle and largest form: between these, time follows the
        arithmetic. ``None`` if that cannot be measured."""
        points: dict[Part, list[tuple[float, float]]] = {}
        for place in (0.0, 0.5, 1.0):
            found = {part: own[round(place * (len(own) - 1))] for part in parts if (own := options(part))}
            times = self.times(found)
            if times is None:
                return None
            for part, form in found.items():
                geometry = part.layer.geometry
                points.setdefault(part, [(float(macs(geometry.stages, geometry)), times[part][0])])
                points[part].append((float(macs(form.stages(geometry), geometry)), times[part][1]))
        return {part: _between(part, sorted(known)) for part, known in points.items()}

    def times(self, wanted: Mapping[Part, Form]) -> dict[Part, tuple[float, float]] | None:
        """The seconds of each layer, whole and split, with all of these split; ``None`` if they cannot be measured."""
        if self._feeds is None or not wanted:
            return None
        keys = {part.key: part for part in wanted}

        def whole(copied: Editor) -> Mapping[str, Sequence[ir.Node]]:
            layers = found_in(copied, [part.layer for part in wanted])
            return {key: layer.nodes for key, layer in zip(keys, layers, strict=True)}

        def split(copied: Editor) -> Mapping[str, Sequence[ir.Node]]:
            shaped = [_shaped(part.layer, form) for part, form in wanted.items()]
            return dict(zip(keys, _put([part.layer for part in wanted], shaped, copied), strict=True))

        model = self._context.editor.model
        try:
            before = layer_seconds(model, whole, self._feeds)
            after = layer_seconds(model, split, self._feeds)
        except EngineError:
            return None
        return {part: (before[key], after[key]) for key, part in keys.items()}


def _between(part: Part, known: Sequence[tuple[float, float]]) -> Seconds:
    geometry = part.layer.geometry
    counts, times = zip(*known, strict=True)

    def seconds(form: Form | None) -> float:
        stages = geometry.stages if form is None else form.stages(geometry)
        return float(np.interp(macs(stages, geometry), counts, times))

    return seconds


def _put(
    layers: Sequence[Splittable], groups: Sequence[Sequence[Sequence[Stage]]], copied: Editor
) -> list[list[ir.Node]]:
    """Let these layers have these stages in a copy of the model; returns the nodes that each has then."""
    return [
        put_stages(layer.refits, merged(each), [None] * len(layer.refits), copied)
        for layer, each in zip(found_in(copied, layers), groups, strict=True)
    ]


def _shaped(layer: Splittable, form: Form) -> list[list[Stage]]:
    """Stages of this form for each group: time follows from shapes, so the numbers are any of usual size."""
    rng, stages, channels = np.random.default_rng(0), [], layer.geometry.kernel[1]
    for shape in form.stages(layer.geometry):
        stages.append(Stage(rng.standard_normal(shape, np.float32) * np.float32(0.01), channels // shape[1]))
        channels = shape[0]
    return [stages] * layer.geometry.groups
