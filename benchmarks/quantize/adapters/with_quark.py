"""AMD Quark's presets for ONNX models, each as it is."""

from __future__ import annotations

from typing import Any

import feeds as shared  # type: ignore[import-not-found]
import onnx
from onnxruntime.quantization import CalibrationDataReader
from quark.onnx import ModelQuantizer
from quark.onnx.quantization.config import Config, custom_config


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Quark reads the data more than once."""

    def __init__(self, data: list[Any]) -> None:
        self.data = data
        self.rewind()

    def rewind(self) -> None:
        self.feeds = iter(self.data)

    def reset_iter(self) -> None:
        self.rewind()

    def get_next(self) -> Any:
        return next(self.feeds, None)

    def __len__(self) -> int:
        return len(self.data)


def main() -> None:
    configuration, source, calibration, batch, target = shared.arguments()
    shared.one_thread()
    model = onnx.load(source)
    if max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) < 13:
        model = onnx.version_converter.convert_version(model, 13)
    preset = custom_config.get_default_config(configuration)
    reader = Reader(list(shared.feeds(source, calibration, batch)))
    ModelQuantizer(Config(global_quant_config=preset)).quantize_model(model, target, reader)


if __name__ == "__main__":
    main()
