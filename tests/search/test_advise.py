"""``onnxopt advise``, from Python and from the command line."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxopt as package
from onnxopt import cli
from onnxopt.api import optimize
from onnxopt.errors import DataError, OptionError
from onnxopt.macs import count_macs
from onnxopt.model import load, save, to_proto
from onnxopt.passes.quantize._targets import Device, detect, names, target
from onnxopt.runtime import Ratio
from onnxopt.search import advise as advising
from onnxopt.search import tryout
from onnxopt.search.advise import Advice, advise
from onnxopt.search.metric import Loss, Metric
from onnxopt.search.tryout import Trial, estimated, form_macs
from onnxopt.search.verdicts import VERDICTS, Finding, Judge
from onnxopt.search.ways import Goal, Way, ways
from tests.command_line import CommandLine
from tests.support import graph

MODELS = Path(__file__).resolve().parents[2] / "models"
NET = MODELS / "cnn1d_mnist1d" / "model.onnx"
RNG = np.random.default_rng(0)


@pytest.fixture
def onnxopt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model that is measured takes half of the time."""
    monkeypatch.setattr(tryout, "one_thread_ratio", lambda a, b, feeds, seconds: Ratio(0.5, 0.5, 0.5, 0.5))


def perceptron() -> Any:
    """Two layers, of which the first has 64 outputs."""
    w, v = (RNG.normal(size=size).astype(np.float32) / 8 for size in ((32, 64), (64, 10)))
    body = "g (float[N,32] x) => (float[N,10] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"
    return graph(body, w=w, v=v)


def samples(count: int = 400) -> dict[str, Any]:
    return {"x": np.random.default_rng(1).normal(size=(count, 32)).astype(np.float32)}


def by_name(found: Advice) -> dict[str, Finding]:
    return {each.method: each for each in found.findings}


def parsed(command: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command line makes of a command, which is not carried out."""
    seen: dict[str, Any] = {}

    def supervised(name: str, options: dict[str, Any], output: str | None = None) -> int:
        seen.update(options, command=name)
        return 0

    monkeypatch.setattr(cli, "_supervised", supervised)
    words = shlex.split(command)
    assert words[0] == "onnxopt"
    assert cli.run(words[1:]) == 0
    return seen


# -- devices ---------------------------------------------------------------------------------------------


def test_only_onnx_runtime_on_cpus_can_be_measured() -> None:
    assert [name for name in names() if target(name).device.measurable] == [
        "ort-cpu-arm", "ort-cpu-avx2", "ort-cpu-vnni",
    ]  # fmt: skip
    assert detect() in names()
    assert {name: target(name).device.goal for name in ("mobile", "generic", "tensorrt")} == {
        "mobile": "size", "generic": "size", "tensorrt": "latency",
    }  # fmt: skip


def test_profile_takes_from_another_what_it_does_not_say() -> None:
    mobile, arm = target("mobile"), target("ort-cpu-arm")
    assert mobile.operators == arm.operators
    assert mobile.device.times == arm.device.times
    assert not mobile.device.measurable


@pytest.mark.parametrize("device", names())
@pytest.mark.parametrize("goal", ["latency", "size"])
def test_every_pipeline_can_be_read_and_every_command_parsed(
    device: str, goal: Goal, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = advising._Commands("dir with space/m.onnx", "module:samples", goal, 0.02)
    for measured in {False, target(device).device.measurable}:
        for way in ways(device, goal, measured):
            own = {each.name for each in way.passes()}
            assert own.issuperset(way.own)
            options = parsed(commands.optimize(way, sampled=True), monkeypatch)
            assert options["command"] == "optimize"
            assert options["model"] == "dir with space/m.onnx"
            assert options["recipe"] == way.pipeline or options["passes"] == way.pipeline
            assert options["data"] == (None if way.exact else "module:samples")
            given = options["max_drop"]
            assert (given == 0.02) == any(hasattr(each, "max_drop") for each in way.passes())
    options = parsed(commands.auto(["prune", "quantize"]), monkeypatch)
    assert options["methods"] == ("prune", "quantize")
    assert (options["goal"] if "goal" in options else options["target"]) == goal


def test_what_the_device_cannot_do_is_said() -> None:
    found = {way.name: way for way in ways("tensorrt", "latency", False)}
    assert found["int8-dynamic"].why_not == "the device has no kernels that quantize activations at run time"
    assert found["low-rank"].why_not == "thinner layers are not faster on the device"
    assert not {way.name: way for way in ways("tensorrt", "size", False)}["low-rank"].why_not
    assert "sparse-2:4" in found
    assert "round_to=16" in found["prune-30"].pipeline
    assert "target=tensorrt,placement=all" in found["int8"].pipeline


# -- verdicts --------------------------------------------------------------------------------------------

LOST_NOTHING = Loss(0.95, 0.95, 0.0, 0.004, 600)
LOST_MUCH = Loss(0.95, 0.90, 0.03, 0.07, 600)
UNSURE = Loss(0.95, 0.948, -0.01, 0.02, 60)
PRUNED = Way("prune-30", "", "prune-30", ("prune-channels",), "nothing may go", True, "prune")
HALF = Way("fp16", "", "fp16", ("convert-fp16",), "nothing")
CLEAN = Way("cleanup", "", "cleanup", (), "nothing to do")


@pytest.mark.parametrize(
    ("way", "trial", "goal", "said"),
    [
        (PRUNED, Trial(latency=0.7, size=0.6, loss=LOST_NOTHING), "latency", "use it"),
        (PRUNED, Trial(latency=0.7, size=0.6, loss=LOST_NOTHING), "size", "use it"),
        (PRUNED, Trial(latency=1.3, size=0.6, loss=LOST_NOTHING), "size", "use it: but it takes ×1.30 of the time"),
        (PRUNED, Trial(latency=1.3, size=0.6, loss=LOST_NOTHING), "latency",
         "not worth it: it is slower, only the file is smaller"),
        (HALF, Trial(latency=0.89, size=0.5, loss=LOST_NOTHING), "latency",
         "not worth it: it is not faster, only the file is smaller"),
        (HALF, Trial(latency=0.5, size=0.98, loss=LOST_NOTHING), "size",
         "not worth it: the file is not smaller, only faster"),
        (PRUNED, Trial(latency=0.7, size=0.6, loss=LOST_MUCH), "latency",
         "not worth it: it loses 5.00% of accuracy; onnxopt auto looks for a milder form"),
        (HALF, Trial(latency=0.7, size=0.5, loss=LOST_MUCH), "latency", "not worth it: it loses 5.00% of accuracy"),
        (HALF, Trial(latency=0.7, size=0.5, loss=UNSURE), "latency",
         "try it: it loses 0.20% of accuracy, at most 2.00%: 60 samples are too few to be sure"),
        (HALF, Trial(latency=0.7, size=0.5), "latency",
         "try it: no metric tells what it costs: judge its outputs yourself"),
        (HALF, Trial("no such layer"), "latency", "refused: no such layer"),
        (HALF, Trial("the time was over", late=True), "latency", "not tried: the time was over"),
        (CLEAN, Trial(latency=0.9, size=1.0, loss=LOST_NOTHING), "latency", "use it"),
        (CLEAN, Trial(latency=1.0, size=1.0, loss=LOST_NOTHING), "latency",
         "not worth it: it is not faster, though it changes no output"),
        (HALF, Trial(latency=1.0, size=1.0, compressed=0.6, loss=LOST_NOTHING), "latency",
         "not worth it: zeros make nothing faster or smaller there: the file only compresses to ×0.60 of what it "
         "compresses to now"),
    ],
)  # fmt: skip
def test_verdicts(way: Way, trial: Trial, goal: Goal, said: str) -> None:
    """Ways must be better than cleanup alone, which takes nine tenths of the time."""
    judge = Judge(Device("latency"), True, True, "accuracy", goal, 0.01, Trial(latency=0.9, size=1.0))
    found = judge.finding(way, trial, "onnxopt …")
    assert found.told == said
    assert found.verdict in VERDICTS
    assert bool(found.command) == (found.verdict != "refused")


def test_what_is_slower_than_the_original_is_no_gain_where_cleanup_is_slower_still() -> None:
    judge = Judge(Device("latency"), True, True, "accuracy", "latency", 0.01, Trial(latency=1.1, size=1.0))
    found = judge.finding(PRUNED, Trial(latency=1.04, size=0.6, loss=LOST_NOTHING), "")
    assert found.told == "not worth it: it is not faster, only the file is smaller"


def test_what_is_estimated_is_called_so() -> None:
    device = Device("latency", times={"int8": 0.25, "fp16": 0.5})
    half = Trial(macs=1.0, forms={"fp16": 0.8}, loss=LOST_NOTHING)
    assert estimated(half, device) == pytest.approx(0.2 + 0.8 * 0.5)
    assert estimated(Trial(macs=0.5), device) == 0.5
    assert estimated(half, Device("size")) is None
    judge = Judge(device, False, True, "accuracy", "latency", 0.01, Trial(macs=1.0))
    found = judge.finding(HALF, half, "")
    assert (found.verdict, found.basis) == ("use it", "estimated")
    assert found.latency == pytest.approx(0.6)
    unknown = Judge(Device("size"), False, True, "accuracy", "latency", 0.01, Trial(macs=1.0))
    assert unknown.finding(HALF, half, "").told == "try it: how fast it is on the device has to be measured there"
    assert unknown.finding(HALF, half, "").basis == ""
    assert unknown.finding(HALF, Trial(macs=1.0, loss=LOST_MUCH), "").verdict == "not worth it"


@pytest.mark.parametrize(
    ("text", "form", "share"),
    [
        ("quantize-static{target=generic,placement=all}", "int8", 1.0),
        ("quantize-dynamic{where=everywhere,max_drop=1.0}", "int8", 2048 / 2688),
        ("convert-fp16", "fp16", 1.0),
        ("quantize-weights{min_elements=0,max_drop=1.0}", "weights4", 1.0),
        ("quantize-weights{min_elements=0,bits=8,form=dequantize-linear,max_drop=1.0}", "weights8", 1.0),
        ('prune-weights{pattern="2:4"}', "sparse", 1.0),
    ],
)
def test_forms_of_arithmetic(text: str, form: str, share: float) -> None:
    model = optimize(perceptron(), passes=text, data=samples(16), verify="off").model
    found = form_macs(model, count_macs(model).by_output, "2:4")
    assert set(found) <= {form}
    assert sum(found.values()) >= 2048 * share if share == 1.0 else found
    assert form_macs(perceptron(), count_macs(perceptron()).by_output, "2:4") == {}


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is split, which takes most of the time."""
    monkeypatch.setattr(advising, "ways", lambda *given: [way for way in ways(*given) if way.name != "low-rank"])


# -- the whole -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> Advice:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tryout, "one_thread_ratio", lambda a, b, feeds, seconds: Ratio(0.5, 0.5, 0.5, 0.5))
        return package.advise(perceptron(), data=samples(), target="size", metric="agreement", max_drop=0.05)


def test_methods_are_ranked_and_commands_can_be_run(found: Advice, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [VERDICTS.index(each.verdict) for each in found.findings]
    assert ranks == sorted(ranks)
    used = [each.size for each in found.findings if each.verdict == "use it"]
    assert used == sorted(used, key=lambda size: size or math.inf)
    assert {each.method for each in found.findings} == {
        "cleanup", "int8", "int8-dynamic", "int8-weights", "int4-weights", "fp16", "prune-30", "prune-50", "low-rank",
        "sparse",
    }  # fmt: skip
    for each in found.findings:
        assert bool(each.command) == (each.verdict != "refused")
        if each.command:
            assert parsed(each.command, monkeypatch)["model"] == "MODEL"
    half = by_name(found)["fp16"]
    assert (half.verdict, half.basis, half.latency) == ("use it", "measured", 0.5)
    assert half.size == pytest.approx(0.5, abs=0.1)
    assert half.drop is not None
    assert half.drop_at_most is not None
    assert half.drop <= half.drop_at_most <= 0.05
    assert by_name(found)["prune-50"].macs == pytest.approx(0.5, abs=0.1)
    assert (found.metric, found.samples, found.target, found.max_drop) == ("agreement", 200, "size", 0.05)
    assert by_name(found)["cleanup"].reason == "it finds nothing to do"
    assert parsed(found.recommended, monkeypatch)["model"] == "MODEL"


def test_model_stays_and_what_was_measured_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    model = perceptron()
    before = to_proto(model).SerializeToString()
    first = advise(model, data=samples(64), device="mobile", metric="noise")
    assert to_proto(model).SerializeToString() == before

    def again(*_: Any) -> Any:
        raise AssertionError("it was measured before")

    monkeypatch.setattr(tryout.Tries, "_run", again)
    with pytest.raises(AssertionError):
        advise(model, data=samples(32), device="mobile", metric="noise")
    monkeypatch.setattr(advising, "_samples", lambda given, *_: given.split(0.5))
    assert advise(model, data=samples(64), device="mobile", metric="noise").findings == first.findings


def test_refusals_give_the_reason_of_the_pass() -> None:
    model = graph("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    found = by_name(advise(model, data={"x": x}))
    assert {each.verdict for each in found.values()} <= {"refused", "not worth it"}
    assert found["prune-30"].told == "refused: no layer that may be changed has channels that can be removed"
    assert found["low-rank"].told == "refused: no layer is split: the model has no operator that it is for"
    assert found["int8"].told == "refused: it has no node that the target computes with integers"
    found = by_name(advise(perceptron(), data=samples(64)))
    assert found["int8-weights"].reason == (
        "no weight is stored in 8 bits: h: its weight has 2048 elements, fewer than 131072 (min_elements); "
        "y: its weight has 640 elements, fewer than 131072 (min_elements)"
    )
    assert not found["int8-weights"].command


def test_nothing_to_gain_is_said() -> None:
    model = graph("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    found = advise(model, data={"x": np.ones((16, 3), np.float32)}, device="generic")
    assert found.recommended == ""
    assert found.why == "nothing that was tried is worth it: leave the model as it is"


def test_without_samples_no_loss_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = advise(perceptron())
    assert (found.metric, found.samples) == (None, 0)
    assert all(each.drop is None for each in found.findings)
    assert "no samples were given" in found.notes[0]
    half, pruned = by_name(found)["fp16"], by_name(found)["prune-50"]
    assert half.basis == "measured"
    assert "--data" not in half.command
    if pruned.verdict == "try it":  # it is timed here, and may be found to be slower
        assert pruned.basis == "estimated"
        assert pruned.reason == "what it costs is not known without samples: give --data"
    assert "--data SOURCE" in pruned.command or pruned.verdict == "refused"
    assert parsed(found.recommended, monkeypatch)["model"] == "MODEL"
    assert not [each for each in found.findings if each.verdict == "use it" and each.method != "cleanup"]


def test_other_devices_are_estimated() -> None:
    found = advise(perceptron(), data=samples(64), device="tensorrt", metric="noise")
    assert not found.measured
    assert "tensorrt is not this machine" in found.notes[-1]
    rows = by_name(found)
    assert {each.basis for each in found.findings} == {"estimated", ""}
    assert rows["fp16"].latency == pytest.approx(0.5)
    assert rows["int8"].latency == pytest.approx(0.25)
    assert rows["low-rank"].told == "not worth it: thinner layers are not faster on the device"
    assert rows["sparse-2:4"].latency == pytest.approx(0.5, abs=0.01)
    assert "onnxopt auto" not in found.recommended
    unknown = by_name(advise(perceptron(), data=samples(64), device="generic", metric="noise"))
    assert {each.latency for each in unknown.values()} == {None}
    assert unknown["fp16"].size == pytest.approx(0.5, abs=0.1)


def test_command_gives_the_model_that_was_measured(tmp_path: Path, onnxopt: CommandLine) -> None:
    save(perceptron(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", **samples(64))
    answer = onnxopt(
        "advise", tmp_path / "m.onnx", "--data", tmp_path / "d.npz", "--target-device", "generic", "--json",
        "--report", tmp_path / "r.html",
    )  # fmt: skip
    assert answer.code == 0
    assert answer.err == ""
    assert answer.json.keys() == {
        "model", "device", "description", "measured", "target", "max_drop", "metric", "samples", "notes", "findings",
        "recommended", "why", "seconds",
    }  # fmt: skip
    (row,) = (each for each in answer.json["findings"] if each["method"] == "fp16")
    assert row.keys() == {
        "method", "about", "verdict", "reason", "basis", "latency", "size", "macs", "drop", "drop_at_least",
        "drop_at_most", "command",
    }  # fmt: skip
    assert (tmp_path / "r.html").exists()
    ran = onnxopt(*shlex.split(row["command"])[1:])
    assert ran.code == 0
    size = (tmp_path / "m.fp16.onnx").stat().st_size / (tmp_path / "m.onnx").stat().st_size
    assert size == pytest.approx(row["size"], rel=0.1)


def test_table_shows_the_same(tmp_path: Path, onnxopt: CommandLine) -> None:
    save(perceptron(), tmp_path / "m.onnx")
    answer = onnxopt("advise", tmp_path / "m.onnx", "--target-device", "generic")
    assert answer.code == 0
    assert "m.onnx on generic (any runtime that reads" in answer.out
    assert "fp16: try it: what it costs is not known without samples: give --data\n    onnxopt optimize" in answer.out
    assert "Note: no samples were given" in answer.out
    assert "Recommended: " in answer.out


@pytest.mark.usefixtures("_quick")
def test_bundled_model_with_outputs_that_no_metric_fits() -> None:
    folder = MODELS / "pipeline_mnist1d"
    data = {name: x[:64] for name, x in np.load(folder / "eval.npz").items()}
    found = advise(load(folder / "model.onnx"), data=data, device="generic")
    assert found.metric is None
    assert "no metric fits the outputs" in found.notes[0]
    assert by_name(found)["fp16"].reason == "no metric tells what it costs: judge its outputs yourself"


@pytest.mark.usefixtures("_quick")
def test_bundled_net_loses_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {name: x[:200] for name, x in np.load(MODELS / "data" / "mnist1d_eval.npz").items()}
    found = package.advise(str(NET), data=data, device="mobile")
    assert (found.metric, found.samples) == ("accuracy", 100)
    rows = by_name(found)
    assert rows["int8"].size is not None
    assert rows["int8"].size < 0.4
    assert rows["prune-50"].macs == pytest.approx(0.5, abs=0.1)
    assert found.findings[0].verdict in ("use it", "try it")
    assert parsed(found.recommended, monkeypatch)["model"] == str(NET)


def test_time_that_is_over_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = advise(perceptron(), data=samples(48), metric="noise", time_budget=1e-9)
    assert {each.verdict for each in found.findings} == {"not tried"}
    assert found.recommended == ""
    assert "give more time" in found.why


def test_pass_that_fails_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise DataError("these will not do")

    monkeypatch.setattr("onnxopt.passes.quantize.quantize_static.QuantizeStatic.run", broken)
    found = by_name(advise(perceptron(), data=samples(40), device="generic", metric="noise"))
    assert found["int8"].told == "refused: these will not do"




def finding(method: str, latency: float, verdict: Any = "use it", drop: float | None = 0.0) -> Finding:
    return Finding(method, "", verdict, "", "measured", latency, 1.0, 1.0, drop, drop, drop, f"run {method}")


@pytest.mark.parametrize(
    ("found", "samples", "measured", "command", "why"),
    [
        ([finding("int8", 0.5), finding("prune-30", 0.8, "not worth it")], 1000, True,
         "onnxopt auto MODEL -o MODEL.auto.onnx --data d.npz --target latency --max-drop 0.01 --method quantize "
         "--method prune", "combines"),
        ([finding("prune-30", 0.8, "not worth it")], 1000, True, "--method prune", "combines"),
        ([finding("int8", 0.5)], 100, True, "run int8", "with 750 samples onnxopt auto"),
        ([finding("int8", 0.5)], 1000, False, "run int8", "int8 is the best"),
        ([finding("int8-dynamic", 0.5), finding("int8", 0.8)], 1000, True, "run int8-dynamic", "the best"),
        ([finding("prune-50", 0.5, "try it", None), finding("int8", 0.6, "try it", None)], None, True,
         "--method prune --method quantize", "with samples"),
        ([finding("prune-50", 0.5, "try it", None), finding("fp16", 0.6, "try it", None)], None, False, "run fp16",
         "though what it costs is not known"),
        ([finding("prune-50", 0.5, "try it", None)], None, False, "run prune-50", "what it costs is not known"),
        ([finding("prune-50", 0.5, "not worth it", 0.2)], 100, True, "", "with 750 samples"),
        ([finding("cleanup", 0.9)], 1000, True, "run cleanup", "the best"),
        ([finding("cleanup", 0.9), finding("prune-30", 0.89, "not worth it")], 1000, True, "run cleanup", "the best"),
        ([finding("fp16", 1.0, "not worth it")], 1000, True, "", "leave the model as it is"),
    ],
)  # fmt: skip
def test_recommended(found: list[Finding], samples: int | None, measured: bool, command: str, why: str) -> None:
    commands = advising._Commands("MODEL", "d.npz", "latency", None)
    metric = None if samples is None else Metric("accuracy", lambda *_: np.zeros(1), lambda means: means, counts=True)
    possible = ways("ort-cpu-vnni", "latency", True)
    got, reason = advising._recommended(found, possible, commands, measured, "latency", metric, samples)
    assert got.endswith(command)
    assert bool(got) == bool(command)
    assert why in reason


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"device": "tensorfast"}, OptionError, "no target is called 'tensorfast'"),
        ({"goal": "speed"}, OptionError, "target is latency or size, got 'speed'"),
        ({"max_drop": 2.0}, OptionError, "max_drop is a share"),
        ({"time_budget": 0}, OptionError, "time budget"),
        ({"metric": "precision"}, OptionError, "the metric is one of"),
        ({"metric": "accuracy"}, DataError, "needs labels"),
        ({"data": {"x": np.zeros((1, 32), np.float32)}}, DataError, "cannot be split"),
        ({"data": {"z": np.zeros((4, 32), np.float32)}}, DataError, "no array for the input 'x'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        advise(perceptron(), **{"data": samples(8), **options})


def test_unknown_device_is_one_line(tmp_path: Path, onnxopt: CommandLine) -> None:
    save(perceptron(), tmp_path / "m.onnx")
    answer = onnxopt("advise", tmp_path / "m.onnx", "--target-device", "tensort")
    assert answer.code == 2
    assert answer.error.startswith("no target is called 'tensort'; did you mean 'tensorrt'?")
