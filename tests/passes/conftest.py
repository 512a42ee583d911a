"""What tests of several passes need: a trained model, and a clock that stands still."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

import onnxopt.passes.prune._structured as structured
from onnxopt.model import load
from onnxopt.pipeline import PassManager
from onnxopt.recipes import recipe
from onnxopt.runtime import Ratio

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="module")
def sentiment() -> ir.Model:
    """The text transformer, cleaned."""
    found = load(MODELS / "transformer_sentiment" / "model.onnx")
    return PassManager(recipe("cleanup"), verify="off").run(found)[0]


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is not measured: models without some of their channels count as twice as fast."""
    monkeypatch.setattr(structured, "measured", lambda before, after, feeds: Ratio(0.5, 0.5, 0.5, 0.5))
