"""Damaged files: ``load`` succeeds or raises an ``OnnxoptError``; it raises nothing else, and does not hang.

Cut off, with bits flipped, with fields of the wire format swapped for others, or not a model at all. What loads
is written back too: a file that was read must not make ``to_proto`` fall over.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxopt import wire
from onnxopt.errors import OnnxoptError
from onnxopt.external import OFFLOAD_BYTES
from onnxopt.model import load, to_proto
from tests.fuzz.test_random_graphs import settings_for

LONGEST_SECONDS = 5.0


def _model() -> bytes:
    """Small, but with a bit of everything that a file can hold: mapped weights, bodies, functions, metadata."""
    large = numpy_helper.from_array(np.arange(OFFLOAD_BYTES // 4 + 1, dtype=np.float32), "large")
    small = helper.make_tensor("small", TensorProto.INT64, [2], [1, -1])
    inner = numpy_helper.from_array(np.ones(OFFLOAD_BYTES // 4, dtype=np.float32), "inner")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=inner), helper.make_node("ReduceSum", ["c"], ["r"], keepdims=0)],
        "branch", [], [helper.make_tensor_value_info("r", TensorProto.FLOAT, [])],
    )  # fmt: skip
    function = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "large"], ["s"], name="add"),
            helper.make_node("Reshape", ["s", "small"], ["t"]),
            helper.make_node("If", ["flag"], ["u"], then_branch=branch, else_branch=branch),
            helper.make_node("Mul", ["t", "u"], ["v"]),
            helper.make_node("Twice", ["v"], ["y"], domain="local"),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [OFFLOAD_BYTES // 4 + 1]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "N"])],
        [large, small],
        value_info=[helper.make_tensor_value_info("s", TensorProto.FLOAT, ["N"])],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=9)
    helper.set_model_props(model, {"author": "nobody"})
    return bytes(model.SerializeToString())


CONTENT = _model()
_WEIGHTS = {i for start in (CONTENT.find(b"large"),) for i in range(start, start + OFFLOAD_BYTES)}
STRUCTURE = [i for i in range(len(CONTENT)) if i not in _WEIGHTS]
"""Places where a changed byte means something: most of the file is numbers."""


def _must_cope(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    start = time.monotonic()
    with contextlib.suppress(OnnxoptError):
        to_proto(load(path))
    assert time.monotonic() - start < LONGEST_SECONDS


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad") / "model.onnx"


def test_the_undamaged_file_loads(path: Path) -> None:
    path.write_bytes(CONTENT)
    assert to_proto(load(path)).graph.node == onnx.ModelProto.FromString(CONTENT).graph.node


def test_cut_off_files(path: Path) -> None:
    @settings_for(150)
    @given(st.one_of(st.integers(0, len(CONTENT)), st.sampled_from(STRUCTURE)))
    def check(length: int) -> None:
        _must_cope(path, CONTENT[:length])

    check()


def test_flipped_bits(path: Path) -> None:
    @settings_for(400)
    @given(st.lists(st.tuples(st.sampled_from(STRUCTURE), st.integers(0, 7)), min_size=1, max_size=4))
    def check(flips: list[tuple[int, int]]) -> None:
        content = bytearray(CONTENT)
        for where, bit in flips:
            content[where] ^= 1 << bit
        _must_cope(path, bytes(content))

    check()


def _fields(message: bytes) -> list[tuple[int, int, bytes]]:
    view = memoryview(message)
    return [(number, kind, bytes(view[start:end])) for number, kind, start, _, end in wire.fields(view)]


@st.composite
def _mangled(draw: st.DrawFn, message: bytes = CONTENT, depth: int = 0) -> bytes:
    """A message with one field, here or further in, doubled, dropped, emptied, renumbered or filled with noise."""
    parts = _fields(message)
    at = draw(st.integers(0, len(parts) - 1))
    number, kind, content = parts[at]
    payload = content[-_payload_size(content) :] if kind == 2 else b""
    deeper = False
    if kind == 2 and payload and depth < 6 and draw(st.integers(0, 3)):
        try:
            deeper = bool(_fields(payload))
        except wire.WireError:
            deeper = False
    if deeper:
        new = _field(number, draw(_mangled(payload, depth + 1)))
    else:
        new = draw(
            st.sampled_from((content + content, b"", _field(number, b""), _field(draw(st.integers(1, 30)), payload)))
            | st.binary(max_size=12).map(lambda noise: _field(number, noise))
            | st.integers(0, 2**64 - 1).map(lambda n: wire.varint(number << 3) + wire.varint(n))
        )
    return b"".join([*(c for _, _, c in parts[:at]), new, *(c for _, _, c in parts[at + 1 :])])


def _payload_size(content: bytes) -> int:
    _, _, _, payload, end = next(iter(wire.fields(memoryview(content))))
    return end - payload


def _field(number: int, payload: bytes) -> bytes:
    return b"".join(bytes(piece) for piece in wire.field(number, [payload]) if not isinstance(piece, wire.Deferred))


def test_mangled_fields(path: Path) -> None:
    @settings_for(400)
    @given(_mangled())
    def check(content: bytes) -> None:
        _must_cope(path, content)

    check()


def test_no_models_at_all(path: Path) -> None:
    @settings_for(100)
    @given(st.binary(max_size=200))
    def check(content: bytes) -> None:
        _must_cope(path, content)

    check()


def test_bodies_nested_beyond_reason(path: Path) -> None:
    """As deep as protobuf lets a file be, and deeper."""
    for depth in (20, 60, 2000):
        graph = helper.make_graph([], "inner", [], []).SerializeToString()
        for _ in range(depth):  # AttributeProto{name, type GRAPH, g} in NodeProto{op_type, attribute} in GraphProto
            attribute = _field(1, b"then_branch") + wire.varint(20 << 3) + wire.varint(5) + _field(6, graph)
            graph = _field(1, _field(4, b"If") + _field(5, attribute))
        model = wire.varint(1 << 3) + wire.varint(8) + _field(8, wire.varint(2 << 3) + wire.varint(18))
        _must_cope(path, model + _field(7, graph))
