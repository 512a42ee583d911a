"""``results.md``: one table a question, losses included."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.cleanup.tables import table
from benchmarks.prune.peer import REQUIREMENTS
from benchmarks.train import verdicts

Record = dict[str, Any]
Results = dict[str, list[Record]]


def render(results: Results, machine: dict[str, str]) -> str:
    versions = ", ".join(r.replace("==", " ") for r in REQUIREMENTS if r.startswith(("torch==", "onnxruntime==")))
    parts = [
        "# Training",
        "Written by `python -m benchmarks.train`; see `benchmarks/README.md` for how and why.",
        "\n".join(f"- {k}: {v}" for k, v in machine.items()),
        f"Peer: PyTorch, eager; {versions}.",
        "## What it must reach",
        table(["requirement", "result"], reached(results)),
    ]
    if records := results["gradients"]:
        parts += [
            "## Gradients",
            "Of the cross-entropy of a batch of 8, in all parameters, beside PyTorch's in float64. An error is the "
            "length of the difference in units of the length of the gradient of the tensor. *Smooth*: with SiLU in "
            "place of ReLU, and means in place of maxima, so that nothing has a kink where rounding decides. *Zero*: "
            "tensors whose gradient is zero in exact arithmetic, left out of the others, with the largest that was "
            "computed in units of the whole gradient. *Not trained*: what is no parameter to onnxopt. *float64*: the "
            "same rewrite run in float64 by ONNX's reference implementation, on two samples; BatchNormalization's "
            "epsilon is a float32 in ONNX, which alone is worth 1e-13, and the reference's Erf one too.",
            gradients(records),
        ]
    if records := results["speed"]:
        parts += [
            "## Time of a step",
            "Forward, backward and AdamW, by turns with eager PyTorch (its fused AdamW, which is its fastest) in one "
            "process. The ratio is ours over PyTorch's: median of pairs, and their middle half. *Frozen*: "
            "BatchNormalization keeps its statistics; *train*: it follows the batches. On one thread CPU time; on "
            "two it is the clock on the wall, which is only worth something on a machine without other work: beside "
            "other work PyTorch's threads wait for each other, and become many times slower than one.",
            speed(records),
        ]
    if records := results["engine"]:
        parts += [
            "## Beside onnxruntime-training",
            "Forward and backward part of a batch of 64 of the models of `models/`, CPU time of one thread, by turns: "
            "ours, and the gradient graph of onnxruntime-training 1.19.2 in a process of its own, without what it "
            "takes to hand arrays over. *Frozen*: normalizations are folded into the layers before, for it cannot "
            "train any that keep their statistics. *Apart*: the length of the difference of the two gradients.",
            engine(records),
        ]
    if records := results["memory"]:
        parts += [
            "## Memory",
            "Largest resident size of a process that trains ResNet-18 on 64 × 64 pictures with AdamW, and how much of "
            "it came after the imports.",
            memory(records),
        ]
    if records := results["coverage"]:
        parts += [
            "## What can be trained",
            "After `cleanup,convert-opset{version=18}` at fixed sizes, six steps of gradient descent towards what the "
            "model gives with its weights moved at random by 5 %; each as long as the gradient says the loss falls "
            "by 1 %. *Fall*: how far it fell in the first step, in units of that.",
            "### Not trained",
            refused(records),
            "### Trained",
            trained(records),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def reached(results: Results) -> Iterable[list[str]]:
    if records := results["gradients"]:
        found = [r["said"]["ours"].get("onnxopt", {}) if "said" in r else {} for r in records]
        worst = max(errors["worst"][1] for errors in found if errors)
        text = f"{sum(map(verdicts.exact, found))} of {len(records)}; worst {worst:.1e}"
        yield [f"gradients of whole nets within {verdicts.ERROR:.0e}, tensor by tensor", text]
        pairs = [
            (ours["onnxopt"], ours["PyTorch"]) for ours in (r.get("said", {}).get("ours", {}) for r in records) if ours
        ]
        near = sum(a["worst"][1] <= 2 * b["worst"][1] for a, b in pairs)
        yield ["worst tensor within twice PyTorch's own error in float32", f"{near} of {len(pairs)}"]
    weighted = [r for r in results["coverage"] if verdicts.has_weights(r)]
    targets = {"models/": "all of models/ train", "published": "all published models train"}
    for kind in dict.fromkeys(map(verdicts.kind, weighted)):
        records = [r for r in weighted if verdicts.kind(r) == kind]
        target = targets.get(kind, f"{verdicts.COVERED:.0%} of exports train")
        yield [target, f"{sum(map(verdicts.trains, records))} of {len(records)}"]
    if ratios := [r["ratio"][0] for r in verdicts.said(results["speed"]) if r["threads"] == 1]:
        text = f"{sum(r <= 1 for r in ratios)} of {len(ratios)}; ×{min(ratios):.2f}–{max(ratios):.2f}"
        yield ["a step takes no more CPU time than PyTorch's", text]
    if ratios := [r["ratio"][0] for r in verdicts.said(results["engine"])]:
        text = f"{sum(r <= verdicts.ENGINE for r in ratios)} of {len(ratios)}; ×{min(ratios):.2f}–{max(ratios):.2f}"
        yield [f"gradients take at most ×{verdicts.ENGINE} the CPU time of onnxruntime-training's", text]
    records = verdicts.said(results["memory"])
    taken = {(r["batch"], r["side"]): (r["peak"], r["peak"] - r["before"]) for r in records}
    for batch in dict.fromkeys(batch for batch, _ in taken):
        if (batch, "onnxopt") in taken and (batch, "pytorch") in taken:
            whole, after = (a / b for a, b in zip(taken[batch, "onnxopt"], taken[batch, "pytorch"], strict=True))
            yield [f"peak memory at most PyTorch's, batch {batch}", f"×{whole:.2f}; after imports ×{after:.2f}"]


def gradients(records: Sequence[Record]) -> str:
    rows = []
    for r in records:
        row = [r["name"], r["form"], r["batch_norm"]]
        ours, exact = r.get("said", {}).get("ours", r), r.get("said", {}).get("exact")
        if "onnxopt" not in ours:
            rows.append([*row, ours.get("failure", "")[:160], *[""] * 7])
            continue
        errors, theirs = ours["onnxopt"], ours["PyTorch"]
        zeros = f"{errors['zeros']} ({errors['largest zero']:.0e})" if errors["zeros"] else "–"
        worst = f"{errors['worst'][1]:.1e} (`{errors['worst'][0]}`)"
        shown = [
            f"{number:.1e}" for number in (errors["median"], errors["whole"], theirs["worst"][1], theirs["median"])
        ]
        rows.append([*row, worst, *shown, zeros, ", ".join(errors["unmoved"]) or "–", in_double(exact)])
    head = ["net", "form", "normalization", "worst tensor", "median", "whole gradient"]
    return table([*head, "PyTorch float32: worst", "median", "zero", "not trained", "float64: worst"], rows)


def in_double(exact: Record | None) -> str:
    if exact is None:
        return "–"
    return f"{exact['onnxopt']['worst'][1]:.0e}" if "onnxopt" in exact else exact["failure"][:160]


def speed(records: Sequence[Record]) -> str:
    rows = []
    for r in records:
        row = [r["name"], r["batch_norm"], str(r["threads"])]
        if not (found := verdicts.said([r])):
            rows.append([*row, verdicts.failure(r)[:160], "", ""])
            continue
        middle, low, high = found[0]["ratio"]
        rows.append([*row, *(f"{ms:.1f}" for ms in found[0]["ms"]), f"×{middle:.2f} ({low:.2f}–{high:.2f})"])
    return table(["net", "normalization", "threads", "onnxopt (ms)", "PyTorch (ms)", "ratio"], rows)


def engine(records: Sequence[Record]) -> str:
    rows = []
    for r in records:
        row = [r["name"], r["batch_norm"]]
        if found := verdicts.said([r]):
            middle, low, high = found[0]["ratio"]
            times = [f"{ms:.1f}" for ms in found[0]["ms"]]
            rows.append([*row, *times, f"×{middle:.2f} ({low:.2f}–{high:.2f})", f"{found[0]['apart']:.1e}"])
        else:
            rows.append([*row, "", verdicts.failure(r)[-160:], "", ""])
    return table(["model", "normalization", "onnxopt (ms)", "onnxruntime-training (ms)", "ratio", "apart"], rows)


def memory(records: Sequence[Record]) -> str:
    rows = []
    for r in records:
        if found := verdicts.said([r]):
            sizes = [r["peak"], r["peak"] - found[0]["before"]]
            cells = [f"{size / 1e6:.0f}" for size in sizes]
        else:
            cells = [verdicts.failure(r)[:160], ""]
        rows.append([r["side"], str(r["batch"]), *cells])
    return table(["by", "batch", "peak (MB)", "after imports (MB)"], rows)


def refused(records: Sequence[Record]) -> str:
    rows = [[r["name"], why(r)] for r in records if not verdicts.trains(r)]
    return table(["model", "why"], rows) if rows else "None."


def why(record: Record) -> str:
    if not verdicts.has_weights(record):
        return "no output moves with its stored weights: it has none, or makes them by ConstantOfShape"
    return (verdicts.failure(record) or "the loss does not fall").replace("|", "\\|")[:200]


def trained(records: Sequence[Record]) -> str:
    found = [r | r["said"] for r in records if verdicts.trains(r)]
    if not found:
        return "None."
    rows = [
        [
            r["name"],
            f"{r['parameters']:,}",
            str(r["tensors"]),
            f"{r['losses'][-1] / r['losses'][0]:.3f}",
            f"{r['fall']:.3f}",
        ]
        for r in found
    ]
    falls = [r["fall"] for r in found]
    text = f"Of {len(found)} models, the fall is {statistics.median(falls):.3f} in the median, {min(falls):.3f} to "
    return f"{text}{max(falls):.3f}.\n\n" + table(["model", "parameters", "tensors", "loss after/before", "fall"], rows)
