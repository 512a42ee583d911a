"""ONNX Runtime's own quantization, as its documentation says: preprocess, raise the opset, quantize."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import feeds as shared  # type: ignore[import-not-found]
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

HEAVY = ["Conv", "ConvTranspose", "MatMul", "Gemm"]
U8 = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}

STATIC: dict[str, dict[str, Any]] = {
    "minmax": {"per_channel": True, **U8},
    "entropy": {"per_channel": True, "calibrate_method": CalibrationMethod.Entropy, **U8},
    "percentile": {"per_channel": True, "calibrate_method": CalibrationMethod.Percentile, **U8},
    "heavy": {"per_channel": True, "op_types_to_quantize": HEAVY, **U8},
    "tensor": {},
}
"""``tensor``: all defaults, which are S8 activations and weights, one scale a tensor."""


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Any) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Any:
        return next(self.feeds, None)


def prepare(source: str, folder: str) -> str:
    """Preprocessed, at opset 13 or later; each step is left out where it fails, as a user would."""
    model = onnx.load(source)
    if max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) < 13:
        try:
            model = onnx.version_converter.convert_version(model, 13)
        except Exception as error:
            print(f"no opset 13: {error}")
    raised = str(Path(folder) / "raised.onnx")
    onnx.save(model, raised)
    ready = str(Path(folder) / "ready.onnx")
    for skip in (False, True):
        try:
            quant_pre_process(raised, ready, skip_symbolic_shape=skip)
            return ready
        except Exception as error:
            print(f"preprocessing, skip_symbolic_shape={skip}: {error}")
    return raised


def main() -> None:
    configuration, source, calibration, batch, target = shared.arguments()
    shared.one_thread()
    with tempfile.TemporaryDirectory() as folder:
        ready = prepare(source, folder)
        if configuration == "dynamic":
            quantize_dynamic(ready, target, per_channel=True)
        else:
            reader = Reader(shared.feeds(source, calibration, batch))
            quantize_static(ready, target, reader, **STATIC[configuration])


if __name__ == "__main__":
    main()
