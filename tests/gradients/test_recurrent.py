"""LSTM, GRU and RNN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from onnxopt.errors import GradientError
from onnxopt.gradients import gradient_graph
from tests import support
from tests.gradients.checks import Array, check_node

_RNG = np.random.default_rng(5)
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_DIRECTIONS = ["forward", "reverse", "bidirectional"]
T, N, SIZE, H = 4, 3, 5, 2


def _inputs(op: str, direction: str, *, times: int = T, without: Sequence[int] = ()) -> list[Array | None]:
    d, g = 1 + (direction == "bidirectional"), _GATES[op]
    shapes = [(times, N, SIZE), (d, g * H, SIZE), (d, g * H, H), (d, 2 * g * H), (N,), (d, N, H), (d, N, H), (d, 3 * H)]
    shapes = shapes if op == "LSTM" else shapes[:6]
    values: list[Array | None] = [_RNG.uniform(-1, 1, shape) for shape in shapes]
    values[4] = None
    return [None if i in without else x for i, x in enumerate(values)]


@pytest.mark.parametrize("direction", _DIRECTIONS)
@pytest.mark.parametrize("outputs", [(0,), (1,), (2,), (0, 1, 2), (0, 2)])
def test_lstm(direction: str, outputs: tuple[int, ...]) -> None:
    check_node("LSTM", *_inputs("LSTM", direction, without=[7]), outputs=outputs, direction=direction, hidden_size=H)


@pytest.mark.parametrize("direction", _DIRECTIONS)
@pytest.mark.parametrize("outputs", [(0,), (1,), (0, 1, 2)])
def test_lstm_with_peepholes(direction: str, outputs: tuple[int, ...]) -> None:
    check_node("LSTM", *_inputs("LSTM", direction), outputs=outputs, direction=direction, hidden_size=H)


def test_lstm_in_part() -> None:
    for wrt in range(8):
        if wrt != 4:
            check_node("LSTM", *_inputs("LSTM", "bidirectional"), wrt=[wrt], direction="bidirectional", hidden_size=H)


@pytest.mark.parametrize("opset", [18, 21, 22, 26])
@pytest.mark.parametrize("without", [[3, 5, 6, 7], [3, 7], [5], [6]])
@pytest.mark.parametrize("times", [1, 2])
def test_lstm_without(opset: int, without: list[int], times: int) -> None:
    check_node(
        "LSTM", *_inputs("LSTM", "reverse", times=times, without=without), opset=opset, direction="reverse",
        hidden_size=H,
    )  # fmt: skip


@pytest.mark.parametrize("direction", _DIRECTIONS)
@pytest.mark.parametrize("outputs", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("linear", [0, 1])
def test_gru(direction: str, outputs: tuple[int, ...], linear: int) -> None:
    inputs = _inputs("GRU", direction)
    check_node("GRU", *inputs, outputs=outputs, direction=direction, hidden_size=H, linear_before_reset=linear)


@pytest.mark.parametrize("opset", [18, 21, 22, 26])
@pytest.mark.parametrize("without", [[3, 5], [3], [5]])
@pytest.mark.parametrize("linear", [0, 1])
@pytest.mark.parametrize("times", [1, 2])
def test_gru_without(opset: int, without: list[int], linear: int, times: int) -> None:
    check_node(
        "GRU", *_inputs("GRU", "bidirectional", times=times, without=without), opset=opset, direction="bidirectional",
        hidden_size=H, linear_before_reset=linear,
    )  # fmt: skip


@pytest.mark.parametrize("direction", _DIRECTIONS)
@pytest.mark.parametrize("outputs", [(0,), (1,), (0, 1)])
def test_rnn(direction: str, outputs: tuple[int, ...]) -> None:
    check_node("RNN", *_inputs("RNN", direction), outputs=outputs, direction=direction, hidden_size=H)


@pytest.mark.parametrize("opset", [18, 21, 22, 26])
@pytest.mark.parametrize("without", [[3, 5], [3], [5]])
@pytest.mark.parametrize("times", [1, 2])
def test_rnn_without(opset: int, without: list[int], times: int) -> None:
    check_node(
        "RNN", *_inputs("RNN", "bidirectional", times=times, without=without), opset=opset, direction="bidirectional",
        hidden_size=H,
    )  # fmt: skip


def test_rnn_of_relu() -> None:
    inputs = dict(zip("xwrb_h", _inputs("RNN", "reverse", times=2), strict=True))
    feeds = {name: value.astype(np.float32) for name, value in inputs.items() if value is not None}
    layer = (
        f'y, h1 = RNN<hidden_size={H}, direction="reverse", activations=["Relu"]>(x, w, r, b, , h)'
        " a = ReduceSumSquare<keepdims=0>(y) loss = Add(a, a)"
    )
    written_out = """
        wt = Transpose<perm=[0,2,1]>(w) rt = Transpose<perm=[0,2,1]>(r) b0, b1 = Split<axis=1, num_outputs=2>(b)
        bias = Add(b0, b1) x0, x1 = Split<axis=0, num_outputs=2>(x)
        p1 = MatMul(x1, wt) q1 = MatMul(h, rt) a1 = Sum(p1, q1, bias) y1 = Relu(a1)
        p0 = MatMul(x0, wt) q0 = MatMul(y1, rt) a0 = Sum(p0, q0, bias) y0 = Relu(a0)
        y = Concat<axis=0>(y0, y1) a = ReduceSumSquare<keepdims=0>(y) loss = Add(a, a)"""
    arguments = ", ".join(f"float{list(value.shape)} {name}" for name, value in feeds.items())
    models = [support.graph(f"g ({arguments}) => (float loss) {{ {body} }}") for body in (layer, written_out)]
    found = [support.outputs(gradient_graph(model, "loss", list(feeds)).model, feeds) for model in models]
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


_REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("LSTM", {"layout": 1}, "its layout is 1"),
    ("LSTM", {"clip": 1.0}, "it clips"),
    ("GRU", {"layout": 1}, "its layout is 1"),
    ("GRU", {"clip": 1.0}, "it clips"),
    ("GRU", {"activations": ["HardSigmoid", "Tanh"]}, "its activations are hardsigmoid, tanh"),
    ("RNN", {"layout": 1}, "its layout is 1"),
    ("RNN", {"clip": 1.0}, "it clips"),
    ("RNN", {"activations": ["Affine"], "activation_alpha": [0.5], "activation_beta": [0.0]}, "are affine; only Tanh"),
    ("LSTM", {"input_forget": 1}, "coupled"),
    ("LSTM", {"activations": ["Sigmoid", "Tanh", "Relu"]}, "its activations are sigmoid, tanh, relu"),
]


@pytest.mark.parametrize(("op", "attributes", "reason"), _REFUSED)
def test_refused(op: str, attributes: dict[str, Any], reason: str) -> None:
    x, w, r, *_ = _inputs(op, "forward")
    with pytest.raises(GradientError, match=reason):
        check_node(op, x, w, r, hidden_size=H, **attributes)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_all_sequences_of_full_length(op: str) -> None:
    x, w, r, b, *_ = _inputs(op, "forward")
    names: dict[str, Any] = {"activations": ["sigmoid", "tanh", "TANH"]} if op == "LSTM" else {}
    check_node(op, x, w, r, b, np.full(N, T, np.int32), hidden_size=H, **names)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", _DIRECTIONS)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("lengths", [(T - 2, T, 1), (0, T, T - 1)])
def test_sequences_of_several_lengths(op: str, direction: str, known: bool, lengths: tuple[int, ...]) -> None:
    """As sequences that are cut off, each for itself."""
    names = [name for name in "xwrb_hcp" if name != "_"]
    values = [value for value in _inputs(op, direction) if value is not None]
    feeds = {name: value.astype(np.float32) for name, value in zip(names, values, strict=False)}
    outputs = ["y", "h1", "c1"] if op == "LSTM" else ["y", "h1"]
    d, state = len(feeds["w"]), (len(feeds["w"]), N, H)
    weights = {o: _RNG.standard_normal((T, d, N, H) if o == "y" else state).astype(np.float32) for o in outputs}

    def gradients(
        given: dict[str, Array], weights: dict[str, Array], lengths: Sequence[int] | None
    ) -> dict[str, Array]:
        arguments = [f"float{list(value.shape)} {name}" for name, value in given.items()]
        fixed: dict[str, Any] = {f"{o}_weights": value for o, value in weights.items()}
        fed: dict[str, Array] = dict(given)
        if lengths is not None:
            if known:
                fixed["lens"] = np.array(lengths, np.int32)
            else:
                fed["lens"] = np.array(lengths, np.int32)
                arguments.append(f"int32[{N}] lens")
        parts = " ".join(f"{o}_p = Mul({o}, {o}_weights) {o}_s = ReduceSum<keepdims=0>({o}_p)" for o in outputs)
        inputs = ["x", "w", "r", "b", "" if lengths is None else "lens", *[n for n in "hcp" if n in given]]
        layer = f'{op}<hidden_size={H}, direction="{direction}">({", ".join(inputs)})'
        total = f"loss = Sum({', '.join(f'{o}_s' for o in outputs)})"
        body = f"{', '.join(outputs)} = {layer} {parts} {total}"
        model = support.graph(f"g ({', '.join(arguments)}) => (float loss) {{ {body} }}", **fixed)
        loss, *found = support.outputs(gradient_graph(model, "loss", list(given)).model, fed)
        return {"loss": loss, **dict(zip(given, found, strict=True))}

    found = gradients(feeds, weights, lengths)
    expected = {name: np.zeros_like(value) for name, value in found.items()}
    for i, length in enumerate(lengths):
        if length == 0:
            continue
        one = slice(i, i + 1)
        cut = {**feeds, **{name: feeds[name][:, one] for name in "hc" if name in feeds}, "x": feeds["x"][:length, one]}
        cut_weights = {o: w[:length, :, one] if o == "y" else w[:, one] for o, w in weights.items()}
        for name, value in gradients(cut, cut_weights, None).items():
            place = (slice(length), one) if name == "x" else (slice(None), one) if name in ("h", "c") else ...
            expected[name][place] += value
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
