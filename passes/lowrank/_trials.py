"""What splitting layers does to a model, tried out on copies: to its outputs, and to its time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxopt.errors import EngineError
from onnxopt.graph import Editor
from onnxopt.pass_base import Context
from onnxopt.passes.lowrank._build import put_stages
from onnxopt.passes.lowrank._forms import Form, macs
from onnxopt.passes.lowrank._layers import found_in
from onnxopt.passes.lowrank._parts import Part, lost, merged
from onnxopt.passes.lowrank._timing import layer_seconds
from onnxopt.passes.quantize._judge import Judge
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

    def noise(self, wanted: Mapping[Part, Form]) -> float | None:
        """The noise at the outputs, in units of the signal, with these layers split; ``None`` if it is not known."""
        copied = self._context.editor.copy()
        _put(wanted, copied)
        return self.noise_of(copied.model)

    def noise_of(self, model: ir.Model) -> float | None:
        """The same of a model that was made of this one."""
        if self._judge is None:
            return None
        try:
            return min(self._judge.quality(Snapshot.of(model)).noise, _RUINED)
        except EngineError:
            return None

    def weigh(self, parts: Sequence[Part], options: Callable[[Part], Sequence[Form]]) -> None:
        """Find out what a loss in each layer does to the outputs, by splitting it alone in its middle form and in its
        smallest one."""
        for at, part in enumerate(parts, 1):
            if self._judge is None or not (choice := options(part)):
                continue
            if self._context.on_progress is not None:
                self._context.on_progress(f"what each layer does to the outputs, {at} of {len(parts)}")
            tried = []
            for form in dict.fromkeys((choice[len(choice) // 2], choice[0])):
                noise = self.noise({part: form})
                if noise is not None:
                    tried.append((lost(part.stages(form), part.judged), noise))
            part.tried = tuple(sorted(tried))

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

        model = self._context.editor.model
        try:
            before = layer_seconds(model, whole, self._feeds)
            after = layer_seconds(model, lambda copied: _put(wanted, copied), self._feeds)
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


def _put(wanted: Mapping[Part, Form], copied: Editor) -> dict[str, list[ir.Node]]:
    """Split these layers in a copy of the model; returns the nodes that each has then."""
    layers = found_in(copied, [part.layer for part in wanted])
    return {
        part.key: put_stages(layer.refits, merged(part.stages(form)), [None] * len(layer.refits), copied)
        for (part, form), layer in zip(wanted.items(), layers, strict=True)
    }
