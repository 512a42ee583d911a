"""Load, clean, save: the same three steps through each tool's own Python API, in that tool's own environment.

Run by path, not imported, since a peer's environment has nothing of ours:

    python -P adapters.py TOOL INPUT OUTPUT                 # once
    python -P adapters.py TOOL INPUT OUTPUT --repeat 5      # a warm-up, then five timed runs; JSON on stdout

Every tool runs with its defaults, without verification.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable

# Peers are imported where they are used: each environment has only one of them.
Clean = Callable[[str, str], None]


def onnxopt() -> Clean:
    import onnxopt

    def clean(source: str, target: str) -> None:
        onnxopt.optimize(source, recipe="cleanup", verify="off").save(target)

    return clean


def onnxsim() -> Clean:
    import onnx
    import onnxsim  # type: ignore[import-not-found]

    def clean(source: str, target: str) -> None:
        model, _ = onnxsim.simplify(onnx.load(source))
        onnx.save(model, target)

    return clean


def onnxslim() -> Clean:
    import onnx
    import onnxslim  # type: ignore[import-not-found]

    def clean(source: str, target: str) -> None:
        onnx.save(onnxslim.slim(source), target)

    return clean


def onnxoptimizer() -> Clean:
    import onnx
    import onnxoptimizer  # type: ignore[import-not-found]

    def clean(source: str, target: str) -> None:
        onnx.save(onnxoptimizer.optimize(onnx.load(source)), target)

    return clean


def onnxscript() -> Clean:
    import onnx_ir
    from onnxscript import optimizer  # type: ignore[import-not-found]

    def clean(source: str, target: str) -> None:
        onnx_ir.save(optimizer.optimize(onnx_ir.load(source)), target)

    return clean


def ort() -> Clean:
    import onnxruntime

    def clean(source: str, target: str) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = target
        options.log_severity_level = 4
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return clean


TOOLS: dict[str, Callable[[], Clean]] = {
    f.__name__: f for f in (onnxopt, onnxsim, onnxslim, onnxoptimizer, onnxscript, ort)
}


def timed(clean: Clean, source: str, target: str, repeat: int, limit: float = 60.0) -> dict[str, list[float]]:
    """Wall and CPU seconds of each run, the warm-up first; a slow tool gets fewer repeats."""
    wall: list[float] = []
    cpu: list[float] = []
    while len(wall) <= repeat and (len(wall) < 2 or sum(wall) < limit):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        start, start_cpu = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            clean(source, target)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return {"wall": wall, "cpu": cpu}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tool", choices=sorted(TOOLS))
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--repeat", type=int, default=0)
    args = parser.parse_args()
    clean = TOOLS[args.tool]()
    if args.repeat:
        json.dump(timed(clean, args.source, args.target, args.repeat), sys.stdout)
    else:
        clean(args.source, args.target)


if __name__ == "__main__":
    main()
