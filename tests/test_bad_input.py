"""Whatever is wrong with a model or an output path, it is one line, and no file is touched.

Every case goes through the command line and the Python API.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest

import onnxopt
from onnxopt.errors import ModelError, OnnxoptError, OptionError, OutputError
from onnxopt.model import load, save
from tests.command_line import CommandLine, contents, untouched, write

PLAIN = "g (float[N, 3] x) => (float[N, 3] y) { a = Identity(x) y = Relu(a) }"
BIG = "g (float[N, 100] x) => (float[N, 100] y) { a = Identity(x) y = MatMul(a, w) }"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the bad model, with an output of an earlier run in it."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "out.onnx").write_bytes(b"an earlier output")
    return tmp_path / "folder"


def model_of(
    nodes: list[onnx.NodeProto], initializer: list[onnx.TensorProto] | None = None, opset: int = 18
) -> bytes:
    """A model around ``nodes``, from the float input ``x`` to the float output ``y``, that nothing has checked."""
    x = oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 3])
    y = oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = oh.make_graph(nodes, "g", [x], [y], initializer=initializer)
    content: bytes = oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=8).SerializeToString()
    return content


def large() -> bytes:
    """A valid model with a weight that would be mapped."""
    w = onnx.numpy_helper.from_array(np.ones((100, 100), np.float32), "w")
    return model_of([oh.make_node("MatMul", ["x", "w"], ["y"])], initializer=[w])


def branch(name: str, reads: str) -> onnx.GraphProto:
    out = oh.make_tensor_value_info(f"{name}_out", onnx.TensorProto.FLOAT, None)
    return oh.make_graph([oh.make_node("Relu", [reads], [f"{name}_out"])], name, [], [out])


def integers() -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.ones((2, 3), np.int64), "i")


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty"),
    "text": (lambda: b"Hello, this is no model.\n" * 40, "not an ONNX model"),
    "png": (lambda: b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x01\x00", "not an ONNX model"),
    "pickle": (lambda: pickle.dumps({"weights": [1.0] * 100}), "not an ONNX model"),
    "zeros": (lambda: bytes(1000), "not an ONNX model"),
    "random": (lambda: np.random.default_rng(0).bytes(5000), "not an ONNX model"),
    "cycle": (
        lambda: model_of(
            [oh.make_node("Add", ["x", "b"], ["a"], "first"), oh.make_node("Relu", ["a"], ["b"], "second"),
             oh.make_node("Relu", ["b"], ["y"])]
        ),
        "cycle",
    ),
    "own reader": (lambda: model_of([oh.make_node("Add", ["x", "y"], ["y"])]), "cycle"),
    "own body": (  # a branch reads what its If is about to give
        lambda: model_of(
            [oh.make_node("Constant", [], ["c"], value=oh.make_tensor("c", 9, [], [True])),
             oh.make_node("If", ["c"], ["y"], then_branch=branch("t", "x"), else_branch=branch("e", "y"))]
        ),
        "cycle",
    ),
    "element type": (
        lambda: model_of(
            [oh.make_node("Add", ["x", "w"], ["y"])],
            initializer=[onnx.TensorProto(name="w", data_type=99, dims=[2, 3], raw_data=bytes(24))],
        ),
        "99 is not a valid DataType",
    ),
    "undefined value": (
        lambda: model_of([oh.make_node("Add", ["x", "w"], ["y"], "sum")]),
        "node 'sum' reads 'w', which no input, initializer or node defines",
    ),
    "missing output": (lambda: model_of([oh.make_node("Relu", ["x"], ["z"])]), "output 'y' is produced by nothing"),
    "value defined twice": (
        lambda: model_of([oh.make_node("Relu", ["x"], ["y"]), oh.make_node("Neg", ["x"], ["y"])]),
        "'y'",
    ),
    "input defined again": (
        lambda: model_of([oh.make_node("Neg", ["x"], ["x"]), oh.make_node("Relu", ["x"], ["y"])]),
        "'x'",
    ),
    "types": (
        lambda: model_of([oh.make_node("Add", ["x", "i"], ["y"])], initializer=[integers()]),
        "the model is not valid",
    ),
    "ranks": (
        lambda: model_of(
            [oh.make_node("Constant", [], ["w"], value=oh.make_tensor("w", 1, [1], [1.0])),
             oh.make_node("Conv", ["x", "w"], ["y"])]
        ),
        "the model is not valid",
    ),
    "initializer too short": (
        lambda: model_of(
            [oh.make_node("Add", ["x", "w"], ["y"])],
            initializer=[onnx.TensorProto(name="w", data_type=1, dims=[2, 3], raw_data=b"1234")],
        ),
        "the tensor 'w' should hold 24 bytes (FLOAT [2, 3]), it holds 4",
    ),
    "initializer of another length": (
        lambda: model_of(
            [oh.make_node("Add", ["x", "w"], ["y"])],
            initializer=[onnx.TensorProto(name="w", data_type=1, dims=[2, 3], float_data=[1.0] * 7)],
        ),
        "the tensor 'w' should hold 6 elements (FLOAT [2, 3]), it holds 7",
    ),
    "negative dim": (
        lambda: model_of(
            [oh.make_node("Add", ["x", "w"], ["y"])],
            initializer=[onnx.TensorProto(name="w", data_type=1, dims=[-2, -3], raw_data=bytes(24))],
        ),
        "the tensor 'w' has a negative dim",
    ),
}  # fmt: skip


def refused(cli: CommandLine, path: Path, message: str) -> None:
    """Both ways to optimize ``path`` fail with ``message`` and touch nothing; so do the other commands."""
    folder = path.parent
    with untouched(folder):
        with pytest.raises(ModelError) as raised:
            onnxopt.optimize(path)
        for command in ("optimize", "inspect"):
            options = ["-o", str(folder / "out.onnx"), "--force"] if command == "optimize" else []
            answer = cli(command, path, *options)
            if command == "inspect" and answer.code == 0:
                continue  # what only a run can find wrong can be described
            assert answer.code == 2
            assert message in answer.error
    assert message in str(raised.value)


@pytest.mark.parametrize("case", BAD)
def test_bad_model(cli: CommandLine, folder: Path, case: str) -> None:
    content, message = BAD[case]
    (folder / "model.onnx").write_bytes(content())
    refused(cli, folder / "model.onnx", message)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_truncated(cli: CommandLine, folder: Path, share: float) -> None:
    content = large()
    (folder / "model.onnx").write_bytes(content[: int(len(content) * share)])
    refused(cli, folder / "model.onnx", "model.onnx")


def test_every_truncation_of_a_small_model(tmp_path: Path) -> None:
    content = model_of([oh.make_node("Relu", ["x"], ["y"], "node")])
    path = tmp_path / "model.onnx"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError):
            load(path)


def test_missing(cli: CommandLine, folder: Path) -> None:
    refused(cli, folder / "none.onnx", "No such file")


def test_directory(cli: CommandLine, folder: Path) -> None:
    (folder / "model").mkdir()
    refused(cli, folder / "model", "is a directory")


def test_named_pipe(cli: CommandLine, folder: Path) -> None:
    os.mkfifo(folder / "pipe.onnx")
    refused(cli, folder / "pipe.onnx", "not a regular file")


def test_name_too_long(cli: CommandLine, folder: Path) -> None:
    refused(cli, folder / ("n" * 300), "File name too long")


def test_duplicate_node_names_are_fine(cli: CommandLine, folder: Path) -> None:
    nodes = [oh.make_node("Identity", ["x"], ["a"], "n"), oh.make_node("Relu", ["a"], ["y"], "n")]
    (folder / "model.onnx").write_bytes(model_of(nodes))
    assert cli("optimize", folder / "model.onnx", "-o", folder / "new.onnx").code == 0
    assert [node.op_type for node in onnx.load(folder / "new.onnx").graph.node] == ["Relu"]


@pytest.mark.parametrize("kind", ["opset 999", "unknown operator", "custom domain"])
def test_the_unknown_passes_through_unverified(cli: CommandLine, folder: Path, kind: str) -> None:
    path = folder / "model.onnx"
    if kind == "opset 999":
        path.write_bytes(model_of([oh.make_node("Relu", ["x"], ["y"])], opset=999))
    elif kind == "unknown operator":
        path.write_bytes(model_of([oh.make_node("Frobnicate", ["x"], ["y"])]))
    else:
        write(path, "g (float[2] x) => (float[2] y) { y = my.Thing <level = 3> (x) }", extra=', "my" : 1')
    answer = cli("optimize", path, "-o", folder / "new.onnx", "--json")
    assert answer.code == 0
    assert answer.json["verified"] is False
    assert "not verified" in answer.json["verification"]
    assert "not verified" in answer.err
    assert onnx.load(folder / "new.onnx").graph.node == onnx.load(path).graph.node
    report = onnxopt.optimize(path).report
    assert (report.verified, report.changed) == (False, 0)


# -- external data ---------------------------------------------------------------------------------------


@pytest.fixture
def external(folder: Path) -> Path:
    """A model whose weights are in ``model.onnx.data``."""
    inline = write(folder / "inline.onnx", BIG, w=np.ones((100, 100), np.float32))
    save(load(inline), folder / "model.onnx", external_data=True)
    return folder / "model.onnx"


def relocate(path: Path, location: str, **entries: int) -> None:
    model = onnx.load(path, load_external_data=False)
    (tensor,) = model.graph.initializer
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = location
        elif entry.key in entries:
            entry.value = str(entries[entry.key])
    onnx.save(model, path)


def test_external_data_missing(cli: CommandLine, external: Path) -> None:
    (external.parent / "model.onnx.data").unlink()
    refused(cli, external, "model.onnx.data")


def test_external_data_too_short(cli: CommandLine, external: Path) -> None:
    os.truncate(external.parent / "model.onnx.data", 1000)
    refused(cli, external, "too short")


@pytest.mark.parametrize(("entries"), [{"length": 4}, {"length": 40004}, {"offset": 10**15}, {"offset": -4096}])
def test_external_data_of_the_wrong_place_or_length(
    cli: CommandLine, external: Path, entries: dict[str, int]
) -> None:
    relocate(external, "model.onnx.data", **entries)
    refused(cli, external, "'w'")


@pytest.mark.parametrize("location", ["{outside}", "../secret", "sub/../../secret", "link", "", "."])
def test_external_data_outside_the_directory(cli: CommandLine, external: Path, location: str) -> None:
    outside = external.parent.parent / "secret"
    shutil.copy(external.parent / "model.onnx.data", outside)
    (external.parent / "link").symlink_to(outside)
    (external.parent / "sub").mkdir()
    relocate(external, location.format(outside=outside))
    refused(cli, external, "outside the model's directory" if location != "." else "not in")


# -- output ----------------------------------------------------------------------------------------------


def not_written(cli: CommandLine, model: Path, output: Path, message: str, *options: str) -> None:
    """The command line and ``save`` refuse ``output`` with ``message`` and touch nothing."""
    with untouched(model.parent):
        with pytest.raises(OutputError) as raised:
            onnxopt.optimize(model).save(output, force="--force" in options)
        answer = cli("optimize", model, "-o", output, *options)
    assert answer.code == 2
    assert message in answer.error
    assert message in str(raised.value)


@pytest.fixture
def model(folder: Path) -> Path:
    return write(folder / "model.onnx", BIG, w=np.ones((100, 100), np.float32))


def test_output_exists(cli: CommandLine, model: Path) -> None:
    not_written(cli, model, model.parent / "out.onnx", "out.onnx exists; give --force")


def test_output_is_a_directory(cli: CommandLine, model: Path) -> None:
    not_written(cli, model, model.parent, "is a directory", "--force")


def test_output_is_no_file(cli: CommandLine, model: Path) -> None:
    os.mkfifo(model.parent / "pipe")
    not_written(cli, model, model.parent / "pipe", "not a regular file", "--force")


def test_output_in_a_missing_directory(cli: CommandLine, model: Path) -> None:
    not_written(cli, model, model.parent / "none" / "out.onnx", "none is not a directory; create it first")


def test_output_name_too_long(cli: CommandLine, model: Path) -> None:
    not_written(cli, model, model.parent / ("n" * 300), "File name too long")


def test_output_directory_is_not_writable(cli: CommandLine, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    not_written(cli, model, model.parent / "new.onnx", "is not writable")


@pytest.mark.parametrize("name", ["model.onnx", "link.onnx", "hard.onnx"])
def test_output_is_the_input(cli: CommandLine, model: Path, name: str) -> None:
    (model.parent / "link.onnx").symlink_to(model)
    (model.parent / "hard.onnx").hardlink_to(model)
    not_written(cli, model, model.parent / name, "input, which is never changed", "--force")


@pytest.mark.parametrize("output", ["model.onnx.data", "weights"])
def test_output_is_the_input_s_data(cli: CommandLine, external: Path, output: str) -> None:
    if output == "weights":  # whose data file would be the one that the input reads
        (external.parent / "model.onnx.data").rename(external.parent / "weights.data")
        relocate(external, "weights.data")
    not_written(cli, external, external.parent / output, "input, which is never changed", "--force")


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("options", [(), ("--external-data",)])
def test_disk_is_full(
    cli: CommandLine, model: Path, monkeypatch: pytest.MonkeyPatch, call: str, options: tuple[str, ...]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    (model.parent / "out.onnx").write_text("an earlier output")  # only that is synced for
    with untouched(model.parent):
        with pytest.raises(OutputError, match="No space left"):
            onnxopt.optimize(model).save(model.parent / "out.onnx", force=True, external_data=bool(options))
        answer = cli("optimize", model, "-o", model.parent / "out.onnx", "--force", *options)
    assert answer.code == 2
    assert "No space left on device" in answer.error


def test_disk_gets_full_at_the_last_moment(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two files cannot be synced: the first must not have been replaced either."""
    save(load(model), model.parent / "out.onnx", force=True, external_data=True)
    calls = []
    sync = os.fsync

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr(os, "fsync", full)
    before = contents(model.parent)
    changed = write(model.parent / "other.onnx", BIG, w=np.zeros((100, 100), np.float32))
    with pytest.raises(OutputError):
        save(load(changed), model.parent / "out.onnx", force=True, external_data=True)
    changed.unlink()
    assert contents(model.parent) == before


# -- recipes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no recipe is called"),
        ("[[pass]", "is not valid"),
        ("[[pass]]\nname = 3", "a pass needs a name"),
        ("[[pass]]\nname = 'remove-no-ops'\nx = 1", "has no option 'x'"),
        ("[[pass]]\nname = 'remove-no-ops'\ninclude = 1", "Expected `array`, got `int`"),
        ("[[passes]]\nname = 'remove-no-ops'", "passes"),
        ("\xff", "is not valid"),
    ],
)
def test_bad_recipe(cli: CommandLine, model: Path, text: str | None, message: str) -> None:
    path = model.parent / "mine.toml"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    with untouched(model.parent):
        with pytest.raises(OptionError) as raised:
            onnxopt.optimize(model, recipe=path)
        answer = cli("optimize", model, "-o", model.parent / "new.onnx", "--recipe", path)
    assert answer.code == 2
    assert message in answer.error
    assert message in str(raised.value)


def test_all_errors_have_one_root() -> None:
    assert issubclass(ModelError, OnnxoptError)
    assert issubclass(ModelError, ValueError)
    assert issubclass(OutputError, OSError)
