"""Peak memory against the number of calibration samples.

    python -m benchmarks.quantize.memory                       # writes memory.md
    python -m benchmarks.quantize.memory --samples 10000 --tools onnxopt

The calibration set of a task is repeated, with a little noise on it so that no sample is another's equal.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import facts, venvs
from benchmarks.cleanup import measure
from benchmarks.cleanup.tables import table
from benchmarks.quantize import corpus, experiment
from benchmarks.quantize.task import Task
from benchmarks.quantize.tools import BY_NAME, Tool

HERE = Path(__file__).parent
TIMEOUT = 1800.0


def enlarge(task: Task, samples: int, folder: Path) -> Task:
    """The task with a calibration set of so many samples."""
    rng = np.random.default_rng(0)
    arrays = {}
    with np.load(task.calibration, allow_pickle=False) as file:
        for name in file.files:
            x = file[name]
            x = x[np.arange(samples) % len(x)]
            if x.dtype.kind == "f":
                for part in np.array_split(x, max(1, samples // 500)):  # views: noise for all would double the memory
                    np.add(part, np.float32(0.01) * rng.standard_normal(part.shape, np.float32), out=part)
            arrays[name] = x
    path = folder / f"{samples}.npz"
    np.savez(path, **arrays)
    return dataclasses.replace(task, calibration=path)


def row(task: Task, tool: Tool, counts: Sequence[int], folder: Path) -> list[str]:
    cells = []
    for samples in counts:
        larger = enlarge(task, samples, folder)
        limit = ["prlimit", f"--as={experiment.MEMORY}"] if tool.peer else []
        run = measure.run([*limit, *tool.command(larger, folder / "out.onnx")], TIMEOUT, sample=True)
        said = "" if run.ok else f" ({run.failure()[0]})"
        cells.append(f"{run.peak_rss / 1e6:.0f} MB, {run.cpu:.0f} s{said}")
        larger.calibration.unlink()
        (folder / "out.onnx").unlink(missing_ok=True)
    return [task.name, f"{facts.file_size(task.model) / 1e6:.1f}", tool.name, *cells]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantize.memory", description=__doc__)
    parser.add_argument("--samples", default="160,1600,10000", help="how many, comma-separated")
    parser.add_argument("--models", default="own/resnet8_mnist_hard,real/ppocr-cls", help="of the tasks, globs")
    parser.add_argument("--tools", default="onnxopt,ort-minmax,ort-percentile,nncf", help=f"of {', '.join(BY_NAME)}")
    parser.add_argument("--out", type=Path, default=HERE / "memory.md")
    args = parser.parse_args(argv)
    experiment.one_thread()
    counts = [int(n) for n in args.samples.split(",")]
    folder = Path(tempfile.mkdtemp(dir=venvs.CACHE, prefix="memory-"))
    rows = []
    try:
        for task in corpus.tasks(["real", "own"], args.models.split(",")):
            for name in args.tools.split(","):
                rows.append(row(task, BY_NAME[name], counts, folder))
                print(rows[-1], file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder)
    head = ["model", "file (MB)", "tool", *(f"{n:,} samples" for n in counts)]
    text = (
        "# Quantization: memory against calibration samples\n\nPeak resident memory of the process tree, and CPU time. "
        f"Peers may take {experiment.MEMORY / 1e9:.0f} GB of address space.\n\n"
    )
    args.out.write_text(text + table(head, rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
