"""Results to report on, made by hand: every number is known, and nodes have names that nobody should trust."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.evaluation import Quality
from onnxopt.inspection import Comparison, OutputComparison, costs, inspect
from onnxopt.pass_base import Note, Report
from onnxopt.report import Optimized
from onnxopt.report.beside import Beside
from onnxopt.run_report import RunReport
from onnxopt.runtime import Ratio
from onnxopt.search.advise import Advice
from onnxopt.search.allocation import Plan
from onnxopt.search.auto import AutoResult
from onnxopt.search.budget import Budget, Found
from onnxopt.search.metric import Loss
from onnxopt.search.sensitivity import LowRankSensitivity, PruningSensitivity, Sensitivity
from onnxopt.search.space import Effect, GroupLevels, LayerLevels, Space
from onnxopt.search.trials import Measured
from onnxopt.search.verdicts import Finding
from tests import support

SCRIPT = "<script>alert(1)</script>"
IMAGE = "</script><img src=x onerror=\"document.title='taken'\">"
ENTITY = "&lt;b&gt; %{x} \" ' \u202e\x07"


def model(hidden: int = 16) -> ir.Model:
    """Two layers."""
    return support.graph(
        "g (float[N,2] x) => (float[N,3] y) { a = Gemm(x, w1) r = Relu(a) y = MatMul(r, w2) }",
        w1=np.ones((2, hidden), np.float32), w2=np.ones((hidden, 3), np.float32),
    )  # fmt: skip


SPACE = Space(
    groups=(
        GroupLevels(
            "wide", ("wide",), ("deep",), {0.25: Effect(0.002, 1e-4, 100, 400), 0.5: Effect(0.5, 2e-4, 200, 800)}
        ),
        GroupLevels("deep", ("deep",), (), {0.125: Effect(0.001, 1e-5, 10, 40)}),
    ),
    layers=(
        LayerLevels(
            SCRIPT, "Gemm", 1e-3, 1000, 4000, {0.25: Effect(0.004, 1e-6, 400, 900), 0.5: Effect(0.0, -5e-5, 300, 800)},
            {"int8": Effect(0.001, 4e-4, 0, 3000)},
        ),
        LayerLevels(IMAGE, "MatMul", 5e-4, 500, 2000, {}, {"int8": Effect(0.0005, 1e-5, 0, 1500)}),
        LayerLevels(ENTITY, "MatMul", 5e-4, 500, 2000, {}, {"int8": Effect(0.0005, 0.0, 0, 1500)}),
    ),
    seconds=2e-3, macs=2000.0, bytes=8000.0, left=(("last", "its channels are an output of the model"),),
)  # fmt: skip
PLAN = Plan((("wide", 0.25),), (), ((SCRIPT, "int8"), (IMAGE, "int8")))


def auto_result(*, holds: bool = True) -> AutoResult:
    """A search that found one model that holds 2 %, and faster ones: one loses more, one does so in the end."""

    def found(plan: Plan, drop: float, noise: float, ratio: float, nodes: tuple[str, ...] = ()) -> Found:
        loss = Loss(0.9, 0.9 - drop, drop - 0.005, drop + 0.005, 300)
        measured = Measured(plan, loss, noise, ratio, 800, 700, nodes, middle=(ratio - 0.02, ratio + 0.03))
        return Found(measured, ratio, ratio - 0.1, ratio + 0.1, ratio, noise)

    chosen = found(PLAN, 0.01, 0.05, 0.6, (SCRIPT,))
    others = [found(Plan(), 0.0, 1e-9, 0.98), found(Plan(prune=(("wide", 0.5),)), 0.2, 0.6, 0.4)]
    judged = replace(chosen, final=Loss(0.95, 0.942, 0.003, 0.013, 200))
    early = replace(found(Plan(precisions=((SCRIPT, "int8"),)), 0.0, 0.3, 0.5), final=Loss(0.95, 0.91, 0.03, 0.05, 200))
    every = [others[0], judged, others[1], early]
    return AutoResult(
        model=model(8), chosen=judged, holds=holds,
        problem="" if holds else "no model was found that surely loses at most 1.00%", found=every, pareto=every,
        recipe="description = ''", budget=Budget(max_drop=0.02, max_size=0.9), metric="accuracy", space=SPACE,
        evaluations=3, reused=1, seconds=12.5, before=costs(model()), recipes=str, models=lambda each: model(8),
    )  # fmt: skip


def optimized(kind: str = "optimize", budget: dict[str, float] | None = None) -> Optimized:
    """A run of two passes, one of which trains."""
    quality = Quality(64, {"y": 31.5}, {"y": 0.98}, {"y": (0.95, 0.94)})
    passes = [
        Report("fuse-gemm", (Note(SCRIPT, "fused"),), (Note(IMAGE, "others read it"),)),
        Report(
            "quantize-static", (Note(ENTITY, "computed with integers"),),
            facts=({"node": SCRIPT, "integer": True, "float_us": 5.0, "integer_us": 2.0, "alone_db": 40.0},
                   {"tensor": IMAGE, "range": "mse", "low": -1.0, "high": 2.0}),
        ),
        Report("distill", facts=tuple({"epoch": at, "loss": 1 / at, "best": at == 3} for at in (1, 2, 3))),
        Report("remove-dead"),
    ]  # fmt: skip
    report = RunReport(
        passes, verification="outputs equal on 2 probes", verified=True, quality={"quantize-static": quality},
        overall=quality,
    )  # fmt: skip
    beside = Beside(Ratio(0.5, 0.48, 0.53, 0.47), "agreement", Loss(1.0, 0.98, 0.01, 0.03, 64))
    return Optimized(report, costs(model()), costs(model(8)), beside, kind, budget or {})


def compared() -> Comparison:
    """Two models of which one output differs."""
    outputs = [
        OutputComparison(SCRIPT, True, "", None, 0.0, 1.0),
        OutputComparison(IMAGE, False, "moves by 0.1", 20.0, 0.1, 0.9),
    ]
    return Comparison(inspect(model()), inspect(model(8)), outputs, [], 2, 1, Ratio(0.5, 0.4, 0.6, 0.4))


def advice() -> Advice:
    """Two methods, of which one is refused."""
    lost = 0.0, -0.01, 0.01
    rows = (
        Finding("int8", "activations and weights in 8 bits", "use it", "", "measured", 0.5, 0.3, 1.0, *lost, SCRIPT),
        Finding("fp16", ENTITY, "refused", IMAGE, "", None, None, None, None, None, None, ""),
    )
    device = SCRIPT, "ort-cpu-vnni", "a CPU", True
    return Advice(*device, "latency", 0.01, "accuracy", 100, (IMAGE,), rows, SCRIPT, "it is best", 1.0)


SENSITIVITIES: dict[str, list[Any]] = {
    "int8": [Sensitivity(SCRIPT, "Conv", 10.0, 4.0, 30.0), Sensitivity(IMAGE, "Gemm", 5.0, 6.0, None)],
    "prune": [PruningSensitivity(ENTITY, 16, kept, kept / 64, kept / 80, 20.0 - kept) for kept in (12, 8, 4)],
    "low-rank": [LowRankSensitivity(SCRIPT, 4, 0.5, 0.01, 10.0, 6.0, 25.0)],
}
RESULTS: dict[str, Any] = {
    "auto": auto_result(), "auto-not-held": auto_result(holds=False), "optimize": optimized(),
    "distill": optimized("distill", {"max_drop": 0.001, "min_sqnr": 20.0}), "compare": compared(), "advise": advice(),
    **{f"sensitivity-{name}": rows for name, rows in SENSITIVITIES.items()},
}  # fmt: skip
"""Of every kind."""


class Parsed(HTMLParser):
    """The elements of a page, with their attributes and the text inside."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open, []).append(data)

    def count(self, tag: str) -> int:
        """How many elements of a kind there are."""
        return sum(each == tag for each, _ in self.elements)
