"""Rotary embeddings."""

from __future__ import annotations

from onnxopt.gradients.node import Backward
from onnxopt.gradients.registry import Gradients, vjp


@vjp("RotaryEmbedding")
def _rotary_embedding(at: Backward) -> Gradients:
    """``y`` is ``x`` with its pairs turned by angles; ``dx`` is ``g`` turned back, the sines negated."""
    return _turned_back(at, 2)


@vjp("RotaryEmbedding", domain="com.microsoft")
def _rotary_embedding_of_runtime(at: Backward) -> Gradients:
    """The same with the positions before the caches."""
    return _turned_back(at, 3)


def _turned_back(at: Backward, sine: int) -> Gradients:
    """``sine`` is the place of the cache of sines, after that of cosines."""
    if at.wants(sine) or at.wants(sine - 1):
        raise at.error("its caches of sines and cosines are to be constants")
    rest = list(at.node.inputs[1:])
    rest[sine - 1] = at.op("Neg", at.inputs[sine])
    attributes = {name: attribute.value for name, attribute in at.node.attributes.items()}
    return [at.op("RotaryEmbedding", at.g, *rest, domain=at.node.domain, **attributes)]
