"""Torch-Pruning's one-shot on our trained models, as ONNX. Runs in Torch-Pruning's environment.

    python -m benchmarks.prune.one_shot NAME MODEL.onnx TARGET.onnx POWER RATIO

``POWER`` is 1 for L1 and 2 for L2; ratio 0 exports the twin as it is. A twin that does not compute what the file does
is an error.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
import torch_pruning as tp

from benchmarks.prune.twins import TWINS, load


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    name, source, target, power, ratio = sys.argv[1:6]
    twin = TWINS[name]
    model, inputs = load(name, Path(source)), twin.example()
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        y = session.run([twin.output], {twin.input: inputs.numpy()})[0]
        np.testing.assert_allclose(model(inputs).numpy(), y, rtol=1e-3, atol=1e-4)
    if float(ratio):
        heads = {model.get_submodule(layer): count for layer, count in twin.heads.items()}
        tp.pruner.BasePruner(
            model,
            inputs,
            importance=tp.importance.GroupMagnitudeImportance(p=int(power)),
            pruning_ratio=float(ratio),
            ignored_layers=[model.get_submodule(twin.last)],
            in_channel_groups={},
            out_channel_groups={},
            num_heads=heads,
        ).step()
    torch.onnx.export(
        model,
        (inputs,),
        target,
        input_names=[twin.input],
        output_names=[twin.output],
        dynamic_axes={each: {0: "batch"} for each in (twin.input, twin.output)},
        opset_version=17,
        dynamo=False,
    )


if __name__ == "__main__":
    main()
