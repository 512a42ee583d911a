"""Small models and data to train on."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt.data import Dataset, load_data
from tests import support

Array = np.ndarray[Any, Any]


def weights(generator: np.random.Generator, *shape: int) -> Array:
    """Normal numbers, of length about 1 a column."""
    return np.asarray(generator.standard_normal(shape) / np.sqrt(shape[0]), np.float32)


def perceptron(seed: int = 0, hidden: int = 16) -> ir.Model:
    """Two layers, from points in the plane to scores of three classes."""
    generator = np.random.default_rng(seed)
    return support.graph(
        "g (float[N,2] x) => (float[N,3] y) { a = Gemm(x, w1, b1) r = Relu(a) p = MatMul(r, w2) y = Add(p, b2) }",
        w1=weights(generator, 2, hidden), b1=np.zeros(hidden, np.float32),
        w2=weights(generator, hidden, 3), b2=np.zeros(3, np.float32),
    )  # fmt: skip


def sectors(samples: int = 200, seed: int = 0) -> dict[str, Array]:
    """Points in the plane, and in which third of it each lies."""
    points = np.random.default_rng(seed).standard_normal((samples, 2)).astype(np.float32)
    angles = np.arctan2(points[:, 1], points[:, 0]) + np.pi
    return {"x": points, "labels": np.minimum(angles // (2 * np.pi / 3), 2).astype(np.int64)}


def dataset(samples: int = 200, seed: int = 0) -> Dataset:
    """The same as data for ``perceptron``."""
    return load_data(sectors(samples, seed), perceptron())


def initializers(model: ir.Model) -> dict[str, Array]:
    """The constants of a model, by name."""
    return {
        name: value.const_value.numpy().copy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
