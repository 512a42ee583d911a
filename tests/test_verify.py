"""What counts as equal, and what does not."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.errors import DataError
from onnxopt.probes import find_probes
from onnxopt.runtime import Session, Snapshot, latency_ratio, latency_ratios
from onnxopt.verify import Reference
from tests.support import graph

RNG = np.random.default_rng(0)
W = RNG.standard_normal((64, 64)).astype(np.float32)
LINEAR = "g (float[N, 64] x) => (float[N, 64] y) {{ a = MatMul(x, w) y = {} }}"


def differences(before: ir.Model, after: ir.Model, **feeds: np.ndarray) -> str:
    reference = Reference.of(before, [feeds] if feeds else None)
    return "; ".join(str(d) for d in reference.differences(Snapshot.of(after)))


def linear(end: str, w: np.ndarray = W) -> ir.Model:
    return graph(LINEAR.format(end), w=w)


def test_another_order_of_summation_is_equal() -> None:
    halves = """g (float[N, 64] x) => (float[N, 64] y) {
        l, r = Split<axis = 1, num_outputs = 2>(x) a = MatMul(l, u) b = MatMul(r, v) c = Add(a, b) y = Relu(c)
    }"""
    after = graph(halves, u=W[:32], v=W[32:])
    reference = Reference.of(linear("Relu(a)"))
    assert reference.differences(Snapshot.of(after)) == []
    assert 0 < reference.worst < 1e-5, "the orders should differ in the last bits"


@pytest.mark.parametrize("relative", [1e-3, 1e-4])
def test_a_small_error_in_one_weight_is_seen(relative: float) -> None:
    wrong = W.copy()
    wrong[3, 5] += relative * np.abs(W).max() * 8
    assert "output 'y' on probe 0: moved by" in differences(linear("Relu(a)"), linear("Relu(a)", wrong))


def test_noise_is_per_output_and_relative_to_its_scale() -> None:
    """A tiny output beside a huge one: an error of its own size is found."""
    body = "g (float[N, 64] x) => (float[N, 64] big, float[N, 64] tiny) {{ big = Mul(x, k) tiny = {} }}"
    numbers: dict[str, Any] = {"k": np.array(1e6, np.float32)}
    numbers |= {"t": np.array(1e-6, np.float32), "u": np.array(1.001e-6, np.float32)}
    before, after = (graph(body.format(f"Mul(x, {c})"), **numbers) for c in "tu")
    assert "output 'tiny'" in differences(before, after)


def test_noise_of_weights_counts_where_inputs_are_whole_numbers() -> None:
    """What is left of numbers that cancel is as uncertain as they are."""
    body = "g (int64[N, 3] x) => (float[N, 3] y) {{ f = Cast<to = 1>(x) {} o = Mul(f, h) y = Sub(m, o) }}"
    numbers: dict[str, Any] = {"h": np.array(0.9999, np.float32)}
    two: dict[str, Any] = numbers | {"k": np.array(0.1, np.float32), "t": np.array(10, np.float32)}
    before = graph(body.format("s = Mul(f, k) m = Mul(s, t)"), **two)
    after = graph(body.format("m = Mul(f, u)"), u=np.array(1 + 2e-7, np.float32), **numbers)
    feeds = {"x": np.array([[3, 7, 11]])}
    assert differences(before, after, **feeds) == ""
    wrong = graph(body.format("m = Mul(f, u)"), u=np.array(1.0001, np.float32), **numbers)
    assert "moved by" in differences(before, wrong, **feeds)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("Cast<to = 10>(a)", "is float16"),
        ("Transpose(a)", "instead of float32"),
        ("Unsqueeze(a, zero)", "[1, "),
    ],
)
def test_types_and_shapes_must_agree(end: str, message: str) -> None:
    body = LINEAR.format(end).replace("float[N, 64] y", {"Cast": "float16[N, 64] y"}.get(end[:4], "float[A, B] y"))
    after = graph(body.replace("float[A, B]", "float[1, N, 64]" if "Uns" in end else "float[64, N]"), w=W,
                  zero=np.array([0]))  # fmt: skip
    assert message in differences(linear("Identity(a)"), after)


def test_nan_must_be_in_the_same_places() -> None:
    body = "g (float[N] x) => (float[N] y) {{ y = {} }}"
    before, after = graph(body.format("Sqrt(x)")), graph(body.format("Abs(x)"))
    assert "moved by inf" in differences(before, after, x=np.array([4.0, -4.0], np.float32))
    assert differences(before, before, x=np.array([4.0, -4.0], np.float32)) == ""


def test_integers_must_be_equal() -> None:
    body = "g (int64[N] x) => (int64[N] y) {{ y = {}(x, c) }}"
    before, after = (graph(body.format(op), c=np.array([1])) for op in ("Add", "Sub"))
    assert "moved by" in differences(before, after)


def test_missing_and_renamed_outputs_are_differences() -> None:
    body = "g (float[N] x) => (float[N] {0}) {{ {0} = Relu(x) }}"
    assert "stand where y stood" in differences(graph(body.format("y")), graph(body.format("z")))


def test_a_candidate_that_does_not_run_is_a_difference() -> None:
    body = "g (float[N, 4] x) => (float[N, 4] y) {{ y = Reshape(x, {}) }}"
    shapes: dict[str, Any] = {"a": np.array([-1, 4]), "b": np.array([2, 4])}
    assert "cannot be computed" in differences(*(graph(body.format(s), **shapes) for s in "ab"))


def test_integer_inputs_stay_inside_the_table_they_index() -> None:
    body = "g (int64[batch, seq] ids) => (float[batch, seq, 4] y) { i = Cast<to = 6>(ids) y = Gather(table, i) }"
    model = graph(body, table=np.zeros((7, 4), np.float32))
    model.graph.initializers["table"].shape = ir.Shape([7, 4])
    feeds = [p.feeds for p in find_probes(model, Session(Snapshot.of(model)))]
    ids = np.concatenate([f["ids"].reshape(-1) for f in feeds])
    assert ids.min() >= 0
    assert 2 < ids.max() < 7
    assert len({f["ids"].shape for f in feeds}) == len(feeds) == 2


def test_values_compared_with_constants_are_drawn_from_these() -> None:
    body = """g (float[N] x, int64 rate) => (float[N] y) {
        a = Equal(rate, k16) b = Equal(rate, k8) u = Cast<to = 1>(a) v = Cast<to = 1>(b) s = Sub(u, v) y = Mul(x, s)
    }"""
    model = graph(body, k16=np.array(16000), k8=np.array(8000))
    rates = {int(p.feeds["rate"]) for p in find_probes(model, Session(Snapshot.of(model)), count=3, seed=1)}
    assert rates <= {8000, 16000}


def test_sizes_on_which_the_original_does_not_run_are_dropped() -> None:
    body = "g (float[N, L] x) => (float[N, M, 64] y) { y = Reshape(x, s) }"
    model = graph(body, s=np.array([0, -1, 64]))
    feeds = [p.feeds for p in find_probes(model, Session(Snapshot.of(model)))]
    assert len(feeds) == 2
    assert all(f["x"].shape[1] % 64 == 0 for f in feeds)
    assert len({f["x"].shape[1] for f in feeds}) > 1


def test_no_probes_is_an_error_that_names_the_inputs() -> None:
    model = graph("g (float[N, 3] x) => (float[5, 7] y) { y = Reshape(x, s) }", s=np.array([5, 7]))
    with pytest.raises(DataError, match=r"x FLOAT \[N,3\]"):
        find_probes(model, Session(Snapshot.of(model)))


@pytest.mark.parametrize("swap", [False, True])
def test_latency_ratio_tells_the_slower_one(swap: bool) -> None:
    work = "MatMul(a, w) b = MatMul(y, w)".replace("y", "c").replace("b", "y")
    fast, slow = linear("Relu(a)"), graph(LINEAR.format("Relu(a)").replace("y = Relu(a)", "c = " + work), w=W)
    sessions = [Session(Snapshot.of(m), optimize=True, threads=1) for m in (fast, slow)]
    feeds = {"x": np.ones((2000, 64), np.float32)}
    first, second = reversed(sessions) if swap else sessions
    ratio = latency_ratio(first, second, feeds, seconds=0.3)
    assert ratio.low <= ratio.median <= ratio.high
    assert (ratio.median < 1) == swap


class Runner:
    """A session on a clock of the test's own."""

    threads = 1

    def __init__(self, now: list[float], *seconds: float) -> None:
        self._now, self._seconds, self.runs = now, seconds, 0

    def run(self, feeds: object) -> None:
        self._now[0] += self._seconds[self.runs % len(self._seconds)]
        self.runs += 1


def test_a_race_goes_on_with_those_alone_that_are_not_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("onnxopt.runtime.time.thread_time", lambda: now[0])
    monkeypatch.setattr("onnxopt.runtime.time.perf_counter", lambda: now[0])
    clear, noisy = Runner(now, 0.005), Runner(now, 0.008, 0.012)
    sessions: Any = [Runner(now, 0.01), clear, noisy]
    ratios = latency_ratios(sessions[0], sessions[1:], {}, seconds=100, rounds=60, precision=0.01)
    assert (clear.runs, noisy.runs) == (6, 61), "once to warm up"
    assert ratios[0].median == pytest.approx(0.5)
    assert ratios[1].low == pytest.approx(0.8)
    assert ratios[1].high == pytest.approx(1.2)
