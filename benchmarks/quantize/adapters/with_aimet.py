"""AIMET's post-training quantization: BatchNormalization folded, min/max ranges, exported as QDQ that runtimes can
fuse."""

from __future__ import annotations

from pathlib import Path

import aimet_onnx
import feeds as shared  # type: ignore[import-not-found]
import onnx
from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight

CONFIGURATIONS = Path(aimet_onnx.__file__).parent / "common" / "quantsim_config"


def main() -> None:
    configuration, source, calibration, batch, target = shared.arguments()
    model = onnx.load(source)
    if max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) < 13:
        model = onnx.version_converter.convert_version(model, 13)
    fold_all_batch_norms_to_weight(model)
    data = list(shared.feeds(source, calibration, batch))
    sim = aimet_onnx.QuantizationSimModel(
        model,
        param_type="int8",
        activation_type="int8",
        config_file=str(CONFIGURATIONS / f"{configuration}.json"),
        dummy_input=data[0],
        session_options_kwargs={"intra_op_num_threads": 1, "inter_op_num_threads": 1},
    )
    sim.compute_encodings(data)
    try:
        onnx.save(sim.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True), target)
    except RuntimeError as error:  # of a bias that two layers share
        print(f"no integer biases: {error}")
        onnx.save(sim.to_onnx_qdq(prequantize_constants=True), target)


if __name__ == "__main__":
    main()
