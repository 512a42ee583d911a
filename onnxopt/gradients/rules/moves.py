"""Operators that move elements or repeat them, each axis as a whole."""

from __future__ import annotations

import numpy as np

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp


@vjp("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(at: Backward) -> Gradients:
    """``y`` holds ``x`` in the same order: ``dx = g`` with the dims of ``x``."""
    return [at.reshape(at.g, *at.shape(at.inputs[0]))]


@vjp("Transpose")
def _transpose(at: Backward) -> Gradients:
    """``dx = g`` with its axes in the order they had."""
    rank = at.rank(at.inputs[0])
    perm = at.attribute("perm", range(rank)[::-1])
    return [at.transpose(at.g, *(int(axis) for axis in np.argsort(perm)))]


@vjp("Expand")
def _expand(at: Backward) -> Gradients:
    """``y = x`` all along the new axes: ``dx = Σ g`` over them."""
    return [at.unbroadcast(at.g, at.inputs[0])]


@vjp("Tile")
def _tile(at: Backward) -> Gradients:
    """``y`` holds ``r`` copies of ``x`` along an axis: ``dx = Σ g`` over the copies."""
    x = at.inputs[0]
    split: list[int] = []
    copies: list[int] = []
    for size, repeat in zip(at.shape(x), at.numbers(at.inputs[1]), strict=True):
        if repeat != 1:
            copies.append(len(split))
            split.append(repeat)
        split.append(size)
    if not copies:
        return [at.g]
    return [at.sum(at.reshape(at.g, *split), *copies, keepdims=False)]


@vjp("DepthToSpace")
def _depth_to_space(at: Backward) -> Gradients:
    """``y`` holds the channels of ``x``, seen as (block, block, c) in mode DCR and as (c, block, block) in mode CRD, as
    blocks of the image: ``dx`` holds the blocks of ``g`` as channels."""
    block = at.attribute("blocksize")
    dx = at.op("SpaceToDepth", at.g, blocksize=block)  # in mode DCR
    if at.attribute("mode", "DCR") == "CRD":
        order = np.arange(at.shape(at.inputs[0])[1]).reshape(block**2, -1).T.reshape(-1)
        dx = at.op("Gather", dx, at.const(order), axis=1)
    return [dx]


@vjp("SpaceToDepth")
def _space_to_depth(at: Backward) -> Gradients:
    """The inverse of DepthToSpace: ``dx = DepthToSpace(g)``. Before opset 28 there is mode DCR alone."""
    mode = at.attribute("mode", "DCR")
    return [at.op("DepthToSpace", at.g, blocksize=at.attribute("blocksize"), mode=mode)]
