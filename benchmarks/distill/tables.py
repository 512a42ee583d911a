"""``results.md``: one table a question, losses included."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.cleanup.tables import table
from benchmarks.distill import verdicts

Record = dict[str, Any]
Results = dict[str, list[Record]]

TITLES = {
    "pruned": ("Pruned", "`cleanup,prune-channels{of=macs,ratio=0.5,round_to=1},reconstruct`, and `distill` behind it"),
    "split": ("Factorized", "`cleanup,split-conv{ratio=0.5,round_to=1,timed=false}`, or `split-matmul`, and `distill`"),
    "quantized": (
        "In 4 bits",
        "`cleanup,quantize-static{target=generic,placement=all,weight_type=int4}` (activations in 8 bits), and `qat`",
    ),
}


def render(results: Results, machine: dict[str, str]) -> str:
    parts = [
        "# Distillation",
        "Written by `python -m benchmarks.distill`; see `benchmarks/README.md` for how and why.",
        "\n".join(f"- {k}: {v}" for k, v in machine.items()),
        "## What it must reach",
        table(["requirement", "result"], reached(results)),
    ]
    if records := results["students"]:
        parts += [
            "## A teacher beside labels",
            "A net of four convolutions, from random weights, taught by `resnet8_mnist_hard` on the same samples in "
            "the same order: mean and standard deviation of accuracy in % over seeds; and of the points it has more "
            "than the one of the same seed on labels alone. *Both*: half of the loss is the labels'; *teacher*: no "
            "labels. Of the samples, `optimize` keeps half for evaluation, and the pass a tenth of the rest.",
            students(records),
        ]
    for part, (title, text) in TITLES.items():
        if records := results[part]:
            parts += [
                f"## {title}",
                f"{text}, on training samples without labels. Accuracy in %.",
                recovery(records),
            ]
    return "\n\n".join(part for part in parts if part) + "\n"


def reached(results: Results) -> Iterable[list[str]]:
    records = results["students"]
    for samples in dict.fromkeys(r["samples"] for r in records):
        for way in ("both", "teacher"):
            gains = verdicts.gains(records, samples, way)
            what = "with labels" if way == "both" else "alone"
            wins = sum(gain > 0 for gain in gains)
            text = f"{wins} of {len(gains)} seeds, {verdicts.spread(gains)} points"
            yield [f"a teacher {what} is worth more than labels alone, {samples} samples", text]
    for part, most in verdicts.LOST.items():
        trained = [r for r in results[part] if verdicts.is_trained(r)]
        if trained:
            good = sum(verdicts.lost(r) <= most for r in trained)
            worst = max(map(verdicts.lost, trained))
            yield [
                f"{TITLES[part][0].lower()}: at most {most} points lost",
                f"{good} of {len(trained)} that were run; worst {worst:.2f}",
            ]


def students(records: Sequence[Record]) -> str:
    rows = []
    for samples, way in dict.fromkeys((r["samples"], r["way"]) for r in records):
        alike = [r for r in records if (r["samples"], r["way"]) == (samples, way)]
        found = [r["said"] for r in alike if not verdicts.failure(r)]
        if not found:
            rows.append([str(samples), way, "0", verdicts.failure(alike[0])[:160], "", "", ""])
            continue
        share = found[0]["macs"][0] / found[0]["macs"][1]
        mine = verdicts.spread([said["accuracy"][0] for said in found])
        gain = "–" if way == "labels" else verdicts.spread(verdicts.gains(records, samples, way))
        rows.append([
            str(samples), way, str(len(found)), mine, gain, f"{found[0]['accuracy'][1]:.2f}", f"{share:.2f}",
        ])  # fmt: skip
    head = ["samples", "learns from", "seeds", "accuracy", "more than labels", "the teacher's", "multiply–accumulates"]
    return table(head, rows)


def recovery(records: Sequence[Record]) -> str:
    rows = []
    for name in dict.fromkeys(r["name"] for r in records):
        both = sorted((r for r in records if r["name"] == name), key=verdicts.is_trained)
        said = next((r["said"] for r in both if not verdicts.failure(r)), None)
        row = [name, "–", "–"]
        if said is not None:
            row[1:] = [f"{said['accuracy'][0]:.2f}", f"{said['macs'][1] / max(said['macs'][0], 1):.2f}"]
        rows.append([*row, *(cell for r in both for cell in result(r)), *[""] * (4 - 2 * len(both))])
    head = ["model", "whole", "multiply–accumulates", "without training", "CPU (s)", "trained", "CPU (s)"]
    return table(head, rows)


def result(record: Record) -> list[str]:
    """Accuracy, and what it took."""
    if why := verdicts.failure(record):
        return [why.replace("|", "\\|")[:160], ""]
    said = record["said"]
    return [f"{said['accuracy'][1]:.2f} ({-verdicts.lost(record):+.2f})", f"{said['cpu']:.0f}"]
