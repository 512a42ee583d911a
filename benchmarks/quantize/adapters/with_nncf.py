"""NNCF's post-training quantization of ONNX models, at its defaults or with the preset that its guide has for
transformers. Data are the whole calibration set."""

from __future__ import annotations

from typing import Any

import feeds as shared  # type: ignore[import-not-found]
import nncf
import onnx

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "transformer": {"model_type": nncf.ModelType.TRANSFORMER},
}


def main() -> None:
    configuration, source, calibration, batch, target = shared.arguments()
    shared.one_thread()
    model = onnx.load(source)
    if max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) < 13:
        model = onnx.version_converter.convert_version(model, 13)
    data = list(shared.feeds(source, calibration, batch))
    onnx.save(nncf.quantize(model, nncf.Dataset(data), subset_size=len(data), **OPTIONS[configuration]), target)


if __name__ == "__main__":
    main()
