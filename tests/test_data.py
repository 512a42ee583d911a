"""Probes from a file: what goes in, and what is turned away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.data import MAX_PROBES, MAX_SAMPLES, load_probes
from onnxopt.errors import DataError
from tests.support import graph

DYNAMIC = "g (float[N, 3] x, int64[N] i) => (float[N, 3] y) { y = Relu(x) z = Neg(i) }"
FIXED = "g (float[{n}, 3] x) => (float[{n}, 3] y) {{ y = Relu(x) }}"


def numbers(*dims: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.arange(np.prod(dims)).reshape(dims).astype(dtype)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data.npz"


def test_a_dynamic_batch_is_one_probe(file: Path) -> None:
    x, i = numbers(100, 3), numbers(100, dtype=np.int64)
    np.savez(file, x=x, i=i, labels=i)
    (probe,) = load_probes(file, graph(DYNAMIC))
    assert probe.keys() == {"x", "i"}
    np.testing.assert_array_equal(probe["x"], x[:MAX_SAMPLES])
    np.testing.assert_array_equal(probe["i"], i[:MAX_SAMPLES])


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fixed_batch_is_many_probes(file: Path, batch: int) -> None:
    x = numbers(50, 3)
    np.savez(file, x=x)
    probes = load_probes(file, graph(FIXED.format(n=batch)))
    assert len(probes) == MAX_PROBES
    np.testing.assert_array_equal(np.concatenate([p["x"] for p in probes]), x[: batch * MAX_PROBES])


def test_an_axis_more_counts_samples(file: Path) -> None:
    x = numbers(3, 5, 3)
    np.savez(file, x=x, i=numbers(3, 5, dtype=np.int64))
    probes = load_probes(file, graph(DYNAMIC))
    np.testing.assert_array_equal(np.stack([p["x"] for p in probes]), x)


def test_a_scalar_goes_into_every_probe(file: Path) -> None:
    model = graph("g (float[1, 3] x, int64 rate) => (float[1, 3] y) { y = Relu(x) r = Neg(rate) }")
    np.savez(file, x=numbers(2, 3), rate=np.int64(16000))
    assert [int(p["rate"]) for p in load_probes(file, model)] == [16000, 16000]


def test_strings_are_taken(file: Path) -> None:
    model = graph("g (string[N] x) => (string[N] y) { y = Identity(x) }")
    np.savez(file, x=np.array(["a", "bc"]))
    (probe,) = load_probes(file, model)
    assert (probe["x"].dtype, list(probe["x"])) == (object, ["a", "bc"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": numbers(4, 3)}, r"has no array for the input 'i'; inputs: x \(float32\[N,3\]\), i \(int64\[N\]\)"),
        ({"x": numbers(4, 3), "i": numbers(4, dtype=np.int64), "xx": numbers(1)}, "'xx' is no input.*mean 'x'"),
        ({"x": numbers(4, 3, dtype=np.float64), "i": numbers(4, dtype=np.int64)}, "is float64, the input float32"),
        ({"x": numbers(4, 4), "i": numbers(4, dtype=np.int64)}, r"'x' is \[4, 4\].*axis 1 must be 3"),
        ({"x": numbers(3), "i": numbers(4, dtype=np.int64)}, "has 1 axes, the input has 2"),
        ({"x": numbers(4, 3), "i": numbers(5, dtype=np.int64)}, "different numbers of samples: x 4, i 5"),
        ({"x": numbers(0, 3), "i": numbers(0, dtype=np.int64)}, "holds no samples"),
        ({"x": np.array([[1, 2, np.nan]], np.float32), "i": numbers(1, dtype=np.int64)}, r"NaN, first at \[0, 2\]"),
    ],
)
def test_what_does_not_fit_is_turned_away(file: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(file, **arrays)
    with pytest.raises(DataError, match=message):
        load_probes(file, graph(DYNAMIC))


def test_fewer_samples_than_the_batch(file: Path) -> None:
    np.savez(file, x=numbers(3, 3))
    with pytest.raises(DataError, match="holds 3 samples, the model takes 4 at once"):
        load_probes(file, graph(FIXED.format(n=4)))


@pytest.mark.parametrize("content", ["none", "text", "npy", "objects", "cut"])
def test_files_that_are_no_npz(file: Path, content: str) -> None:
    if content == "text":
        file.write_text("no arrays")
    elif content == "npy":
        with file.open("wb") as out:
            np.save(out, numbers(3))
    elif content == "objects":
        np.savez(file, x=np.array([{"a": 1}], dtype=object), i=numbers(1, dtype=np.int64))
    elif content == "cut":
        np.savez(file, x=numbers(100, 3), i=numbers(100, dtype=np.int64))
        file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match=r"data\.npz"):
        load_probes(file, graph(DYNAMIC))
