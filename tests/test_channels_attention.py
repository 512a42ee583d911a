"""Attentions that are one operator: whole heads, or the same features of every head, go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxopt.channels import Unit
from onnxopt.graph import attribute
from tests.channels_cases import Case
from tests.channels_oracle import (
    assert_removal_is_zeroing,
    draw,
    free,
    groups,
    reasons,
    remove,
    some_feeds,
    zero_members,
)
from tests.support import assert_same_outputs

HEAD = "(float[N,T,5] x) => (float[N,T,3] y)"
QKV = "q = MatMul(x, wq)\n k = MatMul(x, wk)\n v = MatMul(x, wv)\n"
SIZES = {"wq": (5, 12), "wk": (5, 12), "wv": (5, 12), "wo": (12, 3)}
MINE = "com.microsoft."


def case(made: str, free_: str, unit: Unit, inputs: str = HEAD, opset: int = 23, **weights: Any) -> Case:
    """``made`` makes ``o``, which ``wo`` reads."""
    return Case(f"{inputs} {{ {made}\n y = MatMul(o, wo) }}", {**SIZES, **weights}, free_, opset, unit)


MHA = f"{QKV} o = {MINE}MultiHeadAttention<num_heads = 4>(q, k, v"
SELF = f"o = {MINE}Attention<num_heads = 4>(x, wqkv, bqkv)"
MERGED: dict[str, Any] = {"wqkv": (5, 36), "bqkv": (36,)}
BY_FOUR = f"{QKV} q4 = Reshape(q, split)\n"
GROUPED: dict[str, Any] = {"wk": (5, 6), "wv": (5, 6)}
CASES = {
    "of the standard, features": case(
        f"{QKV} o = Attention<q_num_heads = 4, kv_num_heads = 4>(q, k, v)", "wq[1]:3 wv[1]:3", "channel"),
    "of the standard, heads": case(
        f"{QKV} o = Attention<q_num_heads = 4, kv_num_heads = 4>(q, k, v)", "wq[1]:4", "head"),
    "of the standard, with a mask of every head": case(
        f"{QKV} o = Attention<q_num_heads = 4, kv_num_heads = 4, is_causal = 1>(q, k, v, m)", "wq[1]:4", "head",
        m=(4, 2, 2)),
    "grouped, heads": case(
        f"{QKV} o = Attention<q_num_heads = 4, kv_num_heads = 2>(q, k, v)", "wq[1]:2", "head", **GROUPED),
    "grouped, features": case(
        f"{QKV} o = Attention<q_num_heads = 4, kv_num_heads = 2>(q, k, v)", "wq[1]:3 wv[1]:3", "channel", **GROUPED),
    "one key for all queries": case(
        f"{QKV} o = Attention<q_num_heads = 4, kv_num_heads = 1>(q, k, v)", "wq[1]:4", "head",
        wk=(5, 3), wv=(5, 3)),
    "values of another size": case(
        f"{QKV} o = Attention<q_num_heads = 4, kv_num_heads = 4, scale = 0.5>(q, k, v)", "wq[1]:3 wv[1]:2", "channel",
        wv=(5, 8), wo=(8, 3)),
    "four axes, scale of before": case(
        "q0 = MatMul(x, wq)\n v0 = MatMul(x, wv)\n q1 = Reshape(q0, split)\n q = Transpose<perm = [0, 2, 1, 3]>(q1)\n"
        "v1 = Reshape(v0, split)\n v = Transpose<perm = [0, 2, 1, 3]>(v1)\n a = Attention(q, q, v)\n"
        "t = Transpose<perm = [0, 2, 1, 3]>(a)\n o = Reshape(t, merge)", "wq[1]:3 wv[1]:3", "channel",
        split=[0, 0, 4, 3], merge=[0, 0, 12]),
    "MultiHeadAttention, features": case(f"{MHA})", "wq[1]:3 wv[1]:3", "channel"),
    "MultiHeadAttention, heads": case(f"{MHA})", "wq[1]:4", "head"),
    "MultiHeadAttention with a bias, features": case(f"{MHA}, b)", "wq[1]:3 wv[1]:3", "channel", b=(36,)),
    "MultiHeadAttention with a bias, heads": case(f"{MHA}, b)", "wq[1]:4", "head", b=(36,)),
    "MultiHeadAttention, positions of every head": case(f"{MHA}, , , m)", "wq[1]:4", "head", m=(1, 4, 2, 2)),
    "MultiHeadAttention, keys by heads": case(
        f"{QKV} k1 = Reshape(k, split)\n k4 = Transpose<perm = [0, 2, 1, 3]>(k1)\n v1 = Reshape(v, split)\n"
        f"v4 = Transpose<perm = [0, 2, 1, 3]>(v1)\n o = {MINE}MultiHeadAttention<num_heads = 4>(q, k4, v4)",
        "wq[1]:4", "head", split=[0, 0, 4, 3]),
    "Attention of ONNX Runtime, heads": case(SELF, "wqkv[1]:4", "head", **MERGED),
    "GroupQueryAttention": case(
        f"{QKV} o = {MINE}GroupQueryAttention<num_heads = 4, kv_num_heads = 2>(q, k, v, , , last, all)", "wq[1]:2",
        "channel", wq=(5, 32), wk=(5, 16), wv=(5, 16), wo=(32, 3), last=np.array([1, 1], np.int32),
        all=np.array(2, np.int32)),
    "GroupQueryAttention, with a bias and sinks of every head": case(
        f"{QKV} o = {MINE}GroupQueryAttention<num_heads = 4, kv_num_heads = 2>(q, k, v, , , last, all, , , , m, s)",
        "wq[1]:2", "head", wq=(5, 32), wk=(5, 16), wv=(5, 16), wo=(32, 3), last=np.array([1, 1], np.int32),
        all=np.array(2, np.int32), m=(1, 4, 2, 2), s=(4,)),
    "RotaryEmbedding of the standard": case(
        f"{QKV} r = RotaryEmbedding<num_heads = 4>(q, c, s, at)\n"
        "t = RotaryEmbedding<num_heads = 4>(k, c, s, at)\n"
        "o = Attention<q_num_heads = 4, kv_num_heads = 4>(r, t, v)", "wq[1]:4", "head",
        wq=(5, 16), wk=(5, 16), wv=(5, 16), wo=(16, 3), c=(3, 2), s=(3, 2), at=np.array([[0, 1], [1, 2]])),
    "RotaryEmbedding of ONNX Runtime": case(
        f"{QKV} r = {MINE}RotaryEmbedding<num_heads = 4>(q, at, c, s)\n"
        f"t = {MINE}RotaryEmbedding<num_heads = 4>(k, at, c, s)\n"
        f"o = {MINE}MultiHeadAttention<num_heads = 4>(r, t, v)", "wq[1]:4", "head",
        wq=(5, 16), wk=(5, 16), wv=(5, 16), wo=(16, 3), c=(3, 2), s=(3, 2), at=np.array([[0, 1], [1, 2]])),
}  # fmt: skip


@pytest.mark.parametrize("case_", [pytest.param(case_, id=name) for name, case_ in CASES.items()])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_operator(case_: Case, share: float) -> None:
    model = case_.model()
    assert free(model, case_.unit) == case_.free
    assert all(group.exact for group in groups(model, case_.unit) if not group.frozen)
    for seed in (0, 1):
        assert assert_removal_is_zeroing(model, seed, unit=case_.unit, share=share) > 0


def test_pairs_of_turned_features_stay_but_those_of_values_go() -> None:
    for name in ("RotaryEmbedding of the standard", "RotaryEmbedding of ONNX Runtime"):
        model = CASES[name].model()
        assert free(model) == "wv[1]:4"
        assert assert_removal_is_zeroing(model) == 2
    turned = case(
        "q = MatMul(x, wq)\n h = Reshape(q, split)\n t = Transpose<perm = [0, 2, 1, 3]>(h)\n"
        "r = RotaryEmbedding(t, c, s, at)\n u = Transpose<perm = [0, 2, 1, 3]>(r)\n o = Reshape(u, merge)",
        "", "channel", wq=(5, 16), wo=(16, 3), c=(3, 2), s=(3, 2), at=np.array([[0, 1], [1, 2]]), split=[0, 0, 4, 4],
        merge=[0, 0, 16],
    ).model()  # fmt: skip
    assert free(turned) == "wq[1]:4"  # heads, since features cannot go
    assert assert_removal_is_zeroing(turned) == 2


@pytest.mark.parametrize("sizes", [None, [12, 12, 8]])
def test_features_inside_of_attention_of_onnx_runtime(sizes: list[int] | None) -> None:
    # queries and keys are nowhere to be seen outside of the node: zeros can only be put in the weight
    values = 12 if sizes is None else sizes[2]
    attributes = "num_heads = 4" + (f", qkv_hidden_sizes = {sizes}" if sizes else "")
    text = SELF.replace("num_heads = 4", attributes)
    model = case(text, "", "channel", wqkv=(5, 24 + values), bqkv=(24 + values,), wo=(values, 3)).model()
    found = [group for group in groups(model) if not group.frozen]
    assert [group.size for group in found] == [3, values // 4]
    choice = {found[0].number: [0, 2], found[1].number: [1]}
    small = remove(model, choice)
    assert_same_outputs(zero_members(model, groups(model), choice), small, some_feeds(model))
    (node,) = [node for node in small.graph if node.op_type == "Attention"]
    assert attribute(node, "qkv_hidden_sizes") == (4, 4, values - 4)


def test_numbers_of_heads() -> None:
    for name, expected in (
        ("of the standard, heads", {"q_num_heads": 3, "kv_num_heads": 3}),
        ("grouped, heads", {"q_num_heads": 2, "kv_num_heads": 1}),
        ("one key for all queries", {"q_num_heads": 3, "kv_num_heads": 1}),
        ("MultiHeadAttention, heads", {"num_heads": 3}),
        ("Attention of ONNX Runtime, heads", {"num_heads": 3}),
        ("GroupQueryAttention", {"num_heads": 2, "kv_num_heads": 1}),
    ):
        model, unit = CASES[name].model(), CASES[name].unit
        (group,) = [group for group in groups(model, unit) if group.heads]
        (node,) = [node for node in remove(model, {group.number: [1]}, unit).graph if "Attention" in node.op_type]
        assert {key: attribute(node, key) for key in expected} == expected, name


def test_the_scale_stays_that_of_before() -> None:
    for name, features in (("of the standard, features", 3), ("MultiHeadAttention, features", 3)):
        model = CASES[name].model()
        found = [group for group in groups(model) if not group.frozen]
        (node,) = [node for node in remove(model, draw(found, 0)).graph if "Attention" in node.op_type]
        assert attribute(node, "scale") == pytest.approx(features**-0.5)
    model = CASES["of the standard, heads"].model()
    (node,) = [
        node for node in remove(model, draw(groups(model, "head"), 0), "head").graph if node.op_type == "Attention"
    ]
    assert attribute(node, "scale") is None


# -- keys and values of before -----------------------------------------------------------------------------------

PAST = "past_k, past_v"
WITH_PAST = "o, next_k, next_v = Attention<q_num_heads = 4, kv_num_heads = 4>(q, k, v, , {})"


def test_keys_of_before_are_cut_where_they_are_constant() -> None:
    model = case(
        QKV + WITH_PAST.format(PAST) + "\n z = MatMul(next_k, u)", "", "head",
        inputs="(float[N,T,5] x) => (float[N,T,3] y, float[N,H,P,2] z)", past_k=(2, 4, 1, 3), past_v=(2, 4, 1, 3), 
        u=(3, 2),
    ).model()  # fmt: skip
    # the output z has an axis of heads, but none of features
    assert free(model, "head") == "wq[1]:3 wv[1]:3"
    assert assert_removal_is_zeroing(model, unit="head") > 0
    inner = case(
        QKV + "o, now_k, now_v = Attention<q_num_heads = 4, kv_num_heads = 4>(q, k, v, , past_k, past_v)", "wq[1]:4",
        "head", past_k=(2, 4, 1, 3), past_v=(2, 4, 1, 3),
    ).model()  # fmt: skip
    assert free(inner, "head") == "wq[1]:4"
    assert assert_removal_is_zeroing(inner, unit="head") == 2


FROZEN = {
    "an interface with keys of before": (
        case(QKV + WITH_PAST.format("pk, pv"), "", "head",
             inputs="(float[N,T,5] x, float[N,4,P,3] pk, float[N,4,P,3] pv) => (float[N,T,3] y)"),
        "wq[1]", "the input 'pk' has this axis",
    ),
    "lengths of samples": (
        case(QKV + "o = Attention<q_num_heads = 4, kv_num_heads = 4>(q, k, v, , , , n)", "", "head", opset=24,
             n=[1, 2]), "wq[1]", "it takes lengths of samples",
    ),
    "queries, keys and values in one": (
        case(f"a = MatMul(x, wqkv)\n p = Reshape(a, split)\n o = {MINE}MultiHeadAttention<num_heads = 4>(p)", "",
             "head", wqkv=(5, 36), split=[0, 0, 4, 3, 3]), "wqkv[1]", "its queries, keys and values are one",
    ),
    "shared buffers": (
        case(f"{MHA}, , , , pk, pv, n)", "", "head", pk=(2, 4, 5, 3), pv=(2, 4, 5, 3), n=np.array([1], np.int32)),
        "wq[1]", "it shares buffers",
    ),
    "a bias where keys have an axis of heads": (
        case("q = MatMul(x, wq)\n k = MatMul(x, wk)\n k4 = Reshape(k, split)\n"
             f"o = {MINE}MultiHeadAttention<num_heads = 4>(q, k4, k4, b)", "", "head",
             split=[0, 4, -1, 3], b=(36,)), "wq[1]", "its bias belongs to several axes",
    ),
    "keys of before in Attention of ONNX Runtime": (
        case(SELF.replace("bqkv)", "bqkv, , p)"), "", "head", **MERGED, p=(2, 2, 4, 1, 3)), "wqkv[1]",
        "it keeps keys and values of before",
    ),
    "turned features": (
        case(SELF.replace("num_heads = 4", "num_heads = 4, do_rotary = 1"), "", "head", **MERGED), "wqkv[1]",
        "it turns pairs of features",
    ),
    "keys and values quantized": (
        case(f"{QKV} o = {MINE}GroupQueryAttention<num_heads = 4, kv_num_heads = 2>"
             "(q, k, v, , , last, all, , , , , , s, s)", "", "head",
             last=np.array([1, 1], np.int32), all=np.array(2, np.int32), s=(1,)), "wq[1]",
        "its keys and values of before are quantized",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("case_", "member", "why"), [pytest.param(*each, id=name) for name, each in FROZEN.items()])
def test_frozen_with_a_reason(case_: Case, member: str, why: str) -> None:
    assert free(case_.model(), case_.unit) == ""
    assert why in reasons(case_.model(), case_.unit)[member]
