"""``results.md``: one table a question, losses included."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.cleanup.tables import table
from benchmarks.lowrank import verdicts
from benchmarks.lowrank.peers import METHODS, TENSORLY

Record = dict[str, Any]
Results = dict[str, list[Record]]


def render(results: Results, machine: dict[str, str]) -> str:
    parts = [
        "# Low-rank factorization",
        "Written by `python -m benchmarks.lowrank`; see `benchmarks/README.md` for how and why.",
        "\n".join(f"- {k}: {v}" for k, v in machine.items()),
        "Peers: numpy's SVD, " + TENSORLY[0].replace("==", " ") + ".",
        "## What it must reach",
        table(["requirement", "result"], reached(results)),
    ]
    if records := results["optimality"]:
        parts += [
            "## Optimality",
            "Each layer at a quarter of its full rank. *Bound*: layers whose distance from their weights is that of "
            "the nearest matrix of the rank (Eckart and Young), to rounding, or less in another form with no more "
            "arithmetic. *Aware over plain*: the error of the output on held-out samples, over that of the plain "
            "SVD at the same rank.",
            optimality(records),
        ]
    if records := results["transformers"]:
        parts += [
            "## Transformers",
            "As deployed: `cleanup,split-embedding{ratio=…},split-matmul{ratio=…}`. Latency: CPU time of one thread, "
            "over that of the clean model's: median, and the middle half.",
            transformers(records),
        ]
    if records := results["cnns"]:
        parts += [
            "## Convolutional networks",
            "Accuracy in % @ the share of multiply–accumulates left. *Ours*: "
            "`split-conv{ratio=…,round_to=1,timed=false}`; *plain* and *whitened*: truncated SVD, *tucker*: "
            "TensorLy's Tucker-2, all with one share of the ranks in all layers.",
            networks(records),
            "### As deployed",
            "`cleanup,split-conv{ratio=…}`: ranks as kernels want them, and only what gets faster.",
            deployed([r for r in records if r["by"] == "deployed"]),
        ]
    if records := results["mlp"]:
        parts += [
            "## Perceptron",
            "1024-512-512-10. `cleanup,split-matmul{ratio=…}` beside plain SVD, one share of the rank in all layers.",
            deployed(records),
        ]
    if records := results["time"]:
        parts += ["## Time", "`run` of the pass with its defaults, on two cores.", times(records)]
    return "\n\n".join(part for part in parts if part) + "\n"


def reached(results: Results) -> Iterable[list[str]]:
    layers = list(verdicts.split_layers(results["optimality"]))
    if layers:
        met = sum(map(verdicts.optimal, layers))
        yield ["data-free error of each layer = Eckart–Young, to rounding", f"{met} of {len(layers)}"]
        ratios = verdicts.aware(layers)
        text = f"{sum(r <= 1 for r in ratios)} of {len(ratios)}; median {statistics.median(ratios):.2f}, "
        yield ["error of outputs ≤ plain SVD's, same rank", text + f"max {max(ratios):.2f}"]
        if ratios := verdicts.aware([layer for layer in layers if layer["model"] in verdicts.TRANSFORMERS]):
            yield ["median for transformers ≤ 0.7", f"{statistics.median(ratios):.2f}"]
    if found := verdicts.said(results["transformers"]):
        good = [r for r in found if verdicts.small_and_fast(r)]
        best = {r["name"]: r for r in sorted(good, key=lambda r: -verdicts.share(r, "parameters"))}
        text = "; ".join(
            f"{name} ×{verdicts.share(r, 'parameters'):.2f}, {r['sqnr']:.1f} dB, latency {latency(r)}"
            for name, r in best.items()
        )
        yield ["a transformer with 20 % fewer parameters at ≥ 20 dB, faster", text or "none"]
    cnns = verdicts.said(results["cnns"])
    ours = [r for r in cnns if r["name"] == "resnet8_mnist_hard" and r["by"] == "ours"]
    for macs, most in ((0.6, 0.5), (0.5, 1.0)):
        if ours:
            yield [f"resnet8 at ×{macs} multiply–accumulates loses ≤ {most} point", points(ours, "macs", macs)]
    for peer in METHODS:
        if pairs := verdicts.pairs(cnns, peer):
            won = sum(a >= b for a, b in pairs)
            yield [f"accuracy ≥ {peer}'s, same ratio", f"{won} of {len(pairs)}"]
    if found := [r for r in verdicts.said(results["mlp"]) if r["by"] == "deployed"]:
        yield ["perceptron at ≤ ×0.44 latency loses ≤ 0.3 point", points(found, "latency", 0.44)]
    for kind in dict.fromkeys(r["kind"] for r in results["time"]):
        walls = [f"{r['wall']:.0f} s" for r in verdicts.said(results["time"]) if r["kind"] == kind]
        yield [f"{kind} of 100 MB in ≤ 60 s on two cores", " or ".join(walls) or "too slow"]
    more, count = verdicts.rose(verdicts.said([r for part in ("transformers", "cnns", "mlp") for r in results[part]]))
    if count:
        yield ["no layer that is split takes longer", f"{count - more} of {count}"]


def points(records: Sequence[Record], what: str, most: float) -> str:
    lost = verdicts.least_loss(records, what, most)
    return "not reached" if lost is None else f"{lost:.2f}"


def optimality(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        if "said" not in record:
            rows.append([record["name"], record["failure"][:120], *[""] * 5])
            continue
        layers, ratios = list(verdicts.split_layers([record])), verdicts.aware(record["said"])
        if not layers:
            rows.append([record["name"], f"0 of {len(record['said'])}", *["–"] * 5])
            continue
        excess = max(layer["distance"] - layer["bound"] for layer in layers)
        rows.append([
            record["name"], f"{len(layers)} of {len(record['said'])}", f"{sum(map(verdicts.optimal, layers))}",
            f"{excess:.1e}", *(f"{f(ratios):.2f}" for f in (min, statistics.median, max)),
        ])  # fmt: skip
    head = ["model", "layers split", "bound", "largest excess", "aware over plain: least", "median", "largest"]
    return table(head, rows)


def transformers(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        row = [record["name"], *(str(record[what] or "–") for what in ("embedding", "products"))]
        if not (found := verdicts.said([record])):
            rows.append([*row, failure(record), *[""] * 5])
            continue
        (r,) = found
        right = f"{r['accuracy'][1]:.2f} ({-verdicts.loss(r):+.2f})" if r["accuracy"] else "–"
        shares = [f"{verdicts.share(r, what):.2f}" for what in ("parameters", "macs")]
        rows.append([*row, *shares, f"{r['sqnr']:.1f}", right, latency(r), f"{r['wall']:.0f}"])
    head = ["model", "split-embedding", "split-matmul", "parameters", "multiply–accumulates", "SQNR (dB)"]
    return table([*head, "accuracy", "latency", "made in (s)"], rows)


def networks(records: Sequence[Record]) -> str:
    by = ("ours", *METHODS)
    cells = {(r["name"], r["ratio"], r["by"]): r for r in records}
    rows = []
    for name, ratio in dict.fromkeys((r["name"], r["ratio"]) for r in records if r["by"] == "ours"):
        row = [cells[name, ratio, each] for each in by]
        dense = next((f"{r['accuracy'][0]:.1f}" for r in verdicts.said(row)), "–")
        rows.append([name, str(ratio), dense, *map(accuracy, row)])
    return table(["model", "ratio", "whole", *by], rows)


def accuracy(record: Record) -> str:
    if not (found := verdicts.said([record])):
        return failure(record)
    return f"{found[0]['accuracy'][1]:.1f} @{verdicts.share(found[0], 'macs'):.2f}"


def deployed(records: Sequence[Record]) -> str:
    rows = []
    for r in records:
        row = [r["name"], str(r["ratio"]), r["by"]]
        if not (found := verdicts.said([r])):
            rows.append([*row, failure(r), *[""] * 3])
            continue
        shares = [f"{verdicts.share(found[0], what):.2f}" for what in ("macs", "parameters")]
        before, after = found[0]["accuracy"]
        rows.append([*row, *shares, f"{after:.2f} ({after - before:+.2f})", latency(found[0])])
    return table(["model", "ratio", "by", "multiply–accumulates", "parameters", "accuracy", "latency"], rows)


def latency(record: Record) -> str:
    middle, low, high = record["latency"]
    return f"×{middle:.2f} ({low:.2f}–{high:.2f})"


def failure(record: Record) -> str:
    said: str = record.get("failure") or record["said"]["failure"]
    return said.replace("|", "\\|")[:160]


def times(records: Sequence[Record]) -> str:
    rows = []
    for r in records:
        row = [r["kind"], str(r["threads"])]
        if not (found := verdicts.said([r])):
            rows.append([*row, failure(r), *[""] * 3])
            continue
        cells = [f"{found[0]['bytes'] / 1e6:.0f}", *(f"{found[0][each]:.1f}" for each in ("wall", "cpu"))]
        rows.append([*row, *cells, str(found[0]["changed"])])
    return table(["model", "threads of BLAS", "MB", "wall (s)", "CPU (s)", "layers split"], rows)
