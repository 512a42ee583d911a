"""A 1-D convolutional network from Keras on MNIST-1D, exported with tf2onnx: channels last, transposed.

requires: tensorflow-cpu==2.15.1 tf2onnx==1.17.0 onnx==1.17.0 onnxruntime==1.32.0 numpy<2 (Python 3.11)
run: python models/cnn1d_mnist1d/make.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf2onnx
from tensorflow import keras

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models._common import DATA, MODELS, Array, record, samples, save_eval

NAME = "cnn1d_mnist1d"
DATA_SET = "mnist1d"


def network(classes: int = 10) -> keras.Model:
    """Four convolutions, three of them in a row on half the length, the last two with a shortcut."""
    layers = keras.layers

    def conv(y: tf.Tensor, filters: int, kernel: int, strides: int = 1) -> tf.Tensor:
        y = layers.Conv1D(filters, kernel, strides, padding="same", use_bias=False)(y)
        return layers.ReLU()(layers.BatchNormalization()(y))

    signal = keras.Input((40, 1), name="signal")
    y = conv(signal, 32, 5)
    y = shortcut = conv(y, 64, 5, strides=2)
    y = conv(conv(y, 64, 5), 64, 5)
    y = layers.MaxPooling1D(2)(layers.Add()([y, shortcut]))
    y = conv(y, 96, 3)
    y = layers.Dropout(0.3)(layers.GlobalAveragePooling1D()(y))
    return keras.Model(signal, layers.Dense(classes, activation="softmax", name="probabilities")(y))


def shifted(x: Array, y: Array, batch: int, steps: int, rng: np.random.Generator) -> tf.data.Dataset:
    """``steps`` batches of signals, each turned around by up to 4 places, with a little noise."""
    picks = rng.integers(0, len(x), steps * batch)
    places = (np.arange(x.shape[1]) + rng.integers(-4, 5, (len(picks), 1))) % x.shape[1]
    noisy = x[picks[:, None], places] + 0.05 * rng.standard_normal(places.shape)
    return tf.data.Dataset.from_tensor_slices((noisy.astype(np.float32)[..., None], y[picks])).batch(batch)


def main() -> None:
    """Train, export, measure."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)
    x, y = samples(DATA_SET, "train")
    rng = np.random.default_rng(0)
    epochs, steps, batch = 50, 62, 64
    net = network()
    rate = keras.optimizers.schedules.CosineDecay(3e-4, epochs * steps, warmup_target=3e-3, warmup_steps=300)
    net.compile(keras.optimizers.AdamW(rate, weight_decay=0.02), "sparse_categorical_crossentropy")
    for epoch in range(epochs):
        history = net.fit(shifted(x, y, batch, steps, rng), verbose=0).history
        print(f"epoch {epoch + 1}/{epochs}: loss {history['loss'][0]:.3f}", flush=True)
    signature = [tf.TensorSpec((None, 40, 1), tf.float32, name="signal")]
    tf2onnx.convert.from_keras(net, signature, opset=16, output_path=str(MODELS / NAME / "model.onnx"))
    x, y = samples(DATA_SET, "test")
    save_eval(path := DATA / "mnist1d_eval.npz", y, signal=x[..., None])
    exporter = f"tf2onnx {tf2onnx.__version__} (TensorFlow {tf.__version__})"
    record(NAME, exporter, DATA_SET, path, "probabilities")


if __name__ == "__main__":
    main()
