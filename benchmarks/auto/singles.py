"""One method alone on the same samples: those of onnxopt, and ONNX Runtime's own quantizer.

python -m benchmarks.auto.singles NAME WAY SEED FOLDER      # JSON on stdout
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxopt
from onnxruntime import quantization as ort

from benchmarks.auto.cases import Feed, accuracy, case
from benchmarks.quantize import latency

Record = dict[str, Any]

OURS = {
    "int8": "cleanup,quantize-static",
    "int8-dynamic": "cleanup,quantize-dynamic",
    "weights in 8 bits": "cleanup,quantize-weights{bits=8,min_elements=0,operators=[MatMul,Gemm,Conv,Gather]}",
    "weights in 4 bits": "cleanup,quantize-weights{bits=4,min_elements=0,operators=[MatMul,Gemm,Conv,Gather]}",
    "pruned 0.2": "cleanup,prune-channels{ratio=0.2,of=macs,scope=global},reconstruct,cleanup",
    "pruned 0.4": "cleanup,prune-channels{ratio=0.4,of=macs,scope=global},reconstruct,cleanup",
    "pruned 0.6": "cleanup,prune-channels{ratio=0.6,of=macs,scope=global},reconstruct,cleanup",
    "low-rank 0.3": "cleanup,split-conv{ratio=0.3},split-matmul{ratio=0.3},cleanup",
    "low-rank 0.5": "cleanup,split-conv{ratio=0.5},split-matmul{ratio=0.5},cleanup",
}
PEERS = ("ORT static", "ORT dynamic")
WAYS = (*OURS, *PEERS)
_CALIBRATION = 128


class Reader(ort.CalibrationDataReader):  # type: ignore[misc]
    """Samples one by one."""

    def __init__(self, data: Feed) -> None:
        self._feeds = self._each(data)

    @staticmethod
    def _each(data: Feed) -> Iterator[Feed]:
        for at in range(_CALIBRATION):
            yield {name: x[at : at + 1] for name, x in data.items() if name != "labels"}

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def tried(name: str, way: str, seed: int, folder: Path) -> Record:
    """What came of it; ``failure`` says why nothing did."""
    one = case(name)
    given, _, untouched = one.split(seed)
    made = folder / f"{name}-{way}.onnx".replace(" ", "-")
    try:
        if way in OURS:
            onnxopt.optimize(one.model, passes=OURS[way], data=given, verify="off").save(made, force=True)
        else:
            peer(way, one.model, given, made)
        after = accuracy(made, one, untouched)
    except Exception as error:  # peers raise what they like
        return {"way": way, "failure": f"{type(error).__name__}: {error}"[:200]}
    return {
        "way": way,
        "before": accuracy(one.model, one, untouched),
        "after": after,
        "latency": latency.ratio(one.model, made, one.one),
        "size": made.stat().st_size / one.model.stat().st_size,
    }


def peer(way: str, model: Path, data: Feed, made: Path) -> None:
    if way == "ORT dynamic":
        ort.quantize_dynamic(model, made)
        return
    prepared = made.with_suffix(".prepared.onnx")
    ort.shape_inference.quant_pre_process(str(model), str(prepared))
    ort.quantize_static(str(prepared), str(made), Reader(data))


def main() -> None:
    name, way, seed, folder = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    print(json.dumps(tried(name, way, int(seed), Path(folder))))


if __name__ == "__main__":
    main()
