"""An MLP-Mixer from JAX on MNIST-1D, exported with jax2onnx.

requires: jax==0.10.2 flax==0.12.8 optax==0.2.8 jax2onnx==0.17.1 onnx==1.23.2 onnxruntime==1.32.0 numpy
run: python models/mixer_mnist1d/make.py
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import onnx
import optax
from flax import nnx
from jax import numpy as jnp
from jax2onnx import to_onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models._common import DATA, MODELS, record, samples, save_eval

NAME = "mixer_mnist1d"
DATA_SET = "mnist1d"
PATCH = 4
PATCHES = 19  # windows of 4 points, 2 apart, in 40 points


class Mlp(nnx.Module):
    """Widen, bend, narrow."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs) -> None:
        self.wide = nnx.Linear(width, hidden, rngs=rngs)
        self.narrow = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.narrow(nnx.gelu(self.wide(x), approximate=False))


class Block(nnx.Module):
    """Mix the patches of each channel, then the channels of each patch."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.patches = Mlp(PATCHES, 2 * PATCHES, rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.channels = Mlp(width, 2 * width, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + jnp.swapaxes(self.patches(jnp.swapaxes(self.norm1(x), 1, 2)), 1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nnx.Module):
    """Signals (N × 40 × 1) to ten scores."""

    def __init__(self, rngs: nnx.Rngs, width: int = 64, blocks: int = 3, classes: int = 10) -> None:
        self.embed = nnx.Conv(1, width, (PATCH,), strides=2, padding="VALID", rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs) for _ in range(blocks)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, signal: jax.Array) -> jax.Array:
        x = self.embed(signal)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def train(net: Mixer, epochs: int = 120, lr: float = 2e-3, batch: int = 64) -> None:
    """Train ``net`` in place on signals turned around by up to 6 places, with a little noise."""
    x, y = samples(DATA_SET, "train")
    rng = np.random.default_rng(0)
    steps = len(x) // batch
    rate = optax.cosine_onecycle_schedule(epochs * steps, lr)
    optimizer = nnx.Optimizer(net, optax.adamw(rate, weight_decay=0.1), wrt=nnx.Param)

    @nnx.jit
    def step(net: Mixer, optimizer: nnx.Optimizer[Mixer], x: jax.Array, y: jax.Array) -> jax.Array:
        def loss_of(net: Mixer) -> jax.Array:
            targets = optax.smooth_labels(jax.nn.one_hot(y, 10), 0.05)
            return optax.softmax_cross_entropy(net(x), targets).mean()

        loss, gradients = nnx.value_and_grad(loss_of)(net)
        optimizer.update(net, gradients)
        return loss

    for epoch in range(epochs):
        total = 0.0
        for index in rng.permutation(len(x))[: steps * batch].reshape(steps, batch):
            places = (np.arange(x.shape[1]) + rng.integers(-6, 7, (batch, 1))) % x.shape[1]
            noisy = x[index[:, None], places] + 0.05 * rng.standard_normal(places.shape)
            total += float(step(net, optimizer, noisy.astype(np.float32)[..., None], y[index]))
        print(f"epoch {epoch + 1}/{epochs}: loss {total / steps:.3f}", flush=True)


def main() -> None:
    """Train, export, measure."""
    net = Mixer(nnx.Rngs(0))
    train(net)
    model = to_onnx(net, [("batch", 40, 1)], opset=21, input_names=["signal"], output_names=["logits"])
    onnx.save(model, MODELS / NAME / "model.onnx")
    x, y = samples(DATA_SET, "test")
    save_eval(path := DATA / "mnist1d_eval.npz", y, signal=x[..., None])
    exporter = f"jax2onnx {version('jax2onnx')} (JAX {jax.__version__}, Flax {version('flax')})"
    record(NAME, exporter, DATA_SET, path, "logits")


if __name__ == "__main__":
    main()
