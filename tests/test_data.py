"""Data of every form: what goes into the model, and what is turned away."""

from __future__ import annotations

import logging
import pickle
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader

from onnxopt.data import MAX_PROBES, MAX_SAMPLES, Dataset, load_data, load_probes, random_data
from onnxopt.errors import DataError
from tests.support import graph, outputs

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


# -- sources ---------------------------------------------------------------------------------------------

X, INDEX, LABELS = numbers(40, 3), numbers(40, dtype=np.int64), numbers(40, dtype=np.int64) % 7
PAIRS = [({"x": X[at : at + 8], "i": INDEX[at : at + 8]}, LABELS[at : at + 8]) for at in range(0, 40, 8)]


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self._rest = iter(PAIRS)

    def get_next(self) -> dict[str, Any] | None:
        return next(((feeds | {"labels": labels}) for feeds, labels in self._rest), None)


def npz(folder: Path) -> Path:
    np.savez(folder / "data.npz", x=X, i=INDEX, labels=LABELS)
    return folder / "data.npz"


def compressed(folder: Path) -> Path:
    np.savez_compressed(folder / "data.npz", x=X.astype(">f4"), i=INDEX, label=LABELS)
    return folder / "data.npz"


def fortran(folder: Path) -> Path:
    np.savez(folder / "data.npz", x=np.asfortranarray(X), i=INDEX, labels=LABELS)
    return folder / "data.npz"


def files(folder: Path) -> Path:
    for at, start in enumerate((0, 13, 14)):
        stop = (13, 14, 40)[at]
        np.savez(folder / f"{at}.npz", x=X[start:stop], i=INDEX[start:stop], labels=LABELS[start:stop])
    return folder


def function(folder: Path) -> str:
    (folder / "my_samples.py").write_text(
        "import numpy as np\ndef make():\n"
        "    x, i = np.arange(120).reshape(40, 3).astype(np.float32), np.arange(40)\n"
        "    return (({'x': x[a:a + 8], 'i': i[a:a + 8]}, i[a:a + 8] % 7) for a in range(0, 40, 8))\n"
    )
    return "my_samples:make"


SOURCES: list[Callable[[Path], Any]] = [
    npz, compressed, fortran, files, function,
    lambda folder: {"x": X, "i": INDEX, "labels": LABELS},
    lambda folder: PAIRS,
    lambda folder: iter(PAIRS),
    lambda folder: ({**feeds, "label": labels} for feeds, labels in PAIRS),
    lambda folder: Reader(),
]  # fmt: skip


def joined(data: Dataset, name: str = "x") -> np.ndarray[Any, Any]:
    return np.concatenate([batch.feeds[name] for batch in data.batches()])


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_all_samples_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Callable[[Path], Any]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_samples", raising=False)
    data = load_data(source(tmp_path), graph(DYNAMIC))
    assert (len(data), data.labelled, data.random) == (40, True, False)
    for _ in range(2):
        batches = list(data.batches())
        np.testing.assert_array_equal(np.concatenate([b.feeds["x"] for b in batches]), X)
        np.testing.assert_array_equal(np.concatenate([b.feeds["i"] for b in batches]), INDEX)
        np.testing.assert_array_equal(np.concatenate([np.asarray(b.labels) for b in batches]), LABELS)
        assert sum(batch.samples for batch in batches) == 40
        assert max(batch.samples for batch in batches) <= MAX_SAMPLES
        assert batches[0].feeds["x"].dtype == np.float32
    again = load_data(source(tmp_path), graph(DYNAMIC))
    assert again.fingerprint == data.fingerprint
    first, second = data.split(0.5, seed=3)
    assert sorted(joined(first, "i").tolist() + joined(second, "i").tolist()) == INDEX.tolist()
    np.testing.assert_array_equal(joined(again.split(0.5, seed=3)[0], "i"), joined(first, "i"))
    assert len({tuple(joined(data.split(0.5, seed)[0], "i").tolist()) for seed in range(9)}) > 1
    assert len({data.fingerprint, first.fingerprint, second.fingerprint}) == 3
    elsewhere = pickle.loads(pickle.dumps(first))
    assert elsewhere.fingerprint == first.fingerprint
    np.testing.assert_array_equal(joined(elsewhere, "i"), joined(first, "i"))


@pytest.mark.parametrize("named", [True, False])
def test_test_data_of_onnx(tmp_path: Path, named: bool) -> None:
    for at in range(11):
        folder = tmp_path / f"test_data_set_{at}"
        folder.mkdir()
        for number, (name, array) in enumerate((("x", X[at : at + 1]), ("i", INDEX[at : at + 1]))):
            tensor = onnx.numpy_helper.from_array(array, name if named else "")
            (folder / f"input_{number}.pb").write_bytes(tensor.SerializeToString())
        (folder / "output_0.pb").write_bytes(b"not looked at")
    np.testing.assert_array_equal(joined(load_data(tmp_path, graph(DYNAMIC)), "i"), INDEX[:11])
    assert joined(load_data(tmp_path / "test_data_set_10", graph(DYNAMIC)), "i").tolist() == [10]


def test_files_of_different_shapes_are_not_mixed(tmp_path: Path) -> None:
    model = graph("g (float[N, L] x) => (float[N, L] y) { y = Relu(x) }")
    for at, length in enumerate((3, 3, 5)):
        np.savez(tmp_path / f"{at}.npz", x=numbers(4, length))
    assert [b.feeds["x"].shape for b in load_data(tmp_path, model).batches()] == [(8, 3), (4, 5)]
    with pytest.raises(DataError, match="2 samples at once, which must be of one shape"):
        load_data(tmp_path, graph("g (float[2, L] x) => (float[2, L] y) { y = Relu(x) }"))


def test_what_is_left_over_of_fixed_batches_is_dropped_aloud(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.savez(file, x=X)
    with caplog.at_level(logging.WARNING):
        data = load_data(file, graph(FIXED.format(n=12)))
    assert "last 4 samples are left out, since the model takes 12 at once" in caplog.text
    assert len(data) == 36
    first, second = data.split(0.5)
    assert (len(first), len(second)) in [(12, 24), (24, 12)], "what belongs together stays together"


def test_large_samples_go_in_smaller_batches(file: Path) -> None:
    model = graph("g (float[N, L] x) => (float[N, L] y) { y = Relu(x) }")
    np.savez(file, x=np.zeros((10, 1 << 20), np.float32))
    assert [b.samples for b in load_data(file, model).batches()] == [4, 4, 2]  # of 4 MB each


@pytest.mark.parametrize(("samples", "taken"), [(1, 16), (16, 16), (17, 16), (32, 32), (999, 80)])
def test_takes_whole_batches(samples: int, taken: int) -> None:
    data = load_data({"x": numbers(80, 3)}, graph(FIXED.format(n=16)))
    np.testing.assert_array_equal(joined(data.take(samples)), numbers(80, 3)[:taken])


def test_one_sample_cannot_be_split() -> None:
    with pytest.raises(DataError, match="cannot be split"):
        load_data({"x": X[:1], "i": INDEX[:1]}, graph(DYNAMIC)).split()


def test_random_data_is_marked_and_repeatable() -> None:
    model = graph(DYNAMIC)
    data = random_data(model, 10, seed=1)
    assert data.random
    assert data.split()[0].random
    assert len(data) >= 10
    assert data.fingerprint == random_data(model, 10, seed=1).fingerprint
    assert data.fingerprint != random_data(model, 10, seed=2).fingerprint
    for batch in data.batches():
        outputs(model, batch.feeds)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_larger_than_memory_are_streamed(file: Path, save: Any) -> None:
    x = np.broadcast_to(np.arange(3_000, dtype=np.float32)[:, None], (3_000, 25_000))
    save(file, x=x)  # 300 MB
    model = graph("g (float[N, 25000] x) => (float[N, 25000] y) { y = Relu(x) }")
    tracemalloc.start()
    data = load_data(file, model)
    seen = sum(float(batch.feeds["x"][:, 0].sum()) for batch in data.split()[0].batches())
    seen += sum(float(batch.feeds["x"][:, 0].sum()) for batch in data.split()[1].batches())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == np.arange(3_000).sum()
    assert peak < 100e6


def test_one_shot_iterators_are_not_kept_in_memory() -> None:
    model = graph("g (float[N, 25000] x) => (float[N, 25000] y) { y = Relu(x) }")
    tracemalloc.start()
    data = load_data(({"x": np.full((10, 25_000), at, np.float32)} for at in range(100)), model)
    seen = [batch.feeds["x"][0, 0] for batch in data.batches()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == list(range(100))
    assert peak < 20e6


# -- errors ----------------------------------------------------------------------------------------------


def feeds(**changes: Any) -> dict[str, Any]:
    return {"x": X[:4], "i": INDEX[:4]} | changes


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "no samples"),
        (iter([]), "no samples"),
        (7, "got int"),
        ([1], "item 0 of the data is a int; it must be a dict"),
        ([feeds(), {"x": X}], "item 1 of the data has no array for the input 'i'"),
        ([feeds(xx=X)], "item 0.*'xx' is no input of the model; did you mean 'x'"),
        ([feeds(x=X[0])], "has 1 axes, the input has 2.*batch axis included"),
        ([feeds(x=numbers(4, 4))], r"'x' is \[4, 4\].*axis 1 must be 3"),
        ([feeds(x=X.astype(np.float64))], r"is float64, the input float32; convert it with astype\('float32'\)"),
        ([feeds(i=INDEX.astype(np.int32))], r"is int32, the input int64; convert it with astype\('int64'\)"),
        ([feeds(x=X[:0], i=INDEX[:0])], "is empty"),
        ([feeds(), feeds(x=np.full((4, 3), np.inf, np.float32))], r"item 1.*holds infinity, first at \[0, 0\]"),
        ([(feeds(), INDEX[:3])], "holds 4 samples, but 3 labels"),
        ([(feeds(), INDEX[:4]), feeds()], "some items come with labels, others without"),
        ({"x": X, "i": INDEX, "labels": INDEX[:39]}, "40 samples have as many labels, but there are 39"),
        ({"x": X, "i": np.int64(3)}, "'i' has 0 axes, the input has 1"),
        ({"x": np.where(X == 100, np.nan, X), "i": INDEX}, r"holds NaN, first at \[33, 1\]"),
        ("nowhere.npz", "cannot read the data nowhere.npz"),
        ("no_such_module:make", "cannot import 'no_such_module'"),
        ("json:nothing", "has no 'nothing'"),
        ("json:decoder.__name__", "cannot be called"),
        ("sys:getrecursionlimit", "fails"),
    ],
)
def test_what_does_not_fit_is_one_error(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(source, graph(DYNAMIC))


def test_errors_of_a_generator_name_the_item() -> None:
    def broken() -> Iterator[Any]:
        yield feeds()
        raise RuntimeError("disk gone")

    with pytest.raises(DataError, match=r"item 1 of the data cannot be had.*disk gone"):
        load_data(broken(), graph(DYNAMIC))


def test_a_function_that_gives_other_data_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unseeded.py").write_text(
        "import numpy as np\ndef make():\n    return [{'x': np.random.rand(4, 3).astype('f'), 'i': np.arange(4)}]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = load_data("unseeded:make", graph(DYNAMIC))
    with pytest.raises(DataError, match="other data than the first time"):
        list(data.batches())


def test_directories_that_hold_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither \.npz files nor test_data_set_"):
        load_data(tmp_path, graph(DYNAMIC))
    (tmp_path / "input_0.pb").write_bytes(b"\xff\xff")
    with pytest.raises(DataError, match="is not a tensor of ONNX"):
        load_data(tmp_path, graph(DYNAMIC))


def test_files_of_one_directory_must_agree(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, i=INDEX, labels=INDEX)
    np.savez(tmp_path / "b.npz", x=X, i=INDEX)
    with pytest.raises(DataError, match="only one of them has labels"):
        load_data(tmp_path, graph(DYNAMIC))


def test_a_model_without_inputs_takes_no_data() -> None:
    constant = graph("g () => (float[2] y) { y = Constant<value = float[2] {1, 2}>() }")
    with pytest.raises(DataError, match="has no inputs"):
        load_data({"x": X}, constant)


def test_a_damaged_value_is_found_before_any_work(file: Path) -> None:
    np.savez(file, x=numbers(4_000, 3), i=numbers(4_000, dtype=np.int64))
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.npz"):
        load_data(file, graph(DYNAMIC))


def test_large_samples_go_in_a_few_at_a_time() -> None:
    model = graph("g (float[N,3,300,300] x) => (float[N,3,300,300] y) { y = Relu(x) }")
    x = np.arange(10, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 300, 300), np.float32)
    data = load_data({"x": x, "labels": np.arange(10)}, model)
    batches = list(data.small_batches())
    assert [batch.samples for batch in batches] == [3, 3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([batch.feeds["x"] for batch in batches]), x)
    assert np.concatenate([batch.labels for batch in batches if batch.labels is not None]).tolist() == list(range(10))
    together = load_data([{"x": x}], model)
    assert [batch.samples for batch in together.small_batches()] == [10], "what belongs together stays so"
