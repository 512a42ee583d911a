"""What holds of every pass of the catalogue, also of tomorrow's."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxopt.passes
from onnxopt.data import random_data
from onnxopt.graph import Editor
from onnxopt.model import copy, to_proto
from onnxopt.pass_base import Context, Gate, Pass, Report
from onnxopt.passes import ALL
from onnxopt.pipeline import interface
from onnxopt.recipes import find, parse_pipeline
from onnxopt.traverse import graphs
from tests.fuzz.test_random_graphs import OPTIONS
from tests.support import graph

each_pass = pytest.mark.parametrize("pass_", [pytest.param(p, id=p.name) for p in ALL])


def make(pass_: type[Pass], **options: Any) -> Pass:
    """The pass with its defaults, and what it cannot do without."""
    return pass_(**OPTIONS.get(pass_.name, {}), **options)


def run(pass_: Pass, model: ir.Model, limit: int | None = None) -> tuple[ir.Model, Report]:
    """One run on a copy, through a gate of that limit."""
    result = copy(model)
    data = random_data(model, 4) if pass_.needs != "none" else None
    return result, pass_.run(Context(Editor(result), Gate(limit), data, data, model))


# -- models that together give most passes something to do -----------------------------------------------------


def _shapes() -> ir.Model:
    return graph(
        """g (float[N,4,6] x) => (float[M,K] y, int64[3] s)
        <int64 zero = {0}, int64[1] last = {-1}, int64[1] same = {0}, float two = {2}, float[4,6] w>
        {
            a = Identity(x)
            shape = Shape(a)
            n = Gather <axis = 0> (shape, zero)
            axes = Constant <value = int64[1] {0}> ()
            n1 = Unsqueeze(n, axes)
            target = Concat <axis = 0> (n1, last)
            r = Reshape(a, target)
            r2 = Reshape(r, target)
            t = Transpose <perm = [1, 0]> (r2)
            t2 = Transpose <perm = [1, 0]> (t)
            c = Cast <to = 11> (t2)
            y0 = Cast <to = 1> (c)
            y1 = Add(y0, y0)
            y2 = Add(y0, y0)
            y3 = Sub(y1, y2)
            unused = Sqrt(y3)
            y = Identity(y3)
            s0 = Shape(x)
            s = Add(s0, zero)
        }""",
        w=np.ones((4, 6), dtype=np.float32),
    )


def _network() -> ir.Model:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "k": rng.standard_normal((4, 3, 3, 3)),
        "scale": rng.standard_normal(4),
        "bias": rng.standard_normal(4),
        "mean": rng.standard_normal(4),
        "variance": rng.random(4) + 1,
        "m": rng.standard_normal((4, 4, 1, 1)),
        "w": rng.standard_normal((4, 5)),
        "v": rng.standard_normal((4, 5)),
        "b": rng.standard_normal(5),
        "u1": rng.standard_normal((5, 5)),
        "u2": rng.standard_normal((5, 5)),
    }
    return graph(
        """g (float[N,3,H,W] x) => (float[N,5] y, float[N,5] z, float[N,5] g, float[N,5] s2)
        <float one = {1}, float half = {0.5}, float root = {1.4142135}, float low = {0}, float high = {6}>
        {
            pads = Constant <value = int64[8] {0, 0, 1, 1, 0, 0, 1, 1}> ()
            p = Pad(x, pads)
            c = Conv(p, k)
            n = BatchNormalization(c, scale, bias, mean, variance)
            r = Relu(n)
            q = Conv(r, m)
            u = Mul(q, half)
            clipped = Clip(u, low, high)
            again = Clip(clipped, low, high)
            pooled = GlobalAveragePool(again)
            f = Flatten(pooled)
            y0 = MatMul(f, w)
            y = Add(y0, b)
            z0 = MatMul(f, v)
            z = Add(b, z0)
            d = Div(y, root)
            e = Erf(d)
            e1 = Add(e, one)
            h = Mul(y, e1)
            g = Mul(h, half)
            a1 = MatMul(y, u1)
            r1 = Relu(a1)
            s1 = Add(y, r1)
            a2 = MatMul(s1, u2)
            r2 = Relu(a2)
            s2 = Add(s1, r2)
        }""",
        **_single(arrays),
    )


def _single(arrays: dict[str, Any]) -> Any:
    return {name: np.asarray(array, dtype=np.float32) for name, array in arrays.items()}


def _written_out() -> ir.Model:
    """Activations, normalizations and attention as exporters write them."""
    return graph(
        """g (float[N,4,8] x, float[N,3,5,5] i) => (
            float[N,4,8] gelu, float[N,4,8] swish, float[N,4,8] mish, float[N,4,8] softplus, float[N,4,8] hard,
            float[N,4,8] steps, float[N,4,8] layer, float[N,4,8] square, float[N,3,5,5] instance,
            float[N,4,8] attended, float[N,2,1,1] pooled, float[N,2] dense
        )
        <float root = {1.4142135}, float one = {1}, float half = {0.5}, float three = {3}, float zero = {0},
         float six = {6}, float two = {2}, float tiny = {0.00001}, int64[1] last = {-1}, int64[2] space = {2, 3},
         float scale = {0.35355338}>
        {
            d = Div(x, root)
            e = Erf(d)
            e1 = Add(e, one)
            xe = Mul(x, e1)
            gelu = Mul(xe, half)
            s = Sigmoid(x)
            swish = Mul(x, s)
            m0 = Softplus(x)
            m1 = Tanh(m0)
            mish = Mul(x, m1)
            p0 = Exp(x)
            p1 = Add(p0, one)
            softplus = Log(p1)
            h0 = Add(x, three)
            h1 = Clip(h0, zero, six)
            h2 = Mul(x, h1)
            hard = Div(h2, six)
            k0 = Add(x, three)
            k1 = Clip(k0, zero, six)
            steps = Div(k1, six)
            l0 = ReduceMean(x, last)
            l1 = Sub(x, l0)
            l2 = Pow(l1, two)
            l3 = ReduceMean(l2, last)
            l4 = Add(l3, tiny)
            l5 = Sqrt(l4)
            l6 = Div(l1, l5)
            l7 = Mul(l6, gain)
            layer = Add(l7, shift)
            q0 = Pow(x, two)
            q1 = ReduceMean(q0, last)
            q2 = Add(q1, tiny)
            q3 = Sqrt(q2)
            q4 = Div(x, q3)
            square = Mul(q4, gain)
            i0 = ReduceMean(i, space)
            i1 = Sub(i, i0)
            i2 = Pow(i1, two)
            i3 = ReduceMean(i2, space)
            i4 = Add(i3, tiny)
            i5 = Sqrt(i4)
            i6 = Div(i1, i5)
            i7 = Mul(i6, igain)
            instance = Add(i7, ishift)
            aq = MatMul(x, wq)
            ak = MatMul(x, wk)
            av = MatMul(x, wv)
            at = Transpose <perm = [0, 2, 1]> (ak)
            as = MatMul(aq, at)
            ascaled = Mul(as, scale)
            aw = Softmax <axis = -1> (ascaled)
            attended = MatMul(aw, av)
            c = Conv(i, k)
            pooled = ReduceMean(c, space)
            t = Transpose <perm = [0, 2, 3, 1]> (i)
            f = Flatten(t)
            dense = MatMul(f, wd)
        }""",
        opset=24,
        ir_version=10,
        **_single(
            {
                name: np.random.default_rng(1).standard_normal(dims)
                for names, dims in (
                    ("gain shift", (8,)), ("igain ishift", (3, 1, 1)), ("wq wk wv", (8, 8)), ("k", (2, 3, 3, 3)),
                    ("wd", (75, 2)),
                )
                for name in names.split()
            }
        ),
    )  # fmt: skip


def _old() -> ir.Model:
    """IR version 3, in which every initializer is an input too, and an opset without a reader."""
    return graph(
        """g (float[N] x, float[1] w, int64[2] s) => (float[N] y, float[2,2] z) <float[1] w = {0}, int64[2] s = {2, 2}>
        { y = Add(x, w) a = Constant <value = float[4] {1, 2, 3, 4}> () b = Neg(a) z = Reshape(b, s) }""",
        opset=8,
        ir_version=3,
        extra=', "elsewhere" : 1',
    )


def _nested() -> ir.Model:
    return graph(
        """g (float[N] x, bool flag) => (float[N] y, float[N] z)
        <bool yes = {1}, float two = {2}, float same = {2}, float[2] spare = {1, 1}>
        {
            a = Mul(x, two)
            b = Mul(x, same)
            c = If(yes) <
                then_branch = t () => (float[N] ct) {
                    k = Constant <value = float {0}> ()
                    d = Add(a, k)
                    ct = Identity(d)
                },
                else_branch = e () => (float[N] ce) { ce = Neg(a) }
            >
            f = If(flag) <
                then_branch = t2 () => (float[N] ft) { f1 = Identity(c) ft = Identity(f1) },
                else_branch = e2 () => (float[N] fe) { f2 = Mul(b, same) fe = Identity(f2) }
            >
            y = local.Twice(f)
            z = local.Twice(b)
        }
        <domain: "local", opset_import: ["" : 18]> Twice (p) => (r) { i = Identity(p) r = Add(i, i) }""",
        extra=', "local" : 1, "elsewhere" : 1',
    )


def _layers() -> ir.Model:
    """Layers of a usual size, one of them with integer weights between integer activations."""
    rng = np.random.default_rng(2)
    sizes = {"w1": (64, 256), "w2": (256, 64), "k1": (8, 4, 3, 3), "k2": (4, 8, 3, 3)}
    weights = {name: rng.standard_normal(size) / np.sqrt(np.prod(size[1:])) for name, size in sizes.items()}
    return graph(
        """g (float[64,64] x, float[N,4,6,6] i) => (float[64,64] y, float[64,8] z, float[N,4,6,6] o)
        <float s = {0.02}, uint8 zero = {128}, int8 none = {0}>
        {
            a = MatMul(x, w1)
            r = Relu(a)
            b = MatMul(r, w2)
            y = Add(x, b)
            q = QuantizeLinear(x, s, zero)
            d = DequantizeLinear(q, s, zero)
            dw = DequantizeLinear(integers, s, none)
            c = MatMul(d, dw)
            cq = QuantizeLinear(c, s, zero)
            z = DequantizeLinear(cq, s, zero)
            c1 = Conv <pads = [1, 1, 1, 1]> (i, k1)
            r1 = Relu(c1)
            o = Conv <pads = [1, 1, 1, 1]> (r1, k2)
        }""",
        opset=21,
        ir_version=10,
        integers=rng.integers(-64, 64, (64, 8), np.int8),
        **_single(weights),
    )


MODELS = {
    "shapes": _shapes, "network": _network, "written out": _written_out, "nested": _nested, "old": _old,
    "layers": _layers,
}  # fmt: skip
each_model = pytest.mark.parametrize("model", [pytest.param(make, id=name) for name, make in MODELS.items()])


def annotated(model: ir.Model) -> ir.Model:
    """The model with names, doc strings and metadata wherever they can stand."""
    model.metadata_props["on"] = "model"
    model.doc_string = "doc of the model"
    for i, each in enumerate(graphs(model)):
        each.metadata_props["on"] = f"graph {i}"
        each.doc_string = f"doc of graph {i}"
        values = [*each.inputs, *each.initializers.values(), *(v for node in each for v in node.outputs)]
        for value in values:
            value.metadata_props["on"] = f"value {value.name}"
            value.doc_string = f"doc of {value.name}"
        for at, node in enumerate(each):
            node.name = f"node {i}.{at}"
            node.metadata_props["on"] = node.name
            node.doc_string = f"doc of {node.name}"
    for function in model.functions.values():
        function.metadata_props["on"] = "function"
    return model


# -- the form of a pass ----------------------------------------------------------------------------------------


@each_pass
def test_is_a_frozen_dataclass_that_takes_keywords(pass_: type[Pass]) -> None:
    assert dataclasses.is_dataclass(pass_)
    assert pass_.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert all(option.kw_only for option in dataclasses.fields(pass_))
    assert "__dataclass_fields__" in vars(pass_), "it inherits its decorator"


@each_pass
def test_name_module_and_class_agree(pass_: type[Pass]) -> None:
    module = pass_.__module__.rpartition(".")[2]
    assert pass_.name == module.replace("_", "-")
    assert pass_.__name__.lower() == module.replace("_", "")
    assert find(pass_.name) is pass_


@each_pass
def test_declares_itself(pass_: type[Pass]) -> None:
    assert "exact" in vars(pass_)
    assert isinstance(pass_.exact, bool)
    assert "name" in vars(pass_)
    assert pass_.ops is None or (isinstance(pass_.ops, frozenset) and pass_.ops)


@each_pass
def test_is_documented(pass_: type[Pass]) -> None:
    module = inspect.getmodule(pass_)
    assert module is not None
    assert len(inspect.getdoc(module) or "") > len((inspect.getdoc(module) or "").splitlines()[0]) + 20
    assert (pass_.__doc__ or "").strip()
    assert not (pass_.__doc__ or "").startswith(f"{pass_.__name__}("), "the class has no docstring of its own"
    undocumented = set(_own_fields(pass_)) - set(_documented_fields(pass_))
    assert not undocumented


def _own_fields(pass_: type[Pass]) -> list[str]:
    inherited = {option.name for option in dataclasses.fields(Pass)}
    return [option.name for option in dataclasses.fields(pass_) if option.name not in inherited]


def _documented_fields(pass_: type[Pass]) -> Iterator[str]:
    """The fields that have a string under them, in this class or one that it derives from."""
    for each in pass_.__mro__:
        if not issubclass(each, Pass) or each is Pass:
            continue
        body = ast.parse(inspect.cleandoc(inspect.getsource(each))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                    yield statement.target.id


@each_pass
def test_round_trips_through_the_text_of_a_pipeline(pass_: type[Pass]) -> None:
    for options in ({}, {"include": ("Conv", "a*")}, {"exclude": ("b?",)}):
        written = make(pass_, **options)
        assert parse_pipeline(str(written)) == [written]


def test_every_module_is_in_the_catalogue() -> None:
    for found in pkgutil.walk_packages(onnxopt.passes.__path__, "onnxopt.passes."):
        if not found.ispkg:
            importlib.import_module(found.name)
    written = {p for p in _subclasses(Pass) if p.__module__.startswith("onnxopt.passes.") and not inspect.isabstract(p)}
    assert written == set(ALL)


def _subclasses(pass_: Any) -> Iterator[type[Pass]]:
    for each in pass_.__subclasses__():
        yield each
        yield from _subclasses(each)


def test_names_are_told_apart() -> None:
    assert len({pass_.name for pass_ in ALL}) == len(ALL)


# -- the behaviour of a pass -----------------------------------------------------------------------------------


@each_pass
@each_model
def test_says_when_it_changes_something(pass_: type[Pass], model: Any) -> None:
    before = model()
    after, report = run(make(pass_), before)
    assert report.name == pass_.name
    assert (to_proto(after) == to_proto(before)) == (report.changed == 0)
    assert all(note.node and note.text for note in (*report.changes, *report.refusals))


@each_pass
@each_model
def test_leaves_excluded_nodes_alone(pass_: type[Pass], model: Any) -> None:
    before = model()
    for options in ({"exclude": ("*",)}, {"include": ("no such node",)}):
        after, report = run(make(pass_, **options), before)
        assert not report.changes
        assert to_proto(after) == to_proto(before)


@each_pass
@each_model
def test_makes_no_more_changes_than_the_gate_lets_through(pass_: type[Pass], model: Any) -> None:
    before = model()
    _, free = run(make(pass_), before)
    for limit in sorted({0, 1, free.changed // 2, free.changed, free.changed + 1}):
        after, report = run(make(pass_), before, limit)
        assert report.changed == min(limit, free.changed)
        assert report.changes == free.changes[: report.changed], "the first changes of a run do not depend on the limit"
        if limit == 0:
            assert to_proto(after) == to_proto(before)


@each_pass
@each_model
def test_an_exact_pass_reaches_a_fixed_point(pass_: type[Pass], model: Any) -> None:
    if not pass_.exact:
        return
    current = model()
    for _ in range(10):
        current, report = run(make(pass_), current)
        if not report.changed:
            return
    raise AssertionError(f"still changing after ten runs: {[str(note) for note in report.changes]}")


@each_pass
@each_model
def test_what_survives_keeps_its_names_and_metadata(pass_: type[Pass], model: Any) -> None:
    before = annotated(model())
    kept = _marks(before)
    after, _ = run(make(pass_), before)
    assert after.metadata_props["on"] == "model"
    assert after.doc_string == "doc of the model"
    assert interface(after) == interface(before)
    for name, mark in _marks(after).items():
        if name in kept:
            assert mark == kept[name], f"{name} lost or changed what was written on it"


def _marks(model: ir.Model) -> dict[str, tuple[str, str]]:
    """What is written on graphs, nodes and values, by name."""
    found = {}
    for each in graphs(model):
        found[f"graph {each.name}"] = each.metadata_props.get("on", ""), each.doc_string or ""
        for node in each:
            if node.name:
                found[node.name] = node.metadata_props.get("on", ""), node.doc_string or ""
        for value in (*each.inputs, *each.initializers.values(), *(v for node in each for v in node.outputs)):
            found[f"value {value.name}"] = value.metadata_props.get("on", ""), value.doc_string or ""
    return found


def test_the_models_give_most_passes_something_to_do() -> None:
    idle = {p.name for p in ALL if not any(run(make(p), model())[1].changed for model in MODELS.values())}
    assert len(idle) <= len(ALL) // 2, f"nothing above is tested of {sorted(idle)}"


@each_pass
def test_options_are_checked(pass_: type[Pass]) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make(pass_).include = ("x",)  # type: ignore[misc]
    assert replace(make(pass_), include=("x",)).options()["include"] == ("x",)
