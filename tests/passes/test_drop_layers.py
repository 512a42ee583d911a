"""``drop-layers``: every second of equal blocks goes, and what is left is a valid network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.errors import OptionError
from onnxopt.graph import Editor
from onnxopt.model import copy
from onnxopt.pass_base import Context, Gate
from onnxopt.passes.distill.drop_layers import DropLayers
from tests.support import assert_same_outputs, count_ops, graph, ops, run
from tests.train.cases import initializers, weights


def _transformer(blocks: Sequence[int], *, post: bool = False) -> ir.Model:
    """Blocks of two branches, of which the first mixes tokens; normalized before, or (``post``) after each."""
    text, last = "e = LayerNormalization(x, scale) ", "e"
    arrays: Any = {"scale": np.ones(4, np.float32), "head": weights(np.random.default_rng(0), 4, 3)}
    for at in blocks:
        generator = np.random.default_rng(at)
        arrays[f"m{at}"] = weights(generator, 6, 6)
        arrays |= {f"u{at}": weights(generator, 4, 8), f"v{at}": weights(generator, 8, 4)}
        for name, branch in {f"a{at}": _MIX, f"f{at}": _FEED}.items():
            if post:
                text += branch.format(at, last) + f"{name}s = Add({last}, o{name}) "
                text += f"{name} = LayerNormalization({name}s, scale) "
            else:
                text += f"{name}n = LayerNormalization({last}, scale) " + branch.format(at, f"{name}n")
                text += f"{name} = Add({last}, o{name}) "
            last = name
    return graph(f"g (float[N,6,4] x) => (float[N,6,3] y) {{ {text} y = MatMul({last}, head) }}", **arrays)


_MIX = "t{0} = Transpose<perm = [0, 2, 1]>({1}) p{0} = MatMul(t{0}, m{0}) oa{0} = Transpose<perm = [0, 2, 1]>(p{0}) "
_FEED = "h{0} = MatMul({1}, u{0}) r{0} = Relu(h{0}) of{0} = MatMul(r{0}, v{0}) "
_X = {"x": np.random.default_rng(1).standard_normal((2, 6, 4)).astype(np.float32)}


@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 2, 4]),
        ({"keep": "first"}, [0, 1, 2]),
        ({"keep": "last", "layers": 2}, [4, 5]),
        ({"layers": 4}, [0, 1, 3, 4]),
    ],
)
def test_whole_blocks_go(post: bool, options: dict[str, Any], kept: list[int]) -> None:
    """What is left is the network that is made of the other blocks."""
    after, report = run(DropLayers(**options), _transformer(range(6), post=post))
    wanted = _transformer(kept, post=post)
    assert report.changed == 2 * (6 - len(kept))
    assert count_ops(after) == count_ops(wanted)
    assert initializers(after).keys() == initializers(wanted).keys()
    assert_same_outputs(wanted, after, _X)


def test_residual_convolutions() -> None:
    generator = np.random.default_rng(0)
    arrays: Any = {f"w{at}": weights(generator, 4, 4, 3, 3) for at in range(4)}
    text, last = "", "x"
    for at in range(4):
        text += f"c{at} = Conv<pads = [1, 1, 1, 1]>({last}, w{at}) a{at} = Add({last}, c{at}) r{at} = Relu(a{at}) "
        last = f"r{at}"
    model = graph(f"g (float[N,4,5,5] x) => (float[N,4,5,5] y) {{ {text} y = Identity({last}) }}", **arrays)
    after, report = run(DropLayers(), model)
    assert report.changed == 2
    assert ops(after) == ["Conv", "Add", "Relu", "Conv", "Add", "Relu", "Identity"]
    assert initializers(after).keys() == {"w0", "w2"}


def test_filters_and_gate_are_kept() -> None:
    _, report = run(DropLayers(exclude=("f*",)), _transformer(range(4)))
    assert all(not note.node.startswith("f") for note in report.changes)
    model = copy(_transformer(range(4)))
    assert DropLayers().run(Context(Editor(model), Gate(1))).changed == 1


def test_what_does_not_repeat_is_refused() -> None:
    _, report = run(DropLayers(), _transformer(range(1)))
    assert "no residual blocks of it are alike" in report.refusals[0].text
    _, report = run(DropLayers(layers=9), _transformer(range(3)))
    assert report.changed == 0
    assert "3 blocks, and 9 are kept" in report.refusals[0].text


@pytest.mark.parametrize("options", [{"keep": "some"}, {"layers": -1}])
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        DropLayers(**options)
