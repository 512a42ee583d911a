"""``onnxopt auto`` and ``onnxopt pick``, from Python and from the command line."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.data import load_data, random_data
from onnxopt.errors import DataError, EngineError, OptionError, OutputError
from onnxopt.model import load, to_proto
from onnxopt.runtime import Session, Snapshot
from onnxopt.search import pareto
from onnxopt.search.auto import FITTED, KEPT, AutoResult, auto
from onnxopt.search.budget import Budget
from tests.command_line import CommandLine
from tests.support import graph

MODELS = Path(__file__).resolve().parents[2] / "models"
NET = MODELS / "cnn1d_mnist1d" / "model.onnx"
DATA = MODELS / "data" / "mnist1d_eval.npz"


@pytest.fixture
def onnxopt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


@pytest.fixture(scope="module")
def found() -> AutoResult:
    return auto(
        load(NET), data=DATA, budget=Budget(0.02, "size"), methods=("prune", "quantize"), train=False, time_budget=600
    )


def score(model: onnx.ModelProto, samples: Any) -> float:
    session = Session(Snapshot(model.SerializeToString(), None))
    right = [session.run(b.feeds)[0].argmax(-1) == b.labels for b in samples.batches()]
    return float(np.concatenate(right).mean())


def test_budget_holds_on_samples_that_nothing_was_chosen_by(found: AutoResult) -> None:
    fitted, rest = load_data(DATA, load(NET)).split(FITTED)
    compared, kept = rest.split(1 - KEPT)
    assert (len(fitted), len(compared)) == (400, 200)
    final = found.chosen.final
    assert final is not None
    assert final.samples == len(kept) == 400
    assert final.before == pytest.approx(score(onnx.load(NET), kept))
    assert final.after == pytest.approx(score(to_proto(found.model), kept), abs=0.006)  # runtimes round differently
    assert found.holds
    assert final.high <= 0.02 + 1e-9  # 8 of 400, but for rounding
    assert found.problem == ""


def test_other_samples_that_are_given_compare_and_judge() -> None:
    given, others = (
        {name: x[part] for name, x in np.load(DATA).items()} for part in (slice(0, 300), slice(300, 1000))
    )
    # Labels that are never right: on those that passes see, nothing can be lost.
    found = auto(
        load(NET), data=given | {"labels": given["labels"] + 10}, evaluation=others, budget=Budget(0.02, "size"),
        methods=("quantize",), train=False,
    )  # fmt: skip
    assert found.chosen.final is not None
    assert found.chosen.final.samples == round(KEPT * 700)
    assert found.chosen.measured.loss.samples == 700 - round(KEPT * 700)
    assert found.chosen.measured.loss.before > 0.9
    assert "data_share = 1.0" in found.recipe
    with pytest.raises(DataError, match="1500 are needed; give 2250"):
        auto(load(NET), data=given, evaluation=others, budget=Budget(0.002))


def test_costs_are_those_of_files(found: AutoResult) -> None:
    size = len(to_proto(found.model).SerializeToString()) / NET.stat().st_size
    assert found.chosen.size == pytest.approx(size, rel=0.05)
    assert found.chosen.size < 0.4
    likely = sorted(each.size for each in found.found if found.budget.is_likely(each.measured.loss))
    assert found.chosen.size in likely


def test_for_size_weights_alone_may_have_few_bits(found: AutoResult) -> None:
    large = [layer for layer in found.space.layers if layer.bytes > 1000]
    assert large
    for layer in large:
        four, eight = layer.precisions["weight-int4"], layer.precisions["weight-int8"]
        assert four.noise > eight.noise > 0
        assert layer.bytes > four.bytes > eight.bytes > 0.5 * layer.bytes
    assert any(each.measured.plan.of("weight-int4") for each in found.found)


def test_models_of_the_pareto_set_do_not_beat_each_other(found: AutoResult) -> None:
    costs = [each.size for each in found.pareto]
    drops = [each.measured.loss.drop for each in found.pareto]
    assert costs == sorted(costs, reverse=True)
    assert drops == sorted(drops)
    assert len(found.found) > len(found.pareto) > 1


def test_recipe_makes_the_same_model_without_a_search(
    found: AutoResult, tmp_path: Path, onnxopt: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.toml").write_text(found.recipe)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    onnxopt(
        "optimize", str(NET), "-o", str(tmp_path / "m.onnx"), "--recipe", str(tmp_path / "r.toml"), "--data", str(DATA)
    )
    assert onnx.load(tmp_path / "m.onnx") == to_proto(found.model)


def test_another_budget_takes_from_disk_what_is_known(found: AutoResult) -> None:
    said: list[str] = []
    again = auto(
        load(NET), data=DATA, budget=Budget(0.02, "size"), methods=("prune", "quantize"), train=False, time_budget=600,
        on_progress=said.append,
    )  # fmt: skip
    assert again.evaluations == 0
    assert again.reused > 10
    assert to_proto(again.model) == to_proto(found.model)


def test_what_cannot_be_held_is_said_and_the_nearest_returned() -> None:
    found = auto(
        load(NET), data=DATA, budget=Budget(0.02, "size", max_size=0.01), methods=("quantize",), time_budget=60
    )
    assert not found.holds
    assert "no model was found with latency of at most ×1.05 and size of at most ×0.01; the nearest" in found.problem


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"budget": {"max_drop": 0.001}}, DataError, "3000 are needed; give 7500"),
        ({"budget": {"max_drop": 0.0}}, OptionError, "max_drop is a share"),
        ({"budget": {"max_size": -1.0}}, OptionError, "max_size is a share of the original's above 0"),
        ({"budget": {"target": "speed"}}, OptionError, "target is one of latency, size, macs"),
        ({"methods": ("shrink",)}, OptionError, "methods are some of prune, split, quantize; got shrink"),
        ({"methods": ()}, OptionError, "needs methods"),
        ({"time_budget": 0}, OptionError, "time budget"),
        ({"workers": -1}, OptionError, "workers"),
        ({"metric": "precision"}, OptionError, "the metric is one of"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], error: type[Exception], said: str) -> None:
    if "budget" in options:
        with pytest.raises(error, match=said):
            auto(load(NET), data=DATA, **{**options, "budget": Budget(**options["budget"])})
        return
    with pytest.raises(error, match=said):
        auto(load(NET), data=DATA, **options)


def test_made_up_samples_promise_nothing() -> None:
    with pytest.raises(DataError, match="not made-up ones"):
        auto(load(NET), data=random_data(load(NET)))
    with pytest.raises(DataError, match="3 are too few"):
        auto(load(NET), data={"signal": np.zeros((3, 40, 1), np.float32)})


def test_model_on_which_nothing_can_be_done_stays() -> None:
    model = graph("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    x = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    found = auto(model, data={"x": x})
    assert found.holds
    assert str(found.chosen.measured.plan) == "cleanup alone"
    assert found.chosen.final is not None
    assert found.chosen.final.drop == 0


def test_metric_that_fails_on_some_models_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the scores of integers for broken, since they are on a grid."""
    (tmp_path / "moody.py").write_text(
        "import numpy as np\n"
        "def score(outputs, labels):\n"
        "    (y,) = outputs.values()\n"
        "    if len(np.unique(y)) < y.size / 2:\n"
        "        raise ValueError('what is this?')\n"
        "    return (y.argmax(-1) == labels).astype(float)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("moody", None)
    found = auto(
        load(NET), data=DATA, budget=Budget(0.03, "size"), methods=("quantize",), metric="moody:score", time_budget=60
    )
    assert found.metric == "moody:score"
    assert found.chosen.final is not None


def test_where_the_metric_fails_on_samples_that_are_kept_the_nearest_is_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels say which sample each is; on those that are kept, scores that are not the original's are an error."""
    content = dict(np.load(DATA))
    content["labels"] = content["labels"] + 10 * np.arange(len(content["labels"]))
    _, rest = load_data(content, load(NET)).split(FITTED)
    kept = np.concatenate([b.labels for b in rest.split(1 - KEPT)[1].batches() if b.labels is not None])
    (tmp_path / "fussy.py").write_text(
        "import numpy as np\n"
        f"KEPT, SEEN = set({kept.tolist()}), dict()\n"
        "def score(outputs, labels):\n"
        "    (y,) = outputs.values()\n"
        "    if labels[0] in KEPT and not np.allclose(y, SEEN.setdefault(labels[0], y), atol=1e-3):\n"
        "        raise ValueError('what is this?')\n"
        "    return (y.argmax(-1) == labels % 10).astype(float)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    budget = Budget(0.05, "size")
    found = auto(load(NET), data=content, budget=budget, methods=("quantize",), metric="fussy:score", train=False)
    assert found.problem == "the metric fussy:score failed: ValueError: what is this?"
    assert str(found.chosen.measured.plan) == "cleanup alone"
    assert found.holds


def test_executor_that_is_gone_ends_the_search_with_the_best_so_far() -> None:
    from concurrent.futures import Executor, Future

    class Broken(Executor):
        left = 4

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            self.left -= 1
            if self.left < 0:
                raise ConnectionError("nobody there")
            future: Future[Any] = Future()
            future.set_result(fn(*args, **kwargs))
            return future

    data = dict(np.load(DATA))
    data["signal"] = data["signal"] + np.float32(1e-3)  # other samples, of which nothing is known
    found = auto(load(NET), data=data, budget=Budget(0.02, "size"), methods=("prune",), executor=Broken())
    assert "lost 3 evaluations in a row" in found.problem
    assert found.holds

    data["signal"] = data["signal"] + np.float32(1e-3)
    gone = Broken()
    gone.left = 0
    with pytest.raises(EngineError, match="could not be measured"):
        auto(load(NET), data=data, budget=Budget(0.02), executor=gone)


@pytest.fixture(scope="module")
def folder(found: AutoResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("set") / "net.pareto"
    pareto.write(found, path)
    return path


def test_a_model_of_the_set_is_picked(folder: Path, tmp_path: Path, onnxopt: CommandLine) -> None:
    listed = onnxopt("pick", str(folder), "--json").json
    assert sum(each["chosen"] for each in listed["models"]) == 1
    sizes = [each["size"] for each in listed["models"]]
    middle = sorted(sizes)[len(sizes) // 2]
    one = tmp_path / "one.onnx"
    picked = onnxopt("pick", str(folder), "--max-size", f"×{middle}", "-o", str(one), "--json").json
    able = [each for each in listed["models"] if each["size"] <= middle]
    assert picked["drop_at_most"] == min(each["drop_at_most"] for each in able)
    assert one.stat().st_size / NET.stat().st_size == pytest.approx(picked["size"], rel=0.05)
    number = onnxopt("pick", str(folder), "--number", "1", "-o", str(one), "--force", "--json").json
    assert number == listed["models"][0]


def test_a_full_disk_is_one_line_and_nothing_is_searched_again(
    tmp_path: Path, onnxopt: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (
        "auto", str(NET), "--data", str(DATA), "--max-drop", "2%", "--target", "size", "--method", "quantize",
        "--no-train", "-o", str(tmp_path / "m.onnx"),
    )  # fmt: skip

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        answer = onnxopt(*arguments)
    assert answer.code == 2
    assert "No space left on device" in answer.err
    assert not list(tmp_path.iterdir())
    assert onnxopt(*arguments, "--json").json["holds"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-size", "0.001"), "no model of the set has size of at most ×0.001; the least size is ×0."),
        (("--max-drop", "0"), "surely loses at most 0.00%"),
        (("--number", "99"), "there is no model 99: they are 1 to"),
    ],
)
def test_what_is_not_in_the_set_is_said(
    options: tuple[str, ...], said: str, folder: Path, tmp_path: Path, onnxopt: CommandLine
) -> None:
    if options[0] == "--max-drop" and any(e.drop_at_most <= 0 for e in pareto.read(folder).models):
        options = ("--max-drop", "0", "--max-size", str(min(e.size for e in pareto.read(folder).models)))
    answer = onnxopt("pick", str(folder), *options, "-o", str(tmp_path / "m.onnx"))
    assert answer.code == 2
    assert said in answer.error


def test_a_folder_without_a_set_is_left_alone(found: AutoResult, tmp_path: Path, onnxopt: CommandLine) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    with pytest.raises(OutputError, match="holds no Pareto set, so it is not replaced"):
        pareto.write(found, tmp_path / "photos", force=True)
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"cat"
    assert "holds no Pareto set" in onnxopt("pick", str(tmp_path / "photos")).error
    (tmp_path / "photos" / "pareto.json").write_text("[]")
    assert "is not what onnxopt auto wrote" in onnxopt("pick", str(tmp_path / "photos")).error


def test_command_writes_model_recipe_and_set(tmp_path: Path, onnxopt: CommandLine) -> None:
    arguments = (
        "auto", str(NET), "--data", str(DATA), "--max-drop", "2%", "--target", "size", "--method", "quantize",
        "--no-train", "--time-budget", "60s", "-o", str(tmp_path / "m.onnx"),
    )  # fmt: skip
    answer = onnxopt(*arguments, "--json")
    assert answer.code == 0
    assert answer.json["holds"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.pareto", "m.toml"]
    assert "m.onnx exists" in onnxopt(*arguments).error
    shown = onnxopt(*arguments, "--force").out
    assert "holds." in shown
    failed = onnxopt(*arguments, "--force", "--max-size", "×0.01", "--json")
    assert failed.code == 1
    assert json.loads(failed.out)["model"].endswith("m.nearest.onnx")
    assert "the nearest model is" in failed.err
