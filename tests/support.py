"""What all tests share: models from text, one pass at a time, and the same-outputs check.

The oracle is ONNX Runtime with its optimizations off, on the model before the pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort

from onnxopt.graph import Editor
from onnxopt.model import copy, from_proto, to_proto
from onnxopt.pass_base import Context, Gate, Pass, Report
from onnxopt.probes import find_probes
from onnxopt.runtime import Feeds, Session, Snapshot
from onnxopt.traverse import graphs


def parse(text: str, **initializers: Any) -> ir.Model:
    """A model in ONNX's textual syntax, plus initializers that are too long to write out."""
    proto = onnx.parser.parse_model(text)
    for name, array in initializers.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return from_proto(proto)


def graph(
    body: str, *, opset: int = 18, ir_version: int = 8, extra: str = "", **initializers: Any
) -> ir.Model:
    """Like ``parse``, with the header written: ``body`` is ``"g (float[N] x) => (float[N] y) { … }"``."""
    return parse(f'<ir_version: {ir_version}, opset_import: ["" : {opset}{extra}]> {body}', **initializers)


def ops(model: ir.Model) -> list[str]:
    """The operators of the main graph in order."""
    return [node.op_type for node in model.graph]


def count_ops(model: ir.Model) -> Counter[str]:
    """How often each operator occurs, at any depth."""
    return Counter(node.op_type for g in graphs(model) for node in g)


def outputs(model: ir.Model, feeds: Feeds) -> list[Any]:
    """What ONNX Runtime computes with its optimizations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(
        to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(feeds)))


def assert_same_outputs(
    before: ir.Model, after: ir.Model, feeds: Mapping[str, Any] | None = None, *, tolerance: float = 1e-5
) -> None:
    """Both models give equal outputs: same types and shapes, floats within ``tolerance`` of the scale.

    Without ``feeds``, inputs are generated, over several sizes of the dynamic dims.
    """
    if feeds is not None:
        all_feeds = [feeds]
    else:
        all_feeds = [probe.feeds for probe in find_probes(before, Session(Snapshot.of(before)))]
    names = [value.name for value in before.graph.outputs]
    for each in all_feeds:
        for name, x, y in zip(names, outputs(before, each), outputs(after, each), strict=True):
            if not isinstance(x, np.ndarray):
                assert repr(x) == repr(y), f"output {name}"
                continue
            assert (x.dtype, x.shape) == (y.dtype, y.shape), f"output {name}"
            if x.dtype.kind == "f":
                scale = float(np.max(np.abs(x), initial=0.0, where=np.isfinite(x))) or 1.0
                np.testing.assert_allclose(y, x, rtol=tolerance, atol=tolerance * scale, err_msg=f"output {name}")
            else:
                np.testing.assert_array_equal(y, x, err_msg=f"output {name}")


def run(
    pass_: Pass, model: ir.Model, feeds: Mapping[str, Any] | None = None, *, verify: bool = True
) -> tuple[ir.Model, Report]:
    """Run one pass on a copy; check that the result is valid and, if the pass is exact, computes the same."""
    result = copy(model)
    report = pass_.run(Context(Editor(result), Gate()))
    onnx.checker.check_model(to_proto(result), full_check=True)
    if pass_.exact and verify:
        assert_same_outputs(model, result, feeds)
    if report.changed == 0:
        assert to_proto(result) == to_proto(model), "a pass that reports no change must not change anything"
    return result, report
