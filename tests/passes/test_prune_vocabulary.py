"""``prune-vocabulary``: kept ids give the same bits, removed ones those of the unknown id, every refusal says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from models._common import samples
from onnxopt.data import random_data
from onnxopt.errors import OptionError
from onnxopt.graph import Editor
from onnxopt.model import copy, load, to_proto
from onnxopt.pass_base import Context, Report
from onnxopt.passes.prune.prune_vocabulary import PruneVocabulary
from onnxopt.recipes import parse_pipeline
from tests import pruning
from tests.pruning import refusals
from tests.support import graph, outputs

MODELS = Path(__file__).parents[2] / "models"
TABLE = np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32)
IDS = np.array([[3, 7, 3], [49, 1, 7]])
USED = [0, 1, 3, 7, 49]
"""With 0 for the unknown."""


def prune(before: ir.Model, data: Any = None, **options: Any) -> tuple[ir.Model, Report]:
    return pruning.prune(PruneVocabulary(**{"unknown": 0, **options}), before, data)


def model(body: str = "y = Gather(table, ids)", ins: str = "int64[N,T] ids", **options: Any) -> ir.Model:
    outs = options.pop("outs", "float[N,T,16] y")
    return graph(f"g ({ins}) => ({outs}) {{ {body} }}", **{"table": TABLE, **options})


def rows(after: ir.Model, name: str = "table") -> int:
    tensor = after.graph.initializers[name].const_value
    assert tensor is not None
    return int(tensor.shape.numpy()[0])


# -- what is left --------------------------------------------------------------------------------------------------


def expected(ids: np.ndarray[Any, Any], kept: list[int], unknown: int = 0) -> np.ndarray[Any, Any]:
    """The oracle: the rows of the whole table, with the unknown id in place of those that are gone."""
    return TABLE[np.where(np.isin(ids % 50, kept), ids % 50, unknown)]


@pytest.mark.parametrize("options", [{}, {"keep": (1, 3, 7, 49)}])
def test_kept_ids_give_the_same_bits(options: dict[str, Any]) -> None:
    before = model()
    after, report = prune(before, {"ids": IDS}, **options)
    assert rows(after) == len(USED)
    everything = np.arange(-50, 50).reshape(10, 10)  # Gather counts negative ids from the end
    np.testing.assert_array_equal(outputs(after, {"ids": everything})[0], expected(everything, USED))
    assert [dict(fact) for fact in report.facts] == [{"node": "y", "rows": 50, "kept": 5, "bytes": 45 * 64 - 296}]
    less = len(to_proto(before).SerializeToString()) - len(to_proto(after).SerializeToString())
    assert less >= report.facts[0]["bytes"]  # type: ignore[operator]


def test_ids_out_of_range_are_errors_as_before() -> None:
    before = model()
    for each in (before, prune(before, {"ids": IDS})[0]):
        with pytest.raises(Exception, match="must be within the inclusive range"):
            outputs(each, {"ids": np.array([[50]])})


def test_the_unknown_id_is_a_choice() -> None:
    after, _ = prune(model(), {"ids": IDS}, unknown=7)
    np.testing.assert_array_equal(outputs(after, {"ids": np.array([[2]])})[0], expected(np.array([[2]]), [7], 7))
    assert rows(after) == 4


def test_negative_ids_occur_from_the_end() -> None:
    after, _ = prune(model(), {"ids": np.array([[-1, -50, 2]])})
    np.testing.assert_array_equal(outputs(after, {"ids": np.array([[49, 0, 2]])})[0], TABLE[[[49, 0, 2]]])
    assert rows(after) == 3


def test_two_inputs_that_share_a_table() -> None:
    body = "a = Gather(table, ids) b = Gather(table, other) y = Add(a, b)"
    before = model(body, "int64[N,T] ids, int64[N,T] other")
    after, report = prune(before, {"ids": IDS, "other": IDS - 2})
    feeds = {"ids": IDS, "other": IDS - 2}
    assert report.changed == 1
    assert rows(after) == len({0, *IDS.reshape(-1), *((IDS - 2) % 50).reshape(-1)})
    np.testing.assert_array_equal(outputs(after, feeds)[0], outputs(before, feeds)[0])


def test_ids_on_a_way_that_leaves_them_as_they_are() -> None:
    before = model("c = Cast<to=6>(ids) t = Transpose(c) y = Gather(table, t)", outs="float[T,N,16] y")
    after, _ = prune(before, {"ids": IDS})
    assert rows(after) == len(USED)
    np.testing.assert_array_equal(outputs(after, {"ids": IDS})[0], TABLE[IDS.T])


def test_a_quantized_table() -> None:
    table = np.random.default_rng(0).integers(-128, 127, (50, 16)).astype(np.int8)
    before = model("q = Gather(table, ids) y = DequantizeLinear(q, scale)", table=table, scale=np.float32(0.1))
    after, report = prune(before, {"ids": IDS})
    assert report.facts[0]["bytes"] == 45 * 16 - 296
    np.testing.assert_array_equal(outputs(after, {"ids": IDS})[0], outputs(before, {"ids": IDS})[0])


def test_a_trained_transformer() -> None:
    before = load(MODELS / "transformer_sentiment" / "model.onnx")
    train, _ = samples("sentiment_text", "train")
    ids = train[:1000]
    after, report = prune(before, {"input_ids": ids}, unknown=1)
    assert report.changed == 1
    assert rows(after, "words.weight") == len(np.union1d(ids, [1]))
    np.testing.assert_array_equal(
        outputs(after, {"input_ids": ids[:64]})[0], outputs(before, {"input_ids": ids[:64]})[0]
    )
    unseen = train[1000:1064]
    replaced = np.where(np.isin(unseen, ids), unseen, 1)
    assert (unseen != replaced).any()
    np.testing.assert_array_equal(outputs(after, {"input_ids": unseen})[0], outputs(before, {"input_ids": replaced})[0])
    assert "'places'" not in refusals(report)


# -- what stays ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "options", "why"),
    [
        pytest.param(
            model("h = Gather(table, ids) t = Transpose(table) y = MatMul(h, t)", outs="float[N,T,50] y"), {},
            "h: Transpose 't' reads all rows of 'table', as for the scores of words", id="tied to the output",
        ),
        pytest.param(
            model("y = Gather(table, ids) z = Gather<axis=1>(table, ids)", outs="float[N,T,16] y, float[50,N,T] z"), {},
            "Gather 'z' reads all rows", id="taken along the other axis too",
        ),
        pytest.param(
            model("y = Gather(table, ids) z = Gather(table, one)", outs="float[N,T,16] y, float[16] z",
                  one=np.array(1)),
            {}, "Gather 'z' reads all rows", id="a row taken by itself",
        ),
        pytest.param(
            model("y = Gather(table, ids)", outs="float[N,T,16] y, float[50,16] table"), {},
            "y: 'table' is an output too", id="an output",
        ),
        pytest.param(
            model("s = Shape(ids) n = Gather<axis=0>(s, one) r = Range(zero, n, step) y = Gather(table, r)",
                  outs="float[T,16] y", one=np.array(1), zero=np.array(0), step=np.array(1)), {},
            "y: its ids are computed by Range 'r', and not given as an input", id="places",
        ),
        pytest.param(model(), {"unknown": 50}, "unknown: 'table' has the ids 0 to 49, not 50", id="no such unknown"),
        pytest.param(model(), {"keep": (3, 99)}, "keep: 'table' has the ids 0 to 49, not 99", id="no such id"),
        pytest.param(model(), {"keep": tuple(range(50))}, "y: all ids of 'table' occur", id="all kept"),
        pytest.param(
            model(), {"keep": tuple(range(47))},
            "the 3 rows of 'table' whose ids do not occur take 192 bytes, and the table of new ids would take 296",
            id="not worth it",
        ),
        pytest.param(
            model("y = Gather(table, ids)", outs="float[N,T] y", table=TABLE[:, 0].copy()), {},
            "model: there is no embedding", id="numbers, not rows",
        ),
        pytest.param(
            model("y = Gather<axis=1>(table, ids)", outs="float[50,N,T] y"), {},
            "model: there is no embedding", id="columns",
        ),
    ],
)  # fmt: skip
def test_what_stays(before: ir.Model, options: dict[str, Any], why: str) -> None:
    _, report = prune(before, {"ids": IDS}, **options)
    assert report.changed == 0
    assert why in refusals(report)


def test_ids_that_are_computed_in_a_function() -> None:
    before = graph(
        """g (int64[N] ids) => (float[N,2] y) { y = local.f(ids) }
        <domain: "local", opset_import: ["" : 18]> f (i) => (r)
        { t = Constant<value = float[3,2] {1, 2, 3, 4, 5, 6}>() r = Gather(t, i) }""",
        extra=', "local" : 1',
    )
    _, report = prune(before, {"ids": np.array([0, 1])})
    assert "its ids are not an input of the model" in refusals(report)


def test_it_must_be_known_which_ids_occur() -> None:
    _, report = prune(model())
    assert "y: which ids occur is not known: give samples as data (--data), or list them in keep" in refusals(report)
    before = model()
    context = Context(Editor(copy(before)), data=random_data(before, 8))
    assert "random data do not tell which ids occur" in refusals(PruneVocabulary(unknown=0).run(context))
    assert PruneVocabulary(unknown=0, keep=(1,)).run(context).changed == 1


def test_an_excluded_embedding_stays() -> None:
    body = "a = Gather(table, ids) b = Gather(second, ids) y = Add(a, b)"
    after, _ = prune(model(body, second=TABLE.copy()), {"ids": IDS}, exclude=("b",))
    assert (rows(after), rows(after, "second")) == (5, 50)


def test_options() -> None:
    assert parse_pipeline("prune-vocabulary{unknown=1,keep=[0,5]}") == [PruneVocabulary(unknown=1, keep=(0, 5))]
    wrong: list[dict[str, Any]] = [{"unknown": -1}, {"unknown": 0, "keep": (3, -2)}]
    for options in wrong:
        with pytest.raises(OptionError, match="an id is a number from 0 on, got -"):
            PruneVocabulary(**options)
    with pytest.raises(OptionError, match="unknown"):
        parse_pipeline("prune-vocabulary")
