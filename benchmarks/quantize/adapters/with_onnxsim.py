"""onnxsim's static quantization: at its defaults, of the whole graph, and with the range method that scores best."""

from __future__ import annotations

import feeds as shared  # type: ignore[import-not-found]
import onnx
import onnxsim


def main() -> None:
    configuration, source, calibration, batch, target = shared.arguments()
    shared.one_thread()
    model = onnx.load(source)
    if max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) < 13:
        model = onnx.version_converter.convert_version(model, 13)
    model, _ = onnxsim.simplify(model)
    data = list(shared.feeds(source, calibration, batch))
    if configuration == "pick":
        model = onnxsim.pick_calibration(model, data, folds=2).model
    else:
        full = configuration == "full"
        model = onnxsim.quantize_static(model, data, full_graph=full, method="auto" if full else "minmax")
    onnx.save(model, target)


if __name__ == "__main__":
    main()
