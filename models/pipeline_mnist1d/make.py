"""A scikit-learn pipeline on MNIST-1D, exported with its ZipMap: probabilities come as one map a sample.

requires: scikit-learn==1.9.1 skl2onnx==1.20.0 onnx==1.23.2 onnxruntime==1.32.0 numpy
run: python models/pipeline_mnist1d/make.py
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.decomposition import PCA
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models._common import MODELS, record, samples, save_eval

NAME = "pipeline_mnist1d"
DATA_SET = "mnist1d"
SHIFTS = range(-10, 11)


def main() -> None:
    """Train on shifted copies too, export, measure."""
    x, y = samples(DATA_SET, "train")
    x = np.concatenate([np.roll(x, shift, axis=1) for shift in SHIFTS])
    y = np.tile(y, len(SHIFTS))
    mlp = MLPClassifier((256, 128), alpha=1e-3, batch_size=200, max_iter=12, random_state=0)
    pipeline = Pipeline([("scale", StandardScaler()), ("pca", PCA(36, random_state=0)), ("mlp", mlp)])
    pipeline.fit(x, y)
    model = to_onnx(pipeline, x[:1], target_opset={"": 17, "ai.onnx.ml": 3})
    (MODELS / NAME / "model.onnx").write_bytes(model.SerializeToString())
    x, y = samples(DATA_SET, "test")
    save_eval(path := MODELS / NAME / "eval.npz", y, X=x)
    exporter = f"skl2onnx {version('skl2onnx')} (scikit-learn {version('scikit-learn')})"
    record(NAME, exporter, DATA_SET, path, "output_label")


if __name__ == "__main__":
    main()
