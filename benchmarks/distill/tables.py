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
            "Students of `resnet8_mnist_hard`, each on the same samples in the same order: what pruning leaves of it "
            "at a quarter of its arithmetic, or a net of four convolutions with random weights. Mean and standard "
            "deviation of accuracy in % over seeds; and of the points it has more than the one of the same seed on "
            "labels alone. *Both*: half of the loss is the labels'; *teacher*: no labels.",
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
    for (start, samples), records in kinds(results["students"]):
        for way in ("both", "teacher"):
            gains = verdicts.gains(records, way)
            what = "with labels" if way == "both" else "alone"
            wins = sum(gain > 0 for gain in gains)
            text = f"{wins} of {len(gains)} seeds, {verdicts.spread(gains)} points"
            yield [f"{start}, {samples} samples: a teacher {what} is worth more than labels alone", text]
    for part, most in verdicts.LOST.items():
        trained = [r for r in results[part] if verdicts.is_trained(r)]
        if trained:
            good = sum(verdicts.lost(r) <= most for r in trained)
            worst = max(map(verdicts.lost, trained))
            yield [
                f"{TITLES[part][0].lower()}: at most {most} points lost",
                f"{good} of {len(trained)} that were run; worst {worst:.2f}",
            ]


def kinds(records: Sequence[Record]) -> Iterable[tuple[tuple[str, int], list[Record]]]:
    """Students that start alike and see as many samples."""
    for kind in dict.fromkeys(map(verdicts.kind, records)):
        yield kind, [r for r in records if verdicts.kind(r) == kind]


def students(records: Sequence[Record]) -> str:
    rows = []
    for (start, samples), alike in kinds(records):
        for way in dict.fromkeys(r["way"] for r in alike):
            of_way = [r for r in alike if r["way"] == way]
            found = [r["said"] for r in of_way if not verdicts.failure(r)]
            if not found:
                rows.append([start, str(samples), way, "0", verdicts.failure(of_way[0])[:160], "", "", ""])
                continue
            share = found[0]["macs"][0] / found[0]["macs"][1]
            mine = verdicts.spread([said["accuracy"][0] for said in found])
            gain = "–" if way == "labels" else verdicts.spread(verdicts.gains(alike, way))
            rows.append([
                start, str(samples), way, str(len(found)), mine, gain, f"{found[0]['accuracy'][1]:.2f}", f"{share:.2f}",
            ])  # fmt: skip
    head = [
        "starts from", "samples", "learns from", "seeds", "accuracy", "more than labels", "the teacher's",
        "multiply–accumulates",
    ]  # fmt: skip
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
