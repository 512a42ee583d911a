"""A process that trains, for its memory to be looked at: ours without PyTorch, or PyTorch's.

    python -m benchmarks.train.memory onnxopt MODEL.onnx BATCH
    python -m benchmarks.train.memory pytorch NET BATCH
    python -m benchmarks.train.memory export NET MODEL.onnx        # writes what ours trains; where PyTorch is

Prints the resident size before the network is there; the peak is for the caller to see.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

STEPS = 5


def ours(path: str, batch: int) -> int:
    import numpy as np
    import onnxopt
    from onnxopt.data import load_data
    from onnxopt.train import CrossEntropy, TrainConfig, train

    before = peak()
    model = onnxopt.load(path)
    dims = list(model.graph.inputs[0].shape or ())[1:]
    generator = np.random.default_rng(0)
    x = generator.standard_normal((batch, *(int(dim) for dim in dims if isinstance(dim, int)))).astype(np.float32)
    data = load_data({"x": x, "labels": generator.integers(0, 10, batch)}, model)
    for _ in train(model, CrossEntropy(), data, TrainConfig(steps=STEPS, batch=batch, batch_norm="train", threads=1)):
        pass
    return before


def theirs(name: str, batch: int) -> int:
    import torch

    from benchmarks.train.nets import NETS, torch_step

    before = peak()
    torch.set_num_threads(1)
    step = torch_step(NETS[name].module().train(), NETS[name].inputs(batch), NETS[name].labels(batch))
    for _ in range(STEPS):
        step()
    return before


def write(name: str, path: Path) -> None:
    """The net with a batch of any size."""
    import onnx

    from benchmarks.train.nets import NETS, export

    model = export(NETS[name].module().eval(), (NETS[name].inputs(2),), ("x",), "y")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def peak() -> int:
    """The largest resident size so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    what, first, second = sys.argv[1:]
    match what:
        case "export":
            write(first, Path(second))
        case "onnxopt":
            print(json.dumps({"before": ours(first, int(second))}))
        case "pytorch":
            print(json.dumps({"before": theirs(first, int(second))}))


if __name__ == "__main__":
    main()
