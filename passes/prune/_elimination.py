"""How much the layers that read each channel lose for good when it goes, in the best order.

Channels of a group are taken out one after the other, always the one whose readers, all fitted anew, lose least (see
``_least_squares.eliminate``); the score of a channel is by how much their error grows when it is its turn, relative to
what varies in their outputs. Scores of different groups can be compared, and divided by what a channel costs. They
are of use where the layers are fitted anew afterwards, by ``reconstruct``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxopt.channels import Group, Member
from onnxopt.data import Dataset
from onnxopt.graph import Editor, attribute
from onnxopt.pass_base import Refuse
from onnxopt.passes.prune._cross_grams import Pair, reading
from onnxopt.passes.prune._least_squares import Array, Moments, Reader, eliminate
from onnxopt.passes.prune._refits import LARGEST, Refit, dense_layer

_MEMORY = 1 << 30
"""Bytes of the sums that are held at one time."""


def elimination_scores(
    groups: Sequence[Group], editor: Editor, data: Dataset, seed: int = 0,
    on_progress: Callable[[str], None] | None = None,
) -> dict[int, Array]:  # fmt: skip
    """By number of the group the score of each channel (float64 [channels], none below 0).

    Groups that are read by anything but a Conv without groups, a Gemm or a MatMul are left out.
    """
    dense = reading(editor.model, data)
    found: dict[int, Array] = {}
    pair = Pair(dense, data, seed)
    for part in _parts(groups, editor, pair):
        layers = dict.fromkeys(layer for readers in part.values() for _, layer in readers)
        moments = pair.moments(list(layers), dense)
        for number, readers in part.items():
            if on_progress is not None:
                on_progress(f"importance of channels, {len(found)} of {len(groups)} groups")
            if all(layer in moments for _, layer in readers):
                order, lost = eliminate([_reader(member, layer, moments[layer]) for member, layer in readers])
                scores = np.empty(len(order))
                # what goes later never has the lower score, so that those of lowest scores go together best
                scores[order] = np.maximum.accumulate(np.diff(lost, prepend=0.0).clip(0.0))
                found[number] = scores
    return found


Readers = list[tuple[Member, Refit]]


def _parts(groups: Sequence[Group], editor: Editor, pair: Pair) -> Iterator[dict[int, Readers]]:
    """Groups with the layers that read them, in parts whose sums fit into memory together."""
    layers: dict[ir.Node, Refit] = {}
    part: dict[int, Readers] = {}
    room = _MEMORY
    for group in groups:
        members = [member for member in group.members if member.role == "in"]
        try:
            readers = [
                (member, layers.setdefault(node, _layer(node, member, editor, pair)))
                for member in members
                for node in member.nodes
            ]
        except Refuse:
            continue
        size = sum(layer.bytes for _, layer in readers)
        if part and size > room:
            yield part
            part, room = {}, _MEMORY
        if readers:
            part[group.number] = readers
            room -= size
    if part:
        yield part


def _layer(node: ir.Node, member: Member, editor: Editor, pair: Pair) -> Refit:
    layer = dense_layer(node, editor)
    if attribute(node, "group", 1) != 1 or layer.layer.weight is not member.value:
        raise Refuse("it does not multiply all its channels with one matrix")
    if layer.product.size[1] > LARGEST or pair.unreadable(layer) is not None:
        raise Refuse("there is no Gram matrix of what it reads")
    return layer


def _reader(member: Member, layer: Refit, moments: Moments) -> Reader:
    size = member.value.shape
    assert size is not None
    # a Conv reads each channel with a whole kernel
    kernel = layer.product.size[1] // int(size[member.axis])  # type: ignore[arg-type]
    columns = member.index[:, :, None] * kernel + np.arange(kernel)
    return Reader(moments, tuple((0, each.reshape(-1)) for each in columns))
